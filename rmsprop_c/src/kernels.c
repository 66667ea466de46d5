/* The template of include/rmsprop.h, stamped once per instruction set: the only file that knows
 * one.
 *
 * What bounds the loop while its arrays are in cache is the divider: one sqrt and one divide per
 * element; loads, stores and the other arithmetic hide behind them. Nanoseconds per element of
 * sqrt + divide on registers alone, float32 / float64, by vector width:
 *
 *                                   128 bits      256 bits      512 bits
 *     Zen 5, 3.75 GHz               0.44 / -      0.22 / -      0.11 / 0.37
 *     Sapphire Rapids, 3.5 GHz      0.43 / -      0.39 / 1.45   0.42 / 1.52
 *
 * So on Intel a 512-bit division takes as long as two of 256 bits (Ice Lake and Skylake-X are built
 * the same), and there the AVX2 entry is the better one by 6 %. No intrinsics: what the compilers
 * make of the template stays within a few per cent of these floors.
 *
 * AVX2 is named without FMA; AVX-512 has FMA built in, and -ffp-contract=off keeps it unused. clang
 * drops a whole target attribute that holds prefer-vector-width, so it is not there. A test
 * disassembles every entry for its registers and for FMA.
 */
#include "kernels.h"

/* include/rmsprop.h was included plainly there: that is "portable", the compiler's own target. */

#if defined(__GNUC__) && defined(__x86_64__)
#define RMSPROP_X86 1

#define RMSPROP_ISA avx2
#define AVX2_TARGET __attribute__((target("avx2")))
#define RMSPROP_TARGET AVX2_TARGET
#include "../include/rmsprop.h"

#define RMSPROP_ISA avx512
#define AVX512_TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw")))
#define RMSPROP_TARGET AVX512_TARGET
#include "../include/rmsprop.h"
#else
#define RMSPROP_X86 0
#endif

/* The functions of a row: those of the template, which are typed, behind untyped pointers. Most
 * steps are the variant alone, and need not go tile by tile. */
#define ROW_FUNCTIONS(ending, target)                                                              \
    target static void run##ending(int variant, int passes, void *p, void *g, void *a, void *m,    \
                                   void *mean, void *ema, void *sum, size_t n,                     \
                                   const rmsprop_scalars *scalars)                                 \
    {                                                                                              \
        if (passes == RMSPROP_UPDATE && sum == NULL) {                                             \
            variants##ending[variant](p, g, a, m, mean, n, scalars);                               \
        } else {                                                                                   \
            rmsprop_passes##ending(variants##ending[variant], passes, p, g, a, m, mean, ema, sum,  \
                                   n, scalars);                                                    \
        }                                                                                          \
    }                                                                                              \
    target static void block_sums##ending(const void *g, size_t n, double *sums)                   \
    {                                                                                              \
        rmsprop_block_sums##ending(g, n, sums);                                                    \
    }                                                                                              \
    target static int finite##ending(const void *g, size_t n, const rmsprop_scalars *scalars)      \
    {                                                                                              \
        return rmsprop_finite##ending(g, n, scalars);                                              \
    }
#define ROW(isa, ending) {isa, run##ending, block_sums##ending, finite##ending}

#define VARIANT_F32(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32,
#define VARIANT_F64(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64,
static rmsprop_kernel_f32 *const variants_f32[] = {RMSPROP_EACH_VARIANT(VARIANT_F32)};
static rmsprop_kernel_f64 *const variants_f64[] = {RMSPROP_EACH_VARIANT(VARIANT_F64)};
ROW_FUNCTIONS(_f32, )
ROW_FUNCTIONS(_f64, )

#if RMSPROP_X86
#define VARIANT_F32_AVX2(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32_avx2,
#define VARIANT_F64_AVX2(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64_avx2,
static rmsprop_kernel_f32 *const variants_f32_avx2[] = {RMSPROP_EACH_VARIANT(VARIANT_F32_AVX2)};
static rmsprop_kernel_f64 *const variants_f64_avx2[] = {RMSPROP_EACH_VARIANT(VARIANT_F64_AVX2)};
ROW_FUNCTIONS(_f32_avx2, AVX2_TARGET)
ROW_FUNCTIONS(_f64_avx2, AVX2_TARGET)

#define VARIANT_F32_AVX512(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32_avx512,
#define VARIANT_F64_AVX512(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64_avx512,
static rmsprop_kernel_f32 *const variants_f32_avx512[] = {RMSPROP_EACH_VARIANT(VARIANT_F32_AVX512)};
static rmsprop_kernel_f64 *const variants_f64_avx512[] = {RMSPROP_EACH_VARIANT(VARIANT_F64_AVX512)};
ROW_FUNCTIONS(_f32_avx512, AVX512_TARGET)
ROW_FUNCTIONS(_f64_avx512, AVX512_TARGET)
#endif

static const rmsprop_kernels compiled[][RMSPROP_DTYPES] = {
    {ROW("portable", _f32), ROW("portable", _f64)},
#if RMSPROP_X86
    {ROW("avx2", _f32_avx2), ROW("avx2", _f64_avx2)},
    {ROW("avx512", _f32_avx512), ROW("avx512", _f64_avx512)},
#endif
};

enum { PORTABLE, AVX2, AVX512 };

const rmsprop_kernels *rmsprop_kernels_compiled(int i)
{
    return i < (int)(sizeof compiled / sizeof *compiled) ? compiled[i] : NULL;
}

int rmsprop_kernels_supported(const rmsprop_kernels *kernels)
{
#if RMSPROP_X86
    if (kernels == compiled[AVX2]) {
        return __builtin_cpu_supports("avx2");
    }
    if (kernels == compiled[AVX512]) { /* & and not &&: any one processor takes every path here */
        return (__builtin_cpu_supports("avx512f") != 0) &
               (__builtin_cpu_supports("avx512vl") != 0) &
               (__builtin_cpu_supports("avx512dq") != 0) &
               (__builtin_cpu_supports("avx512bw") != 0);
    }
#endif
    return kernels == compiled[PORTABLE];
}

const rmsprop_kernels *rmsprop_kernels_best(void)
{
#if RMSPROP_X86
    if (rmsprop_kernels_supported(compiled[AVX512]) && !__builtin_cpu_is("intel")) {
        return compiled[AVX512];
    }
    if (rmsprop_kernels_supported(compiled[AVX2])) {
        return compiled[AVX2];
    }
#endif
    return compiled[PORTABLE];
}

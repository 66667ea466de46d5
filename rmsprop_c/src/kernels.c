/* The template of include/rmsprop.h, stamped once per instruction set: with roots_x86.h the only
 * file that knows one.
 *
 * What bounds the loop while its arrays are in cache is the divider: one sqrt and one divide per
 * element; loads, stores and the other arithmetic hide behind them. Nanoseconds per element of
 * sqrt + divide on registers alone, float32 / float64, by vector width, and behind them the entry
 * with "_fma", whose roots don't wait for the divider, on 32,768 elements:
 *
 *                                   128 bits      256 bits      512 bits      avx512_fma
 *     Zen 5, 3.75 GHz               0.44 / -      0.22 / -      0.11 / 0.37   -
 *     Sapphire Rapids, 3.5 GHz      0.43 / -      0.39 / 1.45   0.42 / 1.52   -
 *     Granite Rapids                0.40 / 1.40   0.38 / 1.40   0.41 / 1.50   0.27 / 0.66
 *
 * So on Intel a 512-bit division takes as long as two of 256 bits (Ice Lake and Skylake-X are built
 * the same), and with all roots on the divider AVX2 is the better entry by 6 %. No intrinsics
 * there: what the compilers make of the template stays within a few per cent of these floors. Where
 * the divider is fast, as on AMD's, it is left the roots.
 *
 * AVX2's and AVX-512's own entries contain no FMA: -ffp-contract=off keeps AVX-512's unused, and
 * only roots.h asks for some. clang drops a whole target attribute that holds prefer-vector-width,
 * so it is not there. A test disassembles every entry for its registers and for FMA.
 */
#include "kernels.h"

/* include/rmsprop.h was included plainly there: that is "portable", the compiler's own target. */

#if defined(__GNUC__) && defined(__x86_64__)
#define RMSPROP_X86 1

#include <cpuid.h>

#include "roots_x86.h"

#define RMSPROP_ISA avx2
#define RMSPROP_TARGET AVX2_TARGET
#define RMSPROP_ROOTS_F64 roots_f64_avx2
#include "../include/rmsprop.h"

#define RMSPROP_ISA avx512
#define RMSPROP_TARGET AVX512_TARGET
#define RMSPROP_ROOTS_F32 roots_f32_avx512
#define RMSPROP_ROOTS_F64 roots_f64_avx512
#define RMSPROP_LEAN 1
#include "../include/rmsprop.h"

/* A variant in groups. With AVX-512, too, what is less than two groups goes to AVX2: on Intel's
 * processors ten tensors of 100 elements take 1.28 times as long with 512 bits. */
#define GROUPED(ending, rest, real, target, name, centered, momentum, epsilon_in_sqrt)             \
    target static void grouped_##name##ending(real *p, const real *g, real *a, real *m,            \
                                              real *mean, size_t n,                                \
                                              const rmsprop_scalars *scalars)                      \
    {                                                                                              \
        if (n < 2 * RMSPROP_GROUP / sizeof *p) {                                                   \
            rmsprop_##name##rest(p, g, a, m, mean, n, scalars);                                    \
        } else {                                                                                   \
            rmsprop_grouped##ending(rmsprop_##name##rest, p, g, a, m, mean, n, scalars, centered,  \
                                    momentum, epsilon_in_sqrt);                                    \
        }                                                                                          \
    }
#else
#define RMSPROP_X86 0
#endif

/* What a row has. The template's functions are typed; these are behind untyped pointers. Most steps
 * are the variant alone, and need not go tile by tile. */
#define RUN(ending, variants, tile, target)                                                        \
    target static void run_##variants(int variant, int passes, void *p, void *g, void *a, void *m, \
                                      void *mean, void *ema, void *sum, size_t n,                  \
                                      const rmsprop_scalars *scalars)                              \
    {                                                                                              \
        if (passes == RMSPROP_UPDATE && sum == NULL) {                                             \
            variants[variant](p, g, a, m, mean, n, scalars);                                       \
        } else {                                                                                   \
            rmsprop_passes_in_tiles##ending(tile, variants[variant], passes, p, g, a, m, mean,     \
                                            ema, sum, n, scalars);                                 \
        }                                                                                          \
    }
#define SUMS(ending, target)                                                                       \
    target static void block_sums##ending(const void *g, size_t n, double *sums)                   \
    {                                                                                              \
        rmsprop_block_sums##ending(g, n, sums);                                                    \
    }                                                                                              \
    target static int finite##ending(const void *g, size_t n, const rmsprop_scalars *scalars)      \
    {                                                                                              \
        return rmsprop_finite##ending(g, n, scalars);                                              \
    }
#define ROW(isa, ending) {isa, run_variants##ending, block_sums##ending, finite##ending, "sqrt"}
#define GROUPED_ROW(isa, ending)                                                                   \
    {isa, run_variants_grouped##ending, block_sums##ending, finite##ending, "fma"}

#define VARIANT_F32(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32,
static rmsprop_kernel_f32 *const variants_f32[] = {RMSPROP_EACH_VARIANT(VARIANT_F32)};
RUN(_f32, variants_f32, RMSPROP_TILE, )
SUMS(_f32, )
#define VARIANT_F64(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64,
static rmsprop_kernel_f64 *const variants_f64[] = {RMSPROP_EACH_VARIANT(VARIANT_F64)};
RUN(_f64, variants_f64, RMSPROP_TILE, )
SUMS(_f64, )

#if RMSPROP_X86
#define VARIANT_F32_AVX2(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32_avx2,
static rmsprop_kernel_f32 *const variants_f32_avx2[] = {RMSPROP_EACH_VARIANT(VARIANT_F32_AVX2)};
RUN(_f32_avx2, variants_f32_avx2, RMSPROP_TILE, AVX2_TARGET)
SUMS(_f32_avx2, AVX2_TARGET)
#define VARIANT_F64_AVX2(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64_avx2,
static rmsprop_kernel_f64 *const variants_f64_avx2[] = {RMSPROP_EACH_VARIANT(VARIANT_F64_AVX2)};
RUN(_f64_avx2, variants_f64_avx2, RMSPROP_TILE, AVX2_TARGET)
SUMS(_f64_avx2, AVX2_TARGET)

#define VARIANT_F32_AVX512(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32_avx512,
static rmsprop_kernel_f32 *const variants_f32_avx512[] = {RMSPROP_EACH_VARIANT(VARIANT_F32_AVX512)};
RUN(_f32_avx512, variants_f32_avx512, RMSPROP_TILE, AVX512_TARGET)
SUMS(_f32_avx512, AVX512_TARGET)
#define VARIANT_F64_AVX512(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64_avx512,
static rmsprop_kernel_f64 *const variants_f64_avx512[] = {RMSPROP_EACH_VARIANT(VARIANT_F64_AVX512)};
RUN(_f64_avx512, variants_f64_avx512, RMSPROP_TILE, AVX512_TARGET)
SUMS(_f64_avx512, AVX512_TARGET)

#define GROUPED_F64_AVX2(name, centered, momentum, epsilon_in_sqrt)                                \
    GROUPED(_f64_avx2, _f64_avx2, double, AVX2_TARGET, name, centered, momentum, epsilon_in_sqrt)
RMSPROP_EACH_VARIANT(GROUPED_F64_AVX2)
#define VARIANT_GROUPED_F64_AVX2(name, centered, momentum, epsilon_in_sqrt)                        \
    grouped_##name##_f64_avx2,
static rmsprop_kernel_f64 *const variants_grouped_f64_avx2[] = {
    RMSPROP_EACH_VARIANT(VARIANT_GROUPED_F64_AVX2)};
RUN(_f64_avx2, variants_grouped_f64_avx2, RMSPROP_TILE_GROUPED, AVX2_TARGET)

#define GROUPED_F32_AVX512(name, centered, momentum, epsilon_in_sqrt)                              \
    GROUPED(_f32_avx512, _f32_avx2, float, AVX512_TARGET, name, centered, momentum, epsilon_in_sqrt)
RMSPROP_EACH_VARIANT(GROUPED_F32_AVX512)
#define VARIANT_GROUPED_F32_AVX512(name, centered, momentum, epsilon_in_sqrt)                      \
    grouped_##name##_f32_avx512,
static rmsprop_kernel_f32 *const variants_grouped_f32_avx512[] = {
    RMSPROP_EACH_VARIANT(VARIANT_GROUPED_F32_AVX512)};
RUN(_f32_avx512, variants_grouped_f32_avx512, RMSPROP_TILE_GROUPED, AVX512_TARGET)

#define GROUPED_F64_AVX512(name, centered, momentum, epsilon_in_sqrt)                              \
    GROUPED(_f64_avx512, _f64_avx2, double, AVX512_TARGET, name, centered, momentum,               \
            epsilon_in_sqrt)
RMSPROP_EACH_VARIANT(GROUPED_F64_AVX512)
#define VARIANT_GROUPED_F64_AVX512(name, centered, momentum, epsilon_in_sqrt)                      \
    grouped_##name##_f64_avx512,
static rmsprop_kernel_f64 *const variants_grouped_f64_avx512[] = {
    RMSPROP_EACH_VARIANT(VARIANT_GROUPED_F64_AVX512)};
RUN(_f64_avx512, variants_grouped_f64_avx512, RMSPROP_TILE_GROUPED, AVX512_TARGET)
#endif

static const rmsprop_kernels compiled[][RMSPROP_DTYPES] = {
    {ROW("portable", _f32), ROW("portable", _f64)},
#if RMSPROP_X86
    {ROW("avx2", _f32_avx2), ROW("avx2", _f64_avx2)},
    {ROW("avx2_fma", _f32_avx2), GROUPED_ROW("avx2_fma", _f64_avx2)},
    {ROW("avx512", _f32_avx512), ROW("avx512", _f64_avx512)},
    {GROUPED_ROW("avx512_fma", _f32_avx512), GROUPED_ROW("avx512_fma", _f64_avx512)},
#endif
};

enum { PORTABLE, AVX2, AVX2_FMA, AVX512, AVX512_FMA };

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
    /* & and not &&: any one processor takes every path here */
    if (kernels == compiled[AVX2_FMA]) {
        return (__builtin_cpu_supports("avx2") != 0) & (__builtin_cpu_supports("fma") != 0);
    }
    if (kernels == compiled[AVX512] || kernels == compiled[AVX512_FMA]) {
        return (__builtin_cpu_supports("avx512f") != 0) &
               (__builtin_cpu_supports("avx512vl") != 0) &
               (__builtin_cpu_supports("avx512dq") != 0) &
               (__builtin_cpu_supports("avx512bw") != 0);
    }
#endif
    return kernels == compiled[PORTABLE];
}

#if RMSPROP_X86
/* Has it two units for 512-bit multiplications, as Intel's servers have from Sapphire Rapids on?
 * Its predecessors may have one (then float32 gains nothing) or slow down for them (Skylake-X).
 * Those servers were the first with 16-bit floating point, which gcc 11 has no name for. */
static int has_two_wide_units(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 23) % 2 != 0;
}
#endif

const rmsprop_kernels *rmsprop_kernels_best(void)
{
#if RMSPROP_X86
    const int intel = __builtin_cpu_is("intel") != 0;
    const int by_preference[] = {
        intel ? has_two_wide_units() ? AVX512_FMA : AVX2_FMA : AVX512,
        intel ? AVX2_FMA : AVX2,
        AVX2,
    };
    for (int i = 0; i < (int)(sizeof by_preference / sizeof *by_preference); i++) {
        if (rmsprop_kernels_supported(compiled[by_preference[i]])) {
            return compiled[by_preference[i]];
        }
    }
#endif
    return compiled[PORTABLE];
}

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
#define RMSPROP_TARGET __attribute__((target("avx2")))
#include "../include/rmsprop.h"

#define RMSPROP_ISA avx512
#define RMSPROP_TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw")))
#include "../include/rmsprop.h"
#else
#define RMSPROP_X86 0
#endif

#define F32(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32,
#define F64(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64,
#define F32_AVX2(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32_avx2,
#define F64_AVX2(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64_avx2,
#define F32_AVX512(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f32_avx512,
#define F64_AVX512(name, centered, momentum, epsilon_in_sqrt) rmsprop_##name##_f64_avx512,

static const rmsprop_kernels compiled[] = {
    {"portable",
     {RMSPROP_EACH_VARIANT(F32)},
     {RMSPROP_EACH_VARIANT(F64)},
     rmsprop_blocks_f32,
     rmsprop_blocks_f64,
     rmsprop_block_sums_f32,
     rmsprop_block_sums_f64,
     rmsprop_finite_f32,
     rmsprop_finite_f64},
#if RMSPROP_X86
    {"avx2",
     {RMSPROP_EACH_VARIANT(F32_AVX2)},
     {RMSPROP_EACH_VARIANT(F64_AVX2)},
     rmsprop_blocks_f32_avx2,
     rmsprop_blocks_f64_avx2,
     rmsprop_block_sums_f32_avx2,
     rmsprop_block_sums_f64_avx2,
     rmsprop_finite_f32_avx2,
     rmsprop_finite_f64_avx2},
    {"avx512",
     {RMSPROP_EACH_VARIANT(F32_AVX512)},
     {RMSPROP_EACH_VARIANT(F64_AVX512)},
     rmsprop_blocks_f32_avx512,
     rmsprop_blocks_f64_avx512,
     rmsprop_block_sums_f32_avx512,
     rmsprop_block_sums_f64_avx512,
     rmsprop_finite_f32_avx512,
     rmsprop_finite_f64_avx512},
#endif
};

enum { PORTABLE, AVX2, AVX512 };

const rmsprop_kernels *rmsprop_kernels_compiled(int i)
{
    return i < (int)(sizeof compiled / sizeof *compiled) ? &compiled[i] : NULL;
}

int rmsprop_kernels_supported(const rmsprop_kernels *kernels)
{
#if RMSPROP_X86
    if (kernels == &compiled[AVX2]) {
        return __builtin_cpu_supports("avx2");
    }
    if (kernels == &compiled[AVX512]) { /* & and not &&: any one processor takes every path here */
        return (__builtin_cpu_supports("avx512f") != 0) &
               (__builtin_cpu_supports("avx512vl") != 0) &
               (__builtin_cpu_supports("avx512dq") != 0) &
               (__builtin_cpu_supports("avx512bw") != 0);
    }
#endif
    return kernels == &compiled[PORTABLE];
}

const rmsprop_kernels *rmsprop_kernels_best(void)
{
#if RMSPROP_X86
    if (rmsprop_kernels_supported(&compiled[AVX512]) && !__builtin_cpu_is("intel")) {
        return &compiled[AVX512];
    }
    if (rmsprop_kernels_supported(&compiled[AVX2])) {
        return &compiled[AVX2];
    }
#endif
    return &compiled[PORTABLE];
}

/* The instances of roots.h for AVX2 with FMA and for AVX-512, and the targets of their callers. */
#ifndef RMSPROP_ROOTS_X86_H
#define RMSPROP_ROOTS_X86_H

#include <immintrin.h>

#define AVX2_TARGET __attribute__((target("avx2")))
#define AVX2_FMA_TARGET __attribute__((target("avx2,fma")))
#define AVX512_TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw")))

/* float64 from float32's estimate of 12 bits (its relative error is below 1.5 * 2^-12), which
 * reaches as far as float32 does. In float32 two steps from there are 3 % faster at most. */
AVX2_FMA_TARGET static inline __m256d estimate_f64_avx2(__m256d x)
{
    const __m256d y = _mm256_cvtps_pd(_mm_rsqrt_ps(_mm256_cvtpd_ps(x)));
    return _mm256_and_pd(y, _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_NEQ_UQ));
}

AVX2_FMA_TARGET static inline __m256d unfit_f64_avx2(__m256d x)
{
    const __m256d low = _mm256_set1_pd(0x1p-100), high = _mm256_set1_pd(0x1p100);
    const __m256d fit = _mm256_min_pd(high, _mm256_max_pd(low, x));
    return _mm256_and_pd(x, _mm256_cmp_pd(x, fit, _CMP_NEQ_UQ));
}

#define ROOTS_NAME roots_f64_avx2
#define ROOTS_TARGET AVX2_FMA_TARGET
#define ROOTS_INLINE RMSPROP_OUTLINE
#define ROOTS_REAL double
#define ROOTS_LANES 4
#define ROOTS_VECTOR __m256d
#define ROOTS_OP(name) _mm256_##name##_pd
#define ROOTS_ESTIMATE(x) estimate_f64_avx2(x)
#define ROOTS_STEPS 3
#define ROOTS_UNFIT(x, y) unfit_f64_avx2(x)
#define ROOTS_OR(a, b) _mm256_or_pd(a, b)
#define ROOTS_ANY(mask) (!_mm256_testz_si256(_mm256_castpd_si256(mask), _mm256_castpd_si256(mask)))
#define ROOTS_ON_DIVIDER 0
#include "roots.h"

/* Estimates of 14 bits. What must not be refined gets an infinite one or, being too small, has a
 * large one; 0 gets 0. The table says so from NaN (the last four bits) to positive numbers (the
 * first): 0 keeps the estimate, 5 is infinity, 8 is 0. */
#define UNFIT 0x05550855

AVX512_TARGET static inline __m512 estimate_f32_avx512(__m512 x)
{
    return _mm512_fixupimm_ps(_mm512_rsqrt14_ps(x), x, _mm512_set1_epi32(UNFIT), 0);
}

AVX512_TARGET static inline __m512d estimate_f64_avx512(__m512d x)
{
    return _mm512_fixupimm_pd(_mm512_rsqrt14_pd(x), x, _mm512_set1_epi64(UNFIT), 0);
}

#define ROOTS_NAME roots_f32_avx512
#define ROOTS_TARGET AVX512_TARGET
#define ROOTS_INLINE RMSPROP_INLINE
#define ROOTS_REAL float
#define ROOTS_LANES 16
#define ROOTS_VECTOR __m512
#define ROOTS_OP(name) _mm512_##name##_ps
#define ROOTS_ESTIMATE(x) estimate_f32_avx512(x)
#define ROOTS_STEPS 1
#define ROOTS_UNFIT(x, y) (y)
#define ROOTS_OR(a, b) _mm512_max_ps(a, b)
#define ROOTS_ANY(mask) (_mm512_cmp_ps_mask(mask, _mm512_set1_ps(0x1p39f), _CMP_GT_OQ) != 0)
#define ROOTS_ON_DIVIDER 1
#include "roots.h"

#define ROOTS_NAME roots_f64_avx512
#define ROOTS_TARGET AVX512_TARGET
#define ROOTS_INLINE RMSPROP_INLINE
#define ROOTS_REAL double
#define ROOTS_LANES 8
#define ROOTS_VECTOR __m512d
#define ROOTS_OP(name) _mm512_##name##_pd
#define ROOTS_ESTIMATE(x) estimate_f64_avx512(x)
#define ROOTS_STEPS 2
#define ROOTS_UNFIT(x, y) (y)
#define ROOTS_OR(a, b) _mm512_max_pd(a, b)
#define ROOTS_ANY(mask) (_mm512_cmp_pd_mask(mask, _mm512_set1_pd(0x1p450), _CMP_GT_OQ) != 0)
#define ROOTS_ON_DIVIDER 0
#include "roots.h"

#endif

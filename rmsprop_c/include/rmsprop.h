/* RMSprop for contiguous float32 and float64 buffers, in C99 or C++11.
 *
 * The update of Keras 2.0, one element at a time, with T the buffer's type:
 *
 *     g <- clip(g * scale, -clipvalue, clipvalue)
 *     a <- rho * a + (1 - rho) * (g * g)
 *     p <- p - (learning_rate * g) / (sqrt(a) + epsilon)
 *
 * and eleven variants of it: centered (the root of a - mean^2, with mean a running mean of g), with
 * momentum or Nesterov's (m <- momentum * m + d, where d is what p would lose), epsilon inside the
 * root. The package's reference.py defines them all.
 *
 * Every operation is rounded once, in this order, so any compiler gives the same bits for any
 * vector width, provided that it neither contracts a*b+c to an FMA nor uses fast-math. Compile with
 *
 *     -O3 -ffp-contract=off -fno-math-errno
 *
 * (without -fno-math-errno sqrt may set errno and gcc does not vectorise the loop). This file does
 * not allocate, keeps no state, starts no threads and does not touch the floating-point
 * environment: run it in round-to-nearest, and without flush-to-zero where subnormals matter.
 *
 * Included plainly it defines, as static functions for the compiler's own target (and the same
 * with _f64),
 *
 *     rmsprop_update_f32            the update
 *     rmsprop_variant_f32           a variant of it, as a function pointer
 *     rmsprop_passes_f32            a variant and what goes around it: weight decay, averages, ...
 *     rmsprop_block_sums_f32        the leaves of the global norm
 *     rmsprop_finite_f32            whether squares of clipped gradients are finite
 *     rmsprop_gradient_scale        norm -> scale of clipnorm
 *     rmsprop_learning_rate         lr after decay
 *
 * It is also the template of the package's kernels and may be included again with
 *
 *     RMSPROP_ISA       a suffix for the names: avx2 gives rmsprop_update_f32_avx2
 *     RMSPROP_TARGET    a function attribute that selects that instruction set
 *     RMSPROP_ROOTS_F32, RMSPROP_ROOTS_F64
 *                       void roots(float *x) (or double): replaces the numbers in 256 bytes, on a
 *                       64-byte boundary, by their correctly rounded square roots. With it there
 *                       is rmsprop_grouped_f32_avx2, which uses it. Needs GNU C, C11 or C++11
 *     RMSPROP_LEAN      1: there, steps without options get loops of their own
 *
 * all of which it undefines at its end.
 */

#ifndef RMSPROP_H
#define RMSPROP_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "rmsprop.h promises exact bits; compile it without -ffast-math"
#endif
#if FLT_EVAL_METHOD < 0 || FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2
#error "rmsprop.h needs float in float: -fexcess-precision=fast, on x86 -msse2 -mfpmath=sse"
#endif

/* All scalars of one step. They are rounded to T where they are used. Every variant has them all;
 * neutral values switch clipping (scale 1, clipvalue INFINITY) and everything from `rho_power` on
 * (0) off, at no measurable cost where the divider bounds the loop. */
typedef struct {
    double learning_rate; /* after decay: see rmsprop_learning_rate */
    double rho;
    double epsilon;
    double scale;        /* of the gradient: see rmsprop_gradient_scale */
    double clipvalue;    /* > 0 */
    double rho_power;    /* rho^t for the bias correction of step t: see rmsprop_power */
    double momentum;     /* of the variants that have one */
    double lr_outside;   /* not 0: the learning rate multiplies the momentum, not what enters it */
    double weight_decay; /* this and the next of rmsprop_passes only */
    double ema_momentum;
} rmsprop_scalars;

/* The variants, in the order of rmsprop_variant: (name, centered, momentum, epsilon in the root),
 * with momentum 1 for a heavy ball and 2 for Nesterov's. */
#define RMSPROP_EACH_VARIANT(DO)                                                                   \
    DO(plain_out, 0, 0, 0)                                                                         \
    DO(plain_in, 0, 0, 1)                                                                          \
    DO(momentum_out, 0, 1, 0)                                                                      \
    DO(momentum_in, 0, 1, 1)                                                                       \
    DO(nesterov_out, 0, 2, 0)                                                                      \
    DO(nesterov_in, 0, 2, 1)                                                                       \
    DO(centered_out, 1, 0, 0)                                                                      \
    DO(centered_in, 1, 0, 1)                                                                       \
    DO(centered_momentum_out, 1, 1, 0)                                                             \
    DO(centered_momentum_in, 1, 1, 1)                                                              \
    DO(centered_nesterov_out, 1, 2, 0)                                                             \
    DO(centered_nesterov_in, 1, 2, 1)
#define RMSPROP_VARIANTS 12

/* The step of a variant over n elements: p, a, m (with momentum) and mean (centered) are updated in
 * place, g is read; none overlap. What a variant does not have may be NULL. */
typedef void rmsprop_kernel_f32(float *p, const float *g, float *a, float *m, float *mean, size_t n,
                                const rmsprop_scalars *scalars);
typedef void rmsprop_kernel_f64(double *p, const double *g, double *a, double *m, double *mean,
                                size_t n, const rmsprop_scalars *scalars);

/* What rmsprop_passes does, in this order. */
#define RMSPROP_ADD 1         /* sum <- sum + g, where there is a g; an update then follows sum */
#define RMSPROP_DECAY 2       /* p is weight-decayed: p <- p - learning_rate * weight_decay * p */
#define RMSPROP_DECAY_GRAD 4  /* the clipped gradient is: g + weight_decay * p, in a buffer */
#define RMSPROP_UPDATE 8      /* the variant's step, along sum (then cleared) if there is one */
#define RMSPROP_FLUSH 16      /* state below the smallest normal number of T <- 0 */
#define RMSPROP_AVERAGE 32    /* ema <- ema_momentum * ema + (1 - ema_momentum) * p */
#define RMSPROP_OVERWRITE 64  /* p <- ema */
#define RMSPROP_ZERO_GRAD 128 /* g <- 0 */

/* Bytes of a tile there. It is so small that a pass runs while the divider still works at the tile
 * before: with 25M elements in float64, against their traffic, weight decay takes 1.05, with tiles
 * of 2 KiB 1.16 and of 8 KiB 1.43, since a processor looks some hundred instructions ahead.
 */
#define RMSPROP_TILE 512

/* And where the update does not wait for the divider: in cache weight decay takes 0.9 of the time
 * that it takes with 512 bytes; with 1 KiB, in memory, it takes 1.12 of its traffic in float32,
 * with 2 KiB 1.03 and 1.08. */
#define RMSPROP_TILE_GROUPED 2048

/* Bytes of a group: so many roots are computed at once, where something else than the divider does.
 */
#define RMSPROP_GROUP 256

/* The global norm is a sum in double of squares over blocks of this many elements of one buffer,
 * counted from its start. Inside a block lane j adds elements j, j + LANES, ... in that order; the
 * lanes, and then the blocks, are added pairwise. No part depends on threads or vector width. */
#define RMSPROP_BLOCK 4096
#define RMSPROP_LANES 16

/* Buffers of at least this many elements are processed from a 64-byte boundary of p on: unaligned
 * 512-bit accesses cost up to 7 % in memory, the scalar head costs 15 elements at most. */
#define RMSPROP_PEEL 16384

/* Both loops ask for memory some KiB ahead of the hardware. 25M elements on Sapphire Rapids: the
 * norm from 0.29 to 0.23 ns an element in float32; the update from 0.70 to 0.67, in float64
 * from 1.48 to 1.37, since while divisions fill the processor's window it sees few loads ahead.
 * Nothing in cache. */
#ifdef __GNUC__
#define RMSPROP_PREFETCH(address, ahead) __builtin_prefetch((const char *)(address) + (ahead))
#else
#define RMSPROP_PREFETCH(address, ahead) ((void)0)
#endif
#define RMSPROP_AHEAD_UPDATE 512 /* elements: what they take hides the memory's latency */
#define RMSPROP_AHEAD_NORM 4096

/* Elements of one turn of the loops: a cache line of float32, two of float64. */
#define RMSPROP_TURN 16

/* The lanes are scalars with names: gcc keeps an array in memory where a loop prefetches. */
/* clang-format off */
#define RMSPROP_EACH_LANE(DO)                        \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)  \
    DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
/* clang-format on */
#define RMSPROP_LANE_DECLARE(j) double lane##j = 0;
#define RMSPROP_LANE_ADD(j) lane##j += (double)x[i + j] * (double)x[i + j];
#define RMSPROP_LANE_STORE(j) lane[j] = lane##j;

/* lr of Keras 2.0 after decay; its form matters: lr / (1 + decay * t) differs in the last bit. */
static inline double rmsprop_learning_rate(double lr, double decay, int64_t iterations)
{
    if (decay == 0) {
        return lr; /* the same, without the latency of a division: 5 ns of a small step */
    }
    return lr * (1.0 / (1.0 + decay * (double)iterations));
}

/* Adds sums[0..count) pairwise, in place: neighbours first, an odd last one passes up. */
static inline double rmsprop_pairwise_sum(double *sums, size_t count)
{
    if (count == 0) {
        return 0.0;
    }
    while (count > 1) {
        size_t half = count / 2;
        for (size_t i = 0; i < half; i++) {
            sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
        if (count % 2) {
            sums[half] = sums[count - 1];
        }
        count -= half;
    }
    return sums[0];
}

/* The scale of gradients that are sums over so many calls: their mean, clipped to the norm clipnorm
 * if that is > 0, against its direction to maximize. `sums` are their block sums (overwritten). A
 * NaN norm does not scale, an infinite one scales by 0. */
static inline double rmsprop_gradient_scale(double *sums, size_t count, double clipnorm,
                                            int64_t calls, int maximize)
{
    const double mean = 1.0 / (double)calls;
    double scale = 1.0;
    if (clipnorm > 0) {
        const double norm = sqrt(rmsprop_pairwise_sum(sums, count)) * mean;
        scale = norm >= clipnorm ? clipnorm / norm : 1.0;
    }
    return scale * (maximize ? -mean : mean);
}

/* x^n by repeated squaring: the pow of one library differs from another's in the last bit. */
static inline double rmsprop_power(double x, int64_t n)
{
    double power = 1.0;
    for (; n > 0; n /= 2) {
        if (n % 2) {
            power *= x;
        }
        x *= x;
    }
    return power;
}

static inline double rmsprop_product(double x, double y)
{
    return x * y;
}

/* How many block sums a buffer of n elements has. */
static inline size_t rmsprop_block_count(size_t n)
{
    return n / RMSPROP_BLOCK + (n % RMSPROP_BLOCK != 0);
}

#ifdef __cplusplus
#define RMSPROP_RESTRICT                                                                           \
    __restrict /* gcc's, clang's and MSVC's name for what C++ has no word for */
#else
#define RMSPROP_RESTRICT restrict
#endif

/* A variant's constants reach the loop by inlining alone. */
#ifdef __GNUC__
#define RMSPROP_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define RMSPROP_OUTLINE static __attribute__((noinline, unused)) /* a tenth of the code's size */
#define RMSPROP_ROLLED
#else
#define RMSPROP_OUTLINE static __attribute__((noinline, noclone, unused))
#define RMSPROP_ROLLED                                                                             \
    _Pragma("GCC unroll 1") /* what is left over would be unrolled, for nothing */
#endif
#define RMSPROP_ALIGNED __attribute__((aligned(64)))
#else
#define RMSPROP_INLINE static inline
#define RMSPROP_OUTLINE static inline
#ifdef __cplusplus
#define RMSPROP_ALIGNED alignas(64)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define RMSPROP_ALIGNED _Alignas(64)
#else
#define RMSPROP_ALIGNED /* only what is made with RMSPROP_ROOTS_F32 or _F64 needs it */
#endif
#define RMSPROP_ROLLED
#endif

#define RMSPROP_JOIN_(a, b) a##b
#define RMSPROP_JOIN(a, b) RMSPROP_JOIN_(a, b)
#endif /* RMSPROP_H */

#ifndef RMSPROP_REAL
#if defined(RMSPROP_ISA) || !defined(RMSPROP_PLAIN) /* a second plain inclusion adds nothing */

#ifndef RMSPROP_TARGET
#define RMSPROP_TARGET
#endif
#ifndef RMSPROP_LEAN
#define RMSPROP_LEAN 0
#endif
#ifdef RMSPROP_ISA
#define RMSPROP_ISA_SUFFIX RMSPROP_JOIN(_, RMSPROP_ISA)
#else
#define RMSPROP_PLAIN
#define RMSPROP_ISA_SUFFIX
#endif

#define RMSPROP_REAL float
#define RMSPROP_SQRT sqrtf
#define RMSPROP_ABS fabsf
#define RMSPROP_TINY FLT_MIN
#define RMSPROP_HUGE FLT_MAX
#define RMSPROP_KERNEL rmsprop_kernel_f32
#define RMSPROP_NAME(name) RMSPROP_JOIN(name##_f32, RMSPROP_ISA_SUFFIX)
#ifdef RMSPROP_ROOTS_F32
#define RMSPROP_ROOTS RMSPROP_ROOTS_F32
#endif
#include "rmsprop.h"
#undef RMSPROP_REAL
#undef RMSPROP_SQRT
#undef RMSPROP_ABS
#undef RMSPROP_TINY
#undef RMSPROP_HUGE
#undef RMSPROP_KERNEL
#undef RMSPROP_NAME
#undef RMSPROP_ROOTS

#define RMSPROP_REAL double
#define RMSPROP_SQRT sqrt
#define RMSPROP_ABS fabs
#define RMSPROP_TINY DBL_MIN
#define RMSPROP_HUGE DBL_MAX
#define RMSPROP_KERNEL rmsprop_kernel_f64
#define RMSPROP_NAME(name) RMSPROP_JOIN(name##_f64, RMSPROP_ISA_SUFFIX)
#ifdef RMSPROP_ROOTS_F64
#define RMSPROP_ROOTS RMSPROP_ROOTS_F64
#endif
#include "rmsprop.h"
#undef RMSPROP_REAL
#undef RMSPROP_SQRT
#undef RMSPROP_ABS
#undef RMSPROP_TINY
#undef RMSPROP_HUGE
#undef RMSPROP_KERNEL
#undef RMSPROP_NAME
#undef RMSPROP_ROOTS

#undef RMSPROP_ISA
#undef RMSPROP_ISA_SUFFIX
#undef RMSPROP_TARGET
#undef RMSPROP_ROOTS_F32
#undef RMSPROP_ROOTS_F64
#undef RMSPROP_LEAN

#endif
#else /* the template, once per type and instruction set */

/* The scalars of a step in T. The bias correction of a is moved out of the root, into learning rate
 * and epsilon: dividing every a by 1 - rho^t took 8 % with SSE2. */
struct RMSPROP_NAME(rmsprop_rounded) {
    RMSPROP_REAL lr, rho, one_minus_rho, epsilon, scale, high, correction, momentum, outer;
};

RMSPROP_TARGET RMSPROP_INLINE struct RMSPROP_NAME(rmsprop_rounded)
    RMSPROP_NAME(rmsprop_round)(const rmsprop_scalars *scalars, int momentum, int epsilon_in_sqrt)
{
    struct RMSPROP_NAME(rmsprop_rounded) c;
    const int outside = momentum && scalars->lr_outside != 0;
    double lr = outside ? 1.0 : scalars->learning_rate;
    double epsilon = scalars->epsilon;
    c.correction = 1;
    if (scalars->rho_power != 0) {
        const double unbiased = 1.0 - scalars->rho_power;
        lr *= sqrt(unbiased);
        epsilon *= epsilon_in_sqrt ? unbiased : sqrt(unbiased);
        c.correction = (RMSPROP_REAL)(1.0 / unbiased);
    }
    c.lr = (RMSPROP_REAL)lr;
    c.outer = outside ? (RMSPROP_REAL)scalars->learning_rate : 1;
    c.rho = (RMSPROP_REAL)scalars->rho;
    c.one_minus_rho = 1 - c.rho;
    c.epsilon = (RMSPROP_REAL)epsilon;
    c.scale = (RMSPROP_REAL)scalars->scale;
    c.high = (RMSPROP_REAL)scalars->clipvalue;
    c.momentum = (RMSPROP_REAL)scalars->momentum;
    return c;
}

/* A gradient's element, scaled and clipped. A NaN fails both comparisons and stays. */
RMSPROP_TARGET RMSPROP_INLINE RMSPROP_REAL RMSPROP_NAME(rmsprop_clip)(RMSPROP_REAL g,
                                                                      RMSPROP_REAL scale,
                                                                      RMSPROP_REAL high)
{
    g = g * scale;
    g = g < -high ? -high : g;
    return g > high ? high : g;
}

/* What an element's root is taken of, but for epsilon: its accumulator and its mean step on the
 * way. */
RMSPROP_TARGET RMSPROP_INLINE RMSPROP_REAL
RMSPROP_NAME(rmsprop_value)(RMSPROP_REAL gi, RMSPROP_REAL *a, RMSPROP_REAL *mean,
                            struct RMSPROP_NAME(rmsprop_rounded) c, int centered, int neutral)
{
    const RMSPROP_REAL ai = c.rho * *a + c.one_minus_rho * (gi * gi);
    RMSPROP_REAL v = ai;
    *a = ai;
    if (centered) {
        const RMSPROP_REAL average = c.rho * *mean + c.one_minus_rho * gi;
        *mean = average;
        v = v - (neutral ? average * average : average * average * c.correction);
        v = v < 0 ? 0 : v; /* rounding may leave less than nothing */
    }
    return v;
}

/* What follows, once its denominator is known. */
RMSPROP_TARGET RMSPROP_INLINE void
RMSPROP_NAME(rmsprop_apply)(RMSPROP_REAL *p, RMSPROP_REAL gi, RMSPROP_REAL denominator,
                            RMSPROP_REAL *m, struct RMSPROP_NAME(rmsprop_rounded) c, int momentum,
                            int neutral)
{
    RMSPROP_REAL d = (c.lr * gi) / denominator;
    if (momentum) {
        const RMSPROP_REAL mi = c.momentum * *m + d;
        *m = mi;
        d = momentum == 2 ? d + c.momentum * mi : mi;
        d = neutral ? d : c.outer * d;
    }
    *p = *p - d;
}

/* One element. */
RMSPROP_TARGET RMSPROP_INLINE void RMSPROP_NAME(rmsprop_element)(
    RMSPROP_REAL *p, const RMSPROP_REAL *g, RMSPROP_REAL *a, RMSPROP_REAL *m, RMSPROP_REAL *mean,
    struct RMSPROP_NAME(rmsprop_rounded) c, int centered, int momentum, int epsilon_in_sqrt)
{
    const RMSPROP_REAL gi = RMSPROP_NAME(rmsprop_clip)(*g, c.scale, c.high);
    const RMSPROP_REAL v = RMSPROP_NAME(rmsprop_value)(gi, a, mean, c, centered, 0);
    RMSPROP_NAME(rmsprop_apply)
    (p, gi, epsilon_in_sqrt ? RMSPROP_SQRT(v + c.epsilon) : RMSPROP_SQRT(v) + c.epsilon, m, c,
     momentum, 0);
}

/* Asks memory for what lies so far behind the turn at i. */
RMSPROP_TARGET RMSPROP_INLINE void
RMSPROP_NAME(rmsprop_prefetch_turn)(const RMSPROP_REAL *p, const RMSPROP_REAL *g,
                                    const RMSPROP_REAL *a, const RMSPROP_REAL *m,
                                    const RMSPROP_REAL *mean, size_t i, int centered, int momentum)
{
    for (size_t line = 0; line < RMSPROP_TURN; line += 64 / sizeof *p) {
        RMSPROP_PREFETCH(g + i + line, RMSPROP_AHEAD_UPDATE * sizeof *p);
        RMSPROP_PREFETCH(a + i + line, RMSPROP_AHEAD_UPDATE * sizeof *p);
        RMSPROP_PREFETCH(p + i + line, RMSPROP_AHEAD_UPDATE * sizeof *p);
        if (momentum) {
            RMSPROP_PREFETCH(m + i + line, RMSPROP_AHEAD_UPDATE * sizeof *p);
        }
        if (centered) {
            RMSPROP_PREFETCH(mean + i + line, RMSPROP_AHEAD_UPDATE * sizeof *p);
        }
    }
}

/* Elements [begin, end). */
RMSPROP_TARGET RMSPROP_INLINE void RMSPROP_NAME(rmsprop_range)(
    RMSPROP_REAL *RMSPROP_RESTRICT p, const RMSPROP_REAL *RMSPROP_RESTRICT g,
    RMSPROP_REAL *RMSPROP_RESTRICT a, RMSPROP_REAL *RMSPROP_RESTRICT m,
    RMSPROP_REAL *RMSPROP_RESTRICT mean, size_t begin, size_t end,
    struct RMSPROP_NAME(rmsprop_rounded) c, int centered, int momentum, int epsilon_in_sqrt)
{
    const size_t whole = end - (end - begin) % RMSPROP_TURN;

    for (size_t i = begin; i < whole; i += RMSPROP_TURN) {
        RMSPROP_NAME(rmsprop_prefetch_turn)(p, g, a, m, mean, i, centered, momentum);
        for (size_t j = 0; j < RMSPROP_TURN; j++) {
            RMSPROP_NAME(rmsprop_element)(p + i + j, g + i + j, a + i + j, momentum ? m + i + j : 0,
                                          centered ? mean + i + j : 0, c, centered, momentum,
                                          epsilon_in_sqrt);
        }
    }
    RMSPROP_ROLLED
    for (size_t i = whole; i < end; i++) {
        RMSPROP_NAME(rmsprop_element)(p + i, g + i, a + i, momentum ? m + i : 0,
                                      centered ? mean + i : 0, c, centered, momentum,
                                      epsilon_in_sqrt);
    }
}

/* How many elements lie before a 64-byte boundary of p, where n of them are worth the way there. */
RMSPROP_TARGET static inline size_t RMSPROP_NAME(rmsprop_head)(const RMSPROP_REAL *p, size_t n)
{
    return n >= RMSPROP_PEEL ? (size_t)(-(uintptr_t)p % 64) / sizeof *p : 0;
}

#define RMSPROP_VARIANT(name, centered, momentum, epsilon_in_sqrt)                                 \
    RMSPROP_TARGET RMSPROP_OUTLINE void RMSPROP_NAME(rmsprop_##name)(                              \
        RMSPROP_REAL * p, const RMSPROP_REAL *g, RMSPROP_REAL *a, RMSPROP_REAL *m,                 \
        RMSPROP_REAL *mean, size_t n, const rmsprop_scalars *scalars)                              \
    {                                                                                              \
        const struct RMSPROP_NAME(rmsprop_rounded) c =                                             \
            RMSPROP_NAME(rmsprop_round)(scalars, momentum, epsilon_in_sqrt);                       \
        const size_t head = RMSPROP_NAME(rmsprop_head)(p, n);                                      \
        size_t begin = 0, end = head ? head : n;                                                   \
        for (;; begin = end, end = n) {                                                            \
            RMSPROP_NAME(rmsprop_range)                                                            \
            (p, g, a, m, mean, begin, end, c, centered, momentum, epsilon_in_sqrt);                \
            if (end == n) {                                                                        \
                return;                                                                            \
            }                                                                                      \
        }                                                                                          \
    }
RMSPROP_EACH_VARIANT(RMSPROP_VARIANT)
#undef RMSPROP_VARIANT

/* The i-th variant of RMSPROP_EACH_VARIANT: 6 * centered + 2 * momentum + epsilon_in_sqrt. */
static inline RMSPROP_KERNEL *RMSPROP_NAME(rmsprop_variant)(int i)
{
#define RMSPROP_VARIANT(name, centered, momentum, epsilon_in_sqrt)                                 \
    if (i == 6 * centered + 2 * momentum + epsilon_in_sqrt) {                                      \
        return RMSPROP_NAME(rmsprop_##name);                                                       \
    }
    RMSPROP_EACH_VARIANT(RMSPROP_VARIANT)
#undef RMSPROP_VARIANT
    return 0;
}

/* Asks memory for what lies so far behind x[0..n) as the update does for its own buffers. */
RMSPROP_TARGET RMSPROP_OUTLINE void RMSPROP_NAME(rmsprop_prefetch)(const RMSPROP_REAL *x, size_t n)
{
    RMSPROP_ROLLED
    for (size_t i = 0; i < n; i += 64 / sizeof *x) {
        RMSPROP_PREFETCH(x + i, RMSPROP_AHEAD_UPDATE * sizeof *x);
    }
}

#ifdef RMSPROP_ROOTS
RMSPROP_TARGET RMSPROP_OUTLINE void
RMSPROP_NAME(rmsprop_clip_tile)(RMSPROP_REAL *RMSPROP_RESTRICT clipped,
                                const RMSPROP_REAL *RMSPROP_RESTRICT g, size_t n,
                                RMSPROP_REAL scale, RMSPROP_REAL high)
{
    RMSPROP_ROLLED
    for (size_t i = 0; i < n; i++) {
        clipped[i] = RMSPROP_NAME(rmsprop_clip)(g[i], scale, high);
    }
}

/* n elements, a multiple of a group, along gradients that are clipped; they have been in `memory`.
 * Where `neutral`, epsilon is outside the root and the factors of options are 1; otherwise epsilon
 * is added at both places and is 0 at one, which changes nothing: with rho from 0 to 1 neither sum
 * is ever of a -0. */
RMSPROP_TARGET RMSPROP_INLINE void RMSPROP_NAME(rmsprop_groups)(
    RMSPROP_REAL *RMSPROP_RESTRICT p, const RMSPROP_REAL *RMSPROP_RESTRICT g,
    const RMSPROP_REAL *memory, RMSPROP_REAL *RMSPROP_RESTRICT a, RMSPROP_REAL *RMSPROP_RESTRICT m,
    RMSPROP_REAL *RMSPROP_RESTRICT mean, size_t n, struct RMSPROP_NAME(rmsprop_rounded) c,
    int epsilon_in_sqrt, int centered, int momentum, int neutral)
{
    enum { GROUP = RMSPROP_GROUP / sizeof(RMSPROP_REAL) };
    RMSPROP_ALIGNED RMSPROP_REAL roots[GROUP];
    const RMSPROP_REAL inside = epsilon_in_sqrt ? c.epsilon : 0;
    const RMSPROP_REAL outside = epsilon_in_sqrt ? 0 : c.epsilon;
    for (size_t i = 0; i < n; i += GROUP) {
        for (size_t j = i; j < i + GROUP; j += RMSPROP_TURN) {
            RMSPROP_NAME(rmsprop_prefetch_turn)(p, memory, a, m, mean, j, centered, momentum);
        }
        for (size_t j = 0; j < GROUP; j++) {
            const RMSPROP_REAL v = RMSPROP_NAME(rmsprop_value)(
                g[i + j], a + i + j, centered ? mean + i + j : 0, c, centered, neutral);
            roots[j] = neutral ? v : v + inside;
        }
        RMSPROP_ROOTS(roots);
        for (size_t j = 0; j < GROUP; j++) {
            RMSPROP_NAME(rmsprop_apply)(p + i + j, g[i + j], roots[j] + outside,
                                        momentum ? m + i + j : 0, c, momentum, neutral);
        }
    }
}

/* The variant of `other`, which takes what lies before a boundary and behind the last group, over n
 * elements in groups. What bounds the loop is how many operations it has, so those that most steps
 * don't need are elsewhere: with clipping, which is a pass of its own, a plain step took 1.25 times
 * as long, with the neutral sum and factors momentum and centered 1.05 to 1.08. */
RMSPROP_TARGET RMSPROP_OUTLINE void
RMSPROP_NAME(rmsprop_grouped)(RMSPROP_KERNEL *other, RMSPROP_REAL *p, const RMSPROP_REAL *g,
                              RMSPROP_REAL *a, RMSPROP_REAL *m, RMSPROP_REAL *mean, size_t n,
                              const rmsprop_scalars *scalars, int centered, int momentum,
                              int epsilon_in_sqrt)
{
    const struct RMSPROP_NAME(rmsprop_rounded) c =
        RMSPROP_NAME(rmsprop_round)(scalars, momentum, epsilon_in_sqrt);
    const int clips = c.scale != 1 || c.high <= RMSPROP_HUGE;
    const int neutral =
        RMSPROP_LEAN && !epsilon_in_sqrt && (!centered || c.correction == 1) && c.outer == 1;
    RMSPROP_ALIGNED RMSPROP_REAL clipped[RMSPROP_TILE / sizeof(RMSPROP_REAL)];
    const size_t tile = sizeof clipped / sizeof *clipped;
    const size_t head = RMSPROP_NAME(rmsprop_head)(p, n);
    const size_t end = n - (n - head) % (RMSPROP_GROUP / sizeof *p);
    if (head) {
        other(p, g, a, m, mean, head, scalars);
    }
    for (size_t i = head, count; i < end; i += count) {
        const RMSPROP_REAL *grad = g + i;
        count = end - i;
        if (clips) {
            count = count < tile ? count : tile;
            RMSPROP_NAME(rmsprop_clip_tile)(clipped, grad, count, c.scale, c.high);
            grad = clipped;
        }
        switch (6 * neutral + 3 * centered + momentum) {
#define RMSPROP_CASE(centered, momentum, neutral)                                                  \
    case 6 * neutral + 3 * centered + momentum:                                                    \
        RMSPROP_NAME(rmsprop_groups)                                                               \
        (p + i, grad, g + i, a + i, momentum ? m + i : 0, centered ? mean + i : 0, count, c,       \
         epsilon_in_sqrt, centered, momentum, neutral);                                            \
        break;
#define RMSPROP_CASES(neutral)                                                                     \
    RMSPROP_CASE(0, 0, neutral)                                                                    \
    RMSPROP_CASE(0, 1, neutral)                                                                    \
    RMSPROP_CASE(0, 2, neutral)                                                                    \
    RMSPROP_CASE(1, 0, neutral)                                                                    \
    RMSPROP_CASE(1, 1, neutral)                                                                    \
    RMSPROP_CASE(1, 2, neutral)
            RMSPROP_CASES(0)
#if RMSPROP_LEAN
            RMSPROP_CASES(1)
#endif
#undef RMSPROP_CASE
#undef RMSPROP_CASES
        }
    }
    if (end < n) {
        other(p + end, g + end, a + end, momentum ? m + end : 0, centered ? mean + end : 0, n - end,
              scalars);
    }
}
#endif

/* One step over n elements. p and a are updated in place, g is read; the three do not overlap. */
RMSPROP_TARGET static inline void RMSPROP_NAME(rmsprop_update)(RMSPROP_REAL *p,
                                                               const RMSPROP_REAL *g,
                                                               RMSPROP_REAL *a, size_t n,
                                                               const rmsprop_scalars *scalars)
{
    RMSPROP_NAME(rmsprop_plain_out)(p, g, a, 0, 0, n, scalars);
}

RMSPROP_TARGET RMSPROP_OUTLINE void
RMSPROP_NAME(rmsprop_add)(RMSPROP_REAL *RMSPROP_RESTRICT sum,
                          const RMSPROP_REAL *RMSPROP_RESTRICT g, size_t n)
{
    RMSPROP_ROLLED
    for (size_t i = 0; i < n; i++) {
        sum[i] = sum[i] + g[i];
    }
}

RMSPROP_TARGET RMSPROP_OUTLINE void RMSPROP_NAME(rmsprop_decay)(RMSPROP_REAL *p, size_t n,
                                                                const rmsprop_scalars *scalars)
{
    const RMSPROP_REAL rate = (RMSPROP_REAL)(scalars->learning_rate * scalars->weight_decay);
    RMSPROP_ROLLED
    for (size_t i = 0; i < n; i++) {
        p[i] = p[i] - rate * p[i];
    }
}

RMSPROP_TARGET RMSPROP_OUTLINE void RMSPROP_NAME(rmsprop_decay_grad)(
    RMSPROP_REAL *RMSPROP_RESTRICT decayed, const RMSPROP_REAL *RMSPROP_RESTRICT g,
    const RMSPROP_REAL *RMSPROP_RESTRICT p, size_t n, const rmsprop_scalars *scalars)
{
    const RMSPROP_REAL scale = (RMSPROP_REAL)scalars->scale;
    const RMSPROP_REAL high = (RMSPROP_REAL)scalars->clipvalue;
    const RMSPROP_REAL weight_decay = (RMSPROP_REAL)scalars->weight_decay;
    RMSPROP_ROLLED
    for (size_t i = 0; i < n; i++) {
        decayed[i] = RMSPROP_NAME(rmsprop_clip)(g[i], scale, high) + weight_decay * p[i];
    }
}

RMSPROP_TARGET RMSPROP_OUTLINE void
RMSPROP_NAME(rmsprop_average)(RMSPROP_REAL *RMSPROP_RESTRICT ema,
                              const RMSPROP_REAL *RMSPROP_RESTRICT p, size_t n,
                              const rmsprop_scalars *scalars)
{
    const RMSPROP_REAL keep = (RMSPROP_REAL)scalars->ema_momentum;
    const RMSPROP_REAL take = 1 - keep;
    RMSPROP_ROLLED
    for (size_t i = 0; i < n; i++) {
        ema[i] = keep * ema[i] + take * p[i];
    }
}

RMSPROP_TARGET RMSPROP_OUTLINE void RMSPROP_NAME(rmsprop_flush)(RMSPROP_REAL *state, size_t n)
{
    RMSPROP_ROLLED
    for (size_t i = 0; i < n; i++) {
        state[i] = RMSPROP_ABS(state[i]) < RMSPROP_TINY ? 0 : state[i];
    }
}

/* As rmsprop_passes, in tiles of so many bytes, RMSPROP_TILE_GROUPED at most. */
RMSPROP_TARGET RMSPROP_OUTLINE void
RMSPROP_NAME(rmsprop_passes_in_tiles)(size_t bytes, RMSPROP_KERNEL *update, int passes,
                                      RMSPROP_REAL *p, RMSPROP_REAL *g, RMSPROP_REAL *a,
                                      RMSPROP_REAL *m, RMSPROP_REAL *mean, RMSPROP_REAL *ema,
                                      RMSPROP_REAL *sum, size_t n, const rmsprop_scalars *scalars)
{
    RMSPROP_REAL decayed[RMSPROP_TILE_GROUPED / sizeof(RMSPROP_REAL)];
    const size_t tile = bytes / sizeof *decayed;
    rmsprop_scalars neutral = *scalars;
    neutral.scale = 1;
    neutral.clipvalue = INFINITY;
    size_t count = RMSPROP_NAME(rmsprop_head)(p, n);
    for (size_t i = 0; i < n; i += count, count = 0) {
        if (count == 0) {
            count = n - i < tile ? n - i : tile;
        }
        if (passes & (RMSPROP_ADD | RMSPROP_DECAY_GRAD) && g) {
            RMSPROP_NAME(rmsprop_prefetch)(g + i, count);
        }
        if (sum) {
            RMSPROP_NAME(rmsprop_prefetch)(sum + i, count);
        }
        if (passes & RMSPROP_AVERAGE) {
            RMSPROP_NAME(rmsprop_prefetch)(ema + i, count);
        }
        if (passes & RMSPROP_ADD && g) {
            RMSPROP_NAME(rmsprop_add)(sum + i, g + i, count);
        }
        if (passes & RMSPROP_DECAY) {
            RMSPROP_NAME(rmsprop_decay)(p + i, count, scalars);
        }
        if (passes & RMSPROP_UPDATE) {
            const RMSPROP_REAL *grad = sum ? sum + i : g + i;
            const rmsprop_scalars *with = scalars;
            if (passes & RMSPROP_DECAY_GRAD) {
                RMSPROP_NAME(rmsprop_decay_grad)(decayed, grad, p + i, count, scalars);
                grad = decayed;
                with = &neutral;
            }
            update(p + i, grad, a + i, m ? m + i : 0, mean ? mean + i : 0, count, with);
            if (passes & RMSPROP_FLUSH) {
                RMSPROP_NAME(rmsprop_flush)(a + i, count);
                if (m) {
                    RMSPROP_NAME(rmsprop_flush)(m + i, count);
                }
                if (mean) {
                    RMSPROP_NAME(rmsprop_flush)(mean + i, count);
                }
            }
            if (sum) {
                memset(sum + i, 0, count * sizeof *sum);
            }
        }
        if (passes & RMSPROP_AVERAGE) {
            RMSPROP_NAME(rmsprop_average)(ema + i, p + i, count, scalars);
        }
        if (passes & RMSPROP_OVERWRITE) {
            memcpy(p + i, ema + i, count * sizeof *p);
        }
        if (passes & RMSPROP_ZERO_GRAD && g) {
            memset(g + i, 0, count * sizeof *g);
        }
    }
}

/* A step of the variant `update` with the chosen passes around it, tile by tile, so that every
 * buffer is fetched from memory once. Buffers that no pass needs may be NULL; g too, if nothing is
 * to be added to sum. */
RMSPROP_TARGET static inline void
RMSPROP_NAME(rmsprop_passes)(RMSPROP_KERNEL *update, int passes, RMSPROP_REAL *p, RMSPROP_REAL *g,
                             RMSPROP_REAL *a, RMSPROP_REAL *m, RMSPROP_REAL *mean,
                             RMSPROP_REAL *ema, RMSPROP_REAL *sum, size_t n,
                             const rmsprop_scalars *scalars)
{
    RMSPROP_NAME(rmsprop_passes_in_tiles)
    (RMSPROP_TILE, update, passes, p, g, a, m, mean, ema, sum, n, scalars);
}

/* Writes the rmsprop_block_count(n) sums of squares of the blocks of g, in double. */
RMSPROP_TARGET RMSPROP_OUTLINE void RMSPROP_NAME(rmsprop_block_sums)(const RMSPROP_REAL *g,
                                                                     size_t n, double *sums)
{
    for (size_t begin = 0; begin < n; begin += RMSPROP_BLOCK) {
        const size_t left = n - begin;
        const size_t count = left < RMSPROP_BLOCK ? left : RMSPROP_BLOCK;
        const size_t whole = count - count % RMSPROP_LANES;
        const RMSPROP_REAL *x = g + begin;
        double lane[RMSPROP_LANES];
        RMSPROP_EACH_LANE(RMSPROP_LANE_DECLARE)
        for (size_t i = 0; i < whole; i += RMSPROP_LANES) {
            for (size_t line = 0; line < RMSPROP_LANES; line += 64 / sizeof *x) {
                RMSPROP_PREFETCH(x + i + line, RMSPROP_AHEAD_NORM);
            }
            RMSPROP_EACH_LANE(RMSPROP_LANE_ADD)
        }
        RMSPROP_EACH_LANE(RMSPROP_LANE_STORE)
        for (size_t j = 0; whole + j < count; j++) {
            lane[j] += (double)x[whole + j] * (double)x[whole + j];
        }
        *sums++ = rmsprop_pairwise_sum(lane, RMSPROP_LANES);
    }
}

/* Are the squares of all gradients, scaled and clipped, finite? They are where their sum is; only
 * blocks where that does not show are looked at one by one: 1.05 to 1.16 of the traffic otherwise.
 */
RMSPROP_TARGET static inline int RMSPROP_NAME(rmsprop_finite)(const RMSPROP_REAL *g, size_t n,
                                                              const rmsprop_scalars *scalars)
{
    const RMSPROP_REAL scale = (RMSPROP_REAL)scalars->scale;
    const RMSPROP_REAL high = (RMSPROP_REAL)scalars->clipvalue;
    for (size_t begin = 0; begin < n; begin += RMSPROP_BLOCK) {
        const size_t end = n - begin < RMSPROP_BLOCK ? n : begin + RMSPROP_BLOCK;
        double sum;
        RMSPROP_NAME(rmsprop_block_sums)(g + begin, end - begin, &sum);
        if (sum * scalars->scale * scalars->scale <= RMSPROP_HUGE / 4) {
            continue; /* not so for a NaN */
        }
        for (size_t i = begin; i < end; i++) {
            const RMSPROP_REAL gi = RMSPROP_NAME(rmsprop_clip)(g[i], scale, high);
            if (!(gi * gi <= RMSPROP_HUGE)) {
                return 0;
            }
        }
    }
    return 1;
}

#endif

/* RMSprop for contiguous float32 and float64 buffers, in C99.
 *
 * The update of Keras 2.0, one element at a time, with T the buffer's type:
 *
 *     g <- clip(g * scale, -clipvalue, clipvalue)
 *     a <- rho * a + (1 - rho) * (g * g)
 *     p <- p - (learning_rate * g) / (sqrt(a) + epsilon)
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
 * Included plainly it defines, as static functions for the compiler's own target,
 *
 *     rmsprop_update_f32, rmsprop_update_f64            the update
 *     rmsprop_block_sums_f32, rmsprop_block_sums_f64    the leaves of the global norm
 *     rmsprop_clip_scale                                norm -> scale of clipnorm
 *     rmsprop_learning_rate                             lr after decay
 *
 * It is also the template of the package's kernels and may be included again with
 *
 *     RMSPROP_ISA       a suffix for the names: avx2 gives rmsprop_update_f32_avx2
 *     RMSPROP_TARGET    a function attribute that selects that instruction set
 *
 * both of which it undefines at its end.
 */

#ifndef RMSPROP_H
#define RMSPROP_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __FAST_MATH__
#error "rmsprop.h promises exact bits; compile it without -ffast-math"
#endif
#if FLT_EVAL_METHOD < 0 || FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2
#error "rmsprop.h needs float in float: -fexcess-precision=fast, on x86 -msse2 -mfpmath=sse"
#endif

/* All scalars of one step. They are rounded to T where they are used. Neutral values switch
 * clipping off at no measurable cost: scale 1, clipvalue INFINITY. */
typedef struct {
    double learning_rate; /* after decay: see rmsprop_learning_rate */
    double rho;
    double epsilon;
    double scale;     /* of the gradient: see rmsprop_clip_scale */
    double clipvalue; /* > 0 */
} rmsprop_scalars;

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
#define RMSPROP_AHEAD_UPDATE 2048
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

/* The scale that clips gradients with these block sums (overwritten) to the norm clipnorm > 0.
 * A NaN norm leaves them as they are, an infinite one scales by 0. */
static inline double rmsprop_clip_scale(double *sums, size_t count, double clipnorm)
{
    double norm = sqrt(rmsprop_pairwise_sum(sums, count));
    return norm >= clipnorm ? clipnorm / norm : 1.0;
}

/* How many block sums a buffer of n elements has. */
static inline size_t rmsprop_block_count(size_t n)
{
    return n / RMSPROP_BLOCK + (n % RMSPROP_BLOCK != 0);
}

#define RMSPROP_JOIN_(a, b) a##b
#define RMSPROP_JOIN(a, b) RMSPROP_JOIN_(a, b)
#endif /* RMSPROP_H */

#ifndef RMSPROP_REAL
#if defined(RMSPROP_ISA) || !defined(RMSPROP_PLAIN) /* a second plain inclusion adds nothing */

#ifndef RMSPROP_TARGET
#define RMSPROP_TARGET
#endif
#ifdef RMSPROP_ISA
#define RMSPROP_ISA_SUFFIX RMSPROP_JOIN(_, RMSPROP_ISA)
#else
#define RMSPROP_PLAIN
#define RMSPROP_ISA_SUFFIX
#endif

#define RMSPROP_REAL float
#define RMSPROP_SQRT sqrtf
#define RMSPROP_NAME(name) RMSPROP_JOIN(name##_f32, RMSPROP_ISA_SUFFIX)
#include "rmsprop.h"
#undef RMSPROP_REAL
#undef RMSPROP_SQRT
#undef RMSPROP_NAME

#define RMSPROP_REAL double
#define RMSPROP_SQRT sqrt
#define RMSPROP_NAME(name) RMSPROP_JOIN(name##_f64, RMSPROP_ISA_SUFFIX)
#include "rmsprop.h"
#undef RMSPROP_REAL
#undef RMSPROP_SQRT
#undef RMSPROP_NAME

#undef RMSPROP_ISA
#undef RMSPROP_ISA_SUFFIX
#undef RMSPROP_TARGET

#endif
#else /* the template, once per type and instruction set */

/* One element. */
RMSPROP_TARGET static inline void
RMSPROP_NAME(rmsprop_element)(RMSPROP_REAL *p, const RMSPROP_REAL *g, RMSPROP_REAL *a,
                              RMSPROP_REAL lr, RMSPROP_REAL rho, RMSPROP_REAL one_minus_rho,
                              RMSPROP_REAL epsilon, RMSPROP_REAL scale, RMSPROP_REAL high)
{
    RMSPROP_REAL gi = *g * scale;
    gi = gi < -high ? -high : gi; /* a NaN fails both comparisons and stays */
    gi = gi > high ? high : gi;
    const RMSPROP_REAL ai = rho * *a + one_minus_rho * (gi * gi);
    *a = ai;
    *p = *p - (lr * gi) / (RMSPROP_SQRT(ai) + epsilon);
}

/* Elements [begin, end) of p and a are updated in place; g is read. The three do not overlap. */
RMSPROP_TARGET static inline void RMSPROP_NAME(rmsprop_range)(RMSPROP_REAL *restrict p,
                                                              const RMSPROP_REAL *restrict g,
                                                              RMSPROP_REAL *restrict a,
                                                              size_t begin, size_t end,
                                                              const rmsprop_scalars *scalars)
{
    const RMSPROP_REAL lr = (RMSPROP_REAL)scalars->learning_rate;
    const RMSPROP_REAL rho = (RMSPROP_REAL)scalars->rho;
    const RMSPROP_REAL one_minus_rho = (RMSPROP_REAL)1 - rho;
    const RMSPROP_REAL epsilon = (RMSPROP_REAL)scalars->epsilon;
    const RMSPROP_REAL scale = (RMSPROP_REAL)scalars->scale;
    const RMSPROP_REAL high = (RMSPROP_REAL)scalars->clipvalue;
    const size_t whole = end - (end - begin) % RMSPROP_TURN;

    for (size_t i = begin; i < whole; i += RMSPROP_TURN) {
        for (size_t line = 0; line < RMSPROP_TURN; line += 64 / sizeof *p) {
            RMSPROP_PREFETCH(g + i + line, RMSPROP_AHEAD_UPDATE);
            RMSPROP_PREFETCH(a + i + line, RMSPROP_AHEAD_UPDATE);
            RMSPROP_PREFETCH(p + i + line, RMSPROP_AHEAD_UPDATE);
        }
        for (size_t j = i; j < i + RMSPROP_TURN; j++) {
            RMSPROP_NAME(rmsprop_element)(p + j, g + j, a + j, lr, rho, one_minus_rho, epsilon,
                                          scale, high);
        }
    }
    for (size_t i = whole; i < end; i++) {
        RMSPROP_NAME(rmsprop_element)(p + i, g + i, a + i, lr, rho, one_minus_rho, epsilon, scale,
                                      high);
    }
}

/* One step over n elements. p and a are updated in place, g is read; the three do not overlap. */
RMSPROP_TARGET static inline void RMSPROP_NAME(rmsprop_update)(RMSPROP_REAL *p,
                                                               const RMSPROP_REAL *g,
                                                               RMSPROP_REAL *a, size_t n,
                                                               const rmsprop_scalars *scalars)
{
    size_t head = 0;
    if (n >= RMSPROP_PEEL) {
        head = (size_t)(-(uintptr_t)p % 64) / sizeof *p;
        RMSPROP_NAME(rmsprop_range)(p, g, a, 0, head, scalars);
    }
    RMSPROP_NAME(rmsprop_range)(p, g, a, head, n, scalars);
}

/* Writes the rmsprop_block_count(n) sums of squares of the blocks of g, in double. */
RMSPROP_TARGET static inline void RMSPROP_NAME(rmsprop_block_sums)(const RMSPROP_REAL *g, size_t n,
                                                                   double *sums)
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

#endif

/* clang-format off: it would make running text of the lists
 *
 * Square roots on the units for multiplication and addition, so that the divider, which bounds a
 * step in cache, has the step's division alone. With y an estimate of 1 / sqrt(x),
 *
 *     g = x * y, h = y / 2                         sqrt(x) and half of its reciprocal, about
 *     r = 1/2 - g * h, g += g * r, h += h * r      once or more: the error is squared each time
 *     d = x - g * g                                how far g is off, in one FMA
 *     root = g + d * h                             rounded once, in one FMA
 *
 * (P. Markstein, IBM Journal of Research and Development 34, 1990). The result is the correctly
 * rounded root: docs/numerics.md says why, tests/exactness/test_roots.py has the cases that need a
 * test.
 *
 * Defines ROOTS_NAME, a function that replaces the numbers in RMSPROP_GROUP bytes, on a 64-byte
 * boundary, by their roots. roots_x86.h includes this file for each instruction set, the tests do
 * for scalar C. It undefines its parameters at its end:
 *
 *     ROOTS_TARGET       a function attribute
 *     ROOTS_INLINE       RMSPROP_INLINE, or RMSPROP_OUTLINE where callers have another target
 *     ROOTS_REAL         float or double
 *     ROOTS_VECTOR       a vector of ROOTS_LANES of them
 *     ROOTS_OP(name)     its operations, by Intel's names: load, store, set1, mul, sqrt, fmadd
 *                        (a * b + c) and fnmadd (c - a * b), each rounded once
 *     ROOTS_ESTIMATE(x)  1 / sqrt(x), and 0 where x is 0
 *     ROOTS_STEPS        how many times its error is squared
 *     ROOTS_UNFIT(x, y)  a vector that tells which of x, with estimates y, must be left to sqrt: all
 *                        but 0 and the finite ones that are so large that d is no subnormal number
 *     ROOTS_OR(a, b)     what two of those tell together
 *     ROOTS_ANY(a)       does a tell of any number?
 *     ROOTS_ON_DIVIDER   1: a vector of four is left to sqrt, since the divider would wait otherwise
 *
 * clang-format on */

#include "../include/rmsprop.h"

#define ROOTS_JOIN_(a, b) a##b
#define ROOTS_JOIN(a, b) ROOTS_JOIN_(a, b)
#define ROOTS_REFINED ROOTS_JOIN(ROOTS_NAME, _refined)

ROOTS_TARGET RMSPROP_INLINE ROOTS_VECTOR ROOTS_REFINED(ROOTS_VECTOR x, ROOTS_VECTOR y)
{
    const ROOTS_VECTOR half = ROOTS_OP(set1)((ROOTS_REAL)0.5);
    ROOTS_VECTOR g = ROOTS_OP(mul)(x, y), h = ROOTS_OP(mul)(y, half);
    for (int step = 0; step < ROOTS_STEPS; step++) {
        const ROOTS_VECTOR r = ROOTS_OP(fnmadd)(g, h, half);
        g = ROOTS_OP(fmadd)(g, r, g);
        h = ROOTS_OP(fmadd)(h, r, h);
    }
    const ROOTS_VECTOR d = ROOTS_OP(fnmadd)(g, g, x);
    return ROOTS_OP(fmadd)(d, h, g);
}

ROOTS_TARGET ROOTS_INLINE void ROOTS_NAME(ROOTS_REAL *x)
{
    for (ROOTS_REAL *end = x + RMSPROP_GROUP / sizeof *x; x < end; x += 4 * ROOTS_LANES) {
        ROOTS_VECTOR v[4], y[4];
        for (int k = 0; k < 4; k++) {
            v[k] = ROOTS_OP(load)(x + k * ROOTS_LANES);
        }
        for (int k = ROOTS_ON_DIVIDER; k < 4; k++) {
            y[k] = ROOTS_ESTIMATE(v[k]);
        }
        ROOTS_VECTOR unfit = ROOTS_UNFIT(v[3], y[3]);
        for (int k = ROOTS_ON_DIVIDER; k < 3; k++) {
            unfit = ROOTS_OR(unfit, ROOTS_UNFIT(v[k], y[k]));
        }
        const int all_fit = !ROOTS_ANY(unfit);
        for (int k = 0; k < 4; k++) {
            ROOTS_OP(store)(x + k * ROOTS_LANES, k >= ROOTS_ON_DIVIDER && all_fit
                                                     ? ROOTS_REFINED(v[k], y[k])
                                                     : ROOTS_OP(sqrt)(v[k]));
        }
    }
}

#undef ROOTS_REFINED
#undef ROOTS_NAME
#undef ROOTS_TARGET
#undef ROOTS_INLINE
#undef ROOTS_REAL
#undef ROOTS_LANES
#undef ROOTS_VECTOR
#undef ROOTS_OP
#undef ROOTS_ESTIMATE
#undef ROOTS_STEPS
#undef ROOTS_UNFIT
#undef ROOTS_OR
#undef ROOTS_ANY
#undef ROOTS_ON_DIVIDER

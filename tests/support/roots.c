/* src/roots.h on its own: every instance that runs here, and the same steps in scalar C with fma(),
 * from estimates that are off by as much as those of an instruction set may be. For roots.py. */

#if defined(__GNUC__) && defined(__x86_64__)
#include "roots_x86.h"
#endif
#include "../include/rmsprop.h"

static __thread double error; /* of the scalar instances' estimates, relatively; but if there is */
static __thread double next;  /* a next estimate, it is taken, and the one after it lies */
static __thread double spacing; /* so far behind it, or where this is 0 at the next float */
static __thread size_t refused; /* roots that they have left to sqrt */

/* The operations of a scalar instance. */
#define SCALAR(real, suffix, root, fused)                                                          \
    static real scalar##suffix##_load(const real *x)                                               \
    {                                                                                              \
        return *x;                                                                                 \
    }                                                                                              \
    static void scalar##suffix##_store(real *x, real value)                                        \
    {                                                                                              \
        *x = value;                                                                                \
    }                                                                                              \
    static real scalar##suffix##_set1(real x)                                                      \
    {                                                                                              \
        return x;                                                                                  \
    }                                                                                              \
    static real scalar##suffix##_mul(real x, real y)                                               \
    {                                                                                              \
        return x * y;                                                                              \
    }                                                                                              \
    static real scalar##suffix##_fmadd(real x, real y, real z)                                     \
    {                                                                                              \
        return fused(x, y, z);                                                                     \
    }                                                                                              \
    static real scalar##suffix##_fnmadd(real x, real y, real z)                                    \
    {                                                                                              \
        return fused(-x, y, z);                                                                    \
    }                                                                                              \
    static real scalar##suffix##_sqrt(real x)                                                      \
    {                                                                                              \
        refused++;                                                                                 \
        return root(x);                                                                            \
    }
SCALAR(float, _f32, sqrtf, fmaf)
SCALAR(double, _f64, sqrt, fma)

static double estimate(double x)
{
    const double y = next;
    if (x == 0) {
        return 0;
    }
    if (y == 0) {
        return (1 + error) / sqrt(x);
    }
    next = spacing > 0 ? y + spacing : (double)nextafterf((float)y, INFINITY);
    return y;
}

#define ROOTS_NAME roots_f32_scalar
#define ROOTS_TARGET
#define ROOTS_INLINE static inline
#define ROOTS_REAL float
#define ROOTS_LANES 1
#define ROOTS_VECTOR float
#define ROOTS_OP(name) scalar_f32_##name
#define ROOTS_ESTIMATE(x) ((float)estimate(x))
#define ROOTS_STEPS 1
#define ROOTS_UNFIT(x, y) (!(x == 0 || (x >= 0x1p-78f && x <= FLT_MAX)))
#define ROOTS_OR(a, b) (a + b)
#define ROOTS_ANY(a) (a != 0)
#define ROOTS_ON_DIVIDER 0
#include "roots.h"

#define ROOTS_NAME roots_f64_scalar
#define ROOTS_TARGET
#define ROOTS_INLINE static inline
#define ROOTS_REAL double
#define ROOTS_LANES 1
#define ROOTS_VECTOR double
#define ROOTS_OP(name) scalar_f64_##name
#define ROOTS_ESTIMATE(x) estimate(x)
#define ROOTS_STEPS 2
#define ROOTS_UNFIT(x, y) (!(x == 0 || (x >= 0x1p-900 && x <= DBL_MAX)))
#define ROOTS_OR(a, b) (a + b)
#define ROOTS_ANY(a) (a != 0)
#define ROOTS_ON_DIVIDER 0
#include "roots.h"

#define ROOTS_NAME roots_f64_scalar_of_12_bits
#define ROOTS_TARGET
#define ROOTS_INLINE static inline
#define ROOTS_REAL double
#define ROOTS_LANES 1
#define ROOTS_VECTOR double
#define ROOTS_OP(name) scalar_f64_##name
#define ROOTS_ESTIMATE(x) ((double)(float)estimate(x))
#define ROOTS_STEPS 3
#define ROOTS_UNFIT(x, y) (!(x == 0 || (x >= 0x1p-100 && x <= 0x1p100)))
#define ROOTS_OR(a, b) (a + b)
#define ROOTS_ANY(a) (a != 0)
#define ROOTS_ON_DIVIDER 0
#include "roots.h"

static void f32_scalar(void *x)
{
    roots_f32_scalar(x);
}

static void f64_scalar(void *x)
{
    roots_f64_scalar(x);
}

static void f64_scalar_of_12_bits(void *x)
{
    roots_f64_scalar_of_12_bits(x);
}

#ifdef RMSPROP_ROOTS_X86_H
AVX2_FMA_TARGET static void f64_avx2(void *x)
{
    roots_f64_avx2(x);
}

AVX512_TARGET static void f32_avx512(void *x)
{
    roots_f32_avx512(x);
}

AVX512_TARGET static void f64_avx512(void *x)
{
    roots_f64_avx512(x);
}

static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

static int always(void)
{
    return 1;
}

static const struct {
    const char *name;
    size_t itemsize;
    double error; /* of its estimates */
    void (*roots)(void *x);
    int (*supported)(void);
} instances[] = {
    {"float32 scalar", sizeof(float), 0x1p-14, f32_scalar, always},
    {"float64 scalar", sizeof(double), 0x1p-14, f64_scalar, always},
    {"float64 scalar of 12 bits", sizeof(double), 1.5 * 0x1p-12 + 0x1p-25, f64_scalar_of_12_bits,
     always}, /* the latter is x in float32 */
#ifdef RMSPROP_ROOTS_X86_H
    {"float64 avx2", sizeof(double), 0, f64_avx2, has_avx2},
    {"float32 avx512", sizeof(float), 0, f32_avx512, has_avx512},
    {"float64 avx512", sizeof(double), 0, f64_avx512, has_avx512},
#endif
};

/* The i-th instance's name, behind the last one NULL, and whether it runs here. */
const char *instance(int i, int *supported)
{
    if (i >= (int)(sizeof instances / sizeof *instances)) {
        return NULL;
    }
    *supported = instances[i].supported();
    return instances[i].name;
}

static size_t differences(int i, const void *x, size_t n)
{
    size_t wrong = 0;
    for (size_t k = 0; k < n; k++) {
        if (instances[i].itemsize == sizeof(float)) {
            const float root = sqrtf(((const float *)x)[k]), found = ((const float *)x)[n + k];
            wrong += memcmp(&root, &found, sizeof root) != 0 && (root == root || found == found);
        } else {
            const double root = sqrt(((const double *)x)[k]), found = ((const double *)x)[n + k];
            wrong += memcmp(&root, &found, sizeof root) != 0 && (root == root || found == found);
        }
    }
    return wrong;
}

/* How many roots of n numbers have other bits than the processor's own (NaN's sign and payload
 * aside)? Each number is at two places of its group, a vector apart, since one may be left to the
 * divider. `left` becomes the number of those that a scalar instance has left to sqrt. */
size_t wrong_roots(int i, const void *x, size_t n, size_t *left)
{
    const double errors[] = {instances[i].error, -instances[i].error, 0};
    const size_t group = RMSPROP_GROUP / instances[i].itemsize;
    RMSPROP_ALIGNED char both[2 * RMSPROP_GROUP]; /* numbers and their roots */
    size_t wrong = 0;
    refused = 0;
    for (size_t begin = 0; begin < n; begin += group) {
        const size_t bytes = (n - begin < group ? n - begin : group) * instances[i].itemsize;
        const char *from = (const char *)x + begin * instances[i].itemsize;
        for (size_t shift = 0; shift <= RMSPROP_GROUP / 4; shift += RMSPROP_GROUP / 4) {
            const size_t first = bytes < RMSPROP_GROUP - shift ? bytes : RMSPROP_GROUP - shift;
            memset(both, 0, sizeof both);
            memcpy(both + shift, from, first);
            memcpy(both, from + first, bytes - first);
            for (int k = 0; k < (instances[i].error > 0 ? 3 : 1); k++) {
                error = errors[k];
                memcpy(both + RMSPROP_GROUP, both, RMSPROP_GROUP);
                instances[i].roots(both + RMSPROP_GROUP);
                wrong += differences(i, both, group);
            }
        }
    }
    *left = refused;
    return wrong;
}

/* How many roots of n numbers does a scalar instance get wrong, from so many estimates, spread
 * evenly over what its error allows, or for 0 from every float there? */
size_t wrong_from_estimates(int i, const double *x, size_t n, size_t count)
{
    const size_t group = RMSPROP_GROUP / instances[i].itemsize;
    RMSPROP_ALIGNED char both[2 * RMSPROP_GROUP];
    size_t wrong = 0;
    for (size_t k = 0; k < n; k++) {
        const double root = sqrt(x[k]), last = (1 + instances[i].error) / root;
        next = (1 - instances[i].error) / root;
        spacing = count > 0 ? (last - next) / (double)count : 0;
        for (size_t j = 0; j < group; j++) {
            if (instances[i].itemsize == sizeof(float)) {
                ((float *)both)[j] = (float)x[k];
            } else {
                ((double *)both)[j] = x[k];
            }
        }
        while (next <= last) {
            memcpy(both + RMSPROP_GROUP, both, RMSPROP_GROUP);
            instances[i].roots(both + RMSPROP_GROUP);
            wrong += differences(i, both, group);
        }
    }
    next = 0;
    return wrong;
}

/* The same for n float32 patterns from `first` on. */
size_t wrong_patterns(int i, uint32_t first, size_t n)
{
    size_t wrong = 0, left;
    for (size_t begin = 0; begin < n; begin += 1024) {
        uint32_t patterns[1024];
        for (size_t k = 0; k < 1024; k++) {
            patterns[k] = first + (uint32_t)(begin + k);
        }
        wrong += wrong_roots(i, patterns, n - begin < 1024 ? n - begin : 1024, &left);
    }
    return wrong;
}

/* The same for n random float64 numbers from 2^-100 to 2^100, which every instance refines. */
size_t wrong_random(int i, uint64_t seed, size_t n)
{
    size_t wrong = 0, left;
    for (size_t begin = 0; begin < n; begin += 512) {
        uint64_t patterns[512];
        for (size_t k = 0; k < 512; k++) { /* xorshift64* of Vigna, ACM TOMS 42, 2016 */
            seed ^= seed >> 12;
            seed ^= seed << 25;
            seed ^= seed >> 27;
            const uint64_t drawn = seed * UINT64_C(2685821657736338717);
            const uint64_t exponent = 1023 - 100 + (drawn >> 52) % 200;
            patterns[k] = (drawn & ((UINT64_C(1) << 52) - 1)) | exponent << 52;
        }
        wrong += wrong_roots(i, patterns, n - begin < 512 ? n - begin : 512, &left);
    }
    return wrong;
}

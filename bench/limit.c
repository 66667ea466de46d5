/* Two limits of one RMSprop step. limit.py compiles and loads this file.
 *
 * traffic   reads p, g and a and writes p and a, as the step does, with no arithmetic but an AND
 *           and two XORs by which p and a keep their values, so it can run on a model in use.
 * divider   the step's one square root and one division per element, on registers only.
 *
 * A step that asks the divider for both cannot be faster than the larger of the two; the entries with
 * "_fma" (src/roots.h) cross the divider's, of which the division alone is left. Both take `repeats`, so that a call from
 * Python costs nothing beside them. It is not a kernel: no tails worth tuning, no dispatch.
 *
 * VECTOR_BYTES selects the width of the vectors: 64, 32 or 16; by default the target's widest.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef VECTOR_BYTES
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#endif

typedef uint64_t vector __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));
typedef uint32_t word __attribute__((aligned(1), may_alias));

/* Ranges of at least this many bytes start at a 64-byte boundary of p, like the package's. */
#define PEEL_BYTES 65536

int vector_bytes(void)
{
    return VECTOR_BYTES;
}

static void words(char *p, const char *g, char *a, size_t begin, size_t end, uint32_t mask)
{
    for (size_t i = begin; i < end; i += sizeof(word)) {
        const uint32_t bits = *(const word *)(g + i) & mask;
        *(word *)(a + i) ^= bits;
        *(word *)(p + i) ^= bits;
        __asm__ volatile(""); /* keeps this loop scalar: the one in traffic_range is the main loop */
    }
}

/* Not static and not inlined: limit.py looks for it in the disassembly. mask is 0; the compiler
 * must not know, or it would drop the whole loop. */
__attribute__((noinline)) void traffic_range(char *p, const char *g, char *a, size_t begin,
                                             size_t end, uint64_t mask)
{
    if (end - begin >= PEEL_BYTES) {
        const size_t head = (size_t)(-(uintptr_t)(p + begin) % 64);
        words(p, g, a, begin, begin + head, (uint32_t)mask);
        begin += head;
    }
    size_t i = begin;
    for (; i + VECTOR_BYTES <= end; i += VECTOR_BYTES) {
        const vector bits = *(const vector *)(g + i) & mask;
        *(vector *)(a + i) ^= bits;
        *(vector *)(p + i) ^= bits;
    }
    words(p, g, a, i, end, (uint32_t)mask);
}

/* Thread `thread` of `threads` takes its contiguous share of the tensors laid end to end. */
static void traffic_share(size_t tensors, char *const *p, const char *const *g, char *const *a,
                          const size_t *bytes, uint64_t mask, size_t thread, size_t threads)
{
    size_t total = 0;
    for (size_t t = 0; t < tensors; t++) {
        total += bytes[t];
    }
    const size_t begin = total / threads * thread / 64 * 64;
    const size_t end = thread + 1 < threads ? total / threads * (thread + 1) / 64 * 64 : total;
    size_t offset = 0;
    for (size_t t = 0; t < tensors && offset < end; offset += bytes[t++]) {
        const size_t low = begin > offset ? begin - offset : 0;
        const size_t high = end - offset < bytes[t] ? end - offset : bytes[t];
        if (low < high) {
            traffic_range(p[t], g[t], a[t], low, high, mask);
        }
    }
}

/* One parallel region per repeat, because a step is one region. */
void traffic(size_t tensors, char *const *p, const char *const *g, char *const *a,
             const size_t *bytes, uint64_t mask, int threads, size_t repeats)
{
    for (size_t r = 0; r < repeats; r++) {
        if (threads == 1) {
            for (size_t t = 0; t < tensors; t++) {
                traffic_range(p[t], g[t], a[t], 0, bytes[t], mask);
            }
            continue;
        }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
        traffic_share(tensors, p, g, a, bytes, mask, (size_t)omp_get_thread_num(),
                      (size_t)omp_get_num_threads());
#else
        traffic_share(tensors, p, g, a, bytes, mask, 0, 1);
#endif
    }
}

/* The traffic of one pass over `bytes` of any number of arrays: `read` is read, unless it is NULL,
 * and `count` of `written` are read and written back. For the options that move more than a step. */
#define STREAMS(count)                                                                        \
    for (size_t i = begin; i + VECTOR_BYTES <= end; i += VECTOR_BYTES) {                      \
        const vector bits = *(const vector *)(read + i) & mask;                               \
        for (int k = 0; k < count; k++) {                                                     \
            *(vector *)(w[k] + i) ^= bits;                                                    \
        }                                                                                     \
        sum |= bits;                                                                          \
    }                                                                                         \
    break;

static uint64_t streams_range(char *const *written, int count, const char *read, size_t begin,
                              size_t end, uint64_t mask)
{
    char *w[5] = {0};
    vector sum = {0};
    for (int k = 0; k < count; k++) {
        w[k] = written[k];
    }
    switch (count) {
    case 0: STREAMS(0)
    case 1: STREAMS(1)
    case 2: STREAMS(2)
    case 3: STREAMS(3)
    case 4: STREAMS(4)
    case 5: STREAMS(5)
    }
    return sum[0];
}

uint64_t streams(char *const *written, int count, const char *read, size_t bytes, uint64_t mask,
                 int threads, size_t repeats)
{
    uint64_t sum = 0;
    if (read == NULL) {
        read = written[0]; /* what is written is read anyway */
    }
    for (size_t r = 0; r < repeats; r++) {
        if (threads == 1) {
            sum |= streams_range(written, count, read, 0, bytes, mask);
            continue;
        }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : sum)
        {
            const size_t n = (size_t)omp_get_num_threads(), k = (size_t)omp_get_thread_num();
            sum |= streams_range(written, count, read, bytes / n * k / 64 * 64,
                                 k + 1 < n ? bytes / n * (k + 1) / 64 * 64 : bytes, mask);
        }
#endif
    }
    return sum;
}

#if defined(__x86_64__)
#include <immintrin.h>
#define IN_REGISTER "v"
#if VECTOR_BYTES == 64
#define INTRINSIC(name, suffix) _mm512_##name##_##suffix
typedef __m512 vector_f32;
typedef __m512d vector_f64;
#elif VECTOR_BYTES == 32
#define INTRINSIC(name, suffix) _mm256_##name##_##suffix
typedef __m256 vector_f32;
typedef __m256d vector_f64;
#else
#define INTRINSIC(name, suffix) _mm_##name##_##suffix
typedef __m128 vector_f32;
typedef __m128d vector_f64;
#endif
#define SQRT_F32(x) INTRINSIC(sqrt, ps)(x)
#define SQRT_F64(x) INTRINSIC(sqrt, pd)(x)
#define SET_F32(x) INTRINSIC(set1, ps)(x)
#define SET_F64(x) INTRINSIC(set1, pd)(x)
#elif defined(__aarch64__)
#include <arm_neon.h>
#define IN_REGISTER "w"
typedef float32x4_t vector_f32;
typedef float64x2_t vector_f64;
#define SQRT_F32(x) vsqrtq_f32(x)
#define SQRT_F64(x) vsqrtq_f64(x)
#define SET_F32(x) vdupq_n_f32(x)
#define SET_F64(x) vdupq_n_f64(x)
#else
#error "the divider floor knows x86-64 and aarch64"
#endif

/* The operands are hidden from the compiler at every turn (it can neither hoist nor drop) and never
 * depend on a result, so the divider is always fed. The elements are spread over the threads. */
#define DIVIDER(suffix, SUFFIX, type)                                                         \
    static void divider_share_##suffix(size_t vectors)                                        \
    {                                                                                         \
        vector_##suffix x = SET_##SUFFIX((type)1.7), y = SET_##SUFFIX((type)0.3);             \
        for (size_t i = 0; i < vectors; i++) {                                                \
            __asm__ volatile("" : "+" IN_REGISTER(x), "+" IN_REGISTER(y));                    \
            vector_##suffix root = SQRT_##SUFFIX(x), quotient = y / x;                        \
            __asm__ volatile("" : : IN_REGISTER(root), IN_REGISTER(quotient));                \
        }                                                                                     \
    }                                                                                         \
    void divider_##suffix(size_t elements, int threads, size_t repeats)                       \
    {                                                                                         \
        const size_t vectors = elements * repeats * sizeof(type) / VECTOR_BYTES;              \
        if (threads == 1) {                                                                   \
            divider_share_##suffix(vectors);                                                  \
            return;                                                                           \
        }                                                                                     \
        PARALLEL(threads)                                                                     \
        divider_share_##suffix(vectors / (size_t)threads);                                    \
    }
#ifdef _OPENMP
#define PRAGMA(text) _Pragma(#text)
#define PARALLEL(threads) PRAGMA(omp parallel num_threads(threads))
#else
#define PARALLEL(threads) (void)(threads), threads = 1;
#endif
DIVIDER(f32, F32, float)
DIVIDER(f64, F64, double)

/* A kernel of the package, called over and over from C. */
typedef void kernel(void *p, const void *g, void *a, size_t n, const void *scalars);
void call_kernel(kernel *update, void *p, const void *g, void *a, size_t n, const void *scalars,
                 size_t repeats)
{
    for (size_t r = 0; r < repeats; r++) {
        update(p, g, a, n, scalars);
    }
}

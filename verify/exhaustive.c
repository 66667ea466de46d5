/* Float32 bit patterns as gradients, or as accumulators: what rmsprop.h makes of them as scalar
 * code, and whether a kernel of the package makes the same. exhaustive.py compiles this without
 * vectorisation. */

#include "rmsprop.h"

enum { BLOCK = 1024 };

typedef void kernel(float *p, const float *g, float *a, size_t n, const rmsprop_scalars *scalars);

/* Steps p[0..n) and a[0..n), which all begin alike, along the patterns from `first` on. With an a0
 * that is NaN the patterns are the accumulators', and the gradients their significands. The first
 * `cut` of each block are a call of their own. */
static void step(kernel *update, uint32_t first, size_t n, size_t cut, float p0, float a0, float *p,
                 float *a, const rmsprop_scalars *scalars)
{
    float g[BLOCK];
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        const size_t count = n - begin < BLOCK ? n - begin : BLOCK;
        for (size_t i = 0; i < count; i++) {
            const uint32_t pattern = first + (uint32_t)(begin + i);
            p[begin + i] = p0;
            a[begin + i] = a0;
            memcpy(a0 == a0 ? &g[i] : &a[begin + i], &pattern, sizeof pattern);
            if (a0 != a0) { /* the quotient is another one for another root */
                int exponent;
                g[i] = frexpf(a[begin + i], &exponent);
            }
        }
        update(p + begin, g, a + begin, cut, scalars);
        update(p + begin + cut, g + cut, a + begin + cut, count - cut, scalars);
    }
}

void scalar_step(uint32_t first, size_t n, float p0, float a0, float *p, float *a,
                 const rmsprop_scalars *scalars)
{
    step(rmsprop_update_f32, first, n, 0, p0, a0, p, a, scalars);
}

/* NaN's sign and payload are not promised. */
static int same(float x, float y)
{
    uint32_t a, b;
    memcpy(&a, &x, sizeof a);
    memcpy(&b, &y, sizeof b);
    return a == b || (x != x && y != y);
}

/* How many of these patterns leave other bits than p and a have? `where` becomes the last. A kernel
 * may leave the roots of every fourth vector to the divider, so each pattern is in two places. */
size_t differences(kernel *update, uint32_t first, size_t n, float p0, float a0, const float *p,
                   const float *a, const rmsprop_scalars *scalars, uint32_t *where)
{
    float p_found[BLOCK], a_found[BLOCK];
    size_t different = 0;
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        const size_t count = n - begin < BLOCK ? n - begin : BLOCK;
        const uint32_t start = first + (uint32_t)begin;
        for (size_t cut = 0; cut <= 16; cut += 16) {
            step(update, start, count, cut, p0, a0, p_found, a_found, scalars);
            for (size_t i = 0; i < count; i++) {
                if (!same(p_found[i], p[begin + i]) || !same(a_found[i], a[begin + i])) {
                    different++;
                    *where = start + (uint32_t)i;
                }
            }
        }
    }
    return different;
}

/* The functions of a (mutated) rmsprop.h, by address, for verify/mutate_c.py. */
#include "rmsprop.h"

static void roots_f32(float *x)
{
    for (size_t i = 0; i < RMSPROP_GROUP / sizeof *x; i++) {
        x[i] = sqrtf(x[i]);
    }
}

static void roots_f64(double *x)
{
    for (size_t i = 0; i < RMSPROP_GROUP / sizeof *x; i++) {
        x[i] = sqrt(x[i]);
    }
}

#define RMSPROP_ISA with_roots
#define RMSPROP_ROOTS_F32 roots_f32
#define RMSPROP_ROOTS_F64 roots_f64
#define RMSPROP_LEAN 1
#include "rmsprop.h"

#define GROUPED(real, ending, name, centered, momentum, epsilon_in_sqrt)                           \
    static void grouped_##name##ending(real *p, const real *g, real *a, real *m, real *mean,       \
                                       size_t n, const rmsprop_scalars *scalars)                   \
    {                                                                                              \
        rmsprop_grouped##ending##_with_roots(rmsprop_##name##ending, p, g, a, m, mean, n, scalars, \
                                             centered, momentum, epsilon_in_sqrt);                 \
    }
#define GROUPED_F32(name, centered, momentum, epsilon_in_sqrt)                                     \
    GROUPED(float, _f32, name, centered, momentum, epsilon_in_sqrt)
#define GROUPED_F64(name, centered, momentum, epsilon_in_sqrt)                                     \
    GROUPED(double, _f64, name, centered, momentum, epsilon_in_sqrt)
RMSPROP_EACH_VARIANT(GROUPED_F32)
RMSPROP_EACH_VARIANT(GROUPED_F64)

typedef void (*function)(void);

function rmsprop_grouped(int wide, int i)
{
#define NARROW(name, centered, momentum, epsilon_in_sqrt) (function) grouped_##name##_f32,
#define WIDE(name, centered, momentum, epsilon_in_sqrt) (function) grouped_##name##_f64,
    static const function narrow_ones[] = {RMSPROP_EACH_VARIANT(NARROW)};
    static const function wide_ones[] = {RMSPROP_EACH_VARIANT(WIDE)};
    return (wide ? wide_ones : narrow_ones)[i];
}

function rmsprop_update(int wide, int i)
{
    return wide ? (function)rmsprop_variant_f64(i) : (function)rmsprop_variant_f32(i);
}

function rmsprop_function(int wide, int i)
{
    const function narrow[] = {(function)rmsprop_passes_f32, (function)rmsprop_block_sums_f32,
                               (function)rmsprop_finite_f32, (function)rmsprop_update_f32};
    const function others[] = {(function)rmsprop_passes_f64,    (function)rmsprop_block_sums_f64,
                               (function)rmsprop_finite_f64,    (function)rmsprop_update_f64,
                               (function)rmsprop_learning_rate, (function)rmsprop_gradient_scale,
                               (function)rmsprop_power,         (function)rmsprop_product,
                               (function)rmsprop_block_count};
    return wide ? others[i] : narrow[i];
}

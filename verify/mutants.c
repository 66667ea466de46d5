/* The functions of a (mutated) rmsprop.h, by address, for verify/mutate_c.py. */
#include "rmsprop.h"

typedef void (*function)(void);

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

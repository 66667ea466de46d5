"""The norm does not depend on how arrays lie."""

import itertools

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, reference, set_num_threads


def differing(shape):
    """Gradients whose norm another order of the same elements would round to another number."""
    for seed in range(1000):
        g = np.random.default_rng(seed).standard_normal(shape)
        if reference.global_norm([g]) != reference.global_norm([g.T]):
            return g
    raise AssertionError("there are none")


@pytest.mark.parametrize("clip", ["clipnorm", "parameter_clipnorm"])
@pytest.mark.parametrize("cycle", [None, 2])
@pytest.mark.parametrize("shape", [(3, 1999), (97, 89), (5, 31, 61), (2, 3, 4, 5, 200)])
def test_the_norm_does_not_depend_on_how_arrays_lie(clip, cycle, shape, team_at_any_size):
    grads = differing(shape)
    options = {clip: 0.5, "gradient_accumulation_steps": cycle, "epsilon": 1.0, "rho": 0.5}
    oracle, p = reference.RMSprop([np.ones(shape)], **options), np.ones(shape)
    for _ in range(4):
        oracle.step([p], [grads])
    (clipped,) = reference.clip([grads], 0.5, None)
    for first, later, threads in itertools.product("CF", "CF", (1, 3)):
        set_num_threads(threads)
        opt, w = RMSprop(**options), np.ones(shape)
        for order in (first, later, later, first):
            w = np.array(w, order=order)
            opt.step([w], [np.array(grads, order=later)])
        assert_same_bits(w, p, f"{first}, then {later}, on {threads}")
        given = np.array(grads, order=later)
        assert_same_bits(opt.get_gradients(lambda _, g=given: (0, [g]), [w])[0], clipped)

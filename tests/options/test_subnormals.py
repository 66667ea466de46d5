"""Numbers that die out: flush_subnormals, and cancellation in centered."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop


def spells(dtype, steps, length, seed=0):
    """Gradients of each step: every element is 0 for a while and then not, in turns."""
    rng = np.random.default_rng(seed)
    on = (np.arange(steps)[:, None] // length + np.arange(8)) % 3 != 0
    values = rng.choice([-1, 1], (steps, 8)) * 10 ** rng.uniform(-3, 1, (steps, 8))
    return np.where(on, 0, values).astype(dtype)


def subnormal(x):
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)


FLUSHED = [
    {},
    {"momentum": 0.5, "centered": True},
    {"momentum": 0.5, "nesterov": True, "lr_in_momentum": False},
    {"epsilon_in_sqrt": True, "centered": True, "bias_correction": True},
]


@pytest.mark.parametrize(("dtype", "rho", "length"), [("float32", 0.5, 300), ("float64", 0.1, 700)])
@pytest.mark.parametrize("more", FLUSHED, ids=str)
def test_flushing_zeroes_what_died_and_changes_no_parameter(more, dtype, rho, length):
    grads = spells(dtype, 3 * length, length)
    for exponent in range(-14, -5):
        arguments = {"lr": 0.01, "rho": rho, "epsilon": 10.0**exponent, **more}
        start = np.linspace(-2, 2, 8).astype(dtype)
        (p, q), g = (start.copy(), start.copy()), np.empty(8, dtype)
        flushing, plain = RMSprop(flush_subnormals=True, **arguments), RMSprop(**arguments)
        steps = flushing.bind(p, g), plain.bind(q, g)
        found = False
        for t, values in enumerate(grads):
            g[...] = values
            for step in steps:
                step()
            if t % 10 == 0 or t == length - 1:
                assert not any(subnormal(x).any() for x in flushing.weights)
                found = found or subnormal(plain.weights[0]).any()
                assert_same_bits(p, q, f"epsilon 1e{exponent}, step {t}")
            if t == length - 1:  # some have had no gradient yet, others many
                assert (flushing.weights[0] == 0).sum() >= 3
        assert found, "without flushing there were no subnormal numbers"
        assert_same_bits(p, q, f"epsilon 1e{exponent}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_flushing_stops_at_the_smallest_normal_number(dtype, sign, isa):
    # rho 0 leaves g*g, and in the mean g; all of them around the limit.
    tiny = np.finfo(dtype).tiny
    below = np.nextafter(tiny, 0, dtype=dtype)
    grads = np.array([tiny, below, tiny * 2, tiny / 2, 0, 1] * 4, dtype) * sign
    opt = RMSprop(rho=0.0, centered=True, momentum=1.0, flush_subnormals=True, lr=0.0)
    opt.step([np.ones(24, dtype)], [grads])
    a, _, mean = opt.weights
    assert_same_bits(mean, np.where(np.abs(grads) < tiny, 0, grads) + np.zeros(24, dtype))
    assert_same_bits(a, np.array([0, 0, 0, 0, 0, 1] * 4, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inside", [False, True], ids=["epsilon out", "epsilon in"])
@pytest.mark.parametrize("more", [{}, {"bias_correction": True}, {"momentum": 0.9}], ids=str)
def test_centered_survives_the_cancellation_of_constant_gradients(more, inside, dtype):
    # The variance of what is constant is 0, which rounding makes negative now and then.
    g = np.concatenate([[0.1, 0.3, -0.7, 1 / 3], 10.0 ** np.arange(-12, 9)]).astype(dtype)
    cancelled = False
    for rho in (0.5, 0.9, 0.99):
        opt = RMSprop(lr=1e-3, rho=rho, epsilon=1e-8, centered=True, epsilon_in_sqrt=inside, **more)
        p = np.ones_like(g)
        step = opt.bind(p, g)
        for _ in range(1500):
            step()
            a, mean = opt.weights[0], opt.weights[-1]
            cancelled = cancelled or (a - mean * mean < 0).any()
        for x in (p, *opt.weights):
            assert np.isfinite(x).all()
    assert cancelled, "no variance was negative"

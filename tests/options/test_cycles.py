"""Cycles of gradient accumulation."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, reference


def test_a_cycle_that_ends_early_looks_at_its_gradients_as_they_come():
    for limit in (None, 1.0):
        arguments = {"nonfinite": "skip", "clipvalue": limit, "gradient_accumulation_steps": 3}
        opt, w = RMSprop(**arguments), np.ones(2, np.float32)
        oracle, p = reference.RMSprop([w], **arguments), w.copy()
        for step in range(3):
            g = np.full(2, 1e30 if step == 1 else 1.0, np.float32)
            if step == 1:
                opt.gradient_accumulation_steps = None
                oracle.options["gradient_accumulation_steps"] = None
            opt.step([w], [g])
            oracle.step([p], [g])
            assert_same_bits(w, p)
        assert opt.skipped_steps == oracle.skipped_steps == 1


@pytest.mark.parametrize("make", [RMSprop, lambda **x: reference.RMSprop([np.ones(2)], **x)])
def test_none_counts_as_zero_within_a_cycle(make):
    opt, w = make(gradient_accumulation_steps=3, lr=1.0, rho=0.0, epsilon=0.0), np.ones(2)
    opt.step([w], [None])
    opt.step([w], [np.full(2, 3.0)])
    opt.step([w], [None])
    assert_same_bits(w, np.zeros(2), "the mean of 0, 3 and 0")
    assert (opt.iterations, opt.weights[0].tolist()) == (1, [1.0, 1.0])
    for _ in range(2):
        opt.step([w], [None])
    for _ in range(2):
        with pytest.raises(ValueError, match="None"):
            opt.step([w], [None])
    assert opt.iterations == 1
    opt.step([w], [np.full(2, 3.0)])
    assert opt.iterations == 2


@pytest.mark.parametrize("make", [RMSprop, lambda **x: reference.RMSprop([np.ones(2)] * 2, **x)])
@pytest.mark.parametrize("cycle", [None, 2])
@pytest.mark.parametrize("frequency", [None, 2])
def test_averages_follow_parameters_without_gradients(make, cycle, frequency):
    arguments = {"use_ema": True, "ema_momentum": 0.5, "gradient_accumulation_steps": cycle}
    opt = make(**arguments, ema_overwrite_frequency=frequency)
    w = [np.ones(2), np.ones(2)]
    average = w[1].copy()
    for call in range(6):
        w[1] += 1.0  # another part of the program trains it
        moved, before = w[1].copy(), opt.weights[3].copy() if opt.weights else w[1].copy()
        opt.step(w, [np.ones(2), None])
        steps = call // (cycle or 1)
        keep = 0.5 if steps else 0.0
        average = keep * average + (1 - keep) * w[1] if not frequency else None
        if average is not None:
            assert_same_bits(opt.weights[3], average)
        else:
            e = keep * before + (1 - keep) * moved
            assert_same_bits(opt.weights[3], e)
            assert_same_bits(w[1], e if (steps + 1) % frequency == 0 else moved)


@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_finalize_gives_a_frozen_parameter_what_it_is(layout):
    base = np.ones((2, 8))
    frozen = base[:, ::2] if layout == "strided" else base
    opt, w = RMSprop(use_ema=True, lr=0.1), np.ones(3)
    opt.build([w, frozen])
    frozen[...] = 5.0
    for _ in range(3):
        opt.step([w, frozen], [np.ones(3), None])
    opt.finalize_variable_values([w, frozen])
    assert (frozen == 5.0).all()


def test_set_weights_begins_a_cycle_and_get_weights_leaves_its_sum_out():
    opt, w = RMSprop(gradient_accumulation_steps=2), np.ones(2)
    opt.step([w], [np.full(2, 100.0)])
    assert len(opt.get_weights()) == len(opt.weights) == 1
    opt.set_weights(opt.get_weights())
    twin, p = RMSprop(gradient_accumulation_steps=2), np.ones(2)
    for _ in range(2):
        opt.step([w], [np.ones(2)])
        twin.step([p], [np.ones(2)])
    assert_same_bits(w, p)
    assert opt.iterations == 1


@pytest.mark.parametrize("form", ["plain", "strided", "swapped"])
@pytest.mark.parametrize("cycle", [None, 2])
def test_skip_clears_the_gradients_that_zero_grad_clears_and_raise_none(form, cycle):
    base = np.full((3, 8), np.nan, ">f8" if form == "swapped" else "f8")
    g = base[:, ::2] if form == "strided" else base
    w = np.ones(g.shape)
    arguments = {"zero_grad": True, "gradient_accumulation_steps": cycle}
    with pytest.raises(ValueError, match="holds NaN"):
        RMSprop(nonfinite="raise", **arguments).step([w], [g])
    assert np.isnan(base).all()
    opt = RMSprop(nonfinite="skip", **arguments)
    opt.step([w], [g])
    assert not g.any()
    assert np.isnan(base).sum() == base.size - g.size
    assert (opt.skipped_steps, opt.iterations) == (1, 0)
    g += 1.0  # as a buffer that accumulates does
    for _ in range(cycle or 1):
        opt.step([w], [g])
    assert opt.iterations == 1
    kept = np.full(3, np.nan)
    RMSprop(nonfinite="skip").step([np.ones(3)], [kept])
    assert np.isnan(kept).all(), "without zero_grad gradients are only read"


def test_reset_forgets_the_last_loss():
    opt = RMSprop()
    opt.get_gradients(lambda p: (3.0, [np.ones(2)]), [np.ones(2)])
    assert opt.last_loss == 3.0
    opt.reset()
    assert opt.last_loss is None

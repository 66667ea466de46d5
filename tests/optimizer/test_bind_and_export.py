"""bind, get_gradients and export check as a step does."""

import numpy as np
import pytest
from common import assert_same_bits
from states import Asked, keras_form

from rmsprop_c import RMSprop, interchange


@pytest.mark.parametrize("value", [{0.5, 1.0}, frozenset([0.5]), {0.5: 1, 1.0: 2}.keys()])
def test_factors_without_an_order_raise(value):
    with pytest.raises(TypeError, match=r"^lr_scale is .*pass a sequence"):
        RMSprop(lr_scale=value)


@pytest.mark.parametrize("built", [False, True])
def test_bind_checks_gradients_as_a_step_does(built):
    opt, params, grads = RMSprop(nonfinite="raise"), [np.ones(2)], [np.full(2, np.inf)]
    if built:
        opt.build(params)
    with pytest.raises(ValueError, match=r"^grads\[0\] holds NaN, infinity"):
        opt.bind(params, grads)
    assert len(opt.weights) == built
    for arguments in ({"clipvalue": 1.0}, {"nonfinite": "skip"}, {"nonfinite": "propagate"}):
        RMSprop(**{"nonfinite": "raise", **arguments}).bind(params, grads)
    assert np.isinf(grads[0]).all()
    opt.gradient_accumulation_steps = 2
    opt.step(params, [np.ones(2)])
    before = opt._snapshot()
    with pytest.raises(ValueError, match=r"^grads\[0\] holds NaN, infinity"):
        opt.bind(params, grads)
    opt.bind(params, [np.ones(2)])
    after = opt._snapshot()
    assert_same_bits(after.slots["gradient_sum"][0], before.slots["gradient_sum"][0])
    assert opt.skipped_steps == 0


def test_bind_asks_a_schedule_as_a_step_does():
    seen = Asked()
    opt, params, grads = RMSprop(lr=seen, gradient_accumulation_steps=2), [np.ones(2)], [np.ones(2)]
    opt.bind(params, grads)
    assert seen.steps == [], "a call that makes no update needs no rate"
    opt.step(params, grads)
    opt.bind(params, grads)
    assert seen.steps == [1]


@pytest.mark.parametrize(
    ("grads", "exception", "message"),
    [
        ([np.ones(3)], ValueError, r"^grads\[0\] has shape"),
        ([np.ones(2, np.float32)], TypeError, r"^grads\[0\] has dtype float32"),
        ([np.ones(2), np.ones(2)], ValueError, "2 gradients, but params has 1"),
        ((np.ones(2) for _ in range(1)), TypeError, "^params is of type list, but grads"),
    ],
    ids=["shape", "dtype", "count", "form"],
)
def test_get_gradients_with_clipping_checks_them_as_a_step_does(grads, exception, message):
    with pytest.raises(exception, match=message):
        RMSprop(clipnorm=1.0).get_gradients(lambda p: (0.0, grads), [np.ones(2)])


def test_get_gradients_refuses_a_limit_that_float32_rounds_to_0():
    params = [np.ones(2, np.float32)]
    with pytest.raises(ValueError, match=r"^clipvalue=1e-46 rounds to 0"):
        RMSprop(clipvalue=1e-46).get_gradients(lambda p: (0.0, [np.ones(2, np.float32)]), params)


def test_export_of_what_the_next_step_makes():
    opt, w = RMSprop(), [np.ones(2)]
    opt.step(w, [np.ones(2)])
    opt.momentum = 0.5
    state = opt.export_state("keras3", keras_form(w, 2))
    assert not state[3].any()
    opt.use_ema = True
    with pytest.raises(ValueError, match=r"call build\(params\) or step first"):
        opt.export_state("keras3", keras_form(w, 3))
    opt.import_state("keras3", [np.int32(4), np.float32(0.1), np.ones(2), np.ones(2), np.ones(2)])
    assert [x.tolist() for x in opt.weights] == [[1.0, 1.0]] * 3


def test_averages_and_frameworks_that_have_none():
    opt = RMSprop(use_ema=True)
    opt.build([np.ones(2)])
    state = {"state": {}, "param_groups": [{"params": [0]}]}  # no step has been made there
    with pytest.raises(ValueError, match=r"^torch keeps no average of the weights"):
        opt.import_state("torch", state)
    with pytest.raises(ValueError, match=r"^torch keeps no average of the weights"):
        interchange.write("torch", state, opt._snapshot().slots, 0)

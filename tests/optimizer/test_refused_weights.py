"""Weights, counts and models that don't fit raise, and nothing is set."""

import re

import numpy as np
import pytest
from refusals import as_dict, built, check_usable, model, state

from rmsprop_c import RMSprop

ITERATIONS = [
    (-1, ValueError),
    (2**62 + 1, ValueError),
    (10**30, ValueError),
    (-(10**30), ValueError),
    (np.int64(-1), ValueError),
    (1.5, TypeError),
    (1.0, TypeError),
    (np.float64(1), TypeError),
    (float("nan"), TypeError),
    ("3", TypeError),
    (None, TypeError),
    (True, TypeError),
    (np.True_, TypeError),
    ([1], TypeError),
    (np.array(2.5), TypeError),
    (np.array(2.0), TypeError),
    (np.array([1, 2]), TypeError),
    (np.array([[7]]), TypeError),
]


@pytest.mark.parametrize(("value", "exception"), ITERATIONS, ids=lambda x: repr(x))
def test_bad_iterations_are_refused(value, exception):
    opt, params, grads = built("after steps")
    before = state(opt)
    with pytest.raises(exception, match=rf"^iterations is {re.escape(repr(value))}"):
        opt.iterations = value
    assert state(opt) == before
    check_usable(opt, params, grads)


class Broken:
    def __index__(self):
        raise OSError("no number today")


def test_an_error_of_the_assigned_object_leaves_the_optimizer_usable():
    opt, params, grads = built("after steps")
    with pytest.raises((OSError, TypeError)):
        opt.iterations = Broken()
    assert opt.iterations == 2
    check_usable(opt, params, grads)


def weights_like(opt, **changes):
    """Ones in the shapes of the weights, with some replaced by index."""
    weights = [np.ones(w.shape, w.dtype) for w in opt.weights]
    for name, value in changes.items():
        weights[int(name[1:])] = value
    return weights


SHAPE_MESSAGE = r"^Optimizer weight shape {} not compatible with provided weight shape {}"


WEIGHTS = {
    "too few": (
        lambda opt: weights_like(opt)[:3],
        ValueError,
        r"^Length of the specified weight list \(3\) does not match the number of weights "
        r"of the optimizer \(4\)",
    ),
    "too many": (
        lambda opt: [*weights_like(opt), np.ones(3)],
        ValueError,
        r"^Length of the specified weight list \(5\) .* \(4\)",
    ),
    "none": (
        lambda opt: [],
        ValueError,
        r"^Length of the specified weight list \(0\) .* \(4\)",
    ),
    "two counts": (
        lambda opt: [3, 3, *weights_like(opt)],
        ValueError,
        r"^Length of the specified weight list \([56]\) .* \(4\)",
    ),
    "a wrong shape in the first": (
        lambda opt: weights_like(opt, _0=np.ones((3, 4))),
        ValueError,
        SHAPE_MESSAGE.format(r"\(4, 3\)", r"\(3, 4\)"),
    ),
    "a wrong shape in the last": (
        lambda opt: weights_like(opt, _3=np.ones(4)),
        ValueError,
        SHAPE_MESSAGE.format(r"\(3,\)", r"\(4,\)") + r".*weights\[3\]",
    ),
    "a wrong shape in the last behind iterations": (
        lambda opt: [np.int64(9), *weights_like(opt, _3=np.ones(4))],
        ValueError,
        SHAPE_MESSAGE.format(r"\(3,\)", r"\(4,\)"),
    ),
    "a broadcastable last": (
        lambda opt: weights_like(opt, _3=np.float32(1.0)),
        ValueError,
        SHAPE_MESSAGE.format(r"\(3,\)", r"\(\)"),
    ),
    **{
        f"{dtype} in the last": (
            lambda opt, dtype=dtype: weights_like(opt, _3=np.ones(3, dtype)),
            TypeError,
            rf"^weights\[3\] has dtype {re.escape(str(np.dtype(dtype)))}",
        )
        for dtype in ("complex128", "object", "U1", "bool", "m8[s]")
    },
    "an object in the last": (
        lambda opt: weights_like(opt, _3=[None] * 3),
        TypeError,
        r"^weights\[3\] has dtype object",
    ),
    **{
        f"{count!r} iterations": (
            lambda opt, count=count: [count, *weights_like(opt)],
            TypeError if count in (1.5, 2.0, True, "3") else ValueError,
            r"^weights\[0\] is .*iterations",
        )
        for count in (-1, 1.5, np.float64(2), True, "3", 2**62 + 1, np.uint64(2**63 + 5), 10**30)
    },
}


@pytest.mark.parametrize("way", ["set_weights", "assignment"])
@pytest.mark.parametrize(("make", "exception", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fit_are_refused_and_none_is_set(make, exception, message, way):
    set_weights = {
        "set_weights": lambda opt, weights: opt.set_weights(weights),
        "assignment": lambda opt, weights: setattr(opt, "weights", weights),
    }
    opt, params, grads = built("after steps")
    weights, before = make(opt), state(opt)
    with pytest.raises(exception, match=message):
        set_weights[way](opt, weights)
    assert state(opt) == before
    check_usable(opt, params, grads)


def test_weights_too_large_for_float32_set_all_or_nothing():
    opt, params, grads = built("after steps")
    before = state(opt)
    with np.errstate(over="raise"):
        try:
            opt.set_weights(weights_like(opt, _3=np.full(3, 1e300)))
        except (FloatingPointError, ValueError):
            assert state(opt) == before
        else:
            assert np.isinf(opt.weights[3]).all()
    check_usable(opt, params, grads)


@pytest.mark.parametrize("weights", [[np.ones(3)], [5, np.ones(3)], [np.ones(3)] * 2], ids=len)
def test_weights_before_the_first_step_are_refused_with_what_to_do(weights):
    opt = RMSprop()
    with pytest.raises(ValueError, match=r"^Length of the .* call build\(params\) or step first$"):
        opt.set_weights(weights)
    assert state(opt) == state(RMSprop())


def test_iterations_before_the_first_step_are_set_or_refused_and_never_dropped():
    opt = RMSprop()
    try:
        opt.set_weights([7])
    except ValueError:
        assert opt.iterations == 0
    else:
        assert opt.iterations == 7


@pytest.mark.parametrize(
    ("params", "exception", "message"),
    [
        (None, TypeError, "^params is of type NoneType"),
        ([[1.0]], TypeError, r"^params\[0\] is of type list"),
        ([np.ones(3), np.ones(3, "i4")], TypeError, r"^params\[1\] has dtype int32"),
        ({"w": np.ones(3, "f2")}, TypeError, r"^params\['w'\] has dtype float16"),
        (np.ma.array([1.0]), TypeError, "^params is a masked array"),
    ],
    ids=["None", "list", "int32", "float16", "masked"],
)
def test_build_refuses_what_a_step_would(params, exception, message):
    opt = RMSprop()
    with pytest.raises(exception, match=message):
        opt.build(params)
    assert state(opt) == state(RMSprop())
    opt.build(model()[0])
    check_usable(opt, *model())


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (lambda p: p[:3], ValueError, "^params has 3 entries"),
        (lambda p: [p[0].T, *p[1:]], ValueError, r"^params\[0\] has shape \(3, 4\)"),
        (lambda p: [p[0].astype("f8"), *p[1:]], TypeError, r"^params\[0\] has dtype float64"),
        (as_dict, TypeError, "^params is a dict"),
    ],
    ids=["count", "shape", "dtype", "dict"],
)
def test_build_refuses_a_model_other_than_the_optimizers(change, exception, message):
    opt, params, grads = built("after steps")
    before = state(opt)
    with pytest.raises(exception, match=message):
        opt.build(change(params))
    assert state(opt) == before
    check_usable(opt, params, grads)


def test_weights_cannot_be_written_through_their_views():
    opt, params, grads = built("after steps")
    before = state(opt)
    for w in opt.weights:
        with pytest.raises(ValueError, match="read-only"):
            w[...] = 0
    assert state(opt) == before
    check_usable(opt, params, grads)

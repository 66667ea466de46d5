"""Losses, constraints and pairs that can't be used raise."""

import numpy as np
import pytest
from common import assert_same_bits
from refusals import OPTIONS, as_dict, built, check_usable, memory, model, state

import rmsprop_c
from rmsprop_c import RMSprop


@pytest.mark.parametrize("method", ["get_gradients", "get_updates"])
@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (None, "NoneType"),
        ("0.5", "str"),
        ([1.0, [np.ones(3)]], "list"),
        ((1.0, [np.ones(3)], 3), "tuple"),
        ((1.0, 2.0, 3.0), "tuple"),
        ((1.0,), "tuple"),
        (np.ones(3), "ndarray"),
        ({"loss": 1.0}, "dict"),
        (object(), "object"),
    ],
    ids=["None", "str", "list", "ragged 3-tuple", "3-tuple", "1-tuple", "array", "dict", "object"],
)
def test_a_loss_that_returns_neither_a_pair_nor_a_scalar_is_refused(method, returned, kind):
    opt, params, grads = built("after steps")
    before, params_before = state(opt), memory(params)
    arguments = (None, lambda _: returned) if method == "get_updates" else (lambda _: returned,)
    arguments = (params, *arguments) if method == "get_updates" else (*arguments, params)
    with pytest.raises(TypeError, match=rf"^loss returned .*{kind}"):
        getattr(opt, method)(*arguments)
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


@pytest.mark.parametrize("method", ["get_gradients", "get_updates"])
@pytest.mark.parametrize("loss", [None, 0.5, "mse", [np.ones(3)], (0.5, [np.ones(3)])], ids=repr)
def test_a_loss_that_is_not_callable_is_refused(method, loss):
    opt, params, grads = built("after steps")
    before = state(opt)
    with pytest.raises(TypeError, match=f"^loss is of type {type(loss).__name__};"):
        opt.get_gradients(loss, params) if method == "get_gradients" else opt.get_updates(
            params, None, loss
        )
    assert state(opt) == before
    check_usable(opt, params, grads)


def test_an_exception_in_a_loss_changes_nothing():
    def broken(_):
        raise ZeroDivisionError("in the loss")

    opt, params, grads = built("after steps")
    before, params_before = state(opt), memory(params)
    for call in (
        lambda: opt.get_gradients(broken, params),
        lambda: opt.get_updates(params, None, broken),
    ):
        with pytest.raises(ZeroDivisionError, match="in the loss"):
            call()
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize(
    ("constraints", "exception", "message"),
    [
        (3, TypeError, "^constraints is of type int"),
        ("maxnorm", TypeError, "^constraints is of type str"),
        (abs, TypeError, "^constraints is of type builtin_function_or_method"),
        ([None] * 3, ValueError, "^constraints has 3 entries, but params has 4"),
        ([None] * 5, ValueError, "^constraints has 5 entries, but params has 4"),
        ({9: "nonneg"}, ValueError, "^constraints has the key 9"),
        ({-1: "nonneg"}, ValueError, "^constraints has the key -1"),
        ({"x": "nonneg"}, ValueError, "^constraints has the key 'x'"),
        ([None, 3, None, None], ValueError, r"constraints\[(1|'b')\].*\b3\b"),
        ([None, "nope", None, None], ValueError, r"constraints\[(1|'b')\].*\bnope\b"),
        ([None, {"class_name": "nope"}, None, None], ValueError, r"constraints\[(1|'b')\].*nope"),
        ([None, {}, None, None], ValueError, r"constraints\[(1|'b')\].*\{\}"),
    ],
    ids=str,
)
def test_bad_constraints_are_refused_before_the_loss_is_called(
    form, constraints, exception, message
):
    opt, (params, grads) = RMSprop(**OPTIONS), model()
    given = as_dict(params) if form == "dict" else params
    before, params_before = state(opt), memory(params)
    with pytest.raises(exception, match=message):
        opt.get_updates(given, constraints, lambda _: pytest.fail("the loss was called"))
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


def test_an_exception_in_a_constraint_leaves_the_update_and_a_usable_optimizer():
    def broken(_):
        raise ZeroDivisionError("in the constraint")

    opt, params, grads = built("after steps")
    expected = [p.copy() for p in params]
    twin = RMSprop.from_config(opt.get_config())
    twin.build(expected)
    twin.set_weights([opt.iterations, *opt.get_weights()])
    twin.step(expected, grads)
    with pytest.raises(ZeroDivisionError, match="in the constraint"):
        opt.get_updates(params, {1: broken, 3: np.zeros_like}, lambda _: (0.0, grads))
    for found, right in zip(params, expected, strict=True):
        assert_same_bits(found, right)
    check_usable(opt, params, grads)


@pytest.mark.parametrize(
    ("pairs", "exception", "message"),
    [
        ([(np.ones(3), np.ones(3), 1)], ValueError, r"^grads_and_vars\[0\] has 3 entries"),
        ([(np.ones(3), np.ones(3)), (np.ones(3),)], ValueError, r"^grads_and_vars\[1\] has 1 entr"),
        ([], ValueError, "^params is empty"),
        ([(None, np.ones(3))], ValueError, "^all gradients are None"),
        ([(np.ones(4), np.ones(3))], ValueError, r"^grads\[0\] has shape \(4,\)"),
        ([(np.ones(3), None)], TypeError, r"^params\[0\] is of type NoneType"),
        ([3], TypeError, r"^grads_and_vars\[0\] is of type int"),
        (None, TypeError, r"^grads_and_vars is of type NoneType"),
    ],
    ids=["triple", "single", "empty", "None", "shape", "no parameter", "no pair", "nothing"],
)
def test_pairs_that_cannot_be_used_are_refused(pairs, exception, message):
    opt = RMSprop()
    with pytest.raises(exception, match=message):
        opt.apply_gradients(pairs)
    assert state(opt) == state(RMSprop())


def test_gradients_of_another_number_are_refused_by_get_gradients():
    opt = RMSprop(clipvalue=1.0)
    with pytest.raises(ValueError, match=r"^loss returned 1 gradients, but params has 2"):
        opt.get_gradients(lambda p: (0.0, [np.ones(1)]), [np.ones(1), np.ones(1)])


def test_a_constraint_class_is_refused_before_anything_changes():
    from rmsprop_c.constraints import NonNeg

    w, opt = np.ones(2), RMSprop()
    with pytest.raises(ValueError, match="NonNeg is a class; pass an instance"):
        opt.get_updates([w], [NonNeg], lambda p: (0.0, [np.ones(2)]))
    assert (w == 1).all()
    assert opt.iterations == 0


def test_what_is_no_mapping_is_not_deserialized():
    with pytest.raises(ValueError, match="Improper config format"):
        rmsprop_c.deserialize("rmsprop")

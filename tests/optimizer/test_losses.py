"""Losses of either kind, get_gradients, get_updates and constraints."""

import copy
import sys

import autograd.numpy as anp
import numpy as np
import pytest
from common import assert_same_bits
from small_model import KEYS, all_grads, as_form, by_reference, model, same

from rmsprop_c import RMSprop, constraints
from rmsprop_c.constraints import MaxNorm, NonNeg


class Counted:
    """A loss that counts how often it is called, and with what."""

    def __init__(self, function):
        self.function = function
        self.calls = []

    def __call__(self, params):
        self.calls.append(params)
        return self.function(params)


def pair_loss(params):
    return sum(float((p * p).sum()) for p in params), [2 * p for p in params]


def scalar_loss(params):
    return sum(anp.sum(p * p) for p in params)


def test_a_loss_that_returns_a_pair_is_called_once_with_the_params():
    loss, opt, params = Counted(pair_loss), RMSprop(), model()
    for t in range(3):
        grads = opt.get_gradients(loss, params)
        assert len(loss.calls) == t + 1
        assert loss.calls[-1] is params
        same(grads, [2 * p for p in params])
        assert opt.last_loss == pair_loss(params)[0]
    opt.get_updates(params, None, loss)
    assert len(loss.calls) == 4
    same(params, by_reference(model(), [[2 * p for p in model()]])[0])


def test_a_scalar_loss_is_evaluated_once_a_step_and_only_under_autograd():
    loss, opt, params = Counted(scalar_loss), RMSprop(), [np.ones(3), np.full(2, 2.0)]

    def traced(given):
        return any(not isinstance(p, np.ndarray) for p in given)

    for calls in ([True], [True, True], [True, True, True]):
        grads = opt.get_gradients(loss, params)
        assert [traced(given) for given in loss.calls] == calls
        same(grads, [2 * p for p in params])
        assert opt.last_loss == 11.0
    RMSprop().get_gradients(loss, params)
    assert [traced(given) for given in loss.calls][-1:] == [True]
    assert len(loss.calls) == 4, "it is remembered per function, for all optimizers"


def test_last_loss_is_none_first_and_then_the_value():
    opt, params = RMSprop(), [np.ones(3)]
    assert opt.last_loss is None
    marker = object()
    opt.get_gradients(lambda p: (marker, [np.ones(3)]), params)
    assert opt.last_loss is marker
    opt.get_updates(params, None, lambda p: (2.5, [np.ones(3)]))
    assert opt.last_loss == 2.5
    opt.step(params, [np.ones(3)])
    assert opt.last_loss == 2.5


def test_last_loss_is_that_of_the_parameters_before_the_update():
    opt, params = RMSprop(lr=0.1), [np.ones(2)]
    opt.get_updates(params, None, lambda p: anp.sum(p[0] ** 2))
    assert opt.last_loss == 2.0


class Net:
    """A model whose losses are methods."""

    def __init__(self, factor):
        self.factor = factor

    def pair(self, params):
        return 0.0, [self.factor * p for p in params]

    def scalar(self, params):
        return 0.5 * self.factor * sum(anp.sum(p * p) for p in params)

    def either(self, params):
        value = self.scalar(params)
        return (value, [self.factor * p for p in params]) if self.factor > 2 else value

    @staticmethod
    def static(params):
        return 1.5 * sum(anp.sum(p * p) for p in params)

    @classmethod
    def of_class(cls, params):
        return cls.static(params)


@pytest.mark.parametrize("method", ["pair", "scalar", "static", "of_class"])
def test_methods_are_losses(method):
    params, opt = model(), RMSprop()
    for _ in range(2):
        net = Net(3.0)
        grads = opt.get_gradients(getattr(net, method), params)
        for g, p in zip(grads, params, strict=True):
            np.testing.assert_allclose(g, 3 * p, rtol=1e-6)


def test_a_scalar_bound_method_is_remembered_though_it_is_a_new_object_each_time():
    class Fresh:
        calls = 0

        def scalar(self, params):
            self.calls += 1
            return anp.sum(params[0] ** 2)

    net, params, opt = Fresh(), [np.ones(3)], RMSprop()
    for calls in (1, 2, 3):
        opt.get_gradients(net.scalar, params)
        assert net.calls == calls


def test_a_method_may_return_a_pair_for_one_object_and_a_scalar_for_another():
    params = [np.ones(3)]
    for factor in (1.0, 3.0, 1.0, 3.0):
        (grad,) = RMSprop().get_gradients(Net(factor).either, params)
        assert_same_bits(grad, np.full(3, factor))


@pytest.mark.parametrize(
    "loss",
    [
        lambda params: 0.5 * sum(anp.sum(p * p) for p in params),
        lambda params: (0.0, list(params)),
    ],
    ids=["scalar", "pair"],
)
def test_lambdas_are_losses(loss):
    params = model()
    same(RMSprop().get_gradients(loss, params), params)


def test_two_lambdas_of_different_kinds_at_one_address_are_not_mixed_up():
    params, opt = [np.ones(3)], RMSprop()
    for turn in range(10):
        if turn % 2:
            grads = opt.get_gradients(lambda p: anp.sum(p[0]), params)
        else:
            grads = opt.get_gradients(lambda p: (0.0, [np.ones(3)]), params)
        assert_same_bits(grads[0], np.ones(3))


class Unhashable(Counted):
    __hash__ = None

    def __eq__(self, other):
        return self is other


def test_a_loss_that_cannot_be_remembered_still_works():
    loss, params = Unhashable(scalar_loss), [np.ones(3)]
    for _ in range(2):
        assert_same_bits(RMSprop().get_gradients(loss, params)[0], np.full(3, 2.0))


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "bare", "bare 0-d"])
@pytest.mark.parametrize("clip", [{}, {"clipnorm": 1e30, "clipvalue": 1e30}], ids=["plain", "clip"])
@pytest.mark.parametrize("kind", ["pair", "scalar"])
def test_gradients_have_the_form_of_the_params(form, clip, kind):
    start = model()

    def arrays(params):
        return [params[key] for key in KEYS] if form == "dict" else params

    def scalar(params):
        if form.startswith("bare"):
            return anp.sum(params * params)
        return scalar_loss(arrays(params))

    def pair(params):
        if form.startswith("bare"):
            return 0.0, 2 * params
        if form == "dict":
            return 0.0, {key: 2 * params[key] for key in reversed(KEYS)}
        return 0.0, type(params)(2 * p for p in params)

    params = {
        "list": start,
        "tuple": tuple(start),
        "dict": as_form(start, "dict"),
        "bare": start[0],
        "bare 0-d": start[2],
    }[form]
    opt = RMSprop(**clip)
    grads = opt.get_gradients({"pair": pair, "scalar": scalar}[kind], params)
    if form.startswith("bare"):
        params, grads = [params], [grads]
    elif form == "dict":
        assert set(grads) == set(KEYS)
        params, grads = list(params.values()), [grads[key] for key in params]
    else:
        assert isinstance(grads, (list, tuple))
    same(grads, [2 * p for p in params])
    if form == "bare":
        opt.get_updates(start[0], None, {"pair": pair, "scalar": scalar}[kind])
        assert_same_bits(start[0], by_reference(model()[:1], [[2 * model()[0]]], **clip)[0][0])


@pytest.mark.parametrize("kind", ["pair", "scalar"])
@pytest.mark.parametrize("container", [list, dict, "bare"])
def test_get_updates_of_a_0d_parameter(kind, container):
    w = np.array(3.0)
    params = {list: [w], dict: {0: w}, "bare": w}[container]

    def loss(given):
        x = given if container == "bare" else given[0]
        if kind == "scalar":
            return x * x
        grad = 2 * x
        return 9.0, {list: [grad], dict: {0: grad}, "bare": grad}[container]

    opt = RMSprop(clipnorm=2.0)
    opt.get_updates(params, None, loss)
    assert opt.last_loss == 9.0
    assert_same_bits(w, by_reference([np.array(3.0)], [[np.array(6.0)]], clipnorm=2.0)[0][0])


def test_gradients_are_not_copied_where_clipping_is_off_and_are_where_it_is_on():
    params, grads = model(), model(1)
    found = RMSprop().get_gradients(lambda _: (0.0, grads), params)
    assert all(x is y for x, y in zip(found, grads, strict=True))
    found = RMSprop(clipvalue=0.1).get_gradients(lambda _: (0.0, grads), params)
    assert not any(np.shares_memory(x, y) for x, y in zip(found, grads, strict=True))
    same(grads, model(1))
    same(params, model())


@pytest.mark.parametrize("options", [{}, {"clipvalue": 0.1}, {"clipnorm": 0.5}], ids=str)
def test_get_gradients_keeps_none(options):
    g = np.array([3.0, 4.0])
    found = RMSprop(**options).get_gradients(lambda _: (0.0, [None, g]), [np.ones(3), np.ones(2)])
    assert found[0] is None
    assert found[1].shape == (2,)


@pytest.mark.parametrize("options", [{}, {"clipvalue": 0.1}, {"clipnorm": 0.5}], ids=str)
def test_get_gradients_of_a_loss_without_any_gradient_is_all_none(options):
    found = RMSprop(**options).get_gradients(lambda _: (0.0, [None, None]), [np.ones(3)] * 2)
    assert found == [None, None]


def test_get_gradients_makes_no_step():
    opt, params = RMSprop(clipnorm=1.0), model()
    opt.get_gradients(pair_loss, params)
    assert (opt.iterations, opt.weights) == (0, [])
    same(params, model())


def test_autograd_leaves_float32_gradients_in_float32():
    params = [np.ones(3, np.float32), np.ones(2)]
    target = np.array([0.1, 0.2, 0.3])  # float64: it promotes

    def loss(p):
        return anp.sum((p[0] - target) ** 2) + anp.sum(p[1] ** 2)

    opt = RMSprop()
    grads = opt.get_gradients(loss, params)
    assert [g.dtype for g in grads] == [np.float32, np.float64]
    expected = (2 * (np.ones(3) - target)).astype(np.float32)
    assert_same_bits(grads[0], expected)
    opt.get_updates(params, None, loss)
    bare = opt.get_gradients(lambda p: anp.sum(p * target), np.ones(3, np.float32))
    assert_same_bits(bare, target.astype(np.float32))
    ones = [np.ones(3, np.float32), np.ones(2)]
    same(params, by_reference(ones, [[expected, np.full(2, 2.0)]])[0])


@pytest.mark.parametrize("remembered", [False, True])
def test_without_autograd_the_error_names_the_extra(monkeypatch, remembered):
    opt, params = RMSprop(), [np.ones(3)]

    def loss(p):
        return (p[0] ** 2).sum()

    if remembered:
        opt.get_gradients(loss, params)
    before = opt.last_loss
    monkeypatch.setitem(sys.modules, "autograd", None)
    for call in (
        lambda: opt.get_gradients(loss, params),
        lambda: opt.get_updates(params, None, loss),
    ):
        with pytest.raises(ImportError, match=r"rmsprop_c\[autograd\]"):
            call()
    assert (opt.iterations, opt.weights, opt.last_loss) == (0, [], before)
    assert_same_bits(params[0], np.ones(3))
    opt.get_updates(params, None, lambda p: (0.5, [np.ones(3)]))
    assert opt.iterations == 1, "a pair needs no autograd"


@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_get_updates_returns_what_was_updated_in_the_order_of_keras(form, decay):
    arrays, grads = model(), all_grads(3)
    params = {"list": arrays, "tuple": tuple(arrays), "dict": as_form(arrays, "dict")}[form]
    opt = RMSprop(decay=decay)
    for t, g in enumerate(grads):
        given = as_form(g, "dict") if form == "dict" else g
        updates = opt.get_updates(params, None, lambda _, given=given: (0.0, given))
        assert isinstance(updates, list)
        assert opt.iterations == t + 1
        if decay > 0:
            first = updates.pop(0)
            assert first.dtype == np.int64
            assert first.shape == ()
            assert first == t + 1
        assert len(updates) == 6
        assert all(x is y for x, y in zip(updates[1::2], arrays, strict=True))
        same(updates[::2], opt.weights)
        assert not any(a.flags.writeable for a in updates[::2])
    same(arrays, by_reference(model(), grads, decay=decay)[0])


def test_get_updates_clips_once():
    # 13 to 6.5, and not again; a second clipping by value would not show, by norm it would at 5.
    params, g = [np.zeros(2), np.zeros(1)], [np.array([3.0, 4.0]), np.array([12.0])]
    opt = RMSprop(clipnorm=6.5, clipvalue=2, rho=0.0)
    opt.get_updates(params, None, lambda _: (0.0, g))
    same(opt.weights, [np.array([1.5, 2.0]) ** 2, np.array([4.0])])
    same(g, [np.array([3.0, 4.0]), np.array([12.0])])


def test_get_updates_orders_a_dict_as_the_optimizer_was_built():
    opt, params = RMSprop(), as_form(model(), "dict")
    opt.build(params)
    turned = dict(reversed(params.items()))
    updates = opt.get_updates(turned, None, lambda p: (0.0, {k: v * 2 for k, v in p.items()}))
    assert all(x is params[key] for x, key in zip(updates[1::2], KEYS, strict=True))


def halve_in_place(w):
    w /= 2


CONSTRAINTS = [
    (None, {}),
    ([None, None, None], {}),
    ((None, NonNeg(), None), {1: NonNeg()}),
    ([MaxNorm(0.5), NonNeg(), None], {0: MaxNorm(0.5), 1: NonNeg()}),
    ([None, "non_neg", None], {1: NonNeg()}),
    ([{"class_name": "MaxNorm", "config": {"max_value": 0.5}}, None, None], {0: MaxNorm(0.5)}),
    ({}, {}),
    ({1: NonNeg()}, {1: NonNeg()}),
    ({0: "maxnorm", 2: None}, {0: MaxNorm()}),
    ({np.int64(1): NonNeg()}, {1: NonNeg()}),
    ([halve_in_place, None, lambda w: w + 1], {0: lambda w: w / 2, 2: lambda w: w + 1}),
    ({1: np.abs}, {1: np.abs}),
    ({1: lambda w: np.full(w.shape, 3)}, {1: lambda w: np.full_like(w, 3)}),
]


@pytest.mark.parametrize(("given", "applied"), CONSTRAINTS, ids=range(len(CONSTRAINTS)))
@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_constraints_apply_to_the_new_values_in_place(given, applied, form):
    arrays, grads = model(), model(1)
    params = {"list": arrays, "tuple": tuple(arrays), "dict": as_form(arrays, "dict")}[form]
    if form == "dict":
        grads = as_form(grads, "dict")
        given = {KEYS[i]: c for i, c in given.items()} if isinstance(given, dict) else given
    before = copy.copy(given)
    updates = RMSprop(lr=0.5).get_updates(params, given, lambda _: (0.0, grads))
    expected, accumulators = by_reference(model(), [model(1)], lr=0.5)
    for i, constraint in applied.items():
        expected[i][...] = constraint(expected[i])
    same(arrays, expected)
    same(updates[::2], accumulators)
    assert all(x is y for x, y in zip(updates[1::2], arrays, strict=True))
    assert given == before


@pytest.mark.parametrize("given", [["nonneg"], {0: "nonneg"}, [np.abs], None], ids=str)
def test_constraints_of_a_bare_array_have_the_index_0(given):
    w, g = np.linspace(-1, 1, 5), np.ones(5)
    updates = RMSprop().get_updates(w, given, lambda _: (0.0, g))
    assert updates[1] is w
    expected = by_reference([np.linspace(-1, 1, 5)], [[g]])[0][0]
    if given is not None:
        expected = constraints.get("nonneg" if given != [np.abs] else np.abs)(expected)
    assert_same_bits(w, expected)


def test_a_constraint_applies_to_a_parameter_without_a_gradient_too():
    params = [np.array([-1.0, 1.0]), np.array([-1.0, 1.0])]
    RMSprop().get_updates(params, ["nonneg", None], lambda _: (0.0, [None, np.ones(2)]))
    assert_same_bits(params[0], [-0.0, 1.0])


def test_a_loss_may_return_a_0d_array():
    pytest.importorskip("autograd")
    params = [np.array([3.0, -2.0])]
    grads = RMSprop().get_gradients(lambda p: (p[0][:1] ** 2).reshape(()), params)
    assert grads[0].tolist() == [6.0, 0.0]


def test_a_loss_that_no_dict_can_hold_is_called_all_the_same():
    class Loss:
        __slots__ = ()  # so there are no weak references to it

        def __call__(self, params):
            return 1.0, [2 * p for p in params]

    params = [np.array([3.0, -2.0])]
    loss = Loss()
    for _ in range(2):
        assert (RMSprop().get_gradients(loss, params)[0] == 2 * params[0]).all()

"""The face of Keras's RMSprop: arguments, config, state, copies, losses and updates."""

import copy
import json
import pickle
import sys

import autograd.numpy as anp
import numpy as np
import pytest
from common import assert_same_bits

import rmsprop_c
from rmsprop_c import Optimizer, RMSprop, constraints, reference
from rmsprop_c.constraints import MaxNorm, NonNeg

KEYS = ("W", "b", "s")
ALL_OPTIONS = {
    "lr": 0.02,
    "rho": 0.85,
    "epsilon": 1e-6,
    "decay": 0.1,
    "clipnorm": 2.0,
    "clipvalue": 0.7,
}


def model(seed=0, order="C"):
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.standard_normal((5, 4)), order=order),
        rng.standard_normal(4).astype(np.float32),
        np.array(rng.standard_normal()),
    ]


def all_grads(steps, order="C"):
    return [model(100 + t, order) for t in range(steps)]


def same(found, expected):
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert_same_bits(x, y, f"[{i}]")


def by_reference(params, grads, iterations=0, **options):
    """Parameters and accumulators after these steps."""
    params = [p.copy(order="K") for p in params]
    accumulators = [np.zeros_like(p) for p in params]
    for t, g in enumerate(grads):
        reference.step(params, g, accumulators, iterations + t, **options)
    return params, accumulators


def test_the_defaults_are_those_of_keras():
    assert RMSprop().get_config() == {"lr": 0.001, "rho": 0.9, "epsilon": 1e-8, "decay": 0.0}
    assert (RMSprop().clipnorm, RMSprop().clipvalue) == (None, None)


def test_arguments_may_be_positional_in_keras_order():
    assert RMSprop(0.1, 0.2, 0.3, 0.4).get_config() == {
        "lr": 0.1,
        "rho": 0.2,
        "epsilon": 0.3,
        "decay": 0.4,
    }


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({}, set()),
        ({"clipnorm": 1.0}, {"clipnorm"}),
        ({"clipvalue": 0.5}, {"clipvalue"}),
        ({"clipnorm": 1, "clipvalue": 2}, {"clipnorm", "clipvalue"}),
        ({"clipnorm": 0.0}, {"clipnorm"}),
        ({"clipvalue": -1.0}, {"clipvalue"}),
        ({"clipnorm": None, "clipvalue": None}, set()),
    ],
    ids=str,
)
def test_config_has_exactly_the_keys_of_keras_2_and_goes_through_json(given, more):
    opt = RMSprop(**given)
    config = opt.get_config()
    assert set(config) == {"lr", "rho", "epsilon", "decay"} | more
    assert {type(value) for value in config.values()} == {float}
    for key in more:
        assert config[key] == given[key]
    read = json.loads(json.dumps(config, allow_nan=False))
    assert RMSprop.from_config(read).get_config() == config
    assert read == config, "from_config changed its argument"


def test_a_config_shares_nothing_with_the_optimizer():
    opt = RMSprop()
    opt.get_config()["lr"] = 5.0
    assert opt.lr == 0.001


def test_from_config_takes_learning_rate_and_makes_the_subclass():
    class Mine(RMSprop):
        pass

    opt = Mine.from_config({"learning_rate": 0.25, "rho": 0.5})
    assert type(opt) is Mine
    assert (opt.lr, opt.rho, opt.iterations) == (0.25, 0.5, 0)


@pytest.mark.parametrize("number", [1, np.float32(0.1), np.float64(0.1), np.int8(1), True + 0])
def test_any_real_number_becomes_a_python_float(number):
    opt = RMSprop(lr=number, clipnorm=number)
    assert type(opt.lr) is type(opt.clipnorm) is float
    assert opt.lr == opt.clipnorm == float(number)


def test_serialize_and_deserialize_are_those_of_keras():
    opt = RMSprop(**ALL_OPTIONS)
    serialized = rmsprop_c.serialize(opt)
    assert serialized == {"class_name": "RMSprop", "config": ALL_OPTIONS}
    read = json.loads(json.dumps(serialized))
    for again in (rmsprop_c.deserialize(read), rmsprop_c.get(read)):
        assert type(again) is RMSprop
        assert again.get_config() == ALL_OPTIONS
    assert read == serialized, "the caller's dict was changed"


@pytest.mark.parametrize("name", ["RMSprop", "rmsprop", "RMSPROP"])
def test_get_finds_the_optimizer_by_name_in_any_case(name):
    for identifier in (name, {"class_name": name, "config": {"lr": 0.001}}, {"class_name": name}):
        opt = rmsprop_c.get(identifier)
        assert type(opt) is RMSprop
        assert opt.get_config() == RMSprop().get_config()


def test_get_returns_an_optimizer_itself():
    opt = RMSprop()
    assert rmsprop_c.get(opt) is opt


class Doubled(RMSprop):
    """A subclass with an argument and attributes of its own."""

    def __init__(self, factor=2, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.history = []

    def get_config(self):
        return {"factor": self.factor, **super().get_config()}


def test_custom_objects_are_found_first_and_nothing_is_changed():
    serialized = rmsprop_c.serialize(Doubled(factor=3, lr=0.5))
    assert serialized["class_name"] == "Doubled"
    before, custom = copy.deepcopy(serialized), {"Doubled": Doubled}
    again = rmsprop_c.deserialize(serialized, custom_objects=custom)
    assert type(again) is Doubled
    assert (again.factor, again.lr) == (3, 0.5)
    assert serialized == before
    assert custom == {"Doubled": Doubled}
    assert type(rmsprop_c.deserialize({"class_name": "RMSprop"}, {"RMSprop": Doubled})) is Doubled
    with pytest.raises(ValueError, match="Unknown optimizer: Doubled"):
        rmsprop_c.deserialize(serialized)


def test_a_from_config_that_takes_its_argument_apart_does_not_reach_the_callers_dict():
    class Greedy(RMSprop):
        @classmethod
        def from_config(cls, config):
            return cls(lr=config.pop("lr"))

    serialized = {"class_name": "Greedy", "config": {"lr": 0.5}}
    opt = rmsprop_c.deserialize(serialized, {"Greedy": Greedy})
    assert (type(opt), opt.lr) == (Greedy, 0.5)
    assert serialized == {"class_name": "Greedy", "config": {"lr": 0.5}}


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("adam", "Unknown optimizer: adam"),
        ({"class_name": "Adam", "config": {}}, "Unknown optimizer: Adam"),
        ({"config": {}}, "Improper config format"),
        ({}, "Improper config format"),
        ({"class_name": 3, "config": {}}, "Improper config format"),
        ({"class_name": "RMSprop", "config": [1]}, "Improper config format"),
        (None, "Could not interpret optimizer identifier: None"),
        (3, "Could not interpret optimizer identifier: 3"),
        (RMSprop, "Could not interpret optimizer identifier: "),
    ],
    ids=str,
)
def test_get_refuses_what_is_no_optimizer(identifier, message):
    with pytest.raises(ValueError, match=message):
        rmsprop_c.get(identifier)


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS, {"lr": np.float32(0.1)}, {"clipnorm": 0}])
def test_repr_can_be_evaluated(options):
    opt = RMSprop(**options)
    again = eval(repr(opt))
    assert repr(again) == repr(opt)
    assert again.get_config() == opt.get_config()


def test_repr_is_readable():
    expected = {"lr": "0.001", "rho": "0.9", "decay": "0.0", "epsilon": "1e-08", "clipnorm": "1.0"}
    text = repr(RMSprop(clipnorm=1))
    assert text.startswith("RMSprop(")
    assert dict(part.split("=") for part in text[8:-1].split(", ")) == expected
    assert repr(Doubled(lr=0.5)).startswith("Doubled(factor=2, lr=0.5, ")


@pytest.mark.parametrize("way", ["step", "bound"])
@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.3},
        {"learning_rate": 0.3},
        {"rho": 0.1},
        {"epsilon": 0.5},
        {"decay": 2.0},
        {"clipnorm": 0.1},
        {"clipvalue": 0.05},
        {"clipnorm": 0.3, "clipvalue": 0.05, "lr": 1},
    ],
    ids=str,
)
def test_an_assigned_hyperparameter_takes_effect_at_the_next_step(way, change):
    opt, params, grads = RMSprop(lr=0.01, decay=0.5), model(), all_grads(1)[0]
    step = opt.bind(params, grads) if way == "bound" else lambda: opt.step(params, grads)
    expected, accumulators = model(), [np.zeros_like(p) for p in params]
    options = {"lr": 0.01, "decay": 0.5}
    for t in range(4):
        if t == 2:
            for name, value in change.items():
                setattr(opt, name, value)
                assert getattr(opt, name) == value
                options["lr" if name == "learning_rate" else name] = value
        step()
        reference.step(expected, grads, accumulators, t, **options)
        same(params, expected)
    without = by_reference(model(), [grads] * 4, lr=0.01, decay=0.5)[0]
    assert any((p != q).any() for p, q in zip(params, without, strict=True)), "it had no effect"


def test_learning_rate_is_another_name_for_lr():
    opt = RMSprop(learning_rate=0.5)
    assert (opt.lr, opt.learning_rate) == (0.5, 0.5)
    opt.learning_rate = 0.25
    assert (opt.lr, opt.learning_rate) == (0.25, 0.25)
    opt.lr = 0.125
    assert opt.learning_rate == 0.125
    assert "learning_rate" not in opt.get_config()


@pytest.mark.parametrize("value", [0, 5, 2**40, np.int32(7), np.uint64(7)], ids=repr)
def test_iterations_can_be_read_and_set(value):
    opt, params, grads = RMSprop(lr=1.0, decay=0.25), model(), all_grads(1)
    opt.iterations = value
    assert type(opt.iterations) is int
    opt.step(params, grads[0])
    assert opt.iterations == value + 1
    same(params, by_reference(model(), grads, int(value), lr=1.0, decay=0.25)[0])


def test_every_step_counts_with_and_without_decay():
    for decay in (0.0, 0.1):
        opt = RMSprop(decay=decay)
        for _ in range(3):
            opt.step(model(), model())
        assert opt.iterations == 3


def test_decay_switched_on_later_uses_all_steps_so_far():
    opt, params, grads = RMSprop(lr=0.1), model(), all_grads(3)
    opt.step(params, grads[0])
    opt.step(params, grads[1])
    opt.decay = 0.5
    opt.step(params, grads[2])
    expected, accumulators = by_reference(model(), grads[:2], lr=0.1)
    reference.step(expected, grads[2], accumulators, 2, lr=0.1, decay=0.5)
    same(params, expected)


def test_lr_after_decay_has_the_form_of_keras():
    # Both forms differ in the last bit here, so the test sees which one is used.
    lr, decay, t = 0.1, 0.1, 7
    assert lr * (1 / (1 + decay * t)) != lr / (1 + decay * t)
    opt, p = RMSprop(lr=lr, decay=decay, rho=0.0, epsilon=0.0), np.zeros(1)
    opt.iterations = t
    opt.step([p], [np.ones(1)])
    assert -p[0] == lr * (1 / (1 + decay * t))


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": None},
        {"clipnorm": 0},
        {"clipnorm": -1.0},
        {"clipvalue": None},
        {"clipvalue": 0.0},
        {"clipvalue": -3.0},
        {"clipnorm": -1, "clipvalue": 0},
        {"clipnorm": 1e30, "clipvalue": 1e30},
    ],
    ids=str,
)
def test_none_and_values_up_to_0_switch_clipping_off(options):
    grads, params = all_grads(2), model()
    opt = RMSprop(**options)
    for g in grads:
        opt.step(params, g)
    same(params, by_reference(model(), grads)[0])
    off = opt.get_gradients(lambda _: (0.0, grads[0]), params)
    same(off, grads[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"clipnorm": 1}, [[3 / 13, 4 / 13], [12 / 13]]),
        ({"clipnorm": 13}, [[3, 4], [12]]),
        ({"clipnorm": 20}, [[3, 4], [12]]),
        ({"clipnorm": 6.5, "clipvalue": 2}, [[1.5, 2], [2]]),
        ({"clipvalue": 2}, [[2, 2], [2]]),
        ({"clipvalue": 3.5, "clipnorm": -1}, [[3, 3.5], [3.5]]),
    ],
    ids=str,
)
@pytest.mark.parametrize("sign", [1, -1])
def test_clipnorm_is_global_and_clipvalue_comes_after_it(options, expected, sign):
    grads = [np.array([3.0, 4.0]) * sign, np.array([12.0]) * sign]
    params = [np.ones(2), np.ones(1)]
    expected = [np.array(e) * sign for e in expected]
    found = RMSprop(**options).get_gradients(lambda _: (0.0, grads), params)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_almost_equal_nulp(x, y)
    # rho 0 leaves the squared clipped gradients in the accumulators.
    opt = RMSprop(rho=0.0, **options)
    opt.step(params, grads)
    same(opt.weights, [x * x for x in found])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([np.nan, 3.0], {"clipnorm": 1.0}, [np.nan, 3.0]),
        ([np.nan, 3.0], {"clipnorm": 1.0, "clipvalue": 2.0}, [np.nan, 2.0]),
        ([np.inf, 3.0], {"clipnorm": 1.0}, [np.nan, 0.0]),
        ([-np.inf, 3.0], {"clipnorm": 1.0, "clipvalue": 2.0}, [np.nan, 0.0]),
        ([np.inf, -np.inf, 3.0], {"clipvalue": 2.0}, [2.0, -2.0, 2.0]),
        ([np.nan, np.inf], {"clipnorm": 1.0}, [np.nan, np.inf]),
        ([0.0, -0.0], {"clipnorm": 1.0}, [0.0, -0.0]),
        ([np.inf, 1.0], {"clipvalue": 1e300}, [None, 1.0]),
    ],
    ids=str,
)
def test_a_nan_norm_scales_by_1_and_an_infinite_one_by_0(values, options, expected, dtype):
    g, p = np.array(values, dtype), np.ones(len(values), dtype)
    real = np.dtype(dtype).type
    if expected[0] is None:
        with np.errstate(over="ignore"):
            expected = [real(1e300), 1.0]
    expected = np.array(expected, dtype)
    opt = RMSprop(rho=0.0, **options)
    opt.step([p], [g])
    with np.errstate(all="ignore"):
        assert_same_bits(opt.weights[0], expected * expected)
    (found,) = opt.get_gradients(lambda _: (0.0, [g]), [p])
    assert_same_bits(found, expected)


def test_the_norm_of_huge_float32_gradients_does_not_overflow():
    g, p = np.full(4, 1e30, np.float32), np.ones(4, np.float32)
    (found,) = RMSprop(clipnorm=2.0).get_gradients(lambda _: (0.0, [g]), [p])
    np.testing.assert_allclose(found, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 1.0},
        {"clipvalue": 0.3},
        {"clipnorm": 3.0, "clipvalue": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["list", "tuple", "dict", "dict in another order", "fortran"])
def test_clipped_gradients_are_the_very_ones_a_step_would_use(options, form):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        params = {key: rng.standard_normal((31, 17)) for key in KEYS}
        grads = {key: rng.standard_normal((31, 17)) for key in KEYS}
        if form == "fortran":
            grads = {key: np.asfortranarray(g) for key, g in grads.items()}
        given = {
            "list": lambda x: list(x.values()),
            "tuple": lambda x: tuple(x.values()),
            "fortran": lambda x: list(x.values()),
        }.get(form, dict)
        turned = dict(reversed(grads.items())) if form.endswith("order") else grads
        pair = (0.0, given(turned))
        clipped = RMSprop(**options).get_gradients(lambda _, pair=pair: pair, given(params))
        fused = RMSprop(rho=0.0, **options)
        fused.step(given(params), given(grads))
        found = [clipped[k] for k in KEYS] if isinstance(clipped, dict) else clipped
        same(fused.weights, [g * g for g in found])


COPIES = {
    **{
        f"pickle {protocol}": (lambda opt, p=protocol: pickle.loads(pickle.dumps(opt, p)))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def as_form(arrays, form):
    return dict(zip(KEYS, arrays, strict=True)) if form == "dict" else list(arrays)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("form", ["list", "dict", "fortran"])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_copy_continues_with_the_same_bits_and_shares_nothing(make_copy, form, steps_before):
    order = "F" if form == "fortran" else "C"
    params, grads = model(0, order), all_grads(6, order)
    opt = RMSprop(**ALL_OPTIONS)
    for g in grads[:steps_before]:
        opt.step(as_form(params, form), as_form(g, form))
    twin, twin_params = make_copy(opt), [p.copy(order="K") for p in params]
    assert type(twin) is RMSprop
    assert twin.get_config() == opt.get_config()
    assert twin.iterations == opt.iterations == steps_before
    assert [w.strides for w in twin.weights] == [w.strides for w in opt.weights]
    for mine, other in zip(twin.weights, opt.weights, strict=True):
        assert not np.shares_memory(mine, other)
    for g in grads[steps_before:]:
        opt.step(as_form(params, form), as_form(g, form))
    weights = opt.get_weights()
    for g in grads[steps_before:]:
        twin.step(as_form(twin_params, form), as_form(g, form))
    same(twin_params, params)
    same(twin.weights, weights)
    same(opt.weights, weights)
    same(params, by_reference(model(0, order), grads, **ALL_OPTIONS)[0])


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_dicts_optimizer_still_goes_by_key(make_copy):
    opt, params, grads = RMSprop(), as_form(model(), "dict"), as_form(model(1), "dict")
    opt.step(params, grads)
    twin = make_copy(opt)
    twin_params = {key: params[key].copy() for key in reversed(KEYS)}
    twin.step(twin_params, grads)
    opt.step(params, grads)
    same([twin_params[key] for key in KEYS], params.values())
    with pytest.raises(TypeError, match="built for a dict"):
        twin.step(model(), model(1))


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("when", ["new", "built", "stepped"])
def test_a_copy_of_a_subclass_keeps_its_attributes(make_copy, when):
    opt = Doubled(factor=5, lr=0.5, clipvalue=None, clipnorm=3)
    opt.history.append("here")
    if when == "built":
        opt.build(model())
    elif when == "stepped":
        opt.get_updates(model(), None, lambda _: (0.25, model(1)))
    twin = make_copy(opt)
    assert type(twin) is Doubled
    assert vars(twin) == vars(opt)
    assert (twin.history is opt.history) == (make_copy is copy.copy)
    assert twin.last_loss == opt.last_loss == (0.25 if when == "stepped" else None)
    assert twin.get_config() == opt.get_config()
    same(twin.weights, opt.weights)


def test_copies_have_hyperparameters_of_their_own():
    opt = RMSprop(lr=0.5)
    twin = copy.copy(opt)
    twin.lr, twin.iterations = 0.25, 9
    assert (opt.lr, opt.iterations) == (0.5, 0)


def test_there_are_no_weights_before_the_first_step():
    opt = RMSprop()
    assert opt.get_weights() == opt.weights == []
    with pytest.raises(ValueError, match=r"call build\(params\) or step first$"):
        opt.set_weights([])
    opt.build([])
    opt.set_weights([])
    assert opt.get_weights() == []


def test_weights_are_the_accumulators_in_the_order_of_the_parameters():
    opt, grads = RMSprop(), all_grads(2)
    params = model()
    for g in grads:
        opt.step(params, g)
    same(opt.get_weights(), by_reference(model(), grads)[1])
    same(opt.weights, opt.get_weights())


def test_get_weights_returns_copies():
    opt = RMSprop()
    opt.step(model(), model(1))
    before = opt.get_weights()
    for w in opt.get_weights():
        w[...] = 0
        assert w.flags.writeable
    same(opt.get_weights(), before)


def test_weights_are_read_only_and_live_views():
    opt, params = RMSprop(), model()
    opt.step(params, model(1))
    views, before = opt.weights, opt.get_weights()
    assert not any(w.flags.writeable for w in views)
    opt.step(params, model(2))
    same(views, opt.get_weights())
    assert all((v != b).any() for v, b in zip(views, before, strict=True))
    opt.set_weights(before)
    same(views, before)


@pytest.mark.parametrize("way", ["set_weights", "assignment"])
@pytest.mark.parametrize("count", [None, 0, 12, np.int64(12), np.array(12), 2**62], ids=repr)
@pytest.mark.parametrize("container", [list, tuple, iter])
def test_weights_with_or_without_iterations_can_be_set(way, count, container):
    source = RMSprop()
    source.step(model(), model(1))
    weights = source.get_weights()
    opt = RMSprop(decay=0.5)
    opt.step(model(), model(2))
    given = container(weights if count is None else [count, *weights])
    if way == "assignment":
        opt.weights = given
    else:
        opt.set_weights(given)
    same(opt.weights, weights)
    assert opt.iterations == (1 if count is None else int(count))


def test_weights_can_be_set_before_the_first_step():
    grads, params = all_grads(4), model()
    opt = RMSprop(**ALL_OPTIONS)
    for g in grads[:2]:
        opt.step(params, g)
    later = RMSprop(**ALL_OPTIONS)
    later.build(params)
    assert [w.any() for w in later.weights] == [False] * 3
    later.set_weights([opt.iterations, *opt.get_weights()])
    for g in grads[2:]:
        later.step(params, g)
    same(params, by_reference(model(), grads, **ALL_OPTIONS)[0])


def test_set_weights_copies_and_converts():
    opt = RMSprop()
    opt.build([np.ones((2, 2), order="F"), np.ones(2, np.float32)])
    mine = np.array([[1.0, 2.0], [3.0, 4.0]])
    opt.set_weights([mine, [0.1, 7]])
    mine[...] = 0
    same(opt.weights, [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.1, 7], np.float32)])


def test_weights_can_be_set_from_the_live_weights_in_another_order():
    opt = RMSprop()
    opt.step([np.ones(3), np.ones(3)], [np.full(3, 1.0), np.full(3, 2.0)])
    before = opt.get_weights()
    opt.weights = opt.weights[::-1]
    same(opt.weights, before[::-1])


def test_weights_of_an_overlapping_view_are_set_as_they_were():
    opt = RMSprop()
    opt.step([np.ones(5)], [np.arange(5.0)])
    before = opt.get_weights()[0]
    opt.set_weights([opt.weights[0][::-1]])
    assert_same_bits(opt.weights[0], before[::-1])


@pytest.mark.parametrize("meanwhile", ["nothing", "another model", "a model without momentum"])
def test_weights_are_not_set_into_a_model_that_another_thread_has_put_there(meanwhile):
    """Between the check of the shapes and the setting, where no lock is held."""

    class Interrupted(RMSprop):
        def _assign(self, slots, *counters):
            self.reset()
            if meanwhile == "another model":
                self.step(model()[::-1], model(1)[::-1])
            elif meanwhile == "a model without momentum":
                self.momentum = 0.0
                self.step(model(), model(1))
            super()._assign(slots, *counters)

    opt = Interrupted(momentum=0.5)
    opt.step(model(), model(1))
    fresh = [np.full_like(w, 7) for w in opt.weights]
    with pytest.raises(RuntimeError, match=r"^another thread has rebuilt the optimizer meanwhile$"):
        opt.set_weights(fresh)
    assert not any((w == 7).any() for w in opt.weights)
    opt.reset()
    opt.step(model(), model(1))
    assert opt.iterations == 1


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
def test_build_makes_zero_accumulators_and_only_reads(form):
    forms = {"list": model(), "dict": as_form(model(), "dict"), "bare": model()[0]}
    opt = RMSprop()
    opt.build(forms[form])
    expected = [np.zeros_like(p) for p in (model()[:1] if form == "bare" else model())]
    same(opt.weights, expected)
    assert opt.iterations == 0
    found = {"dict": lambda x: x.values(), "bare": lambda x: [x]}.get(form, list)(forms[form])
    same(found, model()[: len(expected)])


def test_build_keeps_the_state_of_a_model_that_fits():
    opt = RMSprop()
    opt.step(model(), model(1))
    before = opt.get_weights()
    opt.build(model(5))
    same(opt.weights, before)
    assert opt.iterations == 1


@pytest.mark.parametrize("stage", ["first", "again"])
def test_build_takes_read_only_parameters_since_it_only_reads(stage):
    opt, params = RMSprop(), model()
    if stage == "again":
        opt.build(params)
    for p in params:
        p.flags.writeable = False
    opt.build(params)
    assert len(opt.weights) == 3


def test_reset_forgets_accumulators_and_count_and_the_model():
    opt = RMSprop(**ALL_OPTIONS)
    opt.step(model(), model(1))
    views, before = opt.weights, opt.get_weights()
    opt.reset()
    assert (opt.iterations, opt.get_weights()) == (0, [])
    assert opt.get_config() == ALL_OPTIONS
    same(views, before)
    other, g = {"x": np.ones(3, np.float32)}, np.full(3, 0.5, np.float32)
    opt.step(other, {"x": g})
    same(other.values(), by_reference([np.ones(3, np.float32)], [[g]], **ALL_OPTIONS)[0])


def test_a_bound_step_goes_on_after_reset():
    opt, params, grads = RMSprop(), model(), model(1)
    step = opt.bind(params, grads)
    step()
    opt.reset()
    step()
    expected, _ = by_reference(model(), [grads])
    same(params, by_reference(expected, [grads])[0])
    assert opt.iterations == 1


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "bare"])
def test_a_bound_step_is_a_step_on_these_very_arrays(form):
    make = {
        "list": list,
        "tuple": tuple,
        "dict": lambda x: as_form(x, "dict"),
        "bare": lambda x: x[0],
    }[form]
    params, grads, opt = model(), model(1), RMSprop(**ALL_OPTIONS)
    bound_params, bound_grads = make(params), make(grads)
    step = opt.bind(bound_params, bound_grads)
    assert opt.iterations == 0
    same(params, model())
    if form in ("list", "dict"):
        bound_params.clear()
        bound_grads.clear()
    history = []
    for t in range(3):
        for g, new in zip(grads, model(1 + t), strict=True):
            g[...] = new
        history.append(model(1 + t)[: 1 if form == "bare" else 3])
        assert step() is None
    expected = by_reference(model()[: 1 if form == "bare" else 3], history, **ALL_OPTIONS)[0]
    same(params[: len(expected)], expected)
    assert opt.iterations == 3


def test_a_bound_step_keeps_its_arrays_and_its_optimizer():
    params, grads = model(), model(1)
    first = params[0]
    step = RMSprop().bind(params, grads)
    del params, grads
    step()
    assert (first != model()[0]).any()


def test_apply_gradients_is_a_step_from_pairs():
    params, grads = model(), all_grads(2)
    opt = RMSprop(**ALL_OPTIONS)
    opt.apply_gradients(zip(grads[0], params, strict=True))
    opt.apply_gradients([list(pair) for pair in zip(grads[1], params, strict=True)])
    same(params, by_reference(model(), grads, **ALL_OPTIONS)[0])


def test_apply_gradients_passes_over_none():
    params = model()
    RMSprop().apply_gradients([(None, params[0]), (model(1)[1], params[1]), (None, params[2])])
    same(params, by_reference(model(), [[None, model(1)[1], None]])[0])


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


def test_a_subclass_that_overrides_step_is_used_by_the_methods_of_keras():
    class Noted(RMSprop):
        steps = 0

        def step(self, params, grads):
            self.steps += 1
            super().step(params, [2 * g for g in grads])

    opt, params = Noted(), model()
    opt.get_updates(params, None, lambda _: (0.0, model(1)))
    opt.apply_gradients(zip(model(2), params, strict=True))
    assert (opt.steps, opt.iterations) == (2, 2)
    doubled = [[2 * g for g in model(seed)] for seed in (1, 2)]
    same(params, by_reference(model(), doubled)[0])


def test_an_rmsprop_is_an_optimizer_with_attributes():
    opt = RMSprop()
    assert isinstance(opt, Optimizer)
    opt.note = "mine"
    assert copy.deepcopy(opt).note == "mine"


@pytest.mark.parametrize("kind", ["pair", "scalar"])
def test_ten_steps_on_a_quadratic_to_all_digits(kind):
    c, w = np.array([0.1, 0.2, 0.3]), np.ones(3)
    losses = {
        "pair": lambda p: (float((c * p[0] ** 2).sum()), [2 * c * p[0]]),
        "scalar": lambda p: anp.sum(c * p[0] ** 2),
    }
    opt = RMSprop(lr=0.01, rho=0.9, epsilon=1e-6)
    for _ in range(10):
        opt.get_updates([w], None, losses[kind])
    assert [f"{x:.14f}" for x in w] == ["0.83205403985348", "0.83205322744821", "0.83205295664444"]


def test_two_variables_with_decay():
    params = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    grads = [np.array([0.1, 0.2]), np.array([0.01, 0.2])]
    opt = RMSprop(lr=0.01, rho=0.9, epsilon=1e-7, decay=0.5)
    for expected in (
        ([0.968377323398, 1.9683772733982372], [2.9683782233666944, 3.968377273398237]),
        ([0.9530829762276013, 1.9530829086840393], [2.9530841919778004, 3.9530829086840393]),
    ):
        opt.step(params, grads)
        for p, e in zip(params, expected, strict=True):
            np.testing.assert_allclose(p, e, rtol=1e-12, atol=0)


def test_without_memory_a_step_is_lr_times_the_sign():
    w = np.array([[1.0, 2.0]])
    RMSprop(lr=1, rho=0, epsilon=0).step([w], [np.array([[112.0, 140.0]])])
    assert_same_bits(w, [[0.0, 1.0]])


def test_the_first_step_of_four_elements():
    w = np.array([1.0, 2.0, 3.0, 4.0])
    RMSprop(lr=0.5, rho=0.9, epsilon=1e-8).step([w], [np.array([1.0, 6.0, 7.0, 2.0])])
    expected = [-0.581138780084, 0.418861178249, 1.418861177059, 2.418861194916]
    np.testing.assert_allclose(w, expected, rtol=0, atol=5e-13)


def test_a_bound_step_of_a_0d_parameter_takes_a_numpy_scalar():
    w, v = np.array(3.0), np.array(3.0)
    RMSprop().bind(w, np.float64(2))()
    RMSprop().step(v, np.array(2.0))
    assert w == v


def test_a_subclass_without_init_has_the_defaults():
    class Mine(RMSprop):
        def __init__(self):
            pass

    assert Mine().get_config() == RMSprop().get_config()


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


def test_a_schedule_without_a_config_is_shown():
    def halves(call):
        return 0.5**call

    assert "lr=<function" in repr(RMSprop(lr=halves, momentum=0.5))
    assert "momentum=0.5" in repr(RMSprop(lr=halves, momentum=0.5))

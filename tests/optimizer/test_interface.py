"""The interface of Keras's RMSprop: arguments, config, clipping."""

import copy
import json

import autograd.numpy as anp
import numpy as np
import pytest
from common import assert_same_bits
from small_model import ALL_OPTIONS, KEYS, Doubled, all_grads, by_reference, model, same

import rmsprop_c
from rmsprop_c import Optimizer, RMSprop, reference


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
        ({}, []),
        ({"clipnorm": 1.0}, ["clipnorm"]),
        ({"clipvalue": 0.5}, ["clipvalue"]),
        ({"clipnorm": 1, "clipvalue": 2}, ["clipnorm", "clipvalue"]),
        ({"clipnorm": 0.0}, ["clipnorm"]),
        ({"clipvalue": -1.0}, ["clipvalue"]),
        ({"clipnorm": None, "clipvalue": None}, []),
    ],
    ids=str,
)
def test_config_has_exactly_the_keys_of_keras_2_and_goes_through_json(given, more):
    opt = RMSprop(**given)
    config = opt.get_config()
    assert set(config) == {"lr", "rho", "epsilon", "decay", *more}
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


def test_a_schedule_without_a_config_is_shown():
    def halves(call):
        return 0.5**call

    assert "lr=<function" in repr(RMSprop(lr=halves, momentum=0.5))
    assert "momentum=0.5" in repr(RMSprop(lr=halves, momentum=0.5))

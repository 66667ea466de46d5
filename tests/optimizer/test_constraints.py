"""Constraints compute what Keras 2.0's do, in the array's dtype, and go through JSON."""

import json

import numpy as np
import pytest
from common import assert_same_bits, layouts, place

from rmsprop_c import RMSprop, constraints
from rmsprop_c.constraints import MaxNorm, MinMaxNorm, NonNeg, UnitNorm

EPSILON = 1e-7
EACH = [MaxNorm(), NonNeg(), UnitNorm(), MinMaxNorm()]

# Columns of norm 5, 0.5, 0 and 2.
W = [[3.0, 0.3, 0.0, 0.0], [-4.0, -0.4, 0.0, -2.0]]


def scaled(w, *factors):
    return np.asarray(w) * np.asarray(factors)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (MaxNorm(), scaled(W, 2 / 5, 1, 1, 1)),
        (MaxNorm(1), scaled(W, 1 / 5, 1, 1, 1 / 2)),
        (MaxNorm(max_value=0.1), scaled(W, 0.1 / 5, 0.1 / 0.5, 1, 0.1 / 2)),
        (MaxNorm(5, axis=1), [[3.0, 0.3, 0.0, 0.0], [-4.0, -0.4, 0.0, -2.0]]),
        (MaxNorm(1, axis=1), np.divide(W, np.sqrt([[9.09], [20.16]]))),
        (MaxNorm(1, axis=[0, 1]), np.divide(W, np.sqrt(29.25))),
        (MaxNorm(1, axis=(0, 1)), np.divide(W, np.sqrt(29.25))),
        (NonNeg(), [[3.0, 0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        (UnitNorm(), scaled(W, 1 / 5, 1 / 0.5, 0, 1 / 2)),
        (UnitNorm(axis=1), np.divide(W, np.sqrt([[9.09], [20.16]]))),
        (UnitNorm(axis=[0, 1]), np.divide(W, np.sqrt(29.25))),
        (MinMaxNorm(), scaled(W, 1 / 5, 1, 1, 1 / 2)),
        (MinMaxNorm(1, 3), scaled(W, 3 / 5, 1 / 0.5, 1, 1)),
        (MinMaxNorm(1, 3, rate=0.5), scaled(W, 4 / 5, 0.75 / 0.5, 1, 1)),
        (MinMaxNorm(1, 3, rate=0.0), scaled(W, 1, 1, 1, 1)),
        (MinMaxNorm(6, 7, axis=1), np.divide(W, np.sqrt([[9.09], [20.16]])) * 6),
    ],
    ids=lambda x: repr(x) if callable(x) else "",
)
def test_values_are_those_computed_by_hand(constraint, expected):
    # The epsilon beside the norms moves values by 2e-7 of themselves at these norms.
    found = constraint(np.array(W))
    assert np.abs(found - expected).max() <= 3e-7 * np.abs(expected).max()
    assert (np.asarray(expected)[found == 0] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("constraint", "formula"),
    [
        (MaxNorm(1.5), lambda w, n, e: w * (np.clip(n, 0, w.dtype.type(1.5)) / (e + n))),
        (UnitNorm(), lambda w, n, e: w / (e + n)),
        (
            MinMaxNorm(0.5, 1.5, 0.25),
            lambda w, n, e: (
                w
                * (
                    (
                        w.dtype.type(0.25) * np.clip(n, w.dtype.type(0.5), w.dtype.type(1.5))
                        + w.dtype.type(0.75) * n
                    )
                    / (e + n)
                )
            ),
        ),
        (NonNeg(), lambda w, n, e: np.where(w >= 0, w, w * w.dtype.type(0))),
    ],
    ids=["MaxNorm", "UnitNorm", "MinMaxNorm", "NonNeg"],
)
def test_formulas_are_computed_in_the_arrays_dtype_with_the_epsilon_of_keras(
    constraint, formula, dtype
):
    w = np.random.default_rng(0).standard_normal((7, 5)).astype(dtype)
    norms = np.sqrt(np.sum(np.square(w), axis=0, keepdims=True))
    assert_same_bits(constraint(w), formula(w, norms, w.dtype.type(EPSILON)))


@pytest.mark.parametrize("number", [float, np.float64, np.float32, int], ids=lambda x: x.__name__)
@pytest.mark.parametrize("constraint", [MaxNorm, MinMaxNorm])
def test_float32_stays_float32_whatever_the_arguments_are(constraint, number):
    w = np.ones((3, 2), np.float32)
    argument = {"max_value": number(1)}
    found = constraint(**argument)(w)
    assert found.dtype == np.float32
    assert_same_bits(found, constraint(max_value=1.0)(w))


@pytest.mark.parametrize("constraint", EACH, ids=repr)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shape_and_dtype_stay_and_the_argument_is_not_changed(constraint, shape, dtype):
    w = np.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
    before = w.copy()
    found = constraint(w)
    assert (found.shape, found.dtype) == (shape, np.dtype(dtype))
    assert_same_bits(w, before)


@pytest.mark.parametrize("constraint", EACH, ids=repr)
def test_a_zero_column_stays_zero(constraint):
    assert not constraint(np.zeros((3, 2))).any()


def test_nonneg_keeps_nan_and_what_is_not_negative():
    w = np.array([np.nan, 0.0, 1e-320, 5.0, -1e-320, -5.0])
    assert_same_bits(NonNeg()(w), [np.nan, 0.0, 1e-320, 5.0, -0.0, -0.0])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["MaxNorm", "max_norm", "maxnorm"], MaxNorm),
        (["NonNeg", "non_neg", "nonneg"], NonNeg),
        (["UnitNorm", "unit_norm", "unitnorm"], UnitNorm),
        (["MinMaxNorm", "min_max_norm"], MinMaxNorm),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_the_names_of_keras_lead_to_the_classes(names, found):
    for name in names:
        assert getattr(constraints, name) is found
        for given in (name, {"class_name": name, "config": {}}):
            assert type(constraints.get(given)) is found
            assert constraints.get(given).get_config() == found().get_config()
        assert type(constraints.deserialize({"class_name": name, "config": {}})) is found


@pytest.mark.parametrize(
    ("constraint", "config"),
    [
        (MaxNorm(), {"max_value": 2, "axis": 0}),
        (MaxNorm(3.5, [0, 1]), {"max_value": 3.5, "axis": [0, 1]}),
        (NonNeg(), {}),
        (UnitNorm(), {"axis": 0}),
        (UnitNorm(axis=-1), {"axis": -1}),
        (MinMaxNorm(), {"min_value": 0.0, "max_value": 1.0, "rate": 1.0, "axis": 0}),
        (
            MinMaxNorm(0.5, 2, 0.25, [0, 1]),
            {"min_value": 0.5, "max_value": 2, "rate": 0.25, "axis": [0, 1]},
        ),
    ],
    ids=lambda x: repr(x) if callable(x) else "",
)
def test_configs_have_the_keys_of_keras_and_go_through_json(constraint, config):
    assert constraint.get_config() == config
    serialized = constraints.serialize(constraint)
    assert serialized == {"class_name": type(constraint).__name__, "config": config}
    read = json.loads(json.dumps(serialized))
    w = np.random.default_rng(2).standard_normal((4, 3))
    for again in (
        constraints.deserialize(read),
        constraints.get(read),
        type(constraint).from_config(read["config"]),
        eval(repr(constraint)),
    ):
        assert type(again) is type(constraint)
        assert again.get_config() == config
        assert_same_bits(again(w), constraint(w))
    assert read == serialized, "the caller's dict was changed"


def test_repr_shows_the_arguments():
    assert repr(MaxNorm(3, [0, 1])) == "MaxNorm(max_value=3, axis=[0, 1])"
    assert repr(NonNeg()) == "NonNeg()"


class Halve(constraints.Constraint):
    def __call__(self, w):
        return w / 2


def test_custom_objects_are_found_and_come_first():
    serialized = {"class_name": "Halve", "config": {}}
    assert type(constraints.deserialize(serialized, {"Halve": Halve})) is Halve
    renamed = {"class_name": "MaxNorm", "config": {}}
    assert type(constraints.deserialize(renamed, {"MaxNorm": Halve})) is Halve
    assert type(constraints.deserialize(renamed)) is MaxNorm


@pytest.mark.parametrize("identifier", [None, abs, Halve(), MaxNorm(1)], ids=repr)
def test_none_and_callables_are_their_own_constraint(identifier):
    assert constraints.get(identifier) is identifier


@pytest.mark.parametrize("identifier", [3, 0.5, ["MaxNorm"], np.ones(2), b"maxnorm"], ids=repr)
def test_anything_else_is_no_constraint(identifier):
    with pytest.raises(ValueError, match="Could not interpret constraint identifier: "):
        constraints.get(identifier)


@pytest.mark.parametrize(
    ("config", "exception", "message"),
    [
        ({"class_name": "Nope", "config": {}}, ValueError, "Unknown constraint: Nope"),
        ({"config": {}}, ValueError, "Improper config format"),
        ({}, ValueError, "Improper config format"),
        ({"class_name": 3, "config": {}}, ValueError, "Improper config format"),
        ({"class_name": "MaxNorm", "config": 3}, ValueError, "Improper config format"),
        ({"class_name": "MaxNorm", "config": {"min": 3}}, TypeError, "'min'"),
        ({"class_name": "NonNeg", "config": {"axis": 0}}, TypeError, "axis|argument"),
    ],
    ids=["unknown", "no name", "empty", "number", "config", "argument", "surplus argument"],
)
def test_a_config_that_means_nothing_is_refused(config, exception, message):
    for make in (constraints.deserialize, constraints.get):
        with pytest.raises(exception, match=message):
            make(config)


def test_the_base_class_constrains_nothing():
    with pytest.raises(TypeError, match="define __call__"):
        constraints.Constraint()(np.ones(3))


@pytest.mark.parametrize("layout", layouts(2))
@pytest.mark.parametrize("constraint", EACH, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_get_updates_constrains_the_new_value_in_place_in_any_layout(constraint, layout, dtype):
    rng = np.random.default_rng(3)
    start, g = (rng.standard_normal((4, 3)).astype(dtype) for _ in range(2))
    param, buffer = place(start, **layouts(2)[layout])
    plain = param.copy(order="K").astype(dtype)
    RMSprop(lr=0.1).step([plain], [g])
    updates = RMSprop(lr=0.1).get_updates([param], [constraint], lambda _: (0.0, [g]))
    assert updates[-1] is param
    expected = constraint(plain)
    assert_same_bits(param, expected)
    np.testing.assert_array_equal(buffer, place(expected, **layouts(2)[layout])[1])

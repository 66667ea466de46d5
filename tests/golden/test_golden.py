"""Trajectories recorded from TensorFlow 1.3 itself: tf.contrib.keras RMSprop on Python 3.6.

golden.json lists the cases; golden.npz holds start, gradients, and parameters and accumulators
after each of 12 steps. What is expected: float64 without clipnorm in every bit (TensorFlow rounds
clipvalue to float32 first); float64 with clipnorm to 1e-14 of the largest value, its norm having
been summed in another order; float32 accumulators in every bit, parameters to 4e-7, since Eigen's
float32 square root was an estimate; float32 with clipnorm to 1e-6.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, constraints, reference

FOLDER = Path(__file__).parent
CASES = json.loads((FOLDER / "golden.json").read_text())
ARRAYS = np.load(FOLDER / "golden.npz")


def close(found, expected, tolerance):
    return np.abs(found - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0)


@pytest.fixture(params=CASES, ids=lambda case: case["name"])
def case(request):
    return request.param


def recorded(case, name):
    return [ARRAYS[f"{case['name']}/{name}_{i}"] for i in range(case["n_params"])]


def arguments(case):
    hyperparameters = dict(case["hyperparameters"])
    if case["dtype"] == "float64" and "clipvalue" in hyperparameters:
        hyperparameters["clipvalue"] = float(np.float32(hyperparameters["clipvalue"]))
    return hyperparameters


def compare(case, t, params, accumulators):
    clipped_by_norm = "clipnorm" in case["hyperparameters"]
    for i, (p, a) in enumerate(zip(params, accumulators, strict=True)):
        expected_p = recorded(case, "params")[i][t]
        expected_a = recorded(case, "accum")[i][t]
        where = f"step {t}, parameter {i}"
        if clipped_by_norm:
            tolerance = 1e-14 if case["dtype"] == "float64" else 1e-6
            assert close(p, expected_p, tolerance), where
            assert close(a, expected_a, tolerance), where
        else:
            assert_same_bits(a, expected_a, where)
            if case["dtype"] == "float64":
                assert_same_bits(p, expected_p, where)
            else:
                assert close(p, expected_p, 4e-7), where


def test_the_package_repeats_tensorflow(case, isa):
    params = [p.copy() for p in recorded(case, "p0")]
    grads = recorded(case, "grads")
    opt = RMSprop(**arguments(case))
    opt.iterations = case["first_iteration"]
    chosen = {
        int(i): constraints.get({"class_name": name, "config": config})
        for i, (name, config) in (case["constraints"] or {}).items()
    }
    for t in range(case["steps"]):
        updates = opt.get_updates(params, chosen, lambda _, t=t: (0.0, [g[t] for g in grads]))
        assert len(updates) == case["n_updates"]
        compare(case, t, params, opt.weights)


def test_the_reference_repeats_tensorflow(case):
    params = [p.copy() for p in recorded(case, "p0")]
    grads = recorded(case, "grads")
    accumulators = [np.zeros_like(p) for p in params]
    for t in range(case["steps"]):
        reference.step(
            params,
            [g[t] for g in grads],
            accumulators,
            t + case["first_iteration"],
            **arguments(case),
        )
        for i, (name, config) in (case["constraints"] or {}).items():
            constraint = constraints.get({"class_name": name, "config": config})
            params[int(i)][...] = constraint(params[int(i)])
        compare(case, t, params, accumulators)


def test_a_config_of_tensorflow_is_accepted_and_returned(case):
    config = RMSprop.from_config(case["config"]).get_config()
    assert config == case["config"]
    assert set(RMSprop(**case["hyperparameters"]).get_config()) == set(case["config"])


def test_most_cases_are_compared_in_bits():
    plain = [c for c in CASES if "clipnorm" not in c["hyperparameters"]]
    assert len(plain) >= 30
    assert {c["dtype"] for c in plain} == {"float32", "float64"}

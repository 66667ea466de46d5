"""The schedules are those of the Keras that is installed, and the two read each other's configs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rmsprop_c import schedules

RECORDER = Path(__file__).parent / "record_schedules.py"

for package in ("keras", "torch"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    # In a process of its own, as Keras has one backend and one floatx for all.
    path = tmp_path_factory.mktemp("live") / "schedules.npz"
    subprocess.run([sys.executable, RECORDER, path], check=True)
    with np.load(path) as file:
        return dict(file)


def test_every_step_has_the_learning_rate_of_keras(live):
    for case, expected in zip(live["cases"], live["values"], strict=True):
        name, arguments = json.loads(str(case))
        schedule = schedules.KNOWN[name](**arguments)
        found = [schedule(step) for step in range(len(expected))]
        largest = arguments.get("initial_learning_rate") or max(arguments["values"])
        assert np.abs(np.subtract(found, expected)).max() <= 1e-12 * largest, case


def test_the_recorded_values_are_those_of_keras(live):
    with np.load(RECORDER.parents[1] / "recorded" / "schedules.npz") as recorded:
        assert recorded["cases"].tolist() == live["cases"].tolist()
        np.testing.assert_allclose(recorded["values"], live["values"], rtol=1e-12, atol=1e-13)


def test_configs_go_to_keras_and_back(live):
    keras = pytest.importorskip("keras").optimizers.schedules
    for case in live["cases"]:
        name, arguments = json.loads(str(case))
        schedule = schedules.KNOWN[name](**arguments)
        theirs = keras.deserialize(schedules.serialize(schedule))
        assert type(theirs).__name__ == name
        assert schedules.KNOWN[name].from_config(theirs.get_config()) == schedule
        assert schedules.deserialize(keras.serialize(theirs)) == schedule
        named = schedules.KNOWN[name](**arguments, name="mine")
        theirs = keras.deserialize(schedules.serialize(named))
        assert theirs.name == "mine"
        assert schedules.deserialize(keras.serialize(theirs)).get_config() == named.get_config()

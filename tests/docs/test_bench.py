"""The benchmarks measure what they say."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from rmsprop_c import RMSprop, optimizer

pytestmark = pytest.mark.plain

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module", autouse=True)
def bench_path():
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


def test_the_resnet_has_its_161_tensors_and_all_weights():
    from compare import MODELS

    shapes = MODELS["ResNet-50"]
    assert len(shapes) == 161
    assert sum(math.prod(shape) for shape in shapes) == 25_557_032


@pytest.mark.parametrize("vector_bytes", [16, 32])
def test_the_traffic_limit_loads_three_vectors_and_stores_two(vector_bytes):
    from limit import Limit

    found = Limit(vector_bytes).disassembly()
    assert found["checked"], found
    assert found["ok"], found


def test_the_traffic_limit_leaves_the_arrays_as_they_are():
    from limit import Limit

    arrays = [[np.arange(5.0, 1005.0)] for _ in range(3)]
    Limit(16).traffic(*arrays, 1)(3)
    assert all((array == np.arange(5.0, 1005.0)).all() for (array,) in arrays)


def test_the_traffic_of_options_leaves_the_arrays_as_they_are():
    from limit import Limit

    arrays = [np.arange(5.0, 1005.0) for _ in range(6)]
    for written in range(6):
        for threads in (1, 2):
            passes = [(arrays[:written], arrays[5])] + [(arrays[:written], None)] * (written > 0)
            Limit(16).streams(passes, threads)(3)
    assert all((array == np.arange(5.0, 1005.0)).all() for array in arrays)


def test_every_option_has_its_measurement():
    from sweep import OPTIONS

    measured = {name for options in OPTIONS.values() for name in options}
    free = {"exclude_from_weight_decay", "ema_momentum", "ema_overwrite_frequency"}
    free |= {"initial_accumulator_value", "lr_in_momentum"}  # numbers only, no other instructions
    assert measured | free >= set(optimizer.OPTIONS)


def test_the_numpy_rival_of_the_benchmarks_has_our_bits():
    from training import NumpyOut

    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(1003).astype(np.float32) for _ in range(2))
    q = p.copy()
    rival, ours = NumpyOut([q]), RMSprop(lr=1e-5)
    for _ in range(5):
        rival.step([q], [g])
        ours.step([p], [g])
    assert p.tobytes() == q.tobytes()


def test_the_guard_has_a_committed_ratio_for_each_cell():
    from guard import CELLS, COMMITTED

    by_processor = json.loads(COMMITTED.read_text())
    assert by_processor
    for ratios in by_processor.values():
        assert set(ratios) == set(CELLS)


def test_the_guard_tells_processors_of_one_name_apart(monkeypatch):
    """Zen 3 and Zen 4 are both "AMD EPYC" to a guest."""
    import guard

    told = "model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n"
    found = set()
    for model in (1, 17):
        monkeypatch.setattr(guard.Path, "read_text", lambda self, model=model: told.format(model))
        found.add(guard.generation())
    assert found == {"AMD EPYC, family 25, model 1", "AMD EPYC, family 25, model 17"}


def test_the_comparison_installs_what_was_named():
    from install import PINS, needed

    pins = [line for line in PINS.read_text().split() if "==" in line]
    names = {name: {pin.split("==")[0] for pin in needed(name, pins)} for name in ("numpy", "nu")}
    assert names["numpy"] == {"numpy"}
    assert names["nu"] == {"numpy", "numexpr", "numba"}
    assert {pin.split("==")[0] for pin in needed("torch for,optax", pins)} == {
        "torch",
        "optax",
        "jax",
    }
    assert needed("", pins) == pins

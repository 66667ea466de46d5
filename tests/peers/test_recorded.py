"""`RMSprop.like` computes what the frameworks computed when they were recorded.

live/record.py ran the frameworks themselves; live/test_live.py runs them again and
compares every step. They do the same operations in other orders, so differences are allowed up to
1e-12 of the largest value of an array in float64, and in float32 up to 1e-5, or 3e-5 where errors
add up in the momentum or cancel in the variance."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from recorded import RECORDED, assert_close, trajectory

from rmsprop_c import RMSprop

CASES = [SimpleNamespace(**case) for case in json.loads((RECORDED / "cases.json").read_text())]


FILES = {path.stem: np.load(path) for path in RECORDED.glob("*.npz") if path.stem != "schedules"}


INPUTS = dict(FILES["inputs"])


CALLS = (1, 2, 10, 50)


DTYPES = ("float64", "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.framework}-{case.name}")
def test_every_framework_is_repeated(case, dtype):
    start = [INPUTS[key] for key in INPUTS if key.startswith(f"start/{dtype}/")]
    grads = [INPUTS[key] for key in INPUTS if key.startswith(f"grads/{dtype}/{case.scale}/")]
    recorded = FILES[case.framework]
    expected = recorded[f"{case.name}/{dtype}"]
    steps = list(trajectory(case, dtype, start, zip(*grads, strict=True)))
    ends = np.cumsum([p.size for p in start])[:-1]
    for row, call in enumerate(CALLS):
        params, averages = steps[call - 1]
        found = [p.ravel() for p in params]
        assert_close(found, np.split(expected[row], ends), case, dtype, f"call {call}")
        if averages:
            found = [p.ravel() for p in averages]
            average = recorded[f"{case.name}/{dtype}/averages"][row]
            assert_close(found, np.split(average, ends), case, dtype, f"averages, call {call}")


def test_every_framework_is_recorded_in_both_dtypes():
    assert {case.framework for case in CASES} == FILES.keys() - {"inputs"}
    for case in CASES:
        assert {f"{case.name}/{dtype}" for dtype in DTYPES} <= set(FILES[case.framework].files)


def test_autograd_has_the_same_bits_with_an_accumulator_that_starts_at_one():
    from autograd.misc.optimizers import rmsprop  # make peers has no autograd, and not this test

    grads = np.random.default_rng(0).standard_normal((50, 5))
    expected = rmsprop(lambda x, i: grads[i], np.arange(5.0), num_iters=50)
    params, opt = np.arange(5.0), RMSprop(lr=0.1, initial_accumulator_value=1)
    for g in grads:
        opt.step(params, g)
    assert params.tobytes() == expected.tobytes()

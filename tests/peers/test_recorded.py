"""`RMSprop.like` computes what the frameworks computed when they were recorded.

tests/peers/record.py ran the frameworks themselves; tests/peers/test_live.py runs them again and
compares every step. They do the same operations in other orders, so differences are allowed up to
1e-12 of the largest value of an array in float64, and in float32 up to 1e-5, or 3e-5 where errors
add up in the momentum or cancel in the variance.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rmsprop_c import RMSprop, schedules

RECORDED = Path(__file__).parent / "peers" / "recorded"
CASES = [SimpleNamespace(**case) for case in json.loads((RECORDED / "cases.json").read_text())]
FILES = {path.stem: np.load(path) for path in RECORDED.glob("*.npz") if path.stem != "schedules"}
INPUTS = dict(FILES["inputs"])
CALLS = (1, 2, 10, 50)
DTYPES = ("float64", "float32")


def like(case, dtype):
    """Our optimizer of a case."""
    arguments = case.arguments | (case.rounded if dtype == "float64" else {})
    if isinstance(arguments.get("learning_rate"), dict):
        arguments["learning_rate"] = schedules.deserialize(arguments["learning_rate"])
    return RMSprop.like(case.framework, **arguments)


def trajectory(case, dtype, start, grads):
    """Our parameters after each call, and with use_ema their averages."""
    opt = like(case, dtype)
    params = [p.copy() for p in start]
    lr_at = dict(case.lr_at)
    for call, g in enumerate(grads):
        if call in lr_at:
            opt.lr = lr_at[call]
        opt.step(params, g)
        averages = []
        if opt.use_ema:
            with opt.averaged(params):
                averages = [p.copy() for p in params]
        yield [p.copy() for p in params], averages


def assert_close(found, expected, case, dtype, where):
    accumulated = case.arguments.get("momentum") or case.arguments.get("centered")
    tolerance = 1e-12 if dtype == "float64" else 3e-5 if accumulated else 1e-5
    assert len(found) == len(expected), where
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        error = np.abs(f - e).max() / np.abs(e).max()
        assert error <= tolerance, f"{where}, array {i}: {error:.3g} of its largest value"


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

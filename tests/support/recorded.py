"""The recorded runs of the frameworks, and ours beside them."""

from pathlib import Path

import numpy as np

from rmsprop_c import RMSprop, schedules

RECORDED = Path(__file__).parents[1] / "peers" / "recorded"


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

"""What gradients do whose squares are not finite."""

import copy
import re

import numpy as np
import pytest
from option_sets import (
    OPTION_SETS,
    copied,
    everything,
    memory,
    model,
    refused,
    run,
    same,
    trap,
    usable,
)

from rmsprop_c import RMSprop, reference, set_num_threads

NOT_OF_FLOAT32 = (2e19, -2e19, 3e38)  # their squares overflow there


OF_FLOAT32 = (1.8e19, -1.8e19)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("way", ["step", "bound", "get_updates", "apply_gradients"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 2e19])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"momentum": 0.5, "centered": True, "use_ema": True, "zero_grad": True},
        {"gradient_accumulation_steps": 2, "clipnorm": 1.0, "use_ema": True, "zero_grad": True},
    ],
    ids=["plain", "rich", "accumulation"],
)
def test_raise_names_the_gradient_and_changes_nothing(more, value, way, steps):
    opt = RMSprop(nonfinite="raise", **more)
    params, grads = trap(0.5)
    opt.build(params)
    for _ in range(steps):
        opt.step(params, copied(grads))
    params, grads = trap(value, at=1)
    message = r"^grads\[1\] holds NaN, infinity or a number whose square overflows; nothing was"
    if way == "bound":
        good = copied(grads)
        for g in good:
            g[...] = 0.5
        step = opt.bind(params, good)
        for g, bad in zip(good, grads, strict=True):
            g[...] = bad
        before = memory(params + good), everything(opt)
        with pytest.raises(ValueError, match=message):
            step()
        assert (memory(params + good), everything(opt)) == before
        way = "bind"
    refused(way, opt, params, grads, ValueError, message)
    twin = copy.deepcopy(opt)
    usable(opt, twin, *trap(0.5))


@pytest.mark.parametrize(
    ("form", "at", "name"),
    [
        ("list", 0, "grads[0]"),
        ("tuple", 2, "grads[2]"),
        ("dict", 1, "grads['b']"),
        ("bare", 1, "grads"),
    ],
)
def test_raise_names_the_position_in_every_form(form, at, name):
    params, grads = trap(np.inf, "float64", form, at)
    with pytest.raises(ValueError, match="^" + re.escape(name) + " holds NaN"):
        RMSprop(nonfinite="raise").step(params, grads)


def test_raise_names_the_first_of_several_and_forgets_them():
    opt, params = RMSprop(nonfinite="raise"), [np.ones(2) for _ in range(4)]
    bad, good = np.full(2, np.nan), np.ones(2)
    for grads, name in [([good, None, bad, bad], 2), ([bad, bad, good, good], 0)]:
        with pytest.raises(ValueError, match=rf"^grads\[{name}\] holds"):
            opt.step(params, grads)
    opt.step(params, [good] * 4)
    assert (opt.iterations, opt.skipped_steps) == (1, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, *NOT_OF_FLOAT32, *OF_FLOAT32, 1e154])
@pytest.mark.parametrize("way", ["raise", "skip"])
def test_what_counts_is_a_square_that_is_not_finite_in_the_dtype(way, value, dtype):
    with np.errstate(over="ignore"):
        kept = bool(np.isfinite(np.square(np.dtype(dtype).type(value))))
    assert kept == (np.isfinite(value) and (abs(value) < 1.9e19 or dtype == "float64"))
    params, grads = trap(value, dtype)
    opt, expected = RMSprop(nonfinite=way), copied(params)
    oracle = reference.RMSprop(expected, nonfinite=way)
    if kept or way == "skip":
        run(opt, params, oracle, expected, [grads])
        assert (opt.iterations, opt.skipped_steps) == (kept, not kept)
    else:
        with pytest.raises(ValueError, match="holds NaN, infinity"):
            opt.step(params, grads)


# (options, value, whether the step is made)
CLIPPED = [
    ({"clipvalue": 1.0}, 2e19, True),
    ({"clipvalue": 1.0}, np.inf, True),
    ({"clipvalue": 1.0}, -np.inf, True),
    ({"clipvalue": 1.0}, np.nan, False),
    ({"clipvalue": 2e19}, 3e19, False),
    ({"clipvalue": -1.0}, 2e19, False),
    ({"clipnorm": 1.0}, 2e19, True),
    ({"clipnorm": 1.0}, np.inf, False),  # scaled by 0
    ({"clipnorm": 1.0}, np.nan, False),  # not scaled at all
    ({"clipnorm": 1.0, "clipvalue": 1.0}, np.inf, False),
    ({"clipnorm": 3e19}, 2e19, False),
    ({"parameter_clipnorm": 1.0}, 2e19, True),
    ({"parameter_clipnorm": 1.0}, np.inf, False),
    ({"parameter_clipnorm": 3e19}, 2e19, False),
    ({"clipvalue": 1.0, "maximize": True}, 2e19, True),
    ({"clipvalue": 1.0, "gradient_accumulation_steps": 2}, 2e19, False),
    ({"clipnorm": 1.0, "gradient_accumulation_steps": 2}, 2e19, False),
    ({"parameter_clipnorm": 1.0, "gradient_accumulation_steps": 2}, 2e19, False),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("arguments", "value", "made"), CLIPPED, ids=str)
def test_gradients_are_looked_at_after_clipping_and_sums_before(arguments, value, made):
    arguments = {"nonfinite": "skip", **arguments}
    params, grads = trap(value)
    opt, expected = RMSprop(**arguments), copied(params)
    oracle = reference.RMSprop(expected, **arguments)
    run(opt, params, oracle, expected, [grads, grads])
    assert opt.skipped_steps == (0 if made else 2)
    assert all(np.isfinite(p).all() for p in params)
    arguments["nonfinite"] = "raise"
    if made:
        RMSprop(**arguments).step(*trap(value))
    else:
        with pytest.raises(ValueError, match=r"^grads\[1\] holds"):
            RMSprop(**arguments).step(*trap(value))


def test_a_skipped_call_does_nothing_but_count():
    arguments = OPTION_SETS["keras 3"] | {"nonfinite": "skip", "zero_grad": True}
    params, grads = model("mixed", 7, 3)
    opt = RMSprop(**arguments)
    assert opt.skipped_steps == 0
    for call, g in enumerate(grads):
        bad = [None if x is None else np.full_like(x, np.nan) for x in g]
        opt.build(params)
        before = memory(params), everything(opt)[0], opt._counts()[:2], opt.lr
        opt.step(params, bad)
        assert opt.skipped_steps == call + 1
        assert (memory(params), everything(opt)[0], opt._counts()[:2], opt.lr) == before
        assert not any(x.any() for x in bad if x is not None), "zero_grad clears them"
        opt.step(params, g)
    expected, all_grads = model("mixed", 7, 3)
    twin = RMSprop(**arguments)
    for g in all_grads:
        twin.step(expected, g)
    same(params, expected)
    assert twin._snapshot().skipped_steps == 0
    opt.reset()
    assert opt.skipped_steps == 0


@pytest.mark.parametrize("way", ["raise", "skip"])
def test_a_first_step_that_is_not_made_leaves_an_optimizer_that_has_seen_no_model(way):
    opt = RMSprop(nonfinite=way)
    try:
        opt.step([np.ones(3)], [np.full(3, np.nan)])
    except ValueError:
        assert way == "raise"
    assert (opt.skipped_steps, opt.weights) == (int(way == "skip"), [])
    opt.step({"w": np.ones(2)}, {"w": np.ones(2)})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [{}, {"parameter_clipnorm": 1e9}], ids=str)
def test_one_nan_anywhere_is_found(clip, dtype, threads, isa, team_at_any_size):
    set_num_threads(threads)
    opt = RMSprop(nonfinite="raise", **clip)
    params = [np.ones(n, dtype) for n in (5, 3 * 4096 + 7, 4096, 1)]
    grads = [np.ones_like(p) for p in params]
    opt.build(params)
    before = memory(params), everything(opt)
    for at in range(4):
        n = grads[at].size
        for index in {0, 4095, 4096, n // 2, n - 1} & set(range(n)):
            grads[at][index] = np.nan
            with pytest.raises(ValueError, match=rf"^grads\[{at}\] holds NaN"):
                opt.step(params, grads)
            grads[at][index] = 1
    assert (memory(params), everything(opt)) == before
    opt.step(params, grads)

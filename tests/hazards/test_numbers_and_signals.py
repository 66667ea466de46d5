"""Interrupts, floating-point modes, overflows and configs."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from common import assert_same_bits
from promises import (
    PERIOD,
    STATEFUL,
    Course,
    in_each_case,
    memory,
    model,
    promise,
    right,
    small_model,
    some_options,
    uniform,
)


@some_options
@promise(naive="AssertionError: half a step")
def test_ctrl_c_leaves_all_of_a_step_or_none(library, options):
    def interrupt(*_):
        raise KeyboardInterrupt

    library.set_num_threads(1)
    signal.signal(signal.SIGALRM, interrupt)
    rng = np.random.default_rng(0)
    cycle = options.get("gradient_accumulation_steps", 1)
    course = Course(library, **options)
    params, grads = uniform(10, 3000), uniform(10, 3000)
    for trial in range(300):
        if trial % 3 == 0:  # a first step is interrupted too
            opt = library.RMSprop(**options)
            for p in params:
                p[...] = 0
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
            while True:
                for g in grads:
                    g[...] = 1
                opt.step(params, grads)
        except KeyboardInterrupt:
            updates = int(opt.iterations)
        # Several calls make one update: the count says which update, the sums which call of it.
        calls = range(updates * cycle, (updates + 1) * cycle)
        assert any(course.meets(n, opt, params) for n in calls), "half a step"
        if options.get("zero_grad"):  # all were cleared, and then set again from the first one on
            cleared = [not g.any() for g in grads]
            assert cleared == sorted(cleared), "half a step"


ENVIRONMENTS = {"flush to zero": 0x9FC0, "round up": 0x5F80, "round to zero": 0x7F80}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@promise(naive="AssertionError: .*differ", native=True)
def test_other_libraries_rounding_and_flushing_change_no_bit_and_stay(library, threads, mode):
    import ctypes

    other = ctypes.CDLL(os.environ["NAIVE_LIBRARY"])
    library.set_num_threads(threads)
    params, grads = model(100_003)
    for x in (params[0], grads[0]):
        x[::5] *= np.float32(1e-22)  # whose square is subnormal
    wanted, accumulator = params[0].copy(), np.zeros_like(params[0])
    from rmsprop_c import reference

    for t in range(3):
        reference.step([wanted], grads, [accumulator], t, decay=0.1, clipnorm=1e9)
    opt = library.RMSprop(decay=0.1, clipnorm=1e9)
    opt.build(params)
    other.set_environment(mode)
    set_to = other.get_environment()
    for _ in range(3):
        opt.step(params, grads)
    left = other.get_environment()
    other.set_environment(0x1F80 if mode > 1 else 0)
    assert left == set_to
    assert_same_bits(params[0], wanted)
    assert_same_bits(opt.get_weights()[0], accumulator)


@promise(naive="AssertionError: .*differ")
def test_the_global_norm_is_the_same_on_1_to_8_threads(library):
    results = []
    for threads in range(1, 9):
        library.set_num_threads(threads)
        params, grads = model(200_003, 70_001)
        opt = library.RMSprop(clipnorm=0.01)
        opt.step(params, grads)
        results.append(np.concatenate(opt.get_weights()))
    for threads, found in enumerate(results, 1):
        assert_same_bits(found, results[0], f"{threads} threads")


OVERFLOWS = {
    f"{value}, {mode}": (value, mode)
    for value in (np.inf, -np.inf, np.nan, 2e19)
    for mode in ("raise", "skip")
}


@promise(naive="AssertionError: broken in all")
def test_a_gradient_whose_square_overflows_is_refused_or_skipped_before_any_write(library):
    library.set_num_threads(1)

    def work(case):
        value, mode = case
        for more in STATEFUL.values():
            opt, (params, grads) = library.RMSprop(nonfinite=mode, **more), small_model()
            twin, (twin_params, twin_grads) = library.RMSprop(**more), small_model()
            opt.step(params, grads)
            twin.step(twin_params, twin_grads)
            bad = [g.copy() for g in small_model()[1]]
            bad[2][3] = value
            given = [] if "zero_grad" in more and mode == "skip" else bad  # those are cleared
            seen, count = memory(*params, *given, *opt.get_weights()), opt.iterations
            try:
                opt.step(params, bad)
                refused = ""
            except ValueError as error:
                refused = str(error)
            assert memory(*params, *given, *opt.get_weights()) == seen, "something was changed"
            assert opt.iterations == count
            if mode == "raise":
                assert re.match(r"grads\[2\] holds NaN, infinity or", refused)
            else:
                assert (refused, opt.skipped_steps) == ("", 1)
            opt.step(params, small_model()[1])
            twin.step(twin_params, small_model()[1])
            found, wanted = [*params, *opt.get_weights()], [*twin_params, *twin.get_weights()]
            for x, y in zip(found, wanted, strict=True):
                assert_same_bits(x, y)

    in_each_case(OVERFLOWS, work)


BAD_NUMBERS = {
    f"{name}={value!r}": (name, value)
    for name, values in {
        "lr": [-0.1, np.nan, np.inf, True, "0.1", np.array([0.1])],
        "rho": [-0.1, 1.1, np.nan, True, "0.9"],
        "epsilon": [-1e-8, np.nan, np.inf, False, "1e-8"],
        "decay": [-0.1, np.nan, np.inf, True, "0"],
        "momentum": [-0.1, 1.1, np.nan, True, "0.9"],
    }.items()
    for value in values
}


@promise(naive="AssertionError: broken in all")
def test_a_number_that_can_only_ruin_weights_is_refused_by_name(library):
    def work(case):
        name, value = case
        opt, (params, grads) = library.RMSprop(), small_model()
        opt.step(params, grads)
        kept = getattr(opt, name)
        for attempt in (
            lambda: library.RMSprop(**{name: value}),
            lambda: setattr(opt, name, value),
        ):
            with pytest.raises((TypeError, ValueError), match=rf"^{name} is "):
                attempt()
        assert getattr(opt, name) == kept

    in_each_case(BAD_NUMBERS, work)


@promise(naive="Failed: DID NOT RAISE")
def test_the_ends_of_the_ranges_follow_the_formula_and_an_epsilon_that_vanishes_is_refused(library):
    library.set_num_threads(1)
    for options in ({"epsilon": 0.0}, {"rho": 0.0}, {"rho": 1.0}, {"epsilon": 0.0, "rho": 0.0}):
        params, grads = model(PERIOD)
        opt = library.RMSprop(**options)
        for _ in range(3):
            opt.step(params, grads)
        assert_same_bits(params[0], right(PERIOD, 3, **options))
    params, grads = model(PERIOD)
    with pytest.raises(ValueError, match=r"^epsilon=1e-46 rounds to 0 in float32"):
        library.RMSprop(epsilon=1e-46).step(params, grads)
    assert_same_bits(params[0], model(PERIOD)[0][0])


CONFIGS = [
    '{"lr": NaN}',
    '{"lr": Infinity}',
    '{"lr": 1e999}',
    '{"lr": -1}',
    '{"lr": true}',
    '{"lr": "0.1"}',
    '{"rho": 2}',
    '{"rho": false}',
    '{"epsilon": -1e999}',
    '{"decay": "1e-3"}',
    '{"lr": 0.1, "momentum": "0.9"}',
    '{"lr": 0.1, "__class__": 1}',
]


@promise(naive="AssertionError: broken in all")
def test_a_config_is_read_strictly(library):
    def work(text):
        config = json.loads(text)
        with pytest.raises((TypeError, ValueError), match=list(config)[-1]):
            library.RMSprop.from_config(config)

    in_each_case({text: text for text in CONFIGS}, work)


@pytest.mark.alone
@promise(naive=r"AssertionError: (stuck at|\d)")
def test_flushing_frees_parameters_with_zero_gradients_of_subnormal_state(library):
    library.set_num_threads(1)

    def pace():
        times = []
        for _ in range(40):
            start = time.perf_counter()
            for _ in range(20):
                opt.step(params, zeros)
            times.append(time.perf_counter() - start)
        return min(times)

    opt, (params, grads) = library.RMSprop(flush_subnormals=True), model(4096)
    zeros = [np.zeros_like(g) for g in grads]
    opt.step(params, grads)
    wanted, fresh = right(4096, 1), pace()
    for _ in range(1200):
        opt.step(params, zeros)
    assert_same_bits(params[0], wanted)
    left = opt.get_weights()[0]
    assert not left.any(), f"stuck at {left.max()}"
    assert pace() < 1.5 * fresh


@pytest.mark.parametrize("count", [2**24, 2**53, 2**62 - 2])
@promise(naive="AssertionError: the counter")
def test_the_counter_of_steps_counts_on(library, count):
    params, grads = model(PERIOD)
    opt = library.RMSprop(decay=1e-9)
    opt.iterations = count
    opt.step(params, grads)
    assert int(opt.iterations) == count + 1, f"the counter stays at {opt.iterations}"
    assert_same_bits(params[0], right(PERIOD, 1, first_iteration=count, decay=1e-9))

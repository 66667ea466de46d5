"""Threads that share an optimizer take turns, and a long step keeps no other thread waiting."""

import copy
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from common import assert_same_bits
from interpreters import expected, python, sleeping
from promises import (
    Course,
    in_threads,
    model,
    promise,
    right,
    some_options,
    uniform,
)

from rmsprop_c import (
    RMSprop,
    _core,
    schedules,
)


@pytest.mark.parametrize("threads", [1, 2])
@some_options
@promise(naive="AssertionError|hangs", patience=10)
def test_steps_of_one_optimizer_from_four_threads_are_serialised(library, threads, options):
    if options.get("zero_grad"):
        options = options | {"zero_grad": False}  # which step found which gradient is not ours
    library.set_num_threads(threads)
    params, opt = uniform(3, 200_000), library.RMSprop(**options)
    grads = [np.ones_like(p) for p in params]
    opt.step(params, grads)

    def work():
        for _ in range(74):
            opt.step(params, grads)

    in_threads(*[work] * 4)
    assert opt.iterations == 297 // options.get("gradient_accumulation_steps", 1)
    assert Course(library, **options).meets(297, opt, params)


@pytest.mark.alone
@promise(naive="AssertionError: others got", NAIVE_GIL=1)
def test_a_long_step_lets_other_optimizers_step(library):
    library.set_num_threads(1)
    sys.setswitchinterval(5e-4)
    (p,), (g,) = model(1 << 23)
    seconds, stop = {}, threading.Event()

    def long():
        opt = library.RMSprop()
        for _ in range(20):
            opt.step([p], [g])
        seconds["long"] = time.thread_time()
        stop.set()

    def short():
        opt, (params, grads) = library.RMSprop(), model(100)
        while not stop.is_set():
            opt.step(params, grads)
        seconds["short"] = time.thread_time()
        again, (params_again, _) = library.RMSprop(), model(100)
        for _ in range(int(opt.iterations)):
            again.step(params_again, grads)
        assert_same_bits(params[0], params_again[0])

    in_threads(long, short)
    assert_same_bits(p, right(p.size, 20))
    # Processor time, of which each thread gets its share, whatever else the machine does.
    share = seconds["short"] / seconds["long"]
    assert share > 0.6, f"others got {share:.0%} of the time of a long step"


def run_in_threads(work, count):
    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@pytest.mark.usefixtures("team_at_any_size")
def test_steps_of_one_optimizer_from_many_threads_are_serialised(threaded_model):
    params, grads = threaded_model
    wanted = expected(params, grads, 200)
    opt = RMSprop()

    def work():
        for _ in range(50):
            opt.step(params, grads)

    run_in_threads(work, 4)
    assert opt.iterations == 200
    for found, want in zip(params, wanted, strict=True):
        assert_same_bits(found, want)


@pytest.mark.usefixtures("team_at_any_size")
def test_staged_steps_from_many_threads_are_serialised(threaded_model):
    params, grads = threaded_model
    wanted = expected(params, grads, 60)
    strided = [np.repeat(p, 2, axis=-1)[..., ::2] for p in params]
    opt = RMSprop()

    def work():
        for _ in range(20):
            opt.step(strided, grads)

    run_in_threads(work, 3)
    for found, want in zip(strided, wanted, strict=True):
        assert_same_bits(found, want)


@pytest.mark.alone
def test_a_long_step_lets_other_threads_run():
    p = np.ones(1 << 21, np.float32)
    opt, g = RMSprop(), np.ones_like(p)
    opt.step([p], [g])
    ticks = 0
    done = threading.Event()

    def work():
        for _ in range(20):
            opt.step([p], [g])
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.is_set():
        ticks += 1
    worker.join()
    assert ticks > 1000


def test_a_list_may_change_while_a_long_step_runs(threaded_model):
    params, grads = threaded_model
    wanted = expected(params, grads, 300)
    shared = list(grads)
    opt = RMSprop()
    before = _core.configure_minimums(unlocked=1)
    done = threading.Event()

    def disturb():
        while not done.is_set():
            for i in range(len(shared)):
                shared[i] = grads[i].copy()

    other = threading.Thread(target=disturb)
    other.start()
    try:
        for _ in range(300):
            opt.step(params, shared)
    finally:
        done.set()
        other.join()
        _core.configure_minimums(**before)
    for found, want in zip(params, wanted, strict=True):
        assert_same_bits(found, want)


def steps_seen(accumulator):
    """How many steps along gradients of 1 have led to an accumulator."""
    return round(np.log1p(-accumulator[0]) / np.log(0.9))


class Busy(schedules.LearningRateSchedule):
    """A learning rate, and what a test has to do in a step."""

    work: Callable[[int], None]

    def __call__(self, calls):
        type(self).work(calls)
        return 0.1


def loaded(opt, path):
    opt.save(path)
    return RMSprop.load(path, custom_objects={"Busy": Busy}).get_weights()[0]


READERS = {
    "get_weights": lambda opt, path: opt.get_weights()[0],
    "save": loaded,
    "pickle": lambda opt, path: opt.__reduce__()[2]["state"]["slots"]["accumulator"][0],
    "deepcopy": lambda opt, path: copy.deepcopy(opt).get_weights()[0],
}


@pytest.mark.alone
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks Linux who sleeps")
@pytest.mark.parametrize("name", READERS)
def test_who_waits_for_a_step_gets_its_turn_after_it(name, tmp_path, monkeypatch):
    """One thread makes 50 steps; in the first of them come a reader, a step and a reader."""

    def work(calls):
        if calls == 0:
            for name, call in (("first", read), ("step", step), ("second", read)):
                waiting.append(threading.Thread(target=call, name=name))
                waiting[-1].start()
                sleeping(waiting[-1])

    def step():
        opt.step([np.ones(5)], [np.ones(5)])

    def read():
        path = tmp_path / threading.current_thread().name
        seen[threading.current_thread().name] = steps_seen(READERS[name](opt, path))

    monkeypatch.setattr(Busy, "work", work, raising=False)
    opt, seen, waiting = RMSprop(lr=Busy()), {}, []
    w, g = np.ones(5), np.ones(5)
    for _ in range(50):
        opt.step([w], [g])
    for thread in waiting:
        thread.join()
    assert seen == {"first": 1, "second": 2}
    assert opt.iterations == 51


@pytest.mark.alone
def test_threads_that_step_all_the_time_take_turns(threaded_model):
    opt, barrier = RMSprop(), threading.Barrier(3)
    opt.build(threaded_model[0])
    made = []

    def train():
        params, mine = [p.copy() for p in threaded_model[0]], 0
        barrier.wait()
        while opt.iterations < 3000:
            opt.step(params, threaded_model[1])
            mine += 1
        made.append(mine)

    run_in_threads(train, 3)
    assert min(made) > 300, made


def test_a_thread_that_was_in_a_step_at_the_interpreters_end_raises_instead_of_hanging():
    code = """
import sys, threading, time
import numpy as np
from rmsprop_c import RMSprop

class Last:   # modules are freed when daemon threads can't run any more
    def __del__(self):
        try:
            opt.get_weights()
        except RuntimeError as error:
            print(error)

def slow(calls):
    inside.set()
    time.sleep(1000)

inside = threading.Event()
opt = RMSprop(lr=slow)
sys.modules["last"] = Last()
threading.Thread(target=opt.step, args=([np.ones(3)], [np.ones(3)]), daemon=True).start()
inside.wait()
"""
    shown = python(code, timeout=60)
    assert shown == "a thread was in this optimizer when the interpreter shut down"

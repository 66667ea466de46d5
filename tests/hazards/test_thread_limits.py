"""Where threads can't be had or are few, each element is updated once."""

import importlib.util
import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
from common import assert_same_bits
from promises import (
    FOLDER,
    in_child,
    model,
    promise,
    right,
)

PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


two_processors = pytest.mark.skipif(PROCESSORS < 2, reason="needs two processors")


@pytest.fixture
def failing(compiled, monkeypatch):
    """The calls of failing.c come before those of the system, in the promise's process."""
    monkeypatch.setenv("LD_PRELOAD", compiled(FOLDER / "failing.c", "-ldl"))


def limited_memory():
    """No room for another thread's stack."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), resource.RLIM_INFINITY))


def limited_processes():
    """No more threads for this user; root, who has no such limit, becomes somebody else."""
    import resource

    if os.getuid() == 0:
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


@pytest.mark.parametrize("limit", ["limited_memory", "limited_processes"])
@promise(naive=r"exit 1: .*Thread creation failed", OPENBLAS_NUM_THREADS=2)
def test_where_no_thread_can_be_made_the_step_is_serial(library, limit):
    library.set_num_threads(4)
    params, grads = model(100_003)
    wanted = right(100_003, 3)
    opt = library.RMSprop()
    opt.build(params)
    globals()[limit]()
    for _ in range(3):
        opt.step(params, grads)
    assert_same_bits(params[0], wanted)


@promise(naive=r"exit 1: .*Thread creation failed", OMP_STACKSIZE="900G")
def test_where_no_stack_can_be_had_the_step_is_serial(library):
    library.set_num_threads(4)
    params, grads = model(100_003)
    opt = library.RMSprop()
    opt.step(params, grads)
    assert_same_bits(params[0], right(100_003, 1))


def of_failing(name):
    """A variable of failing.c."""
    import ctypes

    return ctypes.c_int.in_dll(ctypes.CDLL(None), name)


# A probe makes two threads, and then the second long step makes one that has the team.
THREAD_FAILURES = {
    "the first": ("threads_until_failure", 0),
    "the second": ("threads_until_failure", 1),
    "that of the team": ("threads_until_failure", 2),
    "attributes": ("attributes_fail", 1),
}


@two_processors
@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("failure", THREAD_FAILURES.values(), ids=THREAD_FAILURES)
@promise(OMP_NUM_THREADS=2)
def test_preloaded_failures_to_make_a_thread_leave_the_step_serial(library, failure):
    params, grads = model(1 << 22)
    wanted = right(1 << 22, 4)
    opt = library.RMSprop()
    opt.build(params)
    name, value = failure
    of_failing(name).value = value
    for _ in range(4):
        opt.step(params, grads)
    # A build without OpenMP makes no thread, so that none fails.
    assert of_failing("failures").value == (library.build_info()["openmp"] is not None)
    assert_same_bits(params[0], wanted)


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("text", [None, "", "1 python S", "1 (python) S 1 1"])
@promise()
def test_preloaded_failures_of_proc_only_hide_forks_before_the_import(load, text, tmp_path):
    """One after it is noticed by itself; see src/threads.c for the flag that is read there."""
    if text is not None:
        Path(tmp_path, "stat").write_text(text)
    os.environ["STAT"] = str(Path(tmp_path, "stat"))
    library = load()
    assert of_failing("failures").value == 1
    library.set_num_threads(2)
    params, grads = model(100_003)
    opt = library.RMSprop()

    def work():
        for _ in range(3):
            opt.step(params, grads)

    work()
    in_child(work)
    work()
    assert_same_bits(params[0], right(100_003, 6))


def fewer_threads(library):
    """Steps of 64 threads, where OpenMP gives fewer."""
    library.set_num_threads(64)
    params, grads = model(200_003, 50_000)
    opt = library.RMSprop()
    for _ in range(3):
        opt.step(params, grads)
    for p in params:
        assert_same_bits(p, right(p.size, 3))


@promise(naive="AssertionError: .*elements differ", OMP_THREAD_LIMIT=2)
def test_each_element_is_updated_once_under_a_thread_limit(library):
    fewer_threads(library)


@promise(naive="AssertionError: .*elements differ", OMP_DYNAMIC="true")
def test_each_element_is_updated_once_by_teams_of_dynamic_size(library):
    fewer_threads(library)


@two_processors
@promise(naive="AssertionError: 2 threads or more on one processor")
def test_a_process_on_one_processor_uses_one_thread(load):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    assert load().get_num_threads() == 1, "2 threads or more on one processor"


@two_processors
@promise(naive="AssertionError: the quota is not seen")
def test_a_containers_quota_of_one_processor_allows_one_thread(library, tmp_path):
    Path(tmp_path, "cpu.max").write_text("100000 100000\n")
    assert library.threads.processors(tmp_path) == 1, "the quota is not seen"


@two_processors
@promise(naive="AssertionError: 2 threads or more")
def test_threadpoolctl_limits_a_step_to_one_thread(library):
    threadpoolctl = importlib.import_module("threadpoolctl")
    params, grads = model(1 << 22)
    opt = library.RMSprop()
    seen = [found["user_api"] for found in threadpoolctl.threadpool_info()]
    assert "openmp" in seen or library.get_num_threads() == 1
    with threadpoolctl.threadpool_limits(1):
        before = len(os.listdir("/proc/self/task"))
        for _ in range(4):
            opt.step(params, grads)
        assert len(os.listdir("/proc/self/task")) == before, "2 threads or more"
        assert library.get_num_threads() == 1


@pytest.mark.alone
@two_processors
@promise(naive="AssertionError: threads stay awake")
def test_by_default_no_thread_outlives_a_step_of_any_size(library):
    before = len(os.listdir("/proc/self/task"))
    for size in (1000, 100_000, 1 << 22):
        params, grads = model(size)
        opt = library.RMSprop()
        for _ in range(4):
            opt.step(params, grads)
        # The system lists a thread for a moment longer than it runs, even one that was joined.
        deadline = time.monotonic() + 2
        while len(os.listdir("/proc/self/task")) != before:
            assert time.monotonic() < deadline, "threads stay awake"
            time.sleep(0.001)


@pytest.mark.alone
@pytest.mark.plain
@two_processors
@pytest.mark.parametrize("size", [10_000, 300_000, 5_000_000])
@promise()
def test_by_default_a_training_loop_is_no_slower_than_a_serial_one(library, size):
    """The best times are compared, and taken until they agree or time is up.

    Whatever else the machine does may slow down either loop. For the same reason the naive code is
    not timed: at 10,000 elements it took 2 to 3 times as long, but on a busy machine not always.
    The threads that stay awake, which are why, are counted above.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 784)).astype(np.float32)
    w = rng.standard_normal((784, 512)).astype(np.float32)
    params, grads = model(size)
    times = {1: [], None: []}
    optimizers = {threads: library.RMSprop() for threads in times}
    begin = time.perf_counter()
    for pair in itertools.count():
        for count in times:
            library.set_num_threads(count)
            start = time.perf_counter()
            for _ in range(4):
                y = x @ w
                x.T @ y
                optimizers[count].step(params, grads)
            times[count].append(time.perf_counter() - start)
        ratio = min(times[None]) / min(times[1])
        if pair >= 10 and ratio < 1.25:
            return
        assert time.perf_counter() - begin < 40, f"{ratio:.2f} times as long"

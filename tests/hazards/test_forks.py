"""Forks: a child goes on with the right bits, and sees no half of a step."""

import functools
import importlib.util
import inspect
import os
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from common import assert_same_bits
from interpreters import python, sleeping
from promises import (
    STATEFUL,
    Course,
    in_child,
    in_threads,
    linux,
    model,
    promise,
    right,
    uniform,
)

HANGS = "hangs|AssertionError: a child ended with -14"  # SIGALRM, see run_promise


@linux
@pytest.mark.parametrize(
    "options", [{}, {"clipnorm": 1e9}, {"decay": 0.5}, {"momentum": 0.5}], ids=str
)
def test_naive_code_is_right_where_nothing_goes_wrong(options, naive_library, monkeypatch):
    monkeypatch.setenv("NAIVE_LIBRARY", naive_library)
    from naive import naive

    params, grads = model(50_000, 7)
    opt = naive.RMSprop(**options)
    for _ in range(5):
        opt.step(params, grads)
    for p in params:
        assert_same_bits(p, right(p.size, 5, **options))


@pytest.mark.parametrize(
    ("threads", "size"),
    [(2, 100_003), (2, 1 << 22), (None, 1 << 22)],
    ids=["a team", "a team that the child makes again", "default"],
)
@promise(naive=HANGS, patience=3)
def test_a_forked_child_goes_on_with_the_right_bits(library, threads, size):
    library.set_num_threads(threads)
    params, grads = model(size, 3)
    opt = library.RMSprop()
    for _ in range(4):
        opt.step(params, grads)

    def work():
        for _ in range(4):
            opt.step(params, grads)
        for p in params:
            assert_same_bits(p, right(p.size, 8))
        assert opt.iterations == 8

    in_child(work)
    work()


def stepped_in_worker(who, arrays):
    """What a worker of a pool does with a model: with its own copy, and with what it was given."""
    library = importlib.import_module(who)
    params, grads = arrays
    if not params[0].flags.writeable:  # joblib has mapped it into memory
        with pytest.raises(ValueError, match=r"^params\[0\] is read-only"):
            library.RMSprop().step(params, grads)
    opt, params = library.RMSprop(), [p.copy() for p in params]
    for _ in range(3):
        opt.step(params, grads)
    return params


@promise(naive=HANGS, patience=3)
def test_a_pool_of_forked_workers_has_the_right_bits(library):
    library.set_num_threads(2)
    arrays = model(100_003, 3)
    stepped_in_worker(library.__name__, arrays)
    with get_context("fork").Pool(2) as pool:
        for params in pool.starmap(stepped_in_worker, [(library.__name__, arrays)] * 4):
            for p in params:
                assert_same_bits(p, right(p.size, 3))


@pytest.mark.parametrize("backend", ["multiprocessing", "loky"])
@promise(naive=f"{HANGS}|TerminatedWorkerError", patience=4, JOBLIB_START_METHOD="fork")
def test_joblibs_workers_have_the_right_bits(library, backend):
    joblib = importlib.import_module("joblib")
    library.set_num_threads(2)
    arrays = model(500_003, 3)  # over 1 MB: joblib maps it into memory, read-only
    stepped_in_worker(library.__name__, arrays)
    work = joblib.delayed(stepped_in_worker)
    results = joblib.Parallel(n_jobs=2, backend=backend)([work(library.__name__, arrays)] * 4)
    for params in results:
        for p in params:
            assert_same_bits(p, right(p.size, 3))


def wheels_openmp():
    """The OpenMP library that scikit-learn's wheel brings, which all such wheels share."""
    sklearn = importlib.util.find_spec("sklearn")
    if sklearn is None:
        pytest.skip("needs scikit-learn")
    found = sorted(Path(sklearn.origin).parents[1].glob("scikit_learn.libs/libgomp*"))
    return str(found[0]) if found else ""


@pytest.fixture
def one_openmp(monkeypatch):
    """All libraries of a process use the OpenMP of scikit-learn's wheel, as in wheels of theirs."""
    monkeypatch.setenv("LD_PRELOAD", wheels_openmp())


@pytest.mark.usefixtures("one_openmp")
@promise(naive=HANGS, patience=5, OMP_NUM_THREADS=2)
def test_a_first_import_in_a_child_of_a_threaded_parent_finishes(load):
    cluster = importlib.import_module("sklearn.cluster")
    points = np.random.default_rng(0).standard_normal((3000, 4))
    cluster.KMeans(3, n_init=1, random_state=0).fit(points)

    def work():
        library = load()
        library.set_num_threads(2)
        for size in (100_003, 1 << 22):
            params, grads = model(size)
            opt = library.RMSprop()
            for _ in range(4):
                opt.step(params, grads)
            assert_same_bits(params[0], right(size, 4))

    in_child(work)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options", [STATEFUL["plain"], STATEFUL["momentum and averages"]], ids=list(STATEFUL)[:2]
)
@promise(naive="AssertionError: a child ended with (1|-14)", patience=4)
def test_no_child_of_100_forks_sees_half_a_step_of_three_threads(library, threads, options):
    library.set_num_threads(threads)
    models = [uniform(3, 60_000) for _ in range(2)]
    optimizers = [library.RMSprop(**options) for _ in models]
    grads = [np.ones_like(p) for p in models[0]]
    course = Course(library, **options)
    for opt, params in zip(optimizers, models, strict=True):
        opt.step(params, grads)
    stop = threading.Event()

    def stepping(i):
        while not stop.is_set():
            optimizers[i].step(models[i], grads)

    def look():
        for opt, params in zip(optimizers, models, strict=True):
            for _ in range(2):
                done = int(opt.iterations)
                assert course.meets(done, opt, params), f"half a step after {done}"
                opt.step(params, grads)

    def forking():
        try:
            for _ in range(100):
                course.at(max(int(opt.iterations) for opt in optimizers) + 50)
                in_child(look)
        except AssertionError as error:
            failures.append(error)
        finally:
            stop.set()

    failures = []
    in_threads(*(functools.partial(stepping, i) for i in (0, 1, 1)), forking)
    if failures:
        raise failures[0]


@pytest.mark.alone
@promise(native=True)
def test_a_librarys_fork_waits_for_the_steps_under_way_and_for_no_others(library):
    """Steps of three threads overlap all the time: there may be no moment without any."""
    import ctypes

    other = ctypes.CDLL(os.environ["NAIVE_LIBRARY"])
    other.seconds_to_fork.restype = ctypes.c_double
    library.set_num_threads(1)
    size, took, forks, stop = 1 << 21, [], [], threading.Event()

    def stepping():
        params, grads = model(size)
        opt = library.RMSprop()
        while not stop.is_set():
            begin = time.perf_counter()
            opt.step(params, grads)
            took.append(time.perf_counter() - begin)

    def forking():
        while len(took) < 10:
            time.sleep(0.001)
        for _ in range(20):
            forks.append(other.seconds_to_fork())
        stop.set()

    in_threads(stepping, stepping, stepping, forking)
    assert np.median(forks) < 3 * np.median(took), (sorted(forks), sorted(took))


@promise(native=True)
def test_two_forks_at_one_moment_wait_for_a_step_and_both_go_on(library):
    import ctypes

    other = ctypes.CDLL(os.environ["NAIVE_LIBRARY"])
    library.set_num_threads(1)
    size, meeting, rounds = 1 << 22, threading.Barrier(3), 20
    params, grads = model(size)
    opt = library.RMSprop()

    def stepping():
        for _ in range(rounds):
            meeting.wait()
            for _ in range(3):
                opt.step(params, grads)

    def forking():
        for _ in range(rounds):
            meeting.wait()
            time.sleep(0.001)
            other.seconds_to_fork()

    in_threads(stepping, forking, forking)
    assert_same_bits(params[0], right(size, 3 * rounds))


@promise()
def test_a_child_sees_no_half_of_what_an_option_keeps_from_its_first_step_on(library):
    """A slot that the first step with an option makes is the child's wholly, or not at all."""
    size = 1 << 22
    for wait in (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012):
        opt, params = library.RMSprop(), uniform(1, size)
        params[0][...] = 5
        grads = [np.ones_like(params[0])]
        opt.step(params, grads)
        opt.use_ema = True
        worker = threading.Thread(target=opt.step, args=(params, grads))
        worker.start()
        time.sleep(wait)

        def look(opt=opt, params=params, grads=grads):
            opt.step(params, grads)
            for x in [*params, *opt.get_weights()]:
                assert (x == x[0]).all(), "half of a start"

        in_child(look)
        worker.join()


@promise()
def test_a_child_names_the_gradient_that_is_to_blame_in_its_own_step(library):
    """The parent forks while another thread's step is refused, for another gradient."""
    size = 1 << 22
    params, grads = model(size, size)
    bad, worse = ([grads[0].copy(), grads[1].copy()] for _ in range(2))
    bad[0][-1] = worse[1][-1] = np.nan
    for _ in range(4):
        opt = library.RMSprop(nonfinite="raise")
        opt.step(params, grads)

        def refused(which, culprit, opt=opt):
            with pytest.raises(ValueError, match=rf"^grads\[{culprit}\]"):
                opt.step(params, which)

        worker = threading.Thread(target=refused, args=(bad, 0))
        worker.start()
        time.sleep(0.001)  # the fork waits for the step, and comes before the thread goes on
        in_child(lambda refused=refused: refused(worse, 1))
        worker.join()


@promise()
def test_no_child_sees_half_of_set_weights(library):
    opt, (p,) = library.RMSprop(momentum=0.5), uniform(1, 1 << 22)
    opt.build([p])
    states = [[np.full_like(p, value)] * 2 for value in (1, 2)]
    stop = threading.Event()

    def setting():
        while not stop.is_set():
            for state in states:
                opt.set_weights(state)

    def look():
        found = {float(x) for weight in opt.get_weights() for x in (weight.min(), weight.max())}
        assert len(found) == 1, f"half of a state: {found}"

    def forking():
        try:
            for _ in range(30):
                in_child(look)
        except AssertionError as error:
            failures.append(error)
        finally:
            stop.set()

    failures = []
    in_threads(setting, forking)
    if failures:
        raise failures[0]


FORK = """
import os, sys, threading
import numpy as np
from rmsprop_c import RMSprop, _core, set_num_threads
{setup}
params = [np.ones({size}, np.float32), np.ones(3)]
grads = [np.full({size}, 0.5, np.float32), np.ones(3)]
opt = RMSprop(clipnorm=1e9)
opt.step(params, grads)
pid = os.fork()
opt.step(params, grads)
same = all(len(np.unique(p)) == 1 for p in params) and opt.iterations == 2
if pid == 0:
    os._exit(0 if same else 1)
print(same, os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize(
    "setup",
    [
        "set_num_threads(2); _core.configure_minimums(unlocked=1, persistent=1)",
        "set_num_threads(2); _core.configure_minimums(unlocked=1, persistent=1, one_shot=1)",
        "_core.configure_minimums(unlocked=1, one_shot=1, share=1)",
        "",
    ],
    ids=["persistent team", "persistent team, new in the child", "one-shot team", "default"],
)
def test_a_forked_child_finishes_its_steps(setup):
    assert python(FORK.format(setup=setup, size=100_003)) == "True 0"


def test_a_child_never_sees_half_a_step():
    code = """
import os, threading
import numpy as np
from rmsprop_c import RMSprop, _core, set_num_threads
set_num_threads(2)
_core.configure_minimums(unlocked=1, persistent=1)
models = [[np.zeros(200_000, np.float32) for _ in range(3)] for _ in range(2)]
stop = False

def work(params):
    opt, grads = RMSprop(lr=1.0), [np.ones_like(p) for p in params]
    while not stop:
        opt.step(params, grads)

workers = [threading.Thread(target=work, args=(params,)) for params in models]
for worker in workers:
    worker.start()
torn = 0
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        os._exit(sum(len({float(x) for p in params for x in (p.min(), p.max())}) > 1
                     for params in models))
    torn += os.waitpid(pid, 0)[1] != 0
stop = True
for worker in workers:
    worker.join()
print(torn)
"""
    assert python(code) == "0"


def test_a_child_steps_although_its_parent_was_in_a_step_when_it_forked():
    code = """
import os, signal, threading
import numpy as np
from rmsprop_c import RMSprop, _core
_core.configure_minimums(unlocked=1)
params = [np.zeros((300, 300), np.float32)[:, ::2], np.zeros(50_000)]
grads = [np.ones((300, 150), np.float32), np.ones(50_000)]
opt = RMSprop()
stop = False

def work():
    while not stop:
        opt.step(params, grads)

workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
failed = 0
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)   # kills a child that hangs
        before = opt.iterations
        opt.step(params, grads)
        whole = all(len(np.unique(w)) == 1 for w in opt.get_weights())
        os._exit(0 if whole and opt.iterations == before + 1 else 1)
    failed += os.waitpid(pid, 0)[1] != 0
stop = True
for worker in workers:
    worker.join()
print(failed)
"""
    assert python(code) == "0"


FORKING = f"""
import os, signal, sys, threading, time
{inspect.getsource(sleeping)}
import numpy as np
from rmsprop_c import RMSprop
w, g = np.ones(3), np.ones(3)
failed = []
threading.excepthook = lambda caught: failed.append(caught.exc_value)

def step():
    opt.step([w], [g])

def in_a_thread():
    thread = threading.Thread(target=step)
    thread.start()
    return thread

def in_a_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(20)   # kills a child that hangs
        work()
        sys.stdout.flush()
        os._exit(1 if failed else 0)
    return os.waitpid(child, 0)[1]
"""


def test_a_childs_thread_may_have_the_number_of_one_that_was_in_a_step():
    code = f"""{FORKING}
def slow(calls):
    if threading.get_ident() == stepping.ident:
        inside.set()
        leave.wait(20)
    return 0.1

inside, leave, grandchildren = threading.Event(), threading.Event(), []
opt = RMSprop(lr=slow)
stepping = threading.Thread(target=step)
stepping.start()
inside.wait()

def work():
    leave.set()
    for _ in range(3):   # one of them gets the stack, and so the number
        in_a_thread().join()
    threading.Thread(target=lambda: grandchildren.append(in_a_child(step))).start()
    while not grandchildren:
        time.sleep(0.01)
    failed.extend(status for status in grandchildren if status)

print(in_a_child(work))
leave.set()
stepping.join()
"""
    assert python(code) == "0"


def test_a_child_forked_in_a_step_leaves_alone_who_waits_in_its_parent():
    code = f"""{FORKING}
def forking(calls):
    if calls == 0:
        for _ in range(3):
            threads.append(in_a_thread())
            sleeping(threads[-1])
        child.append(os.fork())
        if child == [0]:
            signal.alarm(20)
            threading.stack_size(1 << 20)
            for _ in range(2):   # glibc then unmaps the stacks of those that wait
                thread = threading.Thread(target=int)
                thread.start()
                thread.join()
    return 0.1

threads, child = [], []
threading.stack_size(64 << 20)
opt = RMSprop(lr=forking)
step()
if child == [0]:
    in_a_thread().join()
    os._exit(0 if opt.iterations == 2 and not failed else 1)
for thread in threads:
    thread.join()
print(os.waitpid(child[0], 0)[1], opt.iterations)
"""
    assert python(code) == "0 4"

"""What breaks packages of this kind: promises that ours keeps, and naive code breaks.

A test is a function of a library: of rmsprop_c, which must come through, and of naive/naive.py,
which must fail in the way that is stated. It runs in a process of its own, under a time-out,
because naive code may hang or crash. Checkpoints have their hazards in test_checkpoint.py.
"""

import contextlib
import functools
import importlib.util
import inspect
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from common import assert_same_bits, layouts, place

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, /proc and signals")

TESTS = Path(__file__).parent
LIBRARIES = {"ours": "rmsprop_c", "naive": "naive"}
PROMISES = {}
HANGS = "hangs|AssertionError: a child ended with -14"  # SIGALRM, see run_promise
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
two_processors = pytest.mark.skipif(PROCESSORS < 2, reason="needs two processors")


def promise(naive=None, timeout=60, patience=60, native=False, **environment):
    """Make a test of a function of a library.

    `naive` is a pattern of how the naive code ends, which gets `patience` seconds (None: it is not
    tried); `native` says that the test itself calls naive.c; `environment` is the process's.
    RMSPROP_C_PATIENCE multiplies the time that ours gets, for code that is instrumented.
    """
    timeout *= int(os.environ.get("RMSPROP_C_PATIENCE", "1"))

    def decorate(check):
        signature = inspect.signature(check)
        arguments = [name for name in signature.parameters if name not in ("library", "load")]
        names = ["who", "request", *arguments]

        @functools.wraps(check)
        def test(who, request, **given):
            variables = {name: str(value) for name, value in environment.items()}
            if native or who == "naive":
                variables["NAIVE_LIBRARY"] = request.getfixturevalue("naive_library")
            for name, value in given.items():
                given[name] = str(value) if isinstance(value, Path) else value
            seconds = timeout if who == "ours" else patience
            outcome, log = outcome_of(check.__name__, who, given, seconds, variables)
            wanted = "kept" if who == "ours" else naive
            assert re.match(f"(?:{wanted})", outcome), f"{outcome}, not {wanted!r}\n{log}"

        del test.__wrapped__  # pytest would read its signature
        test.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        )
        PROMISES[check.__name__] = check
        test = pytest.mark.timeout(timeout + 20)(test)
        return pytest.mark.parametrize("who", LIBRARIES if naive else ["ours"])(test)

    return decorate


def outcome_of(name, who, given, seconds, variables):
    """How a promise ended in a process of its own: kept, hangs, a signal or an exception."""
    code = f"import test_hazards; test_hazards.run_promise({name!r}, {who!r}, {given!r})"
    paths = [str(TESTS), str(TESTS / "naive"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PATIENCE": str(seconds)}
    # Files and not pipes: children that outlive the process would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **own, **variables},
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=seconds + 1)
        except subprocess.TimeoutExpired:
            status = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too, which may hang or linger
        process.wait()
        printed, logged = (
            file.seek(0) or file.read().decode(errors="replace").strip() for file in (out, log)
        )
    if status is None:
        return "hangs", logged
    if status < 0:
        return signal.Signals(-status).name, logged
    return printed.rpartition("\n")[2] or f"exit {status}: {logged}", logged


def run_promise(name, who, given):
    """What the process does: print `kept`, or the exception."""
    # A child that hangs ends itself, also where nobody is left to end it. Not by faulthandler,
    # whose watchdog thread deadlocks in a forked child.
    patience = int(os.environ["PATIENCE"])
    os.register_at_fork(after_in_child=lambda: signal.alarm(patience))

    def load():
        return importlib.import_module(LIBRARIES[who])

    check = PROMISES[name]
    first = load if "load" in inspect.signature(check).parameters else load()
    try:
        check(first, **given)
        print("kept", flush=True)
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
    os._exit(0)  # naive code may have left a heap behind that can't be taken down


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Makes a library of a C file by this machine's compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for the naive code")

    def compiled(source, *flags):
        library = tmp_path_factory.mktemp("compiled") / f"{source.stem}.so"
        command = [compiler, "-O3", "-shared", "-fPIC", *flags, str(source), "-o", str(library)]
        made = subprocess.run([*command, "-lm"], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"{source.name} does not compile here: {made.stderr.strip()}")
        return str(library)

    return compiled


@pytest.fixture(scope="session")
def naive_library(compiled):
    """Where naive.c lies, compiled."""
    return compiled(TESTS / "naive" / "naive.c", "-ffp-contract=off", "-fopenmp")


@pytest.fixture
def failing(compiled, monkeypatch):
    """The calls of failing.c come before those of the system, in the promise's process."""
    monkeypatch.setenv("LD_PRELOAD", compiled(TESTS / "failing.c", "-ldl"))


def in_child(work):
    """Do the work in a forked child, which must end well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended == 0, f"a child ended with {ended}"


def in_each_case(cases, work):
    """Do the work with each case, by name, in a forked child: naive code may crash in any."""
    broken = []
    for name, case in cases.items():
        try:
            in_child(lambda case=case: work(case))
        except AssertionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            broken.append(name)
    which = "all" if len(broken) == len(cases) else ", ".join(broken)
    assert not broken, f"broken in {which}"


def in_threads(*works):
    workers = [threading.Thread(target=work) for work in works]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


PERIOD = 1009


def model(*sizes):
    """Parameters and gradients that repeat themselves, so that `right` costs nothing."""
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((2, PERIOD)).astype(np.float32)
    return tuple([np.resize(pattern, n) for n in sizes] for pattern in patterns)


def right(size, steps, first_iteration=0, **options):
    """A parameter of `model` after so many steps, from the reference."""
    from rmsprop_c import reference

    (p,), (g,) = model(PERIOD)
    a, m = np.zeros_like(p), np.zeros_like(p)
    for t in range(first_iteration, first_iteration + steps):
        reference.step([p], [g], [a], t, [m], **options)
    return np.resize(p, size)


def uniform(count, size):
    """A model whose elements all go the same way, so that half a step shows."""
    return [np.zeros(size, np.float32) for _ in range(count)]


class Course:
    """What the parameter and the weights of one element are after any number of calls."""

    def __init__(self, library, **options):
        self.opt, self.p = library.RMSprop(**options), np.zeros(1, np.float32)
        self.states = [[0.0]]

    def at(self, calls):
        while len(self.states) <= calls:
            self.opt.step([self.p], [np.ones(1, np.float32)])
            self.states.append([float(x[0]) for x in [self.p, *self.opt.get_weights()]])
        return self.states[calls]

    def meets(self, calls, opt, params):
        """Are all elements of each kind of array what they are here?"""
        arrays, count, expected = [*params, *opt.get_weights()], len(params), self.at(calls)
        return len(arrays) == count * len(expected) and all(
            (x == expected[i // count]).all() for i, x in enumerate(arrays)
        )


STATEFUL = {
    "plain": {},
    "momentum and averages": {"momentum": 0.9, "use_ema": True},
    "accumulation": {"gradient_accumulation_steps": 3},
    "cleared gradients": {"zero_grad": True, "momentum": 0.5},
}
some_options = pytest.mark.parametrize("options", STATEFUL.values(), ids=STATEFUL)


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


# Forks


@pytest.mark.parametrize(
    ("threads", "size"),
    [(2, 100_003), (2, 1 << 22), (None, 1 << 22)],
    ids=["a team", "a team that the child makes anew", "default"],
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


# Threads


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
        for threads in times:
            library.set_num_threads(threads)
            start = time.perf_counter()
            for _ in range(4):
                y = x @ w
                x.T @ y
                optimizers[threads].step(params, grads)
            times[threads].append(time.perf_counter() - start)
        ratio = min(times[None]) / min(times[1])
        if pair >= 10 and ratio < 1.25:
            return
        assert time.perf_counter() - begin < 40, f"{ratio:.2f} times as long"


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


# Arrays


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def mapped(x):
    """The values in a file that is mapped into memory to be read."""
    path = Path(os.environ["TMPDIR"], "mapped.npy")
    np.save(path, x)
    return np.load(path, mmap_mode="r")


def odd_view(x):
    return x.reshape(-1).view(np.uint8)[1:13].view(np.float32)


def memory(*arrays):
    """All bytes of arrays, and of those that they are views of."""
    seen = []
    for x in arrays:
        while isinstance(x, np.ndarray):
            seen.append((x.tobytes(), x.dtype, x.shape, x.strides))
            x = x.base
    return seen


# What is refused: of params or grads, which one, what it is made into, the error, and its words.
REFUSED = {
    "a read-only parameter": ("params", 1, read_only, ValueError, "read-only"),
    "a parameter mapped to be read": ("params", 1, mapped, ValueError, "read-only"),
    "a broadcast parameter": (
        "params",
        1,
        lambda x: np.broadcast_to(x[:1], x.shape),
        ValueError,
        "read-only",
    ),
    "a float64 gradient": ("grads", 1, lambda x: x.astype(np.float64), TypeError, "float64"),
    "a float16 gradient": ("grads", 1, lambda x: x.astype(np.float16), TypeError, "float16"),
    "an integer gradient": ("grads", 1, lambda x: x.astype(np.int32), TypeError, "int32"),
    "a complex gradient": ("grads", 1, lambda x: x.astype(np.complex64), TypeError, "complex64"),
    "a gradient of objects": ("grads", 1, lambda x: x.astype(object), TypeError, "object"),
    "a parameter of objects": ("params", 1, lambda x: x.astype(object), TypeError, "object"),
    "an integer parameter": ("params", 1, lambda x: x.astype(np.int32), TypeError, "int32"),
    "a short gradient": ("grads", 1, lambda x: x[:2].copy(), ValueError, r"\(2,\)"),
    "an empty gradient": ("grads", 1, lambda x: x[:0].copy(), ValueError, r"\(0,\)"),
    "a transposed gradient": ("grads", 0, lambda x: x.T, ValueError, r"\(3, 4\)"),
    "a flat gradient": ("grads", 0, lambda x: x.ravel(), ValueError, r"\(12,\)"),
    "a gradient to broadcast": ("grads", 0, lambda x: x[:1], ValueError, r"\(1, 3\)"),
    "a masked parameter": (
        "params",
        1,
        lambda x: np.ma.array(x, mask=[0, 1, 0]),
        TypeError,
        "masked",
    ),
    "a masked gradient": (
        "grads",
        1,
        lambda x: np.ma.array(x, mask=[0, 1, 0]),
        TypeError,
        "masked",
    ),
}
# Two arrays of a model that share memory, and the second of them made from the first.
OVERLAPS = {
    "the same parameter twice": ("params", 1, "params", 3, lambda x: x),
    "two views of a parameter": ("params", 1, "params", 3, lambda x: x[:]),
    "a parameter reversed": ("params", 1, "params", 3, lambda x: x[::-1]),
    "a parameter byte-swapped": ("params", 1, "params", 3, lambda x: x.view(">f4")),
    "a row of a parameter": ("params", 0, "params", 1, lambda x: x[1]),
    "a column of a parameter": ("params", 0, "params", 1, lambda x: x[1:, 1]),
    "a parameter at an odd address": ("params", 0, "params", 1, odd_view),
    "a parameter as its gradient": ("params", 1, "grads", 1, lambda x: x),
    "a parameter as another's gradient": ("params", 1, "grads", 3, lambda x: x[:]),
    "a row of a parameter as a gradient": ("params", 0, "grads", 1, lambda x: x[2]),
    "an odd view of a parameter as a gradient": ("params", 0, "grads", 1, odd_view),
}


def small_model():
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (3,), (5,), (3,)]
    return tuple([rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(2))


def check_refused(library, change, exception, words, options, before):
    """A step with a changed model after `before` good ones is refused and leaves no trace."""
    opt, (params, grads) = library.RMSprop(**options), small_model()
    twin, (twin_params, twin_grads) = library.RMSprop(**options), small_model()

    def good_step():
        for which in (grads, twin_grads):
            for g, again in zip(which, small_model()[1], strict=True):
                g[...] = again
        opt.step(params, grads)
        twin.step(twin_params, twin_grads)

    for _ in range(before):
        good_step()
    changed_params, changed_grads = change(list(params), list(grads))
    seen = memory(*changed_params, *changed_grads, *params, *grads, *opt.get_weights())
    count = opt.iterations
    with pytest.raises(exception, match=f"^({words})") as raised:
        opt.step(changed_params, changed_grads)
    assert type(raised.value) is exception
    after = memory(*changed_params, *changed_grads, *params, *grads, *opt.get_weights())
    assert after == seen, "something was changed"
    assert opt.iterations == count
    for _ in range(3):
        good_step()
    found, wanted = [*params, *opt.get_weights()], [*twin_params, *twin.get_weights()]
    for x, y in zip(found, wanted, strict=True):
        assert_same_bits(x, y)


def check_refused_in_any_state(library, change, exception, words):
    for options, before in itertools.product(STATEFUL.values(), (0, 1, 3)):
        check_refused(library, change, exception, words, options, before)


@pytest.fixture
def temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.usefixtures("temporary_files")
@promise(naive="AssertionError: broken in all")
def test_an_array_that_cannot_be_used_is_refused_by_name_and_nothing_changes(library):
    library.set_num_threads(1)

    def work(case):
        which, i, convert, exception, words = case

        def change(params, grads):
            arrays = params if which == "params" else grads
            arrays[i] = convert(arrays[i])
            return params, grads

        pattern = rf"{which}\[{i}\] .*{words}"
        check_refused_in_any_state(library, change, exception, pattern)

    in_each_case(REFUSED, work)


@promise(naive="AssertionError: broken in all")
def test_arrays_that_overlap_are_refused_by_name_and_nothing_changes(library):
    library.set_num_threads(1)

    def work(case):
        first, i, second, j, view = case

        def change(params, grads):
            arrays = {"params": params, "grads": grads}
            arrays[second][j] = view(arrays[first][i])
            return params, grads

        one, other = rf"{first}\[{i}\]", rf"{second}\[{j}\]"
        pattern = f"{one} shares memory with {other}|{other} shares memory with {one}"
        check_refused_in_any_state(library, change, ValueError, pattern)

    in_each_case(OVERLAPS, work)


# In these the naive loop over the elements in memory is right.
ALIKE = [{"plain", "unaligned"}, {"plain"}, {"unaligned"}, {"fortran"}, {"permuted"}]
LAYOUT_PAIRS = {
    f"{p} parameter, {g} gradient": (p, g)
    for p, g in itertools.product(layouts(3), layouts(3))
    if {p, g} not in ALIKE
}


@promise(naive="AssertionError: broken in all")
def test_any_layout_gets_the_right_bits_and_no_other_byte_changes(library):
    library.set_num_threads(1)
    shape = (5, 4, 7)
    (values,), (gradients,) = model(5 * 4 * 7)
    values, gradients = values.reshape(shape), gradients.reshape(shape)
    wanted = right(values.size, 3).reshape(shape)

    def work(case):
        p_layout, g_layout = (layouts(3)[name] for name in case)
        p, p_bytes = place(values, **p_layout)
        g, g_bytes = place(gradients, **g_layout)
        opt, untouched = library.RMSprop(), g_bytes.copy()
        for _ in range(3):
            opt.step([p], [g])
        assert_same_bits(p, wanted)
        assert (p_bytes == place(wanted, **p_layout)[1]).all(), "stray writes"
        assert (g_bytes == untouched).all(), "a gradient was written to"

    in_each_case(LAYOUT_PAIRS, work)


@promise(naive="AssertionError|Failed: DID NOT RAISE|SIGSEGV|SIGABRT|SIGBUS")
def test_arrays_resized_between_steps_are_found_where_they_are_now(library):
    size = 300_000
    params, grads = ([x[0].copy()] for x in model(size))  # they own their memory
    opt = library.RMSprop()
    library.set_num_threads(1)
    step = opt.bind(params, grads)
    step()
    for done in range(1, 5):
        kept = params[0].copy(), grads[0].copy()
        for x in (params[0], grads[0]):
            x.resize(0, refcheck=False)
        hole = np.full(size, 7, np.float32)  # takes the place of what was freed
        for x, values in zip((params[0], grads[0]), kept, strict=True):
            x.resize(2 * size, refcheck=False)
            if opt.iterations == done:
                with pytest.raises(ValueError, match=r"^(params|grads)\[0\] has shape \(600000,\)"):
                    step()
            x.resize(size, refcheck=False)
            x[...] = values
        step()
        assert (hole == 7).all(), "freed memory was written to"
        assert_same_bits(params[0], right(size, done + 1))


# Interrupts


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


# Numbers


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

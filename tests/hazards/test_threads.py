"""The thread policy, and a step that is all or nothing for other threads and forks."""

import copy
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from common import assert_same_bits
from threadpoolctl import threadpool_limits

from rmsprop_c import (
    RMSprop,
    _core,
    get_num_threads,
    reference,
    schedules,
    set_num_threads,
    threads,
)

OPENMP = _core.openmp_version() != 0


def python(code, timeout=120, **environment):
    """What a new interpreter prints; a hang or a crash fails the test."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    shapes = [(300, 400), (400,), (50_000,), (7,)]
    params = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    grads = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    return params, grads


def in_threads(work, count):
    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def expected(params, grads, steps):
    params = [p.copy() for p in params]
    accumulators = [np.zeros_like(p) for p in params]
    for t in range(steps):
        reference.step(params, grads, accumulators, t)
    return params


def test_set_num_threads_is_seen_by_get_num_threads():
    default = get_num_threads()
    try:
        set_num_threads(3)
        assert get_num_threads() == (3 if OPENMP else 1)
    finally:
        set_num_threads(None)
    assert get_num_threads() == default


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (5000, ValueError),
        (True, TypeError),
        (2.0, TypeError),
        ("2", TypeError),
    ],
)
def test_a_bad_thread_count_is_refused_by_name(value, error):
    with pytest.raises(error, match=f"n is {value!r}"):
        set_num_threads(value)


def test_the_environment_sets_the_thread_count():
    code = "import rmsprop_c; print(rmsprop_c.get_num_threads())"
    assert python(code, RMSPROP_C_NUM_THREADS="3") == ("3" if OPENMP else "1")


@pytest.mark.parametrize("value", ["0", "many", "1.5"])
def test_a_bad_thread_count_in_the_environment_is_an_import_error(value):
    code = "try:\n import rmsprop_c\nexcept ImportError as error:\n print(error)"
    assert f"RMSPROP_C_NUM_THREADS is '{value}'" in python(code, RMSPROP_C_NUM_THREADS=value)


def test_the_default_follows_omp_num_threads_and_affinity():
    code = "import rmsprop_c; print(rmsprop_c.get_num_threads())"
    assert python(code, OMP_NUM_THREADS="1", RMSPROP_C_NUM_THREADS="") == "1"
    pinned = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {code}"
    assert python(pinned, RMSPROP_C_NUM_THREADS="") == "1"


def test_threadpoolctl_limits_the_default():
    with threadpool_limits(1):
        assert get_num_threads() == 1


@pytest.mark.parametrize(
    ("files", "expected_quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_containers_quota_is_read(tmp_path, files, expected_quota):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert threads.quota(str(tmp_path)) == expected_quota
    count = threads.processors(str(tmp_path))
    assert 1 <= count <= max(1, -int(-min(expected_quota, 1024) // 1))


@pytest.mark.usefixtures("team_at_any_size")
@pytest.mark.parametrize("limit", ["OMP_THREAD_LIMIT", "OMP_DYNAMIC"])
def test_each_element_is_updated_once_when_openmp_gives_fewer_threads(limit):
    code = """
import numpy as np
from rmsprop_c import RMSprop, _core, set_num_threads
_core.configure_minimums(persistent=1)
set_num_threads(8)
p = np.ones(100_003, np.float32)
opt = RMSprop(lr=0.5, clipnorm=1e9)
opt.step([p], [np.ones_like(p)])
print(len(np.unique(p)), len(np.unique(opt.get_weights()[0])))
"""
    assert python(code, **{limit: "1" if limit == "OMP_THREAD_LIMIT" else "true"}) == "1 1"


def test_a_stack_that_no_thread_can_have_leaves_the_step_serial():
    code = """
import numpy as np
from rmsprop_c import RMSprop, _core, set_num_threads
_core.configure_minimums(persistent=1)
set_num_threads(4)
p = np.ones(100_003, np.float32)
RMSprop(lr=0.5).step([p], [np.ones_like(p)])
print(len(np.unique(p)))
"""
    assert python(code, OMP_STACKSIZE="900000G") == "1"


def test_a_large_step_uses_a_team_of_its_own_by_default(model):
    params, grads = model
    wanted, count = expected(params, grads, 2), threading.active_count()
    before = _core.configure_minimums(unlocked=1, one_shot=1, share=1)
    try:
        opt = RMSprop()
        for _ in range(2):
            opt.step(params, grads)
    finally:
        _core.configure_minimums(**before)
    for found, want in zip(params, wanted, strict=True):
        assert_same_bits(found, want)
    assert threading.active_count() == count  # other tests' libraries may have left some


@pytest.mark.usefixtures("team_at_any_size")
def test_steps_of_one_optimizer_from_many_threads_are_serialised(model):
    params, grads = model
    wanted = expected(params, grads, 200)
    opt = RMSprop()

    def work():
        for _ in range(50):
            opt.step(params, grads)

    in_threads(work, 4)
    assert opt.iterations == 200
    for found, want in zip(params, wanted, strict=True):
        assert_same_bits(found, want)


@pytest.mark.usefixtures("team_at_any_size")
def test_staged_steps_from_many_threads_are_serialised(model):
    params, grads = model
    wanted = expected(params, grads, 60)
    strided = [np.repeat(p, 2, axis=-1)[..., ::2] for p in params]
    opt = RMSprop()

    def work():
        for _ in range(20):
            opt.step(strided, grads)

    in_threads(work, 3)
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


def test_a_refused_thread_count_does_not_refuse_smaller_ones():
    code = """
import numpy as np
from rmsprop_c import RMSprop, _core, set_num_threads
_core.configure_minimums(unlocked=1, persistent=1)
p, g = np.ones(100_003, np.float32), np.ones(100_003, np.float32)
opt = RMSprop(lr=0.5)
for n in (1024, 2, 1024, 1):
    set_num_threads(n)
    opt.step([p], [g])
print(len(np.unique(p)))
"""
    assert python(code, OMP_STACKSIZE="900000G") == "1"


def test_a_list_may_change_while_a_long_step_runs(model):
    params, grads = model
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


STEP = """
import numpy as np
from rmsprop_c import RMSprop, _core, set_num_threads
_core.configure_minimums(unlocked=1, persistent=1)
set_num_threads(2)
p, q = np.ones(1000), np.ones(1000)
RMSprop().step([p], [p * 0.5])
set_num_threads(1)
RMSprop().step([q], [q * 0.5])
assert p.tobytes() == q.tobytes()
"""


@pytest.mark.parametrize("size", ["262144B", "262144b", "512", " 512 k", "1M", "1 m", "1B", "900G"])
@pytest.mark.parametrize("name", ["OMP_STACKSIZE", "GOMP_STACKSIZE"])
def test_a_team_is_had_with_a_stack_size_in_any_unit_or_done_without(name, size):
    environment = {k: v for k, v in os.environ.items() if not k.endswith("OMP_STACKSIZE")}
    subprocess.run([sys.executable, "-c", STEP], env=environment | {name: size}, check=True)


def sleeping(thread, deadline=20):
    """Wait until a thread sleeps, as Linux says, and keeps on sleeping while others can run."""
    path, seen = f"/proc/self/task/{thread.native_id}/stat", 0
    end = time.monotonic() + deadline
    while seen < 5 and time.monotonic() < end:
        time.sleep(0.01)
        with open(path) as stat:
            seen = seen + 1 if stat.read().rpartition(")")[2].split()[0] == "S" else 0


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
def test_threads_that_step_all_the_time_take_turns(model):
    opt, barrier = RMSprop(), threading.Barrier(3)
    opt.build(model[0])
    made = []

    def train():
        params, mine = [p.copy() for p in model[0]], 0
        barrier.wait()
        while opt.iterations < 3000:
            opt.step(params, model[1])
            mine += 1
        made.append(mine)

    in_threads(train, 3)
    assert min(made) > 300, made


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

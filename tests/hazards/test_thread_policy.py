"""How many threads a step gets: what was asked for, and what limits it."""

import os
import subprocess
import sys
import threading

import pytest
from common import assert_same_bits
from interpreters import expected, python
from threadpoolctl import threadpool_limits

from rmsprop_c import (
    RMSprop,
    _core,
    get_num_threads,
    set_num_threads,
    threads,
)

OPENMP = _core.openmp_version() != 0


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


def test_a_large_step_uses_a_team_of_its_own_by_default(threaded_model):
    params, grads = threaded_model
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

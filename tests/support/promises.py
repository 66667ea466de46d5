"""What breaks packages of this kind: promises that ours keeps, and naive code breaks.

A test is a function of a library: of rmsprop_c, which must come through, and of naive/naive.py,
which must fail in the way that is stated. It runs in a process of its own, under a time-out,
because naive code may hang or crash. Checkpoints have their hazards in tests/checkpoint.
"""

import contextlib
import functools
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent


linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, /proc and signals")
LIBRARIES = {"ours": "rmsprop_c", "naive": "naive"}


PROMISES = {}


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
            outcome, log = outcome_of(check, who, given, seconds, variables)
            wanted = "kept" if who == "ours" else naive
            assert re.match(f"(?:{wanted})", outcome), f"{outcome}, not {wanted!r}\n{log}"

        del test.__wrapped__  # pytest would read its signature
        test.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        )
        PROMISES[check.__name__] = check
        test = linux(pytest.mark.timeout(timeout + 20)(test))
        return pytest.mark.parametrize("who", LIBRARIES if naive else ["ours"])(test)

    return decorate


def outcome_of(check, who, given, seconds, variables):
    """How a promise ended in a process of its own: kept, hangs, a signal or an exception."""
    file, name = Path(inspect.getsourcefile(check)), check.__name__
    code = f"import promises, {file.stem}; promises.run_promise({name!r}, {who!r}, {given!r})"
    paths = [file.parent, FOLDER / "naive", FOLDER, os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PATIENCE": str(seconds)}
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


def memory(*arrays):
    """All bytes of arrays, and of those that they are views of."""
    seen = []
    for x in arrays:
        while isinstance(x, np.ndarray):
            seen.append((x.tobytes(), x.dtype, x.shape, x.strides))
            x = x.base
    return seen


def small_model():
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (3,), (5,), (3,)]
    return tuple([rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(2))

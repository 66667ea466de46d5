"""Checkpoints: the same bits after a break, the old file or the new one, and hostile files."""

import contextlib
import errno
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzz import CORPUS, npy, pack, seeds, unpack, with_meta
from hypothesis import given, strategies as st
from naive import checkpoints as naive
from test_options import (
    OPTION_SETS,
    as_form,
    assert_same_future,
    assert_same_snapshot,
    copied,
    everything,
    examples,
    made,
    model,
    options,
)

from rmsprop_c import RMSprop, checkpoint, schedules

SCHEDULES = {
    "CosineDecay": schedules.CosineDecay(0.1, 4, warmup_target=0.3, warmup_steps=2),
    "CosineDecayRestarts": schedules.CosineDecayRestarts(0.1, 2, m_mul=0.5),
    "ExponentialDecay": schedules.ExponentialDecay(0.1, 3, 0.7, staircase=True),
    "InverseTimeDecay": schedules.InverseTimeDecay(0.1, 2, 0.5),
    "PiecewiseConstantDecay": schedules.PiecewiseConstantDecay([2, 5], [0.1, 1 / 3, 0.01]),
    "PolynomialDecay": schedules.PolynomialDecay(0.1, 4, power=2.0, cycle=True),
}


def through_a_file(opt, path, **arguments):
    opt.save(path)
    return type(opt).load(path, **arguments)


def only(folder):
    """The names in a folder."""
    return sorted(os.listdir(folder))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@examples(150)
@given(
    arguments=options((0.01, *SCHEDULES.values())),
    seed=st.integers(0, 99),
    calls=st.integers(0, 8),
    form=st.sampled_from(["list", "tuple", "dict", "bare"]),
    order=st.sampled_from("CF"),
)
def test_a_loaded_run_continues_any_options_with_the_same_bits_also_within_a_cycle(
    tmp_path, arguments, seed, calls, form, order
):
    if form == "bare":
        arguments = {k: v for k, v in arguments.items() if "scale" not in k and "excl" not in k}
    opt = made(arguments, form)
    params, grads = model("mixed", 9, seed, nonfinite=arguments.get("nonfinite") == "skip")
    if form == "bare":
        params, grads = params[:1], [g[:1] for g in grads]
    params = [np.array(x, order=order) for x in params]
    for g in grads[:calls]:
        opt.step(as_form(params, form), as_form(copied(g), form))
    before = everything(opt)
    twin = through_a_file(opt, tmp_path / "run.npz")
    assert everything(twin) == everything(opt) == before
    assert_same_future(opt, twin, params, grads[calls:], form)


@pytest.mark.parametrize("calls", range(8))
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on_where_it_was(name, calls, tmp_path):
    assert set(SCHEDULES) == set(schedules.KNOWN)
    opt = RMSprop(lr=SCHEDULES[name], gradient_accumulation_steps=2)
    params, grads = model("mixed", 14, 3)
    for g in grads[:calls]:
        opt.step(params, g)
    twin = through_a_file(opt, tmp_path / "run.npz")
    assert twin._get_objects()[0] == SCHEDULES[name]
    assert_same_future(opt, twin, params, grads[calls:], "list")


def test_the_naive_way_begins_decay_anew(tmp_path):
    opt, twin = RMSprop(decay=0.5), RMSprop(decay=0.5)
    params, grads = model("mixed", 4, 0)
    twin.build(params)
    for g in grads[:3]:
        opt.step(params, g)
    naive.save_in_place(opt, tmp_path / "run.npz")
    naive.resume(twin, tmp_path / "run.npz")
    assert twin.get_weights()[0].tobytes() == opt.get_weights()[0].tobytes()
    with pytest.raises(AssertionError, match="params"):
        assert_same_future(opt, twin, params, grads[3:], "list")


class Halving:
    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start / 2**step

    def get_config(self):
        return {"start": self.start}


class Named(RMSprop):
    def __init__(self, label="", **arguments):
        super().__init__(**arguments)
        self.label = label

    def get_config(self):
        return super().get_config() | {"label": self.label}


def test_classes_of_ones_own_come_back(tmp_path):
    opt = Named("ü\n", lr=Halving(0.5), momentum=0.5)
    params, grads = model("mixed", 6, 1)
    opt.step(params, grads[0])
    twin = through_a_file(opt, tmp_path / "run.npz", custom_objects={"Halving": Halving})
    assert type(twin) is Named
    assert twin.label == "ü\n"
    assert_same_future(opt, twin, params, grads[1:], "list")
    with pytest.raises(ValueError, match=r"not a usable .*: Unknown schedule: Halving"):
        Named.load(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="it holds a 'Named', not a 'RMSprop'"):
        RMSprop.load(tmp_path / "run.npz")


@pytest.mark.parametrize("keys", [(0, 1), ("1", 1), (-(2**70), "\ud800"), ("", "a" * 9999)])
def test_keys_keep_their_types(keys, tmp_path):
    opt = RMSprop(
        lr_scale=dict(zip(keys, (0.5, 2.0), strict=True)),
        exclude_from_weight_decay=keys[1:],
        weight_decay=0.5,
    )
    twin = through_a_file(opt, tmp_path / "fresh.npz")
    params = {key: np.ones(3) for key in keys}
    opt.step(params, {key: np.ones(3) for key in keys})
    again = through_a_file(opt, tmp_path / "run.npz")
    twin.step({key: np.ones(3) for key in keys}, {key: np.ones(3) for key in keys})
    for found in (twin, again):
        assert_same_snapshot(found, opt)
        assert found._keys() == keys
        assert repr(found) == repr(opt)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_a_model_without_arrays_and_one_of_64_dimensions_come_back(form, tmp_path):
    dims = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    for params in ([], [np.zeros((1,) * dims), np.zeros((0, 10**6), np.float32)]):
        opt = RMSprop()
        opt.build(dict(enumerate(params)) if form == "dict" else params)
        assert_same_snapshot(through_a_file(opt, tmp_path / "run.npz"), opt)


def test_state_of_any_bits_comes_back(tmp_path):
    opt = RMSprop()
    values = np.frombuffer(np.random.default_rng(0).bytes(8 * 4096), np.float64)
    opt.build([values, values.view(np.float32)])
    opt.iterations = 2**62
    with np.errstate(all="ignore"):
        opt.set_weights([values, values.view(np.float32)])
    twin = through_a_file(opt, tmp_path / "run.npz")
    assert [x.tobytes() for x in twin.weights] == [x.tobytes() for x in opt.weights]
    assert twin.iterations == 2**62


@pytest.mark.parametrize("name", OPTION_SETS)
def test_numpy_alone_reads_it(name, tmp_path):
    opt = RMSprop(**OPTION_SETS[name])
    params, grads = model("mixed", 4, 2)
    for g in grads:
        opt.step(params, g)
    opt.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as archive:
        meta = json.loads(archive["meta"].tobytes())
        assert meta["iterations"] == opt.iterations
        assert RMSprop.from_config(meta["config"]).get_config() == opt.get_config()
        slots = opt._snapshot().slots
        assert archive.files == ["meta"] + [f"{slot}.{i}" for slot in slots for i in range(5)]
        for slot, arrays in slots.items():
            for i, x in enumerate(arrays):
                found = archive[f"{slot}.{i}"]
                assert (found.dtype, found.shape, found.tobytes()) == (
                    x.dtype,
                    x.shape,
                    x.tobytes(),
                )
    with zipfile.ZipFile(tmp_path / "run.npz") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("name", OPTION_SETS)
def test_equal_states_make_equal_bytes(name, tmp_path):
    opts = [RMSprop(**OPTION_SETS[name]) for _ in range(2)]
    params, grads = model("mixed", 5, 2)
    for opt in opts:
        own = copied(params)
        for g in grads:
            opt.step(own, copied(g))
    for i, opt in enumerate((*opts, opts[0])):
        opt.save(tmp_path / f"{i}")
    through_a_file(opts[0], tmp_path / "0").save(tmp_path / "3")
    assert len({(tmp_path / str(i)).read_bytes() for i in range(4)}) == 1


def test_files_of_this_format_stay_readable_and_are_still_written_so(tmp_path):
    written = seeds()
    assert {path.stem for path in CORPUS.glob("*.npz")} == set(written)
    for name, text in written.items():
        assert (CORPUS / f"{name}.npz").read_bytes() == text
        through_a_file(RMSprop.load(CORPUS / f"{name}.npz"), tmp_path / name)
        assert (tmp_path / name).read_bytes() == text


# What is written, and how


def optimizer(value=0.5, size=6):
    """An optimizer whose state has one value, and so many numbers."""
    opt = RMSprop(rho=0.0)
    opt.step([np.ones(size)], [np.full(size, float(value))])
    return opt


def test_a_new_file_has_the_permissions_of_the_umask_and_a_replaced_one_keeps_its_own(tmp_path):
    path = tmp_path / "run.npz"
    before = os.umask(0o027)
    try:
        optimizer().save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        optimizer(2).save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)
    assert RMSprop.load(path).weights[0][0] == 4
    assert only(tmp_path) == ["run.npz"]


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_one(dangling, tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "best.npz", tmp_path / "run.npz"
    link.symlink_to("far/best.npz")
    if not dangling:
        optimizer().save(target)
    optimizer(2).save(link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert RMSprop.load(target).weights[0][0] == 4
    assert only(tmp_path) == ["far", "run.npz"]
    assert only(tmp_path / "far") == ["best.npz"]


@pytest.mark.parametrize("kind", [str, os.fsencode, Path, lambda path: os.path.relpath(path)])
def test_any_kind_of_path_will_do(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = kind(tmp_path / "run")
    assert through_a_file(optimizer(), path).iterations == 1
    assert only(tmp_path) == ["run"]


@pytest.mark.parametrize("path", [0, None, 1.5, True])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(TypeError):
        optimizer().save(path)
    with pytest.raises(TypeError):
        RMSprop.load(path)


@pytest.mark.parametrize("name", ["a" * 255, "\N{OLD PERSONAL COMPUTER}" * 63, ".npz" + "é" * 125])
def test_the_longest_names_will_do(name, tmp_path):
    assert through_a_file(optimizer(), tmp_path / name).iterations == 1
    assert only(tmp_path) == [name]


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    before = only(tmp_path)
    for name, error in {"folder": IsADirectoryError, "pipe": OSError, "loop": OSError}.items():
        with pytest.raises(error, match=name):
            optimizer().save(tmp_path / name)
    for path in ("/dev/full", "/dev/null"):
        with pytest.raises(OSError, match="not a regular file"):
            optimizer().save(path)
        assert stat.S_ISCHR(os.stat(path).st_mode)
    assert only(tmp_path) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    for path in (tmp_path / "missing" / "run.npz", tmp_path / "pipe" / "run.npz", "/proc/run.npz"):
        with pytest.raises(OSError, match=r"run\.npz"):
            optimizer().save(path)


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "best.npz"
    optimizer().save(path)
    before = path.read_bytes()
    path.chmod(0o444)
    if os.geteuid() == 0:  # who may write anything
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"best\.npz"):
        optimizer(2).save(path)
    assert path.read_bytes() == before
    assert only(tmp_path) == ["best.npz"]


def test_the_file_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    path, calls = tmp_path / "run.npz", []

    def fsync(fd, real=os.fsync):
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        size = None if folder else os.fstat(fd).st_size
        calls.append(("fsync", "folder" if folder else size))
        real(fd)

    def replace(old, new, real=os.replace):
        assert Path(old).parent == Path(new).parent
        calls.append(("replace", os.stat(old).st_size))
        real(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    optimizer().save(path)
    size = path.stat().st_size
    assert calls == [("fsync", size), ("replace", size), ("fsync", "folder")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), MemoryError])
@pytest.mark.parametrize("where", ["_write", "_directory", "fsync", "replace", "chmod"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    where, error, tmp_path, monkeypatch
):
    path = tmp_path / "run.npz"
    optimizer().save(path)
    path.chmod(0o666)  # which the new file has to be given, as the umask leaves less
    before = path.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(checkpoint if where.startswith("_") else os, where, fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        optimizer(2).save(path)
    assert path.read_bytes() == before
    assert only(tmp_path) == ["run.npz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_the_reason_of_a_failure_is_kept_where_what_was_written_cannot_be_deleted(
    error, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise error

    def unlink(path):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(error if isinstance(error, type) else type(error), match=r"^$|full"):
        optimizer().save(tmp_path / "run.npz")


def test_what_replaces_a_private_file_is_private_at_once(tmp_path, monkeypatch):
    path, found = tmp_path / "run.npz", []
    optimizer().save(path)
    path.chmod(0o600)

    def open_(name, flags, mode=0o777, real=os.open):
        fd = real(name, flags, mode)
        found.append((stat.S_IMODE(os.fstat(fd).st_mode), os.fstat(fd).st_size))
        return fd

    # Whoever opens it before its permissions are set can read it later, too.
    monkeypatch.setattr(os, "open", open_)
    optimizer().save(path)
    assert found[0] == (0o600, 0)


@pytest.mark.parametrize("kind", [str, os.fsencode])
def test_a_folder_that_is_not_there_is_no_file(kind, tmp_path):
    with pytest.raises(IsADirectoryError, match="runs/"):
        optimizer().save(kind(f"{tmp_path}/runs/"))
    assert only(tmp_path) == []


@pytest.mark.parametrize("size", [6, 100_000])
def test_a_file_saved_while_another_thread_steps_is_of_one_moment(size, tmp_path):
    """rho is 0 and the gradient of step i is i: every accumulator is the square of iterations."""
    opt, done = RMSprop(rho=0.0, momentum=1.0, lr=0.0), threading.Event()
    params = [np.ones(size), np.ones(size)]
    opt.step(params, [np.full(size, 1.0)] * 2)

    def steps():
        while not done.is_set():
            i = float(opt.iterations + 1)
            opt.step(params, [np.full(size, i), np.full(size, i)])

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        seen = set()
        for _ in range(20):
            twin = through_a_file(opt, tmp_path / "run.npz")
            for x in twin._views()["accumulator"]:
                assert (x == float(twin.iterations) ** 2).all()
            seen.add(twin.iterations)
    finally:
        done.set()
        thread.join()
    assert len(seen) > 3


def test_a_folder_that_cannot_be_forced_to_the_disk_is_no_failure(tmp_path, monkeypatch):
    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, "fsync", fsync)
    assert through_a_file(optimizer(), tmp_path / "run.npz").iterations == 1


class Odd(RMSprop):
    config = None

    def get_config(self):
        return super().get_config() | {"odd": self.config}


def odd(config):
    opt = Odd()
    opt.config = config
    return opt


def with_keys(*keys):
    opt = RMSprop()
    opt.build({key: np.ones(1) for key in keys})
    return opt


UNSAVED = {
    "a schedule without a config": (RMSprop(lr=lambda step: 0.1), TypeError, "^lr is <function"),
    "a tuple as key": (with_keys("a", (1, 2)), TypeError, r"^the model's keys: \['a', \(1, 2\)\]"),
    "True as key": (with_keys(True), TypeError, "^the model's keys: .* strings and integers"),
    "a number as key": (with_keys(0.5), TypeError, "^the model's keys"),
    "None in lr_scale": (RMSprop(lr_scale={None: 1}), TypeError, "^lr_scale's keys: "),
    "bytes as a name": (
        RMSprop(exclude_from_weight_decay=[b"W"]),
        TypeError,
        "^exclude_from_weight_decay: ",
    ),
    "an integer without end": (with_keys(10**400), ValueError, "number 1000"),
    "NaN": (odd(float("nan")), ValueError, "JSON"),
    "no JSON": (odd({1, 2}), TypeError, "JSON"),
    "too much": (
        odd("x" * checkpoint.LARGEST_META),
        ValueError,
        r"^arguments and keys take \d+ bytes of JSON",
    ),
}


@pytest.mark.parametrize("case", UNSAVED)
def test_what_a_checkpoint_cannot_hold_is_refused_before_anything_is_written(case, tmp_path):
    opt, error, message = UNSAVED[case]
    with pytest.raises(error, match=message):
        opt.save(tmp_path / "run.npz")
    assert only(tmp_path) == []


# Crashes


def outcome(script, folder, *arguments, wrapper=()):
    """What a script prints, in a process of its own that knows the optimizers A and B."""
    head = """
        import os, random, resource, signal, sys, time
        import numpy as np
        from rmsprop_c import RMSprop
        from naive import checkpoints as naive
        from test_checkpoint import optimizer

        how, path = sys.argv[1], sys.argv[2]
        save = RMSprop.save if how == "ours" else naive.save_in_place
        A, B = optimizer(1, 30_000), optimizer(2, 30_000)

        def state():
            '''Which of the two the file is.'''
            try:
                if how == "ours":
                    first, last = RMSprop.load(path).weights[0][[0, -1]]
                else:
                    first, last = naive.load_arrays(path)["accumulator.0"][[0, -1]]
                return {(1, 1): "A", (4, 4): "B"}[first, last]
            except Exception:
                return "torn"

        save(A, path)
    """
    code = textwrap.dedent(head) + textwrap.dedent(script)
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", code, *arguments, str(folder / "run.npz")],
        env={**os.environ, "PYTHONPATH": tests, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


KILLS = """
    random.seed(5)
    for _ in range(100):
        child = os.fork()
        if child == 0:
            while True:
                save(B, path)
                save(A, path)
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(state())
"""


def test_killed_100_times_while_saving_it_is_the_old_file_or_the_new_one(tmp_path):
    found = outcome(KILLS, tmp_path, "ours")
    assert len(found) == 100
    assert set(found) == {"A", "B"}
    parts = [name for name in only(tmp_path) if name != "run.npz"]
    assert len(parts) > 10, "it was hardly killed while it saved"
    assert all(name.startswith(".run.npz.") and name.endswith(".part") for name in parts)


def test_the_naive_way_leaves_torn_files_when_killed(tmp_path):
    assert "torn" in outcome(KILLS, tmp_path, "naive")


LIMITS = """
    size = os.path.getsize(path)
    for limit in [0, 1, 29, 500, size // 2, size - 100_000, size - 8192, size - 50, size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(B, path)
            print("saved")
        except OSError:
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        print(state())
    save(B, path)
    print(state())
"""


def test_where_there_is_no_room_the_old_file_stays(tmp_path):
    assert outcome(LIMITS, tmp_path, "ours") == ["A"] * 9 + ["B"]
    assert only(tmp_path) == ["run.npz"]


def test_the_naive_way_loses_the_old_file_where_there_is_no_room(tmp_path):
    assert "torn" in outcome(LIMITS, tmp_path, "naive")


def test_on_a_full_disk_the_old_file_stays(tmp_path):
    wrapper = ["unshare", "-rm", "sh", "-c"]
    wrapper += [f"mount -t tmpfs -o size=400k none '{tmp_path}' && exec \"$@\"", "sh"]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0:
            script = """
                try:
                    save(B, path)
                except OSError as error:
                    print(error.errno, state(), *os.listdir(os.path.dirname(path)))
            """
            found = outcome(script, tmp_path, "ours", wrapper=wrapper)
            assert found == [str(errno.ENOSPC), "A", "run.npz"]
            return
    pytest.skip("no file system of one's own can be mounted here")


def test_several_processes_may_save_to_one_file(tmp_path):
    script = """
        children = []
        for opt in (A, B, A, B):
            children.append(os.fork())
            if children[-1] == 0:
                for _ in range(25):
                    save(opt, path)
                os._exit(0)
        while children:
            print(state())
            children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
    """
    assert set(outcome(script, tmp_path, "ours")) <= {"A", "B"}
    assert only(tmp_path) == ["run.npz"]


# Hostile files


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Check that a file is refused by ValueError, cheaply; returns the message."""
    monkeypatch.chdir(tmp_path)

    def check(content, match=None, memory=200_000):
        path = tmp_path / "hostile.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        before = path.read_bytes()
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=match) as caught:
                RMSprop.load(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert str(caught.value).startswith(f"{str(path)!r} is not a usable checkpoint: ")
        assert len(str(caught.value)) < 1000
        assert peak < 2.2 * len(before) + memory
        assert not Path("sprung").exists()
        assert path.read_bytes() == before

    return check


def corpus(name):
    return (CORPUS / f"{name}.npz").read_bytes()


@pytest.mark.parametrize("name", ["cycle", "empty", "fresh", "keys", "list"])
def test_no_byte_can_be_changed_nor_any_left_out_or_added(name, tmp_path):
    text, path = corpus(name), tmp_path / "run.npz"
    path.write_bytes(text)
    changes = random.Random(name)
    with open(path, "r+b", buffering=0) as file:
        for at, byte in enumerate(text):
            for other in (byte ^ 0xFF, byte ^ 1 << changes.randrange(8)):
                os.pwrite(file.fileno(), bytes([other]), at)
                with pytest.raises(ValueError, match="not a usable checkpoint"):
                    RMSprop.load(path)
            os.pwrite(file.fileno(), bytes([byte]), at)
        RMSprop.load(path)
        for length in reversed(range(len(text))):
            file.truncate(length)
            with pytest.raises(ValueError, match="not a usable checkpoint"):
                RMSprop.load(path)
    for more in (text + b"\0", b"\0" + text, text + text, text + b"\0" * 100_000):
        path.write_bytes(more)
        with pytest.raises(ValueError, match="not a usable checkpoint"):
            RMSprop.load(path)


def test_what_is_no_checkpoint_at_all_is_refused(refused, tmp_path):
    rng = random.Random(1)
    for size in (0, 1, 21, 22, 60, 1000, 100_000):
        refused(rng.randbytes(size))
        refused(bytes(size))
    refused(pickle.dumps(Trap()))
    refused(pickle.dumps(RMSprop()))
    refused(b"PK\5\6" + bytes(18))
    refused(json.dumps(RMSprop().get_config()).encode())
    for saved in (np.savez, np.savez_compressed):
        saved(tmp_path / "hostile.npz", meta=np.ones(3), accumulator=np.ones(3))
        refused(None)
        saved(tmp_path / "hostile.npz", meta=np.array([Trap()], object))
        refused(None)
        saved(tmp_path / "hostile.npz", np.zeros(10**6))
        refused(None)


def test_what_cannot_be_opened_is_an_oserror(tmp_path):
    for path in (tmp_path, tmp_path / "missing", "", "/proc/self/mem/x"):
        with pytest.raises(OSError, match=r"Errno"):
            RMSprop.load(path)


@pytest.mark.timeout(10)
def test_a_pipe_or_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match="not a regular file"):
            RMSprop.load(path)


def test_pickle_runs_what_is_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hostile").write_bytes(pickle.dumps(Trap()))
    naive.load_pickle("hostile")
    assert Path("sprung").exists()


def test_a_small_file_does_not_become_a_large_array(refused, tmp_path):
    path = tmp_path / "hostile.npz"
    np.savez_compressed(path, meta=np.zeros(20_000_000, np.uint8))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    naive.load_arrays(path)
    assert tracemalloc.get_traced_memory()[1] > 20_000_000
    tracemalloc.stop()
    refused(None, "it is not a file that save wrote")


def test_a_load_takes_twice_the_memory_of_its_file(tmp_path):
    path = tmp_path / "run.npz"
    optimizer(1, 10**6).save(path)
    tracemalloc.start()
    RMSprop.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.1 * path.stat().st_size


def header(dtype="'<f8'", order="False", shape="(2, 3)", version=b"\1\0", more="", length=None):
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, {more}}}".ljust(117)
    size = len(text) + 1 if length is None else length
    return b"\x93NUMPY" + version + size.to_bytes(2, "little") + text.encode() + b"\n"


def test_a_header_is_checked_before_its_array_is_allocated(refused):
    meta = unpack(with_meta(corpus("list"), changed(pending=[False])))[0]
    for first in (header("'<i8'"), header(shape="(7,)"), header()[:9] + b"\xff", b""):
        refused(pack([meta, ("accumulator.0", first + bytes(10**7))]), memory=-2.1 * 10**7)


def test_no_more_is_allocated_than_is_left_of_the_file(refused):
    """A first array of 10 MB; the second is said to be as large, and is not there."""
    meta = unpack(corpus("list"))[0]
    large = header(shape=f"({10**7 // 8},)") + bytes(10**7)
    text = pack([meta, ("accumulator.0", large), ("accumulator.1", large)])
    refused(text[: -(10**7)], memory=-0.9 * 10**7)


SIX = np.arange(6.0).tobytes()
HEADERS = {
    "objects": header("'|O'") + SIX,
    "pickled objects": header("'|O'") + pickle.dumps(Trap()),
    "fields": header("[('a', '<f8')]") + SIX,
    "code": header("__import__('os').getcwd()") + SIX,
    "half precision": header("'<f2'") + SIX[:12],
    "long double": header("'<f16'") + SIX + SIX,
    "integers": header("'<i8'") + SIX,
    "bytes": header("'|u1'") + SIX[:6],
    "no byte order": header("'|f8'") + SIX,
    "text": header("'<U12'", "()") + SIX,
    "times": header("'<M8[s]'") + SIX,
    "a size that overflows": header(shape=f"({2**61},)") + SIX,
    "two sizes that overflow": header(shape=f"({2**32}, {2**32})") + SIX,
    "a size of 20 digits": header(shape=f"({10**20},)") + SIX,
    "overflow beside nothing": header(shape=f"(0, {2**62}, {2**62})"),
    "negative sizes": header(shape="(-2, -3)") + SIX,
    "a size of -1": header(shape="(-1,)") + SIX,
    "True as a size": header(shape="(True, 6)") + SIX,
    "a float as a size": header(shape="(6.0,)") + SIX,
    "no tuple": header(shape="6") + SIX,
    "a list": header(shape="[6]") + SIX,
    "no shape": header(shape="()") + SIX,
    "65 dimensions": header(shape=f"({'1, ' * 64}1)", more="") + SIX[:8],
    "1000 dimensions": header(shape=f"({'1, ' * 999}1)", more="") + SIX[:8],
    "too few numbers": header() + SIX[:-1],
    "too many numbers": header() + SIX + b"\0",
    "no numbers": header(),
    "version 2": header(version=b"\2\0") + SIX,
    "version 3": header(version=b"\3\0") + SIX,
    "version 0": header(version=b"\0\0") + SIX,
    "a header that is too long": header(length=65535) + SIX,
    "a header that is too short": header(length=20) + SIX,
    "a header of nothing": header(length=0) + SIX,
    "an endless header": header(more=" " * 65000) + SIX,
    "another entry": header(more="'x': 1, ") + SIX,
    "brackets": header(shape="(" * 9000) + SIX,
    "signs": header(shape="-" * 9000 + "1") + SIX,
    "an order of 1": header(order="1") + SIX,
    "nothing": b"",
    "only the magic": b"\x93NUMPY",
    "another magic": b"\x94" + header()[1:] + SIX,
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_says_no_more_than_there_is(case, refused):
    text = with_meta(corpus("list"), lambda meta: {**meta, "pending": [False]})
    meta = unpack(text)[0]
    refused(pack([meta, ("accumulator.0", HEADERS[case])]), r"accumulator\.0|too big")


def test_other_byte_orders_and_memory_orders_come_back(tmp_path):
    text = with_meta(corpus("list"), lambda meta: {**meta, "pending": [False]})
    meta = unpack(text)[0]
    for dtype, order in ((">f8", "False"), (">f4", "True"), ("<f8", "True")):
        values = np.arange(6.0).reshape(2, 3)
        data = np.asarray(values.T if order == "True" else values, dtype).tobytes()
        text = pack([meta, ("accumulator.0", header(repr(dtype), order) + data)])
        (tmp_path / "run.npz").write_bytes(text)
        found = RMSprop.load(tmp_path / "run.npz").weights[0]
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, values)


def changed(**entries):
    return lambda meta: {**meta, **entries}


def without(name, **entries):
    return lambda meta: {key: x for key, x in meta.items() if key != name} | entries


def configured(**entries):
    return lambda meta: {**meta, "config": {**meta["config"], **entries}}


def raw(old, new):
    """A change of the text itself."""
    return lambda meta: json.dumps(meta).replace(old, new, 1).encode()


def nested(depth, inner="[", outer="]"):
    return lambda meta: (inner * depth + "1" + outer * depth).encode()


METAS = {
    "format 3": (changed(format=3, new=1), "it has format 3; this version reads 2"),
    "format 1": (without("total_calls", format=1), "it has format 1"),
    "format 2.0": (changed(format=2.0), "has no format"),
    "format True": (changed(format=True), "has no format"),
    "no format": (without("format"), "has no format"),
    "no JSON": (lambda meta: b"{", "Expecting"),
    "nothing": (lambda meta: b"", "Expecting"),
    "a list": (lambda meta: [meta], "has no format"),
    "a number": (lambda meta: b"1", "has no format"),
    "no UTF-8": (lambda meta: b"\xff\xfe", "utf-8"),
    "UTF-16": (lambda meta: json.dumps(meta).encode("utf-16"), "utf-8"),
    "more behind it": (lambda meta: json.dumps(meta).encode() + b"1", "Extra data"),
    "another entry": (changed(pickle="x"), "has not the entries"),
    "no keys": (without("keys"), "has not the entries"),
    "an entry twice": (raw("{", '{"format": 2, '), "an entry twice"),
    "an entry of config twice": (raw('"lr"', '"lr": 1, "lr"'), "an entry twice"),
    "NaN": (configured(lr=float("nan")), "the number NaN"),
    "Infinity": (configured(lr=float("inf")), "the number Infinity"),
    "-Infinity": (configured(clipnorm=-float("inf")), "the number -Infinity"),
    "1e999": (raw("0.001", "1e999"), "the number 1e999"),
    "-1e999": (raw("0.001", "-1e999"), "the number -1e999"),
    "a million digits": (raw("0.001", "1" * 10**6), r"the number 1+\.\.\."),
    "311 digits": (configured(lr=10**310), r"the number 1"),
    "310 digits": (configured(lr=10**309), "must be finite"),
    "depth": (nested(10**6), "nested too deeply"),
    "depth of objects": (nested(10**5, '{"a":', "}"), "nested too deeply"),
    "depth in config": (configured(lr=json.loads("[" * 98 + "]" * 98)), "lr is"),
    "too much depth": (configured(lr=json.loads("[" * 99 + "]" * 99)), "nested too deeply"),
    "iterations True": (changed(iterations=True), "iterations is True"),
    "iterations 1.0": (changed(iterations=1.0), "iterations is 1.0"),
    "iterations -1": (changed(iterations=-1), "iterations is -1"),
    "iterations 2**63": (changed(iterations=2**63), "iterations is 9"),
    "calls -1": (changed(calls=-1), "calls is -1"),
    "calls 2**64": (changed(calls=2**64), "calls is 1"),
    "calls without a sum": (changed(calls=1, total_calls=9), "there is no gradient_sum"),
    "calls that are more than all": (changed(calls=1), "total_calls is 4, but 4 updates and 1 c"),
    "total_calls -1": (changed(total_calls=-1), "total_calls is -1"),
    "total_calls 2**62 + 1": (changed(total_calls=2**62 + 1), "total_calls is 4"),
    "no total_calls": (without("total_calls"), "has not the entries"),
    "skipped None": (changed(skipped_steps=None), "skipped_steps is None"),
    "pending without a sum": (changed(pending=[True, False]), "calls is 0"),
    "pending of numbers": (changed(pending=[0, 0]), "pending is"),
    "pending of one": (changed(pending=[False]), "directory"),
    "pending of three": (changed(pending=[False] * 3), r"accumulator\.2 is not where"),
    "pending of many": (changed(pending=[False] * 350_000), r"accumulator\.2 is not where"),
    "pending a number": (changed(pending=10**9), "pending is"),
    "pending an object": (changed(pending={"0": False}), "pending is"),
    "no slots": (changed(slots=[]), "pending is"),
    "slots with counts": (changed(slots={"accumulator": 10**9}), "slots is"),
    "slots of another name": (changed(slots=["accumulator", "../../x"]), "slots is"),
    "slots twice": (changed(slots=["accumulator"] * 2), "slots is"),
    "slots in another order": (changed(slots=["momentum", "accumulator"]), "slots is"),
    "slots without accumulator": (changed(slots=["momentum"]), "slots is"),
    "slots of lists": (changed(slots=[["accumulator"]]), "slots is"),
    "a slot that is not there": (changed(slots=["accumulator", "momentum"]), "momentum.0 is not"),
    "another class": (changed(class_name="Popen"), "it holds a 'Popen', not a 'RMSprop'"),
    "a class of any length": (changed(class_name="x" * 10**6), "it holds a 'xxx"),
    "no class": (changed(class_name=None), "class_name is None"),
    "keys of one": (changed(keys=["a"]), "there are 1 keys, but 2 accumulators"),
    "keys twice": (changed(keys=["a", "a"]), "keys has an entry twice"),
    "keys of lists": (changed(keys=[["a"], "b"]), r"keys has \(\['a'\], None\)"),
    "keys of None": (changed(keys=[None, "b"]), "keys has"),
    "keys of True": (changed(keys=[True, "b"]), "keys has"),
    "keys of floats": (changed(keys=[0.5, "b"]), "keys has"),
    "keys a string": (changed(keys="ab"), "keys is 'ab'"),
    "lr_scale of numbers": (changed(lr_scale=[1, 2]), "lr_scale has 1"),
    "lr_scale of text": (changed(lr_scale=["ab"]), "lr_scale has 'ab'"),
    "lr_scale of lists": (changed(lr_scale=[[[], 1]]), "lr_scale has"),
    "lr_scale twice": (changed(lr_scale=[["W", 1], ["W", 1]]), "lr_scale has an entry twice"),
    "lr_scale of bad factors": (changed(lr_scale=[["W", -1]]), r"lr_scale\['W'\] is -1"),
    "names of lists": (configured(exclude_from_weight_decay=[["W"]]), "weight_decay is"),
    "names of True": (configured(exclude_from_weight_decay=[True]), "weight_decay is"),
    "config a list": (changed(config=[]), "config is"),
    "an unknown argument": (configured(amsgrad=True), "Unexpected keyword argument .*: amsgrad"),
    "an argument by its place": (configured(self=1), "self"),
    "a private argument": (configured(__class__=1), "__class__"),
    "two learning rates": (configured(learning_rate=1.0), "both lr and learning_rate"),
    "rho 2": (configured(rho=2), "rho is 2"),
    "rho True": (configured(rho=True), "rho is True"),
    "a string": (configured(epsilon="0.1"), "epsilon is '0.1'"),
    "a million characters": (configured(rho="x" * 10**6), "rho is 'xxx"),
    "a count of 2**60": (configured(gradient_accumulation_steps=2**60), "at most"),
    "contradictions": (configured(clipnorm=1.0, parameter_clipnorm=1.0), "clipped"),
    "a schedule of another name": (
        configured(lr={"class_name": "eval", "config": {"source": "1"}}),
        "Unknown schedule: eval",
    ),
    "a schedule without a name": (configured(lr={"config": {}}), "Improper config"),
    "a schedule of a list": (configured(lr={"class_name": ["x"]}), "Improper config"),
    "a schedule without arguments": (configured(lr={"class_name": "CosineDecay"}), "missing"),
    "a schedule with others": (
        configured(lr={"class_name": "CosineDecay", "config": {"x": 1}}),
        "unexpected keyword",
    ),
    "a schedule in a schedule": (
        configured(
            lr={
                "class_name": "ExponentialDecay",
                "config": {
                    "initial_learning_rate": {"class_name": "CosineDecay"},
                    "decay_steps": 1,
                    "decay_rate": 1,
                },
            }
        ),
        "initial_learning_rate is",
    ),
}


@pytest.mark.parametrize("case", METAS)
def test_a_meta_that_is_not_right_is_refused_with_the_reason(case, refused):
    change, match = METAS[case]
    text = with_meta(corpus("list"), change)
    refused(text, match, memory=200_000 + (8 * len(text) if len(text) > 10**5 else 0))


def test_keys_that_collide_take_no_time(refused):
    """Python's hash of k * (2**61 - 1) is 0: n of these in a dict take a time of n squared."""
    hostile = [k * (2**61 - 1) for k in range(20_000)]
    start = time.process_time()
    for entries in (
        {"keys": hostile, "pending": [False] * len(hostile)},
        {"lr_scale": [[key, 1] for key in hostile]},
    ):
        refused(with_meta(corpus("list"), changed(**entries)), "same hash", memory=10**7)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("inner", ["[", '{"a":'])
def test_depth_does_not_end_a_process_that_allows_deep_recursion(inner, tmp_path):
    outer = {"[": "]"}.get(inner, "}")
    text = with_meta(corpus("list"), nested(400_000, inner, outer))
    (tmp_path / "hostile.npz").write_bytes(text)
    script = """
        import sys
        from rmsprop_c import RMSprop
        sys.setrecursionlimit(10**6)
        try:
            RMSprop.load("hostile.npz")
        except ValueError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "nested too deeply" in done.stdout


def test_brackets_in_strings_are_no_depth(tmp_path):
    opt = RMSprop()
    opt.build({"[" * 999 + '"\\': np.ones(1), '\\"' + "{" * 999: np.ones(1)})
    assert through_a_file(opt, tmp_path / "run.npz")._keys() == opt._keys()


@pytest.mark.parametrize("unit", ["[]", '{"":0}', "256", '"ab"'])
def test_the_largest_meta_costs_a_hundred_megabytes_at_most(unit, refused):
    size = checkpoint.LARGEST_META // 16
    text = f"[{','.join([unit] * (size // (len(unit) + 1) - 1))}]".encode()
    text = with_meta(corpus("list"), lambda meta: text)
    refused(text, "has no format", memory=100_000_000 // 16 - 2.2 * size)


def test_a_longer_meta_is_refused_before_it_is_read(refused):
    text = with_meta(
        corpus("list"), lambda meta: b" " * checkpoint.LARGEST_META + json.dumps(meta).encode()
    )
    refused(text, r"its part with the arguments should have \d+ bytes", memory=-len(text))


def members(change):
    def changed_archive():
        found = unpack(corpus("cycle"))
        return pack(change(found) or found)

    return changed_archive


def patched(old, new, count=1):
    """The archive with other bytes at the first places where some stand."""

    def changed_archive():
        assert old in corpus("cycle")
        return corpus("cycle").replace(old, new, count)

    return changed_archive


def renamed(i, name):
    return members(lambda m: m.__setitem__(i, (name, m[i][1])))


def overlapping():
    """A directory whose members all are the same bytes."""
    text = unpack(corpus("cycle"))
    found, data = [], b""
    for name, content in text:
        found.append(checkpoint.Member(f"{name}.npy".encode(), len(content), 0, 0))
        data = data or checkpoint._local(found[0]) + content
    return data + checkpoint._directory(found)


def many():
    """A million entries in the directory, of nothing."""
    entry = checkpoint._directory([checkpoint.Member(b"", 0, 0, 0)])[:74]
    return corpus("fresh").split(b"PK\1\2")[0] + entry * 10**5 + corpus("fresh")[-98:]


SIZE = len(unpack(corpus("cycle"))[0][1]).to_bytes(8, "little")
ARCHIVES = {
    "no members": lambda: pack([]),
    "no meta": members(lambda m: m[1:]),
    "meta last": members(lambda m: m[1:] + m[:1]),
    "one member too few": members(lambda m: m[:-1]),
    "one member too many": members(lambda m: [*m, ("x", npy(np.ones(1)))]),
    "a member twice": members(lambda m: [*m, m[-1]]),
    "a pickle besides": members(lambda m: [*m, ("x.pkl", pickle.dumps(Trap()))]),
    "two places changed": members(lambda m: [m[0], m[2], m[1], *m[3:]]),
    "a path as name": renamed(1, "../accumulator.0"),
    "no name": renamed(1, ""),
    "a long name": renamed(1, "accumulator.0" + "0" * 60000),
    "another size in one slot": members(
        lambda m: m.__setitem__(-1, (m[-1][0], npy(np.ones((0, 3), np.float32))))
    ),
    "another dtype in one slot": members(
        lambda m: m.__setitem__(-1, (m[-1][0], npy(np.ones((0, 2), np.float64))))
    ),
    "meta of floats": members(lambda m: m.__setitem__(0, ("meta", npy(np.ones(3))))),
    "meta of objects": members(
        lambda m: m.__setitem__(0, ("meta", header("'|O'", shape="(1,)") + SIX[:8]))
    ),
    "a size of 2**64 - 1": patched(SIZE, b"\xff" * 8, 1),
    "sizes of 2**63": patched(SIZE, (2**63).to_bytes(8, "little"), 9),
    "a size of 0": patched(SIZE, bytes(8), 2),
    "compressed": patched(b"PK\3\4\x2d\0\0\0\0\0", b"PK\3\4\x2d\0\0\0\x08\0"),
    "encrypted": patched(b"PK\3\4\x2d\0\0\0", b"PK\3\4\x2d\0\1\0"),
    "a comment": lambda: corpus("cycle")[:-2] + b"\5\0hello",
    "a comment that is an archive": lambda: corpus("cycle")[:-2] + b"\xff\xff" + corpus("list"),
    "overlapping members": overlapping,
    "a directory of many": many,
    "a directory of another file": lambda: corpus("cycle")[:-700] + corpus("keys")[-700:],
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_lies_is_refused(case, refused):
    refused(ARCHIVES[case]())

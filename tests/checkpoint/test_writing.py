"""Whatever happens, the file is the old one or the new one."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from checkpoints import optimizer, through_a_file

from rmsprop_c import RMSprop, checkpoint


def only(folder):
    """The names in a folder."""
    return sorted(os.listdir(folder))


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


def outcome(script, folder, *arguments, wrapper=()):
    """What a script prints, in a process of its own that knows the optimizers A and B."""
    head = """
        import os, random, resource, signal, sys, time
        import numpy as np
        from rmsprop_c import RMSprop
        import naive_checkpoints as naive
        from checkpoints import optimizer

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
    tests = str(Path(__file__).parents[1] / "support")
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

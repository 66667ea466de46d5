"""A file from anywhere is loaded, or raises with the reason, and runs nothing."""

import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import naive_checkpoints as naive
import numpy as np
import pytest
from checkpoints import optimizer, through_a_file
from fuzz import CORPUS, npy, pack, unpack, with_meta

from rmsprop_c import RMSprop, checkpoint, presets, schedules


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Check that a file is refused by ValueError, cheaply; returns the message."""
    monkeypatch.chdir(tmp_path)
    assert presets
    assert schedules  # are imported: their memory is not the file's

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

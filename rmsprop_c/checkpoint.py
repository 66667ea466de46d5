"""Checkpoints: the class name, the config and the state of an optimizer in one ``.npz`` file.

NumPy alone reads it: ``numpy.load(path)["accumulator.0"]``. It holds no pickles; ``meta`` is JSON.

A file that is loaded may come from anywhere. So no general reader of archives or headers sees it:
its members stand one behind the other as `save` writes them, each with its size and checksum before
it, and whatever else stands in the file has to be the bytes that `save` would have written there.
"""

import contextlib
import errno
import json
import math
import os
import re
import reprlib
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from io import BufferedReader
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import state as states

FORMAT = 2
LARGEST_META = 5 << 19  # bytes; parsed, the worst JSON takes 37 times as much
MOST_COLLISIONS = 100
MOST_DEPTH = 100  # of brackets in the JSON
FOREIGN = "it is not a file that save wrote"
CUT = "it was cut off: it ends too early"
PART = "its part with the arguments"  # what errors call meta
Made = TypeVar("Made")


def save(
    path: str | os.PathLike[str], class_name: str, config: dict[str, Any], state: states.State
) -> None:
    """Write a checkpoint, so that whatever happens `path` is the old file or the new one.

    It is written beside `path` under another name, forced to the disk, and renamed. What a crash
    leaves of such a file (``.NAME.*.part``) can be deleted.
    """
    text = _meta(class_name, config, state)
    name = os.fsdecode(path)
    if name.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    target = Path(os.path.realpath(name))
    mode = _mode(target)
    part = target.with_name(f".{target.name[:50]}.{os.urandom(8).hex()}.part")
    try:
        opener = partial(os.open, mode=0o666 if mode is None else mode)
        with open(part, "xb", opener=opener) as file:
            if mode not in (None, stat.S_IMODE(os.fstat(file.fileno()).st_mode)):
                os.chmod(part, mode)
            members = [_write(file, "meta", np.frombuffer(text, np.uint8))]
            for name, arrays in state.slots.items():
                members += [_write(file, f"{name}.{i}", x) for i, x in enumerate(arrays)]
            file.write(_directory(members))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(error, OSError) and error.filename is not None:  # of the one beside it
            raise type(error)(error.errno, error.strerror, os.fsdecode(path)) from None
        raise
    if os.name == "posix":
        # The rename itself. Where the file system can't, a crash may bring back the old file.
        with contextlib.suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _mode(target: Path) -> int | None:
    """The permissions of the file that is replaced, which the new one keeps; None if there is none.

    A rename would replace write-protected files, and devices too.
    """
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(mode)


def _meta(class_name: str, config: dict[str, Any], state: states.State) -> bytes:
    config = dict(config)
    scale = config.get("lr_scale")
    if isinstance(scale, dict):  # JSON would make strings of its keys
        del config["lr_scale"]
    meta = {
        "format": FORMAT,
        "class_name": class_name,
        "config": config,
        "lr_scale": list(map(list, scale.items())) if isinstance(scale, dict) else None,
        "keys": state.keys,
        "slots": list(state.slots),
        **{name: getattr(state, name) for name in (*states.COUNTS, "pending")},
    }
    names = {
        "the model's keys": state.keys or (),
        "lr_scale's keys": scale if isinstance(scale, dict) else (),
        "exclude_from_weight_decay": config.get("exclude_from_weight_decay", ()),
    }
    for what, entries in names.items():
        if not all(isinstance(x, (str, int)) and not isinstance(x, bool) for x in entries):
            raise TypeError(
                f"{what}: {reprlib.repr(list(entries))}; a checkpoint holds strings and integers"
            )
    text = json.dumps(meta, allow_nan=False).encode()
    if len(text) > LARGEST_META:
        raise ValueError(
            f"arguments and keys take {len(text)} bytes of JSON; a checkpoint holds {LARGEST_META}"
        )
    _read_meta(text)  # so that nothing is written that can't be read
    return text


def load(
    path: str | os.PathLike[str],
    class_name: str,
    make: Callable[[dict[str, Any], states.State], Made],
) -> Made:
    """What `make` returns for the config and the state that `save` wrote with this class name.

    ValueError, with the reason, for any other file, and for whatever `make` raises.
    """
    name = os.fsdecode(path)
    with open(name, "rb", opener=_open) as file:
        try:
            return make(*_load(file, class_name))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # from_config of any class may raise anything
            reason = str(error) or type(error).__name__
            raise ValueError(f"{name!r} is not a usable checkpoint: {reason[:500]}") from (
                error if len(reason) <= 500 else None
            )


def _open(path: str, flags: int) -> int:
    """Opening a pipe does not wait for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _load(file: BufferedReader, class_name: str) -> tuple[dict[str, Any], states.State]:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    members: list[Member] = []
    if file.peek(4)[:4] != b"PK\3\4":  # how an archive begins
        raise ValueError(FOREIGN)
    text = _read(file, "meta", members, min(status.st_size, LARGEST_META), (np.uint8,))
    meta = _read_meta(text.tobytes())
    if meta["class_name"] != class_name:
        raise ValueError(f"it holds a {reprlib.repr(meta['class_name'])}, not a {class_name!r}")
    slots: dict[str, list[NDArray[Any]]] = {}
    for name in meta["slots"]:
        slots[name] = []
        for i in range(len(meta["pending"])):
            left = status.st_size - file.tell()
            array = _read(file, f"{name}.{i}", members, left, (np.float32, np.float64))
            like = slots["accumulator"][i] if name != "accumulator" else array
            if (array.shape, array.dtype) != (like.shape, like.dtype):
                raise ValueError(f"{name}.{i} is of another parameter than accumulator.{i}")
            slots[name].append(array)
    expected = _directory(members)
    found = file.read(len(expected) + 1)
    if found != expected:
        raise ValueError(CUT if expected.startswith(found) else "its directory is not that of save")
    return meta["config"], states.from_mapping(meta | {"slots": slots})


class Member(NamedTuple):
    """What the directory of the archive says of an array."""

    name: bytes
    size: int
    crc: int
    offset: int


# An archive of stored members in which all sizes are zip64's, so that there is one form of them.
# The time of each is the first that there is: equal states make equal files.
SHORT, LONG, TIME = 0xFFFF, 0xFFFFFFFF, (0, 33)


def _local(member: Member) -> bytes:
    """What stands before a member."""
    name, size, crc, _ = member
    lengths = (len(name), 20)
    head = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, *TIME, crc, LONG, LONG, *lengths)
    return head + name + struct.pack("<2H2Q", 1, 16, size, size)


def _directory(members: list[Member]) -> bytes:
    """What stands behind the last member."""
    entries = []
    for name, size, crc, offset in members:
        head = struct.pack("<4s6H3L", b"PK\1\2", 45, 45, 0, 0, *TIME, crc, LONG, LONG)
        lengths = struct.pack("<5H2L", len(name), 28, 0, 0, 0, 0, LONG)
        entries.append(head + lengths + name + struct.pack("<2H3Q", 1, 24, size, size, offset))
    directory, count, last = b"".join(entries), len(members), members[-1]
    start = last.offset + len(_local(last)) + last.size
    size = len(directory)
    return b"".join(
        (
            directory,
            struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start),
            struct.pack("<4sLQL", b"PK\6\7", 0, start + size, 1),
            struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, SHORT, SHORT, LONG, LONG, 0),
        )
    )


def _write(file: BinaryIO, name: str, array: NDArray[Any]) -> Member:
    """Append an array, which is contiguous in C's or Fortran's order."""
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    text = f"{{'descr': {array.dtype.str!r}, 'fortran_order': {fortran}, 'shape': {array.shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    head = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()
    data = array.ravel(order="A").view(np.uint8).data
    crc = zlib.crc32(data, zlib.crc32(head))
    member = Member(f"{name}.npy".encode(), len(head) + array.nbytes, crc, file.tell())
    file.write(_local(member) + head)
    file.write(data)
    return member


HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>\|u1|[<>]f[48])', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,19}(?:,|(?:, \d{1,19}){1,63}))?)\), \} *\n",
    re.DOTALL,
)


def _read(
    file: BufferedReader, name: str, members: list[Member], largest: int, dtypes: tuple[type, ...]
) -> NDArray[Any]:
    """The next array, which must have this name and one of these dtypes.

    What is read at a time is not longer than `largest`, and all is checked before an array is made.
    """
    member = Member(f"{name}.npy".encode(), 0, 0, file.tell())
    head = file.read(len(_local(member)))
    if len(head) == len(_local(member)):
        size, crc = struct.unpack("<Q", head[-8:])[0], struct.unpack("<L", head[14:18])[0]
        member = member._replace(size=size, crc=crc)
    if head != _local(member):
        short = len(head) < len(_local(member))
        if short and _local(member).startswith(head[:14]):  # up to the checksum
            raise ValueError(CUT)
        raise ValueError(FOREIGN if name == "meta" else f"{name} is not where save writes it")
    called = PART if name == "meta" else name
    if member.size > largest:
        raise ValueError(
            f"{called} should have {member.size} bytes, more than are left or than save writes: "
            "the file was cut off, or is another one"
        )
    text = file.read(10)
    text += file.read(int.from_bytes(text[8:], "little"))
    header = HEADER.fullmatch(text)
    if header is None or int.from_bytes(text[8:10], "little") != len(text) - 10:
        raise ValueError(f"{called} has another header than save writes")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(n) for n in header["shape"].replace(b",", b" ").split())
    if dtype.newbyteorder("=") not in dtypes:
        raise ValueError(f"{called} has dtype {dtype}")
    count = math.prod(shape)
    if len(text) + count * dtype.itemsize != member.size:
        raise ValueError(f"{called} has shape {shape}, but {member.size - len(text)} bytes")
    array = np.empty(count, dtype)
    data = array.view(np.uint8).data
    if file.readinto(data) != len(data):
        raise ValueError(CUT)
    if zlib.crc32(data, zlib.crc32(text)) != member.crc:
        raise ValueError(f"{called} is damaged: its checksum differs")
    members.append(member)
    return array.reshape(shape, order="F" if header["fortran"] == b"True" else "C")


META: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "class_name": (str,),
    "config": (dict,),
    "lr_scale": (list, type(None)),
    "keys": (list, type(None)),
    "slots": (list,),
    "iterations": (int,),
    "calls": (int,),
    "total_calls": (int,),
    "skipped_steps": (int,),
    "pending": (list,),
}


def _read_meta(text: bytes) -> dict[str, Any]:
    """What is in the JSON, once it is of the types that it must have; lr_scale is in config."""
    # Where Python's recursion limit has been raised, its JSON reader overflows the stack.
    if _depth(text) > MOST_DEPTH:
        raise ValueError(f"{PART} is nested too deeply")
    meta = json.loads(
        text.decode(),
        object_pairs_hook=_unique,
        parse_constant=_number,
        parse_float=_number,
        parse_int=_integer,
    )
    if not isinstance(meta, dict) or type(meta.get("format")) is not int:
        raise ValueError(f"{PART} has no format")
    if meta["format"] != FORMAT:
        raise ValueError(f"it has format {meta['format']}; this version reads {FORMAT}")
    if set(meta) != set(META):
        raise ValueError(f"{PART} has not the entries {list(META)}")
    for name, kinds in META.items():
        if type(meta[name]) not in kinds:
            raise ValueError(f"{name} is {reprlib.repr(meta[name])}")
    slots, pending = meta["slots"], meta["pending"]
    if slots and slots != [x for x in states.SLOTS if x in ("accumulator", *slots)]:
        raise ValueError(f"slots is {reprlib.repr(slots)}")
    if not all(type(x) is bool for x in pending) or (pending and not slots):
        raise ValueError(f"pending is {reprlib.repr(pending)}")
    if meta["keys"] is not None:
        meta["keys"] = tuple(_entries("keys", [(key, None) for key in meta["keys"]]))
    if meta["lr_scale"] is not None:
        meta["config"]["lr_scale"] = _entries("lr_scale", meta["lr_scale"])
    excluded = meta["config"].get("exclude_from_weight_decay", ())
    if not all(type(x) in (str, int) for x in excluded):
        raise ValueError(f"exclude_from_weight_decay is {reprlib.repr(excluded)}")
    return meta


def _depth(text: bytes) -> int:
    """How deep the JSON is nested."""
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    tokens = (token[0] for token in re.finditer(rb'"[^"]*"|[][{}]', unescaped))
    return max(accumulate((x in (b"[", b"{")) - (x in (b"]", b"}")) for x in tokens), default=0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"{PART} has an entry twice")
    return found


def _number(text: str) -> float:
    """Of JSON's numbers, not Python's NaN and Infinity, nor 1e999."""
    if not math.isfinite(float(text)):
        raise ValueError(f"{PART} has the number {text[:20]}")
    return float(text)


def _integer(text: str) -> int:
    if len(text) > 310:  # more than any double; int takes quadratic time
        raise ValueError(f"{PART} has the number {text[:20]}...")
    return int(text)


def _entries(name: str, pairs: list[Any]) -> dict[Any, Any]:
    """A dict of pairs, the first of which are keys of a model."""
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int):
            raise ValueError(f"{name} has {reprlib.repr(pair)}")
    # A dict of n such keys takes a time of n squared: hash(k * (2**61 - 1)) is 0.
    if max(Counter(hash(pair[0]) for pair in pairs).values(), default=0) > MOST_COLLISIONS:
        raise ValueError(f"{name} has more than {MOST_COLLISIONS} entries of the same hash")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"{name} has an entry twice")
    return found

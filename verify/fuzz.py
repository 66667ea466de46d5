"""Hostile checkpoints and configs: ``python verify/fuzz.py --seconds 600 [--seed 1]``.

It mutates the checkpoints of tests/checkpoint/corpus for `RMSprop.load` and their configs for
`RMSprop.from_config`. Anything but success, ValueError and TypeError fails, and so does a case that
takes longer than a second or 100 MB. What is loaded must work: it makes a step, and comes back the
same from another checkpoint. A failing case is written to the folder for temporary files.

``--make`` writes the corpus again.
"""

import argparse
import faulthandler
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rmsprop_c import RMSprop, checkpoint, schedules

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "checkpoint" / "corpus"
SECONDS, MEGABYTES = 1.0, 100
REASONS = (ValueError, TypeError, KeyError, RecursionError)  # what load makes a ValueError of


def seeds():
    """Small checkpoints by name; between them they have every slot, dtype and kind of entry."""
    every = {
        "lr": schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.01, 0.001]),
        "momentum": 0.9,
        "centered": True,
        "use_ema": True,
        "gradient_accumulation_steps": 3,
        "clipnorm": 1.0,
        "nonfinite": "skip",
    }
    named = {
        "lr_scale": {"W": 0.5, 7: 2.0},
        "exclude_from_weight_decay": ["é"],
        "weight_decay": 0.1,
    }
    models = {
        "fresh": (RMSprop(lr=schedules.CosineDecay(0.1, 10, warmup_target=1.0)), None),
        "list": (RMSprop(clipvalue=0.5), [np.ones((2, 3), np.float32), np.ones(())]),
        "cycle": (RMSprop(**every), [np.ones((3, 2), order="F"), np.ones((0, 2), np.float32)]),
        "keys": (
            RMSprop(**named),
            {"W": np.ones(3), 7: np.ones((1, 2), np.float32), "é": np.ones(1)},
        ),
        "empty": (RMSprop(), []),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (opt, params) in models.items():
            if params:
                for _ in range(4):
                    opt.step(params, params_like(params, 0.25))
            elif params is not None:
                opt.build(params)
            opt.save(Path(folder, name))
            found[name] = Path(folder, name).read_bytes()
    return found


def params_like(params, value):
    if isinstance(params, dict):
        return {key: np.full_like(x, value) for key, x in params.items()}
    return [np.full_like(x, value) for x in params]


def pack(members):
    """An archive of these names and bytes, whose checksums and directory are right."""
    text, found = b"", []
    for name, data in members:
        crc = checkpoint.zlib.crc32(data)
        found.append(checkpoint.Member(f"{name}.npy".encode(), len(data), crc, len(text)))
        text += checkpoint._local(found[-1]) + data
    return text + (checkpoint._directory(found) if found else b"")


def unpack(text):
    """The names and bytes in a checkpoint."""
    members = []
    while text.startswith(b"PK\3\4"):
        length, size = text[26], int.from_bytes(text[42 + text[26] :][:8], "little")
        start = 50 + length
        members.append((text[30 : 26 + length].decode(), text[start : start + size]))
        text = text[start + size :]
    return members


def npy(array):
    """The bytes of an .npy file as `save` writes it."""
    with tempfile.TemporaryFile() as file:
        checkpoint._write(file, "x", array)
        file.seek(0)
        return file.read()[len(checkpoint._local(checkpoint.Member(b"x.npy", 0, 0, 0))) :]


def with_meta(text, change):
    """The checkpoint with another meta: `change` is given the JSON and returns JSON or bytes."""
    (_, data), *rest = unpack(text)
    changed = change(json.loads(data[data.index(b"\n") + 1 :]))
    if not isinstance(changed, bytes):
        changed = json.dumps(changed).encode()
    return pack([("meta", npy(np.frombuffer(changed, np.uint8))), *rest])


# Values that stand for others in JSON.
ODD = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**53 + 1, 2**62, 2**63, 2**64, 10**30, 10**309),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", "W", "é", "\ud800", "x" * 3000),
    *([], {}, [[]], [None], ["W", "W"], [1, True], {"W": 1}, {"class_name": "CosineDecay"}),
    *({"class_name": "eval", "config": {"": "1"}}, "accumulator", "gradient_sum", "skip", "raise"),
)
WORDS = (
    b"PK\3\4",
    b"PK\1\2",
    b"PK\5\6",
    b"PK\6\6",
    b"\x93NUMPY",
    b"|O8",
    b"<f8",
    b"(",
    b"\xff" * 8,
)


def mutated_bytes(rng, text, others):
    text = bytearray(text)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, n = rng.randrange(len(text) + 1), rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(8)
        if kind == 0 and at < len(text):
            text[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            text[at : at + n] = rng.randbytes(n)
        elif kind == 2:
            del text[at : at + n]
        elif kind == 3:
            text[at:at] = rng.randbytes(n)
        elif kind == 4:
            del text[at:]
        elif kind == 5:
            word = rng.choice(WORDS)
            text[at : at + len(word)] = word
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            text[at : at + rng.choice((0, n))] = other[start : start + rng.choice((n, 4096))]
        else:
            text[at : at + n] = rng.choice((0, 1, 255, 2**31, 2**32 - 1)).to_bytes(8, "little")[:n]
    return bytes(text)


def mutated_json(rng, value, rate=None):
    """The value with some of what is in it replaced, doubled, left out or nested."""
    rate = rate or rng.choice((0.002, 0.02, 0.1))
    if rng.random() < rate:
        value = rng.choice(ODD)
        for _ in range(rng.choice((0, 0, 0, 1, 3, 50))):
            value = [value] if rng.random() < 0.5 else {"config": value}
        return value
    if isinstance(value, dict):
        found = {}
        for key, entry in value.items():
            if rng.random() < rate / 2:
                continue
            if rng.random() < rate / 2:
                key = rng.choice(
                    ("lr", "learning_rate", "momentum", "lr_scale", "x", "W", "config")
                )
            found[key] = mutated_json(rng, entry, rate)
        if rng.random() < rate / 2:
            found[rng.choice(("clipnorm", "rho", "self", "__class__", "decay"))] = rng.choice(ODD)
        return found
    if isinstance(value, list):
        found = [mutated_json(rng, entry, rate) for entry in value if rng.random() > rate / 2]
        if found and rng.random() < rate:
            found.insert(rng.randrange(len(found)), rng.choice(found))
        return found * rng.choice((1,) * 100 + (2, 1000))
    if isinstance(value, (int, float)) and rng.random() < rate:
        return value * rng.choice((-1, 2, 1000))
    return value


def mutated_members(rng, text, others):
    """Members that are changed within, or change places, in an archive that is right."""
    members = unpack(text)
    for _ in range(rng.choice((1, 1, 2))):
        i, kind = rng.randrange(len(members)), rng.randrange(6)
        name, data = members[i]
        if kind == 0:
            members[i] = name, mutated_bytes(rng, data, others)
        elif kind == 1:
            members[i] = name, mutated_bytes(rng, data[:128], others) + data[128:]
        elif kind == 2:
            members.insert(rng.randrange(len(members) + 1), members[i])
        elif kind == 3 and len(members) > 1:
            del members[i]
        elif kind == 4:
            members[i] = mutated_bytes(rng, name.encode(), [name.encode()]).decode("latin1"), data
        else:
            shape = rng.choice(("()", "(0,)", "(1, 2)", f"({2**62}, 4)", f"(0, {2**62}, {2**62})"))
            kinds = ("<f4", ">f8", "|u1", "|O8", "<f2")
            header = (
                f"{{'descr': '{rng.choice(kinds)}', 'fortran_order': True, 'shape': {shape}, }}"
            )
            header = header.ljust(117) + "\n"
            members[i] = name, b"\x93NUMPY\1\0v\0" + header.encode() + data[rng.choice((0, 128)) :]
    return pack(members)


def mutated(rng, corpus):
    """A hostile checkpoint."""
    text = rng.choice(corpus)
    kind = rng.randrange(4)
    if kind == 0:
        return mutated_bytes(rng, text, corpus)
    if kind == 1:
        return mutated_members(rng, text, corpus)
    if kind == 2:
        return with_meta(text, lambda meta: mutated_json(rng, meta))
    if rng.random() < 0.5:
        return with_meta(text, lambda meta: mutated_bytes(rng, json.dumps(meta).encode(), corpus))
    return rng.randbytes(rng.choice((0, 1, 50, 500)))


def try_load(text, path):
    """Load it; whether that was possible. What is loaded works."""
    path.write_bytes(text)
    try:
        opt = RMSprop.load(path)
    except ValueError as error:
        if not isinstance(error.__cause__, (*REASONS, type(None))):
            raise AssertionError("load met what it did not expect") from error
        return False
    opt.save(path)
    again = RMSprop.load(path)
    assert repr(again) == repr(opt)
    assert again._snapshot().pending == opt._snapshot().pending
    for name, views in opt._views().items():
        for x, y in zip(views, again._views()[name], strict=True):
            assert x.tobytes() == y.tobytes()
    shapes = [np.ones_like(x) for x in opt._views().get("accumulator", ())]
    params = shapes if opt._keys() is None else dict(zip(opt._keys(), shapes, strict=True))
    try:
        opt.step(params, params_like(params, 1.0))
    except (ValueError, TypeError, ArithmeticError):  # a schedule may be out of its range
        return True
    return True


def try_config(config):
    try:
        opt = RMSprop.from_config(config)
    except (ValueError, TypeError):
        return False
    assert repr(RMSprop.from_config(opt.get_config())) == repr(opt)
    return True


def peak(again=False):
    """The most megabytes of memory that this process has had, or has had from now on (Linux)."""
    if again:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--make", action="store_true", help="write the corpus again")
    arguments = parser.parse_args()
    if arguments.make:
        for name, text in seeds().items():
            (CORPUS / f"{name}.npz").write_bytes(text)
        return
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    rng = random.Random(seed)
    corpus = [path.read_bytes() for path in sorted(CORPUS.glob("*.npz"))]
    configs = []
    for text in corpus:
        with_meta(text, lambda meta: configs.append(meta["config"]) or meta)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.npz")
        for text in corpus:
            assert try_load(text, path)
        cases, accepted, slowest, largest = [0, 0], [0, 0], 0.0, 0.0
        end = time.monotonic() + arguments.seconds
        while time.monotonic() < end:
            which = cases[0] > 2 * cases[1]
            case = mutated_json(rng, rng.choice(configs)) if which else mutated(rng, corpus)
            before, start = peak(again=True), time.process_time()
            faulthandler.dump_traceback_later(30, exit=True)
            try:
                if which:
                    found = not isinstance(case, dict) or try_config(case)
                else:
                    found = try_load(case, path)
                taken = time.process_time() - start
                grown = peak() - before
                assert taken < SECONDS, f"{taken:.1f} s"
                assert grown < MEGABYTES, f"{grown:.0f} MB"
            except BaseException:
                kept = Path(tempfile.gettempdir(), f"fuzz-{seed}-{sum(cases)}")
                kept.write_bytes(repr(case).encode() if which else case)
                print(f"seed {seed}, case {sum(cases)}: {kept}", file=sys.stderr)
                raise
            faulthandler.cancel_dump_traceback_later()
            cases[which] += 1
            accepted[which] += found
            slowest, largest = max(slowest, taken), max(largest, grown)
    print(
        f"seed {seed}: {cases[0]} checkpoints ({accepted[0]} loaded), {cases[1]} configs "
        f"({accepted[1]} accepted), slowest {slowest * 1000:.0f} ms, {largest:.0f} MB at most"
    )


if __name__ == "__main__":
    main()

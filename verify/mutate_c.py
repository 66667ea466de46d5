"""Mutants of the C template, judged by comparing the bits of all it defines with the reference.

Each mutant is compiled for the compiler's own target, plainly and with roots in groups (other
instruction sets are the same text), and run on buffers that end where a page without access begins,
so that reading too far kills as well. Lines that only
prefetch are left alone: they change no result.

    python verify/mutate_c.py [--sample N]
"""

import argparse
import ctypes
import functools
import itertools
import mmap
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from mutation import KILLED, STILLBORN, SURVIVED, Mutant, judge_all, survives, verdict
from shared import CC, EXACT, ROOT

from rmsprop_c import reference

HEADER = ROOT / "rmsprop_c/include/rmsprop.h"
LEAST = 90.0
SECONDS = 20  # the judgement of a healthy one takes a tenth of a second
PASSES = {"add": 1, "decay": 2, "decay_grad": 4, "update": 8, "flush": 16}
PASSES |= {"average": 32, "overwrite": 64, "zero_grad": 128}
NAMES = ("p", "g", "a", "m", "mean", "ema", "sum")
REALS = (np.float32, np.float64)
ADD, DECAY, DECAY_GRAD, UPDATE, FLUSH, AVERAGE, OVERWRITE, ZERO_GRAD = PASSES.values()

REPLACED = {  # with blanks around: pointers, signs and increments have none
    " + ": [" - "],
    " - ": [" + "],
    " * ": [" / "],
    " / ": [" * "],
    " % ": [" / "],
    " < ": [" <= ", " >= "],
    " > ": [" >= ", " <= "],
    " >= ": [" > ", " < "],
    " <= ": [" < ", " > "],
    " == ": [" != "],
    " != ": [" == "],
    " && ": [" || "],
    " & ": [" | "],
    " | ": [" & "],
    " += ": [" -= "],
    " -= ": [" += "],
    " *= ": [" /= "],
    " /= ": [" *= "],
    " &= ": [" |= "],
}
NUMBER = re.compile(r"(?<![\w.\"])(\d+)(\.\d+)?(?![\w.\"])")
CONDITION = re.compile(r"(?<=\bif \()[^{}\n]+(?=\) \{)|(?<== )[\w>.-]+(?= \?)")
STATEMENT = re.compile(
    r"(?m)^[ ]+((?:\*?[a-z][\w.*\[\] +]*? [-+*/&|]?= |memcpy|memset|update\()"
    r"[^;{}]*;|[A-Z_]+\(rmsprop_\w+\)\([^;]*;)"
)
DECLARES = re.compile(r"\s*(?:const|double|int|size_t|struct|enum|RMSPROP_REAL|rmsprop_scalars)\b")


def mutants(source):
    """All changes of the code, in its order."""
    # Comments keep their length but lose their text.
    code = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", "@", m[0]), source, flags=re.S)
    found = []
    lines = list(lines_of(code))
    for (start, line), (_, following) in itertools.pairwise([*lines, (0, "")]):
        if line.lstrip().startswith(("#", "*", "DO(", "@")) or "PREFETCH" in line.upper():
            continue
        if "PREFETCH" in following.upper() and line.endswith("{\n"):  # a loop or if around them
            continue
        for old, news in REPLACED.items():
            for match in re.finditer(re.escape(old), line):
                if old == " * " and line[match.end() :].startswith(("restrict", "p, ", "const")):
                    continue
                at = start + match.start()
                found += [Mutant(at, at + len(old), new) for new in news]
        for match in NUMBER.finditer(line):
            new = {"0": "1", "1": "0"}.get(match[1], str(int(match[1]) + 1))
            found.append(Mutant(start + match.start(1), start + match.end(1), new))
        for match in CONDITION.finditer(line):
            found.append(Mutant(start + match.start(), start + match.end(), f"!({match[0]})"))
    for match in STATEMENT.finditer(code):
        text = match[1]
        if "PREFETCH" not in text.upper() and not DECLARES.match(text):
            gap = "".join(c if c in "\\\n" else "" for c in text)
            found.append(Mutant(match.start(1), match.end(1), gap + ";"))
    return sorted(set(found))


def lines_of(code):
    at = 0
    for line in code.splitlines(keepends=True):
        yield at, line
        at += len(line)


USUAL = {  # in the order of the C struct
    "learning_rate": 0.01,
    "rho": 0.9,
    "epsilon": 1e-8,
    "scale": 0.7,
    "clipvalue": 0.25,
    "rho_power": 0.0,
    "momentum": 0.8,
    "lr_outside": 0.0,
    "weight_decay": 0.3,
    "ema_momentum": 0.95,
}


class Scalars(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in USUAL]


def inputs(wide, n, absent=()):
    """Buffers by name: exponents over a wide range, and what a branch asks for."""
    real = REALS[wide]
    arrays = {}
    tiny, huge = np.finfo(real).tiny, np.finfo(real).max
    for i, name in enumerate(NAMES):
        if name not in absent:
            arrays[name] = reference.spread_values(n, 1000 * i + n, -70, 8, real)
    arrays["a"] = abs(arrays["a"])
    if n > 100:
        special = [0, -0.0, 0.25, -0.25, np.inf, -np.inf, np.nan, huge, -huge, tiny, 5e-324]
        for x in arrays.values():
            x[: len(special)] = special
        arrays["a"][: len(special)] = np.resize([0, 2 * tiny, tiny, 1e-30, np.inf], len(special))
        for name in set(arrays) & {"a", "m", "mean"}:
            arrays[name][40:60] = 2 * tiny  # halved, the smallest normal number
            arrays[name][60:70] = arrays[name][120:140] = tiny  # and a subnormal one
        for name in set(arrays) & {"g", "sum", "p"}:
            arrays[name][40:70] = arrays[name][120:140] = 0
    return arrays


def expected(variant, passes, arrays, scalars):
    """What the reference makes of the buffers."""
    s = dict(scalars)
    x = {name: array.copy() for name, array in arrays.items()}
    p = x["p"]
    real = p.dtype.type
    if passes & ADD and "g" in x:
        x["sum"] += x["g"]
    if passes & DECAY:
        p -= real(s["learning_rate"] * s["weight_decay"]) * p
    if passes & UPDATE:
        g = x.get("sum", x.get("g")) * real(s["scale"])
        high = real(s["clipvalue"])
        g = np.where(g < -high, -high, g)
        g = np.where(g > high, high, g)
        if passes & DECAY_GRAD:
            g = g + real(s["weight_decay"]) * p
        heavy = variant % 6 // 2
        reference.update(
            p,
            g,
            x["a"],
            x.get("m"),
            x.get("mean"),
            lr=s["learning_rate"],
            rho=s["rho"],
            epsilon=s["epsilon"],
            momentum=s["momentum"] if heavy else 0.0,
            nesterov=heavy == 2,
            centered=variant >= 6,
            epsilon_in_sqrt=bool(variant % 2),
            lr_in_momentum=not s["lr_outside"],
            unbiased=1.0 - s["rho_power"],
            flush_subnormals=bool(passes & FLUSH),
        )
        if "sum" in x:
            x["sum"][...] = 0
    if passes & AVERAGE:
        keep = real(s["ema_momentum"])
        x["ema"][...] = keep * x["ema"] + (real(1) - keep) * p
    if passes & OVERWRITE:
        p[...] = x["ema"]
    if passes & ZERO_GRAD and "g" in x:
        x["g"][...] = 0
    return x


def steps():
    """Calls of updates and blocks: (wide, variant, passes or None, buffers, scalars, result)."""
    chosen = []
    for wide, variant in itertools.product((0, 1), range(12)):
        absent = {"ema", "sum"}
        absent |= set() if variant % 6 >= 2 else {"m"}
        absent |= set() if variant >= 6 else {"mean"}
        for rho_power, outside in itertools.product((0.0, 0.271), (0.0, 1.0)):
            own = {"rho_power": rho_power, "lr_outside": outside}
            chosen.append((wide, variant, None, 203, absent, own))
        chosen.append((wide, variant, None, 20_011, absent, {}))
        largest = float(np.finfo(REALS[wide]).max)  # an infinite gradient becomes this
        for clipvalue in (0.25, largest, np.inf):
            own = {"scale": 1.0, "clipvalue": clipvalue}
            chosen.append((wide, variant, None, 203, absent, own))
        chosen.append((wide, variant, UPDATE | FLUSH, 203, absent, {"rho": 0.5, "momentum": 0.5}))
        chosen.append((wide, variant, UPDATE | DECAY_GRAD, 203, absent, {"epsilon": 0.0}))
        if variant not in (1, 10):
            continue
        for n in (0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 16_384, 16_411):
            chosen += [(wide, variant, None, n, absent, {"clipvalue": np.inf})] * 2
            chosen.append((wide, variant, UPDATE | DECAY, n, absent, {}))
        everything = absent - {"ema", "sum"}
        for passes in (
            *(UPDATE | bit for bit in PASSES.values()),
            ADD | DECAY | UPDATE,
            ADD | AVERAGE | ZERO_GRAD,
            ADD | AVERAGE | OVERWRITE,
            ADD | UPDATE | DECAY_GRAD | FLUSH | AVERAGE | OVERWRITE | ZERO_GRAD,
        ):
            chosen.append((wide, variant, passes, 203, everything, {"rho_power": 0.1}))
            chosen.append((wide, variant, passes, 403, everything | {"g"}, {}))
            if not passes & ADD:
                chosen.append((wide, variant, passes, 301, everything | {"sum"}, {}))
    for wide, variant, passes, n, absent, own in chosen:
        arrays, scalars = inputs(wide, n, absent), USUAL | own
        with np.errstate(all="ignore"):
            result = expected(variant, UPDATE if passes is None else passes, arrays, scalars)
        yield wide, variant, passes, arrays, scalars, result


def block_sums(g):
    """The leaves of `reference.global_norm`."""
    padded = np.zeros(-(-g.size // reference.BLOCK) * reference.BLOCK)
    padded[: g.size] = g
    rows = (padded * padded).reshape(-1, reference.BLOCK // reference.LANES, reference.LANES)
    lanes = np.zeros((len(rows), reference.LANES))
    for row in range(rows.shape[1]):
        lanes += rows[:, row]
    return reference.pairwise_sum(lanes.T)


@functools.cache
def cases():
    """All of it, made once: what judges a mutant starts as a copy of this process."""
    made = list(steps())
    norms = []
    with np.errstate(all="ignore"):
        for wide, n in itertools.product((0, 1), (1, 15, 16, 17, 4095, 4096, 4097, 20_011)):
            g = reference.spread_values(n, n, -60, 8, REALS[wide])
            norms.append((wide, g, block_sums(g)))
    return made, norms


@functools.cache
def libc():
    library = ctypes.CDLL(None)
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def fenced(x, behind=0):
    """A copy that ends so many bytes before a page without access; all around must stay 0xA5."""
    x = np.ascontiguousarray(x)
    page = mmap.PAGESIZE
    size = -(-(x.nbytes + behind + 64) // page) * page
    area = mmap.mmap(-1, size + page)
    whole = np.frombuffer(area, np.uint8)
    whole[:size] = 0xA5
    libc().mprotect(whole.ctypes.data + size, page, 0)
    begin = size - behind - x.nbytes
    copy = whole[begin : begin + x.nbytes].view(x.dtype)
    copy[...] = x
    return copy, (whole[:begin], whole[begin + x.nbytes : size])


def untouched(around):
    return all((part == 0xA5).all() for part in around)


def same(found, wanted):
    """Are all bits equal, NaN's aside?"""
    found, wanted = (np.where(np.isnan(x), x.dtype.type(np.nan), x) for x in (found, wanted))
    return found.tobytes() == wanted.tobytes()


def passes_all(path):
    """Does a library give the bits of the reference throughout?"""
    library = ctypes.CDLL(str(path))
    for name in ("rmsprop_update", "rmsprop_grouped", "rmsprop_function"):
        getattr(library, name).restype = ctypes.c_void_p
    pointer, size, integer, real = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int64,
        ctypes.c_double,
    )
    update = ctypes.CFUNCTYPE(None, *[pointer] * 5, size, pointer)
    plain = ctypes.CFUNCTYPE(None, *[pointer] * 3, size, pointer)
    blocks = ctypes.CFUNCTYPE(None, pointer, ctypes.c_int, *[pointer] * 7, size, pointer)

    def function(wide, i, *types):
        return ctypes.CFUNCTYPE(*types)(library.rmsprop_function(wide, i))

    made, norms = cases()
    ways = (library.rmsprop_update, library.rmsprop_grouped)
    for i, (way, case) in enumerate((way, case) for case in made for way in ways):
        wide, variant, passes, arrays, scalars, wanted = case
        # With 24 bytes behind it p begins off a cache line even where it is shorter than one.
        areas = {name: fenced(x, 24 * (i // 2 % 2)) for name, x in arrays.items()}
        address = {name: areas[name][0].ctypes.data if name in areas else 0 for name in NAMES}
        buffers = [address[name] for name in NAMES]
        c = ctypes.byref(Scalars(**scalars))
        entry, n = way(wide, variant), len(arrays["p"])
        if passes is None:
            update(entry)(*buffers[:5], n, c)
        else:
            blocks(library.rmsprop_function(wide, 0))(entry, passes, *buffers, n, c)
        for name, (array, around) in areas.items():
            if not same(array, wanted[name]) or not untouched(around):
                return False
    for wide in (0, 1):
        arrays = inputs(wide, 203, {"m", "mean", "ema", "sum"})
        areas = [fenced(arrays[name])[0] for name in "pga"]
        with np.errstate(all="ignore"):
            wanted = expected(0, UPDATE, arrays, USUAL)
        c = ctypes.byref(Scalars(**USUAL))
        plain(library.rmsprop_function(wide, 3))(*[x.ctypes.data for x in areas], 203, c)
        if not all(same(x, wanted[name]) for x, name in zip(areas, "pga", strict=True)):
            return False
        if library.rmsprop_update(wide, 12) or library.rmsprop_update(wide, -1):
            return False

    count = function(1, 8, size, size)
    scale = function(1, 5, real, pointer, size, real, integer, ctypes.c_int)
    for wide, g, wanted in norms:
        array, _ = fenced(g)
        sums, around = fenced(np.full(len(wanted), 7.0))
        function(wide, 1, None, pointer, size, pointer)(array.ctypes.data, g.size, sums.ctypes.data)
        if not same(sums, wanted) or not untouched(around) or count(g.size) != len(wanted):
            return False
        norm = float(np.sqrt(reference.pairwise_sum(wanted)))
        for clipnorm, calls, maximize in (
            (norm, 1, 0),
            (norm / 3, 1, 1),
            (norm / 3, 3, 0),
            (norm * 2, 2, 1),
            (0.0, 4, 0),
            (-1.0, 1, 1),
        ):
            mean = 1.0 / calls
            factor = 1.0
            if clipnorm > 0 and norm * mean >= clipnorm:
                factor = clipnorm / (norm * mean)
            copy, _ = fenced(sums)
            if scale(copy.ctypes.data, len(sums), clipnorm, calls, maximize) != factor * (
                -mean if maximize else mean
            ):
                return False
    odd = [([], 0.5, 1.0), ([np.inf], 0.5, 0.0), ([np.nan], 0.5, 1.0), ([1.0, 2.0, 4.0], 0.0, 1.0)]
    odd.append(([0.0], 0.0, 1.0))
    for sums, clipnorm, wanted in odd:
        copy, _ = fenced(np.array(sums))
        if scale(copy.ctypes.data, len(sums), clipnorm, 1, 0) != wanted:
            return False
    if [count(n) for n in (0, 1, 4096, 4097, 8192)] != [0, 1, 1, 2, 2]:
        return False

    rate = function(1, 4, real, real, real, integer)
    power = function(1, 6, real, real, integer)
    for lr, decay, n in itertools.product(
        (0.001, 0.3), (0.0, 1e-6, 0.1, 1.0, 3.0), (0, 1, 7, 10**6)
    ):
        if rate(lr, decay, n) != reference.learning_rate(lr, decay, n):
            return False
        if power(lr, n) != reference.power(lr, n) or power(decay, n) != reference.power(decay, n):
            return False
    if power(0.5, -1) != 1.0 or function(1, 7, real, real, real)(0.3, 0.7) != 0.3 * 0.7:
        return False
    return finite_agrees(function, size, pointer)


def finite_agrees(function, size, pointer):
    """Is the answer right for a bad gradient at any place, and for bounds that make it good?"""
    for wide, n in itertools.product((0, 1), (0, 1, 17, 4096, 8644)):
        finite = function(wide, 2, ctypes.c_int, pointer, size, pointer)
        root = np.sqrt(np.finfo(REALS[wide]).max)
        for value, at, own in itertools.product(
            (1.0, root, -root, root * 1.0001, -root * 1.0001, root * 0.4, np.inf, -np.inf, np.nan),
            {0, n // 2, n - 1},
            ({}, {"clipvalue": 1.0}, {"scale": 0.5}, {"scale": 3.0}),
        ):
            g = np.full(n, -0.5, REALS[wide])
            if n:
                g[at] = value
            s = {"scale": 1.0, "clipvalue": np.inf} | own
            with np.errstate(all="ignore"):
                x = g * REALS[wide](s["scale"])
                x = np.where(np.isnan(x), x, np.clip(x, -s["clipvalue"], s["clipvalue"]))
                wanted = bool(np.isfinite(x * x).all())
            array, _ = fenced(g)
            c = ctypes.byref(Scalars(**USUAL | s))
            if finite(array.ctypes.data, n, c) != wanted:
                return False
    return True


def judge(folder, source, mutant):
    """Compile one, and run it in a process of its own."""
    own = Path(tempfile.mkdtemp(dir=folder))
    (own / "rmsprop.h").write_text(mutant.apply(source) if mutant else source)
    library = own / "mutant.so"
    command = [*CC, "-O0", "-w", f"-I{own}", *EXACT, "-shared", "-fPIC", "-o", library]
    command += [ROOT / "verify/mutants.c", "-lm"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except subprocess.CalledProcessError as error:
        return mutant, STILLBORN if mutant else error.stderr.decode()
    alive = survives(functools.partial(passes_all, library), SECONDS)
    library.unlink()
    return mutant, SURVIVED if alive else KILLED


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, help="so many of them, always the same")
    arguments = parser.parse_args()
    source = HEADER.read_text()
    chosen = mutants(source)
    if arguments.sample:
        chosen = random.Random(0).sample(chosen, arguments.sample)
    cases()
    with tempfile.TemporaryDirectory() as folder:
        if (unchanged := judge(folder, source, None)[1]) != SURVIVED:
            raise SystemExit(f"the unchanged header was {unchanged}")
        work = functools.partial(judge, folder, source)
        outcomes = judge_all(work, chosen)
    return verdict(
        "Mutants of the C template", "include/rmsprop.h", source, outcomes, LEAST, arguments.sample
    )


if __name__ == "__main__":
    sys.exit(main())

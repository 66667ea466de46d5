"""Fails when the package has become a third slower, by ratios and not by times.

Each cell is a ratio of times within one process: ours to the machine's limit (the slower of memory
traffic and divider), or ours to NumPy's update. guard.json holds the committed ratios, by
processor, since they differ (200x1000: 1.60 on Zen 3, 1.09 on Sapphire Rapids). A name may be that
of several generations (Zen 3 and Zen 4 are "AMD EPYC" to a guest): --record adds family and model,
and what is recorded with them goes before the name alone. A processor that is not there gets the
largest. A cell fails
if its ratio is more than a third above the committed one in each of five attempts: noise seldom
repeats, a slower package does.

    python bench/guard.py            # compare
    python bench/guard.py --record   # measure new ratios for guard.json
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from limit import Limit, processor
from sweep import MLP, OPTIONS, arrays, compare, repeated, stepper, with_threads
from tqdm import tqdm
from training import NumpyOut

from rmsprop_c import _core, set_num_threads

COMMITTED = Path(__file__).resolve().parent / "guard.json"
SLOWER = 4 / 3
ATTEMPTS = 5
FIELDS = {"family": "cpu family", "model": "model"}  # and what Linux calls them
CELLS = {  # model, dtype, options, what ours is compared with
    "784-512-10 float32 / limit": (MLP, "float32", {}, "limit"),
    "784-512-10 float64 / limit": (MLP, "float64", {}, "limit"),
    "200x1000 float32 / limit": ([(1000,)] * 200, "float32", {}, "limit"),
    "1x10M float32 / limit": ([(10_000_000,)], "float32", {}, "limit"),
    "784-512-10 float32, all clipping / limit": (
        MLP,
        "float32",
        {"clipnorm": 1.0, "clipvalue": 0.1, "decay": 1e-4},
        "limit",
    ),
    "1x10M float32, most options / limit": (
        [(10_000_000,)],
        "float32",
        OPTIONS["together"],
        "limit",
    ),
    "1x10 float32 / NumPy": ([(10,)], "float32", {}, "numpy"),
    "10x100 float32 / NumPy": ([(100,)] * 10, "float32", {}, "numpy"),
}


def generation():
    """The processor's name with its family and model, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return processor()
    fields = dict(
        reversed([[x.strip() for x in line.split(":", 1)] for line in lines if ":" in line])
    )
    known = [f"{x} {fields[key]}" for x, key in FIELDS.items() if key in fields]
    return ", ".join([processor(), *known])


def measure(name, limit):
    """The ratio of a cell: the smaller, the better."""
    shapes, dtype, options, base = CELLS[name]
    params, grads = arrays(shapes, dtype)
    _, ours = stepper(params, grads, **options)
    ours = with_threads(1, ours)
    if base == "numpy":
        theirs = NumpyOut(params)
        found = compare({"base": repeated(lambda: theirs.step(params, grads)), "ours": ours}, 0.5)
        return found["ours"]["ratio"]
    accumulators = [np.ones_like(p) for p in params]
    elements = sum(p.size for p in params)
    found = compare(
        {
            "traffic": limit.traffic(params, grads, accumulators, 1),
            "divider": limit.divider(dtype, elements, 1),
            "ours": ours,
        },
        0.7,
    )
    slowest = max(found["traffic"]["median"], found["divider"]["median"])
    return found["ours"]["median"] / slowest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write guard.json")
    record = parser.parse_args().record
    limit = Limit.like(_core.chosen_isa())
    by_processor = json.loads(COMMITTED.read_text())
    largest = {name: max(ratios[name] for ratios in by_processor.values()) for name in CELLS}
    committed = by_processor.get(generation(), by_processor.get(processor(), largest))
    found, failed = {}, []
    for name in tqdm(CELLS, unit="cell"):
        attempts = []
        for _ in range(ATTEMPTS):
            attempts.append(measure(name, limit))
            if not record and attempts[-1] <= committed[name] * SLOWER:
                break
        found[name] = float(np.median(attempts)) if record else min(attempts)
        if not record and found[name] > committed[name] * SLOWER:
            failed.append(name)
    set_num_threads(None)
    for name, ratio in found.items():
        verdict = "" if record else f"  committed {committed[name]:.3f}"
        print(f"{name:42} {ratio:.3f}{verdict}{'  A THIRD SLOWER' if name in failed else ''}")
    if record:
        by_processor[generation()] = {name: round(ratio, 3) for name, ratio in found.items()}
        COMMITTED.write_text(json.dumps(by_processor, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

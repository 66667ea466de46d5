"""The package, the machine's limits and every installed peer, side by side.

    python bench/compare.py --peers numpy,torch --models MLP --threads 1 --out result.json

Every library runs in a process of its own, with the package and the limit loops of limit.py beside
it: one round times a batch of each, in random order, and ratios are taken within a round, so that a
drift of the machine's speed falls on both sides. Parent and child talk in lines of JSON.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from queue import Empty, Queue

import numpy as np
from limit import Limit, processor, vector_bytes_of
from peers import PARALLEL_FROM, PEERS, Hyperparameters, reference, thread_environment
from tqdm import tqdm

BATCH = 0.008  # seconds of one timed batch, or one step if that takes longer
# Each batch follows untimed steps for this long: they bring back the caches, and with threads they
# outlast the workers of the one before, which spin for 4 ms.
WARM_UP = {"serial": 0.001, "threads": 0.006}
ROUNDS = (5, 60)  # at least, at most
SECONDS_PER_CELL = 4.0
LONGEST = 1500.0  # seconds of a run, unless --time-budget says otherwise
TIMEOUT = 420.0  # seconds without a word from a child: torch.compile takes up to 60 for 200 tensors
CHECKED_STEPS = 3
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # of the largest value of a tensor
TIE = 0.05
# A neighbour that keeps one of two processors busy made two-thread steps 100 times slower.
DISTURBED = 0.15  # processors used by others

OURS = ("opt.step", "opt.bind")
LIMITS = ("traffic", "divider")


def resnet50():
    """Shapes of ResNet-50's 161 parameters (He et al. 2015), convolutions without bias."""
    shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [
                (width, inputs, 1, 1),
                (width, width, 3, 3),
                (4 * width, width, 1, 1),
            ]
            if block == 0:
                convolutions.append((4 * width, inputs, 1, 1))  # the shortcut's projection
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]  # and its batch norm's scale and shift
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


MODELS = {
    "1x10": [(10,)],
    "10x100": [(100,)] * 10,
    "200x1000": [(1000,)] * 200,
    "MLP": [(784, 512), (512,), (512, 10), (10,)],
    "ResNet-50": resnet50(),
    "1x25M": [(25_000_000,)],
}
DTYPES = ("float32", "float64")


# The child


def repeated(step):
    """Turn step() into run(count)."""

    def run(count):
        for _ in itertools.repeat(None, count):
            step()

    return run


def package_steps(params, grads, hyperparameters):
    """The package's two rows over one optimizer: public API only."""
    from rmsprop_c import RMSprop

    lr, rho, epsilon = hyperparameters
    optimizer = RMSprop(lr=lr, rho=rho, epsilon=epsilon)

    def run(count, step=optimizer.step, params=params, grads=grads):
        for _ in itertools.repeat(None, count):
            step(params, grads)

    run(1)
    return {"opt.step": run, "opt.bind": repeated(optimizer.bind(params, grads))}


def difference(params, expected):
    """Largest difference of two lists of arrays, each relative to its tensor's largest value."""
    worst = 0.0
    for p, e in zip(params, expected, strict=True):
        worst = max(worst, float(np.max(np.abs(p - e)) / np.max(np.abs(e))))
    return worst


def seconds(run, count):
    """Time of run(count)."""
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


def busy_seconds():
    """Time that all processors together were busy or taken by another guest; None if unknown."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def calibrate(run):
    """How many steps make a batch."""
    count = 1
    while (took := seconds(run, count)) < BATCH / 4:
        count *= 2
    return max(1, round(count * BATCH / took))


class Cell:
    """One model in one dtype: what is measured together, round by round.

    Parameters
    ----------
    shapes : list of tuple
        The model.
    dtype : str
        Of all its tensors.
    threads : int
        For everything in the cell.
    """

    def __init__(self, shapes, dtype, threads):
        rng = np.random.default_rng(20260)
        self.dtype, self.threads = dtype, threads
        self.hyperparameters = Hyperparameters()
        self.initial, self.grads = (
            [rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes]
            for _ in range(2)
        )
        self.elements = sum(p.size for p in self.initial)
        self.expected = {}
        self.runs = {}
        self.failed = {}
        self.checks = {}

    def check(self, name, params, formula):
        """Compare a peer's parameters after CHECKED_STEPS with the formula in NumPy."""
        if formula not in self.expected:
            self.expected[formula] = reference(
                self.initial, self.grads, self.hyperparameters, CHECKED_STEPS, formula
            )
        found = difference(params, self.expected[formula])
        self.checks[name] = found
        if not found <= TOLERANCE[self.dtype]:  # a NaN fails too
            raise ArithmeticError(
                f"after {CHECKED_STEPS} steps its parameters differ from the formula by {found:.2g}"
            )

    def add_limits(self, limit):
        """The loops of limit.py, over arrays like the package's."""
        params = [p.copy() for p in self.initial]
        accumulators = [np.zeros_like(p) for p in params]
        # a team of threads costs 1 us: below this size one thread is the faster limit
        threads = self.threads if self.elements >= PARALLEL_FROM else 1
        self.runs["traffic"] = limit.traffic(params, self.grads, accumulators, threads)
        self.runs["divider"] = limit.divider(self.dtype, self.elements, threads)

    def add_package(self):
        """Both rows of the package, checked like a peer."""
        params = [p.copy() for p in self.initial]
        runs = package_steps(params, self.grads, self.hyperparameters)
        runs["opt.step"](1)
        runs["opt.bind"](1)
        self.check("rmsprop_c", params, "outside")
        self.runs.update(runs)

    def add_peer(self, peer):
        """One row, checked if its formula is known; what it raises is recorded."""
        try:
            params = [p.copy() for p in self.initial]
            step, read = peer.make(params, self.grads, self.hyperparameters, self.threads)
            for _ in range(CHECKED_STEPS):
                step()
            if peer.formula:
                self.check(peer.name, read(), peer.formula)
            self.runs[peer.name] = repeated(step)
        except Exception as error:
            self.failed[peer.name] = f"{type(error).__name__}: {error}"[:400]

    def measure(self, until):
        """Time all rows, round by round, until time.time() reaches `until`.

        Returns
        -------
        dict
            ``rows``: per row its microseconds a step and, per row of ours and of the limit, its
            ratio to that row; medians and quartiles. ``rounds``, ``failed``, ``checks``, and
            ``others``: how many processors everything else on the machine used meanwhile.
        """
        self.expected, self.initial = {}, []
        batches = {name: calibrate(run) for name, run in self.runs.items()}
        warm_up = WARM_UP["threads" if self.threads > 1 else "serial"]
        times = {name: [] for name in self.runs}
        order = random.Random(0)
        names = list(self.runs)
        fewest, most = ROUNDS
        gc.collect()
        gc.disable()
        start, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
        for done in range(most):
            if done >= fewest and time.time() >= until:
                break
            order.shuffle(names)
            for name in names:
                run, batch = self.runs[name], batches[name]
                portion = max(1, batch // 10)
                end = time.perf_counter() + warm_up
                while True:
                    run(portion)
                    if time.perf_counter() >= end:
                        break
                times[name].append(seconds(run, batch) / batch * 1e6)
        gc.enable()
        others = None
        if busy is not None:
            own = time.process_time() - own
            others = (busy_seconds() - busy - own) / (time.perf_counter() - start)
        bases = [name for name in (*OURS, *LIMITS) if name in times]
        rows = {
            name: {
                "microseconds": spread(measured),
                "ratio": {
                    base: spread([x / y for x, y in zip(measured, times[base], strict=True)])
                    for base in bases
                },
            }
            for name, measured in times.items()
        }
        return {
            "rounds": len(next(iter(times.values()), [])),
            "rows": rows,
            "failed": self.failed,
            "checks": self.checks,
            "others": others,
        }


def spread(values):
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def child():
    """Measure the cells of one library; the job comes on stdin, events leave on stdout."""
    job = json.loads(sys.stdin.readline())
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print what they like

    def emit(**event):
        events.write(json.dumps(event) + "\n")

    peers = {peer.name: peer for peer in PEERS}
    library = next(p.library for p in PEERS if p.library.name == job["library"])
    threads = job["threads"]
    if hasattr(os, "sched_setaffinity"):  # XLA takes one thread per processor that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    try:
        for module in library.modules:
            importlib.import_module(module)
    except ImportError as error:
        emit(event="missing", reason=str(error))
        return
    library.set_threads(threads)
    if job["package"]:
        import rmsprop_c

        rmsprop_c.set_num_threads(threads)
    limit = Limit(job["vector_bytes"]) if job["limit"] else None
    emit(event="ready")
    for left, item in zip(range(len(job["cells"]), 0, -1), job["cells"], strict=True):
        emit(event="start", cell=item["cell"])
        start = time.time()
        until = start + (job["deadline"] - start) / left
        cell = Cell(MODELS[item["model"]], item["dtype"], threads)
        if limit:
            cell.add_limits(limit)
        if job["package"]:
            cell.add_package()
        for name in job["rows"]:
            emit(event="row", cell=item["cell"], row=name)
            cell.add_peer(peers[name])
        emit(event="timing", cell=item["cell"])
        emit(event="cell", cell=item["cell"], **cell.measure(until))
        del cell
        gc.collect()


# The parent


class Child:
    """A child process and the events it sends."""

    def __init__(self, job, environment):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (end() reads and closes it)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            start_new_session=True,  # so that its own children end with it
        )
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        self.events = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.events.put(json.loads(line))
        self.events.put(None)

    def __iter__(self):
        while (event := self.events.get(timeout=TIMEOUT)) is not None:
            yield event

    def end(self):
        """Stop it if it still runs, and say how it ended."""
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            code = None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (OSError, AttributeError):
            self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().strip().splitlines()[-1:]
        self.errors.close()
        return f"ended with status {code}" + "".join(f": {line[:300]}" for line in last)


def run_library(library, rows, threads, cells, settings, finished):
    """Measure all cells of one library at one number of threads.

    A row that crashes or hangs while it is set up is given up, and the rest goes on without it in a
    new process; at any other time the cell is given up.

    Parameters
    ----------
    library : Library
        What runs.
    rows : list of str
        Its selected rows.
    threads : int
        For everything.
    cells : list of tuple
        (model, dtype) pairs.
    settings : dict
        What every child is told: ``package``, ``limit``, ``vector_bytes``, ``deadline``.
    finished : callable
        Called with (model, dtype, result) for each cell.
    """
    environment = {**os.environ, **thread_environment(threads), **library.environment}
    waiting = list(range(len(cells)))
    lost = {}  # row -> why it is not tried any more

    def finish(index, result):
        waiting.remove(index)
        result["failed"] |= lost
        finished(*cells[index], result)

    while waiting:
        left = [row for row in rows if row not in lost]
        items = [{"cell": i, "model": cells[i][0], "dtype": cells[i][1]} for i in waiting]
        job = {"library": library.name, "rows": left, "threads": threads, "cells": items}
        process = Child(job | settings, environment)
        phase, current, row, why = "start", None, None, None
        try:
            for event in process:
                phase = event.pop("event")
                current, row = event.pop("cell", None), event.pop("row", None)
                if phase == "missing":
                    why = f"cannot be imported: {event['reason']}"
                elif phase == "cell":
                    finish(current, event)
                    current = None
        except Empty:
            why = f"said nothing for {TIMEOUT:.0f} s"
        finally:
            end = process.end()
        if not waiting:
            return
        why = why or end
        if phase == "row":
            lost[row] = f"{why} ({' '.join(cells[current])})"
            continue
        for index in [current] if current is not None else list(waiting):
            finish(index, {"rounds": 0, "rows": {}, "failed": dict.fromkeys(left, why)})


def caches():
    """Sizes of the first processor's data caches, by level."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def versions(libraries):
    """Versions of what is installed, NumPy and the package included."""
    names = {"rmsprop-c", "numpy"}.union(*(library.distributions for library in libraries))
    found = {}
    for name in sorted(names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def processors():
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def selected(text, names, what):
    """The names that a comma-separated list asks for, by their beginnings; all if it is empty."""
    words = [word.strip().lower().replace("-", " ") for word in text.split(",") if word.strip()]
    if not words or words == ["all"]:
        return list(names)
    chosen = []
    for word in words:
        found = [name for name in names if name.lower().replace("-", " ").startswith(word)]
        if not found:
            raise SystemExit(f"no {what} {word!r}; there are: {', '.join(names)}")
        exact = [name for name in found if name.lower().replace("-", " ") == word]
        chosen += found if what == "peer" else exact or found
    return [name for name in names if name in chosen]


def thread_counts(text):
    """Parse "1,all" or "1,2"."""
    everything = processors()
    counts = {everything if word.strip() == "all" else int(word) for word in text.split(",")}
    if not all(1 <= count <= everything for count in counts):
        raise SystemExit(f"--threads {text}: this process may use 1 to {everything}")
    return sorted(counts)


def significant(x):
    """Three significant digits, or all digits before the point."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def disturbed(cell):
    """Whether other work on the machine makes a cell's figures doubtful."""
    return (cell.get("others") or 0) > DISTURBED


def table(result):
    """The result as text: one table per dtype and number of threads, then ties and losses."""
    models = [m for m in MODELS if any(cell["model"] == m for cell in result["cells"])]
    marks = {peer.name: {"inside": " *", None: " +"}.get(peer.formula, "") for peer in PEERS}
    rows = [*LIMITS, *OURS, *(name for name in marks if name in result["peers"])]
    lines, close = [], {"tie": [], "loss": []}
    groups = sorted({(cell["dtype"], cell["threads"]) for cell in result["cells"]})
    for dtype, threads in groups:
        cells = [c for c in result["cells"] if (c["dtype"], c["threads"]) == (dtype, threads)]
        plural = "s" if threads > 1 else ""
        lines += ["", f"{dtype}, {threads} thread{plural}: us per step (multiple of opt.step)"]
        body = [["", *models]]
        for name in rows:
            line = [name + marks.get(name, "")]
            for model in models:
                here = [c for c in cells if c["model"] == model and name in c["rows"] | c["failed"]]
                entries = [c["rows"][name] for c in here if name in c["rows"]]
                if not entries:
                    failed = any(name in c["failed"] for c in here)
                    missing = any(name in names for names in result["missing"].values())
                    line.append("failed" if failed else "missing" if missing else "-")
                    continue
                text = significant(statistics.median(e["microseconds"]["median"] for e in entries))
                ratios = [
                    e["ratio"]["opt.step"]["median"] for e in entries if "opt.step" in e["ratio"]
                ]
                if ratios and name != "opt.step":
                    ratio = statistics.median(ratios)
                    text += f" ({significant(ratio)})"
                    if name in marks and ratio < 1 + TIE:
                        kind = "loss" if ratio < 1 - TIE else "tie"
                        place = f"{model} {dtype} {threads} thread{plural}"
                        doubt = ", disturbed" if any(map(disturbed, here)) else ""
                        close[kind].append(f"{name}{marks[name]}: {place} ({ratio:.2f}{doubt})")
                line.append(text)
            body.append(line)
        widths = [max(map(len, column)) for column in zip(*body, strict=True)]
        for line in body:
            cells_text = [x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True)]
            lines.append("  ".join([line[0].ljust(widths[0]), *cells_text]).rstrip())
    lines += ["", "* epsilon inside the root: another formula   + Adam: a neighbour"]
    if not result["settings"]["package"]:
        lines.append("rmsprop_c is not installed here: no multiples")
    lines.append(f"ties, within {TIE:.0%}: " + ("; ".join(close["tie"]) or "none"))
    lines.append("losses, faster than opt.step by more: " + ("; ".join(close["loss"]) or "none"))
    for why, names in result["missing"].items():
        lines.append(f"missing: {', '.join(names)} ({why})")
    doubtful = [cell["others"] for cell in result["cells"] if disturbed(cell)]
    if doubtful:
        lines.append(
            f"disturbed: {len(doubtful)} of {len(result['cells'])} measurements, by other work on"
            f" up to {max(doubtful):.1f} processors; do not trust these (others in the JSON)"
        )
    told = {}
    for cell in result["cells"]:
        for name, why in cell["failed"].items():
            told.setdefault((name, why), []).append(
                f"{cell['model']} {cell['dtype']} {cell['threads']}"
            )
    for (name, why), places in told.items():
        lines.append(f"failed: {name}: {why} [{', '.join(places)}]")
    return "\n".join(lines)


def main():
    """Parse the command line, run all children, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description="Time rmsprop_c, the machine's limits and every installed peer side by side.",
        epilog="peers: "
        + ", ".join(peer.name for peer in PEERS)
        + "; models: "
        + ", ".join(MODELS),
    )
    parser.add_argument("--peers", default="", help="beginnings of names, e.g. numpy,torch (all)")
    parser.add_argument("--models", default="", help="names, e.g. MLP,1x10 (all)")
    parser.add_argument("--dtypes", default="", help="float32,float64 (both)")
    parser.add_argument("--threads", default="1,all", help="numbers or 'all' (1,all)")
    parser.add_argument("--time-budget", type=float, metavar="SECONDS", help="for the whole run")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    arguments = parser.parse_args()

    names = selected(arguments.peers, [peer.name for peer in PEERS], "peer")
    models = selected(arguments.models, MODELS, "model")
    dtypes = selected(arguments.dtypes, DTYPES, "dtype")
    threads = thread_counts(arguments.threads)

    libraries = {}
    for peer in PEERS:
        if peer.name in names:
            libraries.setdefault(peer.library.name, (peer.library, []))[1].append(peer.name)
    missing = {}
    for key, (library, rows) in list(libraries.items()):
        absent = [name for name in library.modules if importlib.util.find_spec(name) is None]
        if absent:
            missing.setdefault(f"not installed: {', '.join(absent)}", []).extend(rows)
            del libraries[key]

    package, isa = None, ""
    if importlib.util.find_spec("rmsprop_c"):
        import rmsprop_c

        package = rmsprop_c.build_info()
        isa = package["isa"]
    vector_bytes = vector_bytes_of(isa) if isa else None
    try:
        limit = Limit(vector_bytes).disassembly()
    except RuntimeError as error:
        limit = {"missing": str(error)}
        print(f"the limits are missing: {error}", file=sys.stderr)

    cells = [(model, dtype) for model in models for dtype in dtypes]
    total = len(libraries) * len(threads) * len(cells)
    budget = arguments.time_budget or min(LONGEST, SECONDS_PER_CELL * total)
    settings = {
        "package": package is not None,
        "limit": "missing" not in limit,
        "vector_bytes": vector_bytes,
    }
    result = {
        "date": date.today().isoformat(),
        "machine": {
            "processor": processor(),
            "architecture": platform.machine(),
            "processors": processors(),
            "caches": caches(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
        "package": package,
        "versions": versions([library for library, _ in libraries.values()]),
        "limit": limit,
        "settings": settings
        | {
            "time_budget": budget,
            "batch": BATCH,
            "warm_up": WARM_UP,
            "hyperparameters": Hyperparameters()._asdict(),
            "checked_steps": CHECKED_STEPS,
            "tolerance": TOLERANCE,
        },
        "peers": {peer.name: {"formula": peer.formula} for peer in PEERS if peer.name in names},
        "missing": missing,
        "cells": [],
    }
    finish_at = time.time() + budget
    try:
        with tqdm(total=total, unit="cell") as bar:
            for count in threads:
                for library, rows in libraries.values():
                    now = time.time()
                    share = max(0, finish_at - now) * len(cells) / (total - bar.n)
                    bar.set_description(f"{library.name}, {count} threads")

                    def finished(model, dtype, measured, library=library, count=count, bar=bar):
                        shapes = MODELS[model]
                        result["cells"].append(
                            {
                                "library": library.name,
                                "model": model,
                                "tensors": len(shapes),
                                "elements": sum(math.prod(shape) for shape in shapes),
                                "dtype": dtype,
                                "threads": count,
                                **measured,
                            }
                        )
                        bar.update()

                    run_library(
                        library, rows, count, cells, settings | {"deadline": now + share}, finished
                    )
    except KeyboardInterrupt:
        print("interrupted: what follows is what was measured so far", file=sys.stderr)
    print(table(result))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        child()
    else:
        main()

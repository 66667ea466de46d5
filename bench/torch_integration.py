"""torch.optim.RMSprop and rmsprop_c.torch.RMSprop in one process, on torch's own OpenMP.

    python bench/torch_integration.py --out bench/results/torch.json
    python bench/torch_integration.py --table      the tables of docs/torch.md, from that file

Steps: of a multilayer perceptron, an LSTM and ResNet-50's tensors, with gradients that stay as they
are. Training: whole iterations of the first two. Curves: the losses of a network on handwritten
digits. In each round every contestant runs once, and the shortest of its many short batches counts:
on a machine with busy neighbours that is the one in which nobody came between.

    for-loop, foreach, compiled    torch's three forms; it has no fused RMSprop for CPUs
    ours                           as it is
    ours, team                     with rmsprop_c.set_num_threads(torch.get_num_threads())
"""

import argparse
import copy
import json
from datetime import date
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from compare import busy_seconds, resnet50
from limit import processor
from tqdm import tqdm

from rmsprop_c import build_info, set_num_threads
from rmsprop_c.torch import RMSprop

ARGUMENTS = {"lr": 2.0**-20}
LEAST = 7  # rounds
BATCH = 0.001  # seconds of a timed batch, shorter than what a processor gives a busy neighbour
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # of the largest value of a tensor


class Perceptron(torch.nn.Sequential):
    """784-512-10, on batches of 64."""

    def __init__(self):
        layers = torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)
        super().__init__(*layers)

    def loss(self):
        return self(torch.ones(64, 784)).square().mean()


class Recurrent(torch.nn.Module):
    """A two-layer LSTM of 256 units between an embedding of 1000 and its logits; 16 x 20 tokens."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(1000, 128)
        self.lstm = torch.nn.LSTM(128, 256, 2, batch_first=True)
        self.logits = torch.nn.Linear(256, 1000)

    def loss(self):
        tokens = torch.arange(320).reshape(16, 20)
        logits = self.logits(self.lstm(self.embedding(tokens))[0])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class Tensors(torch.nn.ParameterList):
    """ResNet-50's 161 tensors."""

    def __init__(self):
        super().__init__([torch.nn.Parameter(torch.randn(shape)) for shape in resnet50()])


MODELS = {"MLP": Perceptron, "LSTM": Recurrent, "ResNet-50": Tensors}


def make_optimizers(model, threads, compiled):
    """Of each contestant: its copy of the model, its step, and our number of threads in it."""
    kinds = {
        "ours": (RMSprop, {}, None if threads > 1 else 1),
        **({"ours, team": (RMSprop, {}, threads)} if threads > 1 else {}),
        "for-loop": (torch.optim.RMSprop, {"foreach": False}, None),
        "foreach": (torch.optim.RMSprop, {"foreach": True}, None),
        **({"compiled": (torch.optim.RMSprop, {}, None)} if compiled else {}),
    }
    found = {}
    for name, (kind, arguments, count) in kinds.items():
        own = copy.deepcopy(model)
        for p, original in zip(own.parameters(), model.parameters(), strict=True):
            p.grad = original.grad.clone() if original.grad is not None else None
        optimizer = kind(own.parameters(), **ARGUMENTS, **arguments)
        if name == "compiled":
            torch.compiler.reset()  # else a second model counts as a recompilation of the first
            found[name] = own, optimizer, torch.compile(optimizer.step), count
        else:
            found[name] = own, optimizer, optimizer.step, count
    return found


def difference(models):
    """The largest one between the first model and another, relative to a tensor's largest value."""
    first, *others = [list(model.parameters()) for model in models]
    return max(
        ((p - q).abs().max() / p.abs().max()).item()
        for other in others
        for p, q in zip(first, other, strict=True)
    )


def race(contestants, seconds):
    """Times of ``run(count)``, which returns the part spent in steps, per call; see the module."""
    counts = {}
    for name, (run, _) in contestants.items():
        run(1)
        start = perf_counter()
        run(1)
        counts[name] = max(1, int(BATCH / (perf_counter() - start)))
    times = {name: [] for name in contestants}
    start, busy, own = perf_counter(), busy_seconds(), process_time()
    while perf_counter() < start + seconds or len(times["ours"]) < LEAST:
        for name, (run, threads) in contestants.items():
            set_num_threads(threads)
            run(1)  # brings back what others have driven out of the caches
            begin = perf_counter()
            steps = run(counts[name])
            times[name].append(((perf_counter() - begin) / counts[name], steps / counts[name]))
    ours = np.array(times["ours"])[:, 0]
    rows = {}
    for name, pairs in times.items():
        whole, steps = np.array(pairs).T
        rows[name] = {
            "median": float(np.median(whole)),
            "quartiles": np.quantile(whole, (0.25, 0.75)).tolist(),
            "minimum": float(whole.min()),
            "ratio": float(np.median(whole / ours)),
            "ratio_of_minima": float(whole.min() / ours.min()),
            "share": float(np.median(steps / whole)),
        }
    others = (busy_seconds() - busy - process_time() + own) / (perf_counter() - start)
    return {"rounds": len(ours), "others": round(others, 2), "rows": rows}


def steps(name, dtype, threads, compiled, seconds):
    """Steps alone."""
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, dtype=dtype)
    optimizers = make_optimizers(model, threads, compiled)
    for _, _, step, count in optimizers.values():
        set_num_threads(count)
        for _ in range(3):
            step()
    found = difference([own for own, *_ in optimizers.values()])
    if found > TOLERANCE[str(dtype).removeprefix("torch.")]:
        raise RuntimeError(f"{name}: parameters differ by {found}")

    def repeated(step):
        def run(count):
            begin = perf_counter()
            for _ in range(count):
                step()
            return perf_counter() - begin

        return run

    racers = {name: (repeated(step), count) for name, (_, _, step, count) in optimizers.items()}
    return {"difference": found, **race(racers, seconds)}


def training(name, threads, seconds):
    """Iterations: forward, backward, step."""
    torch.manual_seed(0)
    optimizers = make_optimizers(MODELS[name](), threads, compiled=False)

    def repeated(model, optimizer):
        def run(count):
            steps = 0.0
            for _ in range(count):
                optimizer.zero_grad()
                model.loss().backward()
                begin = perf_counter()
                optimizer.step()
                steps += perf_counter() - begin
            return steps

        return run

    return race(
        {key: (repeated(own, opt), count) for key, (own, opt, _, count) in optimizers.items()},
        seconds,
    )


def curve(kind, dtype, epochs=20):
    """The losses of a network on handwritten digits, batch by batch."""
    from sklearn.datasets import load_digits  # it brings an OpenMP of its own

    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=dtype), torch.tensor(digits.target)
    layers = torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
    model = torch.nn.Sequential(*layers).to(dtype)
    optimizer = kind(model.parameters(), lr=0.002, momentum=0.5)
    found = []
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(100):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return np.array(found)


def openmp():
    """The copies of libgomp in this process, as folder/file."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split()[-1]) for line in maps if "gomp" in line}
    return sorted(f"{path.parent.name}/{path.name}" for path in paths)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names, by commas")
    parser.add_argument("--threads", default="1,2", help="numbers, by commas")
    parser.add_argument("--seconds", type=float, default=12, help="for each measurement")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    parser.add_argument("--table", action="store_true", help="only print the recorded results")
    arguments = parser.parse_args()
    if arguments.table:
        recorded = Path(__file__).resolve().parent / "results/torch.json"
        print(tables(json.loads(recorded.read_text())))
        return
    names = arguments.models.split(",")
    dtypes = (torch.float32, torch.float64)
    cells = [("steps", name, dtype) for name in names for dtype in dtypes]
    cells += [("training", name, torch.float32) for name in names if name != "ResNet-50"]
    threads = [int(x) for x in arguments.threads.split(",")]
    result = {
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), **build_info()},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "openmp": openmp(),
        "cells": [],
        "curves": {},
    }
    with tqdm(total=len(cells) * len(threads) + len(dtypes), unit="measurement") as progress:
        for count in threads:
            torch.set_num_threads(count)
            for what, name, dtype in cells:
                kind = str(dtype).removeprefix("torch.")
                progress.set_description(f"{what} {name} {kind} {count}")
                if what == "steps":  # compiling 161 tensors takes minutes: once is enough
                    cell = steps(name, dtype, count, kind == "float32", arguments.seconds)
                else:
                    cell = training(name, count, arguments.seconds)
                cell = {"what": what, "model": name, "dtype": kind, "threads": count, **cell}
                result["cells"].append(cell)
                progress.update()
                progress.write(row(cell))
        torch.set_num_threads(1)
        for dtype in dtypes:
            progress.set_description("curves")
            ours, theirs = curve(RMSprop, dtype), curve(torch.optim.RMSprop, dtype)
            largest = float(np.abs(ours - theirs).max())
            result["curves"][str(dtype).removeprefix("torch.")] = {
                "ours": ours.tolist(),
                "torch": theirs.tolist(),
                "largest_difference": largest,
            }
            progress.update()
            progress.write(f"curves {dtype}: largest difference {largest:.2g}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def row(cell):
    """A measurement in a line: times as multiples of ours."""
    ours = cell["rows"]["ours"]["minimum"] * 1e6
    ratios = ", ".join(
        f"{name} {values['ratio_of_minima']:.2f}"
        for name, values in cell["rows"].items()
        if name != "ours"
    )
    return (
        f"{cell['what']} {cell['model']} {cell['dtype']}, {cell['threads']} threads: "
        f"ours {ours:,.0f} us; {ratios} ({cell['others']} processors used by others)"
    )


def tables(result):
    """All measurements as Markdown: of steps, then of whole iterations."""
    names = ("ours, team", "for-loop", "foreach", "compiled")
    lines = []
    for what in ("steps", "training"):
        head = ["", "threads", "ours, us", *names, "others"]
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for cell in result["cells"]:
            if cell["what"] != what:
                continue
            rows = cell["rows"]
            ratios = [f"{rows[n]['ratio_of_minima']:.2f}" if n in rows else "" for n in names]
            ours = f"{rows['ours']['minimum'] * 1e6:,.0f}"
            model = f"{cell['model']}, {cell['dtype']}"
            cells = [model, str(cell["threads"]), ours, *ratios, f"{cell['others']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    main()

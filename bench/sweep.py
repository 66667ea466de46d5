"""The package against the machine's limits: over sizes, threads and options, and the bare kernel.

Each figure is a median of interleaved rounds: in every round each contestant runs once, so a ratio
compares neighbours in time. The limits are those of limit.c: the traffic loop with the same loads
and stores and no arithmetic, and the divider loop with the same divisions on registers.

    python bench/sweep.py --out bench/results/sweep.json              # all of it, some minutes
    python bench/sweep.py --parts kernel,options
"""

import argparse
import ctypes
import json
import os
from pathlib import Path
from time import perf_counter

import numpy as np
from limit import Limit, processor
from tqdm import tqdm

from rmsprop_c import RMSprop, _core, build_info, set_num_threads

MLP = ((784, 512), (512,), (512, 10), (10,))
SIZES = [int(10 ** (k / 3)) for k in range(6, 28)]  # 1e2 .. 1e9, three a decade
BIG = 16 * 2**30  # bytes of memory from which 1e9 elements are tried
OPTIONS = {
    "plain": {},
    "clipvalue": {"clipvalue": 0.5},
    "decay": {"decay": 1e-4},
    "clipnorm": {"clipnorm": 1.0},
    "parameter_clipnorm": {"parameter_clipnorm": 1.0},
    "lr_scale": {"lr_scale": (0.5,)},
    "maximize": {"maximize": True},
    "bias_correction": {"bias_correction": True},
    "epsilon_in_sqrt": {"epsilon_in_sqrt": True},
    "momentum": {"momentum": 0.5},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "centered": {"centered": True},
    "centered, momentum": {"centered": True, "momentum": 0.5},
    "weight_decay": {"weight_decay": 2.0**-10},
    "decoupled": {"weight_decay": 2.0**-10, "decoupled_weight_decay": True},
    "use_ema": {"use_ema": True},
    "zero_grad": {"zero_grad": True, "rho": 1.0},  # else accumulators would become subnormal
    "flush_subnormals": {"flush_subnormals": True},
    "nonfinite": {"nonfinite": "skip"},
    "accumulation": {"gradient_accumulation_steps": 2},
    "together": {
        "centered": True,
        "momentum": 0.5,
        "weight_decay": 2.0**-10,
        "use_ema": True,
        "clipvalue": 0.5,
    },
}
# What a step with such an option moves, pass by pass: how many arrays are read and written back,
# and whether the gradient is read. Without an entry: what a plain step does.
PLAIN = [(2, True)]
TRAFFIC = {
    "clipnorm": [(0, True), *PLAIN],
    "parameter_clipnorm": [(0, True), *PLAIN],
    "nonfinite": [(0, True), *PLAIN],
    "momentum": [(3, True)],
    "nesterov": [(3, True)],
    "centered": [(3, True)],
    "centered, momentum": [(4, True)],
    "use_ema": [(3, True)],
    "zero_grad": [(3, False)],
    "accumulation": [(1, True), (3, True)],  # of two calls
    "together": [(5, True)],
}


def memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def caches():
    """Bytes of each data cache of the first processor, by level."""
    found = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            size = (index / "size").read_text().strip()
            found["L" + (index / "level").read_text().strip()] = int(size[:-1]) * 1024
    return found


def arrays(shapes, dtype, seed=0):
    """Parameters and gradients away from subnormals."""
    rng = np.random.default_rng(seed)
    params, grads = [], []
    for shape in shapes:
        g = np.empty(shape, dtype)
        flat = g.reshape(-1)
        block = rng.uniform(0.1, 1.0, min(flat.size, 65536)).astype(dtype)
        for start in range(0, flat.size, block.size):
            part = flat[start : start + block.size]
            part[:] = block[: part.size]
        grads.append(g)
        params.append(np.ones(shape, dtype))
    return params, grads


def compare(contestants, seconds, least=7):
    """Medians and quartiles of seconds per call, of contestants that run in turn.

    Each contestant is a callable of a number of repeats. Ratios to the first one are medians of the
    ratios within a round.
    """
    repeats = {}
    for name, run in contestants.items():
        run(1)
        begin = perf_counter()
        run(1)
        # Even, since of two calls that accumulate gradients one updates.
        repeats[name] = 2 * max(1, int(0.002 / max(perf_counter() - begin, 1e-8)))
    times = {name: [] for name in contestants}
    end = perf_counter() + seconds
    while perf_counter() < end or len(times[name]) < least:
        for name, run in contestants.items():
            run(1)  # brings the arrays back that others have driven out
            begin = perf_counter()
            run(repeats[name])
            times[name].append((perf_counter() - begin) / repeats[name])
    first = np.array(times[next(iter(times))])
    return {
        name: {
            "median": float(np.median(values)),
            "quartiles": [float(q) for q in np.quantile(values, (0.25, 0.75))],
            "ratio": float(np.median(np.array(values) / first)),
        }
        for name, values in times.items()
    }


def repeated(step):
    """A callable of a number of repeats."""

    def run(repeats):
        for _ in range(repeats):
            step()

    return run


def stepper(params, grads, **options):
    opt = RMSprop(lr=2.0**-10, **options)
    return opt, repeated(lambda: opt.step(params, grads))


def with_threads(threads, run):
    """Sets the thread count before each timed batch: contestants run in turn."""

    def wrapped(repeats):
        set_num_threads(threads)
        run(repeats)

    return wrapped


def sizes(limit, seconds, progress):
    """One array of each size: ours, traffic and divider, on 1 and on all threads."""
    rows = []
    team = len(os.sched_getaffinity(0))
    for n in progress(SIZES, "sizes"):
        if n * 12 > memory() * 0.7 or (n >= 10**9 and memory() < BIG):
            rows.append({"n": n, "skipped": f"{memory() / 2**30:.0f} GiB of memory"})
            continue
        params, grads = arrays([(n,)], np.float32)
        opt, ours = stepper(params, grads)
        opt.step(params, grads)
        accumulators = [np.zeros(n, np.float32) if n < 10**8 else opt.weights[0]]
        for threads in (1, team):
            found = compare(
                {
                    "traffic": limit.traffic(params, grads, accumulators, threads),
                    "ours": with_threads(threads, ours),
                    "divider": limit.divider("float32", n, threads),
                },
                min(seconds, 1.5) if n < 10**8 else seconds,
                least=7 if n < 10**8 else 3,
            )
            rows.append({"n": n, "threads": threads, **found})
    return rows


def kernel(seconds, progress):
    """The kernel of each instruction set, called from C on arrays in L1 and L2."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    scalars = (ctypes.c_double * 11)(2.0**-10, 0.9, 1e-8, 1.0, np.inf)  # the others are off
    rows = []
    chosen = _core.chosen_isa()
    cases = [
        (isa, dtype, n)
        for isa, supported in _core.compiled_isas().items()
        if supported
        for dtype in ("float32", "float64")
        for n in (1024, 32768)
    ]
    for isa, dtype, n in progress(cases, "kernel"):
        limit = Limit.like(isa)
        capsule = _core.__pyx_capi__[f"update_{dtype[0]}{dtype[-2:]}"]
        update = get_pointer(capsule, get_name(capsule))
        (p,), (g,) = arrays([(n,)], dtype)
        a = g * g

        def ours(repeats, update=update, p=p, g=g, a=a, n=n, limit=limit):
            limit.call_kernel(update, p, g, a, n, scalars, repeats)

        _core.use_isa(isa)
        found = compare({"divider": limit.divider(dtype, n, 1), "ours": ours}, seconds / 4)
        _core.use_isa(chosen)
        rows.append({"isa": isa, "dtype": dtype, "n": n, **found})
    return rows


def options(limit, seconds, progress):
    """Each fused option against none, in cache and in memory."""
    rows = []
    models = {"784-512-10": MLP, "1x25M": ((25_000_000,),)}
    cases = [(m, d) for m in models for d in ("float32", "float64")]
    for model, dtype in progress(cases, "options"):
        params, grads = arrays(models[model], dtype)
        contestants = {}
        for name, chosen in OPTIONS.items():
            if "lr_scale" in chosen:
                chosen = {"lr_scale": chosen["lr_scale"] * len(params)}
            own = [g.copy() for g in grads] if "zero_grad" in chosen else grads
            contestants[name] = with_threads(1, stepper(params, own, **chosen)[1])
        rows.append({"model": model, "dtype": dtype, **compare(contestants, seconds)})
    return rows


def variants(limit, seconds, progress):
    """Each option on one large array, against a loop with its own traffic and no arithmetic."""
    rows = []
    n = 25_000_000
    cases = [(d, t, o) for d in ("float32", "float64") for t in (1, 2) for o in OPTIONS]
    for dtype, threads, name in progress(cases, "variants"):
        params, grads = arrays([(n,)], dtype)
        opt, ours = stepper(params, grads, **OPTIONS[name])
        opt.step(params, grads)
        state = params + list(opt.weights)
        others = [np.zeros(n, dtype) for _ in range(5)]
        passes = [
            (
                (state + others)[:written] if read else [*state[:2], *grads],
                grads[0] if read else None,
            )
            for written, read in TRAFFIC.get(name, PLAIN)
        ]
        calls = 2 if name == "accumulation" else 1
        found = compare(
            {
                "traffic": limit.streams(passes, threads),
                "ours": with_threads(threads, lambda r, calls=calls, ours=ours: ours(r * calls)),
            },
            seconds / 3,
        )
        rows.append({"dtype": dtype, "threads": threads, "option": name, **found})
    return rows


def scaling(limit, seconds, progress):
    """Hot teams of 1 to all threads, and the default policy."""
    rows = []
    models = {"200x1000": [(1000,)] * 200, "784-512-10": MLP, "1x25M": [(25_000_000,)]}
    everything = len(os.sched_getaffinity(0))
    counts = sorted({*range(1, min(everything, 4) + 1), *range(4, everything + 1, 4), everything})
    for model in progress(models, "scaling"):
        params, grads = arrays(models[model], np.float32)
        _, ours = stepper(params, grads)
        contestants = {str(n): with_threads(n, ours) for n in counts}
        contestants["default"] = with_threads(None, ours)
        rows.append({"model": model, **compare(contestants, seconds)})
    return rows


PARTS = {
    "sizes": sizes,
    "kernel": kernel,
    "options": options,
    "variants": variants,
    "scaling": scaling,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="of the sweep, by commas")
    parser.add_argument("--seconds", type=float, default=6, help="for each comparison")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    arguments = parser.parse_args()
    limit = Limit.like(_core.chosen_isa())

    def progress(cases, name):
        return tqdm(cases, desc=name)

    results = {
        "machine": {"processor": processor(), "caches": caches(), "memory": memory()}
        | build_info()
        | {"numpy": np.__version__, "limit": limit.disassembly()}
    }
    for name in arguments.parts.split(","):
        chosen = PARTS[name]
        results[name] = (
            kernel(arguments.seconds, progress)
            if chosen is kernel
            else chosen(limit, arguments.seconds, progress)
        )
    set_num_threads(None)
    for name in arguments.parts.split(","):
        print(f"\n{name}: seconds (ratio to the first)")
        for row in results[name]:
            cells = "  ".join(
                f"{key} {value['median']:.3e} (x{value['ratio']:.3f})"
                if isinstance(value, dict)
                else f"{value}"
                for key, value in row.items()
            )
            print(f"  {cells}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

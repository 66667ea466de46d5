"""All 2^32 float32 gradients, and accumulators: each kernel against scalar code, bit by bit.

exhaustive.c is rmsprop.h compiled without vectorisation; the kernels are those of the installed
package. Parameters and accumulators are compared, NaN's sign and payload aside.

    python verify/exhaustive.py                  # gradients: 100 seconds of processor time
    python verify/exhaustive.py --p 0 --a 0      # from another parameter and accumulator
    python verify/exhaustive.py --accumulators   # which stay, with rho = 1: p loses g / root
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rmsprop_c import _core, get_include

PATTERNS = 1 << 32
SHARE = 1 << 22  # patterns of a task
PIECE = 1 << 16  # of a call: what they give stays in cache
SCALAR = ["-O1", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-ffp-contract=off"]


def compiled(folder):
    """The library of exhaustive.c."""
    path = Path(folder, "exhaustive.so")
    compiler = os.environ.get("CC", "cc").split()
    flags = ["-std=c99", *SCALAR, "-fno-math-errno", "-shared", "-fPIC", f"-I{get_include()}"]
    source = Path(__file__).with_name("exhaustive.c")
    subprocess.run([*compiler, *flags, str(source), "-o", str(path), "-lm"], check=True)
    return path


def kernel():
    """The address of the package's float32 update: of the instruction set that is chosen."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    capsule = _core.__pyx_capi__["update_f32"]
    return ctypes.c_void_p(get_pointer(capsule, get_name(capsule)))


def share(first, path, isas, p0, a0):
    """Of each instruction set, how many patterns from `first` on differ, and one of those."""
    library = ctypes.CDLL(str(path))
    library.differences.restype = ctypes.c_size_t
    lr, rho, epsilon = (1.0, 1.0, 0.0) if np.isnan(a0) else (0.001, 0.9, 1e-8)
    scalars = (ctypes.c_double * 10)(lr, rho, epsilon, 1.0, np.inf)  # the others are off
    p, a = np.empty((2, PIECE), np.float32)
    expected = ctypes.c_void_p(p.ctypes.data), ctypes.c_void_p(a.ctypes.data)
    update, where = kernel(), ctypes.c_uint32()
    found = dict.fromkeys(isas, 0)
    examples = {}
    for begin in range(first, first + SHARE, PIECE):
        given = (
            ctypes.c_uint32(begin),
            ctypes.c_size_t(PIECE),
            ctypes.c_float(p0),
            ctypes.c_float(a0),
        )
        library.scalar_step(*given, *expected, scalars)
        for isa in isas:
            _core.use_isa(isa)
            count = library.differences(update, *given, *expected, scalars, ctypes.byref(where))
            if count:
                found[isa] += count
                examples[isa] = where.value
    return found, examples


def main():
    supported = [isa for isa, here in _core.compiled_isas().items() if here]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isas", default=",".join(supported), help="instruction sets, by commas")
    parser.add_argument("--p", type=float, default=0.0, help="the parameter before the step")
    parser.add_argument("--a", type=float, default=1e-6, help="the accumulator before the step")
    parser.add_argument("--accumulators", action="store_true", help="the patterns are theirs")
    parser.add_argument("--stride", type=int, default=1, help="one of so many shares only")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    isas = arguments.isas.split(",")
    firsts = range(0, PATTERNS, SHARE * arguments.stride)
    total, examples = dict.fromkeys(isas, 0), {}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(arguments.processes) as pool:
        a0 = np.nan if arguments.accumulators else arguments.a
        work = partial(share, path=compiled(folder), isas=isas, p0=arguments.p, a0=a0)
        tasks = [pool.submit(work, first) for first in firsts]
        for task in tqdm(as_completed(tasks), "4 Mi patterns each", len(tasks), unit="share"):
            found, example = task.result()
            examples |= example
            for isa in isas:
                total[isa] += found[isa]
    for isa, count in total.items():
        example = f", as for 0x{examples[isa]:08x}" if count else ""
        print(f"{isa:10} {count:,} of {len(tasks) * SHARE:,} patterns differ{example}")
    return 1 if any(total.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

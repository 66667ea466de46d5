"""``python -m rmsprop_c info`` and ``python -m rmsprop_c selftest``."""

import argparse
import sys
from typing import Any

import numpy as np

from . import RMSprop, _core, build_info, reference, set_num_threads

# What `python rmsprop_c/reference.py` prints.
CHECKSUMS = {
    "float32": "098280afe615ad60",
    "float64": "965afbcc28fbd101",
}
THREADS = (1, 2, 3, 8)


def info() -> None:
    """Print what was built and what was chosen."""
    found = build_info()
    compiled = ", ".join(
        isa if supported else f"{isa} (not on this processor)"
        for isa, supported in found["isas"].items()
    )
    print(f"rmsprop_c    {found['version']}")
    print(f"compiler     {found['compiler']}")
    print(f"compiled     {compiled}")
    print(f"chosen       {found['isa']}")
    roots = ", ".join(f"{dtype} by {how}" for dtype, how in found["roots"].items())
    print(f"roots        {roots}")
    print(f"OpenMP       {found['openmp'] or 'no'}")
    print(f"threads      {found['num_threads']}")
    print(f"NumPy        {np.__version__}")


def make(params: Any, **options: Any) -> RMSprop:
    """An optimizer of the kernels in use; see `reference.checksum`."""
    return RMSprop(**options)


def selftest() -> int:
    """Print a checksum per dtype, instruction set and thread count; return 1 if any is wrong."""
    chosen = _core.chosen_isa()
    minimums = _core.configure_minimums(unlocked=1, persistent=1)
    wrong = 0
    try:
        for dtype, expected in CHECKSUMS.items():
            for isa, supported in _core.compiled_isas().items():
                if not supported:
                    print(f"{dtype}  {isa:10} not on this processor")
                    continue
                _core.use_isa(isa)
                for threads in THREADS:
                    set_num_threads(threads)
                    found = reference.checksum(make, np.dtype(dtype))
                    verdict = "ok" if found == expected else f"WRONG, expected {expected}"
                    wrong += found != expected
                    print(f"{dtype}  {isa:10} {threads} threads  {found}  {verdict}")
    finally:
        _core.configure_minimums(**minimums)
        _core.use_isa(chosen)
        set_num_threads(None)
    print("selftest failed" if wrong else "selftest passed")
    return 1 if wrong else 0


def main() -> int:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m rmsprop_c", description=__doc__)
    parser.add_argument("command", choices=("info", "selftest"))
    if parser.parse_args().command == "info":
        info()
        return 0
    return selftest()


if __name__ == "__main__":
    sys.exit(main())

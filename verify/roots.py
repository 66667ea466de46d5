"""Every float32 root, and a thousand million float64 ones, of src/roots.h's instances.

The processor's own square roots say what is right. tests/exactness/test_roots.py has the float64
numbers whose roots are hardest to round; these are the others.

    python verify/roots.py                   # minutes, mostly for the scalar instances
    python verify/roots.py --names avx512    # seconds
"""

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from shared import record
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from roots import Roots

PATTERNS = 1 << 32
SHARE = 1 << 24
RANDOM = 1_000_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", default="", help="instances that have this in their names")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    wrong = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.threads) as pool:
        roots = Roots(folder)
        tasks = {}
        for name in roots.instances:
            if arguments.names not in name:
                continue
            wrong[name] = 0
            if name.startswith("float32"):
                for first in range(0, PATTERNS, SHARE):
                    tasks[pool.submit(roots.wrong_patterns, name, first, SHARE)] = name
            else:
                for seed in range(1, -(-RANDOM // SHARE) + 1):
                    tasks[pool.submit(roots.wrong_random, name, seed, SHARE)] = name
        for task in tqdm(as_completed(tasks), "16 Mi roots each", len(tasks), unit="share"):
            wrong[tasks[task]] += task.result()
    for name, count in wrong.items():
        what = "of all 2^32" if name.startswith("float32") else "of 1,006,632,960 random ones"
        print(f"{name:26} {count} {what} are wrong")
    if not arguments.names:
        names = ", ".join(name for name in wrong)
        record("Square roots", {"summary": f"{sum(wrong.values())} wrong: {names}"})
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

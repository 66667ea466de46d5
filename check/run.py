"""Everything that is too slow for `make test`, one after the other; figures go into the report.

python check/run.py [names]       # asan aarch64 driver gcov mutate_c mutate_py fuzz newest
"""

import re
import subprocess
import sys

from shared import ROOT, record
from tqdm import tqdm

FUZZING = 600  # seconds
CHECKS = ("driver", "asan", "aarch64", "newest", "gcov", "mutate_c", "fuzz", "mutate_py")


def fuzz():
    """The fuzzer lives with the tests, since its corpus is one."""
    command = [sys.executable, "tests/fuzz.py", "--seconds", str(FUZZING)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as fuzzer:
        lines = [line.rstrip() for line in fuzzer.stdout]
    last = re.sub(r"\s+", " ", lines[-1]) if lines else "said nothing"
    record(
        "Fuzzing of `load` and `from_config`",
        {"summary": last if fuzzer.returncode == 0 else f"failed: {last}"},
    )
    return fuzzer.returncode


def main():
    failed = []
    with tqdm(sys.argv[1:] or CHECKS, unit="check") as progress:
        for name in progress:
            progress.set_description(name)
            if name == "fuzz":
                code = fuzz()
            else:
                code = subprocess.run([sys.executable, f"check/{name}.py"], cwd=ROOT, check=False)
                code = code.returncode
            failed += [name] * (code != 0)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

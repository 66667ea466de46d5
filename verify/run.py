"""Everything that is too slow for `make test`, one after the other; figures go into the report.

python verify/run.py [names of CHECKS]
"""

import re
import subprocess
import sys

from shared import ROOT, record
from tqdm import tqdm

SECONDS = 600  # of a search
CHECKS = ("driver", "asan", "aarch64", "newest", "coverage", "roots", "mutate_c", "mutate_step")
CHECKS += ("fuzz", "machine", "mutate_py")
# Searches of a given time, of which the tests run some.
SEARCHES = {"fuzz": "Fuzzing of `load` and `from_config`", "machine": "Long runs of anything"}


def search(name):
    """Run one of SEARCHES, and record its last line."""
    command = [sys.executable, f"verify/{name}.py", "--seconds", str(SECONDS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        lines = [line.rstrip() for line in process.stdout]
    last = re.sub(r"\s+", " ", lines[-1]) if lines else "said nothing"
    found = last if process.returncode == 0 else f"failed: {last}"
    record(SEARCHES[name], {"summary": found})
    return process.returncode


def main():
    failed = []
    with tqdm(sys.argv[1:] or CHECKS, unit="check") as progress:
        for name in progress:
            progress.set_description(name)
            if name in SEARCHES:
                code = search(name)
            else:
                code = subprocess.run([sys.executable, f"verify/{name}.py"], cwd=ROOT, check=False)
                code = code.returncode
            failed += [name] * (code != 0)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""driver.c plainly, with musl, under ThreadSanitizer, with OpenMP and Archer, in valgrind.

What is not installed here is skipped, and the report says so.

    python verify/driver.py
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import CC, EXACT, ROOT, record
from tqdm import tqdm

PACKAGE = ROOT / "rmsprop_c"
SOURCES = [ROOT / "verify/driver.c", *sorted(PACKAGE.glob("src/*.c"))]
COMMON = ["-std=gnu11", "-g", *EXACT, f"-I{PACKAGE}"]
VALGRIND = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--trace-children=no"]
TSAN = {"TSAN_OPTIONS": "exitcode=66:die_after_fork=0:report_thread_leaks=0"}

# Functions whose calls the driver gets, to play what they tell.
WRAPPED = ["available", "clock", "forked", "limit", "openmp", "run"]
BITS = re.compile("all of them: ([0-9a-f]{16})")
SEEN = {}  # those of the first way

# name: compiler, flags, what runs the program, its environment, whether it must find `driver race`
WAYS = {
    "plain": (CC, ["-O3", "-Wall", "-Wextra", "-Werror"], [], {}, False),
    "musl (static)": (["musl-gcc"], ["-O3", "-static"], [], {}, False),
    "OpenMP": (CC, ["-O3", "-fopenmp"], [], {}, False),
    "ThreadSanitizer": (CC, ["-O1", "-fsanitize=thread"], [], TSAN, True),
    "Archer (clang, OpenMP)": (
        ["clang"],
        ["-O1", "-fsanitize=thread", "-fopenmp"],
        [],
        # The runtime itself is not instrumented: without this its own locks look like races.
        TSAN | {"TSAN_OPTIONS": TSAN["TSAN_OPTIONS"] + ":ignore_noninstrumented_modules=1"},
        True,
    ),
    # valgrind 3.19 shows programs a processor without AVX-512: it sees portable and avx2.
    "valgrind memcheck": (CC, ["-O2"], VALGRIND, {}, False),
}


def wrapped(*more):
    """The linker's options for WRAPPED and more."""
    names = [*(f"threads_{name}" for name in WRAPPED), *more, "perform"]
    return [f"-Wl,--wrap=rmsprop_{name}" for name in names]


def attempt(name, folder):
    """What came of a way: None if it passed, else ("skipped" or "failed", why)."""
    compiler, flags, runner, variables, finds_races = WAYS[name]
    for needed in (compiler[0], *runner[:1]):
        if shutil.which(needed) is None:
            return "skipped", f"{needed} is not installed"
    program = folder / name.split()[0]
    command = [*compiler, *COMMON, *flags, *SOURCES, "-o", program, "-lm", "-lpthread"]
    command += wrapped(*[] if "-fopenmp" in flags else ["parallel_for"])
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        missing = name != "plain" and ("cannot find" in built.stderr or "omp" in built.stderr)
        return "skipped" if missing else "failed", built.stderr[-2000:]
    environment = os.environ | variables
    if finds_races:
        race = subprocess.run([program, "race"], env=environment, capture_output=True, check=False)
        if race.returncode == 0:
            return "failed", "it does not find the race of `driver race`"
    command = [*runner, program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        said = (found.stdout + found.stderr)[-4000:]
        return "failed", f"{shlex.join(map(str, command))}: exit {found.returncode}\n{said}"
    tqdm.write(f"{name}: {', '.join(found.stdout.splitlines())}")
    bits = BITS.search(found.stdout)[1]
    if bits != SEEN.setdefault("plain", bits):
        return "failed", f"the bits are {bits}, and plainly {SEEN['plain']}"
    return None


def main():
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(WAYS, unit="way") as progress:
        for name in progress:
            progress.set_description(name)
            outcomes[name] = attempt(name, Path(folder))
            if outcomes[name]:
                tqdm.write(f"{name} {outcomes[name][0]}: {outcomes[name][1]}")
    passed = [name for name, outcome in outcomes.items() if outcome is None]
    parts = [f"passed: {', '.join(passed)}"]
    for state in ("skipped", "failed"):
        named = [
            f"{name}" + (f" ({outcome[1]})" if state == "skipped" else "")
            for name, outcome in outcomes.items()
            if outcome and outcome[0] == state
        ]
        parts += [f"{state}: {', '.join(named)}"] if named else []
    record("The C core alone", {"summary": "; ".join(parts).replace("\n", " ")})
    return any(outcome and outcome[0] == "failed" for outcome in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())

"""Mutants of the step and of the policy of threads in C, judged by what driver.c prints.

Those are the bits that it finds with the portable kernels, and whether the policy decides as its
tables say. Each is built with AddressSanitizer and UndefinedBehaviorSanitizer, so that reading or
writing too far kills as well.

    python verify/mutate_step.py [--sample N] [files]
"""

import argparse
import functools
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from driver import wrapped
from mutate_c import LEAST, mutants
from mutation import KILLED, STILLBORN, SURVIVED, judge_all, verdict
from shared import CC, EXACT, ROOT, run

PACKAGE = ROOT / "rmsprop_c"
FILES = ("src/step.c", "src/team.c")
FLAGS = ["-std=gnu11", "-O1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMMAND = [*CC, *FLAGS, *EXACT, f"-I{PACKAGE}", f"-I{PACKAGE}/src"]
SECONDS = 60  # a healthy one takes two or three


def compiled(folder, changing):
    """What does not change."""
    objects = []
    for path in [ROOT / "verify/driver.c", *sorted(PACKAGE.glob("src/*.c"))]:
        if path != changing:
            objects.append(Path(folder, path.stem + ".o"))
            run([*COMMAND, "-c", path, "-o", objects[-1]])
    return objects


def judge(objects, source, expected, mutant):
    """The outcome of a mutant; None is the source as it is."""
    with tempfile.TemporaryDirectory() as folder:
        changed, program = Path(folder, "changed.c"), Path(folder, "driver")
        changed.write_text(source if mutant is None else mutant.apply(source))
        link = [*objects, "-o", program, "-lm", "-lpthread", *wrapped("parallel_for")]
        built = subprocess.run([*COMMAND, changed, *link], capture_output=True, check=False)
        if built.returncode:
            return mutant, STILLBORN
        try:
            found = subprocess.run(
                [program, "bits"], capture_output=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return mutant, KILLED
        if mutant is None:
            return found.stdout, SURVIVED if found.returncode == 0 else KILLED
        same = found.returncode == 0 and found.stdout == expected
        return mutant, SURVIVED if same else KILLED


def check(name, sample):
    """Judge the mutants of a file; the exit status of the check."""
    source = (PACKAGE / name).read_text()
    chosen = mutants(source)
    if sample:
        chosen = random.Random(0).sample(chosen, sample)
    with tempfile.TemporaryDirectory() as folder:
        objects = compiled(folder, PACKAGE / name)
        expected, unchanged = judge(objects, source, None, None)
        if unchanged != SURVIVED:
            raise SystemExit(f"the unchanged {name} was {unchanged}")
        work = functools.partial(judge, objects, source, expected)
        outcomes = judge_all(work, chosen)
    return verdict(f"Mutants of {name}", name, source, outcomes, LEAST, sample)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, help="so many of each, always the same")
    parser.add_argument("files", nargs="*", default=FILES)
    arguments = parser.parse_args()
    return max([check(name, arguments.sample) for name in arguments.files])


if __name__ == "__main__":
    sys.exit(main())

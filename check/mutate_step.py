"""Mutants of the step in C, judged by the bits that driver.c finds with the portable kernels.

Each is built with AddressSanitizer and UndefinedBehaviorSanitizer, so that reading or writing too
far kills as well.

    python check/mutate_step.py [--sample N]
"""

import argparse
import functools
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from mutate_c import LEAST, mutants
from mutation import KILLED, STILLBORN, SURVIVED, verdict
from shared import CC, EXACT, ROOT, run
from tqdm import tqdm

PACKAGE = ROOT / "rmsprop_c"
STEP = PACKAGE / "src/step.c"
OTHERS = [PACKAGE / f"src/{name}.c" for name in ("kernels", "team", "threads")]
OTHERS.append(ROOT / "check/driver.c")
FLAGS = ["-std=gnu11", "-O1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMMAND = [*CC, *FLAGS, *EXACT, f"-I{PACKAGE}", f"-I{PACKAGE}/src"]
SECONDS = 30  # a healthy one takes one or two


def compiled(folder):
    """What does not change."""
    objects = [Path(folder, path.stem + ".o") for path in OTHERS]
    for path, made in zip(OTHERS, objects, strict=True):
        run([*COMMAND, "-c", path, "-o", made])
    return objects


def judge(objects, source, expected, mutant):
    """The outcome of a mutant; None is the source as it is."""
    with tempfile.TemporaryDirectory() as folder:
        text = source if mutant is None else mutant.apply(source)
        Path(folder, "step.c").write_text(text)
        program = Path(folder, "driver")
        link = [*objects, "-o", program, "-lm", "-lpthread", "-Wl,--wrap=rmsprop_threads_share"]
        built = subprocess.run(
            [*COMMAND, Path(folder, "step.c"), *link], capture_output=True, check=False
        )
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, help="so many of them, always the same")
    arguments = parser.parse_args()
    source = STEP.read_text()
    chosen = mutants(source)
    if arguments.sample:
        chosen = random.Random(0).sample(chosen, arguments.sample)
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        objects = compiled(folder)
        expected, unchanged = judge(objects, source, None, None)
        if unchanged != SURVIVED:
            raise SystemExit(f"the unchanged step was {unchanged}")
        work = functools.partial(judge, objects, source, expected)
        with multiprocessing.Pool(os.cpu_count()) as pool:
            judged = pool.imap_unordered(work, chosen)
            for mutant, outcome in tqdm(judged, total=len(chosen), unit="mutant"):
                outcomes[mutant] = outcome
    return verdict(
        "Mutants of the step in C", "src/step.c", source, outcomes, LEAST, arguments.sample
    )


if __name__ == "__main__":
    sys.exit(main())

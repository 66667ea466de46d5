"""Lines and branches of the C core and of the binding that the suite reaches.

gcov's own counts, also for the binding: Cython writes into the C file which line of its own each
part comes from, so that code without the GIL and in threads is counted like any other, which its
line tracing can't do. A branch of the binding is one of its own decisions (if, while, and, or);
those that only ask whether a call has raised are left out. What stays uncovered needs a reason in
reasons.json.

    python verify/coverage.py [arguments of pytest]
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from shared import ROOT, SLOWER, SUITE, build, copy_tree, environment, record, run, unexplained
from tqdm import tqdm

LEAST = 95.0
FLAGS = ["-O0", "-g", "--coverage", "-fprofile-update=atomic", "-DCYTHON_WITHOUT_ASSERTIONS"]
ORIGIN = re.compile(r'/\* "rmsprop_c/(_core\.pyx|binding/\w+\.pxi)":(\d+)$')
DECISION = re.compile(r"\s*if \((?:(?:un)?likely\()?!?\(?__pyx_t_\d+\)*\s*(?:\{|break;)")
LOOP = re.compile(r"\bfor .* in ")
# What is Python alone, on top of the core.
INTEGRATIONS = ["--ignore=tests/docs", "--ignore=tests/integrations"]
# Children of a fork leave by os._exit, behind gcov's back.
EXIT = """
import ctypes, os, sys
leave = os._exit
def dump_and_leave(code):
    if core := sys.modules.get("rmsprop_c._core"):
        ctypes.CDLL(core.__file__).rmsprop_gcov_dump()
    leave(code)
os._exit = dump_and_leave
"""
# What chooses the kernels on other processors.
QEMU = shutil.which("qemu-x86_64")
PROCESSORS = [[QEMU, "-cpu", name] for name in ("Nehalem", "max")] if QEMU else []
DUMP = """
void __gcov_dump(void);
__attribute__((visibility("default"))) void rmsprop_gcov_dump(void)
{
    __gcov_dump();
}
"""
# One copy of each function of the template for each type and instruction set: gcov counts the
# branches of every place into which one is inlined apart.
INLINED = "static inline __attribute__((always_inline))"
NOT_INLINED = "static __attribute__((noinline))"


def counts_of(tree):
    """gcov's lines of every source: {file: {line: (count, branches, function)}}, merged."""
    found = defaultdict(dict)
    for data in sorted((tree / "build").rglob("*.gcda")):
        said = run(["gcov", "--json-format", "--stdout", "--branch-probabilities", data], cwd=tree)
        for file in json.loads(said)["files"]:
            lines = found[str(Path(file["file"]))]
            for line in file["lines"]:
                number = line["line_number"]
                branches = [b["count"] for b in line["branches"]]
                count, before = lines.get(number, (0, []))
                merged = [
                    (before[i] if i < len(before) else 0)
                    + (branches[i] if i < len(branches) else 0)
                    for i in range(max(len(before), len(branches)))
                ]
                lines[number] = count + line["count"], merged
    return found


def binding_lines(tree, counts):
    """The counts of _core.c as counts of the lines that it was made from: by file."""
    package = tree / "rmsprop_c"
    files = [package / "_core.pyx", *sorted(package.glob("binding/*.pxi"))]
    sources = {str(path.relative_to(package)): path.read_text().splitlines() for path in files}
    found = {file: {} for file in sources}
    file = number = None
    for i, text in enumerate((package / "_core.c").read_text().splitlines(), 1):
        if origin := ORIGIN.search(text):
            file, number = origin[1], int(origin[2])
        elif text.startswith("}"):
            number = None
        elif number and i in counts:
            count, branches = counts[i]
            before, decided = found[file].get(number, (0, []))
            if DECISION.match(text) and not LOOP.search(sources[file][number - 1]):
                decided = decided + branches
            found[file][number] = max(before, count), decided
    return found


def summary(lines):
    """Reached lines, lines, reached branches, branches."""
    branches = [b for _, found in lines.values() for b in found]
    reached = sum(count > 0 for count, _ in lines.values())
    return reached, len(lines), sum(b > 0 for b in branches), len(branches)


def shares(counts):
    """The counts as a text."""
    a, b, c, d = counts
    return f"{100 * a / b:.1f} % of {b} lines, {100 * c / d if d else 100:.1f} % of {d} branches"


def main():
    with tempfile.TemporaryDirectory() as name, tqdm(total=3, unit="step") as progress:
        folder = Path(name)
        tree = copy_tree(folder)
        header, threads = tree / "rmsprop_c/include/rmsprop.h", tree / "rmsprop_c/src/threads.c"
        header.write_text(header.read_text().replace(INLINED, NOT_INLINED))
        threads.write_text(threads.read_text() + DUMP)
        build(folder, tree, FLAGS)
        progress.update()
        python = environment(folder, tree, first="import dump_at_exit", **SLOWER)
        (tree / "dump_at_exit.py").write_text(EXIT)
        command = [python, "-m", "pytest", "-q", "--timeout=1500", "-p", "no:cacheprovider"]
        command += [*INTEGRATIONS, *SUITE, *sys.argv[1:]]
        with subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, text=True) as suite:
            for line in suite.stdout:
                tqdm.write(line.rstrip())
        progress.update()
        if suite.returncode:
            return suite.returncode
        for processor in PROCESSORS:
            run([*processor, sys.executable, "-m", "rmsprop_c", "info"], cwd=tree)
        counts = counts_of(tree)
        files = {
            "include/rmsprop.h": counts["rmsprop_c/include/rmsprop.h"],
            "src/kernels.c": counts["rmsprop_c/src/kernels.c"],
            "src/fenv.h": counts["rmsprop_c/src/fenv.h"],
            "src/step.c": counts["rmsprop_c/src/step.c"],
            "src/team.c": counts["rmsprop_c/src/team.c"],
            "src/threads.c": counts["rmsprop_c/src/threads.c"],
            **binding_lines(tree, counts["rmsprop_c/_core.c"]),
        }
        progress.update()
        if not any(count for count, _ in files["_core.pyx"].values()):
            raise SystemExit("a process was killed while it wrote its counts; run this again")
        uncovered, parts = {}, []
        totals = {"the C core": [0] * 4, "the binding": [0] * 4}
        for file, lines in files.items():
            source = (ROOT / "rmsprop_c" / file).read_text().splitlines()
            lines = {i: found for i, found in lines.items() if i <= len(source)}  # without DUMP
            parts.append(f"`{file}` {shares(summary(lines))}")
            total = totals["the C core" if file.startswith(("src", "include")) else "the binding"]
            total[:] = [x + y for x, y in zip(total, summary(lines), strict=True)]
            open_lines = [
                source[i - 1].strip()
                for i, (count, branches) in sorted(lines.items())
                if count == 0 or not all(branches)
            ]
            if open_lines:
                uncovered[file] = list(dict.fromkeys(open_lines))
    low = [name for name, (a, b, c, d) in totals.items() if min(a / b, c / d) < LEAST / 100]
    parts[:0] = [f"{name} {shares(total)}" for name, total in totals.items()]
    print(*parts, sep="\n")
    record(
        "Coverage by the suite",
        {"summary": " ".join(["; ".join(parts), *sys.argv[1:]]), "uncovered": uncovered},
    )
    missing = unexplained("uncovered", uncovered)
    print(*[f"not covered, without a reason: {text}" for text in missing], sep="\n")
    print(*[f"{file} is below {LEAST} %" for file in low], sep="\n")
    return bool(missing or low)


if __name__ == "__main__":
    sys.exit(main())

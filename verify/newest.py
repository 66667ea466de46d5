"""The suite with the newest Pythons and their gcc, in a chroot of Debian's sid.

It needs root, debootstrap (apt-get install debootstrap) and the archive that apt uses here.

python verify/newest.py [--pythons 3.14,3.15] [--tests "tests/golden/test_golden.py ..."]
"""

import argparse
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path

from shared import copy_tree, run
from tqdm import tqdm

PACKAGES = ("gcc", "g++", "make", "git", "python3-venv")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Of an archive that is a snapshot the files may be older than they allow.
APT = ("apt-get", "-q", "-o", "Acquire::Check-Valid-Until=false")


def archive():
    """The address of Debian's archive that apt uses here."""
    listed = sorted(Path("/etc/apt").glob("sources.list.d/*"))
    for path in [Path("/etc/apt/sources.list"), *listed]:
        if path.is_file():
            for found in re.findall(r"https?://\S+", re.sub("(?m)^#.*$", "", path.read_text())):
                if "security" not in found:
                    return found
    raise SystemExit("no archive of Debian in /etc/apt")


def inside(root, command, **variables):
    """Run a command in the chroot, and return what it says.

    /proc and /dev are mounted in a namespace that ends with the command. If they stayed, removing
    the folder would remove the machine's own devices.
    """
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    environment |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")} | variables
    mount = 'for name in proc dev; do mount --rbind /$name "$0/$name"; done; exec chroot "$0" "$@"'
    return run(["unshare", "--mount", "sh", "-euc", mount, root, *command], env=environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", type=lambda x: x.split(","), default=["3.14", "3.15"])
    suite = ["tests", "-m", "not plain", "--ignore=tests/packaging/test_build.py"]
    suite += ["--ignore=tests/packaging/test_old_processors.py"]  # the library's size is looked at
    parser.add_argument("--tests", type=shlex.split, default=suite)
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise SystemExit("this needs root and debootstrap (apt-get install debootstrap)")
    with tempfile.TemporaryDirectory() as scratch, tqdm(unit="stage") as progress:
        root = Path(scratch, "sid")

        def stage(name):
            progress.set_description(name)
            progress.update()

        stage("sid")
        run(["debootstrap", "--variant=minbase", "--include=ca-certificates", "sid", root,
             archive()])  # fmt: skip
        shutil.copy(CERTIFICATES, root / CERTIFICATES[1:])
        versions = [f"python{v}-{part}" for v in arguments.pythons for part in ("venv", "dev")]
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        inside(root, [*APT, "update"], **quiet)
        wanted = ("install", "-y", "--no-install-recommends", *PACKAGES, *versions)
        inside(root, [*APT, *wanted], **quiet)
        shutil.move(copy_tree(Path(scratch)), root / "tree")
        for version in arguments.pythons:
            stage(f"{version}: build")
            python = f"/venv{version}/bin/python"
            inside(root, [f"python{version}", "-m", "venv", f"/venv{version}"])
            tools = ("setuptools>=77", "Cython>=3.1", "numpy>=2")
            inside(root, [python, "-m", "pip", "install", "-q", *tools])
            install = f"cd /tree && {python} -m pip install -q --no-build-isolation -e '.[test]'"
            inside(root, ["sh", "-c", install], CFLAGS="-Wall -Wextra -Werror")
            stage(f"{version}: tests")
            test = shlex.join([python, "-m", "pytest", "-q", "-p", "no:cacheprovider"])
            chosen = shlex.join(arguments.tests)
            said = inside(root, ["sh", "-c", f"cd /tree && {test} {chosen}"])
            progress.write(f"Python {version}: {said.splitlines()[-1]}")


if __name__ == "__main__":
    main()

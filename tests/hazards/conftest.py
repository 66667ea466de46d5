"""Fixtures of this folder."""

import os
import shutil
import subprocess

import pytest
from promises import FOLDER


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Makes a library of a C file by this machine's compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for the naive code")

    def compiled(source, *flags):
        library = tmp_path_factory.mktemp("compiled") / f"{source.stem}.so"
        command = [compiler, "-O3", "-shared", "-fPIC", *flags, str(source), "-o", str(library)]
        made = subprocess.run([*command, "-lm"], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"{source.name} does not compile here: {made.stderr.strip()}")
        return str(library)

    return compiled


@pytest.fixture(scope="session")
def naive_library(compiled):
    """Where naive.c lies, compiled."""
    return compiled(FOLDER / "naive" / "naive.c", "-ffp-contract=off", "-fopenmp")

"""Fixtures of this folder."""

import os
import shutil
import subprocess

import numpy as np
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


@pytest.fixture
def threaded_model():
    rng = np.random.default_rng(0)
    shapes = [(300, 400), (400,), (50_000,), (7,)]
    params = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    grads = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    return params, grads

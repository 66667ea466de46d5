"""Which entry of the dispatch table is chosen when the package is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from rmsprop_c import _core

pytestmark = pytest.mark.skipif(
    "avx2" not in _core.compiled_isas(), reason="the other processors have one entry only"
)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", [n for n, supported in _core.compiled_isas().items() if supported])
def test_the_environment_chooses_an_instruction_set(name):
    result = run("import rmsprop_c; print(rmsprop_c.build_info()['isa'])", RMSPROP_C_ISA=name)
    assert result.stdout.strip() == name


def test_an_impossible_instruction_set_is_an_import_error_that_names_it():
    result = run("import rmsprop_c", RMSPROP_C_ISA="neon")
    assert result.returncode != 0
    assert "ImportError: RMSPROP_C_ISA: instruction set 'neon' can't be used" in result.stderr
    assert "portable" in result.stderr


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what it is there")
def test_the_fastest_supported_one_is_the_default():
    """src/kernels.c says what was measured: Intel's divider is worth avoiding, AMD's is not."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict([x.strip() for x in line.split(":", 1)] for line in lines if ":" in line)
    if fields["vendor_id"] == "GenuineIntel":
        two_wide_units = "avx512_fp16" in fields["flags"].split()
        preferred = ["avx512_fma"] * two_wide_units + ["avx2_fma", "avx2", "portable"]
    else:
        preferred = ["avx512", "avx2", "portable"]
    supported = [n for n, s in _core.compiled_isas().items() if s]
    result = run("import rmsprop_c; print(rmsprop_c.build_info()['isa'])")
    assert result.stdout.strip() == next(isa for isa in preferred if isa in supported)


@pytest.mark.parametrize("name", [n for n, supported in _core.compiled_isas().items() if supported])
def test_what_computes_the_roots_is_told(name):
    result = run("import rmsprop_c; print(rmsprop_c.build_info()['roots'])", RMSPROP_C_ISA=name)
    how = {"avx512_fma": ("fma", "fma"), "avx2_fma": ("sqrt", "fma")}.get(name, ("sqrt", "sqrt"))
    assert result.stdout.strip() == str(dict(zip(("float32", "float64"), how, strict=True)))

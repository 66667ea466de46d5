"""Each entry of the dispatch table is what its name says: the built extension, disassembled."""

import re
import subprocess
from collections import defaultdict

import pytest

from rmsprop_c import _core

FUNCTIONS = tuple(
    f"rmsprop_{centered}{momentum}_{epsilon}_{dtype}".replace("__", "_")
    for centered in ("", "centered_")
    for momentum in ("plain" if not centered else "", "momentum", "nesterov")
    for epsilon in ("out", "in")
    for dtype in ("f32", "f64")
)
SUMS = ("rmsprop_block_sums_f32", "rmsprop_block_sums_f64")
# The functions with roots of src/roots.h: the estimate there, how many FMAs make a root of one, and
# their registers.
ROOTS = {
    "roots_f64_avx2": ("vrsqrtps", 11, "ymm"),
    "rmsprop_grouped_f32_avx512": ("vrsqrt14ps", 5, "zmm"),
    "rmsprop_grouped_f64_avx512": ("vrsqrt14pd", 8, "zmm"),
}
INEXACT = "v?fn?m(add|sub)|v?rcp|v?rsqrt"
X86 = "avx2" in _core.compiled_isas()
WIDEST = {"portable": "xmm", "avx2": "ymm", "avx512": "zmm"}

pytestmark = pytest.mark.skipif(not X86, reason="the other processors have one entry only")


@pytest.fixture(scope="module")
def instructions():
    """Lists of (mnemonic, operands) by function, from the disassembled extension."""
    dump = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _core.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = defaultdict(list)
    name = None
    for line in dump.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.+)>:", line):
            # A compiler may split a function; its parts have the name and a suffix.
            name = header[1].split(".")[0]
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(\S+)\s*(.*)", line):
            found[name].append(instruction.groups())
    return found


def entry(function, isa):
    return function if isa == "portable" else f"{function}_{isa}"


def body(instructions, function, isa):
    """The instructions of an entry."""
    found = instructions[entry(function, isa)]
    assert found, f"{entry(function, isa)} is not in the extension"
    return found


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("isa", WIDEST)
def test_an_update_divides_and_takes_roots_in_its_own_registers(instructions, function, isa):
    suffix = "ps" if function.endswith("f32") else "pd"
    code = body(instructions, function, isa)
    for operation in ("sqrt", "div"):
        widths = {
            register
            for mnemonic, operands in code
            if re.fullmatch(f"v?{operation}{suffix}", mnemonic)
            for register in re.findall(r"[xyz]mm", operands)
        }
        assert WIDEST[isa] in widths, f"no {operation}{suffix} on {WIDEST[isa]}"
    wider = {"portable": ("ymm", "zmm"), "avx2": ("zmm",), "avx512": ()}[isa]
    assert not any(register in operands for _, operands in code for register in wider)


@pytest.mark.parametrize("function", SUMS)
@pytest.mark.parametrize("isa", WIDEST)
def test_a_norm_adds_in_its_own_registers(instructions, function, isa):
    added = [
        operands
        for mnemonic, operands in body(instructions, function, isa)
        if re.fullmatch("v?addpd", mnemonic) and WIDEST[isa] in operands
    ]
    assert added


@pytest.mark.parametrize("function", FUNCTIONS + SUMS)
@pytest.mark.parametrize("isa", WIDEST)
def test_no_entry_contracts_or_estimates(instructions, function, isa):
    inexact = [m for m, _ in body(instructions, function, isa) if re.match(INEXACT, m)]
    assert not inexact


def test_nothing_but_the_proven_roots_fuses_or_estimates(instructions):
    found = {
        name for name, code in instructions.items() if any(re.match(INEXACT, m) for m, _ in code)
    }
    assert found == set(ROOTS)


@pytest.mark.parametrize("function", ROOTS)
def test_there_every_fused_operation_belongs_to_a_root(instructions, function):
    estimate, of_a_root, register = ROOTS[function]
    inexact = [(m, operands) for m, operands in instructions[function] if re.match(INEXACT, m)]
    estimates = [m for m, _ in inexact if not m.startswith("vf")]
    assert set(estimates) == {estimate}
    assert len(inexact) - len(estimates) == of_a_root * len(estimates)
    assert all(register in operands for m, operands in inexact if m.startswith("vf"))


@pytest.mark.parametrize(
    ("function", "register", "loops"),
    [
        ("rmsprop_grouped_f64_avx2", "ymm", 6),
        ("rmsprop_grouped_f32_avx512", "zmm", 12),
        ("rmsprop_grouped_f64_avx512", "zmm", 12),
    ],
)
def test_the_loops_around_the_roots_are_in_the_same_registers(
    instructions, function, register, loops
):
    suffix = "ps" if "f32" in function else "pd"
    clip = function.replace("grouped", "clip_tile")
    for name, operation, least in ((function, "vdiv", loops), (clip, "vmul", 1)):
        found = [m for m, operands in instructions[name] if register in operands]
        assert found.count(operation + suffix) >= least


def test_the_library_stays_below_half_a_megabyte(tmp_path):
    stripped = tmp_path / "core.so"
    subprocess.run(["strip", "-o", stripped, _core.__file__], check=True)
    assert stripped.stat().st_size < 500_000

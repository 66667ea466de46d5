"""The same bits on an old x86-64 without AVX, and on other architectures: emulated by QEMU."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rmsprop_c import __main__ as command, _core, get_include, reference

N = 4099  # two blocks of the norm, and a tail
SCALARS = {"lr": 0.01, "rho": 0.9, "epsilon": 1e-8, "momentum": 0.7}
DECAY, EMA = 0.1, 0.75

PROGRAM = """
#include "rmsprop.h"
#include <stdio.h>

#define NAME(name) RMSPROP_JOIN(rmsprop_##name##_, SUFFIX)
enum { N = 4099, SLOTS = 6 };
static REAL start[SLOTS][N], x[SLOTS][N]; /* p, g, a, m, mean, ema */

static size_t reset(void)
{
    memcpy(x, start, sizeof x);
    return 0;
}

int main(void)
{
    const rmsprop_scalars scalars = {.learning_rate = LR,
                                     .rho = RHO,
                                     .epsilon = EPSILON,
                                     .scale = 1,
                                     .clipvalue = INFINITY,
                                     .momentum = MOMENTUM,
                                     .weight_decay = DECAY,
                                     .ema_momentum = EMA};
    size_t bytes = fread(start, 1, sizeof start, stdin);
    for (int i = 0; i < RMSPROP_VARIANTS; i++) {
        reset();
        NAME(variant)(i)(x[0], x[1], x[2], x[3], x[4], N, &scalars);
        bytes += fwrite(x, 1, sizeof x, stdout);
    }
    reset();
    NAME(passes)(NAME(variant)(8), RMSPROP_DECAY | RMSPROP_UPDATE | RMSPROP_FLUSH | RMSPROP_AVERAGE,
                 x[0], x[1], x[2], x[3], x[4], x[5], 0, N, &scalars);
    bytes += fwrite(x, 1, sizeof x, stdout);

    double sums[2];
    NAME(block_sums)(start[1], N, sums);
    const double numbers[] = {rmsprop_gradient_scale(sums, 2, 1.0, 3, 1),
                              rmsprop_learning_rate(LR, DECAY, 12345),
                              rmsprop_power(RHO, 12345)};
    bytes += fwrite(numbers, 1, sizeof numbers, stdout);
    return bytes != sizeof start + (RMSPROP_VARIANTS + 1) * sizeof x + sizeof numbers;
}
"""


WHAT_RUNS = """
import numpy as np
from rmsprop_c import RMSprop, _core

RMSprop().step([np.ones(99)], [np.ones(99)])
isas = _core.compiled_isas()
print(_core.chosen_isa(), *[isa for isa, supported in isas.items() if supported])
for isa, supported in isas.items():
    if not supported:
        try:
            _core.use_isa(isa)
        except ValueError as error:
            print(error)
"""


def needed(*programs):
    """Their paths; the test is skipped where one is missing."""
    paths = [shutil.which(program) for program in programs]
    for program, path in zip(programs, paths, strict=True):
        if path is None:
            pytest.skip(f"{program} is not installed")
    return paths


def emulated(cpu):
    """Runs Python on an emulated processor."""
    (qemu,) = needed("qemu-x86_64")

    def run(*arguments):
        # A BLAS that starts a thread for each processor only makes the emulation slower.
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="2")
        environment.pop("RMSPROP_C_ISA", None)
        words = [qemu, "-cpu", cpu, sys.executable, *arguments]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    tried = run("-c", "import numpy")
    if tried.returncode:
        pytest.skip(f"Python or NumPy itself does not run there: {tried.stderr.strip()[-200:]}")
    return run


@pytest.fixture(scope="module")
def nehalem():
    """Runs Python on a Nehalem of 2008, the oldest that NumPy's wheels still run on."""
    return emulated("Nehalem")


@pytest.mark.parametrize(
    ("cpu", "isa"), [("Haswell", "avx2_fma"), ("Haswell,-fma", "avx2"), ("EPYC", "avx2")]
)
def test_intels_processors_are_spared_the_divider_and_amds_are_not(cpu, isa):
    done = emulated(cpu)("-c", "import rmsprop_c; print(rmsprop_c.build_info()['isa'])")
    assert done.stdout.strip() == isa, done.stderr


def test_a_processor_without_avx_passes_the_selftest_with_the_portable_kernels(nehalem):
    done = nehalem("-m", "rmsprop_c", "selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows.pop() == ["selftest", "passed"]
    for dtype, checksum in command.CHECKSUMS.items():
        for threads in command.THREADS:
            assert [dtype, "portable", str(threads), "threads", checksum, "ok"] in rows
    missing = [row[1] for row in rows if row[2:] == ["not", "on", "this", "processor"]]
    assert set(missing) == {row[1] for row in rows} - {"portable"}


def test_a_processor_without_avx_refuses_avx_by_name_and_runs_by_default(nehalem):
    done = nehalem("-c", WHAT_RUNS)
    assert done.returncode == 0, done.stderr
    first, *refusals = done.stdout.splitlines()
    assert first == "portable portable"
    assert len(refusals) == len(_core.compiled_isas()) - 1
    for line in refusals:
        assert "this processor does not support it; usable here: portable" in line


NAIVE = """
import sys
import numpy as np

sys.path.insert(0, sys.argv[1])
from naive import RMSprop

p = np.zeros(999, np.float32)
RMSprop().step([p], [np.ones_like(p)])
print("stepped" if (p < 0).all() else p)
"""


def test_naive_code_for_the_processor_it_was_built_on_is_an_illegal_instruction(
    nehalem, tmp_path, monkeypatch
):
    (compiler,) = needed("gcc")
    naive = Path(__file__).parents[1] / "support" / "naive"
    for level, ends in (("x86-64", (0, "stepped\n")), ("haswell", (-signal.SIGILL, ""))):
        library = tmp_path / f"{level}.so"
        flags = ["-O3", f"-march={level}", "-fopenmp", "-shared", "-fPIC"]
        words = [compiler, *flags, naive / "naive.c", "-o", library, "-lm"]
        subprocess.run(words, check=True)
        monkeypatch.setenv("NAIVE_LIBRARY", str(library))
        done = nehalem("-c", NAIVE, str(naive))
        assert (done.returncode, done.stdout) == ends, done.stderr


def expected(start, real):
    """The program's output, by reference.py."""
    out = []
    arguments = {name: SCALARS[name] for name in ("lr", "rho", "epsilon")}
    for centered in (False, True):
        for momentum in (0, 1, 2):
            for epsilon_in_sqrt in (False, True):
                formula = {
                    "centered": centered,
                    "momentum": SCALARS["momentum"] if momentum else 0.0,
                    "nesterov": momentum == 2,
                    "epsilon_in_sqrt": epsilon_in_sqrt,
                }
                p, g, a, m, mean, ema = x = start.copy()
                reference.update(p, g, a, m, mean, **arguments, **formula)
                out.append(x)
    p, g, a, m, mean, ema = x = start.copy()
    p[...] = p - real(SCALARS["lr"] * DECAY) * p
    formula = {"centered": True, "momentum": SCALARS["momentum"], "flush_subnormals": True}
    reference.update(p, g, a, m, mean, **arguments, **formula)
    ema[...] = real(EMA) * ema + (real(1) - real(EMA)) * p
    out.append(x)
    third = 1.0 / 3.0
    norm = reference.global_norm([start[1]]) * third
    numbers = [
        (1.0 / norm if norm >= 1 else 1.0) * -third,
        reference.learning_rate(SCALARS["lr"], DECAY, 12345),
        reference.power(SCALARS["rho"], 12345),
    ]
    return np.concatenate([x.ravel() for x in out]), np.array(numbers)


MACHINES = {  # compiler, emulator, byte order
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64", "<"),
    "armhf": ("arm-linux-gnueabihf-gcc", "qemu-arm", "<"),
    "riscv64": ("riscv64-linux-gnu-gcc", "qemu-riscv64", "<"),
    "s390x": ("s390x-linux-gnu-gcc", "qemu-s390x", ">"),
}


@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize(("real", "suffix"), [("float", "f32"), ("double", "f64")])
@pytest.mark.parametrize("machine", MACHINES)
def test_the_header_gives_the_reference_bits_on(machine, real, suffix, level, tmp_path):
    compiler, emulator, order = MACHINES[machine]
    compiler, emulator = needed(compiler, emulator)
    values = {**SCALARS, "DECAY": DECAY, "EMA": EMA, "REAL": real, "SUFFIX": suffix}
    macros = [f"-D{name.upper()}={value}" for name, value in values.items()]
    flags = [level, "-ffp-contract=off", "-fno-math-errno", "-static", f"-I{get_include()}"]
    (tmp_path / "program.c").write_text(PROGRAM)
    words = [compiler, *flags, *macros, "program.c", "-o", "program", "-lm"]
    subprocess.run(words, cwd=tmp_path, check=True)

    dtype = np.dtype({"float": np.float32, "double": np.float64}[real])
    low = {"float": -75, "double": -538}[real]  # squares reach down to subnormals
    start = np.stack([reference.spread_values(N, 10**5 * i, -8, 3, dtype) for i in range(6)])
    start[1] = reference.spread_values(N, 7, low, 8, dtype)
    start[2] = reference.spread_values(N, 8, 2 * low, 16, dtype)
    start[2] = abs(start[2])
    given = start.astype(dtype.newbyteorder(order)).tobytes()
    done = subprocess.run([emulator, "program"], cwd=tmp_path, input=given, capture_output=True)
    assert done.returncode == 0, done.stderr
    with np.errstate(all="ignore"):
        states, numbers = expected(start, dtype.type)
    count = states.size * dtype.itemsize
    found = np.frombuffer(done.stdout[:count], dtype.newbyteorder(order)).astype(dtype)
    assert found.tobytes() == states.tobytes()
    assert done.stdout[count:] == numbers.astype(np.dtype("f8").newbyteorder(order)).tobytes()

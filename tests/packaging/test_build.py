"""What other people build: the package from its sdist, and their code on its kernels.

Everything is compiled from one extracted sdist, each configuration once and without the network,
so every test but the first two also shows that the sdist is complete.
"""

import email
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rmsprop_c import _core, reference

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("kernels", "step", "team", "threads")
SITE_PACKAGES = Path(np.__file__).parents[1]
CC = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))
SUPPORTED = [isa for isa, supported in _core.compiled_isas().items() if supported]
EXACT = ["-O3", "-ffp-contract=off", "-fno-math-errno"]
CXX = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX"))
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
SCALARS = {"lr": 0.01, "rho": 0.9, "epsilon": 1e-8, "scale": 0.7, "clipvalue": 0.25}

# All that a compiler without OpenMP does differently.
NO_OPENMP_CC = """#!/bin/sh
for argument; do
    if [ "$argument" = -fopenmp ]; then
        echo "this compiler has never heard of OpenMP" >&2
        exit 1
    fi
done
exec {} "$@"
"""

# Flags that break the contract in every way they can, for the compiler and for the linker.
FAST_MATH = "-Ofast -ffast-math -funsafe-math-optimizations -ffp-contract=fast"
if platform.machine() == "x86_64":
    FAST_MATH += " -march=native"  # with FMA, where there is one to contract to

STEP_IN_AN_EMPTY_FOLDER = """
import pathlib, sys
import numpy as np
import rmsprop_c
from rmsprop_c import RMSprop, reference
assert pathlib.Path(rmsprop_c.__file__).is_relative_to(sys.prefix), rmsprop_c.__file__
assert pathlib.Path(rmsprop_c.get_include(), "rmsprop.h").is_file()
p = [np.linspace(-1, 1, 1003)]
q, a = [p[0].copy()], [np.zeros(1003)]
opt = RMSprop(lr=0.01)
for t in range(3):
    opt.step(p, [p[0] ** 3])
    reference.step(q, [q[0] ** 3], a, t, lr=0.01)
assert p[0].tobytes() == q[0].tobytes() and not any(pathlib.Path().iterdir())
"""

SUBNORMALS_AROUND_IMPORT = """
import numpy as np
def products():
    small = np.full(64, 1e-30, np.float32)
    smallest = np.full(64, 5e-324)
    return (small * np.float32(1e-10)).tobytes() + (smallest * 1.0).tobytes()
before = products()
import rmsprop_c
assert any(before) and products() == before
"""

IMPORT = """
import sys, time
import numpy
before = set(sys.modules)
begin = time.process_time()
import rmsprop_c
print(time.process_time() - begin)
print(*set(sys.modules) - before)
"""

CYTHON_USER = """
from rmsprop_c._core cimport rmsprop_scalars, update_f32, update_f64

def step_f32(float[::1] p, const float[::1] g, float[::1] a, rmsprop_scalars scalars):
    with nogil:
        update_f32(&p[0], &g[0], &a[0], p.shape[0], &scalars)

def step_f64(double[::1] p, const double[::1] g, double[::1] a, rmsprop_scalars scalars):
    with nogil:
        update_f64(&p[0], &g[0], &a[0], p.shape[0], &scalars)
"""

CYTHON_SETUP = """
import rmsprop_c
from Cython.Build import cythonize
from setuptools import Extension, setup
import sys
user = Extension("user", ["user.pyx"], include_dirs=[rmsprop_c.get_include()],
                 language=sys.argv.pop())
setup(name="user", ext_modules=cythonize(user, language_level=3))
"""

CYTHON_MAIN = """
import numpy as np
import rmsprop_c.reference as reference
import user
scalars = {scalars}
for dtype, step in (np.float32, user.step_f32), (np.float64, user.step_f64):
    p, g, a = (reference.spread_values(20_011, seed, -60, 8, dtype) for seed in range(3))
    a = abs(a)
    q, b = p.copy(), a.copy()
    neutral = ("rho_power", "momentum", "lr_outside", "weight_decay", "ema_momentum")
    off = dict.fromkeys(neutral, 0.0)
    step(p, g, a, dict(scalars, learning_rate=scalars["lr"], **off))
    bound = dtype(scalars["clipvalue"])
    clipped = np.clip(g * dtype(scalars["scale"]), -bound, bound)
    reference.update(q, clipped, b, **{{name: scalars[name] for name in ("lr", "rho", "epsilon")}})
    assert p.tobytes() == q.tobytes() and a.tobytes() == b.tobytes(), dtype
"""

C_USER = """
#include "rmsprop.h"
#include <stdio.h>

#define N 20011
static REAL p[N], g[N], a[N];

int main(void)
{
    static rmsprop_scalars scalars;
    scalars.learning_rate = LEARNING_RATE;
    scalars.rho = RHO;
    scalars.epsilon = EPSILON;
    scalars.scale = SCALE;
    scalars.clipvalue = CLIPVALUE;
    size_t items = fread(p, sizeof *p, N, stdin);
    items += fread(g, sizeof *g, N, stdin);
    items += fread(a, sizeof *a, N, stdin);
    UPDATE(p, g, a, N, &scalars);
    items += fwrite(p, sizeof *p, N, stdout);
    items += fwrite(a, sizeof *a, N, stdout);
    return items != 5 * (size_t)N;
}
"""


def run(*command, cwd, check=True, **environment):
    """A command's outcome, away from the variables that would change a build or an import."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RMSPROP_C_") and name not in ("CFLAGS", "LDFLAGS", "PYTHONPATH")
    }
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0 or not check, result.stdout
    return result


def build_wheel(source, folder, check=True, **environment):
    """What building a wheel says, with the packages that are installed here."""
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    return run(*command, source, cwd=folder, check=check, **environment).stdout


def unpacked(folder):
    """A folder for PYTHONPATH with the package of the wheel in `folder`."""
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    generated = (".*", "build", "dist", "out", "*.egg-info", "__pycache__", "*.so", "_core.c")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*generated))
    command = (sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder)
    run(*command, folder / "tree", cwd=folder)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def source(sdist, tmp_path_factory):
    """The extracted sdist."""
    folder = tmp_path_factory.mktemp("source")
    run(sys.executable, "-m", "tarfile", "-e", sdist, folder, cwd=folder)
    return next(folder.iterdir())


@pytest.fixture(scope="session")
def wheel(source, tmp_path_factory):
    """The wheel as anybody gets it who asks for nothing special."""
    folder = tmp_path_factory.mktemp("wheel")
    build_wheel(source, folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory):
    """Python of a fresh environment with that wheel installed; NumPy and the tools are ours."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).stdout
    # The path alone: .pth files in it, like that of an editable install, are not followed.
    Path(site.strip(), "borrowed.pth").write_text(f"{SITE_PACKAGES}\n")
    return python


@pytest.fixture(scope="session")
def without_openmp(wheel, source, tmp_path_factory):
    """RMSPROP_C_OPENMP=0, in the tree that still holds the objects of the first wheel."""
    folder = tmp_path_factory.mktemp("without_openmp")
    build_wheel(source, folder, RMSPROP_C_OPENMP="0", CFLAGS="-Wall -Wextra -Werror")
    return unpacked(folder)


@pytest.fixture(scope="session")
def no_openmp_cc(tmp_path_factory):
    script = tmp_path_factory.mktemp("no_openmp_cc") / "cc"
    script.write_text(NO_OPENMP_CC.format(shlex.join(CC)))
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="session")
def fallback(no_openmp_cc, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fallback")
    build_wheel(source, folder, CC=no_openmp_cc)
    return unpacked(folder)


@pytest.fixture(scope="session")
def fast_math(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast_math")
    build_wheel(source, folder, CFLAGS=FAST_MATH, LDFLAGS=FAST_MATH)
    return unpacked(folder)


def openmp_of(folder, cwd):
    code = "import rmsprop_c; print(rmsprop_c.build_info()['openmp'])"
    return run(sys.executable, "-c", code, cwd=cwd, PYTHONPATH=str(folder)).stdout.strip()


def selftest(folder, cwd):
    command = (sys.executable, "-m", "rmsprop_c", "selftest")
    assert "selftest passed" in run(*command, cwd=cwd, PYTHONPATH=str(folder)).stdout


def test_an_unbuilt_checkout_says_what_to_do(python, source, tmp_path):
    shutil.copytree(
        source / "rmsprop_c",
        tmp_path / "rmsprop_c",
        ignore=lambda _, names: [name for name in names if name.endswith(".so")],
    )
    for command in (("-m", "rmsprop_c", "info"), ("-c", "import rmsprop_c")):
        said = run(python, *command, cwd=tmp_path, check=False)
        assert said.returncode == 1
        assert "nothing is compiled" in said.stdout
        assert "run 'pip install -e .' in" in said.stdout


def test_the_sdist_holds_every_source_and_nothing_generated(sdist):
    with tarfile.open(sdist) as archive:
        names = {Path(name) for name in archive.getnames()}
    (top,) = {name.parts[0] for name in names}
    files = {str(name.relative_to(top)) for name in names}
    package = {"_core.pyx", "_core.pxd", "_core.pyi", "include/rmsprop.h", "py.typed"}
    package |= {f"src/{name}.{end}" for name in SOURCES for end in "ch"} | {"src/fenv.h"}
    package |= {"__init__.py", "__main__.py", "_c.pxd"}
    package |= {f"binding/{path.name}" for path in (ROOT / "rmsprop_c").glob("binding/*.pxi")}
    assert {f"rmsprop_c/{name}" for name in package} <= files
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= files
    assert {
        "tests/packaging/test_build.py",
        "tests/conftest.py",
        "tests/golden/golden.npz",
    } <= files
    generated = {name for name in files if name.endswith((".so", ".pyc", ".o", "_core.c"))}
    assert not generated


def test_the_wheel_holds_types_and_headers_but_no_sources(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rmsprop_c"}
    needed = ("_core.pyi", "_core.pxd", "py.typed", "include/rmsprop.h", "__main__.py")
    assert {f"rmsprop_c/{name}" for name in needed} <= set(names)
    assert not [
        name for name in names if name.endswith((".c", ".pyx", ".pxi", "_c.pxd", ".o", ".pyc"))
    ]
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_needs_numpy_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        path = next(name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    always = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert [r.partition(">")[0] for r in always] == ["numpy"]


def test_the_wheel_is_smaller_than_a_megabyte(wheel):
    assert wheel.stat().st_size < 1_000_000


def test_an_installed_wheel_steps_from_an_empty_folder(python, tmp_path):
    run(python, "-c", STEP_IN_AN_EMPTY_FOLDER, cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1")


def test_an_installed_wheel_passes_its_selftest(python, tmp_path):
    assert "selftest passed" in run(python, "-m", "rmsprop_c", "selftest", cwd=tmp_path).stdout


@pytest.mark.alone
@pytest.mark.slow
def test_the_import_adds_less_than_15_ms_to_numpys(python, tmp_path):
    """Processor time, whose minimum a busy machine does not change."""
    times = [float(run(python, "-c", IMPORT, cwd=tmp_path).stdout.split()[0]) for _ in range(15)]
    assert min(times) < 0.015, times


def test_the_import_imports_no_other_library_but_numpy(python, tmp_path):
    imported = run(python, "-c", IMPORT, cwd=tmp_path).stdout.split()[1:]
    libraries = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert {x for x in libraries if "cython" not in x} == {"rmsprop_c"}
    integrations = {f"rmsprop_c.{name}" for name in ("sklearn", "scipy", "torch", "mpi")}
    assert not integrations & set(imported)


def test_a_schedule_is_imported_when_it_is_asked_for(python, tmp_path):
    code = """
import sys
import rmsprop_c
assert "rmsprop_c.schedules" not in sys.modules and "schedules" in dir(rmsprop_c)
assert not hasattr(rmsprop_c, "schedule")
assert rmsprop_c.schedules is sys.modules["rmsprop_c.schedules"]
"""
    run(python, "-c", code, cwd=tmp_path)


def test_the_import_loads_what_steps_need_and_steps_load_nothing(python, tmp_path):
    """A process forked while another thread imports waits indefinitely at an import of its own."""
    code = """
import sys
import numpy as np
import rmsprop_c
loaded = set(sys.modules)
print(*sorted(name for name in loaded if name.startswith("rmsprop_c.")))
params = [np.ones(3)]
opt = rmsprop_c.RMSprop(clipnorm=1.0, clipvalue=1.0, centered=True)
loss = lambda params: (0.0, [np.ones(3)])
opt.step(params, opt.get_gradients(loss, params))
opt.get_updates(params, ["maxnorm"], loss)
assert set(sys.modules) == loaded, set(sys.modules) - loaded
"""
    loaded = run(python, "-c", code, cwd=tmp_path).stdout.replace("rmsprop_c.", "").split()
    steps = ["_core", "_version", "arrays", "constraints", "gradients", "hyperparameters", "model"]
    steps += ["optimizer", "reference", "rmsprop", "serialization", "state", "threads"]
    assert loaded == steps


def test_openmp_is_used_by_default_where_the_compiler_has_it(python, tmp_path):
    source = tmp_path / "probe.c"
    source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
    probe = (*CC, "-fopenmp", source, "-o", tmp_path / "probe")
    available = run(*probe, cwd=tmp_path, check=False).returncode == 0
    code = "import rmsprop_c; print(rmsprop_c.build_info()['openmp'] is not None)"
    assert run(python, "-c", code, cwd=tmp_path).stdout.strip() == str(available)


@pytest.mark.slow
def test_openmp_0_leaves_it_out_without_a_warning_and_reuses_no_object(without_openmp, tmp_path):
    assert openmp_of(without_openmp, tmp_path) == "None"
    selftest(without_openmp, tmp_path)


@pytest.mark.slow
def test_openmp_auto_does_without_it_where_the_compiler_has_none(fallback, tmp_path):
    assert openmp_of(fallback, tmp_path) == "None"
    selftest(fallback, tmp_path)


@pytest.mark.slow
def test_openmp_1_fails_with_the_reason_where_the_compiler_has_none(source, no_openmp_cc, tmp_path):
    said = build_wheel(source, tmp_path, check=False, RMSPROP_C_OPENMP="1", CC=no_openmp_cc)
    assert "RMSPROP_C_OPENMP=1, but OpenMP can't be used: -fopenmp: " in said
    assert "this compiler has never heard of OpenMP" in said
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.slow
def test_an_unknown_value_for_openmp_is_refused(source, tmp_path):
    said = build_wheel(source, tmp_path, check=False, RMSPROP_C_OPENMP="yes")
    assert "RMSPROP_C_OPENMP is 'yes'; it must be 0, 1 or auto" in said
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.slow
def test_fast_math_in_the_environment_changes_no_bits(fast_math, tmp_path):
    selftest(fast_math, tmp_path)


@pytest.mark.slow
def test_fast_math_in_the_environment_does_not_flush_subnormals(fast_math, tmp_path):
    code = SUBNORMALS_AROUND_IMPORT
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(fast_math))


@pytest.mark.slow
@pytest.mark.parametrize("language", ["c", "c++"])
def test_cython_code_calls_the_kernels_and_gets_the_reference_bits(python, tmp_path, language):
    (tmp_path / "user.pyx").write_text(CYTHON_USER)
    (tmp_path / "setup.py").write_text(CYTHON_SETUP)
    (tmp_path / "main.py").write_text(CYTHON_MAIN.format(scalars=SCALARS))
    run(python, "setup.py", "build_ext", "--inplace", language, cwd=tmp_path, CFLAGS="-O0")
    run(python, "main.py", cwd=tmp_path)


@pytest.fixture(scope="session")
def include(python):
    code = "import rmsprop_c; print(rmsprop_c.get_include())"
    return run(python, "-c", code, cwd=python.parent).stdout.strip()


@pytest.mark.parametrize("language", [[*CC, "-std=c99"], [*CXX, "-std=c++11"]], ids=["C", "C++"])
@pytest.mark.parametrize(("real", "suffix"), [("float", "f32"), ("double", "f64")])
def test_c_code_includes_one_header_and_gets_the_reference_bits(
    include, tmp_path, real, suffix, language
):
    source = "user.c" if "-std=c99" in language else "user.cpp"
    (tmp_path / source).write_text(C_USER)
    values = dict(SCALARS, learning_rate=SCALARS["lr"])
    macros = [f"-D{name.upper()}={value!r}" for name, value in values.items()]
    macros += [f"-DREAL={real}", f"-DUPDATE=rmsprop_update_{suffix}"]
    flags = (*STRICT, *EXACT, *macros, f"-I{include}")
    command = (*language, *flags, source, "-o", "user", "-lm")
    run(*command, cwd=tmp_path)

    dtype = {"float": np.float32, "double": np.float64}[real]
    p, g, a = (reference.spread_values(20_011, seed, -60, 8, dtype) for seed in range(3))
    a = abs(a)
    given = p.tobytes() + g.tobytes() + a.tobytes()
    found = subprocess.run([tmp_path / "user"], input=given, capture_output=True, check=True)
    clipped = np.clip(
        g * dtype(SCALARS["scale"]), -dtype(SCALARS["clipvalue"]), dtype(SCALARS["clipvalue"])
    )
    reference.update(
        p, clipped, a, lr=SCALARS["lr"], rho=SCALARS["rho"], epsilon=SCALARS["epsilon"]
    )
    assert found.stdout == p.tobytes() + a.tobytes()


def test_the_header_refuses_fast_math(include, tmp_path):
    (tmp_path / "user.c").write_text('#include "rmsprop.h"\n')
    command = (*CC, "-std=c99", "-fsyntax-only", f"-I{include}", "user.c")
    run(*command, cwd=tmp_path)
    refused = run(*command, "-ffast-math", cwd=tmp_path, check=False)
    assert refused.returncode != 0
    assert "rmsprop.h promises exact bits; compile it without -ffast-math" in refused.stdout


@pytest.mark.parametrize("isa", SUPPORTED)
def test_an_installed_wheel_obeys_the_wish_for_an_instruction_set(python, tmp_path, isa):
    code = "import rmsprop_c; print(rmsprop_c.build_info()['isa'])"
    assert run(python, "-c", code, cwd=tmp_path, RMSPROP_C_ISA=isa).stdout.strip() == isa


def test_an_unknown_instruction_set_is_an_import_error_that_lists_the_usable(python, tmp_path):
    code = "import rmsprop_c"
    refused = run(python, "-c", code, cwd=tmp_path, check=False, RMSPROP_C_ISA="nonsense")
    error = refused.stdout.splitlines()[-1]
    assert error.startswith("ImportError: RMSPROP_C_ISA: instruction set 'nonsense' can't be used")
    assert error.endswith(f"usable here: {', '.join(SUPPORTED)}")


def test_an_extension_of_another_table_of_hyperparameters_is_an_import_error():
    code = """
import importlib.machinery, sys

class Other(importlib.machinery.ExtensionFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        names = module.settings()
        module.settings = lambda: [*names[1:], 'new']

class Finder:
    def find_spec(self, name, path, target=None):
        if name != "rmsprop_c._core":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Other(name, spec.origin)
        return spec

sys.meta_path.insert(0, Finder())
try:
    import rmsprop_c
except ImportError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said == (
        "RMSPROP_EACH_SETTING in src/step.h and HYPERPARAMETERS differ in ['lr', 'new']: "
        "rmsprop_c._core must be built again, after both have them\n"
    )


def test_c_in_src_never_sees_python():
    for path in sorted((ROOT / "rmsprop_c/src").iterdir()):
        assert not re.search("Python.h|Py_|PyObject|numpy", path.read_text()), path.name

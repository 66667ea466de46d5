"""The extension module: which flags, and does OpenMP link here? The rest is in pyproject.toml."""

import os
import sys
import tempfile
from glob import glob
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

OPENMP_PROBE = """
#include <omp.h>
int main(void)
{
    int n = 0;
#pragma omp parallel reduction(+ : n)
    n += omp_get_num_threads();
    return n == 0;
}
"""
# The numeric contract (include/rmsprop.h says why). -O3 and -fno-fast-math come behind CFLAGS, here
# and when linking, so that a -ffast-math or -Ofast there neither changes the arithmetic nor links
# crtfastmath.o, which would switch on flush-to-zero for the whole process.
EXACT = ["-O3", "-ffp-contract=off", "-fno-fast-math", "-fno-math-errno"]
EXACT_LINK = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations"]
SMALL = ["-fvisibility=hidden", "-g0"]  # only PyInit is exported; Python's own -g is 3/4 of a wheel
MSVC_EXACT = ["/O2", "/fp:precise", "/std:c11"]  # C11 for restrict


class BuildExt(build_ext):
    """build_ext that compiles with what the compiler at hand offers."""

    def build_extensions(self):
        msvc = self.compiler.compiler_type == "msvc"
        compile_args, link_args = self.openmp_flags(msvc)
        self.force = True  # objects left in build/ may come from other flags or another compiler
        for extension in self.extensions:
            extension.extra_compile_args += (MSVC_EXACT if msvc else EXACT + SMALL) + compile_args
            extension.extra_link_args += ([] if msvc else EXACT_LINK) + link_args
        super().build_extensions()

    def openmp_flags(self, msvc):
        """Flags for compiling and for linking; empty without OpenMP."""
        wish = os.environ.get("RMSPROP_C_OPENMP") or "auto"
        if wish not in ("0", "1", "auto"):
            raise SystemExit(f"RMSPROP_C_OPENMP is {wish!r}; it must be 0, 1 or auto")
        if wish == "0":
            return [], []
        if msvc:
            candidates = [(["/openmp"], [])]
        elif sys.platform == "darwin":  # Apple's clang knows the pragmas, the library is an extra
            candidates = [(["-Xpreprocessor", "-fopenmp"], ["-lomp"]), (["-fopenmp"], ["-fopenmp"])]
        else:
            candidates = [(["-fopenmp"], ["-fopenmp"])]
        reasons = []
        for compile_args, link_args in candidates:
            reason = self.why_not(compile_args, link_args)
            if reason is None:
                return compile_args, link_args
            reasons.append(f"{' '.join(compile_args)}: {reason}")
        if wish == "1":
            raise SystemExit("RMSPROP_C_OPENMP=1, but OpenMP can't be used: " + "; ".join(reasons))
        print("building without OpenMP: " + "; ".join(reasons))
        return [], []

    def why_not(self, compile_args, link_args):
        """Compile and link the probe, without running it; None if that works."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(OPENMP_PROBE)
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=compile_args
                )
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=link_args
                )
            except (CompileError, LinkError) as error:
                return str(error)
        return None


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=cythonize(
        Extension(
            "rmsprop_c._core",
            ["rmsprop_c/_core.pyx", *sorted(glob("rmsprop_c/src/*.c"))],
            include_dirs=[numpy.get_include(), "rmsprop_c", "rmsprop_c/include"],
            depends=[
                "rmsprop_c/include/rmsprop.h",
                *glob("rmsprop_c/binding/*.pxi"),
                *glob("rmsprop_c/src/*.h"),
            ],
            define_macros=[
                ("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION"),
                ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),  # the oldest that is promised
                ("CYTHON_UNPACK_METHODS", "0"),  # no step calls one, and they take 8 kB
            ],
        ),
        language_level=3,
    ),
)

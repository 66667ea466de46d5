"""src/roots.h compiled on its own (roots.c), and the numbers whose roots are hardest to round."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).resolve().parents[2] / "rmsprop_c"
FLAGS = ["-std=c99", "-O2", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-shared", "-fPIC"]
DTYPES = {"float32": np.float32, "float64": np.float64}


class Roots:
    """The instances of roots.h, compiled in `folder` after some of its text has been replaced."""

    def __init__(self, folder, replaced=None):
        for part in ("src", "include"):
            shutil.copytree(PACKAGE / part, Path(folder, part))
        shutil.copy(Path(__file__).with_suffix(".c"), Path(folder, "src"))
        for name, old, new in replaced or ():
            path = Path(folder, "src", name)
            text = path.read_text()
            assert old in text, f"{name} has no {old}"
            path.write_text(text.replace(old, new))
        compiler = os.environ.get("CC", "cc").split()
        source, library = Path(folder, "src", "roots.c"), Path(folder, "roots.so")
        subprocess.run([*compiler, *FLAGS, str(source), "-o", str(library), "-lm"], check=True)
        self.library = ctypes.CDLL(str(library))
        self.library.instance.restype = ctypes.c_char_p
        functions = ("wrong_roots", "wrong_from_estimates", "wrong_patterns", "wrong_random")
        for function in functions:
            getattr(self.library, function).restype = ctypes.c_size_t
        self.left = ctypes.c_size_t()
        self.instances = {}
        supported = ctypes.c_int()
        i = 0
        while (name := self.library.instance(i, ctypes.byref(supported))) is not None:
            if supported.value:
                self.instances[name.decode()] = i
            i += 1

    def wrong(self, name, x):
        """How many roots of x (rounded to the instance's dtype) are not the processor's own.

        `left` becomes the number of those that a scalar instance has not computed itself.
        """
        x = np.ascontiguousarray(x, DTYPES[name.split()[0]])
        address, size = ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(x.size)
        return self.library.wrong_roots(
            self.instances[name], address, size, ctypes.byref(self.left)
        )

    def wrong_from_estimates(self, name, x, count=0):
        """How many roots of x a scalar instance gets wrong, from estimates all over its error.

        These are `count`, evenly spread, or all that are float32 numbers.
        """
        x = np.ascontiguousarray(x, np.float64)
        address, size = ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(x.size)
        return self.library.wrong_from_estimates(
            self.instances[name], address, size, ctypes.c_size_t(count)
        )

    def wrong_patterns(self, name, first, count):
        """The same for float32 bit patterns from `first` on."""
        return self.library.wrong_patterns(
            self.instances[name], ctypes.c_uint32(first), ctypes.c_size_t(count)
        )

    def wrong_random(self, name, seed, count):
        """The same for random float64 numbers from 2**-100 to 2**100."""
        return self.library.wrong_random(
            self.instances[name], ctypes.c_uint64(seed), ctypes.c_size_t(count)
        )


def roots_modulo(c, bits):
    """The M with M*M = c modulo 2**bits, for a c that is 1 modulo 8."""
    found = {1, 3, 5, 7}  # modulo 8
    for k in range(3, bits):  # modulo 2**(k + 1) M is what it is modulo 2**k, or 2**k more
        candidates = (r + high * 2**k for r in found for high in (0, 1))
        found = {m for m in candidates if (m * m - c) % 2 ** (k + 1) == 0}
    return found


def hardest(closeness, precision=53):
    """All numbers in [1, 4) whose roots are within `closeness` of a midpoint, relatively.

    A root s in [1, 2) of a number x with so many bits of significand lies between two such numbers
    where S = s * 2**precision is an odd integer M. S*S = x * 2**(2 * precision) is a multiple of
    2**(precision + 1), for x in [2, 4) of twice that, so M*M = S*S + c with a small c, which is 1
    modulo 8 as every odd square is. abs(c) / (2 * M*M) is how far the root lies from M, relatively.
    """
    found = set()
    for half in (0, 1):  # x in [1, 2), and in [2, 4)
        low, bits = 2 ** (2 * precision + half), precision + 1 + half
        limit = int(4 * low * closeness) + 8
        for c in range(1 - 8 * (limit // 8), limit, 8):
            for root in roots_modulo(c, bits):
                for m in range(root, 2 ** (precision + 1), 2**bits):
                    square = m * m - c
                    if low <= square < 2 * low and abs(c) <= 2 * m * m * closeness:
                        found.add(square / 2 ** (2 * precision))
    return sorted(found)

"""The machine's limits for one RMSprop step: limit.c, compiled for this processor and loaded."""

import ctypes
import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
X86 = ("x86_64", "AMD64")


def compile_limit(vector_bytes=None):
    """Compile limit.c with the machine's C compiler ($CC, else cc), once per source and width.

    Parameters
    ----------
    vector_bytes : {None, 64, 32, 16}
        Width of the vectors; None is the widest that the compiler knows this processor to have.

    Returns
    -------
    pathlib.Path
        The shared library, in bench/.cache.

    Raises
    ------
    RuntimeError
        If there is no C compiler, or it fails; the message holds its output.
    """
    source = HERE / "limit.c"
    command = [*os.environ.get("CC", "cc").split(), "-O3", "-march=native", "-shared", "-fPIC"]
    command.append("-mtune=generic")  # else gcc halves the 32-byte stores for AMD's first Zen
    if platform.machine() in X86:
        command.append("-mprefer-vector-width=512")  # else clang halves 64-byte vectors
    if vector_bytes:
        command.append(f"-DVECTOR_BYTES={vector_bytes}")
    key = hashlib.sha256(
        source.read_bytes() + repr((command, processor(), platform.machine())).encode()
    )
    library = CACHE / f"limit-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    partial = library.with_suffix(f".{os.getpid()}")
    for openmp in (["-fopenmp"], []):  # without OpenMP every number of threads runs as one
        try:
            done = subprocess.run(
                [*command, *openmp, str(source), "-o", str(partial)],
                capture_output=True,
                text=True,
            )
        except OSError as error:
            raise RuntimeError(f"cannot run the C compiler {command[0]!r}: {error}") from error
        if done.returncode == 0:
            partial.replace(library)  # atomic: another process may be building it too
            return library
    raise RuntimeError(f"{command[0]} cannot compile limit.c:\n{done.stderr}")


def processor():
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def vector_bytes_of(isa):
    """The width of an instruction set's vectors."""
    return {"avx2": 32, "avx512": 64}.get(isa.removesuffix("_fma"), 16)


class Limit:
    """The traffic loop and the divider loop, at one vector width.

    Parameters
    ----------
    vector_bytes : {None, 64, 32, 16}
        See `compile_limit`.

    Attributes
    ----------
    vector_bytes : int
        The width in use.
    """

    @classmethod
    def like(cls, isa):
        """With the vectors of an instruction set of the package."""
        return cls(vector_bytes_of(isa))

    def __init__(self, vector_bytes=None):
        self.path = compile_limit(vector_bytes)
        self._library = library = ctypes.CDLL(str(self.path))
        size, pointers = ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)
        library.traffic.argtypes = [
            size,
            *[pointers] * 3,
            ctypes.POINTER(size),
            ctypes.c_uint64,
            ctypes.c_int,
            size,
        ]
        library.traffic.restype = None
        for divider in (library.divider_f32, library.divider_f64):
            divider.argtypes = [size, ctypes.c_int, size]
            divider.restype = None
        self.vector_bytes = library.vector_bytes()

    def traffic(self, params, grads, accumulators, threads):
        """Bind the traffic of one step over whole lists of arrays.

        Parameters
        ----------
        params, grads, accumulators : list of ndarray
            C-contiguous, equal in shape and dtype. They keep their values: params and
            accumulators are read and written back, grads are read.
        threads : int
            Size of the OpenMP team; 1 runs serially.

        Returns
        -------
        callable
            ``run(repeats)``, which does the traffic of that many steps in one call.
        """
        count = len(params)

        def pointers(arrays):
            return (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays])

        lists = [pointers(arrays) for arrays in (params, grads, accumulators)]
        sizes = (ctypes.c_size_t * count)(*[array.nbytes for array in params])
        traffic = self._library.traffic
        keep = (params, grads, accumulators)

        def run(repeats, keep=keep):
            traffic(count, *lists, sizes, 0, threads, repeats)

        return run

    def streams(self, passes, threads):
        """Bind the traffic of passes over arrays of one size, for options that move more.

        Parameters
        ----------
        passes : list of (list of ndarray, ndarray or None)
            For each pass, the arrays that it reads and writes back, at most five, and one that it
            only reads. All keep their values.
        threads : int
            Size of the OpenMP team; 1 runs serially.

        Returns
        -------
        callable
            ``run(repeats)``.
        """
        streams = self._library.streams
        pointers, size = ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
        streams.argtypes = [
            pointers,
            ctypes.c_int,
            ctypes.c_void_p,
            size,
            ctypes.c_uint64,
            ctypes.c_int,
            size,
        ]
        streams.restype = ctypes.c_uint64
        calls = []
        for written, read in passes:
            lists = (ctypes.c_void_p * max(len(written), 1))(*[x.ctypes.data for x in written])
            nbytes = (written[0] if written else read).nbytes
            address = None if read is None else read.ctypes.data
            calls.append((lists, len(written), address, nbytes, 0, threads, 1))

        def run(repeats, keep=passes):
            for _ in range(repeats):
                for call in calls:
                    streams(*call)

        return run

    def divider(self, dtype, elements, threads):
        """Bind the divider's share of one step: a square root and a division per element.

        Parameters
        ----------
        dtype : {'float32', 'float64'}
            Type of the elements.
        elements : int
            Elements of the whole model; they are spread over the threads.
        threads : int
            Size of the OpenMP team; 1 runs serially.

        Returns
        -------
        callable
            ``run(repeats)``, which does the divisions of that many steps in one call.
        """
        name = {"float32": "divider_f32", "float64": "divider_f64"}[np.dtype(dtype).name]
        divider = getattr(self._library, name)

        def run(repeats):
            divider(elements, threads, repeats)

        return run

    def call_kernel(self, update, p, g, a, n, scalars, repeats):
        """Call a kernel of the package from C.

        Parameters
        ----------
        update : int
            Its address.
        p, g, a : ndarray
            Buffers of n elements.
        n, repeats : int
            Elements, and how many calls.
        scalars : ctypes array
            The struct ``rmsprop_scalars`` of rmsprop.h.
        """
        void, size = ctypes.c_void_p, ctypes.c_size_t
        self._library.call_kernel.argtypes = [void, void, void, void, size, void, size]
        self._library.call_kernel(
            update, p.ctypes.data, g.ctypes.data, a.ctypes.data, n, scalars, repeats
        )

    def disassembly(self):
        """Check that the compiled traffic loop is what it claims to be.

        Returns
        -------
        dict
            ``checked``: whether objdump and this architecture allowed a look. If so,
            ``vector_bytes``, ``loads`` and ``stores`` of one turn of the main loop, and ``ok``:
            full width and 3 loads to 2 stores (a compiler may unroll). If not, ``reason``.
        """
        if platform.machine() not in X86:
            return {"checked": False, "reason": f"not written for {platform.machine()}"}
        try:
            text = subprocess.run(
                ["objdump", "-d", "--no-show-raw-insn", str(self.path)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            return {"checked": False, "reason": str(error)}
        body = re.search(r"<traffic_range>:\n(.*?)\n\n", text + "\n\n", re.DOTALL)
        if not body:
            return {"checked": False, "reason": "traffic_range was not found"}
        report = main_loop(body[1])
        if report["checked"]:
            report["ok"] = (
                report["vector_bytes"] == self.vector_bytes
                and report["loads"] > 0
                and report["loads"] * 2 == report["stores"] * 3
            )
        return report


REGISTERS = {"xmm": 16, "ymm": 32, "zmm": 64}
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*?)\s*(?:#.*|<.*)?$")


def main_loop(listing):
    """Find the innermost loop with the widest vectors and count its vector loads and stores.

    Parameters
    ----------
    listing : str
        One function as objdump prints it, in AT&T syntax for x86-64.

    Returns
    -------
    dict
        As `Limit.disassembly` returns it, without ``ok``.
    """
    code = [
        (int(found[1], 16), found[2], found[3])
        for found in map(INSTRUCTION.match, listing.splitlines())
        if found
    ]
    best = {"checked": False, "reason": "no vector loop was found"}
    widest = 0
    for end, name, target in code:
        if not name.startswith("j") or not re.fullmatch(r"[0-9a-f]+", target):
            continue
        start = int(target, 16)
        loop = [line for line in code if start <= line[0] <= end]
        if start >= end or sum(line[1].startswith("j") for line in loop) > 1:
            continue  # forwards, or not innermost
        loads, stores, width = 0, 0, 0
        for _, _, operands in loop:
            registers = re.findall(r"%([xyz]mm)\d", operands)
            if registers:
                width = max(width, *(REGISTERS[register] for register in registers))
            if registers and ")" in operands:  # a memory operand: AT&T puts the destination last
                stores += operands.endswith(")")
                loads += not operands.endswith(")")
        if width > widest:
            widest = width
            best = {"checked": True, "vector_bytes": width, "loads": loads, "stores": stores}
    return best

"""The suite on an extension with AddressSanitizer and UndefinedBehaviorSanitizer.

Any finding ends the process that has it, and so fails the test that it happens in. The interpreter
itself is not instrumented; PYTHONMALLOC=malloc lets the sanitizer see its allocations too.

    python verify/asan.py [arguments of pytest]
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import CC, SLOWER, SUITE, build, copy_tree, environment, record, run
from tqdm import tqdm

FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS += ["-fno-omit-frame-pointer"]
# Some tests ask for more memory than there is, and look at the signal that ends a process.
OPTIONS = "detect_leaks=0:allocator_may_return_null=1:handle_segv=0"
# The sanitizer's runtime has the place of what these preload.
PRELOADED = ["-k", "not preloaded"]
# A gradient behind which lies nothing.
OVERRUN = """
import ctypes, numpy as np
from rmsprop_c import RMSprop, _core
x = np.ones(64, np.float32)
y = np.ndarray((1 << 12,), np.float32, (ctypes.c_char * (1 << 14)).from_address(x.ctypes.data))
RMSprop().step([np.ones(1 << 12, np.float32)], [y])
"""


def preload():
    """The runtimes, which must come first in a process whose program is not instrumented."""
    names = ("libasan.so", "libubsan.so")
    return " ".join(run([*CC, f"-print-file-name={name}"]).strip() for name in names)


def main():
    with tempfile.TemporaryDirectory() as name, tqdm(total=3, unit="step") as progress:
        folder = Path(name)
        tree = copy_tree(folder)
        build(folder, tree, FLAGS)
        progress.update()
        python = environment(
            folder,
            tree,
            LD_PRELOAD=preload(),
            ASAN_OPTIONS=OPTIONS,
            PYTHONMALLOC="malloc",
            **SLOWER,
        )
        # A read past the end must be found, or nothing below says anything.
        (tree / "overrun.py").write_text(OVERRUN)
        shown = subprocess.run(
            [python, "overrun.py"], cwd=tree, capture_output=True, text=True, check=False
        )
        if "heap-buffer-overflow" not in shown.stderr:
            raise SystemExit(f"AddressSanitizer is not at work:\n{shown.stderr[-4000:]}")
        progress.update()
        command = [python, "-m", "pytest", "-q", "--timeout=1500", "-p", "no:cacheprovider"]
        command += [*SUITE, *PRELOADED, *sys.argv[1:]]
        lines = []
        with subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, text=True) as suite:
            for line in suite.stdout:
                lines.append(line)
                tqdm.write(line.rstrip())
        progress.update()
    counts = re.sub(r" in [\d.]+s.*", "", lines[-1]).strip("= \n")
    outcome = "no finding" if suite.returncode == 0 else "FAILED"
    summary = " ".join([f"{counts}; {outcome}", *sys.argv[1:]])
    record("The suite under ASan and UBSan", {"summary": summary})
    return suite.returncode


if __name__ == "__main__":
    sys.exit(main())

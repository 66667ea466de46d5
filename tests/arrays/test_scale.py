"""More than 2**31 elements: every index and byte count is 64 bits wide.

A file of 16 MiB, mapped over and over, stands for arrays of 8.6 GB. One step then passes over the
same memory again and again in address order, which is as many steps of a small model.
"""

import subprocess
import sys

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import reference

PERIOD = 1 << 22  # elements of the file
REPEATS = (1 << 31) // PERIOD + 3

STEP = """
import ctypes, mmap, sys, tempfile
import numpy as np
from rmsprop_c import RMSprop, set_num_threads

period, repeats, shares, tensors, clipnorm = map(int, sys.argv[1:6])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
READ_WRITE, FIXED, SHARED, FAILED = 3, 0x10, 1, ctypes.c_void_p(-1).value

def repeated(values):
    file = tempfile.TemporaryFile()
    file.write(values.tobytes())
    file.flush()
    size = values.nbytes * repeats
    whole = mmap.mmap(-1, size + values.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    for i in range(repeats + 1):
        at = libc.mmap(address + i * values.nbytes, values.nbytes, READ_WRITE, SHARED | FIXED,
                       file.fileno(), 0)
        assert at != FAILED, ctypes.get_errno()
    return whole, np.frombuffer(whole, np.uint8)

p0, g0 = np.load(sys.argv[6] + "/p.npy"), np.load(sys.argv[6] + "/g.npy")
n = period * repeats
maps = [repeated(x) for x in (p0, g0, np.zeros_like(p0))]
p, g = (array[:4 * n].view(np.float32) for _, array in maps[:2])
params, grads = np.array_split(p, tensors), np.array_split(g, tensors)
zeros = np.zeros
np.zeros = lambda size, dtype: maps[2][1][:size]   # where the plan puts the accumulators
opt = RMSprop(lr=0.01, clipnorm=clipnorm or None)
opt.build(params)
np.zeros = zeros
set_num_threads(shares)
opt.step(params, grads)
accumulator = np.concatenate([w[:period] for w in opt.weights])[:period]
np.save(sys.argv[6] + "/result.npy", [p[:period], accumulator])
"""


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.plain
@pytest.mark.parametrize(("shares", "tensors", "clipnorm"), [(1, 1, 0), (5, 1, 0), (3, 2, 10**9)])
def test_a_step_past_2_to_the_31_elements_has_the_reference_bits(
    tmp_path, shares, tensors, clipnorm
):
    p = reference.spread_values(PERIOD, 1, -3, 3, np.float32)
    g = reference.spread_values(PERIOD, 10**8, -3, 3, np.float32)
    np.save(tmp_path / "p.npy", p)
    np.save(tmp_path / "g.npy", g)
    numbers = [str(x) for x in (PERIOD, REPEATS, shares, tensors, clipnorm)]
    subprocess.run(
        [sys.executable, "-c", STEP, *numbers, str(tmp_path)],
        env={"OMP_THREAD_LIMIT": "1"},  # the shares come one after the other, in order
        check=True,
        timeout=240,
    )
    found = np.load(tmp_path / "result.npy")
    a = np.zeros_like(p)
    sample = slice(0, PERIOD, 1021)
    p, g, a = p[sample].copy(), g[sample], a[sample]
    for _ in range(REPEATS):
        reference.update(p, g, a, lr=0.01, rho=0.9, epsilon=1e-8)
    assert_same_bits(found[0][sample], p)
    assert_same_bits(found[1][sample], a)

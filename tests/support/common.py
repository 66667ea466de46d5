"""What the tests share: equality of bits, and arrays that lie awkwardly in memory."""

import re

import numpy as np


def bits(x):
    """The array's bits as unsigned integers, with all NaNs as one."""
    x = np.asarray(x)
    x = x.astype(x.dtype.newbyteorder("="))
    same = np.where(np.isnan(x), np.array(np.nan, x.dtype), x)
    return same.view(f"u{x.itemsize}") if x.ndim else same.reshape(1).view(f"u{x.itemsize}")


def assert_same_bits(found, expected, what=""):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, what
    assert found.dtype.newbyteorder("=") == expected.dtype.newbyteorder("="), what
    different = np.flatnonzero(bits(found).ravel() != bits(expected).ravel())
    assert different.size == 0, (
        f"{what}: {different.size} of {found.size} elements differ, first at {different[0]}: "
        f"{float(found.ravel()[different[0]]).hex()} instead of "
        f"{float(expected.ravel()[different[0]]).hex()}"
    )


def place(x, axes=None, steps=1, margins=0, offset=0, swapped=False):
    """The values of `x` in a chosen layout: the array, and all bytes around and in it.

    `axes` are the axes from the slowest to the fastest in memory, `steps` the strides in elements
    (negative ones run backwards) and `margins` the unused elements at both ends of each axis; the
    elements begin `offset` bytes behind a multiple of 16. Bytes that are not the array's are a
    pattern, so two buffers that were made in the same way show any stray write.
    """
    x = np.asarray(x)
    axes = list(range(x.ndim)) if axes is None else list(axes)
    steps, margins = np.broadcast_to(steps, x.ndim), np.broadcast_to(margins, x.ndim)
    extents = [
        (max(n - 1, 0) * abs(s) + (n > 0) + 2 * m)
        for n, s, m in zip(x.shape, steps, margins, strict=True)
    ]
    dtype = x.dtype.newbyteorder() if swapped else x.dtype
    count = int(np.prod([extents[axis] for axis in axes]))
    buffer = np.resize(np.arange(1, 252, dtype=np.uint8), offset + count * x.itemsize + 16)
    base = np.ndarray([extents[axis] for axis in axes], dtype, buffer, offset)
    base = base.transpose(np.argsort(axes)) if x.ndim else base
    index = []
    for n, s, m in zip(x.shape, steps.tolist(), margins.tolist(), strict=True):
        forward = slice(m, m + (n - 1) * abs(s) + 1 if n else m, abs(s))
        index.append((forward, slice(None, None, 1 if s > 0 else -1)))
    array = base[(..., *[forward for forward, _ in index])]
    array = array[(..., *[turn for _, turn in index])]
    array[...] = x
    return array, buffer


def layouts(ndim):
    """Awkward layouts of arrays with so many dimensions, by name: arguments for `place`."""
    backwards = list(range(ndim))[::-1]
    rolled = list(range(1, ndim)) + [0] * (ndim > 0)
    return {
        "plain": {},
        "fortran": {"axes": backwards},
        "permuted": {"axes": rolled},
        "strided": {"steps": 2, "margins": 1},
        "columns": {"margins": [0] * (ndim - 1) + [2] * (ndim > 0)},
        "backwards": {"steps": -1, "margins": 1},
        "unaligned": {"offset": 1},
        "swapped": {"swapped": True},
        "everything": {
            "axes": backwards,
            "steps": -3,
            "margins": 2,
            "offset": 7,
            "swapped": True,
        },
    }


LAYOUTS = tuple(layouts(2))


def label(value):
    """The value as the id of a test, the same in each process: without addresses."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))

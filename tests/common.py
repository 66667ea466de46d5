"""What the tests share: equality of bits, and random models."""

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
        f"{found.ravel()[different[0]].hex()} instead of {expected.ravel()[different[0]].hex()}"
    )

"""src/roots.h gives the correctly rounded square root, whatever computes its estimates.

docs/numerics.md derives how far a float64 root is from exact before its last rounding: only where a
midpoint of two float64 lies nearer can it be wrong. Here are all such numbers, and those within ten
times that; of float32 every significand, and `verify/roots.py` takes every pattern.
"""

import math

import numpy as np
import pytest
from roots import Roots, hardest

from rmsprop_c import RMSprop, _core

# The bound of docs/numerics.md is 2**-101.5, of the instance whose estimates are the worst.
CLOSENESS = 2.0**-98
FLOAT64 = [
    "float64 scalar",
    "float64 scalar of 12 bits",
    "float64 avx2",
    "float64 avx512",
]
FLOAT32 = ["float32 scalar", "float32 avx512"]
EXPONENTS = np.arange(-538, 512)  # of 4: from subnormal numbers to the largest


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return Roots(tmp_path_factory.mktemp("roots"))


def needs(roots, name):
    if name not in roots.instances:
        pytest.skip("this processor does not run it")


def everywhere(significands, exponents=EXPONENTS):
    """Numbers in [1, 4) times powers of 4, one power after the other in whole groups."""
    significands = np.resize(significands, -(-len(significands) // 64) * 64)
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(significands, 2 * exponents[:, None]).ravel()


@pytest.mark.parametrize("precision", [8, 11, 13])
def test_the_hardest_numbers_are_all_of_them(precision):
    closeness = 2.0 ** (6 - 2 * precision)
    found = []
    for x in range(2 ** (precision - 1), 2**precision):
        for half in (0, 1):
            square = x << precision + 1 + half
            below = math.isqrt(square) - 1 | 1
            if any(abs(square - m * m) <= 2 * m * m * closeness for m in (below, below + 2)):
                found.append(x * 2.0 ** (half + 1 - precision))
    assert hardest(closeness, precision) == sorted(found)
    assert len(found) > 90


@pytest.mark.parametrize("name", FLOAT64)
def test_no_float64_near_a_midpoint_has_a_wrong_root(roots, name):
    needs(roots, name)
    assert len(hardest(CLOSENESS)) == 374
    assert roots.wrong(name, everywhere(hardest(CLOSENESS))) == 0


@pytest.mark.parametrize(
    ("name", "closeness", "precision", "numbers", "count"),
    [
        ("float32 scalar", 2.0**-45, 24, 14, 0),
        ("float64 scalar of 12 bits", CLOSENESS, 53, 374, 0),
        ("float64 scalar", CLOSENESS, 53, 374, 10_000),
    ],
)
def test_these_roots_are_right_from_any_estimate(roots, name, closeness, precision, numbers, count):
    """Other processors have other ones: of float32 and AVX2 these are float32 numbers, all here."""
    x = hardest(closeness, precision)
    assert len(x) == numbers
    assert roots.wrong_from_estimates(name, x, count) == 0


@pytest.mark.parametrize("name", FLOAT64)
def test_no_float64_beside_a_square_or_a_power_of_two_has_a_wrong_root(roots, name):
    needs(roots, name)
    x = np.random.default_rng(0).integers(2**26, 2**27, 500).astype(float) ** 2
    x = np.concatenate([x / 2.0**52, [1.0, 2.0]])
    x = np.concatenate([np.nextafter(x, 0), x, np.nextafter(x, np.inf)])
    assert roots.wrong(name, everywhere(x)) == 0


@pytest.mark.parametrize("name", FLOAT64)
def test_no_random_float64_has_a_wrong_root(roots, name):
    needs(roots, name)
    assert roots.wrong_random(name, 1, 10**6) == 0


@pytest.mark.parametrize("name", FLOAT32)
def test_no_significand_of_float32_has_a_wrong_root(roots, name):
    needs(roots, name)
    one = np.float32(1).view(np.uint32).item()
    assert roots.wrong_patterns(name, one, 2**24) == 0  # [1, 4)


@pytest.mark.parametrize("name", FLOAT32)
def test_no_exponent_of_float32_has_a_wrong_root(roots, name):
    needs(roots, name)
    rng = np.random.default_rng(0)
    x = np.ldexp(rng.uniform(1, 2, (278, 4096)), np.arange(-150, 128)[:, None])
    assert roots.wrong(name, x) == 0
    patterns = rng.integers(0, 2**32, 10**6, np.uint64).astype(np.uint32)
    assert roots.wrong(name, patterns.view(np.float32)) == 0


@pytest.mark.parametrize("name", FLOAT32 + FLOAT64)
def test_whatever_lies_in_a_group_its_other_roots_are_right(roots, name):
    needs(roots, name)
    dtype = np.dtype(name.split()[0])
    info = np.finfo(dtype)
    strange = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, -1, info.max, info.tiny, info.smallest_subnormal], dtype
    )
    limits = np.ldexp(np.ones(8, dtype), [-900, -901, -100, -101, -78, -79, 100, 101])
    strange = np.concatenate([strange, limits, np.nextafter(limits, dtype.type(0))])
    group = 256 // dtype.itemsize
    x = np.random.default_rng(0).uniform(0.5, 2, (strange.size, group, group)).astype(dtype)
    for place in range(group):
        x[:, place, place] = strange
    assert roots.wrong(name, x) == 0


@pytest.mark.parametrize("name", [n for n in FLOAT32 + FLOAT64 if "scalar" in n])
def test_zeros_and_what_is_within_the_range_are_not_left_to_the_divider(roots, name):
    dtype = np.dtype(name.split()[0])
    x = np.random.default_rng(0).uniform(0.5, 2, 1024).astype(dtype)
    x[::7] = 0
    x[:2] = 2.0**-78, 2.0**100
    assert roots.wrong(name, x) == 0
    assert roots.left.value == 0
    x[5] = np.finfo(dtype).tiny
    assert roots.wrong(name, x) == 0
    assert roots.left.value > 0


BROKEN = {
    "a step less": [("roots.h", "step < ROOTS_STEPS", "step < ROOTS_STEPS - 1")],
    "h from the step before": [
        (
            "roots.h",
            "h = ROOTS_OP(fmadd)(h, r, h)",
            "h = step + 1 < ROOTS_STEPS ? ROOTS_OP(fmadd)(h, r, h) : h",
        )
    ],
    "a range too wide": [
        ("roots.c", "0x1p-900", "0x1p-1022"),
        ("roots.c", "0x1p-100 ", "0x1p-1022 "),
        ("roots.c", "0x1p-78f", "0x1p-126f"),
        ("roots_x86.h", "0x1p450", "0x1p511"),
        ("roots_x86.h", "0x1p39f", "0x1p63f"),
        ("roots_x86.h", "0x1p-100", "0x1p-140"),
    ],
    "a range too wide above": [
        ("roots.c", "0x1p100", "0x1p300"),
        ("roots_x86.h", "0x1p100", "0x1p130"),
    ],
}


@pytest.mark.parametrize("broken", BROKEN)
def test_these_tests_see_a_broken_root(broken, tmp_path):
    found = Roots(tmp_path, BROKEN[broken])
    for name in found.instances:
        if name.startswith("float32"):
            first = 2**23 if "range" in broken else 127 * 2**23
            wrong = found.wrong_patterns(name, first, 2**24)
        else:
            wrong = found.wrong(name, everywhere(hardest(CLOSENESS)))
        narrow = "12 bits" in name or "avx2" in name
        assert (wrong > 0) == (narrow or broken != "a range too wide above"), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_takes_the_right_root_of_any_accumulator(dtype, isa):
    """With rho = 1 accumulators stay, and with a gradient of x and a rate of 1 p loses x / root.

    That is another number for another root, which 1 / root need not be.
    """
    if dtype == "float32":
        x = everywhere(hardest(2.0**-45, 24), np.arange(-37, 30))
    else:
        x = everywhere(hardest(CLOSENESS), np.arange(-48, 50))
    x = x.astype(dtype)
    x[::1000] = 0
    x[300::3000] = np.finfo(dtype).tiny  # these leave their groups to the divider
    opt, p, g = RMSprop(lr=1.0, rho=1.0, epsilon=0.0), np.zeros_like(x), x.copy()
    g[::1000] = 1
    opt.build([p])
    opt.set_weights([x])
    opt.step([p], [g])
    with np.errstate(divide="ignore"):
        expected = 0 - g / np.sqrt(x)
    assert np.array_equal(p.view(np.uint8), expected.view(np.uint8))
    assert np.array_equal(opt.get_weights()[0].view(np.uint8), x.view(np.uint8))
    assert _core.chosen_isa() == isa

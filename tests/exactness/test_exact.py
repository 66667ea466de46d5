"""Every bit is that of reference.py: on each instruction set, thread count, size and value."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from common import assert_same_bits
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

import rmsprop_c
from rmsprop_c import RMSprop, __main__ as command, _core, reference, set_num_threads

SIZES = (0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 1003, 300_001)
THREADS = (1, 2, 3, 8)
OPTIONS = (
    {},
    {"lr": 0.01, "rho": 0.95, "epsilon": 1e-6, "decay": 0.05},
    {"clipvalue": 0.5},
    {"clipnorm": 1.0},
    {"clipnorm": 3.0, "clipvalue": 0.1, "decay": 1e-3},
    {"rho": 0.0, "epsilon": 0.0},
    {"rho": 1.0, "lr": 0.0},
)
SPECIAL = (0.0, -0.0, 1e-45, -1e-40, 5e-324, 1e-310, 1e30, -1e300, np.inf, -np.inf, np.nan)


def numbers(rng, shape, dtype, special):
    """Normal values over many scales; with special ones among them on request."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-12, 6, shape)
    x = np.asarray(x)
    if special:
        x = np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), x)
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype)


class Pair:
    """A model that both the package and the reference train; their bits are compared."""

    def __init__(self, params, **options):
        self.params = params
        self.opt = RMSprop(**options)
        self.options = {**self.opt.get_config(), "decay": self.opt.decay}
        self.expected = [p.copy(order="K") for p in params]
        self.accumulators = [np.zeros_like(p) for p in params]

    def step(self, grads):
        iterations = self.opt.iterations
        self.opt.step(self.params, grads)
        reference.step(self.expected, grads, self.accumulators, iterations, **self.options)

    def check(self, what=""):
        for i, (found, expected) in enumerate(zip(self.params, self.expected, strict=True)):
            assert_same_bits(found, expected, f"params[{i}] {what}")
        for i, (found, expected) in enumerate(
            zip(self.opt.weights, self.accumulators, strict=True)
        ):
            assert_same_bits(found, expected, f"accumulators[{i}] {what}")


@pytest.mark.usefixtures("team_at_any_size")
@pytest.mark.parametrize("special", [False, True], ids=["normal", "special"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", THREADS)
def test_each_size_has_the_reference_bits(isa, threads, dtype, special):
    set_num_threads(threads)
    rng = np.random.default_rng([threads, special])
    for size in SIZES:
        options = {"clipvalue": 1e20} if special else OPTIONS[size % len(OPTIONS)]
        pair = Pair([numbers(rng, size, dtype, special)], **options)
        for _ in range(3):
            pair.step([numbers(rng, size, dtype, special)])
        pair.check(f"size {size}")


@pytest.mark.usefixtures("team_at_any_size")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("threads", THREADS)
def test_a_model_of_many_tensors_has_the_reference_bits(isa, threads, options):
    set_num_threads(threads)
    rng = np.random.default_rng(threads)
    shapes = [(784, 32), (32,), (), (0, 3), (32, 10), (10,), (5001,), (1,), (3, 5, 7, 2), (20_000,)]
    dtypes = ["float32", "float64", "float32", "float32", "float64"] * 2
    pair = Pair([numbers(rng, s, d, False) for s, d in zip(shapes, dtypes, strict=True)], **options)
    for t in range(4):
        grads = [numbers(rng, p.shape, p.dtype, False) for p in pair.params]
        if t == 2:
            grads[1] = grads[6] = None
        pair.step(grads)
    pair.check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_hold_over_2000_steps_with_decay(isa, dtype):
    rng = np.random.default_rng(0)
    pair = Pair([numbers(rng, (37, 3), dtype, False)], lr=0.01, decay=1e-2, clipvalue=1e3)
    for _ in range(2000):
        pair.step([numbers(rng, (37, 3), dtype, False)])
    pair.check()
    assert pair.opt.iterations == 2000


@pytest.mark.parametrize("start", [2**24, 2**53, 2**53 + 1, 2**60])
def test_decay_counts_beyond_what_float32_holds(start):
    pair = Pair([np.ones(5)], lr=1.0, decay=1e-6)
    pair.opt.iterations = start
    for _ in range(2):
        pair.step([np.full(5, 0.5)])
    pair.check()
    assert pair.opt.iterations == start + 2


def float_arrays(dtype):
    width = np.dtype(dtype).itemsize * 8
    shapes = hnp.array_shapes(min_dims=1, max_dims=1, max_side=70)
    patterns = st.integers(0, 2**width - 1)
    return hnp.arrays(f"u{width // 8}", shapes, elements=patterns).map(lambda x: x.view(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bit_pattern_gives_the_reference_bits(dtype, data):
    p = data.draw(float_arrays(dtype))
    width = np.dtype(dtype).itemsize
    patterns = st.integers(0, 2 ** (8 * width) - 1)
    g, a = (
        data.draw(hnp.arrays(f"u{width}", p.shape, elements=patterns)).view(dtype) for _ in range(2)
    )
    positive = st.floats(1e-44, 1e30) | st.just(0.0)  # a limit may not round to 0 in float32
    pair = Pair(
        [p],
        lr=data.draw(positive),
        rho=data.draw(st.floats(0, 1, width=32)),
        epsilon=data.draw(positive),
        clipnorm=data.draw(st.none() | positive),
        clipvalue=data.draw(st.none() | positive),
    )
    pair.opt.build([p])
    pair.opt.set_weights([a])
    pair.accumulators[0][...] = a
    chosen = _core.chosen_isa()
    try:
        for isa, supported in _core.compiled_isas().items():
            if supported:
                _core.use_isa(isa)
                pair.step([g])
                pair.check(isa)
    finally:
        _core.use_isa(chosen)


@pytest.mark.usefixtures("team_at_any_size")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_bits_do_not_depend_on_where_arrays_lie(offset, threads):
    set_num_threads(threads)
    rng = np.random.default_rng(offset)
    n = 40_001

    def at(place):
        buffer = np.empty(n * 4 + 128, np.uint8)
        start = (place - buffer.ctypes.data) % 64
        return buffer[start : start + n * 4].view(np.float32)

    p, g = at(offset), at((3 * offset + 4) % 64)
    p[:] = numbers(rng, n, "float32", False)
    g[:] = numbers(rng, n, "float32", False)
    pair = Pair([p], clipnorm=2.0)
    pair.step([g])
    pair.step([g])
    pair.check()


@pytest.mark.usefixtures("team_at_any_size")
@pytest.mark.parametrize("threads", THREADS)
def test_bits_do_not_depend_on_how_parameters_are_split(threads):
    set_num_threads(threads)
    rng = np.random.default_rng(5)
    p, g = (numbers(rng, 50_000, "float32", False) for _ in range(2))
    whole = p.copy()
    RMSprop(clipvalue=0.1).step([whole], [g])
    for cuts in ([1], [7, 8, 30_000], list(range(500, 50_000, 500))):
        parts = [x.copy() for x in np.split(p, cuts)]
        RMSprop(clipvalue=0.1).step(parts, np.split(g, cuts))
        assert_same_bits(np.concatenate(parts), whole)


class Control(NamedTuple):
    """The processor's control word in fenv_t of Linux's C libraries, and bits of it."""

    word: int
    mask: int  # all but the sticky flags
    down: int
    up: int
    flush: int  # subnormal numbers to zero, as results and as operands


CONTROLS = {  # MXCSR; FPCR
    "x86_64": Control(word=7, mask=0xFFC0, down=0x2000, up=0x4000, flush=0x8040),
    "aarch64": Control(word=0, mask=0xFFFFFFFF, down=1 << 23, up=1 << 22, flush=1 << 24),
}
CONTROL = CONTROLS.get(platform.machine())
MODES = {  # what other libraries may have left in the calling thread
    "down": ["down"],
    "up": ["up"],
    "to zero": ["down", "up"],
    "flush": ["flush"],
    "flush and up": ["flush", "up"],
}
sets_the_environment = pytest.mark.skipif(
    CONTROL is None or not sys.platform.startswith("linux"),
    reason="where the control word lies is known for Linux on x86-64 and aarch64",
)


class Environment:
    """Sets bits of the control word in this thread."""

    def __init__(self, mode):
        self.bits = sum(getattr(CONTROL, name) for name in MODES[mode])
        self.libm = ctypes.CDLL(None)

    def words(self):
        found = (ctypes.c_uint32 * 8)()
        assert self.libm.fegetenv(found) == 0
        return found

    def __enter__(self):
        self.saved, changed = self.words(), self.words()
        changed[CONTROL.word] |= self.bits
        assert self.libm.fesetenv(changed) == 0

    def __exit__(self, *exception):
        self.inside = self.words()
        self.libm.fesetenv(self.saved)

    def stayed(self):
        """Were its bits, and no others, still set at its end?"""
        set_to = self.saved[CONTROL.word] | self.bits
        return self.inside[CONTROL.word] & CONTROL.mask == set_to & CONTROL.mask


@sets_the_environment
@pytest.mark.usefixtures("team_at_any_size")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_rounding_and_flush_to_zero_change_no_bit(isa, mode, threads):
    set_num_threads(threads)
    rng = np.random.default_rng(1)
    params = [reference.spread_values(9001, 1, -3, 3, "float32"), np.ones(17)]
    pair = Pair(params, lr=0.01, decay=0.1, clipnorm=1e4)
    for _ in range(3):
        grads = [
            reference.spread_values(9001, int(rng.integers(10**9)), -75, 5, "float32"),
            rng.standard_normal(17) * 1e-160,
        ]
        environment = Environment(mode)
        with environment:
            pair.opt.step(pair.params, grads)
        assert environment.stayed(), "it was not restored"
        reference.step(
            pair.expected, grads, pair.accumulators, pair.opt.iterations - 1, **pair.options
        )
    pair.check()


@sets_the_environment
@pytest.mark.parametrize("mode", MODES)
def test_the_environment_of_that_test_changes_numpys_bits(mode):
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    tiny, factor = x * np.float32(1e-20), np.float32(1e20)
    plain = np.stack([x / np.float32(3), tiny * tiny * factor])
    with Environment(mode):
        changed = np.stack([x / np.float32(3), tiny * tiny * factor])
    differ = (plain != changed).any(axis=1)
    assert differ[1] if mode == "flush" else differ[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stored_checksums_are_those_of_the_reference_in_a_process_of_its_own(dtype):
    script = Path(reference.__file__)
    out = subprocess.run(
        [sys.executable, "-I", script], capture_output=True, text=True, check=True
    ).stdout
    assert dict(line.split() for line in out.splitlines()) == command.CHECKSUMS


def test_selftest_passes_on_this_machine(capsys):
    assert command.selftest() == 0
    rows = capsys.readouterr().out.splitlines()
    isas = len(_core.compiled_isas())
    supported = sum(_core.compiled_isas().values())
    assert len(rows) == 2 * (supported * len(command.THREADS) + isas - supported) + 1


def test_selftest_fails_on_a_wrong_checksum(capsys, monkeypatch):
    monkeypatch.setitem(command.CHECKSUMS, "float32", "0" * 16)
    assert command.selftest() == 1
    assert "WRONG" in capsys.readouterr().out


def test_info_names_what_was_built_and_chosen(capsys):
    command.info()
    out = capsys.readouterr().out
    for expected in (rmsprop_c.__version__, "OpenMP", "threads", *_core.compiled_isas()):
        assert expected in out


class Scalars(ctypes.Structure):
    """rmsprop_scalars of rmsprop.h."""

    names = "learning_rate rho epsilon scale clipvalue rho_power momentum lr_outside weight_decay"
    _fields_ = [(name, ctypes.c_double) for name in (*names.split(), "ema_momentum")]


@pytest.mark.parametrize(("dtype", "name"), [("float32", "update_f32"), ("float64", "update_f64")])
def test_the_kernels_for_other_cython_code_have_the_bits_of_a_step(dtype, name, isa):
    capsule = _core.__pyx_capi__[name]
    get_name, get = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    update = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_size_t, ctypes.c_void_p)(
        get(capsule, get_name(capsule))
    )
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(1000).astype(dtype) for _ in range(2))
    a, expected, opt = np.zeros_like(p), p.copy(), RMSprop(lr=0.01)
    scalars = Scalars(learning_rate=0.01, rho=0.9, epsilon=1e-8, scale=1, clipvalue=np.inf)
    for _ in range(3):
        update(*(x.ctypes.data for x in (p, g, a)), len(p), ctypes.addressof(scalars))
        opt.step([expected], [g])
    assert_same_bits(p, expected)
    assert_same_bits(a, opt.weights[0])

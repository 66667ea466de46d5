"""A step on tensors and state that another library owns, which reach the core through DLPack."""

import ctypes

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, _core

DTYPES = ("float32", "float64")
# How a tensor of shape (2, 3, 4) lies in memory.
ORDERS = {
    "C": lambda x: x.copy(),
    "Fortran": lambda x: np.asfortranarray(x),
    "channels last": lambda x: np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1),
    "an axis of length 1": lambda x: x.copy()[:, None],
    "gaps": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
}


def packed(x):
    return None if x is None else x.__dlpack__()


def arrays_of(*columns):
    return _core.dlpack_arrays(*([packed(x) for x in column] for column in columns))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_on_lent_state_has_the_bits_of_a_step_on_our_own(order, dtype):
    rng = np.random.default_rng(0)
    start = ORDERS[order](rng.standard_normal((2, 3, 4)).astype(dtype))
    opt, twin = RMSprop(momentum=0.9, centered=True), RMSprop(momentum=0.9, centered=True)
    own, w = start.copy(), start
    dense = order != "gaps"
    state = [np.zeros_like(w) if dense else np.zeros(w.shape, dtype) for _ in range(3)]
    for _ in range(3):
        g = rng.standard_normal(w.shape).astype(dtype)
        lent, whole = arrays_of([w], [g], *([x] for x in state))
        assert whole
        params, grads, *found = lent
        slots = dict(zip(("accumulator", "momentum", "average_gradient"), found, strict=True))
        assert _core.step_on(opt, params, grads, slots, [], (0,)) == []
        twin.step([own], [g])
        assert_same_bits(w, own)
    for x, y in zip(state, twin.get_weights(), strict=True):
        assert_same_bits(x, y)
    assert (opt.iterations, opt.weights) == (3, [])


@pytest.mark.parametrize("x", [np.ones(3, np.int64), np.ones(3, "c16"), None], ids=str)
def test_what_no_kernel_reads_is_told_by_a_none(x):
    good = np.ones(3)
    (params, grads), whole = arrays_of([good], [x])
    assert (len(params), grads, whole) == (1, [None], False)
    assert arrays_of([x], [good])[1] is False


def test_a_gradient_of_another_dtype_and_state_of_another_form_are_told_by_a_none():
    w = np.ones((2, 3))
    bad = [np.ones((3, 2)), np.ones((2, 3), order="F"), np.ones((2, 3), np.float32), np.ones(2)]
    for x in bad:
        (_, _, state), whole = arrays_of([w], [w.copy()], [x])
        assert (state, whole) == ([None], False)
    assert arrays_of([w], [np.ones((2, 3), np.float32)])[1] is False


def test_empty_tensors_and_numbers_are_read():
    given = [np.ones(()), np.ones((0, 2))]
    (params, grads), whole = arrays_of(given, [x.copy() for x in given])
    assert whole
    assert [x.shape for x in (*params, *grads)] == [(), (0, 2)] * 2


@pytest.mark.parametrize(
    ("counter", "counted"),
    [
        (np.zeros((), np.float32), True),
        (np.zeros((1, 1), np.float64), True),
        (np.zeros(1, np.int64), True),
        (np.zeros((), np.int32), False),
        (np.zeros(2), False),
        (None, False),
    ],
    ids=str,
)
def test_counters_of_one_number_count_up_and_others_are_named(counter, counted):
    w, state = np.ones(2), {"accumulator": [np.zeros(2)]}
    counter = None if counter is None else counter.copy()  # of this thread alone
    left = _core.step_on(RMSprop(), [w], [np.ones(2)], state, [packed(counter)], (0,))
    assert left == ([] if counted else [0])
    if counter is not None:
        assert (counter == counted).all()


def test_lent_state_that_does_not_fit_raises_by_name_and_nothing_changes():
    w, g = np.ones((2, 3)), np.ones((2, 3))
    good = np.zeros((2, 3))
    read_only = np.zeros((2, 3))
    read_only.flags.writeable = False
    cases = {
        "the momentum of params.7. has shape .3, 2.": np.zeros((3, 2)),
        "the momentum of params.7. has .* dtype float32": np.zeros((2, 3), np.float32),
        "strides .24, 8. and dtype float64; it must be like .* writeable": read_only,
        "the momentum of params.7. shares memory with the accumulator of params.7.": good,
    }
    opt = RMSprop(momentum=0.9)
    for message, x in cases.items():
        with pytest.raises(ValueError, match=message):
            _core.step_on(opt, [w], [g], {"accumulator": [good], "momentum": [x]}, [], (7,))
    with pytest.raises(ValueError, match=r"^slots has accumulator, but the options need more"):
        _core.step_on(opt, [w], [g], {"accumulator": [good]}, [], (7,))
    with pytest.raises(ValueError, match=r"^grads\[7\] shares memory with the accumulator of"):
        _core.step_on(RMSprop(), [w], [good], {"accumulator": [good]}, [], (7,))
    with pytest.raises(TypeError):
        _core.step_on(None, [w], [g], {"accumulator": [good]}, [], (7,))
    assert (w == 1).all()
    assert not good.any()


def test_spans_are_the_memory_that_arrays_can_touch():
    x = np.zeros((4, 6))
    begin = x.ctypes.data
    parts = [x, x[1:3, ::2], x[::-1], x[:0], x.T]
    expected = [(0, 192), (48, 48 + 48 + 40), (0, 192), None, (0, 192)]
    for found, span in zip(_core.spans(parts), expected, strict=True):
        assert tuple(found) == ((0, 0) if span is None else (begin + span[0], begin + span[1]))


class Tensor(ctypes.Structure):
    """The first fields of DLPack's tensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def capsule(x, **changes):
    """An array in DLPack's form as other libraries may have it, and what keeps it alive."""
    shape = (ctypes.c_int64 * x.ndim)(*x.shape)
    tensor = Tensor(x.ctypes.data, (1, 0), x.ndim, 2, 8 * x.itemsize, 1, shape, None, 0)
    for name, value in changes.items():
        setattr(tensor, name, value)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    return make(ctypes.addressof(tensor), b"dltensor", None), (tensor, shape, x)


def test_a_tensor_without_strides_is_in_cs_order():
    x = np.arange(6.0).reshape(2, 3)
    made, _kept = capsule(x)
    ((found,), (grad,)), whole = _core.dlpack_arrays([made], [made])
    assert whole
    assert_same_bits(found, x)
    assert grad.ctypes.data == x.ctypes.data


@pytest.mark.parametrize(
    "changes",
    [
        {"device": (2, 0)},
        {"lanes": 2},
        {"code": 1},
        {"bits": 16},
        {"ndim": 65},
        {"data": None},
    ],
    ids=str,
)
def test_a_tensor_that_is_not_in_this_memory_or_no_float_is_told_by_a_none(changes):
    good = np.ones((2, 3))
    made, _kept = capsule(good, **changes)
    assert _core.dlpack_arrays([made], [packed(good)])[0][0] == [None]
    if "ndim" not in changes:
        assert _core.dlpack_arrays([packed(good)], [made], [packed(good)])[0][1] == [None]
    counter, _also = capsule(np.zeros(1), **changes | ({"ndim": 1} if "ndim" in changes else {}))
    if "data" not in changes and "ndim" not in changes:
        state = {"accumulator": [np.zeros(2)]}
        assert _core.step_on(RMSprop(), [np.ones(2)], [np.ones(2)], state, [counter], (0,)) == [0]


@pytest.mark.parametrize("device", [3, 11])
def test_memory_of_the_host_that_devices_know_is_read(device):
    made, _kept = capsule(np.ones(3), device=(device, 0))
    assert _core.dlpack_arrays([made], [made])[1]


def test_a_tensor_of_no_elements_needs_no_memory():
    made, _kept = capsule(np.ones((0, 2)), data=None)
    ((found,), _), whole = _core.dlpack_arrays([made], [made])
    assert whole
    assert found.shape == (0, 2)


def test_state_of_a_parameter_that_is_none_or_of_other_dimensions_is_none():
    ints, gaps = np.ones(3, np.int64), np.ones((2, 6))[:, ::2]
    (_, _, state), _ = arrays_of([ints], [None], [np.ones(3)])
    assert state == [None]
    (_, _, state), whole = arrays_of([gaps], [gaps], [np.ones(2)])
    assert (state, whole) == ([None], False)


def test_lent_state_inside_a_strided_parameter_raises():
    base = np.zeros(8)
    state = {"accumulator": [base[:4]]}
    with pytest.raises(ValueError, match=r"shares memory with"):
        _core.step_on(RMSprop(), [base[::2]], [np.ones(4)], state, [], (0,))
    assert not base.any()

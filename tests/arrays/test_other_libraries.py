"""Parameters that can't be used, and gradients of other libraries."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, reference


@pytest.mark.parametrize("call", ["get_updates", "get_gradients"])
@pytest.mark.parametrize(
    ("params", "name"), [([[np.ones(2), np.ones(3)]], "0"), ({"a": {"b": np.ones(2)}}, "'a'")]
)
def test_nested_parameters_raise_by_name(call, params, name):
    def loss(params):
        raise AssertionError("the loss was called")

    arguments = {"params": params, "loss": loss}
    with pytest.raises(TypeError, match=rf"^params\[{name}\] is of type (list|dict), not a NumPy"):
        getattr(RMSprop(), call)(**arguments)


WINDOW = np.lib.stride_tricks.sliding_window_view


AS_STRIDED = np.lib.stride_tricks.as_strided


OVERLAPPING = {
    "a sliding window": lambda: WINDOW(np.ones(5), 2, writeable=True),
    "a window of two dimensions": lambda: WINDOW(np.ones((4, 4)), (2, 2), writeable=True),
    "strides that meet": lambda: AS_STRIDED(np.ones(20), (4, 3), (16, 24)),
    "half an element apart": lambda: AS_STRIDED(np.ones(20), (4,), (4,)),
    "backwards": lambda: WINDOW(np.ones(5), 2, writeable=True)[::-1, ::-1],
}


APART = {
    "columns": lambda: np.ones((4, 6))[:, ::2],
    "strides that interleave": lambda: AS_STRIDED(np.ones(40), (2, 3), (24, 16)),
    "transposed and reversed": lambda: np.ones((3, 4, 5)).transpose(2, 0, 1)[::-1, :, ::-2],
    "empty": lambda: AS_STRIDED(np.ones(4), (0, 3), (0, 0)),
    "of one element": lambda: AS_STRIDED(np.ones(4), (1, 1), (0, 0)),
}


@pytest.mark.parametrize("what", OVERLAPPING)
def test_a_parameter_that_overlaps_itself_raises(what):
    w = OVERLAPPING[what]()
    before = w.copy()
    with pytest.raises(ValueError, match=r"^params\[1\] overlaps itself"):
        RMSprop().step([np.ones(1), w], [np.ones(1), np.ones(w.shape)])
    assert_same_bits(w, before)
    with pytest.raises(ValueError, match=r"^grads\[0\] is read-only or overlaps itself"):
        RMSprop(zero_grad=True).step([np.ones(w.shape)], [w])
    RMSprop().step([np.ones(w.shape)], [w])  # it is only read there


@pytest.mark.parametrize("what", APART)
def test_a_parameter_whose_elements_are_apart_is_updated(what):
    w = APART[what]()
    expected, g = w.copy(), np.random.default_rng(0).standard_normal(w.shape)
    RMSprop().step([w], [g])
    RMSprop().step([expected], [g])
    assert_same_bits(w, expected)


class ByArray:
    """A foreign array that NumPy reads through `__array__`, as those of JAX and pandas."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


class ByInterface:
    """Through the array interface."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


ByInterface.__array_interface__ = None  # the class has to have it


class ByDLPack:
    """Through DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("foreign", [ByArray, ByInterface, ByDLPack])
@pytest.mark.parametrize("form", ["list", "dict", "bare"])
@pytest.mark.parametrize("size", [3, 40_000])
def test_gradients_of_other_libraries_are_read(foreign, form, size):
    w, g = np.ones(size, np.float32), np.linspace(-1, 1, size, dtype=np.float32)
    expected = w.copy()
    opt, twin = RMSprop(clipnorm=0.5), RMSprop(clipnorm=0.5)
    forms = {"list": lambda x: [x], "dict": lambda x: {"W": x}, "bare": lambda x: x}
    params, grads = forms[form](w), forms[form](foreign(g))
    for _ in range(2):
        opt.step(params, grads)
        twin.step([expected], [g])
    opt.bind(params, grads)()
    twin.step([expected], [g])
    assert_same_bits(w, expected)
    clipped = opt.get_gradients(lambda p: (0.0, grads), params)
    (like,) = reference.clip([g], 0.5, None, None)
    found = clipped if form == "bare" else clipped["W" if form == "dict" else 0]
    assert_same_bits(found, like)


class Unreadable:
    """What some libraries' arrays do on another device."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("it is on a GPU")


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (
            Unreadable(),
            TypeError,
            r"^grads\[1\], of type Unreadable, can't be read by NumPy: it is",
        ),
        (ByArray(np.ones(2)), TypeError, r"^grads\[1\] has dtype float64, but params\[1\] has dty"),
        (ByArray(np.ones(3, np.float32)), ValueError, r"^grads\[1\] has shape \(3,\), but params"),
        ([1.0, 2.0], TypeError, r"^grads\[1\] is of type list, not a NumPy array"),
        (0.5, TypeError, r"^grads\[1\] is of type float, not a NumPy array"),
        (
            np.ones(2, int),
            TypeError,
            r"params\[1\] has dtype float32; convert it with astype\(np.f",
        ),
        (np.ones(2, np.float16), TypeError, r"has dtype float16, but .*astype\(np.float32\)$"),
        (np.array(["a", "b"]), TypeError, r"^grads\[1\] has dtype <U1, but .* dtype float32$"),
        (np.array([1, None]), TypeError, r"^grads\[1\] has dtype object, but .* dtype float32$"),
    ],
)
@pytest.mark.parametrize("call", ["step", "bind", "get_gradients"])
def test_a_gradient_that_can_not_be_used_is_named_and_the_model_is_not_blamed(
    gradient, error, message, call
):
    params = [np.ones(2, np.float32), np.ones(2, np.float32)]
    grads = [np.ones(2, np.float32), gradient]
    opt = RMSprop(clipvalue=1)
    calls = {
        "step": lambda: opt.step(params, grads),
        "bind": lambda: opt.bind(params, grads),
        "get_gradients": lambda: opt.get_gradients(lambda p: (0.0, grads), params),
    }
    with pytest.raises(error, match=message) as raised:
        calls[call]()
    assert "model" not in str(raised.value)
    assert (np.array(params) == 1).all()


def test_zero_grad_clears_no_copy_of_a_foreign_gradient():
    with pytest.raises(
        TypeError, match=r"^grads\[0\] is of type ByArray, which zero_grad can't cl"
    ):
        RMSprop(zero_grad=True).step([np.ones(2)], [ByArray(np.ones(2))])


@pytest.mark.parametrize("number", [0.5, np.float64(0.5), 1])
@pytest.mark.parametrize("form", [lambda x: [x], lambda x: {"b": x}, lambda x: x])
def test_a_number_as_parameter_is_told_what_to_be(number, form):
    with pytest.raises(TypeError, match=r"^params.* a number that can't be .* np.zeros\(\(\)\)$"):
        RMSprop().step(form(number), form(np.array(1.0)))


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 2 has them")
def test_text_of_numpy_2_is_named_too():
    text = np.array(["a", "b"], np.dtypes.StringDType())
    with pytest.raises(TypeError, match=r"^params\[0\] has dtype StringDType\(\)"):
        RMSprop().step([text], [np.ones(2)])
    with pytest.raises(TypeError, match=r"^grads\[0\] has dtype StringDType\(\)"):
        RMSprop().step([np.ones(2)], [text])


def test_a_dict_without_a_key_lists_those_it_has():
    w = {"W": np.ones(2), "b": np.ones(1)}
    with pytest.raises(ValueError, match=r"^grads has no key 'b', only \['W', 'c'\]; pass None"):
        RMSprop().step(w, {"W": np.ones(2), "c": np.ones(1)})


def test_another_model_of_the_same_positions_is_told_what_to_do():
    opt = RMSprop()
    opt.step([np.ones(3)], [np.ones(3)])
    with pytest.raises(ValueError, match=r"all parameters of a model in one call.* another optimi"):
        opt.step([np.ones(4)], [np.ones(4)])

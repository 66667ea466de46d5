"""What arrays and models of arrays a step takes, and the errors for those that it does not.

The binding calls these where an array is not one that a kernel reads as it lies. No state, no
import of the package: `_core` imports this.
"""

from __future__ import annotations  # NDArray's module takes a millisecond of the import

import numbers
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# How arrays of other libraries say that NumPy can read them.
_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__", "__dlpack__")


def label(name: str, keys: tuple[Any, ...] | None, position: int, bare: bool) -> str:
    """How errors call an array: params[2], params['W1'] or params."""
    if bare:
        return name
    return f"{name}[{position if keys is None else keys[position]!r}]"


def is_masked(x: Any) -> bool:
    """Whether it is a masked array.

    NumPy loads numpy.ma when it is first needed. Where it is not loaded there are none, and an
    import in a step could wait for the import lock of a thread that a fork has left behind.
    """
    if type(x) is np.ndarray:
        return False
    return isinstance(x, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


def _advice(dtype: Any, text: str) -> str:
    """What to do about a dtype; nothing helps where there are no numbers."""
    return text if dtype.kind in "biufc" else ""


def parameter(x: Any, name: str) -> NDArray[Any]:
    """A parameter as a plain ndarray; raises for what has no real float32 or float64 elements."""
    if isinstance(x, (numbers.Number, np.generic)):
        raise TypeError(
            f"{name} is of type {type(x).__name__}, a number that can't be updated in place; use a "
            "0-d array, such as np.zeros(())"
        )
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} is of type {type(x).__name__}, not a NumPy array")
    if is_masked(x):
        raise TypeError(
            f"{name} is a masked array, and a step would update masked elements too; pass its .data"
        )
    array: NDArray[Any] = np.asarray(x)
    if array.dtype.char not in "fd":
        raise TypeError(
            f"{name} has dtype {array.dtype}, but only float32 and float64 arrays can be updated "
            "in place" + _advice(array.dtype, "; convert the model with astype(np.float32)")
        )
    return array


def readable(x: Any, name: str) -> NDArray[Any]:
    """A gradient as an ndarray: NumPy's own, or one of a library whose arrays NumPy can read."""
    if isinstance(x, np.ndarray):
        if is_masked(x):
            raise TypeError(f"{name} is a masked array; pass its .filled(0)")
        return x
    if isinstance(x, np.generic):
        return np.asarray(x)
    ways = [way for way in _PROTOCOLS if hasattr(type(x), way)]
    if not ways:
        raise TypeError(
            f"{name} is of type {type(x).__name__}, not a NumPy array, nor anything that NumPy "
            "reads as one"
        )
    try:
        return np.from_dlpack(x) if ways == ["__dlpack__"] else np.asarray(x)
    except Exception as error:
        raise TypeError(
            f"{name}, of type {type(x).__name__}, can't be read by NumPy: {error}"
        ) from error


def all_readable(
    grads: Any, keys: tuple[Any, ...] | None, bare: bool, zero_grad: bool
) -> tuple[Any, ...]:
    """The gradients of a step as ndarrays or None; with `zero_grad` those that it can clear."""
    found = list(grads)
    for i, g in enumerate(found):
        if g is None or isinstance(g, np.ndarray):
            continue
        name = label("grads", keys, i, bare)
        if zero_grad and isinstance(g, np.generic):
            raise TypeError(
                f"{name} is a NumPy scalar, which zero_grad can't clear; pass a 0-d array"
            )
        if zero_grad:
            raise TypeError(
                f"{name} is of type {type(g).__name__}, which zero_grad can't clear; pass a NumPy "
                "array"
            )
        found[i] = readable(g, name)
    return tuple(found)


def gradient(g: Any, name: str, p: NDArray[Any], param_name: str) -> NDArray[Any]:
    """A gradient as a plain ndarray of its parameter's dtype and shape, or an error."""
    array: NDArray[Any] = np.asarray(readable(g, name))
    if array.dtype.char != p.dtype.char:
        raise TypeError(
            f"{name} has dtype {array.dtype}, but {param_name} has dtype {p.dtype}"
            + _advice(array.dtype, f"; convert it with astype(np.{p.dtype.newbyteorder('=')})")
        )
    if array.shape != p.shape:
        raise ValueError(f"{name} has shape {array.shape}, but {param_name} has shape {p.shape}")
    return array


def checked_model(params: Any, grads: Any) -> tuple[list[NDArray[Any]], list[NDArray[Any] | None]]:
    """Parameters and gradients as lists of ndarrays by position, checked as a step checks them."""
    bare = isinstance(params, np.ndarray)
    keys = tuple(params) if isinstance(params, dict) else None
    forms: tuple[type, ...] = (dict,) if keys is not None else (list, tuple)
    if not bare and not isinstance(grads, forms):
        raise other_form(params, grads)
    if bare:
        param_list, grad_list = [params], [grads]
    elif keys is not None:
        param_list, grad_list = list(params.values()), list(by_key(grads, keys, "grads"))
    else:
        param_list, grad_list = list(params), list(grads)
        if len(grad_list) != len(param_list):
            raise other_count("grads", len(grad_list), len(param_list))
    names = [
        (label("params", keys, i, bare), label("grads", keys, i, bare))
        for i in range(len(param_list))
    ]
    arrays = [parameter(p, name) for p, (name, _) in zip(param_list, names, strict=True)]
    return arrays, [
        None if g is None else gradient(g, grad_name, p, name)
        for g, p, (name, grad_name) in zip(grad_list, arrays, names, strict=True)
    ]


def by_key(container: dict[Any, Any], keys: tuple[Any, ...], which: str) -> tuple[Any, ...]:
    """The values of a dict by position, or an error that names a key."""
    for key in keys:
        if key not in container:
            what_to_do = (
                "pass None for a parameter without a gradient"
                if which == "grads"
                else "the optimizer was built for it"
            )
            raise ValueError(f"{which} has no key {key!r}, only {list(container)}; {what_to_do}")
    for key in container:
        if key not in keys:
            raise ValueError(
                f"{which} has the key {key!r}, but the optimizer was built for the keys "
                f"{list(keys)}"
            )
    return tuple([container[key] for key in keys])


def positions(
    container: Any, which: str, keys: tuple[Any, ...] | None, count: int
) -> tuple[Any, ...]:
    """The arrays of a list, tuple, dict or bare array, by position, for a model of so many."""
    if isinstance(container, dict):
        if keys is None:
            raise TypeError(f"{which} is a dict, but the optimizer was built for a list")
        return by_key(container, keys, which)
    if isinstance(container, np.ndarray):
        container = (container,)
    elif not isinstance(container, (list, tuple)):
        raise no_model(container, which)
    if keys is not None:
        raise TypeError(
            f"{which} is a {type(container).__name__}, but the optimizer was built for a dict"
        )
    found = tuple(container)  # a subclass may say another length than it has
    if len(found) != count:
        raise other_count(which, len(found), count)
    return found


def other_form(params: Any, grads: Any) -> TypeError:
    """The error for gradients that are not in the parameters' form."""
    return TypeError(
        f"params is of type {type(params).__name__}, but grads is of type {type(grads).__name__}"
    )


def other_count(which: str, found: int, count: int) -> ValueError:
    """The error for another number of arrays."""
    if which == "grads":
        return ValueError(
            f"grads has {found} entries, but params has {count}; pass None for a parameter without "
            "a gradient"
        )
    return ValueError(
        f"params has {found} entries, but the optimizer was built for {count}; use another "
        "optimizer, or reset() this one"
    )


def no_model(params: Any, which: str = "params") -> TypeError:
    """The error for what is neither a list, a tuple, a dict nor an array."""
    if isinstance(params, (numbers.Number, np.generic)) and which == "params":
        try:
            parameter(params, "params")
        except TypeError as error:
            return error
    return TypeError(
        f"{which} is of type {type(params).__name__}; pass a list or tuple of arrays, a dict of "
        "arrays, or one array"
    )


def like_position(p: NDArray[Any], name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """Raise if a parameter is not like the accumulator of its position."""
    if p.dtype.char != dtype.char:
        raise TypeError(
            f"{name} has dtype {p.dtype}, but the optimizer was built for {dtype}; use another "
            "optimizer, or reset() this one"
        )
    if p.shape != shape:
        raise ValueError(
            f"{name} has shape {p.shape}, but the optimizer was built for {shape}; pass all "
            "parameters of a model in one call, use another optimizer for another model, or "
            "reset() this one"
        )


def _address(x: NDArray[Any]) -> int:
    return int(x.__array_interface__["data"][0])


def slab(like: list[NDArray[Any]]) -> tuple[NDArray[np.uint8], list[NDArray[Any]]]:
    """One buffer of zeros, and arrays in it that are like others.

    Each lies at the same place in its cache line as the one that it is like, a large one in its
    page: where a load meets the address of an earlier store modulo 4096, the processor waits for
    that store.
    """
    position, offsets = 0, []
    for x in like:
        position += -position & (x.itemsize - 1)
        within = 63 if x.nbytes < 65536 else 4095
        position += (_address(x) - position) & -x.itemsize & within
        offsets.append(position)
        position += x.nbytes
    buffer = np.zeros(position + 4095, np.uint8)
    start = -_address(buffer) & 4095
    made = []
    for x, offset in zip(like, offsets, strict=True):
        fortran = x.flags.f_contiguous and not x.flags.c_contiguous
        part = buffer[start + offset : start + offset + x.nbytes]
        part = part.view(x.dtype.newbyteorder("="))
        made.append(part.reshape(x.shape, order="F" if fortran else "C"))
    return buffer, made


def overlaps_itself(x: NDArray[Any]) -> bool:
    """Whether two of its elements share bytes, as in broadcast arrays and sliding windows."""
    if x.size == 0:
        return False
    places = np.zeros(1, np.int64)
    for stride, length in zip(x.strides, x.shape, strict=True):
        places = np.add.outer(places, np.arange(length) * stride).ravel()
    places.sort()
    return bool((np.diff(places) < x.itemsize).any())


def share_memory(x: NDArray[Any], y: NDArray[Any]) -> bool:
    """Whether two arrays whose byte ranges meet share an element; True where that is too hard."""
    try:
        most: Any = 1_000_000  # NumPy's stubs know 0 and -1 only
        return np.shares_memory(np.asarray(x), np.asarray(y), max_work=most)
    except np.exceptions.TooHardError:
        return True


def meeting(
    spans: NDArray[np.intp], owners: NDArray[np.intp], written: NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """Pairs of ranges of two owners that meet, of which at least one is written.

    Parameters
    ----------
    spans : ndarray of intp, shape (n, 2)
        Where each range begins, and the first place behind it.
    owners : ndarray of intp, shape (n,)
        Whose they are.
    written : ndarray of bool, shape (n,)
        Which of them are written.

    Yields
    ------
    tuple of two int
        Positions of the two.
    """
    order = spans[:, 0].argsort()
    low, high = spans[order].T
    owner, writes = owners[order], written[order]
    # How far the ranges before reach: all of them, and those that are written.
    reach = np.maximum.accumulate(high)[:-1]
    written_reach = np.maximum.accumulate(np.where(writes, high, 0))[:-1]
    met = low[1:] < np.where(writes[1:], reach, written_reach)
    for place in np.flatnonzero(met) + 1:
        before = (high[:place] > low[place]) & (writes[:place] | writes[place])
        for other in np.flatnonzero(before & (owner[:place] != owner[place])):
            yield int(order[place]), int(order[other])


def check_real(x: NDArray[Any], name: str) -> None:
    """Raise for what is no array of real numbers, as weights and state must be."""
    if x.dtype.kind not in "fiu" and not (
        x.dtype.kind == "V" and x.dtype.names is None and np.can_cast(x.dtype, np.float64)
    ):  # the latter: bfloat16 and its like
        raise TypeError(f"{name} has dtype {x.dtype}; it must be real numbers")


def infinite_rate(lr: float, decayed: bool, scaled: bool) -> ValueError:
    """The error for a learning rate that is infinite in a dtype of the model."""
    product = f"lr={lr!r}" + " times weight_decay" * decayed + " times lr_scale" * scaled
    return ValueError(
        f"{product} is infinite in the dtype of a parameter; in float32 it can be 3.4e38 at most"
    )

"""A loss of either kind -> its value and gradients.

A loss returns ``(value, grads)``, or a scalar computed with ``autograd.numpy``, which the autograd
library differentiates.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import numbers
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import arrays, reference
from .hyperparameters import LIMITS, check_float32
from .model import Model, arrays_of, check, like


class _PairError(Exception):
    """A loss that was thought to return a scalar returns (value, grads)."""


# Which losses return a scalar, by their code: a lambda or a partial is a new object at each step.
_scalar_losses: dict[tuple[Any, ...], bool] = {}


def evaluate(loss: Callable[[Any], Any], params: Model) -> tuple[Any, Any]:
    """Value and unclipped gradients of a loss of either kind."""
    if not callable(loss):
        raise TypeError(
            f"loss is of type {type(loss).__name__}; pass a callable of the parameters that "
            "returns (value, grads), or a scalar computed with autograd.numpy"
        )
    check(params)
    known = _known_kind(loss)
    if not (_seems_scalar(loss) if known is None else known):
        result = loss(params)
        if _is_pair(result):
            _remember(loss, False)
            return result[0], result[1]
        scalar = isinstance(result, numbers.Real) or getattr(result, "shape", None) == ()
        if not scalar:
            raise TypeError(
                f"loss returned {type(result).__name__}; it must return (value, grads) or a scalar"
            )
    try:
        from autograd import value_and_grad
    except ImportError:
        raise ImportError(
            "loss returned a scalar, and differentiating it needs autograd: "
            "pip install 'rmsprop_c[autograd]', or return (value, grads)"
        ) from None

    def traced(params: Model) -> Any:
        result = loss(params)
        if _is_pair(result):
            raise _PairError
        return result

    try:
        value, grads = value_and_grad(traced)(params)
    except Exception as error:
        if known and not isinstance(error, _PairError):
            raise
        result = loss(params)  # it was taken for one of autograd's and may be none
        if not _is_pair(result):
            raise error from None
        _remember(loss, False)
        return result[0], result[1]
    _remember(loss, True)
    # A float64 scalar in the loss promotes gradients of float32 parameters.
    pairs = zip(arrays_of(params), arrays_of(grads), strict=True)
    return value, like(params, [np.asarray(g).astype(p.dtype, copy=False) for p, g in pairs])


def _is_pair(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 2


def _function(loss: Any) -> Any:
    """The function of Python that a callable runs, or None."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    if not isinstance(loss, (types.FunctionType, types.MethodType)):
        loss = getattr(type(loss), "__call__", None)  # noqa: B004  # the function itself
    loss = getattr(loss, "__func__", loss)
    return loss if isinstance(loss, types.FunctionType) else None


def _held(loss: Any, function: types.FunctionType) -> list[Any]:
    """What a callable's closure, its object and its partial arguments hold."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            found.append(cell.cell_contents)
    found += getattr(getattr(loss, "__self__", loss), "__dict__", {}).values()
    while isinstance(loss, functools.partial):
        found += [*loss.args, *loss.keywords.values()]
        loss = loss.func
    return found


def _codes(loss: Any) -> tuple[Any, ...]:
    """The code that a callable runs, and that of the functions it holds, as wrappers do."""
    function = _function(loss)
    if function is None:
        return ()
    inner = [_function(x) for x in _held(loss, function) if callable(x)]
    return (function.__code__, *(x.__code__ for x in inner if x is not None))


def _remember(loss: Any, scalar: bool) -> None:
    if len(_scalar_losses) > 1000:  # a program that makes code all the time
        _scalar_losses.clear()
    if codes := _codes(loss):
        _scalar_losses[codes] = scalar


def _known_kind(loss: Any) -> bool | None:
    """Whether this code returned a scalar before; None if it has not been seen."""
    return _scalar_losses.get(_codes(loss))


def _seems_scalar(loss: Any) -> bool:
    """Whether a loss that has not been seen is one for autograd, as far as its code tells.

    A loss may draw random numbers, so it should be called once, and under autograd only if autograd
    is to differentiate it. Where this is wrong it is called twice, the first time.
    """
    function = _function(loss)
    if function is None or "autograd.numpy" not in sys.modules:  # then none is written with it
        return False
    codes = list(dis.get_instructions(function.__code__))
    for made, returned in itertools.pairwise(codes):
        if (made.opname, made.arg) == ("BUILD_TUPLE", 2) and returned.opname == "RETURN_VALUE":
            return False
    return _names_autograd(loss)


def _names_autograd(loss: Any) -> bool:
    """Whether a callable, or one that it names or holds, uses autograd.numpy; none differentiates.

    Some hundred functions are looked at, no more.
    """
    waiting, seen, found = [loss], set[int](), False
    while waiting and len(seen) < 200:
        loss = waiting.pop(0)
        function = _function(loss)
        if function is None or id(function) in seen:
            continue
        seen.add(id(function))
        for value in _named(loss, function):
            where = getattr(value, "__module__", None)
            if isinstance(value, types.ModuleType):
                where = value.__name__
            if isinstance(where, str) and where.split(".")[0] == "autograd":
                if not where.startswith("autograd.numpy"):  # value_and_grad, grad
                    return False
                found = True
            elif callable(value):
                waiting.append(value)
    return found


def _named(loss: Any, function: types.FunctionType) -> list[Any]:
    """What the code of a callable names, and what the callable holds."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
    named = [function.__globals__[name] for name in names & set(function.__globals__)]
    return named + _held(loss, function)


def clipped(grads: Any, params: Model, numbers: Mapping[str, float]) -> Any:
    """Gradients as a step clips them, in new arrays; as they are where clipping is off."""
    limits: list[Any] = [numbers[name] if numbers[name] > 0 else None for name in LIMITS]
    if not any(limits):
        return grads
    if isinstance(grads, (list, tuple)) and len(grads) != len(params):
        raise ValueError(
            f"loss returned {len(grads)} gradients, but params has {len(params)} entries"
        )
    checked_params, checked_grads = arrays.checked_model(params, grads)
    if any(p.dtype.char == "f" for p in checked_params):
        check_float32(numbers, LIMITS)
    return like(params, reference.clip(checked_grads, *limits))


def update_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(params, constraints, loss) from the arguments of `get_updates`, in either order."""
    later = bool(args) and callable(args[0]) and not isinstance(args[0], np.ndarray)
    names: tuple[str, ...] = ("params", "constraints", "loss")
    if later:
        names = ("loss", "params", "constraints")
    if len(args) == 2 and not later and callable(args[1]):
        names = ("params", "loss")
    if len(args) > len(names):
        raise TypeError(f"get_updates takes params, constraints and loss, but got {len(args)}")
    given = dict(zip(names, args, strict=False))
    for name in kwargs:
        if name not in ("params", "constraints", "loss"):
            raise TypeError(f"get_updates got an unexpected keyword argument {name!r}")
        if name in given:
            raise TypeError(f"get_updates got {name} twice")
    given |= kwargs
    for name in ("params", "loss"):
        if name not in given:
            raise TypeError(
                f"get_updates misses {name}: pass (params, constraints, loss) or (loss, params)"
            )
    return given["params"], given.get("constraints"), given["loss"]

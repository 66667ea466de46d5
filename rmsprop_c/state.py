"""What the state of an optimizer is between two calls, and which states no run can reach."""

import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .arrays import check_real

if TYPE_CHECKING:
    from numpy.typing import NDArray  # its module takes a millisecond of the import

# What a position keeps, each made when an option first needs it: running means of the squared
# gradients, the momentum, running means of the gradients and of the parameters, and the sum of the
# gradients since the latest update.
SLOTS = ("accumulator", "momentum", "average_gradient", "moving_average", "gradient_sum")

# Updates; calls since the latest one; all calls, but for skipped ones; and skipped ones.
COUNTS = ("iterations", "calls", "total_calls", "skipped_steps")
LARGEST_COUNT = 2**62


def checked_count(value: Any, name: str) -> int:
    """The count as an int, or an error that names it."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; iterations must be an integer") from None
    if not 0 <= count <= LARGEST_COUNT:
        raise ValueError(f"{name} is {value!r}; iterations must be in [0, 2**62]")
    return count


def total_calls(iterations: int, cycle: int, calls: int) -> int:
    """How many calls so many updates take, each a cycle of them, and those behind them."""
    total = iterations * cycle + calls
    if total > LARGEST_COUNT:
        raise ValueError(
            f"{iterations} iterations of {cycle} calls are more than the 2**62 calls that can be "
            "counted"
        )
    return total


def forms(arrays: "Iterable[NDArray[Any]]") -> list[tuple[Any, ...]]:
    """Shapes and dtypes."""
    return [(array.shape, array.dtype) for array in arrays]


class State(NamedTuple):
    """The state of an optimizer between two calls, whatever its options are."""

    iterations: int
    """Updates."""
    calls: int
    """Calls since the latest update, in a cycle of gradient_accumulation_steps."""
    total_calls: int
    """Calls of all times, without those that were skipped."""
    skipped_steps: int
    keys: tuple[Any, ...] | None
    """Of a model that is a dict, in the order of the positions."""
    slots: dict[str, list[Any]]
    """Arrays by slot and position, in the order of SLOTS; empty before the first step."""
    pending: list[bool]
    """For each position whether its gradient_sum holds a gradient."""


def from_mapping(mapping: Mapping[str, Any]) -> State:
    """A state from its fields by name, those of a pickle for one."""
    for name in State._fields:
        if name not in mapping:
            raise ValueError(f"the state has no {name}")
    return State(*(mapping[name] for name in State._fields))


def check(state: State) -> None:
    """Raise for a state that no run can reach.

    Raises
    ------
    ValueError
        With the entry that is wrong. Which options are set does not matter: they may be assigned
        between any two calls, and what they leave or miss is put right at the next one.
    """
    for name in COUNTS:
        count = getattr(state, name)
        if type(count) is not int or not 0 <= count <= LARGEST_COUNT:
            raise ValueError(f"{name} is {reprlib.repr(count)}; it must be in [0, 2**62]")
    iterations, calls, total, _, keys, slots, pending = state
    if total < iterations + calls:
        raise ValueError(
            f"total_calls is {total}, but {iterations} updates and {calls} calls are more"
        )
    _check_slots(slots)
    count = len(slots.get("accumulator", ()))
    if type(pending) is not list or len(pending) != count or {*map(type, pending)} - {bool}:
        raise ValueError(f"pending is {reprlib.repr(pending)}, but there are {count} accumulators")
    if keys is not None and (type(keys) is not tuple or not slots or len(keys) != count):
        raise ValueError(f"there are {len(keys)} keys, but {count} accumulators")
    if keys is not None and len(set(keys)) != count:
        raise ValueError(f"keys has an entry twice: {reprlib.repr(keys)}")
    if calls > 0 and not slots.get("gradient_sum"):
        raise ValueError(
            f"calls is {calls}, in the middle of a cycle, but there is no gradient_sum"
        )
    if calls == 0 and any(pending):
        raise ValueError("there are gradients of a cycle that has not begun: calls is 0")
    for i, gradient_sum in enumerate(slots.get("gradient_sum", ())):
        if not pending[i] and gradient_sum.any():
            raise ValueError(f"gradient_sum[{i}] is not 0, but no gradient is pending there")


def _check_slots(slots: "Mapping[str, list[NDArray[Any]]]") -> None:
    """Raise unless all slots are known and like the accumulators."""
    if slots and list(slots) != [x for x in SLOTS if x == "accumulator" or x in slots]:
        raise ValueError(f"slots is {reprlib.repr(list(slots))}")
    like = slots.get("accumulator", ())
    for name, arrays in slots.items():
        if len(arrays) != len(like):
            raise ValueError(f"there are {len(arrays)} of {name}, but {len(like)} accumulators")
        for i, (array, accumulator) in enumerate(zip(arrays, like, strict=True)):
            if not isinstance(array, np.ndarray) or array.dtype.char not in "fd":
                raise ValueError(f"{name}[{i}] is no array of float32 or float64")
            if (array.shape, array.dtype.char) != (accumulator.shape, accumulator.dtype.char):
                raise ValueError(f"{name}[{i}] is of another parameter than accumulator[{i}]")


def fitting(
    weights: list[Any], slots: "Mapping[str, list[NDArray[Any]]]"
) -> "tuple[dict[str, list[NDArray[Any]]], int | None]":
    """Weights as arrays like those of these slots, and the iterations that may stand before them.

    Raises
    ------
    ValueError, TypeError
        In Keras's words, if the number of weights or a shape does not fit, or for what is no real
        number.
    """
    own = [view for views in slots.values() for view in views]
    iterations = None
    if own and len(weights) == len(own) + 1 and np.shape(weights[0]) == ():
        iterations, weights = checked_count(weights[0], "weights[0]"), weights[1:]
    if len(weights) != len(own) or not slots:
        raise ValueError(
            f"Length of the specified weight list ({len(weights)}) does not match the number of "
            f"weights of the optimizer ({len(own)})"
            + ("" if slots else "; call build(params) or step first")
        )
    found = [np.array(weight) for weight in weights]  # they may be views of these very weights
    for i, (mine, array) in enumerate(zip(own, found, strict=True)):
        if mine.shape != array.shape:
            raise ValueError(
                f"Optimizer weight shape {mine.shape} not compatible with provided weight "
                f"shape {array.shape} (weights[{i}])"
            )
        check_real(array, f"weights[{i}]")
    rest = iter([x.astype(mine.dtype) for mine, x in zip(own, found, strict=True)])
    return {name: [next(rest) for _ in views] for name, views in slots.items()}, iterations

"""The state of the RMSprop of PyTorch, Keras 3 and optax, to and from this package's.

State here is a dict of lists of arrays by position: ``accumulator`` (the running mean of squares),
``momentum``, ``average_gradient`` (of the centered form), ``moving_average`` (of the weights) and
``gradient_sum`` (what is accumulated in the cycle under way), each where the optimizer has it; and
beside it the iterations, and the calls in that cycle. No framework is imported.

PyTorch's momentum is without the learning rate (``lr_in_momentum=False``), that of Keras and optax
with it. optax's is of the opposite sign, which changes here.

Examples
--------
>>> import numpy as np
>>> from rmsprop_c import interchange
>>> variables = [np.int64(7), np.float32(0.001), np.array([0.5, 0.25])]  # of a Keras optimizer
>>> interchange.read("keras3", variables, ["accumulator"], count=1)
({'accumulator': [array([0.5 , 0.25])]}, 7, 0)
"""

import copy
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arrays as arrays_module, state as states

Values = dict[str, list[NDArray[Any] | None]]  # None: zeros
Read = tuple[Values, int | None, int]

# The names of the slots; in Keras their order behind the iterations and the learning rate.
TORCH = {"accumulator": "square_avg", "momentum": "momentum_buffer", "average_gradient": "grad_avg"}
OPTAX = {"accumulator": "nu", "momentum": "trace", "average_gradient": "mu"}
KERAS = ("moving_average", "gradient_sum", "accumulator", "momentum", "average_gradient")
# What optax's wrappers of rmsprop keep without changing the numbers of steps to come, as long as
# gradients are finite: settings and statistics.
SEEN = {"hyperparams", "hyperparams_states", "skip_state", "found_nan"}
SEEN |= {"notfinite_count", "last_finite", "total_notfinite"}
OWNERS = ("ScaleByRms", "ScaleByRStdDev")  # how its classes begin; ScaleByAdamState has nu, too
UPDATES = ("count", "gradient_step")  # the latter is that of optax.MultiSteps
# Which option makes a slot.
OPTIONS = {"momentum": "momentum", "average_gradient": "centered", "moving_average": "use_ema"}


def read(
    framework: str,
    state: Any,
    slots: Iterable[str],
    count: int,
    cycle: int = 1,
    keys: Sequence[Any] | None = None,
) -> tuple[Values, int | None, int]:
    """Translate another framework's state into this package's.

    Parameters
    ----------
    framework : {"torch", "keras3", "optax"}
        Whose state it is.
    state : object
        ``state_dict()`` of torch.optim.RMSprop; the arrays of ``variables`` of Keras's, in order;
        or the state of optax.rmsprop. Arrays are whatever `numpy.asarray` takes.
    slots : iterable of str
        What state this optimizer has, or will have with its options.
    count : int
        How many parameters it has.
    cycle : int
        Its gradient_accumulation_steps, or 1.
    keys : sequence, optional
        The keys of its parameters, in order, where they are a dict: optax knows them too.

    Returns
    -------
    values : dict of str to list of (ndarray or None)
        Copies, of each slot. None stands for zeros: PyTorch has no state for a parameter that never
        had a gradient, and neither it nor optax keeps a gradient_sum. Shapes are not checked.
    iterations : int or None
        The number of updates; None where optax does not count them.
    calls : int
        The number of calls in the cycle under way.

    Raises
    ------
    ValueError, TypeError
        If `state` is of another form, of other options, or of another number of parameters, or
        holds more than RMSprop's: that of ``optax.MultiSteps`` in the middle of a cycle, for one.
    """
    own, known = Own(set(slots), count, cycle, keys), _known(framework)
    if not known.keeps_all:
        _check_no_averages(framework, own.slots)
    return known.read(state, own)


def write(
    framework: str,
    state: Any,
    values: Mapping[str, Sequence[Any]],
    iterations: int,
    calls: int = 0,
    cycle: int = 1,
    leaf: Callable[[NDArray[Any]], Any] = np.asarray,
    keys: Sequence[Any] | None = None,
) -> Any:
    """Translate this package's state into another framework's.

    Parameters
    ----------
    framework : {"torch", "keras3", "optax"}
        Whose form it gets.
    state : object
        The state, as for `read`, of the optimizer that is to have this one's; it may be new, and
        is not changed.
    values : mapping of str to sequence of ndarray
        The slots of this optimizer.
    iterations, calls, cycle : int
        Its updates, the calls in the cycle under way, and gradient_accumulation_steps or 1.
    leaf : callable
        Makes the other framework's arrays from NumPy's: ``torch.from_numpy`` for PyTorch.
    keys : sequence, optional
        As for `read`.

    Returns
    -------
    object
        `state` with copies of `values`, in the dtypes of the arrays they replace, and with the
        iterations. What else there is, such as the learning rate, stays.

    Raises
    ------
    ValueError, TypeError
        If `state` is of another form, of other options, or of other shapes, or holds more than
        RMSprop's; if a cycle is under way that the other framework can't continue; if it has no
        averages and this optimizer does; or if its integers can't hold the iterations.
    """
    own, known = Own(set(values), len(values["accumulator"]), cycle, keys), _known(framework)
    if not known.keeps_all:
        if calls:
            raise ValueError(
                f"{framework}'s state has no place for the gradients of {calls} of {cycle} calls; "
                "finish the cycle first"
            )
        _check_no_averages(framework, own.slots)
    return known.write(state, own, Ours(values, iterations, calls, leaf))


def imported(
    framework: str, state: Any, own: "Own", mine: states.State, lr_in_momentum: bool | None
) -> tuple[states.State, int | None]:
    """What our state is once it is another framework's.

    Parameters
    ----------
    framework, state
        As for `read`.
    own : Own
        Our optimizer.
    mine : State
        Its state, of which the accumulators say what shapes and dtypes there are.
    lr_in_momentum : bool or None
        Whether our momentum has the learning rate in it; None without one.

    Returns
    -------
    state : State
        Of our shapes and dtypes, and one that a run can reach.
    iterations : int or None
        What to count on from; None where that framework does not count.

    Raises
    ------
    TypeError, ValueError
        As `read` does, and for shapes and numbers that are not ours.
    """
    like = mine.slots["accumulator"]
    _check_momentum(framework, lr_in_momentum)
    values, iterations, calls = read(framework, state, *own)
    slots: dict[str, list[NDArray[Any]]] = {}
    for name, found_ones in values.items():
        slots[name] = []
        for i, (accumulator, given) in enumerate(zip(like, found_ones, strict=True)):
            if given is None:
                array = np.zeros_like(accumulator)
            elif given.shape != accumulator.shape:
                raise ValueError(
                    f"{name}[{i}] of the state has shape {given.shape}, but the optimizer was "
                    f"built for {accumulator.shape}"
                )
            else:
                arrays_module.check_real(given, f"{name}[{i}] of the state")
                array = given.astype(accumulator.dtype)
            slots[name].append(array)
    slots = {name: slots[name] for name in states.SLOTS if name in slots}
    # No framework says which parameters have had a gradient in the cycle: where the sum is 0, none.
    sums = slots.get("gradient_sum", [np.zeros(0)] * own.parameters)
    found = mine._replace(calls=calls, slots=slots, pending=[bool(x.any()) for x in sums])
    if iterations is not None:
        total = states.total_calls(iterations, own.cycle, calls)
        found = found._replace(iterations=iterations, total_calls=total)
    states.check(found)
    return found, iterations


def exported(
    framework: str,
    state: Any,
    own: "Own",
    mine: states.State,
    lr_in_momentum: bool | None,
    scheduled: bool,
    leaf: Callable[[NDArray[Any]], Any],
) -> Any:
    """Our state in the form of another framework's; see `imported` and `write`.

    `scheduled` says whether lr is a schedule: Keras gives it another count of calls.
    """
    slots: dict[str, list[NDArray[Any]]] = {}
    for name in sorted(own.slots, key=states.SLOTS.index):
        if name in mine.slots:
            slots[name] = mine.slots[name]
        elif not mine.slots:
            raise ValueError("there is no state yet; call build(params) or step first")
        elif name == "moving_average":
            raise ValueError("there are no averages yet; call build(params) or step first")
        else:  # of an option that has been set since, as the next step makes it
            slots[name] = [np.zeros_like(x) for x in mine.slots["accumulator"]]
    _check_momentum(framework, lr_in_momentum)
    counted = mine.iterations * own.cycle + mine.calls
    if _known(framework).keeps_all and scheduled and counted != mine.total_calls:
        raise ValueError(
            f"lr is a schedule that has come to call {mine.total_calls}, but Keras would go on at "
            f"call {counted}; assign iterations to agree on one"
        )
    return write(framework, state, slots, mine.iterations, mine.calls, own.cycle, leaf, own.keys)


def _check_momentum(framework: str, lr_in_momentum: bool | None) -> None:
    """The numbers in a momentum mean something else where the learning rate is not in it."""
    known = _known(framework)
    if lr_in_momentum not in (None, known.lr_in_momentum):
        raise ValueError(
            f"lr_in_momentum is {lr_in_momentum}, but {framework}'s momentum is "
            f"{'with' if known.lr_in_momentum else 'without'} the learning rate"
        )


class Own(NamedTuple):
    """What there is to know of our optimizer."""

    slots: set[str]  # that its options ask for
    parameters: int  # how many there are
    cycle: int  # gradient_accumulation_steps, or 1
    keys: Sequence[Any] | None  # of its parameters, where they are a dict


class Ours(NamedTuple):
    """What there is to write of our optimizer."""

    values: Mapping[str, Sequence[Any]]  # the slots
    iterations: int
    calls: int  # in the cycle under way
    leaf: Callable[[NDArray[Any]], Any]  # makes the framework's arrays


def _read_keras(state: Any, own: Own) -> Read:
    order, start = _keras_layout(state, own.slots, own.parameters)
    arrays = iter(state[start:])
    found: Values = {slot: [_copy(next(arrays)) for _ in range(own.parameters)] for slot in order}
    return found, *divmod(_count("state[0], the iterations,", state[0]), own.cycle)


def _read_torch(state: Any, own: Own) -> Read:
    entries = _torch_entries(state, _torch_indices(state, own.parameters))
    steps = [0]
    for i, entry in enumerate(entries):
        where = f"state of parameter {i}"
        if entry:
            _check_slots("torch", where, entry, TORCH, own.slots)
            if "step" not in entry:
                raise ValueError(f"{where} has no step, only {', '.join(map(str, entry))}")
            steps.append(_count(f"step of the {where}", entry["step"]))
    found: Values = {"gradient_sum": [None] * own.parameters}
    for slot, name in TORCH.items():
        found[slot] = [_copy(entry[name]) if name in entry else None for entry in entries]
    return {slot: found[slot] for slot in found if slot in own.slots}, max(steps), 0


def _read_optax(state: Any, own: Own) -> Read:
    fields = _optax_fields(state, own.slots)
    found: Values = {"gradient_sum": [None] * own.parameters} if "gradient_sum" in own.slots else {}
    for slot, name in OPTAX.items():
        if slot in own.slots:
            copies = [_copy(x) for x in _optax_arrays(name, fields[name], own.parameters, own.keys)]
            found[slot] = [np.asarray(-x) if slot == "momentum" else x for x in copies]
    counts = [fields[name] for name in UPDATES if name in fields]
    return found, _count("count of state", counts[0]) if counts else None, 0


def _put(name: str, value: Any, replaced: Any, leaf: Callable[[NDArray[Any]], Any]) -> Any:
    """A number or an array in the place and the dtype of another."""
    replaced, value = np.asarray(replaced), np.asarray(value)
    if replaced.shape != value.shape:
        raise ValueError(f"{name} has shape {replaced.shape}, but here it is {value.shape}")
    if replaced.dtype.kind in "iu" and np.any(value > np.iinfo(replaced.dtype).max):
        raise ValueError(f"{name} is {value}, more than the {replaced.dtype} there can hold")
    return leaf(np.array(value, replaced.dtype))


def _write_keras(state: Any, own: Own, ours: Ours) -> Any:
    if ours.calls >= own.cycle:
        raise ValueError(
            f"Keras can't end a cycle of {own.cycle} calls that has {ours.calls} already; finish "
            "the cycle first"
        )
    order, start = _keras_layout(state, own.slots, own.parameters)
    arrays = [ours.iterations * own.cycle + ours.calls, *state[1:start]]
    arrays += [array for slot in order for array in ours.values[slot]]
    pairs = enumerate(zip(arrays, state, strict=True))
    return [_put(f"state[{i}]", new, old, ours.leaf) for i, (new, old) in pairs]


def _write_torch(state: Any, own: Own, ours: Ours) -> Any:
    indices = _torch_indices(state, own.parameters)
    known = _torch_entries(state, indices)
    for i, group in enumerate(state["param_groups"]):
        given = ["square_avg"]
        given += ["momentum_buffer"] if group.get("momentum", 0) > 0 else []
        given += ["grad_avg"] if group.get("centered") else []
        _check_slots("torch", f"state of group {i}", given, TORCH, own.slots)
    entries = {}
    for position, index in enumerate(indices):
        mine = {TORCH[slot]: ours.values[slot][position] for slot in TORCH if slot in own.slots}
        old = known[position] or mine
        step = old.get("step", np.float32(0))
        entries[index] = {"step": _put("step", ours.iterations, step, ours.leaf)}
        for name, value in mine.items():
            entries[index][name] = _put(
                f"{name} of parameter {position}", value, old.get(name, value), ours.leaf
            )
    return {**state, "state": entries, "param_groups": copy.deepcopy(state["param_groups"])}


def _write_optax(state: Any, own: Own, ours: Ours) -> Any:
    _optax_fields(state, own.slots)

    def new(name: str, tree: Any) -> Any:
        if name in UPDATES:
            return _put(name, ours.iterations, tree, ours.leaf)
        slot = next(slot for slot in OPTAX if OPTAX[slot] == name)
        mine = [-m for m in ours.values[slot]] if slot == "momentum" else ours.values[slot]
        old = _optax_arrays(name, tree, own.parameters, own.keys)
        pairs = enumerate(zip(mine, old, strict=True))
        arrays = [_put(f"{name}[{i}]", *pair, ours.leaf) for i, pair in pairs]
        if isinstance(tree, Mapping):
            by_key = dict(zip(own.keys or (), arrays, strict=True))
            return type(tree)({key: by_key[key] for key in tree})  # type: ignore[call-arg]
        if isinstance(tree, (list, tuple)):
            return type(tree)(*arrays) if hasattr(tree, "_fields") else type(tree)(arrays)
        return arrays[0]

    return _map_fields(state, new)


class Framework(NamedTuple):
    """How to read and write a framework's state."""

    read: Callable[[Any, Own], Read]
    write: Callable[[Any, Own, Ours], Any]
    lr_in_momentum: bool
    keeps_all: bool  # averages, the cycle under way, and the count that schedules go by, too


FRAMEWORKS = {
    "torch": Framework(_read_torch, _write_torch, lr_in_momentum=False, keeps_all=False),
    "keras3": Framework(_read_keras, _write_keras, lr_in_momentum=True, keeps_all=True),
    "optax": Framework(_read_optax, _write_optax, lr_in_momentum=True, keeps_all=False),
}


def _known(framework: str) -> Framework:
    if not isinstance(framework, str) or framework not in FRAMEWORKS:
        raise ValueError(f"framework is {framework!r}; it must be one of {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[framework]


def _count(name: str, value: Any) -> int:
    """A number of steps, from whatever a framework keeps it in."""
    try:
        number = np.asarray(value)
        count = int(number.item())
        if number.dtype.kind not in "iuf" or number.item() != count:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be a whole number") from None
    if not 0 <= count <= states.LARGEST_COUNT:
        raise ValueError(f"{name} is {count}; it must be in [0, 2**62]")
    return count


def _copy(array: Any) -> NDArray[Any]:
    return np.array(np.asarray(array))  # np.array alone warns of a tensor's __array__


def _check_slots(
    framework: str, where: str, given: Any, names: Mapping[str, str], slots: set[str]
) -> None:
    """An error if the slots of the other side, by their `names` there, are not those of this."""
    for slot, name in names.items():
        if name in given and slot not in slots:
            raise ValueError(
                f"{where} has {name}, but this optimizer has no {slot}: make it with "
                f"{OPTIONS[slot]}"
            )
        if name not in given and slot in slots:
            made = f": make it without {OPTIONS[slot]}" if slot in OPTIONS else ""
            raise ValueError(f"{where} has no {name}, but this optimizer has {slot}{made}")


def _check_no_averages(framework: str, slots: set[str]) -> None:
    """An error if this optimizer has averages of the weights, which Keras alone keeps, too."""
    if "moving_average" in slots:
        raise ValueError(
            f"{framework} keeps no average of the weights, but this optimizer does: make it "
            "without use_ema"
        )


def _keras_layout(state: Any, slots: set[str], count: int) -> tuple[list[str], int]:
    """The slots in Keras's order, and where they begin: a schedule is no variable."""
    if not isinstance(state, (list, tuple)):
        raise TypeError(
            f"state is of type {type(state).__name__}; pass the values of optimizer.variables, as "
            "[v.numpy() for v in optimizer.variables]"
        )
    order = [slot for slot in KERAS if slot in slots]
    start = len(state) - count * len(order)
    if start not in (1, 2) or any(np.ndim(value) for value in state[:start]):
        raise ValueError(
            f"state has {len(state)} arrays; for this optimizer it must be iterations, "
            f"learning_rate (unless that is a schedule) and {count} each of {', '.join(order)}"
        )
    return order, start


def _torch_indices(state: Any, count: int) -> list[Any]:
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
        raise TypeError(
            f"state is of type {type(state).__name__}; pass state_dict(), with state and "
            "param_groups"
        )
    if not isinstance(state["state"], Mapping):
        raise TypeError(f"state['state'] is of type {type(state['state']).__name__}, not a dict")
    for i, group in enumerate(state["param_groups"]):
        if not isinstance(group, Mapping) or "params" not in group:
            raise ValueError(f"state['param_groups'][{i}] has no params")
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if len(indices) != count:
        raise ValueError(f"state has {len(indices)} parameters, but this optimizer has {count}")
    return indices


def _torch_entries(state: Any, indices: list[Any]) -> list[Mapping[str, Any]]:
    """What there is of each parameter; an error if it is not RMSprop's alone."""
    entries = [state["state"].get(i, {}) for i in indices]
    for i, entry in enumerate(entries):
        where = f"state of parameter {i}"
        if not isinstance(entry, Mapping):
            raise TypeError(f"{where} is of type {type(entry).__name__}, not a dict")
        for name in entry:
            if name != "step" and name not in TORCH.values():
                raise ValueError(f"{where} has {name}, which torch.optim.RMSprop does not keep")
    return entries


def _map_fields(tree: Any, change: Callable[[str, Any], Any]) -> Any:
    """A copy of (named) tuples in tuples, where ``change(name, value)`` replaces optax's fields."""
    if not isinstance(tree, (list, tuple)):
        return tree
    names = getattr(tree, "_fields", None)
    if names is None:
        return type(tree)(_map_fields(value, change) for value in tree)
    known = {*UPDATES, *OPTAX.values()}
    pairs = zip(names, tree, strict=True)
    return type(tree)(*(change(n, v) if n in known else _map_fields(v, change) for n, v in pairs))


def _optax_fields(state: Any, slots: set[str]) -> dict[str, Any]:
    """The values of the fields, all of them there once; a count of each of several owners."""
    fields: dict[str, Any] = {}

    def check(name: str, value: Any) -> None:
        """Raise for numbers that are not RMSprop's."""
        if isinstance(value, Mapping):
            for part in value.values():
                check(name, part)
        elif isinstance(value, (list, tuple)):
            names = getattr(value, "_fields", None) or [name] * len(value)
            kind = type(value).__name__
            if "nu" in names and kind.startswith("ScaleBy") and not kind.startswith(OWNERS):
                raise ValueError(
                    f"state is that of another optimizer, a {kind}, not that of optax.rmsprop"
                )
            for inner, part in zip(names, value, strict=True):
                if inner not in {*UPDATES, *OPTAX.values(), *SEEN}:
                    check(inner, part)
        elif not _is_zero(value):
            if name == "mini_step":
                raise ValueError(
                    f"state is that of a cycle of gradients under way (mini_step is {value}); "
                    "finish the cycle first"
                )
            raise ValueError(
                f"state has {name}, which optax.rmsprop does not keep; pass the state of "
                "optax.rmsprop alone, if the steps to come don't depend on the rest"
            )

    def collect(name: str, value: Any) -> None:
        if name in fields and (
            name != "count" or _count(name, value) != _count(name, fields[name])
        ):
            raise ValueError(f"state has several {name}; pass the state of one optax.rmsprop")
        fields[name] = value

    _map_fields(state, collect)
    if "nu" not in fields:
        raise ValueError(
            f"state, of type {type(state).__name__}, has no nu: it is not that of optax.rmsprop"
        )
    check("an array", state)
    _check_slots("optax", "state", fields, OPTAX, slots)
    return fields


def _is_zero(value: Any) -> bool:
    try:
        return value is None or not np.asarray(value).any()
    except TypeError:  # a key of jax.random
        return False


def _optax_arrays(name: str, tree: Any, count: int, keys: Sequence[Any] | None) -> list[Any]:
    """The arrays of the parameters in this optimizer's order."""
    if isinstance(tree, Mapping):
        if keys is None or set(tree) != set(keys):
            raise ValueError(
                f"{name} of state has the keys {list(tree)}, but this optimizer's parameters have "
                f"{'none' if keys is None else list(keys)}"
            )
        return [tree[key] for key in keys]
    arrays = list(tree) if isinstance(tree, (list, tuple)) else [tree]
    if len(arrays) != count:
        raise ValueError(
            f"{name} of state has {len(arrays)} arrays, but this optimizer has {count} parameters"
        )
    return arrays

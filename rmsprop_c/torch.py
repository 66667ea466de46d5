"""``torch.optim.RMSprop`` on our kernels, for tensors on the CPU.

The state is torch's: a step works on the tensors in ``optimizer.state[p]``, wherever they lie. So
state dicts go from one class to the other at any time, and a step copies nothing.
"""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np

from . import _core, arrays, interchange, presets, rmsprop

try:
    import torch
    from torch.utils.dlpack import to_dlpack
except ImportError:
    raise ImportError("rmsprop_c.torch needs PyTorch: pip install 'rmsprop_c[torch]'") from None

__all__ = ["RMSprop"]

ARGUMENTS = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
OURS = presets.PRESETS["torch"].names  # our names of them, where they differ
UNSUPPORTED = {
    "capturable": "there is no graph to capture on a CPU",
    "differentiable": "autograd can't follow a step here",
}

PLAIN = {torch.Tensor, torch.nn.Parameter}
is_neg = torch.Tensor.is_neg
Group = dict[str, Any]
State = MutableMapping[Any, dict[str, Any]]  # by parameter


class RMSprop(torch.optim.RMSprop):  # type: ignore[misc]
    """A drop-in for ``torch.optim.RMSprop``: the same arguments, results and state, faster on CPUs.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor), or of dict
        Parameters or groups of them, as for every ``torch.optim.Optimizer``: dense tensors on the
        CPU, of float32 or float64 (they may be mixed), of any shape and strides. `step` changes
        them in place.
    lr : float or Tensor
        Learning rate, at least 0.
    alpha : float
        How much of the running mean of squares is kept at a step, in [0, 1].
    eps : float
        Added to the root, at least 0.
    weight_decay : float
        Times the parameter, added to the gradient.
    momentum : float
        In [0, 1]; 0 is off.
    centered : bool
        Divide by the deviation from the mean of the gradients.
    capturable : bool
        False: there is no graph to capture on a CPU.
    foreach : bool or None
        Without meaning here: one call always updates all tensors of a group.
    maximize : bool
        Go along the gradients instead of against them.
    differentiable : bool
        False: autograd can't go through a step.

    Raises
    ------
    TypeError, ValueError
        For a parameter that is sparse, not on the CPU or of another dtype, and for a value out of
        range, by group and index.

    Notes
    -----
    The numbers are those of ``torch.optim.RMSprop`` of PyTorch 2.13 up to rounding, and of
    ``rmsprop_c.RMSprop.like("torch")`` to the bit, on any number of threads.

    Examples
    --------
    >>> import torch
    >>> from rmsprop_c.torch import RMSprop
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = RMSprop(model.parameters(), lr=0.01)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> for _ in range(500):
    ...     optimizer.zero_grad()
    ...     loss = (model(x) - x @ torch.tensor([[2.0], [-1.0]])).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 0.001
    True
    """

    _steppers: Sequence["Stepper"] = ()  # of the groups
    _places = b""  # of the arrays of the latest step

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters with arguments of its own; see ``torch.optim.Optimizer``.

        Raises
        ------
        TypeError, ValueError
            As for the class. The group is not added then.
        """
        super().add_param_group(param_group)
        index = len(self.param_groups) - 1
        group = self.param_groups[index]
        try:
            assign(rmsprop.RMSprop.like("torch"), settings(group, index), index)
            for i, p in enumerate(group["params"]):
                if p.requires_grad:  # what is frozen may be anything until it has a gradient
                    check(p, name(group, index, i))
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients again and returns the loss.

        Returns
        -------
        object
            What the closure returned, or None.

        Raises
        ------
        TypeError, ValueError
            For what can't be used, memory that two parameters share among it, by group and index.
            Nothing has changed in that group, nor in those behind it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # there is nothing to be traced
    def _step(self) -> None:
        if len(self._steppers) != len(self.param_groups):
            self._steppers = [Stepper() for _ in self.param_groups]
        steps = [
            Step(stepper.set(settings(group, index), index), group, index, self.state)
            for index, (stepper, group) in enumerate(
                zip(self._steppers, self.param_groups, strict=True)
            )
        ]
        if any(step.changed for step in steps):
            owned_once(steps)
        if len(steps) > 1:  # within one, the core looks
            self._places = apart(steps, self._places)
        for step in steps:
            step.make(self.state)


class Stepper:
    """An optimizer of ours that has the arguments of a group; it keeps no state."""

    def __init__(self) -> None:
        self.optimizer = rmsprop.RMSprop.like("torch")
        self.values: tuple[Any, ...] = ()

    def set(self, values: tuple[Any, ...], index: int) -> rmsprop.RMSprop:
        """Give it the group's arguments, where they have changed."""
        if values != self.values:
            self.values = ()  # so that an error does not leave half of them for good
            assign(self.optimizer, values, index)
            self.values = values
        return self.optimizer


class Step:
    """One step of a group, from the look at its tensors to what it writes; it lives no longer.

    So what tensors are like and where they lie is read at every step: `share_memory_`, `set_`,
    `resize_`, ``.data = ...`` and other processes may change it in between.
    """

    def __init__(self, optimizer: rmsprop.RMSprop, group: Group, index: int, state: State) -> None:
        self.optimizer, self.group, self.index = optimizer, group, index
        everyone = group["params"]
        gradients = [p.grad for p in everyone]
        self.places = tuple([i for i, g in enumerate(gradients) if g is not None])
        if len(self.places) < len(everyone):
            everyone = [everyone[i] for i in self.places]
            gradients = [gradients[i] for i in self.places]
        self.params = everyone
        slots = ["accumulator"]
        slots += ["momentum"] if optimizer.momentum > 0 else []
        slots += ["average_gradient"] if optimizer.centered else []
        kinds = ["step", *(interchange.TORCH[slot] for slot in slots)]
        entries = [state.get(p) or {} for p in self.params]
        self.missing: list[dict[str, Any]] = []  # from the state, by position
        try:
            columns = [[entry[kind] for entry in entries] for kind in kinds]
        except KeyError:
            pairs = list(zip(self.params, entries, strict=True))
            self.missing = [missing(p, entry, kinds) for p, entry in pairs]
            columns = [
                [{**entry, **new}[kind] for entry, new in zip(entries, self.missing, strict=True)]
                for kind in kinds
            ]
        self.counters, *self.states = columns
        if PLAIN.issuperset(map(type, self.counters)) and not any(map(is_neg, self.counters)):
            self.packed_counters: list[Any] = list(map(to_dlpack, self.counters))
        else:
            self.packed_counters = [self.packed_counter(*x) for x in enumerate(self.counters)]
        self.changed: list[tuple[Any, Any]] = []  # tensors of the state, and their new data
        capsules = [
            self.packed(self.params, ""),
            self.packed(gradients, "the gradient of "),
            *(self.packed(x, f"the {k} of ") for k, x in zip(kinds[1:], self.states, strict=True)),
        ]
        arrays, whole = _core.dlpack_arrays(*capsules)
        if not whole:
            self.mend(capsules, arrays, kinds[1:])
            arrays, whole = _core.dlpack_arrays(*capsules)
            if not whole:
                i = next(i for i, row in enumerate(zip(*arrays, strict=True)) if incomplete(row))
                raise TypeError(f"{self.name(i)}, its gradient or its state can't be updated")
        self.arrays, self.grads, *found = arrays
        self.slots = dict(zip(slots, found, strict=True))

    def name(self, position: int) -> str:
        """How errors call a parameter."""
        return name(self.group, self.index, self.places[position])

    def called(self, position: int) -> str:
        """How errors call one of its arrays: parameters, states, and gradients behind them."""
        kind, i = divmod(position, len(self.params))
        kinds = ["", *(f"the {interchange.TORCH[slot]} of " for slot in self.slots)]
        return [*kinds, "the gradient of "][kind] + self.name(i)

    def packed(self, tensors: list[Any], what: str) -> list[Any]:
        """Tensors in DLPack's form; None for those whose memory holds the negative of them."""
        try:
            if not PLAIN.issuperset(map(type, tensors)):
                for i, tensor in enumerate(tensors):
                    check_type(tensor, what + self.name(i))
            capsules: list[Any] = list(map(to_dlpack, tensors))
            negative = list(map(is_neg, tensors))
        except (BufferError, RuntimeError):
            for i, tensor in enumerate(tensors):
                check(tensor, what + self.name(i))
            raise
        if any(negative):
            return [None if n else x for x, n in zip(capsules, negative, strict=True)]
        return capsules

    def packed_counter(self, i: int, counter: Any) -> Any:
        """A step count in DLPack's form; None for a number, and for what torch alone can count."""
        if not torch.is_tensor(counter):
            if isinstance(counter, bool) or not isinstance(counter, (int, float)):
                raise TypeError(
                    f"the step of {self.name(i)} is of type {type(counter).__name__}; it must be a "
                    "tensor or a number"
                )
            return None
        return None if counter.is_neg() or type(counter) not in PLAIN else to_dlpack(counter)

    def mend(self, capsules: list[list[Any]], arrays: list[list[Any]], kinds: list[str]) -> None:
        """Replace what no kernel can use by what it stands for, or raise for it by name."""
        for i, p in enumerate(self.params):
            if arrays[0][i] is None:
                check(p, self.name(i))
            if arrays[1][i] is None:
                check(p.grad, f"the gradient of {self.name(i)}", real=True)
                capsules[1][i] = to_dlpack(p.grad.detach().resolve_neg().to(p.dtype))
            model = p  # whose memory order the state has: where that has gaps, the first one's
            for kind, tensors, column, packs in zip(
                kinds, self.states, arrays[2:], capsules[2:], strict=True
            ):
                data = tensors[i]
                if column[i] is None:
                    packs[i] = None  # it may be a user of the memory itself
                    data = like(model, data, f"the {kind} of {self.name(i)}")
                    self.changed.append((tensors[i], data))
                    packs[i] = to_dlpack(data)
                model = data

    def make(self, state: State) -> None:
        """Make the step."""
        if not self.params:
            return
        try:
            others = _core.step_on(
                self.optimizer,
                self.arrays,
                self.grads,
                self.slots,
                self.packed_counters,
                self.places,
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{self.index}]: {error}") from None
        for i, new in enumerate(self.missing):
            state.setdefault(self.params[i], {}).update(new)
        for tensor, data in self.changed:
            tensor.data = data
        for i in others:
            state[self.params[i]]["step"] += 1
        # autograd then sees that a value it has saved for a backward pass is no longer that.
        torch.autograd.graph.increment_version(self.params)


def incomplete(row: tuple[Any, ...]) -> bool:
    return any(x is None for x in row)


def is_sole_owner(tensor: Any) -> bool:
    """Whether no other tensor, array or process can be using a tensor's memory."""
    storage = tensor.untyped_storage()
    count = getattr(torch._C, "_storage_Use_Count", None)
    return (
        not tensor.is_shared()
        and storage.nbytes() == tensor.numel() * tensor.element_size()
        and storage.resizable()  # memory of NumPy's is not
        and count is not None
        and count(storage._cdata) == 2  # the tensor's, and that of `storage`
    )


def owned_once(steps: list["Step"]) -> None:
    """Raise if a tensor of the state that takes another form belongs to two parameters."""
    seen: set[int] = set()
    for step in steps:
        for column in step.states:
            for i, tensor in enumerate(column):
                if id(tensor) in seen:
                    raise ValueError(f"the state of {step.name(i)} is that of another parameter")
                seen.add(id(tensor))


def apart(steps: list["Step"], known: bytes) -> bytes:
    """Raise for memory that belongs to two groups: each is updated in a step of its own.

    `known` is what this returned at an earlier step: where the arrays lay, if none met another.
    """
    columns = [[step.arrays, *step.slots.values(), step.grads] for step in steps]
    flat = [x for step in columns for column in step for x in column]
    spans = _core.spans(flat)
    found = spans.tobytes()
    if found == known:
        return found
    sizes = [sum(map(len, step)) for step in columns]
    owners = np.repeat(np.arange(len(steps)), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes])
    first_read = [size - len(step.grads) for size, step in zip(sizes, steps, strict=True)]
    written = positions < np.repeat(first_read, sizes)
    for pair in arrays.meeting(spans, owners, written):
        if arrays.share_memory(*(flat[i] for i in pair)):
            one, other = (steps[owners[i]].called(positions[i]) for i in pair)
            raise ValueError(f"{one} shares memory with {other}; give each its own, by clone()")
        found = b""  # others of the same ranges may share an element
    return found


def missing(p: Any, entry: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """What a parameter's state lacks, as torch makes it."""
    precise = torch.get_default_dtype() == torch.float64
    return {
        kind: torch.zeros((), dtype=torch.float64 if precise else torch.float32)
        if kind == "step"
        else torch.zeros_like(p, memory_format=torch.preserve_format)
        for kind in kinds
        if kind not in entry
    }


def like(p: Any, tensor: Any, name: str) -> Any:
    """The values of a parameter's state in the form of `p`, which it has not.

    Only for tensors that have their memory for themselves: others are updated where they are, or
    not at all.
    """
    wanted = torch.empty_like(p, memory_format=torch.preserve_format, requires_grad=False)
    if tensor.shape != p.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but must have {tuple(p.shape)}")
    check(tensor, name, real=True)
    if not is_sole_owner(tensor):
        raise TypeError(
            f"{name} has dtype {tensor.dtype} and strides {tensor.stride()}, where its parameter "
            f"needs {p.dtype} and {wanted.stride()}, and other tensors or processes may use its "
            "memory; put a tensor of that form into the state"
        )
    return wanted.copy_(tensor.detach())


def name(group: Group, index: int, i: int) -> str:
    """How errors call a parameter."""
    called = f" ({group['param_names'][i]!r})" if "param_names" in group else ""
    return f"param_groups[{index}]['params'][{i}]{called}"


def check_type(tensor: Any, name: str) -> None:
    """Raise for what is no tensor, or one whose operations are another library's."""
    if not torch.is_tensor(tensor):
        raise TypeError(f"{name} is of type {type(tensor).__name__}; it must be a tensor")
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(
            f"{name} is a {type(tensor).__name__}, which has no memory of its own; only plain "
            "tensors can be updated"
        )


def check(tensor: Any, name: str, real: bool = False) -> None:
    """Raise for what has no memory that a kernel can update; with `real` any real dtype will do."""
    check_type(tensor, name)
    if tensor.device.type != "cpu":
        raise TypeError(f"{name} is on {tensor.device}, but steps are done on the CPU; move it")
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is sparse ({tensor.layout}), but only dense tensors can be updated; an "
            "embedding makes dense gradients with sparse=False"
        )
    if tensor.dim() > 64:
        raise TypeError(f"{name} has {tensor.dim()} dimensions, but arrays have 64 at most")
    if tensor.untyped_storage().nbytes() < tensor.element_size() * (tensor.numel() > 0):
        raise TypeError(f"{name} has no memory: its storage has been resized")
    if real and not tensor.is_complex():
        return
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, but only float32 and float64 tensors can be "
            "updated; convert the model with .float()"
        )
    if tensor.is_neg():
        raise TypeError(
            f"{name} is the negative of what its memory holds; replace it by .resolve_neg()"
        )


def settings(group: Group, index: int) -> tuple[Any, ...]:
    """The values of ARGUMENTS; raises for what can't be done."""
    for flag, why in UNSUPPORTED.items():
        if group.get(flag):
            raise ValueError(
                f"param_groups[{index}]['{flag}'] is {group[flag]!r}: {why}; use False"
            )
    lr, *numbers, centered, maximize = [group[argument] for argument in ARGUMENTS]
    return float(lr), *numbers, bool(centered), bool(maximize)


def assign(optimizer: rmsprop.RMSprop, values: tuple[Any, ...], index: int) -> None:
    """Give an optimizer of ours the values of ARGUMENTS."""
    for argument, value in zip(ARGUMENTS, values, strict=True):
        try:
            setattr(optimizer, OURS.get(argument, argument), value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{index}]['{argument}']: {error}") from None

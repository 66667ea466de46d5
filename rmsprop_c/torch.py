"""``torch.optim.RMSprop`` on our kernels: the door to PyTorch, for tensors on the CPU.

The state stays torch's: ``optimizer.state[p]`` holds tensors that lie over our accumulators, so
state dicts go from one class to the other at any time, and a step copies nothing.
"""

import operator
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import interchange, presets, rmsprop

try:
    import torch
except ImportError:
    raise ImportError("rmsprop_c.torch needs PyTorch: pip install 'rmsprop_c[torch]'") from None

__all__ = ["RMSprop"]

ARGUMENTS = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
OURS = presets.PRESETS["torch"].names  # our names of them, where they differ
REFUSED = {
    "capturable": "there is no graph to capture on a CPU",
    "differentiable": "autograd can't follow a step here",
}

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

    _bindings: Sequence["Binding"] = ()  # of the groups, as of the latest step

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
                check(p, name(group, index, i))
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients anew and returns the loss.

        Returns
        -------
        object
            What the closure returned, or None.

        Raises
        ------
        TypeError, ValueError
            For what can't be used, by group and index. Nothing has changed in that group, nor in
            those behind it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bindings, grads = [], []
        for index, group in enumerate(self.param_groups):
            binding = self._bindings[index] if index < len(self._bindings) else None
            if binding is None or not binding.fits(group, index, self.state):
                binding = Binding(group, index, self.state)
            binding.set(settings(group, index), index)
            grads.append(binding.gradients(group, index))
            bindings.append(binding)
        self._bindings = bindings
        for index, binding in enumerate(bindings):
            binding.step(grads[index], index, self.state)
        return loss


class Binding:
    """A group of parameters, an optimizer of ours for it, and torch's state over its accumulators.

    It fits as long as the group has these parameters in these forms, and the state these tensors.
    A new one copies what it finds in the state, and puts its own tensors there.
    """

    def __init__(self, group: Group, index: int, state: State) -> None:
        self.params = list(group["params"])
        self.places: list[Any] = []
        self.axes: list[Any] = []
        self.arrays: list[NDArray[Any]] = []
        for i, p in enumerate(self.params):
            check(p, name(group, index, i))
            array = p.detach().numpy()
            self.places.append((p.data_ptr(), p.stride()))
            self.axes.append(memory_order(array))
            self.arrays.append(ordered(array, self.axes[i]))
        self.optimizer = rmsprop.RMSprop.like("torch")
        self.values: tuple[Any, ...] = ()
        self.set(settings(group, index), index)
        self.optimizer.build(self.arrays)

        # torch has a scalar tensor for each parameter; here they lie in one array.
        precise = torch.get_default_dtype() == torch.float64
        self.counts = np.zeros(len(self.params), np.float64 if precise else np.float32)
        columns = {"step": [self.counts[i : i + 1].reshape(()) for i in range(len(self.params))]}
        for slot, views in self.optimizer._views(writeable=True).items():
            columns[interchange.TORCH[slot]] = [
                view if axes is None else view.transpose(np.argsort(axes))
                for view, axes in zip(views, self.axes, strict=True)
            ]
        self.kinds = set(columns)
        self.tensors = [
            {kind: torch.from_numpy(arrays[i]) for kind, arrays in columns.items()}
            for i in range(len(self.params))
        ]
        self.entered = [bool(state.get(p)) for p in self.params]
        for i, p in enumerate(self.params):
            if self.entered[i]:
                self.take(state[p], i, name(group, index, i))

    def take(self, entry: dict[str, Any], i: int, where: str) -> None:
        """Copy a parameter's state, what is missing stays 0, and put our tensors in its place."""
        for kind, tensor in self.tensors[i].items():
            if kind in entry:
                found = torch.as_tensor(entry[kind]).detach()
                if found.shape != tensor.shape:
                    raise ValueError(
                        f"the {kind} of {where} has shape {tuple(found.shape)}, but must have "
                        f"{tuple(tensor.shape)}"
                    )
                tensor.copy_(found)
        entry.update(self.tensors[i])

    def fits(self, group: Group, index: int, state: State) -> bool:
        """Whether parameters and state are still those of this binding; arrays may have moved."""
        params = group["params"]
        if len(params) != len(self.params) or not all(map(operator.is_, params, self.params)):
            return False
        if (group["momentum"] > 0 and "momentum_buffer" not in self.kinds) or (
            group["centered"] and "grad_avg" not in self.kinds
        ):
            return False
        for i, p in enumerate(params):
            if (p.data_ptr(), p.stride()) != self.places[i] and not self.moved(group, index, i):
                return False
            entry = state.get(p)
            if self.entered[i]:
                if entry is None:
                    return False
                for kind, tensor in self.tensors[i].items():
                    if entry.get(kind) is not tensor:
                        return False
            elif entry:
                return False
        return True

    def moved(self, group: Group, index: int, i: int) -> bool:
        """Look where a parameter lies now; whether it is still of the same form."""
        p, before = self.params[i], self.arrays[i]
        check(p, name(group, index, i))
        array = p.detach().numpy()
        axes = memory_order(array)
        self.arrays[i] = ordered(array, axes)
        self.places[i] = (p.data_ptr(), p.stride())
        same = axes == self.axes[i] and array.dtype == before.dtype
        return same and self.arrays[i].shape == before.shape

    def set(self, values: tuple[Any, ...], index: int) -> None:
        """Give our optimizer the group's arguments, where they have changed."""
        if values != self.values:
            self.values = ()  # so that a refusal does not leave half of them for good
            assign(self.optimizer, values, index)
            self.values = values

    def gradients(self, group: Group, index: int) -> list[NDArray[Any] | None]:
        """The gradients as arrays, in the parameters' order in memory."""
        grads: list[NDArray[Any] | None] = []
        try:
            for p, axes in zip(self.params, self.axes, strict=True):
                g = p.grad
                grads.append(None if g is None else ordered(g.numpy(force=True), axes))
        except (TypeError, RuntimeError):
            i = len(grads)
            check(self.params[i].grad, f"the gradient of {name(group, index, i)}")
            raise
        return grads

    def step(self, grads: list[NDArray[Any] | None], index: int, state: State) -> None:
        """One step of those parameters that have a gradient."""
        active = [i for i, g in enumerate(grads) if g is not None]
        if not active:
            return
        try:
            self.optimizer.step(self.arrays, grads)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{index}]: {error}") from None
        self.counts[active] += 1
        for i in active:
            if not self.entered[i]:
                state.setdefault(self.params[i], {}).update(self.tensors[i])
                self.entered[i] = True
        # autograd then sees that a value it has saved for a backward pass is no longer that.
        torch.autograd.graph.increment_version([self.params[i] for i in active])


def name(group: Group, index: int, i: int) -> str:
    """How errors call a parameter."""
    called = f" ({group['param_names'][i]!r})" if "param_names" in group else ""
    return f"param_groups[{index}]['params'][{i}]{called}"


def check(tensor: Any, name: str) -> None:
    """Refuse what has no memory that a kernel can update."""
    if tensor.device.type != "cpu":
        raise TypeError(f"{name} is on {tensor.device}, but steps are done on the CPU; move it")
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is sparse ({tensor.layout}), but only dense tensors can be updated; an "
            "embedding makes dense gradients with sparse=False"
        )
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, but only float32 and float64 tensors can be "
            "updated; convert the model with .float()"
        )


def settings(group: Group, index: int) -> tuple[Any, ...]:
    """The values of ARGUMENTS; refuses what can't be done."""
    for flag, why in REFUSED.items():
        if group[flag]:
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


def memory_order(array: NDArray[Any]) -> tuple[int, ...] | None:
    """The axes from the slowest to the fastest in memory, where that is dense but not C's order.

    In this order even a channels_last weight is contiguous, and need not be staged.
    """
    if array.flags.c_contiguous:
        return None
    axes = tuple(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))
    return axes if array.transpose(axes).flags.c_contiguous else None


def ordered(array: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[Any]:
    """The array with its axes in this order."""
    return array if axes is None else array.transpose(axes)

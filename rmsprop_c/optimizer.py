"""What of an optimizer is not arithmetic: arguments, config, losses, weights, constraints."""

import copyreg
import numbers
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _core, constraints as constraints_module, reference

Model = Any  # list or tuple of arrays, dict of arrays, or one array
Own = TypeVar("Own", bound="Optimizer")


class Hyperparameter(NamedTuple):
    """A row of the one table of hyper-parameters."""

    name: str
    default: float | None
    high: float  # the largest value allowed
    doc: str


# The one table: properties, configs and defaults come from it. The order is that of the C struct
# Settings; a default of None makes the argument optional, and values <= 0 switch it off.
HYPERPARAMETERS = (
    Hyperparameter("lr", 0.001, float("inf"), "float: the learning rate, before decay."),
    Hyperparameter("rho", 0.9, 1.0, "float: how much of the accumulator is kept at a step."),
    Hyperparameter("epsilon", 1e-8, float("inf"), "float: added to the root of the accumulator."),
    Hyperparameter("decay", 0.0, float("inf"), "float: lr is divided by 1 + decay * iterations."),
    Hyperparameter("clipnorm", None, float("inf"), "float or None: largest global norm."),
    Hyperparameter("clipvalue", None, float("inf"), "float or None: largest absolute gradient."),
)
DEFAULT: dict[str, Any] = {row.name: row.default for row in HYPERPARAMETERS}


def checked(row: Hyperparameter, value: Any) -> float:
    """The value as a C double (None as NaN), or an error that names the argument and the value."""
    if value is None and row.default is None:
        return float("nan")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{row.name} is {value!r}; it must be a real number")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not np.isfinite(number):
        raise ValueError(f"{row.name} is {value!r}; it must be finite")
    if row.default is not None and not 0 <= number <= row.high:
        bound = "at least 0" if row.high == float("inf") else f"in [0, {row.high:g}]"
        raise ValueError(f"{row.name} is {value!r}; it must be {bound}")
    return number


def _property(index: int, row: Hyperparameter) -> property:
    def get_value(self: "Optimizer") -> float | None:
        value = self._get_setting(index)
        return None if value != value else value

    def set_value(self: "Optimizer", value: float | None) -> None:
        self._set_setting(index, checked(row, value))

    return property(get_value, set_value, doc=row.doc)


class Optimizer(_core.Core):
    """Base class of optimizers, after ``tf.contrib.keras.optimizers.Optimizer``: use `RMSprop`.

    Parameters
    ----------
    clipnorm : float, optional
        Gradients are scaled so that the L2 norm over all of them together is at most this.
    clipvalue : float, optional
        Elements of gradients are clipped to [-clipvalue, clipvalue], after clipnorm.

    Raises
    ------
    TypeError
        For any other keyword.
    """

    last_loss: Any = None
    """The value of the loss at the latest `get_gradients` or `get_updates`."""

    lr: float
    rho: float
    epsilon: float
    decay: float
    clipnorm: float | None
    clipvalue: float | None

    def __new__(cls: type[Own], *args: Any, **kwargs: Any) -> Own:
        self = super().__new__(cls)
        for row in HYPERPARAMETERS:  # also for a subclass that does not call __init__
            setattr(self, row.name, row.default)
        return self

    def __init__(self, **kwargs: Any) -> None:
        if type(self) is Optimizer:
            raise TypeError("Optimizer is the base class; use RMSprop")
        for name in kwargs:
            if name not in ("clipnorm", "clipvalue"):
                raise TypeError(f"Unexpected keyword argument passed to optimizer: {name}")
        for name, value in kwargs.items():
            setattr(self, name, value)

    @property
    def learning_rate(self) -> float:
        """float: another name for lr."""
        return self.lr

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.lr = value

    def get_config(self) -> dict[str, Any]:
        """The arguments as plain JSON types; with the keys of Keras 2.0, which accepts them."""
        config: dict[str, Any] = {}
        for name in ("clipnorm", "clipvalue"):
            if getattr(self, name) is not None:
                config[name] = getattr(self, name)
        return config

    @classmethod
    def from_config(cls: type[Own], config: Mapping[str, Any]) -> Own:
        """Make an optimizer from what `get_config` (or Keras 2.0's) returned; it has no state."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, NDArray[Any]]]) -> None:
        """One step from pairs of a gradient and its parameter, as in Keras.

        Parameters
        ----------
        grads_and_vars : iterable of (ndarray or None, ndarray)
            ``zip(grads, params)``. The parameters are changed in place; see `step`.
        """
        if not isinstance(grads_and_vars, Iterable):
            raise TypeError(
                f"grads_and_vars is of type {type(grads_and_vars).__name__}; pass zip(grads, "
                "params)"
            )
        pairs = list(grads_and_vars)
        for i, pair in enumerate(pairs):
            if not isinstance(pair, (list, tuple)):
                raise TypeError(
                    f"grads_and_vars[{i}] is of type {type(pair).__name__}, not a pair of a "
                    "gradient and a parameter"
                )
            if len(pair) != 2:
                raise ValueError(
                    f"grads_and_vars[{i}] has {len(pair)} entries, not a gradient and a parameter"
                )
        self.step([param for _, param in pairs], [grad for grad, _ in pairs])

    def get_gradients(self, loss: Callable[[Any], Any], params: Model) -> Any:
        """The gradients of a loss, clipped by clipnorm and clipvalue.

        Parameters
        ----------
        loss : callable
            It is given `params` and returns either ``(value, grads)``, with gradients in the form
            of `params`, or a scalar computed with ``autograd.numpy``, which the autograd library
            (extra ``autograd``) then differentiates. Which of the two it is, is remembered.
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            The parameters. Not changed.

        Returns
        -------
        list, dict or ndarray
            The gradients, in the form of `params`. Where clipping is on, they are new arrays.
            `last_loss` holds the value.

        Raises
        ------
        ImportError
            For a scalar loss where autograd is not installed.

        Notes
        -----
        `step` and `get_updates` clip by themselves; these gradients are for other code.
        """
        value, grads = self._evaluate(loss, params)
        self.last_loss = value
        return self._clipped(grads, params)

    def get_updates(
        self, params: Model, constraints: Any, loss: Callable[[Any], Any]
    ) -> list[NDArray[Any]]:
        """One whole step: gradients of the loss, update, constraints. Changes `params` in place.

        Parameters
        ----------
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            The parameters; see `step`.
        constraints : None, list, or dict
            A list has a constraint or None for each parameter, a dict those of some, by index (by
            key where `params` is a dict). A constraint is a callable that returns the new value
            (or None if it changed its argument), or anything `rmsprop_c.constraints.get` takes.
            Constraints run after the update, one parameter after the other: an exception in one
            leaves the update and the earlier ones in place.
        loss : callable
            As for `get_gradients`.

        Returns
        -------
        list of ndarray
            What was updated, in Keras's order: the accumulator (a read-only view) and the parameter
            of each position in turn, behind the iterations if decay > 0.
        """
        chosen = _chosen_constraints(constraints, params)
        value, grads = self._evaluate(loss, params)
        self.step(params, grads)
        self.last_loss = value
        updates: list[NDArray[Any]] = []
        if self.decay > 0:
            updates.append(np.array(self.iterations, np.int64))
        weights = self.weights
        for name, accumulator in zip(self._keys() or range(len(weights)), weights, strict=True):
            param = params if isinstance(params, np.ndarray) else params[name]
            constraint = chosen.get(name)
            if constraint is not None:
                constrained = constraint(param)
                if constrained is not None:
                    param[...] = constrained
            updates += [accumulator, param]
        return updates

    @property
    def weights(self) -> list[NDArray[Any]]:
        """List of ndarray: read-only views of the accumulators. Assigning is `set_weights`."""
        return self._views()

    @weights.setter
    def weights(self, value: list[Any]) -> None:
        self.set_weights(value)

    def get_weights(self) -> list[NDArray[Any]]:
        """Copies of the accumulators, in the order of the parameters; [] before the first step."""
        return self._snapshot()[1] or []

    def set_weights(self, weights: Iterable[Any]) -> None:
        """Set the accumulators. Before the first step call `build(params)`.

        Parameters
        ----------
        weights : sequence of array_like
            One for each parameter, of its shape, in the order of `get_weights`. As in Keras 2.3 the
            number of iterations may stand before them.

        Raises
        ------
        ValueError, TypeError
            If the number of weights or any shape does not fit, or they are not real numbers.
            Nothing is set then.
        """
        given = list(weights)
        own = self.weights
        iterations = None
        if own and len(given) == len(own) + 1 and np.shape(given[0]) == ():
            iterations = _core.checked_iterations(given.pop(0), "weights[0]")
        if len(given) != len(own):
            raise ValueError(
                f"Length of the specified weight list ({len(given)}) does not match the number of "
                f"weights of the optimizer ({len(own)})"
                + ("" if own else "; call build(params) or step first")
            )
        arrays = [np.array(weight) for weight in given]  # they may be views of these very weights
        for i, (mine, array) in enumerate(zip(own, arrays, strict=True)):
            if mine.shape != array.shape:
                raise ValueError(
                    f"Optimizer weight shape {mine.shape} not compatible with provided weight "
                    f"shape {array.shape} (weights[{i}])"
                )
            if array.dtype.kind not in "fiu":
                raise TypeError(f"weights[{i}] has dtype {array.dtype}; it must be real numbers")
        arrays = [array.astype(mine.dtype) for mine, array in zip(own, arrays, strict=True)]
        self._assign(arrays, iterations)

    def __getstate__(self) -> dict[str, Any]:
        keys, accumulators, iterations = self._snapshot()
        settings = [self._get_setting(i) for i in range(len(HYPERPARAMETERS))]
        return {
            "settings": dict(zip(DEFAULT, settings, strict=True)),
            "keys": keys,
            "accumulators": accumulators,
            "iterations": iterations,
            "attributes": self.__dict__.copy(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for i, name in enumerate(DEFAULT):
            self._set_setting(i, state["settings"][name])
        self._restore(state["keys"], state["accumulators"], state["iterations"])
        self.__dict__.update(state["attributes"])

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def _evaluate(self, loss: Callable[[Any], Any], params: Model) -> tuple[Any, Any]:
        """Value and unclipped gradients of a loss of either kind."""
        if not callable(loss):
            raise TypeError(
                f"loss is of type {type(loss).__name__}; pass a callable of the parameters that "
                "returns (value, grads), or a scalar computed with autograd.numpy"
            )
        if not _known_scalar(loss):
            result = loss(params)
            if isinstance(result, tuple) and len(result) == 2:
                return result[0], result[1]
            scalar = isinstance(result, numbers.Real) or getattr(result, "shape", None) == ()
            if not scalar:
                raise TypeError(
                    f"loss returned {type(result).__name__}; it must return (value, grads) or a "
                    "scalar"
                )
            _remember_scalar(loss)
        try:
            from autograd import value_and_grad
        except ImportError:
            raise ImportError(
                "loss returned a scalar, and differentiating it needs autograd: "
                "pip install 'rmsprop_c[autograd]', or return (value, grads)"
            ) from None
        value, grads = value_and_grad(loss)(params)
        # A float64 scalar in the loss promotes gradients of float32 parameters.
        pairs = zip(_arrays(params), _arrays(grads), strict=True)
        return value, _like(params, [np.asarray(g).astype(p.dtype, copy=False) for p, g in pairs])

    def _clipped(self, grads: Any, params: Model) -> Any:
        """Gradients as `step` clips them, in new arrays; as they are where clipping is off."""
        if (self.clipnorm or 0) <= 0 and (self.clipvalue or 0) <= 0:
            return grads
        arrays = [grads[key] for key in params] if isinstance(params, dict) else _arrays(grads)
        arrays = [None if g is None else np.asarray(g) for g in arrays]
        like = _arrays(params)
        if len(arrays) != len(like):
            raise ValueError(
                f"loss returned {len(arrays)} gradients, but params has {len(like)} entries"
            )
        return _like(params, reference.clip(arrays, like, self.clipnorm, self.clipvalue))


def _arrays(model: Model) -> list[Any]:
    """The arrays of a model, in its order."""
    if isinstance(model, (np.ndarray, np.generic)):
        return [model]
    return list(model.values()) if isinstance(model, dict) else list(model)


def _like(model: Model, arrays: list[Any]) -> Any:
    """Arrays in the form of a model."""
    if isinstance(model, np.ndarray):
        return arrays[0]
    return dict(zip(model, arrays, strict=True)) if isinstance(model, dict) else arrays


def _chosen_constraints(constraints: Any, params: Model) -> dict[Any, Any]:
    """Constraints by index or key, checked before anything changes."""
    if not isinstance(params, (list, tuple, dict, np.ndarray)):
        raise TypeError(
            f"params is of type {type(params).__name__}; pass a list or tuple of arrays, a dict of "
            "arrays, or one array"
        )
    names: list[Any] = (
        list(params) if isinstance(params, dict) else list(range(len(_arrays(params))))
    )
    if constraints is None:
        return {}
    if isinstance(constraints, Mapping):
        for key in constraints:
            if key not in names:
                raise ValueError(f"constraints has the key {key!r}, but params has {names!r}")
        chosen = dict(constraints)
    elif isinstance(constraints, (list, tuple)):
        if len(constraints) != len(names):
            raise ValueError(
                f"constraints has {len(constraints)} entries, but params has {len(names)}; "
                "pass None where there is no constraint, or a dict"
            )
        chosen = dict(zip(names, constraints, strict=True))
    else:
        raise TypeError(
            f"constraints is of type {type(constraints).__name__}; pass None, a list with an "
            "entry for each parameter, or a dict by index or key"
        )
    found = {}
    for name, constraint in chosen.items():
        try:
            found[name] = constraints_module.get(constraint)
        except ValueError as error:
            raise ValueError(f"constraints[{name!r}]: {error}") from None
    return found


for _index, _row in enumerate(HYPERPARAMETERS):
    setattr(Optimizer, _row.name, _property(_index, _row))


# Losses that returned a scalar: a function, or an object and the names of its methods.
_scalar_losses: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()


def _key(loss: Any) -> tuple[Any, str]:
    """What stays the same of a loss between calls: a bound method is a new object each time."""
    if isinstance(loss, types.MethodType):
        return loss.__self__, loss.__name__
    return loss, ""


def _known_scalar(loss: Any) -> bool:
    owner, name = _key(loss)
    try:
        return name in _scalar_losses.get(owner, ())
    except TypeError:  # neither hashable nor weakly referable
        return False


def _remember_scalar(loss: Any) -> None:
    owner, name = _key(loss)
    try:
        _scalar_losses.setdefault(owner, set()).add(name)
    except TypeError:
        return

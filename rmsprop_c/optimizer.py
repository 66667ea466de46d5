"""What of an optimizer is not arithmetic: arguments, config, losses, weights, constraints."""

from __future__ import annotations  # NDArray's module takes a millisecond of the import

import contextlib
import copyreg
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from . import (
    _core,
    arrays,
    constraints as constraints_module,
    gradients,
    reference,
    state as states,
)
from .hyperparameters import (
    DEFAULT,
    KERAS,
    LIMITS,
    NUMBERS,
    OPTIONS,
    ROUNDED_TO,
    ROWS,
    Hyperparameter,
    ZeroGrad,
    check_float32,
    checked,
    checked_factors,
    checked_names,
    shown,
)
from .model import Model, arrays_of, like, names_of, set_back, write

if TYPE_CHECKING:
    from numpy.typing import NDArray

# checkpoint, interchange and schedules are imported where they are first needed: together they
# would take longer than all the rest. None is on a step's way: a process forked while another
# thread holds an import's lock would wait there for ever.

Own = TypeVar("Own", bound="Optimizer")

if _core.settings() != NUMBERS:
    raise ImportError("rmsprop_c._core was built from other sources than these; build it again")


def _property(index: int, row: Hyperparameter) -> property:
    def get_value(self: Optimizer) -> Any:
        value = shown(row, self._get_setting(index))
        return ZeroGrad(value) if row.name == "zero_grad" else value

    def set_value(self: Optimizer, value: Any, called: str = row.name) -> None:
        number = checked(row, value)
        if self._framework is not None and called == row.name:
            from . import presets

            if presets.taken(self._framework, called) and shown(row, number) != get_value(self):
                raise AttributeError(self._why_not(called))
        self._refuse_conflict(row.name, number)
        self._set_setting(index, number)

    return property(get_value, set_value, doc=row.doc)


if TYPE_CHECKING:
    _or_in_place = classmethod
else:

    class _or_in_place(classmethod):  # noqa: N801  # it is used as classmethod is
        """A class method that makes an instance; called of an instance, that takes its place."""

        def __get__(self, instance, owner=None):
            make = super().__get__(instance, owner)
            if instance is None:
                return make

            @functools.wraps(make)
            def in_place(*args, **kwargs):
                made = make(*args, **kwargs)
                instance._take(made)
                vars(instance).update({"_framework": None, **vars(made)})
                return instance

            return in_place


class Optimizer(_core.Core):
    """Base class of optimizers, after ``tf.contrib.keras.optimizers.Optimizer``: use `RMSprop`.

    Keyword arguments are those of `RMSprop`, apart from its first four.

    Raises
    ------
    TypeError
        For any other keyword.
    """

    last_loss: Any = None
    """The value of the loss at the latest `get_gradients` or `get_updates`."""

    _framework: str | None = None  # whose preset `RMSprop.like` took

    rho: float
    epsilon: float
    decay: float
    clipnorm: float | None
    clipvalue: float | None
    parameter_clipnorm: float | None
    momentum: float
    nesterov: bool
    centered: bool
    epsilon_in_sqrt: bool
    initial_accumulator_value: float
    lr_in_momentum: bool
    bias_correction: bool
    maximize: bool
    weight_decay: float
    decoupled_weight_decay: bool
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    gradient_accumulation_steps: int | None
    nonfinite: str
    flush_subnormals: bool
    zero_grad: bool

    def __new__(cls: type[Own], *args: Any, **kwargs: Any) -> Own:
        self = super().__new__(cls)
        for index, name in enumerate(NUMBERS):  # also for a subclass that does not call __init__
            self._set_setting(index, checked(ROWS[name], DEFAULT[name]))
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        load = vars(cls).get("load")
        if type(load) is classmethod:  # it loads in place, too
            cls.load = _or_in_place(load.__func__)  # type: ignore[method-assign, assignment]

    def __init__(self, **kwargs: Any) -> None:
        if type(self) is Optimizer:
            raise TypeError("Optimizer is the base class; use RMSprop")
        for name in kwargs:
            if name not in OPTIONS:
                raise TypeError(f"Unexpected keyword argument passed to optimizer: {name}")
        for name, value in kwargs.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        # A hyper-parameter under another name would do nothing. Subclasses have their own names.
        if not hasattr(type(self), name) and type(self).__module__.startswith(f"{__package__}."):
            from . import presets

            own = presets.translation(self._framework, name)
            if own is not None and presets.taken(self._framework, own):
                getattr(type(self), own).fset(self, value, name)
                return
            why = self._why_not(name)
            if why is not None:
                raise AttributeError(why)
        super().__setattr__(name, value)

    def _why_not(self, name: str) -> str | None:
        """Why a name can't be assigned, if it seems to mean a hyper-parameter."""
        from . import presets

        known = (*DEFAULT, "learning_rate")
        return presets.explain(type(self).__name__, self._framework, name, known)

    def _refuse_conflict(self, name: str, number: float) -> None:
        """Refuse a value that can't go together with what is set."""
        if name == "decay" and number > 0 and self._get_objects()[0] is not None:
            raise ValueError(
                f"decay is {number!r}, but lr is a schedule, which says by itself how it decays; "
                "use one of the two"
            )
        for one, other in (("clipnorm", "parameter_clipnorm"), ("parameter_clipnorm", "clipnorm")):
            if name == one and number > 0 and (getattr(self, other) or 0) > 0:
                raise ValueError(
                    f"{one} is {number!r}, but {other} is set: gradients are clipped by the norm "
                    "of all or of each; set one of them to None"
                )
        if (name == "rho" and number == 1 and self.bias_correction) or (
            name == "bias_correction" and number and self.rho == 1
        ):
            raise ValueError("bias_correction divides by 1 - rho**t, so rho can't be 1")

    @property
    def lr(self) -> float:
        """float: the learning rate at this point. Assign a number, or a callable.

        A callable is given the number of calls of `step` so far (without skipped ones) and returns
        the learning rate: a schedule of `rmsprop_c.schedules`, or any other.
        """
        schedule = self._get_objects()[0]
        if schedule is not None:
            return self._lr_at(schedule, self._counts()[1])
        return self._get_setting(0)

    @lr.setter
    def lr(self, value: float | Callable[[int], float]) -> None:
        if isinstance(value, type):
            raise TypeError(f"lr is {value!r}, a class; pass an instance of it")
        if callable(value):
            if self.decay > 0:
                raise ValueError(
                    f"lr is a schedule, which says by itself how it decays, but decay is "
                    f"{self.decay!r}; use one of the two"
                )
            self._set_lr(value, 0.0)
        else:
            self._set_lr(None, checked(ROWS["lr"], value))

    def _check_float32(self, names: Iterable[str] = ROUNDED_TO) -> None:
        check_float32({name: self._get_setting(i) for i, name in enumerate(NUMBERS)}, names)

    @staticmethod
    def _lr_at(schedule: Callable[[int], float], call: int) -> float:
        """What the schedule says, or an error that names it and the call."""
        value: Any = schedule(call)
        try:
            if hasattr(value, "__array__") and np.ndim(value) == 0:  # of any framework
                return checked(ROWS["lr"], np.asarray(value).item())
            return checked(ROWS["lr"], value)
        except (TypeError, ValueError):
            raise ValueError(
                f"lr({call}) is {value!r}; a schedule must return a finite number that is at "
                "least 0"
            ) from None

    @staticmethod
    def _by_position(
        names: list[Any], is_list: bool, lr_scale: Any, excluded: tuple[Any, ...]
    ) -> tuple[list[float], list[bool]]:
        """The factor of lr of each parameter, and whether it takes part in weight decay."""
        factors: dict[Any, float] = {}
        if lr_scale is not None:
            if isinstance(lr_scale, dict) == is_list:
                raise TypeError(
                    f"lr_scale is a {type(lr_scale).__name__}, but the parameters have "
                    + ("no keys; pass a sequence of factors" if is_list else "keys; pass a dict")
                )
            if is_list and len(lr_scale) != len(names):
                there = "is 1 parameter" if len(names) == 1 else f"are {len(names)} parameters"
                raise ValueError(f"lr_scale has {len(lr_scale)} factors, but there {there}")
            factors = dict(enumerate(lr_scale)) if is_list else lr_scale
        chosen = {"lr_scale": factors, "exclude_from_weight_decay": excluded}
        for which, entries in chosen.items():
            for name in entries:
                if name not in names:
                    raise ValueError(f"{which} has {name!r}, but the parameters are {names}")
        return [factors.get(name, 1.0) for name in names], [name not in excluded for name in names]

    @property
    def lr_scale(self) -> Any:
        """Sequence, dict or None: a factor of lr for each parameter, or by key."""
        value = self._get_objects()[1]
        return dict(value) if isinstance(value, dict) else value

    @lr_scale.setter
    def lr_scale(self, value: Any) -> None:
        self._set_lr_scale(checked_factors(value))

    @property
    def exclude_from_weight_decay(self) -> tuple[Any, ...]:
        """Tuple: indices or keys of parameters without weight decay."""
        return self._get_objects()[2]

    @exclude_from_weight_decay.setter
    def exclude_from_weight_decay(self, value: Any) -> None:
        self._set_excluded(checked_names(value))

    @property
    def learning_rate(self) -> Any:
        """Another name for lr."""
        return self.lr

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.lr = value

    def get_config(self) -> dict[str, Any]:
        """The arguments as plain JSON types.

        Options that are at their defaults are left out: a plain optimizer has the keys of Keras
        2.0, which accepts them. Keys in lr_scale and exclude_from_weight_decay survive JSON if they
        are strings (and in the latter numbers).

        Raises
        ------
        TypeError
            If lr is a callable without ``get_config``.
        """
        config = self._arguments(OPTIONS)
        for name in ("lr_scale", "exclude_from_weight_decay"):
            if isinstance(config.get(name), tuple):
                config[name] = list(config[name])
        return config

    @classmethod
    def from_config(
        cls: type[Own],
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Own:
        """Make an optimizer from what `get_config` (or Keras 2.0's) returned; it has no state.

        Parameters
        ----------
        config : mapping
            Not changed. A key that is no argument is refused by name.
        custom_objects : mapping, optional
            Classes of schedules by name, beside those of `rmsprop_c.schedules`.
        """
        arguments = dict(config)
        try:
            for name in ("lr", "learning_rate"):
                if isinstance(arguments.get(name), Mapping):
                    from . import schedules

                    arguments[name] = schedules.deserialize(arguments[name], custom_objects)
            try:
                return cls(**arguments)
            except TypeError as error:
                from . import presets

                origin = presets.origin(arguments)
                if origin is None:
                    raise
                raise TypeError(
                    f"{error}; the config is of {origin}'s RMSprop: "
                    f"use RMSprop.like({origin!r}, **config)"
                ) from None
        except RecursionError as error:  # of repr, for the message
            raise ValueError("config is nested too deeply") from error

    def _keras_arguments(self) -> dict[str, Any]:
        """Keras 2.0's arguments that have no default of None, with a schedule itself as lr."""
        schedule = self._get_objects()[0]
        lr = self._get_setting(0) if schedule is None else schedule
        return {"lr": lr} | {name: getattr(self, name) for name in KERAS[1:]}

    def _arguments(self, names: Iterable[str]) -> dict[str, Any]:
        """Those arguments that are not at their default."""
        values = {name: getattr(self, name) for name in names}
        for name in values.keys() & {"zero_grad"}:
            values[name] = bool(values[name])
        return {name: value for name, value in values.items() if value != DEFAULT[name]}

    def __repr__(self) -> str:
        keras = self._keras_arguments()  # lr is read once: another thread may assign it
        try:
            values = self.get_config()
        except TypeError:  # lr is a callable that no config can hold
            values = keras | self._arguments(OPTIONS)
        values["lr"] = keras["lr"]
        arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
        return f"{type(self).__name__}({arguments})"

    @contextlib.contextmanager
    def averaged(self, params: Model) -> Iterator[None]:
        """Within ``with opt.averaged(params):`` the parameters hold their moving averages.

        Parameters
        ----------
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            As for `step`. Changed in place, and back to the same bits at the end, whatever has been
            written to them meanwhile.

        Raises
        ------
        TypeError, ValueError
            If use_ema is off, or `params` do not fit or are read-only; nothing has changed then. At
            the end, by name, for arrays that can't be written any more; all others are set back.
        RuntimeError
            For a step in between, or another `averaged`.
        """
        names, arrays, averages = self._averages(params)
        saved: list[NDArray[Any]] = []
        self._suspend(True)
        try:
            saved += [array.copy() for array in arrays]
            write(arrays, averages)
            yield
        finally:
            self._suspend(False)
            set_back(names, arrays, saved)

    def finalize_variable_values(self, params: Model) -> None:
        """Set parameters to their moving averages for good, as in Keras 3.

        Parameters
        ----------
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            As for `step`. Changed in place.
        """
        _, arrays, averages = self._averages(params)
        write(arrays, averages)

    def _averages(self, params: Model) -> tuple[list[str], list[NDArray[Any]], list[NDArray[Any]]]:
        """What errors call the parameters, these, and their averages, by position."""
        if not self.use_ema:
            raise ValueError("there are no averages: make the optimizer with use_ema=True")
        if self._suspended:
            raise RuntimeError("the parameters are their averages already: inside averaged()")
        if isinstance(params, (list, tuple, dict, np.ndarray)):  # else build raises
            for name, array in zip(names_of(params), arrays_of(params), strict=True):
                if isinstance(array, np.ndarray) and not array.flags.writeable:
                    raise ValueError(f"{name} is read-only; pass a writeable array")
        self.build(params)
        keys = self._keys()
        if keys is not None:
            params = {key: params[key] for key in keys}
        return names_of(params), arrays_of(params), self._views()["moving_average"]

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
        value, grads = gradients.evaluate(loss, params)
        self.last_loss = value
        return self._clipped(grads, params)

    @overload
    def get_updates(
        self, params: Model, constraints: Any, loss: Callable[[Any], Any]
    ) -> list[NDArray[Any]]: ...

    @overload
    def get_updates(
        self, loss: Callable[[Any], Any], params: Model, constraints: Any = None
    ) -> list[NDArray[Any]]: ...

    def get_updates(self, *args: Any, **kwargs: Any) -> list[NDArray[Any]]:
        """One whole step: gradients of the loss, update, constraints. Changes `params` in place.

        The order is that of Keras 2.0, ``get_updates(params, constraints, loss)``, or that of its
        later versions, ``get_updates(loss, params)``; all can be given by keyword.

        Parameters
        ----------
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            The parameters; see `step`.
        constraints : None, list, or dict
            A list has a constraint or None for each parameter, a dict those of some, by index (by
            key where `params` is a dict). A constraint is a callable that returns the new value,
            of the same shape (or None if it changed its argument), or anything that
            `rmsprop_c.constraints.get` takes. Constraints run after an update, and not after a call
            that makes none (gradient_accumulation_steps, nonfinite), one parameter after the other:
            an exception in one leaves the update and the earlier ones in place.
        loss : callable
            As for `get_gradients`; it is evaluated once. A subclass's own `get_gradients` is asked
            for the gradients.

        Returns
        -------
        list of ndarray
            What was updated, in Keras's order: the accumulator and any further state (read-only
            views) and the parameter of each position in turn, behind the iterations if decay > 0.
            [] where ``nonfinite="skip"`` has left the step out.
        """
        params, constraints, loss = _update_arguments(args, kwargs)
        chosen = constraints_module.chosen(constraints, params)
        if getattr(self.get_gradients, "__func__", None) is Optimizer.get_gradients:
            value, grads = gradients.evaluate(loss, params)  # step clips them
        else:
            grads = self.get_gradients(loss, params)
            value = self.last_loss
        before = self._counts()
        self.step(params, grads)
        self.last_loss = value
        updates_made, calls, skipped = (
            now - then for now, then in zip(self._counts(), before, strict=True)
        )
        if skipped:
            return []
        if calls and not updates_made:  # a subclass's own step may count nothing
            chosen = {}
        updates: list[NDArray[Any]] = []
        if self.decay > 0:
            updates.append(np.array(self.iterations, np.int64))
        kept = self._views().values()  # none where a subclass's own step keeps its own
        names = self._keys() or (
            params if isinstance(params, dict) else range(len(arrays_of(params)))
        )
        for i, name in enumerate(names):
            param = params if isinstance(params, np.ndarray) else params[name]
            if chosen.get(name) is not None:
                constraints_module.constrain(chosen[name], name, param)
            updates += [*(arrays[i] for arrays in kept), param]
        return updates

    @property
    def weights(self) -> list[NDArray[Any]]:
        """List of ndarray: read-only views of what `get_weights` copies; assign: `set_weights`."""
        return [view for views in self._views().values() for view in views]

    @weights.setter
    def weights(self, value: list[Any]) -> None:
        self.set_weights(value)

    def get_weights(self) -> list[NDArray[Any]]:
        """Copies of the accumulators, in the order of the parameters; [] before the first step.

        Behind them, each for all parameters, what options keep: momentums, average gradients and
        moving averages of the parameters. What options that are off have left is not among them,
        nor is the sum of the gradients in a cycle of gradient_accumulation_steps.
        """
        slots = self._snapshot(weights=True)["slots"]
        return [array for arrays in slots.values() for array in arrays]

    def set_weights(self, weights: Iterable[Any]) -> None:
        """Set the accumulators. Before the first step call `build(params)`.

        Parameters
        ----------
        weights : sequence of array_like
            Of the shapes and in the order of `get_weights`. As in Keras 2.3 the number of
            iterations may stand before them. A new cycle of gradient_accumulation_steps begins:
            the one under way is not among them (`save` and pickle keep it).

        Raises
        ------
        ValueError, TypeError
            If the number of weights or any shape does not fit, or they are not real numbers.
            Nothing is set then.
        """
        given = list(weights)
        slots = self._views()
        own = [view for views in slots.values() for view in views]
        iterations = None
        if own and len(given) == len(own) + 1 and np.shape(given[0]) == ():
            iterations = states.checked_count(given.pop(0), "weights[0]")
        if len(given) != len(own) or not slots:
            raise ValueError(
                f"Length of the specified weight list ({len(given)}) does not match the number of "
                f"weights of the optimizer ({len(own)})"
                + ("" if slots else "; call build(params) or step first")
            )
        found = [np.array(weight) for weight in given]  # they may be views of these very weights
        for i, (mine, array) in enumerate(zip(own, found, strict=True)):
            if mine.shape != array.shape:
                raise ValueError(
                    f"Optimizer weight shape {mine.shape} not compatible with provided weight "
                    f"shape {array.shape} (weights[{i}])"
                )
            arrays.check_real(array, f"weights[{i}]")
        rest = iter([x.astype(mine.dtype) for mine, x in zip(own, found, strict=True)])
        parted = {name: [next(rest) for _ in views] for name, views in slots.items()}
        self._assign(parted, iterations)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write arguments and state to a ``.npz`` file that `load` and `numpy.load` read.

        Parameters
        ----------
        path : str or PathLike
            Whatever happens, be it a full disk or a crash, it is the old file or the whole new one.

        Raises
        ------
        OSError
            If it can't be written; the old file is as it was.
        TypeError
            If lr is a callable without ``get_config``, or a key of the model no string or integer.

        Notes
        -----
        The run that `load` resumes continues with the same bits. Attributes that a subclass adds
        are not in the file; those of its ``get_config`` are.
        """
        from . import checkpoint

        checkpoint.save(self, path)

    @_or_in_place
    def load(
        cls: type[Own],
        path: str | os.PathLike[str],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Own:
        """Make an optimizer from a file that `save` wrote; of an optimizer, replace its own state.

        ``RMSprop.load(path)`` makes a new one. ``opt.load(path)`` gives `opt` the arguments and the
        state of the file, wholly or (where it raises) not at all, and returns `opt`.

        Parameters
        ----------
        path : str or PathLike
            The file. It may come from anywhere: no code in it is run, and nothing is allocated
            that is larger than the file.
        custom_objects : mapping, optional
            Classes of schedules by name; see `from_config`.

        Raises
        ------
        OSError
            If it can't be read.
        ValueError
            If it is anything but a checkpoint of this class, with the reason.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> from rmsprop_c import RMSprop
        >>> opt = RMSprop(lr=0.1)
        >>> opt.step([np.ones(2)], [np.ones(2)])
        >>> path = os.path.join(tempfile.mkdtemp(), "run.npz")
        >>> opt.save(path)
        >>> RMSprop.load(path).iterations
        1
        """
        from . import checkpoint

        return checkpoint.load(cls, path, custom_objects)

    def import_state(self, framework: str, state: Any) -> None:
        """Take over the state of another framework's RMSprop, to continue where it stands.

        Parameters
        ----------
        framework : {"torch", "keras3", "optax"}
            Whose state it is.
        state : dict, list or tree
            PyTorch's ``state_dict()``; the values of Keras 3's ``optimizer.variables``, in order;
            optax's state. The leaves are NumPy arrays, or anything that `numpy.asarray` takes. It
            holds no hyper-parameters for us: make the optimizer with `RMSprop.like`, and call
            `build` with the parameters first. In the middle of a cycle, which Keras's can be, a
            parameter whose sum is 0 counts as one that has had no gradient in it. Wrappers of optax
            are seen through where they keep no numbers on which the steps to come depend.

        Raises
        ------
        TypeError, ValueError
            If the state does not fit, is another optimizer's, or holds numbers beside RMSprop's on
            which the steps to come depend, such as those of ``optax.MultiSteps`` in the middle of a
            cycle; nothing is set then.
        """
        from . import interchange

        like = self._views().get("accumulator")
        if like is None:
            raise ValueError("there is no state to set yet; call build(params) first")
        self._refuse_other_momentum(framework)
        values, iterations, calls = interchange.read(
            framework,
            state,
            self._needed(),
            len(like),
            self.gradient_accumulation_steps or 1,
            self._keys(),
        )
        slots: dict[str, list[NDArray[Any]]] = {}
        for name, found in values.items():
            slots[name] = []
            for i, (mine, given) in enumerate(zip(like, found, strict=True)):
                if given is None:
                    slots[name].append(np.zeros_like(mine))
                    continue
                if given.shape != mine.shape:
                    raise ValueError(
                        f"{name}[{i}] of the state has shape {given.shape}, but the optimizer was "
                        f"built for {mine.shape}"
                    )
                arrays.check_real(given, f"{name}[{i}] of the state")
                slots[name].append(given.astype(mine.dtype))
        # No framework says which parameters have had a gradient in the cycle: where the sum is 0,
        # none.
        sums = slots.get("gradient_sum", [np.zeros(0)] * len(like))
        pending = [bool(x.any()) for x in sums]
        updates, total, skipped = self._counts()
        if iterations is not None:
            updates = iterations
            total = states.total_calls(iterations, self.gradient_accumulation_steps or 1, calls)
        states.check(
            {"iterations": updates, "calls": calls, "total_calls": total, "skipped_steps": skipped}
            | {
                "keys": self._keys(),
                "slots": {x: slots[x] for x in states.SLOTS if x in slots},
                "pending": pending,
            }
        )
        self._assign(slots, iterations, calls, pending)

    def export_state(
        self, framework: str, state: Any, leaf: Callable[[NDArray[Any]], Any] = np.asarray
    ) -> Any:
        """Our state in the form of another framework's, to continue there.

        Parameters
        ----------
        framework : {"torch", "keras3", "optax"}
            Whose form it is.
        state : dict, list or tree
            A state of that framework's optimizer (see `import_state`) as the form to fill in; not
            changed.
        leaf : callable
            Makes what the framework keeps of an array: ``torch.from_numpy`` for PyTorch.

        Returns
        -------
        dict, list or tree
            Like `state`, with copies of our arrays and counts, in the dtypes of those they replace.

        Raises
        ------
        TypeError, ValueError
            If there is no state yet; if `state` is of another form, of other options or shapes; and
            for what that framework can't continue: averages (torch, optax), a momentum with or
            without the learning rate in it, a cycle of gradient_accumulation_steps (Keras alone
            can, if it has not been shortened), a schedule whose calls Keras would count otherwise,
            a count that its integers can't hold.
        """
        from . import interchange

        snapshot = self._snapshot()
        slots: dict[str, list[NDArray[Any]]] = {}
        for name in self._needed():
            if name in snapshot["slots"]:
                slots[name] = snapshot["slots"][name]
            elif not snapshot["slots"]:
                raise ValueError("there is no state yet; call build(params) or step first")
            elif name == "moving_average":
                raise ValueError("there are no averages yet; call build(params) or step first")
            else:  # of an option that has been set since, as the next step makes it
                slots[name] = [np.zeros_like(x) for x in snapshot["slots"]["accumulator"]]
        self._refuse_other_momentum(framework)
        cycle = self.gradient_accumulation_steps or 1
        counted = snapshot["iterations"] * cycle + snapshot["calls"]
        scheduled = framework == "keras3" and self._get_objects()[0] is not None
        if scheduled and counted != snapshot["total_calls"]:
            raise ValueError(
                f"lr is a schedule that has come to call {snapshot['total_calls']}, but Keras "
                f"would go on at call {counted}; assign iterations to agree on one"
            )
        return interchange.write(
            framework,
            state,
            slots,
            snapshot["iterations"],
            snapshot["calls"],
            cycle,
            leaf,
            snapshot["keys"],
        )

    def _refuse_other_momentum(self, framework: str) -> None:
        """The numbers in a momentum mean something else where the learning rate is not in it."""
        if self.momentum > 0 and self.lr_in_momentum != (framework != "torch"):
            raise ValueError(
                f"lr_in_momentum is {self.lr_in_momentum}, but {framework}'s momentum is "
                f"{'with' if framework != 'torch' else 'without'} the learning rate"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {
            "settings": {name: self._get_setting(i) for i, name in enumerate(NUMBERS)},
            "objects": self._get_objects(),
            "state": self._snapshot(),
            "attributes": self.__dict__.copy(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        schedule, *others = state["objects"]
        values = {name: shown(ROWS[name], state["settings"][name]) for name in NUMBERS}
        values["lr"] = values["lr"] if schedule is None else schedule
        values |= zip(("lr_scale", "exclude_from_weight_decay"), others, strict=True)
        states.check(state["state"])
        for name, value in values.items():  # checked as where they are assigned
            vars(Optimizer)[name].fset(self, value)
        found = {name: self._get_setting(i) for i, name in enumerate(NUMBERS)}
        if any(repr(found[name]) != repr(state["settings"][name]) for name in NUMBERS[1:]):
            raise ValueError(f"settings are {state['settings']}, which no arguments make")
        self._restore(state["state"])
        self.__dict__.update(state["attributes"])

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Forget the accumulators, all other state and `last_loss`, and set `iterations` to 0."""
        super().reset()
        self.__dict__.pop("last_loss", None)

    def _clipped(self, grads: Any, params: Model) -> Any:
        """Gradients as `step` clips them, in new arrays; as they are where clipping is off."""
        limits = {name: getattr(self, name) for name in LIMITS}
        if all((limit or 0) <= 0 for limit in limits.values()):
            return grads
        if isinstance(grads, (list, tuple)) and len(grads) != len(params):
            raise ValueError(
                f"loss returned {len(grads)} gradients, but params has {len(params)} entries"
            )
        checked_params, checked_grads = arrays.gradients(params, grads)
        if any(p.dtype.char == "f" for p in checked_params):
            self._check_float32(LIMITS)
        return like(params, reference.clip(checked_grads, **limits))


for _index, _name in enumerate(NUMBERS):
    if _name != "lr":
        setattr(Optimizer, _name, _property(_index, ROWS[_name]))


def _update_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
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

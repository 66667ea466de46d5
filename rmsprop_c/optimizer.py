"""What of an optimizer is not arithmetic: arguments, config, losses, weights, constraints."""

from __future__ import annotations  # NDArray's module takes a millisecond of the import

import contextlib
import copyreg
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from . import _core, constraints as constraints_module, gradients, state as states
from .hyperparameters import (
    DEFAULT,
    KERAS,
    NUMBERS,
    OPTIONS,
    ROWS,
    Hyperparameter,
    ZeroGrad,
    check_conflict,
    checked,
    checked_factors,
    checked_names,
    scheduled_lr,
    shown,
)
from .model import Model, arrays_of, names_of, parted, set_back, write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from . import interchange

# checkpoint, interchange and schedules are imported where they are first needed: together they
# would take longer than all the rest. None is on a step's way: a process forked while another
# thread holds an import's lock would wait there indefinitely.

if set(_core.settings()) != set(NUMBERS):
    raise ImportError(
        f"RMSPROP_EACH_SETTING in src/step.h and HYPERPARAMETERS differ in "
        f"{sorted({*_core.settings()} ^ {*NUMBERS})}: rmsprop_c._core must be built again, after "
        "both have them"
    )


def _property(row: Hyperparameter) -> property:
    def get_value(self: Optimizer) -> Any:
        value = shown(row, self._get_setting(row.name))
        return ZeroGrad(value) if row.name == "zero_grad" else value

    def set_value(self: Optimizer, value: Any, called: str = row.name) -> None:
        number = checked(row, value)
        if self._framework is not None and called == row.name:
            from . import presets

            if presets.taken(self._framework, called) and shown(row, number) != get_value(self):
                raise AttributeError(self._why_not(called))
        check_conflict(row.name, number, self._get_setting, self._get_objects()[0] is not None)
        self._set_setting(row.name, number)

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

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        for name in NUMBERS:  # also for a subclass that does not call __init__
            self._set_setting(name, checked(ROWS[name], DEFAULT[name]))
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

    @property
    def lr(self) -> float:
        """float: the learning rate at this point. Assign a number, or a callable.

        A callable is given the number of calls of `step` so far (without skipped ones) and returns
        the learning rate: a schedule of `rmsprop_c.schedules`, or any other.
        """
        schedule = self._get_objects()[0]
        if schedule is not None:
            return scheduled_lr(schedule, self._counts()[1])
        return self._get_setting("lr")

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
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make an optimizer from what `get_config` (or Keras 2.0's) returned; it has no state.

        Parameters
        ----------
        config : mapping
            Not changed. A key that is no argument raises.
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
        lr = self._get_setting("lr") if schedule is None else schedule
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
        params, grads = parted(grads_and_vars)
        self.step(params, grads)

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
        return gradients.clipped(grads, params, self._numbers())

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
        params, constraints, loss = gradients.update_arguments(args, kwargs)
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
        slots = self._snapshot(weights=True).slots
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
        self._assign(*states.fitting(list(weights), self._views()))

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

        state = self._snapshot()  # first, as in __getstate__
        checkpoint.save(path, type(self).__name__, self.get_config(), state)

    @_or_in_place
    def load(
        cls,
        path: str | os.PathLike[str],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
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

        def make(config: dict[str, Any], state: states.State) -> Any:
            made = cls.from_config(config, custom_objects)
            made._restore(state)
            return made

        loaded: Self = checkpoint.load(path, cls.__name__, make)
        return loaded

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

        views = self._views()
        if not views:
            raise ValueError("there is no state to set yet; call build(params) first")
        mine = states.State(self.iterations, 0, *self._counts()[1:], self._keys(), views, [])
        found, iterations = interchange.imported(
            framework, state, self._own(mine), mine, self._lr_in_momentum()
        )
        self._assign(found.slots, iterations, found.calls, found.pending)

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

        mine = self._snapshot()
        own = self._own(mine)
        scheduled = self._get_objects()[0] is not None
        return interchange.exported(
            framework, state, own, mine, self._lr_in_momentum(), scheduled, leaf
        )

    def _own(self, state: states.State) -> interchange.Own:
        """What a translation of the state has to know of this optimizer."""
        from . import interchange

        count = len(state.slots.get("accumulator", ()))
        cycle = self.gradient_accumulation_steps or 1
        return interchange.Own(set(self._required()), count, cycle, state.keys)

    def _lr_in_momentum(self) -> bool | None:
        return self.lr_in_momentum if self.momentum > 0 else None

    def __getstate__(self) -> dict[str, Any]:
        state = self._snapshot()  # waits for a step under way, in which options may be assigned
        return {
            "settings": self._numbers(),
            "objects": self._get_objects(),
            "state": state._asdict(),
            "attributes": self.__dict__.copy(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        schedule, *others = state["objects"]
        values = {name: shown(ROWS[name], state["settings"][name]) for name in NUMBERS}
        values["lr"] = values["lr"] if schedule is None else schedule
        values |= zip(("lr_scale", "exclude_from_weight_decay"), others, strict=True)
        kept = states.from_mapping(state["state"])
        states.check(kept)
        for name, value in values.items():  # checked as where they are assigned
            vars(Optimizer)[name].fset(self, value)
        found = self._numbers()
        if any(repr(found[name]) != repr(state["settings"][name]) for name in NUMBERS[1:]):
            raise ValueError(f"settings are {state['settings']}, which no arguments make")
        self._restore(kept)
        self.__dict__.update(state["attributes"])

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Forget the accumulators, all other state and `last_loss`, and set `iterations` to 0."""
        super().reset()
        self.__dict__.pop("last_loss", None)


for _name in NUMBERS:
    if _name != "lr":
        setattr(Optimizer, _name, _property(ROWS[_name]))

"""scikit-learn's multilayer perceptrons, trained with RMSprop.

>>> from sklearn.datasets import load_digits
>>> from sklearn.model_selection import train_test_split
>>> from rmsprop_c.sklearn import MLPClassifier
>>> X, y = load_digits(return_X_y=True)
>>> X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
>>> model = MLPClassifier(
...     batch_size=32, learning_rate_init=0.003, early_stopping=True, random_state=0
... ).fit(X_train, y_train)
>>> bool(model.score(X_test, y_test) > 0.95)
True
"""

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from sklearn import neural_network
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network._multilayer_perceptron import _STOCHASTIC_SOLVERS
    from sklearn.neural_network._stochastic_optimizers import SGDOptimizer
    from sklearn.utils._param_validation import StrOptions
    from sklearn.utils.metaestimators import available_if
except ImportError as error:
    raise ImportError(
        "rmsprop_c.sklearn needs scikit-learn 1.3 or newer: pip install 'rmsprop_c[sklearn]'"
    ) from error

from .hyperparameters import DEFAULT, ROWS, checked
from .rmsprop import RMSprop

__all__ = ["MLPClassifier", "MLPRegressor"]

# Four arguments have scikit-learn's own names; for larger batches there is batch_size; averages of
# weights would have to be put in place for predict, and a fit that goes uphill has no user.
OPTIONS = {
    name: default
    for name, default in DEFAULT.items()
    if name not in ("lr", "epsilon", "momentum", "nesterov", "maximize", "zero_grad")
    and name not in ("gradient_accumulation_steps", "use_ema")
    and not name.startswith("ema_")
}
# By default both are None, which each solver reads as its own.
MOMENTUM = {"momentum": 0.0, "nesterovs_momentum": False}
SGD_MOMENTUM = {"momentum": 0.9, "nesterovs_momentum": True}

# This list alone tells scikit-learn whether a solver trains in mini-batches; one that it does not
# know itself then finds the optimizer in `_optimizer`. Its own classes still raise for the name.
if "rmsprop" not in _STOCHASTIC_SOLVERS:
    _STOCHASTIC_SOLVERS.append("rmsprop")


class _Solver(SGDOptimizer):  # type: ignore[misc]  # scikit-learn has no types
    """scikit-learn's SGD, its schedules and its stopping, with RMSprop's update."""

    def __init__(
        self, optimizer: RMSprop, learning_rate_init: float, schedule: str, power_t: float
    ) -> None:
        self.optimizer = optimizer
        super().__init__([], learning_rate_init, schedule, power_t=power_t)

    @property
    def learning_rate(self) -> float:
        """What the schedules change."""
        return self.optimizer.lr

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer.lr = value

    def update_params(self, params: list[NDArray[Any]], grads: list[NDArray[Any]]) -> None:
        """One step, in place."""
        # float64 targets or sample weights make float64 gradients of float32 weights.
        pairs = zip(params, grads, strict=True)
        self.optimizer.step(params, [np.asarray(g, p.dtype) for p, g in pairs])


class _Trained:
    """What both estimators add to scikit-learn's."""

    _optimizer: Any

    def _momentum(self) -> dict[str, Any]:
        """What momentum and nesterovs_momentum are for this solver."""
        defaults = SGD_MOMENTUM if vars(self)["solver"] == "sgd" else MOMENTUM
        given = {name: vars(self)[name] for name in defaults}
        return {name: defaults[name] if x is None else x for name, x in given.items()}

    def _rmsprop(self) -> RMSprop:
        """A new optimizer, or its error that names the parameter and the value."""
        own = vars(self)
        lr = ROWS["lr"]._replace(name="learning_rate_init")
        return RMSprop(
            lr=checked(lr, own["learning_rate_init"]),
            epsilon=own["epsilon"],
            momentum=self._momentum()["momentum"],
            nesterov=bool(self._momentum()["nesterovs_momentum"]),
            **{name: own[name] for name in OPTIONS},
        )

    def _rmsprop_for(self, layers: int, dtype: Any) -> RMSprop:
        """A new optimizer, or the error that its first step in a network would end in."""
        optimizer = self._rmsprop()
        arrays = [np.zeros(1, dtype) for _ in range(2 * layers)]
        try:
            optimizer.bind(arrays, [x.copy() for x in arrays])  # which checks all that a step does
        except ValueError as error:
            raise ValueError(re.sub("^lr=", "learning_rate_init=", str(error))) from None
        optimizer.reset()
        return optimizer

    def _validate_params(self) -> None:
        super()._validate_params()  # type: ignore[misc]
        self._rmsprop()

    def _initialize(self, y: Any, layer_units: list[int], dtype: Any) -> None:
        """Check what depends on the network, and then draw the weights."""
        if vars(self)["solver"] == "rmsprop":
            self._rmsprop_for(len(layer_units) - 1, dtype)
        super()._initialize(y, layer_units, dtype)  # type: ignore[misc]

    def _fit_lbfgs(self, *args: Any) -> None:
        vars(self).pop("_optimizer", None)
        super()._fit_lbfgs(*args)  # type: ignore[misc]

    def _fit_stochastic(self, *args: Any) -> None:
        """Train in mini-batches; the last argument tells partial_fit, which keeps its optimizer."""
        own = vars(self)
        ours = own["solver"] == "rmsprop"
        if not (args[-1] and isinstance(own.get("_optimizer"), _Solver) == ours):
            own.pop("_optimizer", None)  # of another fit, or of another solver
        if ours and "_optimizer" not in own:
            self._optimizer = _Solver(
                self._rmsprop_for(len(own["coefs_"]), own["coefs_"][0].dtype),
                own["learning_rate_init"],
                own["learning_rate"],
                own["power_t"],
            )
        given = {name: own[name] for name in MOMENTUM}
        own.update(self._momentum())  # for scikit-learn's SGD, which knows no None
        try:
            super()._fit_stochastic(*args)  # type: ignore[misc]
        finally:
            own.update(given)

    @property
    def optimizer_(self) -> RMSprop:
        """The optimizer that the last training used: its iterations, its state, its `save`."""
        solver = vars(self).get("_optimizer")
        if not isinstance(solver, _Solver):
            raise AttributeError("there is an optimizer_ only after a fit with solver='rmsprop'")
        return solver.optimizer


def _undone(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that trains; with our solver it leaves the estimator as it was if it raises.

    Where it has begun to train weights that were there before (partial_fit, warm_start), these and
    all that belongs to them stay as they are then.
    """

    @functools.wraps(method)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = vars(self)
        before, counts = own.copy(), _counts(own.get("_optimizer"))
        try:
            result = method(self, *args, **kwargs)
        except BaseException:
            solver = own.get("_optimizer")
            begun = _counts(solver)[0] > (counts[0] if solver is before.get("_optimizer") else 0)
            in_place = begun and own["coefs_"] is before.get("coefs_")
            if own["solver"] == "rmsprop" and not in_place:
                own.clear()
                own.update(before)
            raise
        solver = own.get("_optimizer")
        made, skipped = _counts(solver)
        if solver is before.get("_optimizer"):
            made, skipped = made - counts[0], skipped - counts[1]
        if skipped and not made:
            warnings.warn(
                f"no step was made: the gradients of all {skipped} are not finite, and nonfinite "
                "is 'skip'; the weights are those from before",
                ConvergenceWarning,
                stacklevel=2,
            )
        return result

    return train


def _partial_fit(base: Any) -> Any:
    """`partial_fit` of a class, which has one where its solver trains in mini-batches."""
    theirs = inspect.getattr_static(base, "partial_fit")
    return available_if(theirs.check)(_undone(theirs.fn))


def _counts(solver: Any) -> tuple[int, int]:
    """How many steps a solver of ours has made and left out."""
    if not isinstance(solver, _Solver):
        return 0, 0
    return solver.optimizer.iterations, solver.optimizer.skipped_steps


def _init(base: type) -> Callable[..., None]:
    """An ``__init__`` with the parameters of `base`, whatever its version has, and ours."""
    theirs = inspect.signature(base.__init__).parameters  # type: ignore[misc]
    changed = {"solver": "rmsprop", "momentum": None, "nesterovs_momentum": None}
    signature = inspect.Signature(
        [p.replace(default=changed.get(p.name, p.default)) for p in theirs.values()]
        + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in OPTIONS.items()
        ]
    )

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        base.__init__(**{name: bound.arguments.pop(name) for name in theirs})  # type: ignore[misc]
        vars(self).update(bound.arguments)

    __init__.__signature__ = signature  # type: ignore[attr-defined]  # get_params reads it
    return __init__


def _constraints(base: Any) -> dict[str, list[Any] | str]:
    """scikit-learn's table of what parameters may be; RMSprop checks its own."""
    theirs = base._parameter_constraints
    return {
        **theirs,
        "solver": [StrOptions({"rmsprop", "lbfgs", "sgd", "adam"})],
        **{name: [*theirs[name], None] for name in MOMENTUM},
        **dict.fromkeys(OPTIONS, "no_validation"),
    }


class MLPClassifier(_Trained, neural_network.MLPClassifier):  # type: ignore[misc]
    """scikit-learn's `MLPClassifier`, trained with RMSprop.

    Parameters
    ----------
    solver : {"rmsprop", "lbfgs", "sgd", "adam"}, default="rmsprop"
        The last three are scikit-learn's own, unchanged.
    learning_rate_init : float, default=0.001
        RMSprop's lr.
    learning_rate : {"constant", "invscaling", "adaptive"}, default="constant"
        With ``power_t``, the schedules that scikit-learn has for "sgd".
    epsilon : float, default=1e-8
        Added to the root; above 0.
    momentum : float, optional
        In [0, 1]. None is 0 with "rmsprop", and scikit-learn's 0.9 with "sgd".
    nesterovs_momentum : bool, optional
        None is False with "rmsprop", and scikit-learn's True with "sgd".
    rho, decay, centered, epsilon_in_sqrt, initial_accumulator_value, lr_in_momentum, \
bias_correction, clipnorm, parameter_clipnorm, clipvalue, weight_decay, decoupled_weight_decay, \
exclude_from_weight_decay, lr_scale, nonfinite, flush_subnormals
        The options of `rmsprop_c.RMSprop`, with its defaults: rho=0.9, and all others off. Indices
        and factors of parameters are in the order ``[*coefs_, *intercepts_]``.
    **others
        Those of `sklearn.neural_network.MLPClassifier` in the installed version, with its defaults.

    Attributes
    ----------
    optimizer_ : RMSprop
        The optimizer of the last fit; none after a fit with another solver.
    coefs_, intercepts_, loss_curve_, ...
        Those of `sklearn.neural_network.MLPClassifier`. Weights are float32 where X is.

    Raises
    ------
    ValueError, TypeError
        From `fit` and `partial_fit`, for a parameter out of range, or one that does not fit the
        network, by name; nothing is changed. A `fit` that raises later leaves the estimator as it
        was, too, unless ``warm_start`` has it train the weights that are there; a RandomState that
        it was given has gone on then.
    ImportError
        When the module is imported without scikit-learn.

    Notes
    -----
    `fit` begins with new accumulators, with ``warm_start`` too; `partial_fit` goes on with them,
    as scikit-learn's own solvers do. Both, pickle in between included, give the same bits as
    `RMSprop.step` along the same gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_c.sklearn import MLPClassifier
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> y = [0, 1, 1, 0]
    >>> model = MLPClassifier(learning_rate_init=0.01, random_state=0).fit(X, y)
    >>> model.predict(X).tolist()
    [0, 1, 1, 0]
    """

    __init__ = _init(neural_network.MLPClassifier)
    fit = _undone(neural_network.MLPClassifier.fit)
    partial_fit = _partial_fit(neural_network.MLPClassifier)
    _parameter_constraints = _constraints(neural_network.MLPClassifier)


class MLPRegressor(_Trained, neural_network.MLPRegressor):  # type: ignore[misc]
    """scikit-learn's `MLPRegressor`, trained with RMSprop.

    Parameters
    ----------
    **parameters
        Those of `MLPClassifier` here that concern the training, and those of
        `sklearn.neural_network.MLPRegressor` in the installed version.

    Attributes
    ----------
    optimizer_ : RMSprop
        The optimizer of the last fit.
    coefs_, intercepts_, loss_curve_, ...
        Those of `sklearn.neural_network.MLPRegressor`. Weights are float32 where X is.

    Raises
    ------
    ValueError, TypeError
        From `fit` and `partial_fit`, for a parameter out of range, by name; nothing is changed.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_c.sklearn import MLPRegressor
    >>> X = np.linspace(-1, 1, 200).reshape(-1, 1)
    >>> y = np.sin(3 * X[:, 0])
    >>> model = MLPRegressor(
    ...     learning_rate_init=0.01, learning_rate="adaptive", momentum=0.9, random_state=0
    ... ).fit(X, y)
    >>> bool(model.score(X, y) > 0.98)
    True
    """

    __init__ = _init(neural_network.MLPRegressor)
    fit = _undone(neural_network.MLPRegressor.fit)
    partial_fit = _partial_fit(neural_network.MLPRegressor)
    _parameter_constraints = _constraints(neural_network.MLPRegressor)

"""RMSprop as a method of `scipy.optimize.minimize`.

>>> from rmsprop_c.scipy import rmsprop
>>> from scipy.optimize import minimize, rosen, rosen_der
>>> result = minimize(rosen, [1.3, 0.7, 0.8, 1.9, 1.2], jac=rosen_der, method=rmsprop)
>>> result.success, result.x.round(4).tolist()
(True, [1.0, 1.0, 1.0, 1.0, 1.0])
"""

import inspect
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import check_real
from .hyperparameters import DEFAULT
from .rmsprop import RMSprop
from .schedules import ExponentialDecay

try:
    from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning
except ImportError:
    raise ImportError("rmsprop_c.scipy needs SciPy: pip install 'rmsprop_c[scipy]'") from None
from scipy.optimize._optimize import MemoizeJac  # what minimize makes of fun for jac=True

__all__ = ["rmsprop"]

# With these, Rosenbrock's function converges in 2, 5, 10 and 100 variables in 10,000 iterations;
# without momentum, or with a constant learning rate, in none of them.
LEARNING_RATE, FALL, MOMENTUM = 0.01, 1e-8, 0.9
NAMES = {"learning_rate", *DEFAULT}
MAXITER = 10_000
WINDOW = 10  # moves of x in which ftol wants to see a change

# How it ends: status, with the numbers of SciPy's BFGS and of its callbacks, and message.
CONVERGED = 0, "The gradient is at most gtol."
UNCHANGED = 0, f"fun changed by ftol at most in {WINDOW} iterations that moved x."
EXHAUSTED = 1, "maxiter iterations were made without convergence."
NOT_FINITE = 3, "The gradient is not finite, or the value not a number."
STOPPED = 99, "callback raised StopIteration."


class _Objective:
    """The user's functions, their calls counted and what they return checked."""

    def __init__(
        self, fun: Callable[..., Any], jac: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self.fun, self.jac, self.args = fun, jac, args
        self.nfev = self.njev = 0

    def value(self, x: NDArray[np.float64]) -> float:
        self.nfev += 1
        value = np.asarray(self.fun(x.copy(), *self.args))  # it may keep or change its argument
        if value.size != 1:
            raise ValueError(f"fun returned shape {value.shape}; it must return a scalar")
        return _real("the value of fun", value.item())

    def gradient(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        self.njev += 1
        gradient = _reals("the gradient of jac", self.jac(x.copy(), *self.args))
        if gradient.shape != x.shape:
            raise ValueError(f"jac returned shape {gradient.shape}, but x0 has shape {x.shape}")
        return gradient


def rmsprop(
    fun: Callable[..., Any],
    x0: ArrayLike,
    args: tuple[Any, ...] = (),
    jac: Callable[..., Any] | None = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    *,
    maxiter: float | None = MAXITER,
    gtol: float | None = None,
    ftol: float | None = None,
    tol: float | None = None,
    disp: bool = False,
    **options: Any,
) -> OptimizeResult:
    """Minimize a function by RMSprop: ``scipy.optimize.minimize(..., method=rmsprop)``.

    Parameters
    ----------
    fun, x0, args, jac, bounds, callback
        As in `scipy.optimize.minimize`. `jac` is needed: a callable, or True there. `x0`, shape
        (n,), is not changed; all is computed in float64. After each step `x` is put back into the
        bounds, and so is `x0` at the start; one pair of bounds is for all entries. The callback is
        ``callback(xk)`` or ``callback(intermediate_result)``, and stops the run by StopIteration.
    hess, hessp, constraints
        Ignored, with a warning.
    maxiter : int, optional
        The number of iterations, one gradient each. It also sets how fast the learning rate falls,
        unless `decay` or a schedule does; only then it may be infinite. None is 10,000.
    gtol : float, optional
        Success is when no entry of the gradient is larger than this; a bound takes away what
        points out of it. 1e-5, or `tol` if that is given. Set it to 0 where gradients are noisy.
    ftol : float, optional
        Success is also when in 10 iterations `fun` stays within ``ftol * max(abs(fun), 1)``; those
        that leave `x` where it is, as in a cycle of gradient_accumulation_steps, don't count. Off
        by default: small learning rates make small changes too.
    tol : float, optional
        Another name for gtol, which `minimize` uses.
    disp : bool
        Print how it ended.
    **options
        Those of `rmsprop_c.RMSprop`, for the one parameter `x`. The defaults of two are other ones:
        momentum is 0.9, and lr is 0.01 and falls exponentially to 1e-8 of that in `maxiter`
        iterations. With `decay` in the options lr does as in `RMSprop`: ``decay=0`` keeps it
        constant. A schedule as lr is used as it is.

    Returns
    -------
    scipy.optimize.OptimizeResult
        `x` is the last point, not the best, with its value `fun` and gradient `jac`; where
        `use_ema` is on and there was no convergence, the moving average of the points. `status` is
        0 for convergence, 1 at maxiter, 3 where the gradient is not finite or the last value NaN,
        99 where the callback stopped it; `message` says it in words, and `success` is ``status ==
        0``. `nit`, `nfev` and `njev` count steps, values and gradients. Only with `ftol`, a
        callback for ``intermediate_result``, or ``jac=True`` is there a value for each gradient;
        otherwise there is one, at the end.

    Raises
    ------
    TypeError, ValueError
        Without `jac`, for an `x0` that is empty or not of real numbers, for bounds that do not fit,
        for results of another shape or not of real numbers, and as `RMSprop` does for its options.

    Warns
    -----
    scipy.optimize.OptimizeWarning
        For what is ignored: Hessians, constraints and unknown options.

    Notes
    -----
    With ``jac=True`` `minimize` remembers value and gradient at the latest point: options that ask
    for another sample of noise at the same point (gradient_accumulation_steps, and "skip" for
    nonfinite) get the same numbers again. Tested with SciPy 1.11 and newer.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.optimize import minimize
    >>> from rmsprop_c.scipy import rmsprop
    >>> rng = np.random.default_rng(0)
    >>> def noisy(x):    # the value and gradient of sum((x - 3)**2), and noise
    ...     e = x - 3
    ...     return e @ e + rng.normal(), 2 * e + rng.normal(size=2)
    >>> options = {"gtol": 0, "maxiter": 2000}
    >>> minimize(noisy, [0, 0], jac=True, method=rmsprop, options=options).x.round(1).tolist()
    [3.0, 3.0]
    """
    if not callable(jac):
        raise ValueError(
            "RMSprop needs gradients, and jac is missing: pass a callable as jac, or jac=True "
            "where fun returns (value, gradient); jac='2-point' and the like do not reach a "
            "custom method (for finite differences pass jac=lambda x: "
            "scipy.optimize.approx_fprime(x, fun))"
        )
    x = _reals("x0", x0)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"x0 has shape {x.shape}; it must have one dimension, and not be empty")
    low, high = _box(bounds, x.size)
    np.clip(x, low, high, out=x)
    most = MAXITER if maxiter is None else _setting("maxiter", maxiter)
    if most < 0 or most % 1 > 0:
        raise ValueError(f"maxiter is {maxiter!r}; it must be a whole number, at least 0")
    optimizer = _optimizer({name: options[name] for name in options if name in NAMES}, most)
    tol = 1e-5 if tol is None else _setting("tol", tol)
    gtol = tol if gtol is None else _setting("gtol", gtol)
    ftol = None if ftol is None else _setting("ftol", ftol)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is {callback!r}; it must be callable")
    takes_result = callback is not None and set(inspect.signature(callback).parameters) == {
        "intermediate_result"
    }
    _warn_of_ignored(hess, hessp, constraints, [name for name in options if name not in NAMES])
    objective = _Objective(fun, jac, args if isinstance(args, tuple) else (args,))
    # With jac=True the value is computed with the gradient anyway.
    with_values = ftol is not None or takes_result or isinstance(fun, MemoizeJac)
    values: deque[float] = deque(maxlen=WINDOW + 1)
    nit, moved, end = 0, True, None
    while end is None:
        if with_values:
            if not moved:
                values.pop()
            values.append(objective.value(x))
        gradient = objective.gradient(x)
        downhill = -gradient if optimizer.maximize else gradient
        largest = np.abs(np.clip(downhill, x - high, x - low)).max(initial=0)
        if nit and callback is not None and _stops(callback, takes_result, x, values):
            end = STOPPED
        elif not np.isfinite(gradient).all() and optimizer.nonfinite == "propagate":
            end = NOT_FINITE
        elif largest <= gtol:
            end = CONVERGED
        elif ftol is not None and _unchanged(values, ftol):
            end = UNCHANGED
        elif nit >= most:
            end = EXHAUSTED
        else:
            before = x if ftol is None else x.copy()
            optimizer.step(x, gradient)
            np.clip(x, low, high, out=x)
            moved = ftol is None or not np.array_equal(x, before)
            nit += 1
    if optimizer.use_ema and nit and end in (EXHAUSTED, STOPPED):
        optimizer.finalize_variable_values(x)
        np.clip(x, low, high, out=x)  # a mean of points within bounds may round to outside
        values.clear()
        gradient = objective.gradient(x)
    value = values[-1] if values else objective.value(x)
    if end[0] == 0 and np.isnan(value):
        end = NOT_FINITE
    result = OptimizeResult(
        x=x,
        fun=value,
        jac=gradient,
        nit=nit,
        nfev=objective.nfev,
        njev=objective.njev,
        status=end[0],
        success=end[0] == 0,
        message=end[1],
    )
    if disp:
        print(f"{end[1]} fun {value:g}, nit {nit}, nfev {result.nfev}, njev {result.njev}")
    return result


def _real(name: str, value: Any) -> float:
    """A number as a float, or an error that names it."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; it must be a real number") from None
    except OverflowError:
        raise ValueError(f"{name} is a number that no float can hold") from None


def _setting(name: str, value: Any) -> float:
    """An option that is a number."""
    number = np.nan if isinstance(value, (bool, np.bool_)) else _real(name, value)
    if number != number:
        raise ValueError(f"{name} is {value!r}; pass a number, or leave it out")
    return number


def _reals(name: str, values: Any) -> NDArray[np.float64]:
    """A copy in float64, since it may be read-only or a buffer, or an error that names it."""
    try:
        array = np.atleast_1d(np.asarray(values))
    except ValueError as error:
        raise ValueError(f"{name} can't be read as an array: {error}") from None
    if array.dtype.kind == "c":
        raise TypeError(
            f"{name} has dtype {array.dtype}; pass real and imaginary parts as real numbers"
        )
    if array.dtype.kind == "O":
        numbers = [_real(f"{name}[{i}]", x) for i, x in enumerate(array.ravel())]
        return np.array(numbers).reshape(array.shape)
    if array.dtype.kind != "b":
        check_real(array, name)
    return array.astype(np.float64)


def _optimizer(given: dict[str, Any], maxiter: float) -> RMSprop:
    """RMSprop with the options that were given and the defaults of this method."""
    arguments = {"momentum": MOMENTUM} | given
    if "learning_rate" not in given:
        arguments.setdefault("lr", LEARNING_RATE)
    optimizer = RMSprop(**arguments)
    if "decay" not in given and not any(callable(given.get(n)) for n in ("lr", "learning_rate")):
        if maxiter == np.inf:
            raise ValueError(
                "maxiter is inf, but lr falls in maxiter iterations; say how it goes by decay or a "
                "schedule as lr"
            )
        optimizer.lr = ExponentialDecay(optimizer.lr, max(maxiter, 1), FALL)
    return optimizer


def _box(bounds: Any, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds of n entries, from all that `scipy.optimize.minimize` takes."""
    if bounds is None:
        return np.full(n, -np.inf), np.full(n, np.inf)
    if isinstance(bounds, Bounds):
        sides = [_reals("bounds.lb", bounds.lb), _reals("bounds.ub", bounds.ub)]
    else:
        try:
            pairs = [(lower, upper) for lower, upper in bounds]
        except (TypeError, ValueError):
            raise ValueError(
                f"bounds is {bounds!r}; pass a (min, max) pair for each entry of x0, one pair for "
                "all, or scipy.optimize.Bounds"
            ) from None
        sides = [np.empty(len(pairs)), np.empty(len(pairs))]
        for k, pair in enumerate(pairs):
            for j, bound in enumerate(pair):
                none = (-np.inf, np.inf)[j]
                sides[j][k] = none if bound is None else _real(f"bounds[{k}][{j}]", bound)
    for side in sides:
        if side.ndim != 1 or side.size not in (1, n):
            raise ValueError(
                f"bounds has shape {side.shape}, but x0 has {n} entries: pass {n} pairs, or one "
                "for all"
            )
    low, high = (np.broadcast_to(side, n) for side in sides)
    for i in np.flatnonzero(~(low <= high)):
        raise ValueError(f"bounds[{i}] is ({low[i]:g}, {high[i]:g}): the lower one must come first")
    return low, high


def _warn_of_ignored(hess: Any, hessp: Any, constraints: Any, unknown: list[str]) -> None:
    ignored = ["hess"] * (hess is not None) + ["hessp"] * (hessp is not None)
    ignored += ["constraints"] * bool(np.any(constraints))
    ignored += [f"options[{name!r}]" for name in unknown]
    if ignored:
        message = f"RMSprop ignores {', '.join(ignored)}"
        warnings.warn(message, OptimizeWarning, stacklevel=4)  # where minimize was called


def _stops(
    callback: Callable[..., Any], takes_result: bool, x: NDArray[np.float64], values: deque[float]
) -> bool:
    """Call the callback, and say whether it wants to stop."""
    try:
        if takes_result:
            callback(intermediate_result=OptimizeResult(x=x.copy(), fun=values[-1]))
        else:
            callback(x.copy())
    except StopIteration:
        return True
    return False


def _unchanged(values: deque[float], ftol: float) -> bool:
    full = len(values) == values.maxlen
    return full and max(values) - min(values) <= ftol * max(abs(values[-1]), 1)

"""The step in NumPy: the specification of the kernels, and the oracle of their tests.

Compare bits, not values: `step` and ``RMSprop.step`` agree in every bit of parameters and
accumulators, NaN's sign and payload aside. Run as a script, this file prints the checksums of
`checksum`; it imports NumPy alone, so they owe nothing to a kernel.
"""

from __future__ import annotations  # NDArray's module takes a millisecond of the import

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 4096
LANES = 16


def learning_rate(lr: float, decay: float, iterations: int) -> float:
    """The learning rate of a step, in double and in Keras's form."""
    return lr * (1.0 / (1.0 + decay * float(iterations)))


def pairwise_sum(x: NDArray[Any]) -> NDArray[Any]:
    """Sum along the first axis: neighbours in pairs, an odd last one passes up."""
    while len(x) > 1:
        odd = x[len(x) - len(x) % 2 :]
        x = np.concatenate([x[0:-1:2] + x[1::2], odd])
    total: NDArray[Any] = x[0]
    return total


def global_norm(grads: Sequence[NDArray[Any] | None]) -> float:
    """The L2 norm over all gradients, summed in double in a fixed order.

    Each gradient, in C's order of its elements however it lies in memory, is cut into blocks of
    4096 elements. In a block lane j of 16 adds the squares of elements j, j + 16, ... one after the
    other; then the 16 lanes are added in pairs, and so are the blocks of all gradients.
    """
    blocks = []
    for g in grads:
        if g is None or g.size == 0:
            continue
        flat = np.ravel(g).astype(np.float64)
        padded = np.zeros(-(-flat.size // BLOCK) * BLOCK)
        padded[: flat.size] = flat
        rows = (padded * padded).reshape(-1, BLOCK // LANES, LANES)
        lanes = np.zeros((len(rows), LANES))
        for row in range(BLOCK // LANES):
            lanes += rows[:, row]
        blocks.append(pairwise_sum(lanes.T))
    return float(np.sqrt(pairwise_sum(np.concatenate(blocks)))) if blocks else 0.0


def clip(
    grads: Sequence[NDArray[Any] | None],
    clipnorm: float | None,
    clipvalue: float | None,
    parameter_clipnorm: float | None = None,
    factor: float = 1.0,
) -> list[NDArray[Any] | None]:
    """Gradients times `factor`, scaled to norms of at most clipnorm, then clipped to +-clipvalue.

    clipnorm bounds the norm over all gradients, parameter_clipnorm that of each. None and values
    <= 0 switch any of them off. A NaN norm scales by 1, an infinite one by 0.
    """
    bound = clipvalue if clipvalue is not None and clipvalue > 0 else np.inf

    def scale(grads: Sequence[NDArray[Any] | None], largest: float | None) -> float:
        if largest is None or largest <= 0:
            return factor
        norm = global_norm(grads) * abs(factor)
        return (largest / norm if norm >= largest else 1.0) * factor

    def clipped(g: NDArray[Any], scale: float) -> NDArray[Any]:
        real = g.dtype.type
        g = g * real(scale)
        g = np.where(g < real(-bound), real(-bound), g)
        return np.where(g > real(bound), real(bound), g)

    with np.errstate(all="ignore"):
        if parameter_clipnorm is not None and parameter_clipnorm > 0:
            scales = [scale([g], parameter_clipnorm) for g in grads]
        else:
            scales = [scale(grads, clipnorm)] * len(grads)
        return [None if g is None else clipped(g, s) for g, s in zip(grads, scales, strict=True)]


def update(
    p: NDArray[Any],
    g: NDArray[Any],
    a: NDArray[Any],
    m: NDArray[Any] | None = None,
    mean: NDArray[Any] | None = None,
    *,
    lr: float,
    rho: float,
    epsilon: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    centered: bool = False,
    epsilon_in_sqrt: bool = False,
    lr_in_momentum: bool = True,
    unbiased: float = 1.0,
    flush_subnormals: bool = False,
) -> None:
    """Update a parameter `p` and its state in place; every operation rounds to their dtype.

    `a` is the accumulator, `m` the momentum and `mean` the average gradient of the centered form.
    `unbiased` is 1, or for the bias correction of step t 1 - rho**t: what a and mean would have to
    be divided by. For a this is moved out of the root, into learning rate and epsilon.
    """
    real = p.dtype.type
    inner = (lr if lr_in_momentum or momentum == 0 else 1.0) * np.sqrt(unbiased)
    epsilon = epsilon * (unbiased if epsilon_in_sqrt else np.sqrt(unbiased))
    tiny = np.finfo(real).tiny if flush_subnormals else real(0)

    def store(state: NDArray[Any], value: NDArray[Any]) -> None:
        state[...] = np.where(np.abs(value) < tiny, real(0), value)

    accumulated = real(rho) * a + (real(1) - real(rho)) * (g * g)
    store(a, accumulated)
    v = accumulated
    if centered and mean is not None:
        average = real(rho) * mean + (real(1) - real(rho)) * g
        store(mean, average)
        v = v - (average * average) * real(1.0 / unbiased)
        v = np.where(v < 0, real(0), v)
    root = np.sqrt(v + real(epsilon)) if epsilon_in_sqrt else np.sqrt(v) + real(epsilon)
    if momentum > 0 and m is not None:
        d = (real(inner) * g) / root
        moving = real(momentum) * m + d
        store(m, moving)
        d = d + real(momentum) * moving if nesterov else moving
        p[...] = p - real(1 if lr_in_momentum else lr) * d
    else:
        p[...] = p - (real(inner) * g) / root


def power(x: float, n: int) -> float:
    """x**n by repeated squaring: libraries differ in the last bit of theirs."""
    result = 1.0
    while n:
        if n % 2:
            result *= x
        x *= x
        n //= 2
    return result


def step(
    params: Sequence[NDArray[Any]],
    grads: Sequence[NDArray[Any] | None],
    accumulators: Sequence[NDArray[Any]],
    iterations: int,
    momentums: Sequence[NDArray[Any]] | None = None,
    average_gradients: Sequence[NDArray[Any]] | None = None,
    *,
    lr: float = 0.001,
    rho: float = 0.9,
    epsilon: float = 1e-8,
    decay: float = 0.0,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    parameter_clipnorm: float | None = None,
    factor: float = 1.0,
    lr_scale: Sequence[float] | None = None,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    exclude_from_weight_decay: Sequence[int] = (),
    bias_correction: bool = False,
    **formula: Any,
) -> None:
    """One update of a whole model: `params` and the state behind them are updated in place.

    `iterations` is the number of updates before this one; the arguments are those of `RMSprop`, and
    `formula` those of `update`. Gradients are multiplied by `factor` before they are clipped.
    """
    lr_t = learning_rate(lr, decay, iterations)
    if bias_correction:
        formula["unbiased"] = 1.0 - power(rho, iterations + 1)
    clipped = clip(grads, clipnorm, clipvalue, parameter_clipnorm, factor)
    with np.errstate(all="ignore"):
        for i, (p, g) in enumerate(zip(params, clipped, strict=True)):
            if g is None:
                continue
            real = p.dtype.type
            lr_i = lr_t if lr_scale is None else lr_t * lr_scale[i]
            if weight_decay > 0 and i not in exclude_from_weight_decay:
                if decoupled_weight_decay:
                    p[...] = p - real(lr_i * weight_decay) * p
                else:
                    g = g + real(weight_decay) * p
            m = momentums[i] if momentums else None
            mean = average_gradients[i] if average_gradients else None
            update(p, g, accumulators[i], m, mean, lr=lr_i, rho=rho, epsilon=epsilon, **formula)


class RMSprop:
    """`rmsprop_c.RMSprop` without its arrays' freedoms: lists of contiguous arrays, in order.

    On top of `step` come what decides whether a call updates (`gradient_accumulation_steps`,
    `nonfinite`) and what surrounds an update (`use_ema`, `zero_grad`). Arguments as there, lr a
    number or a callable, `lr_scale` and `exclude_from_weight_decay` by position; `options` holds
    them and may be changed between two calls.
    """

    def __init__(self, params: Sequence[NDArray[Any]], **options: Any) -> None:
        self.options: dict[str, Any] = {
            "lr": 0.001,
            "momentum": 0.0,
            "centered": False,
            "maximize": False,
            "use_ema": False,
            "ema_momentum": 0.99,
            "ema_overwrite_frequency": None,
            "gradient_accumulation_steps": None,
            "nonfinite": "propagate",
            "zero_grad": False,
            **options,
        }
        start = self.options.pop("initial_accumulator_value", 0.0)
        self.accumulators = [np.full_like(p, start) for p in params]
        self.momentums = [np.zeros_like(p) for p in params]
        self.average_gradients = [np.zeros_like(p) for p in params]
        self.moving_averages = [p.copy(order="K") for p in params]
        self.averages = True  # whether moving_averages are kept
        self.gradient_sums = [np.zeros_like(p) for p in params]
        self.pending = [False] * len(params)  # gradients that a sum holds
        self.calls = 0  # in the cycle under way
        self.total_calls = 0
        self.iterations = 0
        self.skipped_steps = 0

    def step(self, params: Sequence[NDArray[Any]], grads: Sequence[NDArray[Any] | None]) -> None:
        """One call: `params` and, with zero_grad, `grads` are changed in place.

        None counts as a gradient of 0 among those that are summed, and leaves a parameter and its
        state, averages apart, as they are where all gradients since the latest update were None.
        ValueError if that is so of all parameters, or for `nonfinite`; nothing has changed then.
        """
        formula = self.options.copy()
        lr, maximize = formula.pop("lr"), formula.pop("maximize")
        cycle = formula.pop("gradient_accumulation_steps") or 1
        nonfinite, zero_grad = formula.pop("nonfinite"), formula.pop("zero_grad")
        use_ema, keep = formula.pop("use_ema"), formula.pop("ema_momentum")
        frequency = formula.pop("ema_overwrite_frequency")
        calls = self.calls + 1
        summing = cycle > 1 or calls > 1
        if nonfinite != "propagate" and not self.finite(grads, summing):
            if nonfinite == "raise":
                raise ValueError("a gradient's square is not finite")
            self.skipped_steps += 1
            if zero_grad:
                clear(grads)
            return
        pending = [on or g is not None for g, on in zip(grads, self.pending, strict=True)]
        if calls >= cycle and not any(pending):
            raise ValueError("all gradients are None")
        if use_ema and not self.averages:
            self.moving_averages = [p.copy(order="K") for p in params]
        self.averages = use_ema  # state of an option that is off is dropped
        if not self.options["momentum"]:
            clear(self.momentums)
        if not self.options["centered"]:
            clear(self.average_gradients)
        used = list(grads)
        if summing:
            with np.errstate(all="ignore"):
                for total, g in zip(self.gradient_sums, grads, strict=True):
                    if g is not None:
                        total += g
            sums = zip(self.gradient_sums, pending, strict=True)
            used = [total if on else None for total, on in sums]
        if calls >= cycle:
            formula["lr"] = lr(self.total_calls) if callable(lr) else lr
            formula["factor"] = (-1.0 if maximize else 1.0) * (1.0 / calls)
            state = (self.accumulators, self.iterations, self.momentums, self.average_gradients)
            step(params, used, *state, **formula)
            clear(self.gradient_sums)
        if use_ema:
            overwrites = bool(frequency) and (self.iterations + 1) % frequency == 0
            average(params, self.moving_averages, keep if self.iterations else 0, overwrites)
        if zero_grad:
            clear(grads)
        updated = calls >= cycle
        self.pending = [on and summing and not updated for on in pending]
        self.calls = 0 if updated else calls
        self.total_calls += 1
        self.iterations += updated

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The state that the options need, as `rmsprop_c.RMSprop.weights` has it."""
        needed = (
            (self.accumulators, True),
            (self.momentums, self.options["momentum"] > 0),
            (self.average_gradients, self.options["centered"]),
            (self.moving_averages, self.options["use_ema"]),
        )
        return [array for arrays, need in needed if need for array in arrays]

    def finite(self, grads: Sequence[NDArray[Any] | None], summing: bool) -> bool:
        """Whether the squares of the clipped gradients are finite; of sums, of what is added."""
        if not summing:
            names = ("clipnorm", "clipvalue", "parameter_clipnorm")
            limits: dict[str, Any] = {name: self.options.get(name) for name in names}
            grads = clip(grads, **limits)
        with np.errstate(all="ignore"):
            return all(np.isfinite(g * g).all() for g in grads if g is not None)


def average(
    params: Sequence[NDArray[Any]],
    averages: Sequence[NDArray[Any]],
    momentum: float,
    overwrites: bool,
) -> None:
    """Move the averages of all parameters; overwrite these with them when it is time.

    As in Keras 3.15, which averages at every call, whatever has a gradient, and starts again while
    iterations == 0: with a momentum of 0.
    """
    with np.errstate(all="ignore"):
        for p, e in zip(params, averages, strict=True):
            keep = p.dtype.type(momentum)
            e[...] = keep * e + (p.dtype.type(1) - keep) * p
            if overwrites:
                p[...] = e


def clear(arrays: Sequence[NDArray[Any] | None]) -> None:
    """Set all that are not None to 0, in place."""
    for array in arrays:
        if array is not None:
            array[...] = 0


def spread_values(n: int, seed: int, low: int, high: int, dtype: Any) -> NDArray[Any]:
    """N values of both signs with exponents spread over [low, high), the same everywhere."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    fraction = (x >> np.uint64(41)).astype(np.float64) / 2.0**23
    exponent = (x % np.uint64(high - low)).astype(np.int64) + low
    sign = np.where(x & np.uint64(1 << 20), -1.0, 1.0)
    values: NDArray[Any] = np.ldexp(sign * (1.0 + fraction), exponent).astype(dtype)
    return values


CHECKSUM_SHAPES = ((70_001,), (17,), (59, 17), ())
CHECKSUM_STEPS = 3
CHECKSUM_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"clipvalue": 0.5},
    {"clipnorm": 1.0},
    {"clipnorm": 1.0, "clipvalue": 0.001},
    {"gradient_accumulation_steps": 2, "maximize": True, "parameter_clipnorm": 0.5},
    *(
        {
            "momentum": 0.9 if momentum else 0.0,
            "nesterov": momentum == 2,
            "centered": centered,
            "epsilon_in_sqrt": epsilon_in_sqrt,
            "lr_in_momentum": not centered,
            "bias_correction": epsilon_in_sqrt,
            "weight_decay": 0.01,
            "decoupled_weight_decay": momentum == 1,
            "use_ema": centered,
            "flush_subnormals": momentum == 2,
        }
        for centered in (False, True)
        for momentum in (0, 1, 2)
        for epsilon_in_sqrt in (False, True)
    ),
)


def checksum(make: Callable[..., Any], dtype: Any) -> str:
    """Checksum of parameters and state after a few steps of a known model, with many options.

    ``make(params, **options)`` makes an optimizer with ``step(params, grads)`` and ``weights``.
    Gradients reach down to where squares are subnormal in float32, so flushing them shows, and so
    does any other rounding.
    """
    import hashlib  # 3 ms of an import, which no optimizer needs

    digest = hashlib.sha256()
    shapes = list(enumerate(CHECKSUM_SHAPES))
    grads = [
        [
            spread_values(int(np.prod(s)), 10**6 * t + 1000 * i, -72, 8, dtype).reshape(s)
            for i, s in shapes
        ]
        for t in range(1, CHECKSUM_STEPS + 1)
    ]
    start = [spread_values(int(np.prod(s)), 1000 * i, -8, 2, dtype).reshape(s) for i, s in shapes]
    for options in CHECKSUM_OPTIONS:
        params = [p.copy() for p in start]
        opt = make(params, lr=0.01, decay=0.1, **options)
        for g in grads:
            opt.step(params, g)
        for array in (*params, *opt.weights):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    print("float32", checksum(RMSprop, np.dtype("float32")))
    print("float64", checksum(RMSprop, np.dtype("float64")))

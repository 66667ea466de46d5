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


def global_norm(grads: Sequence[NDArray[Any] | None], like: Sequence[NDArray[Any]]) -> float:
    """The L2 norm over all gradients, summed in double in a fixed order.

    Each gradient, in the memory order of its parameter (Fortran's if that is Fortran-contiguous,
    else C's), is cut into blocks of 4096 elements. In a block lane j of 16 adds the squares of
    elements j, j + 16, ... one after the other; then the 16 lanes are added in pairs, and so are
    the blocks of all gradients. `like` are the parameters, or their accumulators.
    """
    blocks = []
    for g, p in zip(grads, like, strict=True):
        if g is None or g.size == 0:
            continue
        flat = np.ravel(g, order="F" if p.flags.fnc else "C").astype(np.float64)
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
    like: Sequence[NDArray[Any]],
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

    def scale(grads: Sequence[NDArray[Any] | None], like: Any, largest: float | None) -> float:
        if largest is None or largest <= 0:
            return factor
        norm = global_norm(grads, like) * abs(factor)
        return (largest / norm if norm >= largest else 1.0) * factor

    def clipped(g: NDArray[Any], scale: float) -> NDArray[Any]:
        real = g.dtype.type
        g = g * real(scale)
        g = np.where(g < real(-bound), real(-bound), g)
        return np.where(g > real(bound), real(bound), g)

    with np.errstate(all="ignore"):
        if parameter_clipnorm is not None and parameter_clipnorm > 0:
            scales = [scale([g], [p], parameter_clipnorm) for g, p in zip(grads, like, strict=True)]
        else:
            scales = [scale(grads, like, clipnorm)] * len(like)
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
    clipped = clip(grads, accumulators, clipnorm, clipvalue, parameter_clipnorm, factor)
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
    number or a callable, `lr_scale` and `exclude_from_weight_decay` by position.
    """

    def __init__(self, params: Sequence[NDArray[Any]], **options: Any) -> None:
        take = options.pop
        start = take("initial_accumulator_value", 0.0)
        self.use_ema = take("use_ema", False)
        self.ema_momentum = take("ema_momentum", 0.99)
        self.ema_overwrite_frequency = take("ema_overwrite_frequency", None)
        self.cycle = take("gradient_accumulation_steps", None) or 1
        self.nonfinite = take("nonfinite", "propagate")
        self.zero_grad = take("zero_grad", False)
        self.maximize = take("maximize", False)
        self.lr = take("lr", 0.001)
        self.options = options
        self.accumulators = [np.full_like(p, start) for p in params]
        self.momentums = [np.zeros_like(p) for p in params]
        self.average_gradients = [np.zeros_like(p) for p in params]
        self.moving_averages = [p.copy(order="K") for p in params]
        self.gradient_sums = [np.zeros_like(p) for p in params]
        self.pending = [False] * len(params)  # gradients that a sum holds
        self.calls = 0  # in the cycle under way
        self.iterations = 0
        self.skipped_steps = 0

    def step(self, params: Sequence[NDArray[Any]], grads: Sequence[NDArray[Any] | None]) -> None:
        """One call: `params` and, with zero_grad, `grads` are changed in place."""
        with np.errstate(all="ignore"):
            if self.nonfinite != "propagate" and not self.finite(grads):
                if self.nonfinite == "raise":
                    raise ValueError("a gradient's square is not finite")
                self.skipped_steps += 1
                return
        active = [g is not None for g in grads]
        calls = self.calls + 1
        used = list(grads)
        if self.cycle > 1 or self.calls:
            for i, g in enumerate(grads):
                if g is not None:
                    self.gradient_sums[i] += g
                    self.pending[i] = True
            sums = zip(self.gradient_sums, self.pending, strict=True)
            used = [total if on else None for total, on in sums]
        if calls >= self.cycle:
            active = [g is not None for g in used]
            step_number = self.iterations * self.cycle + self.calls
            lr = self.lr(step_number) if callable(self.lr) else self.lr
            factor = (-1.0 if self.maximize else 1.0) * (1.0 / calls)
            step(
                params,
                used,
                self.accumulators,
                self.iterations,
                self.momentums,
                self.average_gradients,
                lr=lr,
                factor=factor,
                **self.options,
            )
            for total, on in zip(self.gradient_sums, self.pending, strict=True):
                if on:
                    total[...] = 0
            self.pending = [False] * len(grads)
        if self.use_ema:
            self.average(params, active)
        if self.zero_grad:
            for g in grads:
                if g is not None:
                    g[...] = 0
        if calls >= self.cycle:
            self.iterations += 1
        self.calls = calls % self.cycle

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The state that the options need, as `rmsprop_c.RMSprop.weights` has it."""
        needed = (
            (self.accumulators, True),
            (self.momentums, self.options.get("momentum", 0) > 0),
            (self.average_gradients, self.options.get("centered", False)),
            (self.moving_averages, self.use_ema),
            (self.gradient_sums, self.cycle > 1),
        )
        return [array for arrays, need in needed if need for array in arrays]

    def finite(self, grads: Sequence[NDArray[Any] | None]) -> bool:
        """Whether the squares of the clipped gradients are finite; of sums, of what is added."""
        if self.cycle == 1:
            names = ("clipnorm", "clipvalue", "parameter_clipnorm")
            limits: dict[str, Any] = {name: self.options.get(name) for name in names}
            grads = clip(grads, self.accumulators, **limits)
        return all(np.isfinite(g * g).all() for g in grads if g is not None)

    def average(self, params: Sequence[NDArray[Any]], active: Sequence[bool]) -> None:
        """Move the averages of the active parameters; overwrite these with them when it is time.

        As in Keras 3.15, which averages at every call and starts anew while iterations == 0.
        """
        frequency = self.ema_overwrite_frequency
        with np.errstate(all="ignore"):
            for p, e, on in zip(params, self.moving_averages, active, strict=True):
                if on:
                    keep = p.dtype.type(self.ema_momentum if self.iterations else 0)
                    e[...] = keep * e + (p.dtype.type(1) - keep) * p
                    if frequency and (self.iterations + 1) % frequency == 0:
                        p[...] = e


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

"""The step in NumPy: the specification of the kernels, and the oracle of their tests.

Compare bits, not values: `step` and ``RMSprop.step`` agree in every bit of parameters and
accumulators, NaN's sign and payload aside. Run as a script, this file prints the checksums of
`checksum`; it imports NumPy alone, so they owe nothing to a kernel.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
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
) -> list[NDArray[Any] | None]:
    """Gradients scaled to a global norm of at most clipnorm, then clipped to +-clipvalue.

    None and values <= 0 switch either off. A NaN norm scales by 1, an infinite one by 0.
    """
    scale = 1.0
    with np.errstate(all="ignore"):
        if clipnorm is not None and clipnorm > 0:
            norm = global_norm(grads, like)
            scale = clipnorm / norm if norm >= clipnorm else 1.0
        bound = clipvalue if clipvalue is not None and clipvalue > 0 else np.inf

        def clipped(g: NDArray[Any]) -> NDArray[Any]:
            real = g.dtype.type
            g = g * real(scale)
            g = np.where(g < real(-bound), real(-bound), g)
            return np.where(g > real(bound), real(bound), g)

        return [None if g is None else clipped(g) for g in grads]


def update(
    p: NDArray[Any], g: NDArray[Any], a: NDArray[Any], *, lr: float, rho: float, epsilon: float
) -> None:
    """Update parameter `p` and accumulator `a` in place; every operation rounds to their dtype."""
    real = p.dtype.type
    a[...] = real(rho) * a + (real(1) - real(rho)) * (g * g)
    p[...] = p - (real(lr) * g) / (np.sqrt(a) + real(epsilon))


def step(
    params: Sequence[NDArray[Any]],
    grads: Sequence[NDArray[Any] | None],
    accumulators: Sequence[NDArray[Any]],
    iterations: int,
    *,
    lr: float = 0.001,
    rho: float = 0.9,
    epsilon: float = 1e-8,
    decay: float = 0.0,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
) -> None:
    """One step of a whole model: `params` and `accumulators` are updated in place.

    `iterations` is the number of steps before this one; the arguments are those of `RMSprop`.
    """
    lr_t = learning_rate(lr, decay, iterations)
    grads = clip(grads, accumulators, clipnorm, clipvalue)
    with np.errstate(all="ignore"):
        for p, g, a in zip(params, grads, accumulators, strict=True):
            if g is not None:
                update(p, g, a, lr=lr_t, rho=rho, epsilon=epsilon)


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


CHECKSUM_SHAPES = ((300_001,), (17,), (59, 17), ())
CHECKSUM_STEPS = (
    {"lr": 0.01, "decay": 0.1},
    {"lr": 0.01, "decay": 0.1, "clipvalue": 0.5},
    {"lr": 0.01, "decay": 0.1, "clipnorm": 1.0},
    {"lr": 0.01, "decay": 0.1, "clipnorm": 1.0, "clipvalue": 0.001},
)


def checksum(run: Callable[..., Sequence[NDArray[Any]]], dtype: Any) -> str:
    """Checksum of parameters and accumulators after a few steps of a known model.

    ``run(params, grads, settings)`` makes one step for each pair of a list of gradients and a dict
    of arguments, and returns the accumulators. Gradients reach down to where squares are subnormal
    in float32, so flushing them shows, and so does any other rounding.
    """
    params = [
        spread_values(int(np.prod(shape)), 1000 * i, -8, 2, dtype).reshape(shape)
        for i, shape in enumerate(CHECKSUM_SHAPES)
    ]
    grads = [
        [
            spread_values(p.size, 10**6 * (t + 1) + 1000 * i, -72, 8, dtype).reshape(p.shape)
            for i, p in enumerate(params)
        ]
        for t in range(len(CHECKSUM_STEPS))
    ]
    accumulators = run(params, grads, CHECKSUM_STEPS)
    digest = hashlib.sha256()
    for array in (*params, *accumulators):
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def _run(
    params: Sequence[NDArray[Any]], grads: Any, settings: Sequence[dict[str, float]]
) -> list[NDArray[Any]]:
    accumulators = [np.zeros_like(p) for p in params]
    for t, (g, arguments) in enumerate(zip(grads, settings, strict=True)):
        step(params, g, accumulators, t, **arguments)
    return accumulators


if __name__ == "__main__":
    for name in ("float32", "float64"):
        print(name, checksum(_run, np.dtype(name)))

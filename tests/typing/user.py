"""A user's program, for type checkers alone: `make lint` runs mypy --strict and pyright on it."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from rmsprop_c import (
    Optimizer,
    RMSprop,
    build_info,
    constraints,
    deserialize,
    get,
    get_include,
    get_num_threads,
    schedules,
    serialize,
    set_num_threads,
)

params = [np.ones((3, 2), np.float32), np.ones(2, np.float32)]
grads = [np.ones_like(p) for p in params]

opt = RMSprop(lr=0.01, rho=0.9, momentum=0.9, clipnorm=None, exclude_from_weight_decay=[1])
opt.step(params, grads)
opt.step({"w": params[0]}, {"w": None})
assert_type(opt.bind(params, grads)(), None)
assert_type(opt.lr, float)
assert_type(opt.momentum, float)
assert_type(opt.clipnorm, float | None)
assert_type(opt.centered, bool)
assert_type(opt.iterations, int)
opt.lr = schedules.CosineDecay(0.1, 100)
opt.lr = lambda call: 0.1 / (1 + call)
RMSprop(lr=schedules.ExponentialDecay(0.1, 100, 0.9))

config: dict[str, Any] = opt.get_config()
assert_type(RMSprop.from_config(config), RMSprop)
assert_type(RMSprop.like("torch", lr=0.01, alpha=0.99), RMSprop)
assert_type(deserialize(serialize(opt)), Optimizer)
assert_type(get("rmsprop"), Optimizer)

opt.save("run.npz")
assert_type(RMSprop.load("run.npz"), RMSprop)
weights: list[NDArray[Any]] = opt.get_weights()
opt.set_weights(weights)
with opt.averaged(params):
    pass


def loss(params: list[NDArray[Any]]) -> tuple[float, list[NDArray[Any]]]:
    """Half of the sum of squares, and its gradient."""
    return 0.5 * float(sum((p * p).sum() for p in params)), [p.copy() for p in params]


updates = opt.get_updates(params, [constraints.MaxNorm(2.0), None], loss)
assert_type(updates, list[NDArray[Any]])
opt.get_gradients(loss, params)
opt.apply_gradients(zip(grads, params, strict=True))

set_num_threads(2)
assert_type(get_num_threads(), int)
assert_type(get_include(), str)
assert_type(build_info(), dict[str, Any])


class Halved(RMSprop):
    """A subclass with an argument of its own."""

    def __init__(self, half: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.half = half

    def get_config(self) -> dict[str, Any]:
        """The argument too."""
        return super().get_config() | {"half": self.half}


assert_type(Halved.from_config({"half": False}), Halved)

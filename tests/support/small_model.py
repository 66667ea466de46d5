"""A small model, and steps on it by reference.py."""

import numpy as np
from common import assert_same_bits

from rmsprop_c import RMSprop, reference

KEYS = ("W", "b", "s")


ALL_OPTIONS = {
    "lr": 0.02,
    "rho": 0.85,
    "epsilon": 1e-6,
    "decay": 0.1,
    "clipnorm": 2.0,
    "clipvalue": 0.7,
}


def model(seed=0, order="C"):
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.standard_normal((5, 4)), order=order),
        rng.standard_normal(4).astype(np.float32),
        np.array(rng.standard_normal()),
    ]


def all_grads(steps, order="C"):
    return [model(100 + t, order) for t in range(steps)]


def same(found, expected):
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert_same_bits(x, y, f"[{i}]")


def by_reference(params, grads, iterations=0, **options):
    """Parameters and accumulators after these steps."""
    params = [p.copy(order="K") for p in params]
    accumulators = [np.zeros_like(p) for p in params]
    for t, g in enumerate(grads):
        reference.step(params, g, accumulators, iterations + t, **options)
    return params, accumulators


class Doubled(RMSprop):
    """A subclass with an argument and attributes of its own."""

    def __init__(self, factor=2, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.history = []

    def get_config(self):
        return {"factor": self.factor, **super().get_config()}


def as_form(arrays, form):
    return dict(zip(KEYS, arrays, strict=True)) if form == "dict" else list(arrays)

"""RMSprop as people write it: a loop over parameters, raw pointers, OpenMP, and no questions asked.

Where nothing goes wrong it has the right bits. Each test of test_hazards.py must fail on it.
"""

import ctypes
import os

import numpy as np

team = max(2, os.cpu_count())


def set_num_threads(n):
    global team
    team = n or max(2, os.cpu_count())


def get_num_threads():
    return team


class threads:  # noqa: N801, a module of ours
    @staticmethod
    def processors(root):
        return os.cpu_count()


def library():
    # NAIVE_GIL: as an extension that does not release it.
    load = ctypes.PyDLL if os.environ.get("NAIVE_GIL") else ctypes.CDLL
    native = load(os.environ["NAIVE_LIBRARY"])
    pointer, real = ctypes.c_void_p, ctypes.c_float
    native.naive_step.argtypes = [*[pointer] * 4, ctypes.c_long, *[real] * 5, ctypes.c_int]
    native.naive_sum_of_squares.argtypes = [pointer, ctypes.c_long, ctypes.c_int]
    native.naive_sum_of_squares.restype = real
    return native


class RMSprop:
    def __init__(
        self,
        lr=0.001,
        rho=0.9,
        epsilon=1e-8,
        decay=0.0,
        clipnorm=None,
        momentum=0.0,
        use_ema=False,
        ema_momentum=0.99,
        gradient_accumulation_steps=1,
        zero_grad=False,
        **kwargs,
    ):
        self.lr = float(lr)
        self.rho = float(rho)
        self.epsilon = float(epsilon)
        self.decay = float(decay)
        self.clipnorm = clipnorm
        self.momentum = float(momentum)
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.cycle = gradient_accumulation_steps or 1
        self.zero_grad = zero_grad
        self.native = library()
        self.iterations = np.float32(0)
        self.calls = 0
        self.accumulators, self.momentums, self.averages, self.sums = [], [], [], []

    @classmethod
    def from_config(cls, config):
        return cls(**{name: float(value) for name, value in config.items()})

    def build(self, params):
        self.accumulators = [np.zeros_like(p) for p in params]
        self.momentums = [np.zeros_like(p) for p in params]
        self.averages = [p.copy() for p in params] if self.use_ema else []
        self.sums = [np.zeros_like(p) for p in params] if self.cycle > 1 else []

    def addresses(self, params, grads):
        return [
            (p.ctypes.data, g.ctypes.data, a.ctypes.data, m.ctypes.data, p.size)
            for p, g, a, m in zip(params, grads, self.accumulators, self.momentums, strict=True)
        ]

    def update(self, addresses):
        t = self.iterations
        lr = self.lr * (1.0 / (1.0 + self.decay * float(t)))
        scale = 1.0
        if self.clipnorm:
            squares = [self.native.naive_sum_of_squares(g, n, team) for _, g, *_, n in addresses]
            scale = min(1.0, self.clipnorm / np.sqrt(sum(squares)))
        for *pointers, size in addresses:
            self.native.naive_step(
                *pointers, size, lr, self.rho, self.epsilon, self.momentum, scale, team
            )
        self.iterations = np.float32(t) + np.float32(1)

    def step(self, params, grads):
        if not self.accumulators:
            self.build(params)
        given = grads
        if self.sums:
            for total, g in zip(self.sums, grads, strict=True):
                total += g
            grads = [total / np.float32(self.cycle) for total in self.sums]
        self.calls += 1
        if self.calls % self.cycle == 0:
            self.update(self.addresses(params, grads))
            for total in self.sums:
                total[...] = 0
        for average, p in zip(self.averages, params, strict=False):
            average += (1 - self.ema_momentum) * (p - average)
        if self.zero_grad:
            for g in given:
                g[...] = 0

    def bind(self, params, grads):
        self.build(params)
        addresses = self.addresses(params, grads)
        return lambda: self.update(addresses)

    def get_weights(self):
        arrays = [*self.accumulators, *(self.momentums if self.momentum else [])]
        return [x.copy() for x in [*arrays, *self.averages, *self.sums]]

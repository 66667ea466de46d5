"""What the pages and docstrings say of `rmsprop_c.RMSprop`, in plain NumPy: no line of the package.

It takes lists of contiguous arrays alone, and shares no line with `reference.py`, so that both can
be compared with it.
"""

import math

import numpy as np

SLOTS = ("accumulator", "momentum", "average_gradient", "moving_average", "gradient_sum")
DEFAULTS = {
    "lr": 0.001,
    "rho": 0.9,
    "epsilon": 1e-8,
    "decay": 0.0,
    "clipnorm": None,
    "clipvalue": None,
    "parameter_clipnorm": None,
    "momentum": 0.0,
    "nesterov": False,
    "centered": False,
    "epsilon_in_sqrt": False,
    "initial_accumulator_value": 0.0,
    "lr_in_momentum": True,
    "bias_correction": False,
    "maximize": False,
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "gradient_accumulation_steps": None,
    "nonfinite": "propagate",
    "flush_subnormals": False,
    "zero_grad": False,
    "lr_scale": None,
    "exclude_from_weight_decay": (),
}


class RefusedError(Exception):
    """The call must raise and change nothing."""


def tree(terms):
    """The sum of terms by neighbours, an odd last one passing up as it is."""
    terms = list(terms)
    while len(terms) > 1:
        odd = [terms.pop()] if len(terms) % 2 else []
        terms = [left + right for left, right in zip(terms[::2], terms[1::2], strict=True)] + odd
    return terms[0] if terms else 0.0


def norm(arrays):
    """The L2 norm over arrays, each in C's order: 16 lanes a block of 4,096, and then trees."""
    blocks = []
    for array in arrays:
        values = array.reshape(-1).astype(float)
        for start in range(0, values.size, 4096):
            squares = values[start : start + 4096] ** 2
            lanes = [squares[j::16] for j in range(16)]
            # accumulate adds one after the other; sum would not
            blocks.append(tree(np.add.accumulate(x)[-1] if x.size else 0.0 for x in lanes))
    return math.sqrt(tree(blocks)) if blocks else 0.0


def to_the(x, n):
    """x**n by squares, which float(x) ** n need not give to the last bit."""
    bits, power = [], x
    while n:
        if n & 1:
            bits.append(power)
        power, n = power * power, n >> 1
    return math.prod(bits)


class Model:
    """The optimizer: arguments as those of RMSprop, by position, and `options` to change them."""

    def __init__(self, **options):
        self.options = {**DEFAULTS, **options}
        self.slots = None  # by name, lists of arrays; None before the first step
        self.pending = []
        self.iterations = self.calls = self.total_calls = self.skipped_steps = 0

    def __getattr__(self, name):
        try:
            return self.options[name]
        except KeyError:
            raise AttributeError(name) from None

    # What a state consists of.

    @property
    def cycle(self):
        return self.gradient_accumulation_steps or 1

    @property
    def needed(self):
        """Names of the slots that the options need."""
        wanted = (True, self.momentum > 0, self.centered, self.use_ema, self.cycle > 1)
        return [name for name, on in zip(SLOTS, wanted, strict=True) if on]

    @property
    def weights(self):
        names = [x for x in self.needed if x != "gradient_sum" and x in (self.slots or {})]
        return [array for name in names for array in self.slots[name]]

    def build(self, params):
        if self.slots is None:
            start = self.initial_accumulator_value
            self.slots = {"accumulator": [np.full(p.shape, start, p.dtype) for p in params]}
            self.pending = [False] * len(params)
        for name in self.needed:
            if name not in self.slots:
                moving = name == "moving_average"
                self.slots[name] = [p.copy() if moving else np.zeros_like(p) for p in params]
        self.slots = {name: self.slots[name] for name in SLOTS if name in self.slots}

    def keep(self, names):
        self.slots = {name: x for name, x in self.slots.items() if name in names}

    def reset(self):
        self.slots, self.pending = None, []
        self.iterations = self.calls = self.total_calls = self.skipped_steps = 0

    def count_from(self, iterations):
        """`iterations` is assigned."""
        total = iterations * self.cycle + self.calls
        if total > 2**62:
            raise RefusedError
        self.iterations, self.total_calls = iterations, total

    def replace(self, slots, iterations=None, calls=0, pending=None):
        """set_weights and import_state: a cycle begins, but for `calls` of it."""
        if iterations is not None:
            if iterations * self.cycle + calls > 2**62:
                raise RefusedError
            self.iterations = iterations
            self.total_calls = iterations * self.cycle + calls
        accumulators = slots["accumulator"]
        for name, arrays in slots.items():
            self.slots[name] = [np.array(x) for x in arrays]
        if "gradient_sum" in self.slots and "gradient_sum" not in slots:
            self.slots["gradient_sum"] = [np.zeros_like(x) for x in accumulators]
        self.calls = calls
        self.pending = [False] * len(accumulators) if pending is None else pending
        self.keep(self.needed)
        self.slots = {name: self.slots[name] for name in SLOTS if name in self.slots}

    # What a call does.

    def check(self, params, grads):
        """Raise RefusedError for what a call must not go on with."""
        for i, p in enumerate(params):
            apart = self.decoupled_weight_decay and self.weight_decay > 1
            rate = self.rate_of(i) * (self.weight_decay if apart else 1)
            rate = rate if self.calls + 1 >= self.cycle else 0  # of updates alone
            with np.errstate(over="ignore"):
                if np.isinf(p.dtype.type(rate)):
                    raise RefusedError
        if any(p.dtype == np.float32 for p in params):
            self.check_float32()
        some = [
            g is not None or on
            for g, on in zip(grads, self.pending or [False] * len(grads), strict=True)
        ]
        if not params or (self.calls + 1 >= self.cycle and not any(some)):
            raise RefusedError
        if self.total_calls >= 2**62:
            raise RefusedError

    def check_float32(self):
        """Raise for a scalar that float32 rounds to another with which training ends."""
        with np.errstate(over="ignore"):
            single = {
                name: float(np.float32(value))
                for name, value in self.options.items()
                if isinstance(value, float)
            }
        for name in ("rho", "momentum", *(["ema_momentum"] if self.use_ema else [])):
            if single[name] == 1 != self.options[name]:
                raise RefusedError
        if math.isinf(single["epsilon"]) or (self.epsilon and not single["epsilon"]):
            raise RefusedError
        first = 1 - self.rho if self.epsilon_in_sqrt else math.sqrt(1 - self.rho)
        if self.bias_correction and self.epsilon and not np.float32(self.epsilon * first):
            raise RefusedError
        if math.isinf(single["weight_decay"]) and not self.decoupled_weight_decay:
            raise RefusedError
        self.check_limits()

    def check_limits(self):
        for name in ("clipnorm", "clipvalue", "parameter_clipnorm"):
            if (self.options[name] or 0) > 0 and np.float64(self.options[name]) <= 2.0**-150:
                raise RefusedError

    def current_rate(self):
        return self.lr(self.total_calls) if callable(self.lr) else self.lr

    def rate_of(self, i):
        return self.current_rate() * (1.0 if self.lr_scale is None else self.lr_scale[i])

    def is_finite(self, grads):
        """Are the squares? Of gradients that are summed as they come, of others clipped."""
        if self.cycle == 1 and self.calls == 0:
            grads = self.clipped(grads, 1)
        return all(np.isfinite(g * g).all() for g in grads if g is not None)

    def clipped(self, grads, calls):
        """The mean over calls, against its sign to maximize, within the norms and the range."""
        given = [g for g in grads if g is not None]
        found = []
        for g in grads:
            if g is None:
                found.append(None)
                continue
            limit, of = self.clipnorm, given
            if (self.parameter_clipnorm or 0) > 0:
                limit, of = self.parameter_clipnorm, [g]
            scale = 1 / calls
            if (limit or 0) > 0:
                length = np.float64(norm(of)) * (1 / calls)
                if length >= limit:
                    scale = float(limit / length) * (1 / calls)
            scaled = np.array(g * g.dtype.type(-scale if self.maximize else scale))
            if (self.clipvalue or 0) > 0:
                bound = g.dtype.type(self.clipvalue)
                scaled[scaled > bound] = bound
                scaled[scaled < -bound] = -bound
            found.append(scaled)
        return found

    def step(self, params, grads):
        """One call. Returns whether it updated, did not, or was skipped: True, False or None."""
        self.check(params, grads)
        with np.errstate(all="ignore"):
            if self.nonfinite != "propagate" and not self.is_finite(grads):
                if self.nonfinite == "raise":
                    raise RefusedError
                self.skipped_steps += 1
                self.clear_gradients(grads)
                return None
            self.build(params)
            summing = self.cycle > 1 or self.calls > 0
            self.keep([*self.needed, "gradient_sum"] if summing else self.needed)
            self.calls += 1
            self.total_calls += 1
            if summing:
                sums = self.slots["gradient_sum"]
                for i, g in enumerate(grads):
                    if g is not None:
                        sums[i] = np.asarray(sums[i] + g)
                        self.pending[i] = True
            updates = self.calls >= self.cycle
            if updates:
                along = grads
                if summing:
                    along = [x if on else None for x, on in zip(sums, self.pending, strict=True)]
                for i, g in enumerate(self.clipped(along, self.calls)):
                    if g is not None:
                        self.update(i, params[i], g)
                if summing:
                    self.slots["gradient_sum"] = [np.zeros_like(x) for x in sums]
                self.calls, self.pending = 0, [False] * len(params)
            if self.use_ema:
                self.follow(params)
            self.clear_gradients(grads)
            self.iterations += updates
        return updates

    def clear_gradients(self, grads):
        for g in grads if self.zero_grad else ():
            if g is not None:
                g[...] = 0

    def follow(self, params):
        """Averages follow all parameters at every call."""
        every = self.ema_overwrite_frequency
        for i, p in enumerate(params):
            keep = p.dtype.type(self.ema_momentum if self.iterations else 0)
            e = keep * self.slots["moving_average"][i] + (1 - keep) * p
            self.slots["moving_average"][i] = np.asarray(e, p.dtype)
            if every and (self.iterations + 1) % every == 0:
                p[...] = e

    def update(self, i, p, g):
        """One parameter, with its clipped gradient; p changes in place."""
        real = p.dtype.type
        t = self.iterations
        rate = self.lr(self.total_calls - 1) if callable(self.lr) else self.lr
        rate = rate * (1 / (1 + self.decay * float(t)))
        if self.lr_scale is not None:
            rate = rate * self.lr_scale[i]
        if self.weight_decay > 0 and i not in self.exclude_from_weight_decay:
            if self.decoupled_weight_decay:
                p[...] = p - real(rate * self.weight_decay) * p
            else:
                g = g + real(self.weight_decay) * p
        rho = real(self.rho)
        inside, outside, epsilon, correction = rate, 1.0, self.epsilon, 1.0
        if self.momentum > 0 and not self.lr_in_momentum:
            inside, outside = 1.0, rate
        if self.bias_correction:
            left = 1 - to_the(float(self.rho), t + 1)
            inside = inside * math.sqrt(left)
            epsilon = epsilon * (left if self.epsilon_in_sqrt else math.sqrt(left))
            correction = 1 / left
        a = rho * self.slots["accumulator"][i] + (1 - rho) * (g * g)
        under = a
        if self.centered:
            mean = rho * self.slots["average_gradient"][i] + (1 - rho) * g
            under = a - mean * mean * real(correction)
            under = np.where(under < 0, real(0), under)
            self.store("average_gradient", i, mean, p)
        if self.epsilon_in_sqrt:
            d = real(inside) * g / np.sqrt(under + real(epsilon))
        else:
            d = real(inside) * g / (np.sqrt(under) + real(epsilon))
        if self.momentum > 0:
            mu = real(self.momentum)
            m = mu * self.slots["momentum"][i] + d
            d = real(outside) * (d + mu * m if self.nesterov else m)
            self.store("momentum", i, m, p)
        self.store("accumulator", i, a, p)
        p[...] = p - d

    def store(self, name, i, value, p):
        value = np.array(value, p.dtype)
        if self.flush_subnormals:
            value[np.abs(value) < np.finfo(p.dtype).tiny] = 0
        self.slots[name][i] = value

"""A model in a state before and after steps, and that an error changes nothing of it."""

import collections.abc

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, reference

OPTIONS = {"lr": 0.01, "rho": 0.8, "decay": 0.1, "clipnorm": 100.0}


KEYS = ("W", "b", "c", "d")


def model():
    """Fresh parameters and gradients; 1 and 3 are alike."""
    rng = np.random.default_rng(0)
    like = [((4, 3), "float32"), (3, "float32"), (5, "float64"), (3, "float32")]
    return tuple([rng.standard_normal(s).astype(d) for s, d in like] for _ in range(2))


def values(container):
    """The entries of whatever was passed for a model."""
    if isinstance(container, collections.abc.Mapping):
        return list(container.values())
    return list(container) if isinstance(container, (list, tuple)) else [container]


def memory(*containers):
    """All bytes of all arrays, and of the arrays that these are views of."""
    seen = []
    for x in [entry for container in containers for entry in values(container)]:
        while isinstance(x, np.ndarray):
            seen.append((x.tobytes(), str(x.dtype), x.shape, x.strides))
            x = x.base
    return seen


def state(opt):
    weights = [(w.tobytes(), w.dtype, w.shape) for w in opt.get_weights()]
    return weights, opt.iterations, opt.get_config(), vars(opt).copy()


def built(stage, **options):
    """An optimizer, and the arrays that it knows, before or after its first steps."""
    opt, (params, grads) = RMSprop(**OPTIONS | options), model()
    if stage == "after steps":
        for _ in range(2):
            opt.step(params, grads)
    return opt, params, grads


def check_usable(opt, params, grads):
    """A right step after the refusals has the reference's bits."""
    expected, accumulators = [p.copy() for p in params], opt.get_weights()
    accumulators = accumulators or [np.zeros_like(p) for p in params]
    options = dict(opt.get_config())
    reference.step(expected, grads, accumulators, opt.iterations, **options)
    opt.step(params, grads)
    for found, right in zip([*params, *opt.weights], [*expected, *accumulators], strict=True):
        assert_same_bits(found, right)


def by_step(opt, params, grads):
    opt.step(params, grads)


def by_bind(opt, params, grads):
    opt.bind(params, grads)


def by_get_updates(opt, params, grads):
    opt.get_updates(params, None, lambda _: (0.0, grads))


CALLS = {"step": by_step, "bind": by_bind, "get_updates": by_get_updates}


def refused(call, opt, params, grads, exception, message):
    """The call is refused with this message, and nothing has changed."""
    memory_before, state_before = memory(params, grads), state(opt)
    with pytest.raises(exception, match=message) as raised:
        call(opt, params, grads)
    assert type(raised.value) is exception
    assert memory(params, grads) == memory_before
    assert state(opt) == state_before


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def whole(change):
    """A case that makes both containers from the right ones."""
    return lambda opt, params, grads: change(params, grads)


def as_dict(arrays, keys=KEYS):
    return dict(zip(keys, arrays, strict=False))


ANY, BUILT = ("first step", "after steps"), ("after steps",)

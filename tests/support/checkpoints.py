"""What the tests of checkpoints share."""

import numpy as np

from rmsprop_c import RMSprop


def through_a_file(opt, path, **arguments):
    opt.save(path)
    return type(opt).load(path, **arguments)


def optimizer(value=0.5, size=6):
    """An optimizer whose state has one value, and so many numbers."""
    opt = RMSprop(rho=0.0)
    opt.step([np.ones(size)], [np.full(size, float(value))])
    return opt

"""RMSprop, and making optimizers by name."""

from collections.abc import Mapping
from typing import Any

from . import serialization
from .optimizer import DEFAULT, Optimizer


class RMSprop(Optimizer):
    """RMSprop as in Keras 2.0, over NumPy arrays, in place.

    For every element of a parameter p with gradient g and accumulator a, which starts at 0::

        a <- rho*a + (1 - rho)*g**2
        p <- p - lr * g / (sqrt(a) + epsilon)

    Parameters
    ----------
    lr : float
        Learning rate, at least 0. ``learning_rate`` is another name for it.
    rho : float
        Decay of the accumulator, in [0, 1].
    epsilon : float
        Added to the root, at least 0.
    decay : float
        At each step lr is divided by 1 + decay * iterations; at least 0.
    clipnorm : float, optional
        Gradients are scaled so that the L2 norm over all of them together is at most this. None
        and values <= 0 switch it off.
    clipvalue : float, optional
        Elements of gradients are clipped to [-clipvalue, clipvalue], after clipnorm. None and
        values <= 0 switch it off.

    Raises
    ------
    TypeError, ValueError
        For an unknown keyword or a value out of range, by name.

    Notes
    -----
    All of them are attributes that can be assigned at any time; the next step uses them.

    The formula, its order of operations and the defaults are those of
    ``tf.contrib.keras.optimizers.RMSprop`` in TensorFlow 1.3; in float64 the results are too, bit
    for bit (the README says how clipping and decay compare). The method is from T. Tieleman and G.
    Hinton, Lecture 6.5 of Neural Networks for Machine Learning, Coursera 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_c import RMSprop
    >>> w = np.array([3.0, -2.0])
    >>> opt = RMSprop(lr=0.01)
    >>> for _ in range(500):
    ...     opt.step([w], [2 * w])   # the gradient of sum(w**2)
    >>> bool(abs(w).max() < 0.01)
    True
    """

    def __init__(
        self,
        lr: float = DEFAULT["lr"],
        rho: float = DEFAULT["rho"],
        epsilon: float = DEFAULT["epsilon"],
        decay: float = DEFAULT["decay"],
        **kwargs: Any,
    ) -> None:
        if "learning_rate" in kwargs:
            if lr is not DEFAULT["lr"]:  # not !=: lr=0.001 was given too
                raise TypeError("both lr and learning_rate were given: they are the same argument")
            lr = kwargs.pop("learning_rate")
        super().__init__(**kwargs)
        self.lr = lr
        self.rho = rho
        self.epsilon = epsilon
        self.decay = decay

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "lr": self.lr,
            "rho": self.rho,
            "decay": self.decay,
            "epsilon": self.epsilon,
        }
        return config | super().get_config()


KNOWN = {"RMSprop": RMSprop, "rmsprop": RMSprop}


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer as ``{"class_name": ..., "config": ...}``, without its state."""
    return serialization.serialize(optimizer)


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Make the optimizer that `serialize` described; `config` is not changed."""
    return serialization.deserialize(config, KNOWN, custom_objects, "optimizer")


def get(identifier: Any) -> Any:
    """The optimizer for a name, a serialized optimizer, or an optimizer itself.

    Raises
    ------
    ValueError
        If there is none.
    """
    if isinstance(identifier, Optimizer):
        return identifier
    return serialization.get(identifier, KNOWN, "optimizer")

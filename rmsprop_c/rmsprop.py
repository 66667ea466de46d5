"""RMSprop, and making optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import serialization
from .hyperparameters import DEFAULT
from .optimizer import Optimizer

if TYPE_CHECKING:
    from typing import Self


class RMSprop(Optimizer):
    """RMSprop over NumPy arrays, in place: by default that of Keras 2.0, by options any other.

    For every element of a parameter p with gradient g and accumulator a, which starts at 0::

        a <- rho*a + (1 - rho)*g**2
        p <- p - lr * g / (sqrt(a) + epsilon)

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0; ``learning_rate`` is another name for it. Or a schedule of
        `rmsprop_c.schedules`, or any callable of the number of calls so far.
    rho : float
        Decay of the accumulator, in [0, 1].
    epsilon : float
        Added to the root, at least 0. None is 1e-7, as in Keras 2.1 to 2.3.
    decay : float
        At each step lr is divided by 1 + decay * iterations; at least 0. Not with a schedule.
    clipnorm : float, optional
        Gradients are scaled so that the L2 norm over all of them together is at most this. None
        and values <= 0 switch it off.
    clipvalue : float, optional
        Elements of gradients are clipped to [-clipvalue, clipvalue], after clipnorm. None and
        values <= 0 switch it off.
    parameter_clipnorm : float, optional
        Each gradient is scaled so that its own L2 norm is at most this (Keras 3's clipnorm). Not
        together with clipnorm.
    momentum : float
        With m, which starts at 0: m <- momentum*m + step; p <- p - m. In [0, 1]; 0 is off.
    nesterov : bool
        p <- p - (step + momentum*m) instead.
    centered : bool
        The root is that of a minus the square of a running mean of the gradients (never below 0).
    epsilon_in_sqrt : bool
        Divide by sqrt(a + epsilon).
    initial_accumulator_value : float
        Where a starts. Takes effect when the state is made: at the first step, or after `reset`.
    lr_in_momentum : bool
        lr multiplies the step before it enters m (Keras, TensorFlow, optax), or m as it leaves
        (PyTorch: False). It matters where lr changes.
    bias_correction : bool
        Divide a (and the mean of centered) by 1 - rho**t at update t, as Adam does.
    maximize : bool
        Go along the gradients instead of against them.
    weight_decay : float
        g <- g + weight_decay*p, after clipping (PyTorch).
    decoupled_weight_decay : bool
        p <- p - lr*weight_decay*p before the update instead (Keras 3).
    exclude_from_weight_decay : sequence
        Indices (keys, where params is a dict) of parameters that do not decay.
    lr_scale : sequence or dict, optional
        A factor of lr for each parameter; or by key, where params is a dict (others have 1).
    use_ema, ema_momentum, ema_overwrite_frequency : bool, float, int or None
        Keep moving averages of the parameters: e <- ema_momentum*e + (1 - ema_momentum)*p at every
        call and for every parameter, whether it has a gradient or not, with 0 for ema_momentum
        while iterations is 0. Every so many iterations p <- e. See `averaged` and
        `finalize_variable_values`. As in Keras 3.
    gradient_accumulation_steps : int, optional
        Update at every so many calls only, along the mean of their gradients; `iterations` counts
        updates. None counts as a gradient of 0; a parameter that had None in all of these calls is
        left alone. At least 2. A cycle that is under way when this is assigned ends at the next
        call if it has as many calls by then, and its mean is that of the calls it had.
    nonfinite : {"propagate", "raise", "skip"}
        What a gradient does whose square, after clipping, is not finite: what the formula says;
        ValueError, with nothing changed; or no step, counted in `skipped_steps`. With `zero_grad`
        a skipped step clears the gradients: a NaN in a buffer that adds up would skip all later
        ones. In a cycle of gradient accumulation each call's gradients are looked at, before
        clipping.
    flush_subnormals : bool
        Accumulators, momentums and average gradients smaller than the smallest normal number are
        stored as 0: arithmetic on such numbers is several times slower. Not with an epsilon of 0,
        which would then divide by 0 where gradients have vanished.
    zero_grad : bool
        A step sets the gradients to 0.

    Raises
    ------
    TypeError, ValueError
        For an unknown keyword or a value out of range, by name.

    Notes
    -----
    All of them are attributes that can be assigned at any time; the next step uses them. What an
    option that is off has left (momentums, average gradients, moving averages) is no part of the
    weights any more, and that step drops it: it starts afresh when the option comes on again.

    A step raises for a scalar that float32, where it is in use, rounds to one with which training
    ends: rho, momentum or ema_momentum below 1 to 1, a positive epsilon or limit to 0, lr,
    weight_decay or epsilon to infinity.

    The formula, its order of operations and the defaults are those of
    ``tf.contrib.keras.optimizers.RMSprop`` in TensorFlow 1.3; in float64 the results are too, bit
    for bit (docs/guarantees.md says how clipping and decay compare). The method is from T. Tieleman
    and G. Hinton, Lecture 6.5 of Neural Networks for Machine Learning, Coursera 2012.

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

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if args and cls.__init__ is RMSprop.__init__ and _is_model(args[0]):
            raise TypeError(
                f"{cls.__name__} was given a {type(args[0]).__name__}, but takes hyper-parameters "
                "only: pass parameters to each step, opt.step(params, grads)"
            )
        return super().__new__(cls)

    def __init__(
        self,
        lr: float | Callable[[int], float] = DEFAULT["lr"],
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
        config = self._keras_arguments()
        if callable(config["lr"]):
            if not hasattr(config["lr"], "get_config"):
                raise TypeError(
                    f"lr is {config['lr']!r}, which a config can't hold; use one of "
                    "rmsprop_c.schedules, or a class with get_config and from_config"
                )
            config["lr"] = serialization.serialize(config["lr"])
        return config | super().get_config()

    @classmethod
    def like(cls, framework: str, **arguments: Any) -> RMSprop:
        """The RMSprop of another framework, from that framework's arguments.

        Parameters
        ----------
        framework : {"keras2", "keras3", "tf1", "tf_keras", "torch", "optax", "timm"}
            ``tf.contrib.keras`` and Keras 2.0; Keras 3, and ``tf_keras.optimizers`` (tf.keras from
            2.11 on); ``tf.compat.v1.train``; ``tf_keras.optimizers.legacy`` (tf.keras up to 2.10);
            PyTorch; optax; timm's RMSpropTF.
        **arguments
            The arguments of that framework's class, under its names and with its defaults; beyond
            them, options of this class that it does not have. With "tf_keras" those that the later
            class of tf.keras has (`weight_decay`, `use_ema`, ...) raise.

        Returns
        -------
        RMSprop

        Raises
        ------
        TypeError, ValueError
            For an unknown framework or argument, a value out of range, or a config of another
            class of tf.keras, by name.

        Notes
        -----
        `momentum` of ``tf_keras`` decides at this moment where epsilon stands, as it does there.

        Examples
        --------
        >>> from rmsprop_c import RMSprop
        >>> RMSprop.like("torch", alpha=0.9, momentum=0.5)
        RMSprop(lr=0.01, rho=0.9, decay=0.0, epsilon=1e-08, momentum=0.5, lr_in_momentum=False)
        """
        from . import presets

        made = cls(**presets.translate(framework, arguments))
        made._framework = framework  # its names, where they mean another thing here, raise
        return made


def _is_model(value: Any) -> bool:
    """Whether it is parameters, as torch's optimizers take them, and no learning rate."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, (list, tuple, dict, Iterator))


KNOWN = {"RMSprop": RMSprop, "rmsprop": RMSprop}


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer as ``{"class_name": ..., "config": ...}``, without its state."""
    return serialization.serialize(optimizer)


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Optimizer:
    """Make the optimizer that `serialize` described; `config` is not changed."""
    made: Optimizer = serialization.deserialize(config, KNOWN, custom_objects, "optimizer")
    return made


def get(identifier: str | Mapping[str, Any] | Optimizer) -> Optimizer:
    """The optimizer for a name, a serialized optimizer, or an optimizer itself.

    Raises
    ------
    ValueError
        If there is none.
    """
    if isinstance(identifier, Optimizer):
        return identifier
    made: Optimizer = serialization.get(identifier, KNOWN, "optimizer")
    return made

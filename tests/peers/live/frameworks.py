"""The optimizers of other frameworks behind one interface.

Whatever is expected comes from here, so nothing in here knows rmsprop_c. A framework is imported
when its first optimizer is made.
"""

import functools
import importlib.util
import multiprocessing
import os
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from cases import inputs

# Read when the frameworks are imported.
os.environ.update(
    KERAS_BACKEND="torch",
    JAX_PLATFORMS="cpu",
    JAX_ENABLE_X64="1",
    TF_CPP_MIN_LOG_LEVEL="3",
    CUDA_VISIBLE_DEVICES="",
)

DISTRIBUTIONS = ("jax", "keras", "numpy", "optax", "tensorflow-cpu", "tf_keras", "timm", "torch")
NORMS = {"clipnorm", "global_clipnorm"}

# The optimizers. Each runs what `original` returns, and is made from parameters, which it copies,
# and the framework's own arguments. `step` takes gradients, `set_lr` is for the steps to follow,
# `params` returns the parameters. Where state can be exchanged `state` returns it in the form of
# the framework, with leaves that `leaf` makes from arrays, and `load` takes it back.


class Torch:
    def __init__(self, params, arguments):
        import torch

        self.tensor, self.leaf = torch.tensor, torch.from_numpy
        self.parameters = [torch.nn.Parameter(torch.tensor(p)) for p in params]
        self.optimizer = self.original()(self.parameters, **arguments)

    @staticmethod
    def original():
        from torch.optim import RMSprop

        return RMSprop

    def step(self, grads):
        for p, g in zip(self.parameters, grads, strict=True):
            p.grad = self.tensor(g)
        self.optimizer.step()

    def set_lr(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def params(self):
        return [p.detach().numpy().copy() for p in self.parameters]

    def state(self):
        return self.optimizer.state_dict()

    def load(self, state):
        self.optimizer.load_state_dict(state)


class Timm(Torch):
    @staticmethod
    def original():
        """From timm.optim.rmsprop_tf alone: timm itself wants torchvision.

        Two empty packages stand in for those that contain it; their paths lead to its neighbours.
        """
        if "timm" not in sys.modules:
            root = Path(importlib.util.find_spec("timm").origin).parent
            for name, folder in (("timm", root), ("timm.optim", root / "optim")):
                sys.modules[name] = types.ModuleType(name)
                sys.modules[name].__path__ = [str(folder)]
        return importlib.import_module("timm.optim.rmsprop_tf").RMSpropTF


class Keras3:
    leaf = staticmethod(np.asarray)

    def __init__(self, params, arguments):
        import keras

        self.ops = keras.ops
        dtype = params[0].dtype.name
        keras.config.set_floatx(dtype)  # that of lr and of schedules, whatever the variables have
        self.variables = [keras.Variable(p, dtype=dtype) for p in params]
        arguments = dict(arguments)
        excluded = arguments.pop("exclude_from_weight_decay", ())
        if isinstance(arguments.get("learning_rate"), dict):
            schedule = keras.optimizers.schedules.deserialize(arguments["learning_rate"])
            arguments["learning_rate"] = schedule
        self.optimizer = self.original()(**arguments)
        if excluded:
            self.optimizer.exclude_from_weight_decay([self.variables[i] for i in excluded])
        self.optimizer.build(self.variables)

    @staticmethod
    def original():
        from keras.optimizers import RMSprop

        return RMSprop

    def step(self, grads):
        self.optimizer.apply([self.ops.convert_to_tensor(g) for g in grads], self.variables)

    def set_lr(self, lr):
        self.optimizer.learning_rate = lr

    def read(self, variables):
        return [np.array(np.asarray(self.ops.stop_gradient(v.value))) for v in variables]

    def params(self):
        return self.read(self.variables)

    def averages(self):
        """What an evaluation with use_ema sees."""
        return self.read(self.optimizer._model_variables_moving_average)

    def state(self):
        return self.read(self.optimizer.variables)

    def load(self, state):
        for v, value in zip(self.optimizer.variables, state, strict=True):
            v.assign(value)


class Optax:
    leaf = staticmethod(np.asarray)

    def __init__(self, params, arguments):
        import jax

        self.jax, self.arguments = jax, arguments
        self.arrays = [jax.numpy.array(p) for p in params]
        self.optimizer_state = self.make().init(self.arrays)

    @staticmethod
    def original():
        from optax import rmsprop

        return rmsprop

    def make(self):
        from optax import apply_updates

        optimizer = self.original()(**self.arguments)

        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return apply_updates(params, updates), state

        self.jitted = self.jax.jit(step)
        return optimizer

    def step(self, grads):
        self.arrays, self.optimizer_state = self.jitted(self.arrays, self.optimizer_state, grads)

    def set_lr(self, lr):
        self.arguments = {**self.arguments, "learning_rate": lr}
        self.make()

    def params(self):
        return [np.array(p) for p in self.arrays]

    def state(self):
        return self.jax.tree.map(np.array, self.optimizer_state)

    def load(self, state):
        self.optimizer_state = state


class TF1:
    def __init__(self, params, arguments):
        import tensorflow

        self.constant = tensorflow.constant
        self.variables = [tensorflow.Variable(p) for p in params]
        self.optimizer = self.original()(**arguments)

    @staticmethod
    def original():
        from tensorflow.compat.v1.train import RMSPropOptimizer

        return RMSPropOptimizer

    def step(self, grads):
        gradients = [self.constant(g) for g in grads]
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))

    def set_lr(self, lr):
        self.optimizer._learning_rate = lr

    def params(self):
        return [v.numpy().copy() for v in self.variables]


class TFKeras(TF1):
    @staticmethod
    def original():
        from tf_keras.optimizers.legacy import RMSprop

        return RMSprop

    def set_lr(self, lr):
        self.optimizer.learning_rate = lr


class LaterTFKeras(TF1):
    """The class of tf.keras from 2.11 on, with the arguments of Keras 3's."""

    def __init__(self, params, arguments):
        import tf_keras

        tf_keras.backend.set_floatx(params[0].dtype.name)
        arguments = dict(arguments)
        excluded = arguments.pop("exclude_from_weight_decay", ())
        if isinstance(arguments.get("learning_rate"), dict):
            schedule = tf_keras.optimizers.schedules.deserialize(arguments["learning_rate"])
            arguments["learning_rate"] = schedule
        super().__init__(params, arguments)
        if excluded:
            self.optimizer.exclude_from_weight_decay([self.variables[i] for i in excluded])

    @staticmethod
    def original():
        from tf_keras.optimizers import RMSprop

        return RMSprop

    def set_lr(self, lr):
        self.optimizer.learning_rate = lr


FRAMEWORKS = {
    "torch": Torch,
    "keras3": Keras3,
    "tf1": TF1,
    "tf_keras": TFKeras,
    "optax": Optax,
    "timm": Timm,
}


def trajectory(case, dtype):
    """Parameters after each call, and with use_ema their averages, from the framework itself.

    Keras 3.15 promotes float64 to float32 in some functions, not on TensorFlow: on torch a clipped
    norm is rounded so. On TensorFlow its schedules are in float32. Each runs where it is right.
    """
    if case.framework == "keras3" and dtype == "float64" and NORMS & case.arguments.keys():
        return keras_on_tensorflow().submit(run, case, dtype).result()
    return run(case, dtype)


def run(case, dtype):
    start, grads = inputs(dtype, case.scale)
    optimizer = FRAMEWORKS[case.framework](start, case.arguments)
    params, averages = [], []
    for call, g in enumerate(grads):
        if call in dict(case.lr_at):
            optimizer.set_lr(dict(case.lr_at)[call])
        optimizer.step(g)
        params.append(optimizer.params())
        if case.arguments.get("use_ema"):
            averages.append(optimizer.averages())
    return params, averages


@functools.cache
def keras_on_tensorflow():
    """Another process: Keras has one backend in each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, use_keras_backend, ("tensorflow",))


def use_keras_backend(name):
    os.environ["KERAS_BACKEND"] = name

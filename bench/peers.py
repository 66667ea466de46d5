"""The other RMSprops on a CPU, each in its fastest documented form, behind one interface.

A peer is a row of the comparison; rows of one library run in one process. `PEERS` lists them all.
Whatever a peer needs is imported in its own function, after the number of threads is set.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# Parallel loops pay from about here on: a region costs 1 us on 2 cores back to back, 2.4 us when
# numba enters it.
PARALLEL_FROM = 16384


class Hyperparameters(NamedTuple):
    """Of every peer. float32 holds lr exactly: Keras rounds it, which would show in float64."""

    lr: float = 2.0**-10
    rho: float = 0.9
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Library:
    """What the rows of one process share.

    Attributes
    ----------
    name : str
        Key of the process.
    modules : tuple of str
        What must be importable, beyond NumPy.
    distributions : tuple of str
        Whose versions are recorded.
    environment : dict
        Variables that must be set before the import, beside `thread_environment`.
    set_threads : callable
        Takes the number of threads; called once, before anything else runs.
    """

    name: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    set_threads: Callable[[int], Any] = lambda threads: None


@dataclass(frozen=True)
class Peer:
    """One row of the comparison.

    Attributes
    ----------
    name : str
        As the table and ``--peers`` call it.
    library : Library
        Where it comes from.
    make : callable
        ``make(params, grads, hyperparameters, threads) -> (step, read)``. `params` and `grads` are
        lists of C-contiguous arrays; `make` may keep and change `params`, never `grads`. ``step()``
        returns when the step is done; ``read()`` gives the parameters as a list of arrays.
    formula : {'outside', 'inside', None}
        Where epsilon stands: g / (sqrt(a) + eps) as in the package, or g / sqrt(a + eps). None is
        another optimizer.
    """

    name: str
    library: Library
    make: Callable
    formula: str | None = "outside"

    @property
    def same_formula(self) -> bool:
        """Whether it computes what the package computes, up to rounding."""
        return self.formula == "outside"


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that ask every library for this many threads, for a process yet to start."""
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMEXPR_MAX_THREADS",
        "NUMBA_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    )
    return dict.fromkeys(names, str(threads))


def reference(params, grads, hyperparameters, steps, formula="outside"):
    """RMSprop in plain NumPy, in the arrays' dtype, from zero accumulators.

    Parameters
    ----------
    params, grads : list of ndarray
        Neither is changed.
    hyperparameters : Hyperparameters
        Rounded to the arrays' dtype.
    steps : int
        Steps with the same gradients.
    formula : {'outside', 'inside'}
        Where epsilon stands, as in `Peer`.

    Returns
    -------
    list of ndarray
        The new parameters.
    """
    result = []
    for p, g in zip(params, grads, strict=True):
        real = p.dtype.type
        lr, rho, epsilon = map(real, hyperparameters)
        p = p.copy()
        a = np.zeros_like(p)
        for _ in range(steps):
            a = rho * a + (real(1) - rho) * (g * g)
            root = np.sqrt(a) + epsilon if formula == "outside" else np.sqrt(a + epsilon)
            p -= (lr * g) / root
        result.append(p)
    return result


# NumPy and what compiles NumPy code


def numpy_naive(params, grads, hyperparameters, threads):
    """The formula as one writes it down."""
    lr, rho, epsilon = hyperparameters
    accumulators = [np.zeros_like(p) for p in params]

    def step():
        for i, g in enumerate(grads):
            accumulators[i] = rho * accumulators[i] + (1 - rho) * g**2
            params[i] -= lr * g / (np.sqrt(accumulators[i]) + epsilon)

    return step, lambda: params


def numpy_out(params, grads, hyperparameters, threads):
    """No temporary is allocated. Scalars are 0-d arrays: 0.15 us a call less than Python floats."""
    real = params[0].dtype.type
    lr, rho, epsilon = (np.array(real(x)) for x in hyperparameters)
    one_minus_rho = np.array(real(1) - rho)
    scratch = np.empty(max(p.size for p in params), real)
    tensors = [
        (p.reshape(-1), g.reshape(-1), np.zeros(p.size, real), scratch[: p.size])
        for p, g in zip(params, grads, strict=True)
    ]
    add, multiply, subtract, divide, sqrt = np.add, np.multiply, np.subtract, np.divide, np.sqrt

    def step():
        for p, g, a, t in tensors:
            multiply(g, g, t)
            multiply(t, one_minus_rho, t)
            multiply(a, rho, a)
            add(a, t, a)
            sqrt(a, t)
            add(t, epsilon, t)
            divide(g, t, t)
            multiply(t, lr, t)
            subtract(p, t, p)

    return step, lambda: params


def set_numexpr_threads(threads):
    """Its own pool."""
    import numexpr

    numexpr.set_num_threads(threads)


def numexpr_compiled(params, grads, hyperparameters, threads):
    """Two expressions compiled once: evaluate() would look them up at every call."""
    import numexpr

    real = params[0].dtype.type
    lr, rho, epsilon = (np.array(real(x)) for x in hyperparameters)
    one_minus_rho = np.array(real(1) - rho)
    kind = {np.float32: float, np.float64: np.double}[real]  # its names for single and double

    def compiled(expression, *names):
        return numexpr.NumExpr(expression, [(name, kind) for name in names])

    average = compiled("rho*a + one_minus_rho*(g*g)", "a", "g", "rho", "one_minus_rho")
    update = compiled("p - (lr*g)/(sqrt(a) + epsilon)", "p", "g", "a", "lr", "epsilon")
    tensors = [(p, g, np.zeros_like(p)) for p, g in zip(params, grads, strict=True)]
    vml = numexpr.use_vml

    def step():
        for p, g, a in tensors:
            average(a, g, rho, one_minus_rho, out=a, ex_uses_vml=vml)
            update(p, g, a, lr, epsilon, out=p, ex_uses_vml=vml)

    return step, lambda: params


def set_numba_threads(threads):
    """On OpenMP: workqueue, the default without TBB, takes 130 us for a region instead of 2."""
    import numba

    numba.config.THREADING_LAYER = "omp"
    numba.set_num_threads(threads)


def numba_kernels():
    """Compiled loops: one tensor, one tensor in parallel, and a list of tensors likewise.

    Without error_model="numpy" a division by zero must raise, and nothing is vectorised: 2 to 4
    times slower.
    """
    import numba

    def loop(p, g, a, lr, rho, one_minus_rho, epsilon):
        for i in range(p.size):
            a[i] = rho * a[i] + one_minus_rho * (g[i] * g[i])
            p[i] -= lr * g[i] / (math.sqrt(a[i]) + epsilon)

    serial = numba.njit(loop, error_model="numpy")

    @numba.njit(error_model="numpy", parallel=True)
    def parallel(p, g, a, lr, rho, one_minus_rho, epsilon):
        for i in numba.prange(p.size):
            a[i] = rho * a[i] + one_minus_rho * (g[i] * g[i])
            p[i] -= lr * g[i] / (math.sqrt(a[i]) + epsilon)

    @numba.njit(error_model="numpy")
    def share(ps, gs, accumulators, begin, end, lr, rho, one_minus_rho, epsilon):
        offset = 0
        for t in range(len(ps)):
            size = ps[t].size
            low, high = max(begin - offset, 0), min(end - offset, size)
            if low < high:
                p, g, a = ps[t][low:high], gs[t][low:high], accumulators[t][low:high]
                serial(p, g, a, lr, rho, one_minus_rho, epsilon)
            offset += size

    @numba.njit(error_model="numpy")
    def serial_list(ps, gs, accumulators, lr, rho, one_minus_rho, epsilon):
        for t in range(len(ps)):
            serial(ps[t], gs[t], accumulators[t], lr, rho, one_minus_rho, epsilon)

    @numba.njit(error_model="numpy", parallel=True)
    def parallel_list(ps, gs, accumulators, total, threads, lr, rho, one_minus_rho, epsilon):
        for s in numba.prange(threads):
            begin, end = total * s // threads, total * (s + 1) // threads
            share(ps, gs, accumulators, begin, end, lr, rho, one_minus_rho, epsilon)

    return serial, parallel, serial_list, parallel_list


def numba_arguments(params, grads, hyperparameters):
    """Flat arrays and scalars of their dtype, as the numba kernels take them."""
    real = params[0].dtype.type
    lr, rho, epsilon = map(real, hyperparameters)
    ps, gs = ([x.reshape(-1) for x in arrays] for arrays in (params, grads))
    return ps, gs, [np.zeros_like(p) for p in ps], (lr, rho, real(1) - rho, epsilon)


def numba_per_tensor(params, grads, hyperparameters, threads):
    """One call per tensor, as one writes it; parallel where the tensor is large enough to gain."""
    serial, parallel, _, _ = numba_kernels()
    ps, gs, accumulators, scalars = numba_arguments(params, grads, hyperparameters)
    calls = [
        (parallel if threads > 1 and p.size >= PARALLEL_FROM else serial, p, g, a)
        for p, g, a in zip(ps, gs, accumulators, strict=True)
    ]

    def step():
        for kernel, p, g, a in calls:
            kernel(p, g, a, *scalars)

    return step, lambda: params


def numba_list(params, grads, hyperparameters, threads):
    """One call for the whole model, cut into one contiguous share per thread."""
    from numba.typed import List

    _, _, serial_list, parallel_list = numba_kernels()
    ps, gs, accumulators, scalars = numba_arguments(params, grads, hyperparameters)
    lists = List(ps), List(gs), List(accumulators)
    total = sum(p.size for p in ps)
    if threads > 1 and total >= PARALLEL_FROM:
        return lambda: parallel_list(*lists, total, threads, *scalars), lambda: params
    return lambda: serial_list(*lists, *scalars), lambda: params


# torch


def set_torch_threads(threads):
    """Intra-op threads: no step of an optimizer uses the others."""
    import torch

    torch.set_num_threads(threads)


def torch_optimizer(params, grads, make):
    """Tensors over the given arrays (NumPy asks for huge pages, torch does not), and a step."""
    import torch

    tensors = [torch.from_numpy(p) for p in params]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g)
    return make(tensors).step, lambda: params


def torch_for_loop(params, grads, hyperparameters, threads):
    """The default on a CPU."""
    return torch_rmsprop(params, grads, hyperparameters, foreach=False)


def torch_foreach(params, grads, hyperparameters, threads):
    """Its _foreach_ operations, one for all tensors."""
    return torch_rmsprop(params, grads, hyperparameters, foreach=True)


def torch_rmsprop(params, grads, hyperparameters, foreach):
    """torch.optim.RMSprop. It has no fused kernel for CPUs."""
    import torch

    lr, rho, epsilon = hyperparameters
    return torch_optimizer(
        params,
        grads,
        lambda tensors: torch.optim.RMSprop(
            tensors, lr=lr, alpha=rho, eps=epsilon, foreach=foreach
        ),
    )


def torch_compiled(params, grads, hyperparameters, threads):
    """The compiled step. foreach=True or the C++ wrapper made no model faster."""
    import torch

    torch.compiler.reset()  # else the second model counts as a recompilation of the first
    step, read = torch_rmsprop(params, grads, hyperparameters, foreach=None)
    return torch.compile(step), read


def torch_fused_adam(params, grads, hyperparameters, threads):
    """The nearest optimizer for which torch has a fused kernel for CPUs; one more accumulator."""
    import torch

    return torch_optimizer(
        params,
        grads,
        lambda tensors: torch.optim.Adam(
            tensors, lr=hyperparameters.lr, eps=hyperparameters.epsilon, fused=True
        ),
    )


# JAX: XLA has no setter for the number of threads; it follows the process's affinity


def jax_arrays(arrays):
    """Copies that XLA owns and may overwrite."""
    import jax.numpy

    return [jax.numpy.array(x) for x in arrays]


def optax_jitted(params, grads, hyperparameters, threads):
    """One program for the whole model; parameters and state are donated, so updated in place."""
    import jax
    import optax

    lr, rho, epsilon = hyperparameters
    optimizer = optax.rmsprop(lr, decay=rho, eps=epsilon, eps_in_sqrt=False)

    def update(ps, state, gs):
        updates, state = optimizer.update(gs, state, ps)
        return optax.apply_updates(ps, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    ps, gs = jax_arrays(params), jax_arrays(grads)
    state = optimizer.init(ps)

    def step():
        nonlocal ps, state
        ps, state = compiled(ps, state, gs)
        ps[-1].block_until_ready()  # the outputs of a program become ready together

    return step, lambda: [np.asarray(p) for p in ps]


# Keras 3, in the form in which its own fit() runs each backend


def keras_optimizer(params, grads, hyperparameters):
    """Variables, gradients and a built optimizer of the backend in use."""
    import keras

    lr, rho, epsilon = hyperparameters
    dtype = params[0].dtype.name
    variables = [keras.Variable(p, dtype=dtype) for p in params]
    gradients = [keras.ops.convert_to_tensor(g, dtype=dtype) for g in grads]
    optimizer = keras.optimizers.RMSprop(lr, rho=rho, epsilon=epsilon)
    optimizer.build(variables)
    return variables, gradients, optimizer


def keras_torch(params, grads, hyperparameters, threads):
    """Keras runs torch eagerly."""
    import keras

    variables, gradients, optimizer = keras_optimizer(params, grads, hyperparameters)

    def read():
        return [keras.ops.convert_to_numpy(v) for v in variables]

    return lambda: optimizer.apply(gradients), read


def keras_jax(params, grads, hyperparameters, threads):
    """The stateless form, jitted, with parameters and state donated."""
    import jax

    variables, gradients, optimizer = keras_optimizer(params, grads, hyperparameters)
    state = [v.value for v in optimizer.variables]
    values = [v.value for v in variables]
    compiled = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))

    def step():
        nonlocal values, state
        values, state = compiled(state, gradients, values)
        values[-1].block_until_ready()

    return step, lambda: [np.asarray(v) for v in values]


def keras_tensorflow(params, grads, hyperparameters, threads):
    """A tf.function compiled by XLA."""
    import keras
    import tensorflow

    variables, gradients, optimizer = keras_optimizer(params, grads, hyperparameters)

    def read():
        return [keras.ops.convert_to_numpy(v) for v in variables]

    return tensorflow.function(lambda: optimizer.apply(gradients), jit_compile=True), read


# TensorFlow's own kernel, which computes all of a tensor's update in one operation


def set_tensorflow_threads(threads):
    """Both pools; neither can be changed once anything ran."""
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(threads)


def tensorflow_eager(params, grads, hyperparameters, threads):
    """One ResourceApplyRMSProp after the other."""
    import tensorflow

    dtype = params[0].dtype
    lr, rho, epsilon = (tensorflow.constant(x, dtype) for x in hyperparameters)
    momentum = tensorflow.constant(0, dtype)
    variables = [tensorflow.Variable(p) for p in params]
    slots = [[tensorflow.Variable(np.zeros_like(p)) for _ in range(2)] for p in params]
    tensors = [
        (v.handle, ms.handle, mom.handle, tensorflow.constant(g))
        for v, (ms, mom), g in zip(variables, slots, grads, strict=True)
    ]
    apply = tensorflow.raw_ops.ResourceApplyRMSProp

    def step():
        for var, ms, mom, grad in tensors:
            apply(
                var=var,
                ms=ms,
                mom=mom,
                lr=lr,
                rho=rho,
                momentum=momentum,
                epsilon=epsilon,
                grad=grad,
            )

    def read(slots=slots):  # keeps the slots alive: the handles do not
        return [v.numpy() for v in variables]

    return step, read


def tensorflow_function(params, grads, hyperparameters, threads):
    """All of them in one graph, which may run several tensors at once. XLA is slower here."""
    import tensorflow

    step, read = tensorflow_eager(params, grads, hyperparameters, threads)
    return tensorflow.function(step), read


# scikit-learn


def sklearn_adam(params, grads, hyperparameters, threads):
    """The optimizer of MLPClassifier; scikit-learn has no RMSprop."""
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

    optimizer = AdamOptimizer(
        params, learning_rate_init=hyperparameters.lr, epsilon=hyperparameters.epsilon
    )
    return lambda: optimizer.update_params(params, grads), lambda: params


_JAX = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
_QUIET_TF = {"TF_CPP_MIN_LOG_LEVEL": "3"}
# One compile process: the pool's workers would run beside the measurement.
_INDUCTOR = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}

NUMPY = Library("numpy", (), ("numpy",))
NUMEXPR = Library("numexpr", ("numexpr",), ("numexpr",), set_threads=set_numexpr_threads)
NUMBA = Library("numba", ("numba",), ("numba", "llvmlite"), set_threads=set_numba_threads)
TORCH = Library("torch", ("torch",), ("torch",), _INDUCTOR, set_torch_threads)
OPTAX = Library("optax", ("jax", "optax"), ("optax", "jax", "jaxlib"), _JAX)
KERAS_TORCH = Library(
    "keras torch",
    ("keras", "torch"),
    ("keras", "torch"),
    {"KERAS_BACKEND": "torch"},
    set_torch_threads,
)
KERAS_JAX = Library(
    "keras jax", ("keras", "jax"), ("keras", "jax"), {"KERAS_BACKEND": "jax", **_JAX}
)
KERAS_TENSORFLOW = Library(
    "keras tensorflow",
    ("keras", "tensorflow"),
    ("keras", "tensorflow", "tensorflow-cpu"),
    {"KERAS_BACKEND": "tensorflow", **_QUIET_TF},
    set_tensorflow_threads,
)
TENSORFLOW = Library(
    "tensorflow",
    ("tensorflow",),
    ("tensorflow", "tensorflow-cpu"),
    _QUIET_TF,
    set_tensorflow_threads,
)
SKLEARN = Library("scikit-learn", ("sklearn",), ("scikit-learn",))

PEERS = (
    Peer("numpy naive", NUMPY, numpy_naive),
    Peer("numpy out=", NUMPY, numpy_out),
    Peer("numexpr", NUMEXPR, numexpr_compiled),
    Peer("numba", NUMBA, numba_per_tensor),
    Peer("numba list", NUMBA, numba_list),
    Peer("torch for-loop", TORCH, torch_for_loop),
    Peer("torch foreach", TORCH, torch_foreach),
    Peer("torch compile", TORCH, torch_compiled),
    Peer("torch fused Adam", TORCH, torch_fused_adam, None),
    Peer("optax", OPTAX, optax_jitted),
    Peer("keras torch", KERAS_TORCH, keras_torch, "inside"),
    Peer("keras jax", KERAS_JAX, keras_jax, "inside"),
    Peer("keras tensorflow", KERAS_TENSORFLOW, keras_tensorflow, "inside"),
    Peer("tensorflow eager", TENSORFLOW, tensorflow_eager, "inside"),
    Peer("tensorflow function", TENSORFLOW, tensorflow_function, "inside"),
    Peer("scikit-learn Adam", SKLEARN, sklearn_adam, None),
)

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""The binding: arrays -> checked pointers -> the job of a step, which ``src/step.c`` makes.

What needs no Python object is in ``src/``, and the arithmetic on elements in
``include/rmsprop.h``. What does is in ``binding/``, to be read in this order:

    turns.pxi       one thread at a time in an optimizer
    dlpack.pxi      tensors of other libraries
    slots.pxi       the state of the positions
    overlap.pxi     which arrays share memory
    plan.pxi        the arrays of a model: checked, found, staged
    optimizer.pxi   Core, the base of the Python optimizers, and its step
"""
cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    NOWAIT_LOCK,
    WAIT_LOCK,
)
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset
from rmsprop_c._c cimport (
    ACCUMULATOR,
    FLOAT32,
    FLOAT64,
    GRADIENT_SUM,
    Job,
    MOVING_AVERAGE,
    PANEL,
    RMSPROP_COMPILER,
    RMSPROP_OVERWRITE,
    RMSPROP_ZERO_GRAD,
    SETTINGS,
    SLOTS,
    Settings,
    Tensor,
    begin,
    calls_in_a_cycle,
    clear,
    finish,
    fit_float32,
    line_up,
    begin_lining_up,
    rmsprop_data,
    rmsprop_dims,
    rmsprop_dltensor,
    rmsprop_flags,
    rmsprop_is_array,
    rmsprop_items,
    rmsprop_kernels,
    rmsprop_kernels_best,
    rmsprop_kernels_compiled,
    rmsprop_kernels_supported,
    rmsprop_native,
    rmsprop_ndim,
    rmsprop_policy,
    rmsprop_size,
    rmsprop_team_begin,
    rmsprop_team_perform,
    rmsprop_team_policy,
    rmsprop_team_size,
    rmsprop_fork_gate_enter,
    rmsprop_threads_forks,
    rmsprop_threads_init,
    rmsprop_fork_gate_leave,
    rmsprop_threads_limit,
    rmsprop_threads_openmp,
    rmsprop_threads_self,
    rmsprop_threads_survivor,
    rmsprop_trials,
    rmsprop_type,
    required_slots,
    update_alone,
)

import copy
import os
import sys

import numpy as np

from rmsprop_c import arrays, state as states
from rmsprop_c.hyperparameters import by_position, check_float32, scheduled_lr

cnp.import_array()

cdef tuple SLOT_NAMES = states.SLOTS
cdef int64_t LARGEST_COUNT = states.LARGEST_COUNT

# The smallest double that float32 rounds to infinity.
cdef double INFINITE_IN_FLOAT32 = 2.0 ** 128 - 2.0 ** 103

# The hyper-parameters that are numbers, and their places in Settings.
cdef dict SETTING_INDEX = {name: i for i, name in enumerate(SETTINGS.decode().split())}


cdef const rmsprop_kernels* kernels = NULL

# Elements of a step from which it releases the GIL: 12 us of work.
cdef int64_t unlocked_minimum = 1 << 15


def compiled_isas():
    """Names of the compiled instruction sets, mapped to whether this processor runs them."""
    cdef int i = 0
    found = {}
    while rmsprop_kernels_compiled(i) != NULL:
        found[rmsprop_kernels_compiled(i).isa.decode()] = rmsprop_kernels_supported(
            rmsprop_kernels_compiled(i))
        i += 1
    return found


def use_isa(name):
    """Choose the kernels by name (None: the fastest). ValueError if they can't run here."""
    global kernels
    cdef int i = 0
    if name is None:
        kernels = rmsprop_kernels_best()
        return
    found = compiled_isas()
    if not found.get(name):
        why = "this processor does not support it" if name in found else "it was not compiled"
        usable = ", ".join([isa for isa, supported in found.items() if supported])
        raise ValueError(f"instruction set {name!r} can't be used: {why}; usable here: {usable}")
    while rmsprop_kernels_compiled(i).isa.decode() != name:
        i += 1
    kernels = rmsprop_kernels_compiled(i)


def chosen_isa():
    """Name of the instruction set in use."""
    return kernels.isa.decode()


def chosen_roots():
    """What it computes square roots with, by dtype: "fma", or "sqrt" for the processor's own."""
    return {
        "float32": kernels[FLOAT32].roots.decode(),
        "float64": kernels[FLOAT64].roots.decode(),
    }


def openmp_version():
    """The OpenMP version (a date like 201511) that was compiled in; 0 without OpenMP."""
    return rmsprop_threads_openmp()


def openmp_max_threads():
    """OpenMP's own limit in this thread: OMP_NUM_THREADS, or what a library has set."""
    return rmsprop_threads_limit()


def settings():
    """Names of the hyper-parameters that are numbers, in the order of the C struct."""
    return list(SETTING_INDEX)


def compiler():
    """The C compiler that built this."""
    return RMSPROP_COMPILER.decode().strip()


def configure_threads(int requested, int available_processors):
    """Set the thread policy: `requested` threads (0: the default policy) on so many processors."""
    rmsprop_team_policy.requested = requested
    rmsprop_team_policy.processors = available_processors


def configure_minimums(unlocked=None, persistent=None, one_shot=None, share=None):
    """Set the policy's element counts; returns those before. For measuring and testing them."""
    global unlocked_minimum
    cdef rmsprop_policy* policy = &rmsprop_team_policy
    before = dict(unlocked=unlocked_minimum, persistent=policy.persistent_minimum,
                  one_shot=policy.one_shot_minimum, share=policy.one_shot_share)
    if unlocked is not None:
        unlocked_minimum = unlocked
    if persistent is not None:
        policy.persistent_minimum = persistent
    if one_shot is not None:
        policy.one_shot_minimum = one_shot
    if share is not None:
        policy.one_shot_share = share
    return before


include "binding/turns.pxi"
include "binding/dlpack.pxi"
include "binding/slots.pxi"
include "binding/overlap.pxi"
include "binding/plan.pxi"
include "binding/optimizer.pxi"


cdef void update_f32(float* p, const float* g, float* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil:
    update_alone(&kernels[0], p, g, a, n, scalars)


cdef void update_f64(double* p, const double* g, double* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil:
    update_alone(&kernels[1], p, g, a, n, scalars)


rmsprop_threads_init()
try:
    use_isa(os.environ.get("RMSPROP_C_ISA") or None)
except ValueError as error:
    raise ImportError(f"RMSPROP_C_ISA: {error}") from None

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""The binding: arrays -> checked pointers -> the job of a step, which ``src/step.c`` makes.

``Plan`` knows which arrays belong to a model: it checks them, finds out where they lie and owns the
accumulators; it knows no formula. ``Core``, the base of the Python optimizers, holds the
hyper-parameters as C numbers and makes a step of a plan all or nothing. What needs no Python object
is in ``src/``, and the arithmetic on elements in ``include/rmsprop.h``.
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
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

import copy
import os
import sys

import numpy as np

from rmsprop_c import arrays, state as states

cnp.import_array()

cdef extern from *:
    """
    /* -O3 is for the kernels. Here it makes the library a tenth larger and no step faster, and so
     * do copies of functions for constant arguments (15 kB with gcc 16). */
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize("O2", "no-ipa-cp")
    #endif
    /* Python 3.15 has a field of types that Cython 3.2 does not know. */
    #if defined(__GNUC__)
    #pragma GCC diagnostic ignored "-Wmissing-field-initializers"
    #endif
    #if defined(__clang__)
    #define RMSPROP_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define RMSPROP_COMPILER "gcc " __VERSION__
    #else
    #define RMSPROP_COMPILER "unknown"
    #endif
    /* Macros of NumPy's C API, on borrowed references: the step's fast path counts none. */
    #define rmsprop_items(sequence) ((void **)PySequence_Fast_ITEMS(sequence))
    #define rmsprop_size(sequence) PySequence_Fast_GET_SIZE(sequence)
    #define rmsprop_is_array(x) (Py_TYPE(x) == &PyArray_Type)
    #define rmsprop_type(x) PyArray_TYPE((PyArrayObject *)(x))
    #define rmsprop_native(x) PyArray_ISNOTSWAPPED((PyArrayObject *)(x))
    #define rmsprop_flags(x) PyArray_FLAGS((PyArrayObject *)(x))
    #define rmsprop_ndim(x) PyArray_NDIM((PyArrayObject *)(x))
    #define rmsprop_dims(x) PyArray_DIMS((PyArrayObject *)(x))
    #define rmsprop_data(x) PyArray_BYTES((PyArrayObject *)(x))
    /* The first fields of DLPack's tensor, which a capsule named "dltensor" holds (version 1.1). */
    typedef struct { int32_t type, id; } rmsprop_dldevice;
    typedef struct { uint8_t code, bits; uint16_t lanes; } rmsprop_dldtype;
    typedef struct {
        void *data;
        rmsprop_dldevice device;
        int32_t ndim;
        rmsprop_dldtype dtype;
        int64_t *shape, *strides; /* in elements; strides may be NULL: C order */
        uint64_t byte_offset;
    } rmsprop_dltensor;
    """
    const char* RMSPROP_COMPILER
    void** rmsprop_items(object)
    Py_ssize_t rmsprop_size(object)
    bint rmsprop_is_array(void*)
    int rmsprop_type(void*)
    bint rmsprop_native(void*)
    int rmsprop_flags(void*)
    int rmsprop_ndim(void*)
    cnp.npy_intp* rmsprop_dims(void*)
    char* rmsprop_data(void*)
    ctypedef struct rmsprop_dldevice:
        int32_t type
    ctypedef struct rmsprop_dldtype:
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct rmsprop_dltensor:
        void* data
        rmsprop_dldevice device
        int32_t ndim
        rmsprop_dldtype dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset

cdef extern from "rmsprop.h" nogil:
    const int RMSPROP_ADD, RMSPROP_DECAY, RMSPROP_DECAY_GRAD, RMSPROP_UPDATE, RMSPROP_FLUSH
    const int RMSPROP_AVERAGE, RMSPROP_OVERWRITE, RMSPROP_ZERO_GRAD
    ctypedef void (*rmsprop_kernel_f32)(float*, const float*, float*, float*, float*, size_t,
                                        const rmsprop_scalars*) noexcept nogil
    ctypedef void (*rmsprop_kernel_f64)(double*, const double*, double*, double*, double*, size_t,
                                        const rmsprop_scalars*) noexcept nogil

cdef extern from "src/kernels.h" nogil:
    ctypedef struct rmsprop_kernels:
        const char* name
        rmsprop_kernel_f32 update_f32[12]
        rmsprop_kernel_f64 update_f64[12]
    const rmsprop_kernels* rmsprop_kernels_compiled(int)
    bint rmsprop_kernels_supported(const rmsprop_kernels*)
    const rmsprop_kernels* rmsprop_kernels_best()

cdef extern from "src/fenv.h" nogil:
    ctypedef struct rmsprop_fenv:
        pass
    rmsprop_fenv rmsprop_fenv_enter()
    void rmsprop_fenv_leave(rmsprop_fenv)

cdef extern from "src/threads.h" nogil:
    void rmsprop_threads_init()
    int rmsprop_threads_openmp()
    int rmsprop_threads_limit()
    int rmsprop_threads_forks()
    void rmsprop_threads_enter()
    void rmsprop_threads_leave()
    uint64_t rmsprop_threads_self()
    uint64_t rmsprop_threads_survivor()

cdef extern from "src/step.h" nogil:
    enum:
        ACCUMULATOR "RMSPROP_ACCUMULATOR"
        MOMENTUM "RMSPROP_MOMENTUM"
        AVERAGE_GRADIENT "RMSPROP_AVERAGE_GRADIENT"
        MOVING_AVERAGE "RMSPROP_MOVING_AVERAGE"
        GRADIENT_SUM "RMSPROP_GRADIENT_SUM"
        SLOTS "RMSPROP_SLOTS"
        PANEL "RMSPROP_PANEL"
    const char* SETTINGS "RMSPROP_EACH_SETTING(RMSPROP_SETTING_NAME)"
    ctypedef struct Settings "rmsprop_settings":
        double lr
        double rho
        double epsilon
        double clipnorm
        double parameter_clipnorm
        double momentum
        double nesterov
        double centered
        double epsilon_in_sqrt
        double initial_accumulator_value
        double weight_decay
        double decoupled_weight_decay
        double use_ema
        double ema_overwrite_frequency
        double gradient_accumulation_steps
        double nonfinite
        double flush_subnormals
        double zero_grad
    ctypedef struct Tensor "rmsprop_tensor":
        char* param
        char* grad
        bint active
        char* slots[5]
        cnp.npy_intp size
        const cnp.npy_intp* shape
        int ndim
        int itemsize
        bint fortran
        double lr_scale
        bint decays
        bint pending
        bint nonfinite
        int64_t start
        int64_t stop
        char* landing
        const cnp.npy_intp* landing_strides
        bint landing_swapped
        char* grad_landing
        const cnp.npy_intp* grad_strides
    ctypedef struct Job "rmsprop_job":
        const rmsprop_kernels* kernels
        Tensor* tensors
        cnp.npy_intp count
        cnp.npy_intp active
        int64_t elements
        int64_t iterations
        int64_t calls
        bint summing
        bint updates
        bint dry
        bint transposed
        bint each
        int variant
        int passes
        Settings settings
        double* block_sums
        char* panels
        size_t blocks
        bint nonfinite
        int shares
        int one_shot
        int needed
    void line_up_anew "rmsprop_line_up_anew"(Job*)
    void line_up "rmsprop_line_up"(Tensor*, Job*)
    void perform "rmsprop_perform"(void*)
    void finish "rmsprop_finish"(const Job*)
    void clear "rmsprop_clear"(const Job*)

cdef extern from "src/team.h" nogil:
    ctypedef struct rmsprop_policy:
        int64_t persistent_minimum
        int64_t one_shot_minimum
        int64_t one_shot_share
        int requested
        int processors
    rmsprop_policy rmsprop_team_policy
    ctypedef struct rmsprop_trials:
        pass
    void rmsprop_team_begin(rmsprop_trials*)
    int rmsprop_team_size(int64_t, int*)
    void rmsprop_team_perform(rmsprop_trials*, Job*)

cdef extern from "<math.h>" nogil:
    const double INFINITY
    const double NAN


cdef const rmsprop_kernels* kernels = NULL

# Elements of a step from which it releases the GIL: 12 us of work.
cdef int64_t unlocked_minimum = 1 << 15


def compiled_isas():
    """Names of the compiled instruction sets, mapped to whether this processor runs them."""
    cdef int i = 0
    found = {}
    while rmsprop_kernels_compiled(i) != NULL:
        found[rmsprop_kernels_compiled(i).name.decode()] = rmsprop_kernels_supported(
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
    while rmsprop_kernels_compiled(i).name.decode() != name:
        i += 1
    kernels = rmsprop_kernels_compiled(i)


def chosen_isa():
    """Name of the instruction set in use."""
    return kernels.name.decode()


def openmp_version():
    """The OpenMP version (a date like 201511) that was compiled in; 0 without OpenMP."""
    return rmsprop_threads_openmp()


def openmp_max_threads():
    """OpenMP's own limit in this thread: OMP_NUM_THREADS, or what a library has set."""
    return rmsprop_threads_limit()


def settings():
    """Names of the hyper-parameters that are numbers, in the order of the C struct."""
    return SETTINGS.decode().split()


def compiler():
    """The C compiler that built this."""
    return RMSPROP_COMPILER.decode().strip()


def configure_threads(int requested, int available_processors):
    """Set the thread policy: `requested` threads (0: the default policy) on so many processors."""
    rmsprop_team_policy.requested = requested
    rmsprop_team_policy.processors = available_processors


def configure_minimums(unlocked=None, team=None, fresh=None, share=None):
    """Set the policy's element counts; returns those before. For measuring and testing them."""
    global unlocked_minimum
    cdef rmsprop_policy* policy = &rmsprop_team_policy
    before = dict(unlocked=unlocked_minimum, team=policy.persistent_minimum,
                  fresh=policy.one_shot_minimum, share=policy.one_shot_share)
    if unlocked is not None:
        unlocked_minimum = unlocked
    if team is not None:
        policy.persistent_minimum = team
    if fresh is not None:
        policy.one_shot_minimum = fresh
    if share is not None:
        policy.one_shot_share = share
    return before


cdef tuple SLOT_NAMES = states.SLOTS
cdef int64_t LARGEST_COUNT = states.LARGEST_COUNT

# The smallest double that float32 rounds to infinity.
cdef double INFINITE_IN_FLOAT32 = 2.0 ** 128 - 2.0 ** 103


ctypedef struct Form:        # of a position, as NumPy says it
    int type                 # NPY_FLOAT32 or NPY_FLOAT64
    int order                # flag of the accumulator's memory order
    const char* checked_param    # pointers that passed the overlap check
    const char* checked_grad


ctypedef struct Range:
    const char* low
    const char* high
    const char* reach        # the highest end of this range and of those before it
    Py_ssize_t position


cdef int compare_ranges(const void* x, const void* y) noexcept nogil:
    cdef const Range* left = <const Range*>x
    cdef const Range* right = <const Range*>y
    return (left.low > right.low) - (left.low < right.low)


cdef inline bint is_plain(void* x, const Tensor* t, const Form* form, int flags) noexcept:
    """Is it an ndarray of the position's dtype and shape with these flags, ready for a kernel?"""
    cdef int d
    if not (rmsprop_is_array(x) and rmsprop_type(x) == form.type
            and (rmsprop_flags(x) & flags) == flags and rmsprop_native(x)
            and rmsprop_ndim(x) == t.ndim):
        return False
    for d in range(t.ndim):
        if rmsprop_dims(x)[d] != t.shape[d]:
            return False
    return True


cdef void span(cnp.ndarray x, const char** low, const char** high) noexcept:
    """The bytes that an array with elements can touch."""
    cdef int d
    cdef cnp.npy_intp reach
    low[0] = high[0] = <const char*>cnp.PyArray_DATA(x)
    for d in range(cnp.PyArray_NDIM(x)):
        reach = (cnp.PyArray_DIM(x, d) - 1) * cnp.PyArray_STRIDE(x, d)
        if reach < 0:
            low[0] += reach
        else:
            high[0] += reach
    high[0] += cnp.PyArray_ITEMSIZE(x)


cdef bint overlaps_itself(cnp.ndarray x) except -1:
    """Do two of its elements share bytes? None do where each axis steps over all that lie below."""
    cdef int d, other
    cdef cnp.npy_intp reach, stride, below
    for d in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIM(x, d) < 2:
            continue
        stride = distance(cnp.PyArray_STRIDE(x, d))
        reach = cnp.PyArray_ITEMSIZE(x)
        for other in range(cnp.PyArray_NDIM(x)):
            below = distance(cnp.PyArray_STRIDE(x, other))
            if other != d and below <= stride:
                reach += below * (cnp.PyArray_DIM(x, other) - 1)
        if stride < reach:
            return arrays.overlaps_itself(x)
    return False


cdef inline cnp.npy_intp distance(cnp.npy_intp stride) noexcept:
    return -stride if stride < 0 else stride


@cython.final   # its methods are called directly
@cython.auto_pickle(False)
cdef class Plan:
    """The positions of one model: shape, dtype, memory order and accumulator of each.

    Parameters
    ----------
    count : int
        How many there are.
    keys : tuple or None
        The keys of a model that is a dict.
    """

    cdef object keys
    cdef object labels           # what errors call the positions where it is not keys
    cdef list slots              # of arrays by position, for each slot; None: not made yet
    cdef int made                # bits of the slots that are
    cdef bint float32
    cdef bint transposed         # an accumulator lies in Fortran's order
    cdef double scales[2]        # the largest lr_scale of a position in float32, and in float64
    cdef int64_t elements        # of all positions
    cdef Tensor* tensors
    cdef Form* forms
    cdef Range* ranges           # of the parameters, and of state that is lent, by address
    cdef Range* grad_ranges      # of the gradients, where zero_grad needs them apart
    cdef Py_ssize_t count, range_count, grad_range_count
    cdef char* slabs[SLOTS]      # all arrays of a slot lie in one buffer
    cdef Py_ssize_t slab_sizes[SLOTS]
    cdef double* block_sums
    cdef size_t block_capacity
    cdef char* panels
    cdef int panel_capacity
    cdef list held               # staged copies of the step under way
    cdef int kept                # bits of the slots that stay if the step under way is refused
    cdef object factors          # the lr_scale and
    cdef object excluded         # exclude_from_weight_decay that the positions know
    cdef bint apart              # the gradients of the latest check were, as zero_grad needs them

    def __cinit__(self, Py_ssize_t count, keys):
        self.count = count
        self.keys = keys
        self.excluded = ()
        self.slots = [None] * SLOTS
        self.tensors = <Tensor*>PyMem_Calloc(max(count, 1), sizeof(Tensor))
        self.forms = <Form*>PyMem_Calloc(max(count, 1), sizeof(Form))
        self.ranges = <Range*>PyMem_Calloc(max(count, 1) * (1 + SLOTS), sizeof(Range))
        self.grad_ranges = <Range*>PyMem_Calloc(max(count, 1), sizeof(Range))
        if self.tensors == NULL or self.forms == NULL or self.ranges == NULL or (
                self.grad_ranges == NULL):
            raise MemoryError()

    cdef bint describe(self):
        """Let the positions be like the accumulators; is one of another size than before?"""
        cdef Tensor* t
        cdef Form* form
        cdef Py_ssize_t i
        cdef bint other = False
        self.elements = 0
        self.float32 = self.transposed = False
        self.scales[0] = self.scales[1] = 1
        for i, accumulator in enumerate(self.slots[ACCUMULATOR]):
            t, form = &self.tensors[i], &self.forms[i]
            other = other or t.size != cnp.PyArray_SIZE(accumulator) or (
                form.type != cnp.PyArray_TYPE(accumulator))
            t.size = cnp.PyArray_SIZE(accumulator)
            self.elements += t.size
            t.shape = cnp.PyArray_DIMS(accumulator)
            t.ndim = cnp.PyArray_NDIM(accumulator)
            t.itemsize = cnp.PyArray_ITEMSIZE(accumulator)
            t.fortran = rmsprop_flags(<void*>accumulator) & cnp.NPY_ARRAY_C_CONTIGUOUS == 0
            self.transposed = self.transposed or t.fortran
            form.type = cnp.PyArray_TYPE(accumulator)
            form.order = (cnp.NPY_ARRAY_F_CONTIGUOUS if t.fortran
                          else cnp.NPY_ARRAY_C_CONTIGUOUS)
            t.lr_scale = 1
            t.decays = True
            self.float32 = self.float32 or t.itemsize == 4
        return other

    cdef int lend(self, dict slots) except -1:
        """Take another owner's arrays for the state of a step."""
        cdef int slot
        cdef Py_ssize_t i
        cdef bint moved
        cdef char* place
        self.made = 0
        for slot in range(SLOTS):
            self.slots[slot] = slots.get(SLOT_NAMES[slot])
            if self.slots[slot] is not None:
                self.made |= 1 << slot
        moved = self.describe()
        for slot in range(SLOTS):
            for i in range(self.count):
                place = NULL
                if self.made & 1 << slot:
                    x = self.slots[slot][i]
                    if not is_plain(<void*>x, &self.tensors[i], &self.forms[i],
                                    self.forms[i].order
                                    | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE):
                        raise ValueError(f"the {SLOT_NAMES[slot]} of "
                                         f"{self.name('params', i, None)} has shape {x.shape}, "
                                         f"strides {x.strides} and dtype {x.dtype}; it "
                                         "must be like the accumulator, writeable and without gaps")
                    place = rmsprop_data(<void*>x)
                moved = moved or place != self.tensors[i].slots[slot]
                self.tensors[i].slots[slot] = place
        if moved:   # what was found of overlaps holds no more
            for i in range(self.count):
                self.forms[i].checked_param = self.forms[i].checked_grad = NULL
        self.factors, self.excluded = None, ()
        return 0

    cdef void give_back(self) noexcept:
        """Let go of what was lent; addresses stay, to be compared with those of the next step."""
        cdef int slot
        for slot in range(SLOTS):
            self.slots[slot] = None
            self.slabs[slot] = NULL   # one was made if another thread has switched an option on
            self.slab_sizes[slot] = 0
        self.made = self.kept = 0

    cdef int make(self, int slot, like) except -1:
        """Make the arrays of a slot, like others, of zeros."""
        cdef cnp.ndarray array, slab
        cdef Py_ssize_t i
        cdef list made
        slab, made = arrays.slab(like)
        for i, array in enumerate(made):
            self.tensors[i].slots[slot] = cnp.PyArray_BYTES(array)
        self.slabs[slot] = cnp.PyArray_BYTES(slab)
        self.slab_sizes[slot] = cnp.PyArray_NBYTES(slab)
        self.slots[slot] = made
        self.made |= 1 << slot
        return 0

    cdef void drop(self) noexcept:
        """Forget the slots that a refused step has made, or that a step had no option for."""
        cdef int slot
        cdef Py_ssize_t i
        for slot in range(SLOTS):
            if self.made & ~self.kept & 1 << slot:
                self.slots[slot] = None
                self.slabs[slot] = NULL
                self.slab_sizes[slot] = 0
                for i in range(self.count):
                    self.tensors[i].slots[slot] = NULL
        self.made = self.kept

    cdef dict kept_slots(self, int bits):
        """Those of some slots that the latest step has left, by name."""
        cdef int slot
        found = {}
        for slot in range(SLOTS):
            if self.kept & bits & 1 << slot:
                found[SLOT_NAMES[slot]] = self.slots[slot]
        return found

    cdef int fill(self, int slot, list values) except -1:
        """Set the arrays of a slot."""
        cdef Py_ssize_t i
        cdef list own = self.slots[slot]
        for i in range(self.count):
            own[i][...] = values[i]
        return 0

    cdef int make_needed(self, int needed, params) except -1:
        """Make the slots that are needed and not there; averages start at the parameters."""
        cdef int slot
        cdef list own
        for slot in range(SLOTS):
            if needed & ~self.made & 1 << slot:
                own = self.fitting(self.positions(params, "params"), params)
                self.make(slot, self.slots[ACCUMULATOR])
                if slot == MOVING_AVERAGE:
                    self.fill(slot, own)
        return 0

    def __dealloc__(self):
        PyMem_Free(self.tensors)
        PyMem_Free(self.forms)
        PyMem_Free(self.ranges)
        PyMem_Free(self.grad_ranges)
        PyMem_Free(self.block_sums)
        PyMem_Free(self.panels)

    cdef object name(self, which, Py_ssize_t position, container):
        name = arrays.label(which, self.keys if self.labels is None else self.labels,
                            position % self.count, isinstance(container, np.ndarray))
        if position >= self.count:
            return f"the {SLOT_NAMES[position // self.count - 1]} of {name}"
        return name

    cdef bint attach_plain(self, list_or_tuple_params, list_or_tuple_grads, Job* job,
                           bint* checked) noexcept:
        """Line up this step's arrays if all of them are plain; no Python code runs.

        `checked` is set if all of them lie where they passed the overlap check before.
        """
        cdef void** params = rmsprop_items(list_or_tuple_params)
        cdef void** grads = rmsprop_items(list_or_tuple_grads)
        cdef Tensor* t
        cdef const Form* form
        cdef Py_ssize_t i
        cdef int grad_flags = cnp.NPY_ARRAY_ALIGNED
        if job.passes & RMSPROP_ZERO_GRAD:
            grad_flags |= cnp.NPY_ARRAY_WRITEABLE
        for i in range(self.count):
            t, form = &self.tensors[i], &self.forms[i]
            if not is_plain(params[i], t, form,
                            form.order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE):
                return False
            t.param = rmsprop_data(params[i])
            t.landing = t.grad_landing = NULL
            if grads[i] == <void*>None:
                t.grad = NULL
            elif is_plain(grads[i], t, form, form.order | grad_flags):
                t.grad = rmsprop_data(grads[i]) if t.size > 0 else t.slots[ACCUMULATOR]
            else:
                return False
            checked[0] = (checked[0] and t.param == form.checked_param
                          and (t.grad == form.checked_grad or t.grad == NULL))
            line_up(t, job)
        return True

    cdef list fitting(self, params, outer_params):
        """The parameters as plain ndarrays; refuses those that are not like the positions."""
        cdef list found = []
        for i in range(self.count):
            name = self.name("params", i, outer_params)
            p = arrays.parameter(params[i], name)
            accumulator = self.slots[ACCUMULATOR][i]
            arrays.like_position(p, name, accumulator.dtype, accumulator.shape)
            found.append(p)
        return found

    cdef int attach_any(self, params, grads, outer_params, outer_grads, Job* job) except -1:
        """Line up this step's arrays, or copies of those that a kernel can't read in place."""
        cdef Tensor* t
        cdef Py_ssize_t i
        cdef cnp.ndarray p, g, staged
        cdef list own = self.fitting(params, outer_params)
        self.held = [params, grads, own]
        for i in range(self.count):
            name = self.name("params", i, outer_params)
            p = own[i]
            if not p.flags.writeable:
                raise ValueError(f"{name} is read-only, and a step updates it in place; pass a "
                                 "writeable array or a copy")
            if overlaps_itself(p):
                raise ValueError(f"{name} overlaps itself: some of its elements are at the same "
                                 "place; pass a copy")
        for i in range(self.count):
            t = &self.tensors[i]
            p = own[i]
            t.param = cnp.PyArray_BYTES(p)
            t.landing = t.grad_landing = NULL
            t.grad = NULL
            if grads[i] is not None:
                name = self.name("grads", i, outer_grads)
                if is_plain(<void*>grads[i], t, &self.forms[i], 0):
                    g = grads[i]
                else:
                    g = arrays.gradient(grads[i], name, p, self.name("params", i, outer_params))
                self.held.append(g)
                staged = self.stage(g, i, cnp.NPY_ARRAY_ALIGNED)
                t.grad = cnp.PyArray_BYTES(staged) if t.size > 0 else t.slots[ACCUMULATOR]
                if job.passes & RMSPROP_ZERO_GRAD:
                    if not g.flags.writeable or overlaps_itself(g):
                        raise ValueError(f"{name} is read-only or overlaps itself, and zero_grad "
                                         "clears it in place; pass a copy")
                    if staged is not g:
                        t.grad_landing = cnp.PyArray_BYTES(g)
                        t.grad_strides = cnp.PyArray_STRIDES(g)
            line_up(t, job)
            if t.stop > t.start:
                staged = self.stage(p, i, cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)
                t.param = cnp.PyArray_BYTES(staged)
                if staged is not p and (t.active or job.passes & RMSPROP_OVERWRITE):
                    t.landing = cnp.PyArray_BYTES(p)
                    t.landing_strides = cnp.PyArray_STRIDES(p)
                    t.landing_swapped = not p.dtype.isnative
        return 0

    cdef cnp.ndarray stage(self, cnp.ndarray x, Py_ssize_t i, int flags):
        """The array itself if a kernel can use it, else a copy; held until the step ends."""
        if not is_plain(<void*>x, &self.tensors[i], &self.forms[i], self.forms[i].order | flags):
            x = np.array(x, x.dtype.newbyteorder("="), copy=True,
                         order="F" if self.tensors[i].fortran else "C")
        self.held.append(x)
        return x

    cdef int check_overlap(self, params, grads, outer_params, outer_grads, bint plain,
                           bint zero_grad) except -1:
        """Refuse parameters that share memory with each other or with a gradient.

        Gradients that zero_grad clears must not share any among each other either.

        Gradients are new arrays in most steps, parameters are not: these are sorted by address only
        when one of them has moved, and then each new gradient is looked up among them. Where arrays
        were staged (not plain), all is checked and nothing remembered.
        """
        cdef Py_ssize_t i, low, high, middle
        cdef Tensor* t
        cdef bint moved = not plain
        cdef Range r
        for i in range(self.count):
            moved = moved or self.tensors[i].param != self.forms[i].checked_param
        if moved:
            for i in range(self.count):   # a refusal below must not leave what was checked before
                self.forms[i].checked_param = self.forms[i].checked_grad = NULL
            self.range_count = self.sort_ranges(self.ranges, params, False, plain)
            for i in range(1, self.range_count):
                self.check_range(&self.ranges[i], "params", params, outer_params,
                                 self.ranges, i, "params", params, outer_params, plain)
            for i in range(self.range_count):
                if self.ranges[i].position < self.count:
                    self.check_weights(&self.ranges[i], "params", outer_params)
        if zero_grad:
            self.grad_range_count = self.sort_ranges(self.grad_ranges, grads, True, plain)
            for i in range(1, self.grad_range_count):
                self.check_range(&self.grad_ranges[i], "grads", grads, outer_grads,
                                 self.grad_ranges, i, "grads", grads, outer_grads, plain)
        for i in range(self.count):
            t = &self.tensors[i]
            if t.grad == NULL or t.size == 0 or (
                    t.grad == self.forms[i].checked_grad and not moved):
                continue
            self.measure(&r, i, grads, t.grad, plain)
            low, high = 0, self.range_count
            while low < high:   # the first range that starts behind this gradient
                middle = (low + high) // 2
                if self.ranges[middle].low < r.high:
                    low = middle + 1
                else:
                    high = middle
            self.check_range(&r, "grads", grads, outer_grads,
                             self.ranges, low, "params", params, outer_params, plain)
            self.check_weights(&r, "grads", outer_grads)
        for i in range(self.count):
            t = &self.tensors[i]
            self.forms[i].checked_param = t.param if plain else NULL
            self.forms[i].checked_grad = t.grad if plain else NULL
        self.apart = zero_grad
        return 0

    cdef int measure(self, Range* r, Py_ssize_t i, given, const char* data, bint plain) except -1:
        """The range of bytes of position i's array, which is at `data` if it is plain."""
        r.position = i
        if plain:
            r.low = data
            r.high = data + self.tensors[i].size * self.tensors[i].itemsize
        else:
            span(np.asarray(given[i]), &r.low, &r.high)
        return 0

    cdef Py_ssize_t sort_ranges(self, Range* ranges, given, bint grads, bint plain) except -1:
        """Fill in the ranges of the parameters, or of the gradients, by address; how many."""
        cdef Py_ssize_t i, count = 0
        cdef int slot
        cdef const char* reach = NULL
        cdef Tensor* t
        for i in range(self.count):
            t = &self.tensors[i]
            if t.size > 0 and not (grads and t.grad == NULL):
                self.measure(&ranges[count], i, given, t.grad if grads else t.param, plain)
                count += 1
            for slot in range(0 if grads or t.size == 0 else SLOTS):
                if t.slots[slot] != NULL and self.slabs[slot] == NULL:
                    ranges[count].position = (1 + slot) * self.count + i
                    ranges[count].low = t.slots[slot]
                    ranges[count].high = t.slots[slot] + t.size * t.itemsize
                    count += 1
        qsort(ranges, count, sizeof(Range), compare_ranges)
        for i in range(count):
            reach = max(reach, ranges[i].high)
            ranges[i].reach = reach
        return count

    cdef int check_range(self, const Range* r, which, given, outer, const Range* others,
                         Py_ssize_t before, other_which, other_given, other_outer,
                         bint plain) except -1:
        """Refuse a range that shares memory with one of the first `before` of the others."""
        while before > 0 and others[before - 1].reach > r.low:
            before -= 1
            if others[before].high > r.low and (plain or arrays.share_memory(
                    self.array(given, r.position),
                    self.array(other_given, others[before].position))):
                raise ValueError(
                    f"{self.name(which, r.position, outer)} shares memory with "
                    f"{self.name(other_which, others[before].position, other_outer)}; pass a copy")
        return 0

    cdef int check_weights(self, const Range* r, which, outer) except -1:
        """Refuse a range that shares memory with the slots."""
        cdef int slot
        for slot in range(SLOTS):
            if r.low < self.slabs[slot] + self.slab_sizes[slot] and r.high > self.slabs[slot]:
                raise ValueError(f"{self.name(which, r.position, outer)} shares memory with the "
                                 "optimizer's weights; pass a copy")
        return 0

    cdef object array(self, given, Py_ssize_t position):
        """The array of a range's position: of these, or behind them of the state."""
        if position < self.count:
            return given[position]
        return self.slots[position // self.count - 1][position % self.count]

    cdef object positions(self, container, which):
        """The arrays of a list, tuple, dict or bare array, by position."""
        if type(container) is dict and self.keys is not None and len(container) == self.count:
            try:
                return tuple([container[key] for key in self.keys])
            except KeyError:
                pass
        return arrays.positions(container, which, self.keys, self.count)

    cdef int allocate_panels(self, int shares) except -1:
        cdef char* grown
        if shares > self.panel_capacity:
            grown = <char*>PyMem_Realloc(self.panels, <size_t>shares * PANEL * sizeof(double))
            if grown == NULL:
                raise MemoryError()
            self.panels = grown
            self.panel_capacity = shares
        return 0

    cdef int allocate_block_sums(self, size_t blocks) except -1:
        cdef double* grown
        if blocks > self.block_capacity:
            grown = <double*>PyMem_Realloc(self.block_sums, blocks * sizeof(double))
            if grown == NULL:
                raise MemoryError()
            self.block_sums = grown
            self.block_capacity = blocks
        return 0


cdef Plan new_plan(params, double start):
    """The plan of a model that is seen for the first time, with accumulators that start there."""
    cdef Plan plan
    cdef bint bare = isinstance(params, np.ndarray)
    keys = None
    if isinstance(params, dict):
        keys, given = tuple(params), list(params.values())
    elif isinstance(params, (list, tuple)):
        given = list(params)
    elif bare:
        given = [params]
    else:
        raise arrays.no_model(params)
    given = [arrays.parameter(x, arrays.label("params", keys, i, bare))
             for i, x in enumerate(given)]
    plan = Plan(len(given), keys)
    plan.make(ACCUMULATOR, given)
    plan.describe()
    if start != 0:
        for accumulator in plan.slots[ACCUMULATOR]:
            accumulator[...] = start
    return plan


cdef const rmsprop_dltensor* dltensor(capsule) except NULL:
    return <const rmsprop_dltensor*>PyCapsule_GetPointer(capsule, "dltensor")


cdef inline int64_t stride_of(const rmsprop_dltensor* t, int axis) noexcept:
    """In elements."""
    cdef int64_t stride = 1
    cdef int d
    if t.strides != NULL:
        return t.strides[axis]
    for d in range(axis + 1, t.ndim):
        stride *= t.shape[d]
    return stride


cdef bint dense_axes(const rmsprop_dltensor* t, int* axes) noexcept:
    """The axes from the slowest to the fastest in memory; whether there are no gaps in it."""
    cdef int d, j, count = 0
    cdef int64_t expected = 1
    for d in range(t.ndim):   # where an axis of length 1 stands does not matter: in front
        if t.shape[d] == 1:
            axes[count] = d
            count += 1
    for d in range(t.ndim):
        if t.shape[d] == 1:
            continue
        j = count
        while j > 0 and t.shape[axes[j - 1]] != 1 and stride_of(t, axes[j - 1]) < stride_of(t, d):
            axes[j] = axes[j - 1]
            j -= 1
        axes[j] = d
        count += 1
    for j in range(t.ndim - 1, -1, -1):
        if t.shape[axes[j]] != 1 and stride_of(t, axes[j]) != expected:
            return False
        expected *= t.shape[axes[j]]
    return True


cdef object dlpack_array(capsule, const int* axes, const rmsprop_dltensor* like):
    """An array over a tensor's memory, with its axes in this order; None if no kernel can use it.

    Nor can it if it is not of the dtype of another tensor.
    """
    cdef const rmsprop_dltensor* t = dltensor(capsule)
    cdef cnp.npy_intp shape[64]
    cdef cnp.npy_intp strides[64]
    cdef cnp.npy_intp itemsize = t.dtype.bits // 8
    cdef int d, axis
    # The devices are DLPack's CPU and the host memory of CUDA and ROCm, and 2 is a float.
    if t.device.type not in (1, 3, 11) or t.dtype.code != 2 or t.dtype.lanes != 1 or (
            t.dtype.bits not in (32, 64)) or t.dtype.bits != like.dtype.bits or t.ndim > 64:
        return None
    for d in range(t.ndim):
        axis = axes[d] if t.ndim == like.ndim else d
        shape[d] = t.shape[axis]
        strides[d] = stride_of(t, axis) * itemsize
    if t.data == NULL:
        array = np.zeros([shape[d] for d in range(t.ndim)], f"f{itemsize}")
        return None if array.size > 0 else array   # memory that was taken away, or none of its own
    array = cnp.PyArray_New(
        np.ndarray, t.ndim, shape, cnp.NPY_FLOAT32 if itemsize == 4 else cnp.NPY_FLOAT64,
        strides, <char*>t.data + t.byte_offset, 0, cnp.NPY_ARRAY_WRITEABLE, None)
    cnp.set_array_base(array, capsule)
    return array


cdef bint same_shape(x, y) noexcept:
    cdef int d
    if y is None or rmsprop_ndim(<void*>x) != rmsprop_ndim(<void*>y):
        return False
    for d in range(rmsprop_ndim(<void*>x)):
        if rmsprop_dims(<void*>x)[d] != rmsprop_dims(<void*>y)[d]:
            return False
    return True


def dlpack_arrays(list params, list grads, *state):
    """Arrays over the memory of another library's tensors, which they keep alive.

    Parameters
    ----------
    params, grads : list of (capsule or None)
        Parameters and their gradients in DLPack's form.
    *state : list of (capsule or None)
        What a step updates beside the parameters, by position.

    Returns
    -------
    arrays : list of list of (ndarray or None)
        For each argument. Axes are transposed to the parameter's order in memory, in which even a
        channels_last weight is contiguous; where that has gaps, to that of the first state. None
        where there is no capsule, for what is not float32 or float64 in the memory of the host, of
        another dtype than its parameter, or, of state, of another shape or order in memory.
    whole : bool
        Whether there is no None.
    """
    cdef Py_ssize_t i, j
    cdef bint whole = True
    cdef int axes[64]
    cdef int d
    cdef const rmsprop_dltensor* t
    cdef const rmsprop_dltensor* first
    cdef list column
    cdef tuple columns = (params, grads, *state)
    cdef list found = [[None] * len(params) for _ in columns]
    for i in range(len(params)):
        if params[i] is None or dltensor(params[i]).ndim > 64:
            whole = False
            continue
        t = dltensor(params[i])
        if not dense_axes(t, axes):
            first = t if not state or state[0][i] is None else dltensor(state[0][i])
            if first.ndim != t.ndim or not dense_axes(first, axes):
                for d in range(t.ndim):
                    axes[d] = d
        for j in range(len(columns)):
            column = columns[j]
            array = None if column[i] is None else dlpack_array(column[i], axes, t)
            if array is not None and j >= 2 and not (
                    rmsprop_flags(<void*>array) & cnp.NPY_ARRAY_C_CONTIGUOUS
                    and same_shape(array, found[0][i])):
                array = None
            if array is None:
                whole = False
            else:
                (<list>found[j])[i] = array
    return found, whole


def spans(list given):
    """The memory that each of some ndarrays can touch.

    Returns
    -------
    ndarray of intp, shape (len(given), 2)
        Its first address, and the first one behind it; 0 and 0 where there are no elements.
    """
    cdef Py_ssize_t i
    cdef cnp.ndarray found = np.zeros((len(given), 2), np.intp)
    cdef const char** places = <const char**>cnp.PyArray_DATA(found)
    for i in range(len(given)):
        if cnp.PyArray_SIZE(given[i]) > 0:
            span(given[i], &places[2 * i], &places[2 * i + 1])
    return found


cdef bint count_up(capsule) except -1:
    """Add 1 to a tensor of one number; False if it is of another form, or None."""
    cdef const rmsprop_dltensor* t
    cdef void* place
    cdef int d
    if capsule is None:
        return False
    t = dltensor(capsule)
    place = <char*>t.data + t.byte_offset
    for d in range(t.ndim):
        if t.shape[d] != 1:
            return False
    if t.device.type != 1 or t.dtype.lanes != 1:
        return False
    if t.dtype.code == 2 and t.dtype.bits == 32:
        (<float*>place)[0] += 1
    elif t.dtype.code == 2 and t.dtype.bits == 64:
        (<double*>place)[0] += 1
    elif t.dtype.code == 0 and t.dtype.bits == 64:
        (<int64_t*>place)[0] += 1
    else:
        return False
    return True


@cython.final
@cython.auto_pickle(False)
cdef class Bound:
    """A step on fixed arrays: calling its `step` is ``optimizer.step(params, grads)``."""

    cdef Core optimizer
    cdef object params, grads
    cdef bint overridden     # a subclass has a step of its own

    @cython.binding(True)   # copy takes a C function for immutable, and a method for its object's
    def step(self):
        """Repeat the step on the arrays that it was bound to."""
        if self.overridden:
            self.optimizer.step(self.params, self.grads)
        else:
            self.optimizer.advance(self.params, self.grads)

    def __deepcopy__(self, memo):
        cdef Bound other = Bound.__new__(Bound)
        other.optimizer = copy.deepcopy(self.optimizer, memo)
        other.params = copy.deepcopy(self.params, memo)
        other.grads = copy.deepcopy(self.grads, memo)
        other.overridden = self.overridden
        return other

    def __reduce_ex__(self, protocol):
        raise TypeError("a bound step can't be pickled, since it belongs to these very arrays; "
                        "pickle the optimizer, and bind again")


cdef struct Waiter:          # on the stack of a thread that waits to enter
    uint64_t thread
    PyThread_type_lock turn  # is released when it is its turn
    Waiter* next


@cython.auto_pickle(False)   # Optimizer says how it pickles
cdef class Core:
    """Hyper-parameters and state in C, and the step that uses them: base of ``Optimizer``."""

    cdef Settings settings
    cdef object schedule         # a callable that gives lr, or None
    cdef object lr_scale         # tuple, dict or None
    cdef tuple excluded          # positions or keys without weight decay
    cdef int variant             # of the kernel, and
    cdef int needed              # bits of slots, and
    cdef int passes              # around it, as the settings want them
    cdef bint each
    cdef int64_t changes         # of the settings so far, and
    cdef int64_t fit_for         # how many of them there were when float32 was seen to hold them
    cdef int64_t steps
    cdef int64_t calls           # since the latest update: gradient_accumulation_steps
    cdef int64_t total_calls     # of all times, without those that were skipped
    cdef readonly int64_t skipped_steps
    cdef readonly bint _suspended    # no steps: parameters are replaced by their averages
    cdef Plan plan               # None before the first step
    cdef Plan lent               # the one that `_step_on` used last
    cdef bint busy               # under the GIL: a step, or an access to the state, is under way
    cdef uint64_t owner          # the thread that makes it, or whose turn it is
    cdef Waiter* waiting         # the thread that has waited longest
    cdef int forks               # of the process when busy and waiting were last its own
    cdef rmsprop_trials trials

    def __cinit__(self, *args, **kwargs):
        self.excluded = ()
        rmsprop_team_begin(&self.trials)
        self.forks = rmsprop_threads_forks()

    cdef int enter(self) except -1:
        """Wait until no other thread is in a step of this optimizer, and begin one."""
        if self.forks != rmsprop_threads_forks():
            self.inherit()
        if self.busy:
            if self.owner == rmsprop_threads_self():
                raise RuntimeError("this optimizer is in use further up in this very thread")
            self.wait()
        self.busy = True
        self.owner = rmsprop_threads_self()
        return 0

    cdef void inherit(self) noexcept:
        """Go on in a forked child, where only the thread that has forked is left."""
        self.waiting = NULL
        self.forks = rmsprop_threads_forks()
        if self.busy and self.owner != rmsprop_threads_survivor():
            self.owner = rmsprop_threads_self()   # for a finalizer that would enter
            self.leave()

    cdef int wait(self) except -1:
        """Sleep until it is this thread's turn, behind all that wait already.

        Without a queue a thread that steps all the time would be in here again before one that
        waits is awake.
        """
        cdef Waiter waiter
        cdef Waiter** place = &self.waiting
        if sys.is_finalizing():   # daemon threads never run again
            raise RuntimeError("a thread was in this optimizer when the interpreter shut down")
        if not self.busy:   # any more: the line above may have let others run
            return 0
        waiter.thread = rmsprop_threads_self()
        waiter.next = NULL
        waiter.turn = PyThread_allocate_lock()
        if waiter.turn == NULL:
            raise MemoryError()
        PyThread_acquire_lock(waiter.turn, NOWAIT_LOCK)
        while place[0] != NULL:
            place = &place[0].next
        place[0] = &waiter
        with nogil:
            PyThread_acquire_lock(waiter.turn, WAIT_LOCK)
        PyThread_release_lock(waiter.turn)
        PyThread_free_lock(waiter.turn)
        return 0

    cdef void tidy(self) noexcept:
        """Forget what a step that was not made has left."""
        if self.plan is not None:
            self.plan.held = None
            if self.plan.kept == 0:
                self.plan = None
            elif self.plan.kept != self.plan.made:
                self.plan.drop()

    cdef void leave(self) noexcept:
        cdef Waiter* waiter
        self.tidy()                # this may run a finalizer, and so let others come to wait
        waiter = self.waiting
        if waiter == NULL or self.forks != rmsprop_threads_forks():   # they are the parent's
            self.waiting = NULL
            self.busy = False
        else:
            self.waiting = waiter.next
            self.owner = waiter.thread
            PyThread_release_lock(waiter.turn)   # from here on its stack is its own

    cdef void derive(self) noexcept:
        """What the settings mean for the kernels."""
        cdef Settings* settings = &self.settings
        self.changes += 1
        self.variant = (6 * <int>settings.centered + <int>settings.epsilon_in_sqrt + (
            0 if settings.momentum == 0 else 4 if settings.nesterov != 0 else 2))
        self.needed = 1 << ACCUMULATOR
        self.passes = 0
        if settings.momentum > 0:
            self.needed |= 1 << MOMENTUM
        if settings.centered != 0:
            self.needed |= 1 << AVERAGE_GRADIENT
        if settings.use_ema != 0:
            self.needed |= 1 << MOVING_AVERAGE
            self.passes |= RMSPROP_AVERAGE
        if settings.gradient_accumulation_steps > 1:
            self.needed |= 1 << GRADIENT_SUM
        if settings.weight_decay > 0:
            self.passes |= (RMSPROP_DECAY if settings.decoupled_weight_decay != 0
                            else RMSPROP_DECAY_GRAD)
        if settings.flush_subnormals != 0:
            self.passes |= RMSPROP_FLUSH
        if settings.zero_grad != 0:
            self.passes |= RMSPROP_ZERO_GRAD
        self.each = self.lr_scale is not None or settings.parameter_clipnorm > 0 or (
            settings.weight_decay > 0 and len(self.excluded) > 0)

    cdef inline int64_t cycle(self) noexcept:
        """How many calls make an update."""
        if self.settings.gradient_accumulation_steps > 1:   # not for NaN: None
            return <int64_t>self.settings.gradient_accumulation_steps
        return 1

    cdef int prepare(self, params, Job* job, bint dry) except -1:
        """What a call does, before its arrays are looked at; Python code may run."""
        cdef Settings* settings = &self.settings
        cdef int64_t cycle, changes
        if self.total_calls >= LARGEST_COUNT:
            raise ValueError("2**62 calls are as many as can be counted; set iterations, or "
                             "reset()")
        if self.plan is None:
            self.plan = new_plan(params, settings.initial_accumulator_value)
        cdef double lr = NAN
        # While Python code runs another thread may assign options, so that more is needed. A
        # schedule may replace itself: one is asked.
        while ((lr != lr and self.schedule is not None and self.calls + 1 >= self.cycle())
               or self.plan.factors is not self.lr_scale or self.plan.excluded is not self.excluded
               or self.needed & ~self.plan.made
               or (self.plan.float32 and self.fit_for != self.changes)):
            if lr != lr and self.schedule is not None and self.calls + 1 >= self.cycle():
                lr = self.scheduled(self.schedule)
            self.resolve(self.plan)
            self.plan.make_needed(self.needed, params)
            if self.plan.float32:
                changes = self.changes
                self._check_float32()
                self.fit_for = changes
        # From here to the end no Python code runs: what is read of the settings fits together.
        cycle = self.cycle()
        line_up_anew(job)
        job.dry = dry
        job.transposed = self.plan.transposed
        job.block_sums = NULL
        job.nonfinite = 0
        job.settings = settings[0]
        if lr == lr:
            job.settings.lr = lr
        job.iterations = self.steps
        job.calls = self.calls + 1
        job.summing = cycle > 1 or self.calls > 0
        job.updates = job.calls >= cycle
        job.needed = self.needed
        if job.summing:   # in a cycle that ends early, too
            job.needed |= 1 << GRADIENT_SUM
        job.variant = self.variant
        job.each = self.each
        job.passes = self.passes
        if job.summing:
            job.passes |= RMSPROP_ADD
        if job.updates:
            job.passes |= RMSPROP_UPDATE
        else:
            job.passes &= RMSPROP_ADD | RMSPROP_AVERAGE | RMSPROP_ZERO_GRAD
        if settings.use_ema != 0 and settings.ema_overwrite_frequency >= 1 and (
                (self.steps + 1) % <int64_t>settings.ema_overwrite_frequency == 0):
            job.passes |= RMSPROP_OVERWRITE
        return 0

    cdef double scheduled(self, schedule) except? -1:
        """The learning rate of a schedule, which may be replaced meanwhile, by itself too."""
        return self._lr_at(schedule, self.total_calls)

    cdef int resolve(self, Plan plan) except -1:
        """Give each position its factor of the learning rate and its part in weight decay."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef bint wide
        cdef list factors, decays
        cdef object lr_scale = self.lr_scale
        cdef tuple excluded = self.excluded
        if plan.factors is lr_scale and plan.excluded is excluded:
            return 0
        factors, decays = self._by_position(
            list(range(plan.count)) if plan.keys is None else list(plan.keys), plan.keys is None,
            lr_scale, excluded)
        plan.scales[0] = plan.scales[1] = 1 if lr_scale is None else 0
        for i in range(plan.count):
            t = &plan.tensors[i]
            t.lr_scale = factors[i]
            t.decays = decays[i]
            wide = t.itemsize == 8
            plan.scales[wide] = max(plan.scales[wide], t.lr_scale)
        plan.factors, plan.excluded = lr_scale, excluded
        return 0

    cdef int attach(self, params, grads, Job* job, bint dry) except -1:
        """Check everything that a step needs; afterwards nothing can fail."""
        cdef Plan plan
        cdef const Settings* settings = &job.settings
        cdef bint plain = False, checked = True
        if self._suspended:
            raise RuntimeError("a step inside averaged() would be lost at its end")
        self.prepare(params, job, dry)
        plan = self.plan
        if (type(params) is list or type(params) is tuple) and plan.keys is None and (
                type(grads) is list or type(grads) is tuple) and (
                rmsprop_size(params) == plan.count and rmsprop_size(grads) == plan.count):
            param_list, grad_list = params, grads
        else:
            if isinstance(params, np.ndarray) and not isinstance(
                    grads, (list, tuple, dict, np.ndarray)) and grads is not None:
                grads, = arrays.all_readable((grads,), None, True, settings.zero_grad != 0)
            if isinstance(params, np.ndarray) != isinstance(grads, np.ndarray):
                raise arrays.other_form(params, grads)
            param_list = plan.positions(params, "params")
            grad_list = plan.positions(grads, "grads")
        if plan.elements >= unlocked_minimum:   # another thread may change the lists meanwhile
            param_list, grad_list = tuple(param_list), tuple(grad_list)
        plain = plan.attach_plain(param_list, grad_list, job, &checked)
        if not plain:
            param_list = tuple(param_list)
            grad_list = arrays.all_readable(grad_list, plan.keys, isinstance(grads, np.ndarray),
                                            settings.zero_grad != 0)
            line_up_anew(job)
            plan.attach_any(param_list, grad_list, params, grads, job)
        if not plain or not checked or (settings.zero_grad != 0 and not plan.apart):
            plan.check_overlap(param_list, grad_list, params, grads, plain,
                               settings.zero_grad != 0)
        if job.active == 0 and (job.updates or plan.count == 0):
            raise ValueError(
                "params is empty: there is nothing to do" if plan.count == 0 else
                "all gradients since the latest update are None: there is nothing to do"
                if job.summing else "all gradients are None: there is nothing to do")
        if settings.lr > 1e3 or settings.weight_decay > 1e3 or self.lr_scale is not None:
            self.check_rate(job)
        job.kernels = kernels
        job.tensors = plan.tensors
        job.count = plan.count
        job.one_shot = False
        job.shares = 1 if dry else rmsprop_team_size(job.elements, &job.one_shot)
        if job.updates and (settings.clipnorm > 0 or settings.parameter_clipnorm > 0):
            plan.allocate_block_sums(job.blocks)
            job.block_sums = plan.block_sums
            if plan.transposed:
                plan.allocate_panels(job.shares)
                job.panels = plan.panels
        if plan.held is None and not (param_list is params and grad_list is grads):
            plan.held = [param_list, grad_list]   # our own tuples, and what only they may hold
        return 0

    cdef int check_rate(self, const Job* job) except -1:
        """Raise if a learning rate of this step, or of decoupled decay, is infinite."""
        cdef const Settings* settings = &job.settings
        cdef double rate = settings.lr
        cdef bint decayed = settings.decoupled_weight_decay != 0 and settings.weight_decay > 1
        if decayed:
            rate *= settings.weight_decay
        if job.updates and (   # a schedule is asked for updates alone
                not rate * self.plan.scales[1] < INFINITY
                or (self.plan.float32
                    and not rate * self.plan.scales[0] < INFINITE_IN_FLOAT32)):
            raise arrays.infinite_rate(settings.lr, decayed, self.lr_scale is not None)
        return 0

    cdef int advance(self, params, grads) except -1:
        """One step: all of it, or an exception and none."""
        self.enter()
        try:
            run_step(self, params, grads)
        finally:
            self.leave()
        return 0

    def _step_on(self, list params, list grads, dict slots, list counters, tuple labels):
        """`step` on state that another library owns; nothing of it is kept.

        Parameters
        ----------
        params, grads : list of ndarray
            As for `step`.
        slots : dict of str to list of ndarray
            What the options need, by slot name and position.
        counters : list of (capsule or None)
            Numbers in DLPack's form, to be counted up by 1 if the step is made.
        labels : tuple
            What errors call the positions.

        Returns
        -------
        list of int
            The counters that are not one float32, float64 or int64 and so were left alone.
        """
        cdef Plan plan = self.lent
        self.enter()
        try:
            if plan is None or plan.count != len(params):
                self.lent = plan = Plan(len(params), None)
            try:
                plan.labels = labels
                plan.lend(slots)
                if self.needed & ~plan.made:
                    raise ValueError(f"slots has {', '.join(slots)}, but the options need more")
                self.plan = plan
                run_step(self, params, grads)
                return [i for i, counter in enumerate(counters) if not count_up(counter)]
            finally:
                self.plan = None
                plan.give_back()
        finally:
            self.leave()

    cdef int refuse_nonfinite(self, grads, bint skips) except -1:
        """Count a step that was skipped, or raise for the gradient that was to blame."""
        cdef Py_ssize_t i, found = -1
        for i in range(self.plan.count):
            if self.plan.tensors[i].nonfinite and found < 0:
                found = i
        if skips:
            self.skipped_steps += 1
            return 0
        raise ValueError(f"{self.plan.name('grads', found, grads)} holds NaN, infinity or a number "
                         "whose square overflows; nothing was changed")

    cdef void make(self, Job* job) noexcept nogil:
        """Make the step: from here on nothing can fail."""
        rmsprop_team_perform(&self.trials, job)
        if job.nonfinite:
            if job.settings.nonfinite == 2 and job.passes & RMSPROP_ZERO_GRAD:
                clear(job)
            return
        self.plan.kept = self.plan.made & job.needed
        finish(job)
        self.calls = 0 if job.updates else job.calls
        self.total_calls += 1
        if job.updates:
            self.steps += 1

    def step(self, params, grads):
        """Update `params` in place by one step of RMSprop along `grads`.

        Parameters
        ----------
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            Arrays of float32 or float64 (they may be mixed), of any shape, strides, alignment and
            byte order, writeable and without a common element. Changed in place. The first step (or
            `build`) fixes number, shapes and dtypes; the arrays may be other ones at every step.
            State belongs to positions (keys of a dict), not to arrays: pass all parameters of a
            model in one call, and use one optimizer for a model.
        grads : of the same form as `params`
            The gradients, each of its parameter's shape and dtype; only read, unless `zero_grad`
            is on. None leaves that parameter and its state as they are, averages apart, and counts
            as 0 in a cycle of `gradient_accumulation_steps`. Arrays of other libraries do where
            NumPy reads them (`numpy.asarray`, DLPack), and a NumPy scalar for a 0-d parameter.

        Raises
        ------
        TypeError, ValueError
            For arrays that can't be used, by name and index. Nothing has changed then.

        Notes
        -----
        The update is that of ``tf.contrib.keras.optimizers.RMSprop`` in TensorFlow 1.3; see
        `rmsprop_c.reference` for the definition.

        Examples
        --------
        >>> import numpy as np
        >>> from rmsprop_c import RMSprop
        >>> opt, w = RMSprop(lr=0.5), np.array([1.0, 2.0])
        >>> opt.step([w], [np.array([1.0, 6.0])])
        >>> w.round(6)
        array([-0.581139,  0.418861])
        """
        self.advance(params, grads)

    def bind(self, params, grads):
        """A zero-argument callable that repeats ``step(params, grads)`` on these very arrays.

        The callable keeps the arrays alive and reads gradients anew at every call, so compute them
        in place. Hyper-parameters stay live. Everything that `step` checks is checked here and at
        every call, with ``nonfinite="raise"`` the gradients' values too: fill a buffer of
        `numpy.empty` before. A subclass's own `step` is what it repeats; that checks by itself.

        Returns
        -------
        callable
            ``copy.deepcopy`` of it, or of what holds it, gives a step on copies of the optimizer
            and of the arrays. It can't be pickled: pickle the optimizer, and bind again.

        Examples
        --------
        >>> import numpy as np
        >>> from rmsprop_c import RMSprop
        >>> w, g = np.ones(3), np.empty(3)
        >>> step = RMSprop(lr=0.1).bind([w], [g])
        >>> for _ in range(2):
        ...     np.multiply(w, 2, out=g)   # the gradient of w**2
        ...     step()
        array([2., 2., 2.])
        array([1.36754448, 1.36754448, 1.36754448])
        """
        cdef Job job
        cdef Bound bound = Bound.__new__(Bound)
        bound.overridden = (type(self).step is not Core.step
                            or "step" in getattr(self, "__dict__", ()))
        if not bound.overridden:
            self.enter()
            try:
                self.attach(params, grads, &job, True)
                if job.settings.nonfinite == 1:
                    perform(&job)
                    if job.nonfinite:
                        self.refuse_nonfinite(grads, False)
                self.plan.kept = self.plan.made
            finally:
                self.leave()
        bound.optimizer = self
        bound.params, bound.grads = [
            dict(x) if isinstance(x, dict) else tuple(x) if isinstance(x, (list, tuple)) else x
            for x in (params, grads)]
        return bound.step

    def build(self, params):
        """Make the accumulators for `params` without a step, so that weights can be set.

        Parameters
        ----------
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            As for `step`; only read. On an optimizer that has accumulators already this only
            checks that they fit.

        Raises
        ------
        TypeError, ValueError
            If `params` can't be used, or differ from those the optimizer was built for.
        """
        self.enter()
        try:
            if self.plan is None:
                self.plan = new_plan(params, self.settings.initial_accumulator_value)
            else:
                self.plan.fitting(self.plan.positions(params, "params"), params)
            self.plan.make_needed(self.needed, params)
            self.plan.kept = self.plan.made
        finally:
            self.leave()

    def reset(self):
        """Forget the accumulators and all other state, and set `iterations` to 0."""
        cdef Plan _plan = None
        self.enter()
        try:
            _plan, self.plan = self.plan, None   # freed when others may enter again
            self.steps = self.calls = self.total_calls = self.skipped_steps = 0
        finally:
            self.leave()

    @property
    def iterations(self):
        """int: number of updates done. Assign to it to resume a count.

        The number of calls that a schedule is given becomes that of so many cycles of
        gradient_accumulation_steps, and of the calls since the latest update; it is at most 2**62.
        """
        return self.steps

    @iterations.setter
    def iterations(self, value):
        cdef int64_t count = states.checked_count(value, "iterations"), total
        self.enter()
        try:
            total = states.total_calls(count, self.cycle(), self.calls)
            self.steps, self.total_calls = count, total
        finally:
            self.leave()

    def _get_setting(self, int i):
        return (<double*>&self.settings)[i]

    def _set_setting(self, int i, double value):
        cdef double* place = <double*>&self.settings + i
        if place[0] != value and (place[0] == place[0] or value == value):   # None is NaN
            place[0] = value
            self.derive()

    def _suspend(self, bint on):
        """Refuse steps from now on, or allow them again; waits for the one under way."""
        self.enter()
        try:
            self._suspended = on
        finally:
            self.leave()

    def _get_objects(self):
        """(schedule or None, lr_scale, exclude_from_weight_decay)."""
        return self.schedule, self.lr_scale, self.excluded

    def _set_lr(self, schedule, double lr):
        """A schedule, or None and the number."""
        self.schedule = schedule
        if schedule is None:
            self.settings.lr = lr

    def _set_lr_scale(self, lr_scale):
        self.lr_scale = lr_scale
        self.derive()

    def _set_excluded(self, tuple excluded):
        self.excluded = excluded
        self.derive()

    def _counts(self):
        """The numbers of updates, of all calls without skipped ones, and of skipped ones."""
        return self.steps, self.total_calls, self.skipped_steps

    def _needed(self):
        """Names of the slots that the options need."""
        return [name for slot, name in enumerate(SLOT_NAMES) if self.needed & 1 << slot]

    def _keys(self):
        """The keys of a model that is a dict, in the order of the positions; else None."""
        return None if self.plan is None else self.plan.keys

    def _views(self):
        """Read-only views of the weights by slot name, each by position; {} before the first step.
        """
        cdef Plan plan = self.plan   # no lock: it may be replaced meanwhile
        found = {}
        if plan is not None:
            for name, arrays in plan.kept_slots(self.needed & ~(1 << GRADIENT_SUM)).items():
                found[name] = [array.view() for array in arrays]
                for view in found[name]:
                    view.flags.writeable = False
        return found

    def _snapshot(self, bint weights=False):
        """The state between two steps, as `_restore` takes it, or its weights; arrays are copies.

        What an option that is off has left is a part of the state until the next step, but none of
        the weights.
        """
        cdef Py_ssize_t i
        cdef int bits = self.needed & ~(1 << GRADIENT_SUM) if weights else -1
        self.enter()
        try:
            state = {"iterations": self.steps, "calls": self.calls,
                     "total_calls": self.total_calls, "skipped_steps": self.skipped_steps,
                     "keys": None, "slots": {}, "pending": []}
            if self.plan is not None:
                state["keys"] = self.plan.keys
                state["pending"] = [bool(self.plan.tensors[i].pending)
                                    for i in range(self.plan.count)]
                state["slots"] = {name: [x.copy(order="K") for x in arrays]
                                  for name, arrays in self.plan.kept_slots(bits).items()}
            return state
        finally:
            self.leave()

    def _assign(self, dict slots, iterations=None, calls=0, pending=None):
        """Set slots from arrays of the accumulators' shapes and dtypes, between two steps.

        Slots that are not there are made, and what options that are off have left is dropped. A new
        cycle begins, but for `calls`, of which the positions in `pending` had gradients.
        """
        cdef Py_ssize_t i
        cdef int slot
        cdef cnp.ndarray own, x
        cdef list pairs = []
        cdef Plan plan
        cdef int64_t steps, total, count = calls
        self.enter()
        try:
            plan = self.plan
            owned = None if plan is None else plan.slots[ACCUMULATOR]
            for name in slots:
                slot = SLOT_NAMES.index(name)
                if owned is None or not self.needed & 1 << slot or (
                        states.forms(slots[name]) != states.forms(owned)):
                    raise RuntimeError("another thread has rebuilt the optimizer meanwhile")
                if not plan.made & 1 << slot:
                    plan.make(slot, owned)
                for own, x in zip(plan.slots[slot], slots[name]):
                    fortran = own.flags.f_contiguous and not own.flags.c_contiguous
                    pairs.append((own, np.asarray(x, order="F" if fortran else "C")))
            steps, total = self.steps, self.total_calls
            if iterations is not None:
                steps, total = iterations, states.total_calls(iterations, self.cycle(), calls)
            # No call of NumPy's: it would let go of the GIL, and a fork could find half of it.
            rmsprop_threads_enter()
            if plan.made & 1 << GRADIENT_SUM:
                for i in range(plan.count):
                    memset(plan.tensors[i].slots[GRADIENT_SUM], 0,
                           plan.tensors[i].size * plan.tensors[i].itemsize)
            for own, x in pairs:
                memcpy(cnp.PyArray_BYTES(own), cnp.PyArray_BYTES(x), cnp.PyArray_NBYTES(own))
            for i in range(plan.count):
                plan.tensors[i].pending = pending is not None and pending[i]
            self.steps, self.calls, self.total_calls = steps, count, total
            # Another thread may have assigned options since: a cycle keeps its sum.
            plan.kept = plan.made & (self.needed | (1 << GRADIENT_SUM if count > 0 else 0))
            rmsprop_threads_leave()
        finally:
            self.leave()

    def _take(self, Core other):
        """Take over hyper-parameters and state of an optimizer that nobody else uses."""
        cdef Plan _plan = None
        self.enter()
        try:
            if self._suspended:
                raise RuntimeError("the state can't be replaced inside averaged()")
            _plan, self.plan = self.plan, other.plan   # the old one is freed after leave
            self.steps, self.calls = other.steps, other.calls
            self.total_calls, self.skipped_steps = other.total_calls, other.skipped_steps
            self.settings = other.settings
            self.schedule, self.lr_scale = other.schedule, other.lr_scale
            self.excluded = other.excluded
            self.derive()
        finally:
            self.leave()

    def _restore(self, dict state):
        """Take over what `_snapshot` returned; ValueError for what no run can reach."""
        states.check(state)
        cdef Plan plan = None
        cdef Py_ssize_t i
        cdef int slot
        cdef dict slots = state["slots"]
        cdef list pending = state["pending"]
        cdef int64_t steps = state["iterations"], calls = state["calls"]
        cdef int64_t total_calls = state["total_calls"], skipped_steps = state["skipped_steps"]
        if slots:
            plan = Plan(len(slots["accumulator"]), state["keys"])
            for name in slots:
                slot = SLOT_NAMES.index(name)
                plan.make(slot, slots["accumulator"])
                plan.fill(slot, slots[name])
            plan.describe()
            plan.kept = plan.made
            for i in range(plan.count):
                plan.tensors[i].pending = pending[i]
        self.enter()
        try:
            if self._suspended:
                raise RuntimeError("the state can't be replaced inside averaged()")
            plan, self.plan = self.plan, plan   # the old one is freed when others may enter again
            self.steps, self.calls = steps, calls
            self.total_calls, self.skipped_steps = total_calls, skipped_steps
        finally:
            self.leave()


cdef inline int run_step(Core self, params, grads) except -1:
    """The step, once no other is under way."""
    cdef Job job
    self.attach(params, grads, &job, False)
    if job.elements < unlocked_minimum and job.shares == 1:
        self.make(&job)
    else:
        with nogil:
            rmsprop_threads_enter()
            self.make(&job)
            rmsprop_threads_leave()
    if job.nonfinite:
        self.refuse_nonfinite(grads, job.settings.nonfinite == 2)
    return 0


cdef void update_f32(float* p, const float* g, float* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil:
    cdef rmsprop_fenv found = rmsprop_fenv_enter()
    kernels.update_f32[0](p, g, a, NULL, NULL, n, scalars)
    rmsprop_fenv_leave(found)


cdef void update_f64(double* p, const double* g, double* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil:
    cdef rmsprop_fenv found = rmsprop_fenv_enter()
    kernels.update_f64[0](p, g, a, NULL, NULL, n, scalars)
    rmsprop_fenv_leave(found)


rmsprop_threads_init()
try:
    use_isa(os.environ.get("RMSPROP_C_ISA") or None)
except ValueError as error:
    raise ImportError(f"RMSPROP_C_ISA: {error}") from None

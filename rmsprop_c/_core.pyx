# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""Arrays -> checked pointers -> one loop over contiguous shares -> kernels.

``Plan`` knows which arrays belong to a model: it checks them, finds out where they lie and owns the
accumulators; it knows no formula. ``Core``, the base of the Python optimizers, holds the
hyper-parameters as C numbers and makes a step of a plan all or nothing. No arithmetic on elements
happens here: that is in ``include/rmsprop.h``.
"""
cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_get_thread_ident,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

import operator
import os
import sys

import numpy as np

cnp.import_array()

cdef extern from *:
    """
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

cdef extern from "rmsprop.h" nogil:
    const size_t RMSPROP_BLOCK
    size_t rmsprop_block_count(size_t n)

cdef extern from "_kernels.h" nogil:
    ctypedef struct rmsprop_kernels:
        const char* name
        void (*update_f32)(float*, const float*, float*, size_t,
                           const rmsprop_scalars*) noexcept nogil
        void (*update_f64)(double*, const double*, double*, size_t,
                           const rmsprop_scalars*) noexcept nogil
        void (*block_sums_f32)(const float*, size_t, double*) noexcept nogil
        void (*block_sums_f64)(const double*, size_t, double*) noexcept nogil
        double (*learning_rate)(double, double, int64_t) noexcept nogil
        double (*clip_scale)(double*, size_t, double) noexcept nogil
    ctypedef struct rmsprop_fenv:
        pass
    const rmsprop_kernels* rmsprop_kernels_compiled(int)
    bint rmsprop_kernels_supported(const rmsprop_kernels*)
    const rmsprop_kernels* rmsprop_kernels_best()
    rmsprop_fenv rmsprop_fenv_enter()
    void rmsprop_fenv_leave(rmsprop_fenv)

ctypedef void (*Share)(const void*, int) noexcept nogil

cdef extern from "_threads.h" nogil:
    void rmsprop_threads_init()
    int rmsprop_threads_openmp()
    int rmsprop_threads_limit()
    void rmsprop_threads_share(int, Share, const void*)
    bint rmsprop_threads_forked()
    int rmsprop_threads_forks()
    void rmsprop_threads_enter()
    void rmsprop_threads_leave()
    bint rmsprop_threads_available(int)
    bint rmsprop_threads_run(void (*)(void*) noexcept nogil, void*)
    double rmsprop_threads_clock()

cdef extern from "<math.h>" nogil:
    const double INFINITY
    const double NAN


cdef const rmsprop_kernels* kernels = NULL

# Elements of a step from which each policy pays: see docs/performance.md for the measurements.
cdef int64_t unlocked_minimum = 1 << 15   # release the GIL: 12 us of work
cdef int64_t team_minimum = 1 << 15       # a hot team that was asked for
cdef int64_t fresh_minimum = 1 << 22      # by default: a team of its own, for this one step, where
cdef int64_t fresh_share = 1 << 21        # it proves faster; so many elements for each thread
cdef int trial_steps = 4                  # such steps that alternate before the first choice
cdef int trial_gap = 32                   # from there to the next trial; doubled where it lost

cdef int requested_threads = 0   # set_num_threads, RMSPROP_C_NUM_THREADS; 0: default policy
cdef int processors = 1          # affinity and container quota, as found at import
cdef int available_threads = 1   # so many were seen to live at once
cdef int refused_threads = 1025  # and so many could not


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
        usable = ", ".join(isa for isa, supported in found.items() if supported)
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


def compiler():
    """The C compiler that built this."""
    return RMSPROP_COMPILER.decode().strip()


def configure_threads(int requested, int available_processors):
    """Set the thread policy: `requested` threads (0: the default policy) on so many processors."""
    global requested_threads, processors
    requested_threads = requested
    processors = available_processors


def configure_minimums(unlocked=None, team=None, fresh=None, share=None):
    """Set the policy's element counts; returns those before. For measuring and testing them."""
    global unlocked_minimum, team_minimum, fresh_minimum, fresh_share
    before = dict(unlocked=unlocked_minimum, team=team_minimum, fresh=fresh_minimum,
                  share=fresh_share)
    unlocked_minimum = unlocked_minimum if unlocked is None else unlocked
    team_minimum = team_minimum if team is None else team
    fresh_minimum = fresh_minimum if fresh is None else fresh
    fresh_share = fresh_share if share is None else share
    return before


cdef int threads_for(int64_t elements, bint* fresh) noexcept:
    """How many threads a step of so many elements gets, and whether in a fresh team."""
    global available_threads, refused_threads
    cdef int64_t count
    fresh[0] = requested_threads == 0 or rmsprop_threads_forked()
    if elements < (fresh_minimum if fresh[0] else team_minimum):
        return 1
    if requested_threads > 0:
        count = requested_threads
    else:
        count = min(elements // fresh_share, processors, rmsprop_threads_limit())
    if rmsprop_threads_openmp() == 0 or count <= 1 or count >= refused_threads:
        return 1
    if count > available_threads:
        if not rmsprop_threads_available(<int>count):
            refused_threads = <int>count
            return 1
        available_threads = <int>count
    return <int>count


ctypedef struct Tensor:
    char* param              # of this step: the user's buffer, or a staged copy
    const char* grad         # NULL: this position sits out
    char* accumulator
    cnp.npy_intp size        # elements
    cnp.npy_intp* shape      # of the accumulator, hence of the position
    int ndim
    int type                 # NPY_FLOAT32 or NPY_FLOAT64
    int itemsize
    int order                # flag of the accumulator's memory order
    int64_t start            # bytes before it in the flat range of this step
    int64_t stop
    size_t first_block       # block sums before it
    char* landing            # where a staged parameter goes back to; NULL: nowhere
    cnp.npy_intp* landing_strides
    bint landing_swapped
    const char* checked_param    # pointers that passed the overlap check
    const char* checked_grad

ctypedef struct Settings:    # rows of the table in optimizer.py, in its order
    double lr
    double rho
    double epsilon
    double decay
    double clipnorm          # NaN: None
    double clipvalue         # NaN: None

ctypedef struct Job:
    const Tensor* tensors
    Py_ssize_t count
    Py_ssize_t active        # tensors with a gradient
    int64_t elements
    int64_t bytes
    int64_t iterations
    Settings settings
    rmsprop_scalars scalars
    double* block_sums
    size_t blocks
    int shares


cdef inline void line_up(Tensor* t, Job* job) noexcept:
    """Append a tensor of this step to the flat range."""
    t.start = t.stop = job.bytes
    t.first_block = job.blocks
    if t.grad != NULL:
        t.stop += t.size * t.itemsize
        job.bytes = t.stop
        job.blocks += rmsprop_block_count(t.size)
        job.elements += t.size
        job.active += 1


cdef void cut(const Job* job, int k, Py_ssize_t* tensor, cnp.npy_intp* offset) noexcept nogil:
    """Where share k begins: a tensor, and an offset that begins a cache line of the parameter."""
    cdef int64_t at
    cdef Py_ssize_t low = 0, high = job.count, middle
    cdef uintptr_t address, line
    if k == 0 or k == job.shares:
        tensor[0] = 0 if k == 0 else job.count
        offset[0] = 0
        return
    at = job.bytes * k // job.shares
    while high - low > 1:   # the last tensor that starts at or before `at`
        middle = (low + high) // 2
        if job.tensors[middle].start <= at:
            low = middle
        else:
            high = middle
    tensor[0] = low
    address = <uintptr_t>job.tensors[low].param
    line = (address + <uintptr_t>(at - job.tensors[low].start)) & ~<uintptr_t>63
    if line > address:   # a whole number of elements, also where a double is aligned to 4 bytes
        offset[0] = <cnp.npy_intp>(line - address) & -<cnp.npy_intp>job.tensors[low].itemsize
    else:
        offset[0] = 0


cdef void update_share(const void* argument, int k) noexcept nogil:
    """Update what lies between the cuts k and k + 1."""
    cdef const Job* job = <const Job*>argument
    cdef Py_ssize_t first, last, i
    cdef cnp.npy_intp first_offset, last_offset, begin, end
    cdef const Tensor* t
    cut(job, k, &first, &first_offset)
    cut(job, k + 1, &last, &last_offset)
    for i in range(first, last + 1 if last_offset > 0 else last):
        t = &job.tensors[i]
        begin = first_offset if i == first else 0
        end = last_offset if i == last else <cnp.npy_intp>(t.stop - t.start)
        if end <= begin:
            continue
        if t.type == cnp.NPY_FLOAT32:
            kernels.update_f32(<float*>(t.param + begin), <const float*>(t.grad + begin),
                               <float*>(t.accumulator + begin), (end - begin) // 4, &job.scalars)
        else:
            kernels.update_f64(<double*>(t.param + begin), <const double*>(t.grad + begin),
                               <double*>(t.accumulator + begin), (end - begin) // 8, &job.scalars)


cdef void sum_share(const void* argument, int k) noexcept nogil:
    """Sum the squares of the gradients' blocks between k and k + 1 shares of them all."""
    cdef const Job* job = <const Job*>argument
    cdef size_t first = job.blocks * k // job.shares
    cdef size_t last = job.blocks * (k + 1) // job.shares
    cdef size_t begin, end, blocks
    cdef Py_ssize_t i
    cdef const Tensor* t
    for i in range(job.count):
        t = &job.tensors[i]
        blocks = rmsprop_block_count((t.stop - t.start) // t.itemsize)
        if t.first_block >= last or t.first_block + blocks <= first:
            continue
        begin = first - t.first_block if first > t.first_block else 0
        end = min(last - t.first_block, blocks)
        begin *= RMSPROP_BLOCK
        end = min(end * RMSPROP_BLOCK, <size_t>t.size)
        if t.type == cnp.NPY_FLOAT32:
            kernels.block_sums_f32(<const float*>t.grad + begin, end - begin,
                                   job.block_sums + t.first_block + begin // RMSPROP_BLOCK)
        else:
            kernels.block_sums_f64(<const double*>t.grad + begin, end - begin,
                                   job.block_sums + t.first_block + begin // RMSPROP_BLOCK)


cdef void share_out(const Job* job, Share work) noexcept nogil:
    """Do all shares: here, or in a team."""
    if job.shares == 1:
        work(job, 0)
    else:
        rmsprop_threads_share(job.shares, work, job)


cdef void perform(void* argument) noexcept nogil:
    """The whole step of a job, in the calling thread and, for more shares than one, in its team."""
    cdef Job* job = <Job*>argument
    cdef Settings* settings = &job.settings
    cdef rmsprop_scalars* scalars = &job.scalars
    cdef rmsprop_fenv found = rmsprop_fenv_enter()
    scalars.learning_rate = kernels.learning_rate(settings.lr, settings.decay, job.iterations)
    scalars.rho = settings.rho
    scalars.epsilon = settings.epsilon
    scalars.scale = 1.0
    scalars.clipvalue = settings.clipvalue if settings.clipvalue > 0 else INFINITY
    if settings.clipnorm > 0:
        share_out(job, sum_share)
        scalars.scale = kernels.clip_scale(job.block_sums, job.blocks, settings.clipnorm)
    share_out(job, update_share)
    rmsprop_fenv_leave(found)


cdef void land(const Tensor* t) noexcept nogil:
    """Copy a staged parameter back to the user's array: any strides, alignment and byte order."""
    cdef cnp.npy_intp index[64]   # NPY_MAXDIMS of NumPy 2
    cdef const char* source = t.param
    cdef char* target = t.landing
    cdef int axis, j
    memset(index, 0, sizeof(index))
    for _ in range(t.size):
        if t.landing_swapped:
            for j in range(t.itemsize):
                target[j] = source[t.itemsize - 1 - j]
        else:
            memcpy(target, source, t.itemsize)
        source += t.itemsize
        for j in range(t.ndim):
            axis = j if t.order == cnp.NPY_ARRAY_F_CONTIGUOUS else t.ndim - 1 - j
            target += t.landing_strides[axis]
            index[axis] += 1
            if index[axis] < t.shape[axis]:
                break
            target -= index[axis] * t.landing_strides[axis]
            index[axis] = 0


ctypedef struct Range:
    const char* low
    const char* high
    const char* reach        # the highest end of this range and of those before it
    Py_ssize_t position


cdef int compare_ranges(const void* x, const void* y) noexcept nogil:
    cdef const Range* left = <const Range*>x
    cdef const Range* right = <const Range*>y
    return (left.low > right.low) - (left.low < right.low)


cdef inline bint is_plain(void* x, const Tensor* t, int flags) noexcept:
    """Is it an ndarray of the position's dtype and shape with these flags, ready for a kernel?"""
    cdef int d
    if not (rmsprop_is_array(x) and rmsprop_type(x) == t.type
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


cdef bint share_memory(x, y):
    """Do two arrays whose byte ranges meet share an element? Yes where that is too hard to tell."""
    try:
        return np.shares_memory(np.asarray(x), np.asarray(y), max_work=1_000_000)
    except np.exceptions.TooHardError:
        return True


cdef object label(name, keys, Py_ssize_t position, bint bare):
    """How errors call an array: params[2], params['W1'] or params."""
    if bare:
        return name
    return f"{name}[{position if keys is None else keys[position]!r}]"


cdef bint is_masked(x):
    """Is it a masked array?

    NumPy loads numpy.ma when it is first needed. Where it is not loaded there are none, and an
    import in a step could wait for the import lock of a thread that a fork has left behind.
    """
    if type(x) is np.ndarray:
        return False
    return isinstance(x, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


cdef object checked_array(x, name):
    """The array, as a plain ndarray; refuses what has no real float32 or float64 elements."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} is of type {type(x).__name__}, not a NumPy array")
    if is_masked(x):
        raise TypeError(f"{name} is a masked array, and a step would update masked elements too; "
                        "pass its .data, or a gradient's .filled(0)")
    x = np.asarray(x)
    if x.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {x.dtype}, but only float32 and float64 arrays can be "
                        "updated in place; convert the model with astype(np.float32)")
    return x


cdef class Plan:
    """The positions of one model: shape, dtype, memory order and accumulator of each.

    Parameters
    ----------
    arrays : sequence of ndarray
        What to be like: parameters, or the accumulators of another plan.
    keys : tuple or None
        The keys of a model that is a dict.
    """

    cdef readonly object keys
    cdef readonly list accumulators
    cdef bint float32
    cdef int64_t elements        # of all positions
    cdef Tensor* tensors
    cdef Range* ranges           # of the parameters, by address
    cdef Py_ssize_t count, range_count
    cdef char* slab              # all accumulators lie in one buffer
    cdef Py_ssize_t slab_size
    cdef double* block_sums
    cdef size_t block_capacity
    cdef list held               # staged copies of the step under way

    def __cinit__(self, arrays, keys):
        cdef cnp.ndarray x, accumulator, slab
        cdef Tensor* t
        cdef Py_ssize_t i, position, large = 65536
        cdef list offsets = []
        self.count = len(arrays)
        self.keys = keys
        self.accumulators = []
        self.tensors = <Tensor*>PyMem_Calloc(max(self.count, 1), sizeof(Tensor))
        self.ranges = <Range*>PyMem_Calloc(max(self.count, 1), sizeof(Range))
        if self.tensors == NULL or self.ranges == NULL:
            raise MemoryError()
        position = 0
        for x in arrays:
            # An accumulator lies at the same place in its cache line as its parameter, a large one
            # in its page: where a load meets the address of an earlier store modulo 4096, the
            # processor waits for that store.
            position += (-position) & (x.itemsize - 1)
            position += (<Py_ssize_t>cnp.PyArray_DATA(x) - position) & -x.itemsize & (
                63 if x.nbytes < large else 4095)
            offsets.append(position)
            position += x.nbytes
        slab = np.zeros(position + 4095, np.uint8)
        self.slab = cnp.PyArray_BYTES(slab)
        self.slab_size = cnp.PyArray_NBYTES(slab)
        position = -<Py_ssize_t>self.slab & 4095
        for i, x in enumerate(arrays):
            fortran = x.flags.f_contiguous and not x.flags.c_contiguous
            accumulator = slab[position + offsets[i]:position + offsets[i] + x.nbytes].view(
                x.dtype.newbyteorder("=")).reshape(np.shape(x), order="F" if fortran else "C")
            self.accumulators.append(accumulator)
            t = &self.tensors[i]
            t.accumulator = cnp.PyArray_BYTES(accumulator)
            t.size = cnp.PyArray_SIZE(accumulator)
            self.elements += t.size
            t.shape = cnp.PyArray_DIMS(accumulator)
            t.ndim = cnp.PyArray_NDIM(accumulator)
            t.type = cnp.PyArray_TYPE(accumulator)
            t.itemsize = cnp.PyArray_ITEMSIZE(accumulator)
            t.order = cnp.NPY_ARRAY_F_CONTIGUOUS if fortran else cnp.NPY_ARRAY_C_CONTIGUOUS
            self.float32 = self.float32 or t.type == cnp.NPY_FLOAT32

    def __dealloc__(self):
        PyMem_Free(self.tensors)
        PyMem_Free(self.ranges)
        PyMem_Free(self.block_sums)

    cdef object name(self, which, Py_ssize_t i, container):
        return label(which, self.keys, i, isinstance(container, np.ndarray))

    cdef bint attach_plain(self, list_or_tuple_params, list_or_tuple_grads, Job* job,
                           bint* checked) noexcept:
        """Line up this step's arrays if all of them are plain; no Python code runs.

        `checked` is set if all of them lie where they passed the overlap check before.
        """
        cdef void** params = rmsprop_items(list_or_tuple_params)
        cdef void** grads = rmsprop_items(list_or_tuple_grads)
        cdef Tensor* t
        cdef Py_ssize_t i
        for i in range(self.count):
            t = &self.tensors[i]
            if not is_plain(params[i], t,
                            t.order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE):
                return False
            t.param = rmsprop_data(params[i])
            t.landing = NULL
            if grads[i] == <void*>None:
                t.grad = NULL
            elif is_plain(grads[i], t, t.order | cnp.NPY_ARRAY_ALIGNED):
                t.grad = rmsprop_data(grads[i]) if t.size > 0 else t.accumulator
            else:
                return False
            checked[0] = (checked[0] and t.param == t.checked_param
                          and (t.grad == t.checked_grad or t.grad == NULL))
            line_up(t, job)
        return True

    cdef list fitting(self, params, outer_params):
        """The parameters as plain ndarrays; refuses those that are not like the positions."""
        cdef list arrays = []
        for i in range(self.count):
            name = self.name("params", i, outer_params)
            p = checked_array(params[i], name)
            accumulator = self.accumulators[i]
            if p.dtype.newbyteorder("=") != accumulator.dtype:
                raise TypeError(f"{name} has dtype {p.dtype}, but the optimizer was built for "
                                f"{accumulator.dtype}; use another optimizer, or reset() this one")
            if p.shape != accumulator.shape:
                raise ValueError(f"{name} has shape {p.shape}, but the optimizer was built for "
                                 f"{accumulator.shape}; use another optimizer, or reset() this "
                                 "one")
            arrays.append(p)
        return arrays

    cdef int attach_any(self, params, grads, outer_params, outer_grads, Job* job) except -1:
        """Line up this step's arrays, or copies of those that a kernel can't read in place."""
        cdef Tensor* t
        cdef Py_ssize_t i
        cdef cnp.ndarray p, g, staged
        cdef list arrays = self.fitting(params, outer_params)
        self.held = [params, grads, arrays]
        for i in range(self.count):
            name = self.name("params", i, outer_params)
            p = arrays[i]
            if not p.flags.writeable:
                raise ValueError(f"{name} is read-only, and a step updates it in place; pass a "
                                 "writeable array or a copy")
            if any([cnp.PyArray_STRIDE(p, d) == 0 and cnp.PyArray_DIM(p, d) > 1
                    for d in range(cnp.PyArray_NDIM(p))]):
                raise ValueError(f"{name} overlaps itself: it has a stride of 0; pass a copy")
        for i in range(self.count):
            t = &self.tensors[i]
            p = arrays[i]
            t.param = cnp.PyArray_BYTES(p)
            t.landing = NULL
            t.grad = NULL
            if grads[i] is not None:
                name = self.name("grads", i, outer_grads)
                g = checked_array(np.asarray(grads[i]) if isinstance(grads[i], np.generic)
                                  else grads[i], name)
                if g.dtype.newbyteorder("=") != self.accumulators[i].dtype:
                    raise TypeError(f"{name} has dtype {g.dtype}, but "
                                    f"{self.name('params', i, outer_params)} has dtype {p.dtype}; "
                                    f"convert it with astype(np.{p.dtype.newbyteorder('=')})")
                if (<object>g).shape != (<object>p).shape:
                    raise ValueError(f"{name} has shape {(<object>g).shape}, but "
                                     f"{self.name('params', i, outer_params)} has shape "
                                     f"{(<object>p).shape}")
                g = self.stage(g, t, cnp.NPY_ARRAY_ALIGNED)
                t.grad = cnp.PyArray_BYTES(g) if t.size > 0 else t.accumulator
                staged = self.stage(p, t, cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)
                if staged is not p:
                    t.param = cnp.PyArray_BYTES(staged)
                    t.landing = cnp.PyArray_BYTES(p)
                    t.landing_strides = cnp.PyArray_STRIDES(p)
                    t.landing_swapped = not p.dtype.isnative
            line_up(t, job)
        return 0

    cdef cnp.ndarray stage(self, cnp.ndarray x, const Tensor* t, int flags):
        """The array itself if a kernel can use it, else a copy; held until the step ends."""
        if not is_plain(<void*>x, t, t.order | flags):
            x = np.array(x, x.dtype.newbyteorder("="), copy=True,
                         order="F" if t.order == cnp.NPY_ARRAY_F_CONTIGUOUS else "C")
        self.held.append(x)
        return x

    cdef int check_overlap(self, params, grads, outer_params, outer_grads,
                           bint plain) except -1:
        """Refuse parameters that share memory with each other or with a gradient.

        Gradients are new arrays in most steps, parameters are not: these are sorted by address only
        when one of them has moved, and then each new gradient is looked up among them. Where arrays
        were staged (not plain), all is checked and nothing remembered.
        """
        cdef Py_ssize_t i, low, high, middle
        cdef Tensor* t
        cdef bint moved = not plain
        cdef Range r
        for i in range(self.count):
            moved = moved or self.tensors[i].param != self.tensors[i].checked_param
        if moved:
            for i in range(self.count):   # a refusal below must not leave what was checked before
                self.tensors[i].checked_param = self.tensors[i].checked_grad = NULL
            self.sort_ranges(params, plain)
            for i in range(1, self.range_count):
                self.check_range(&self.ranges[i], i, "params", params, params,
                                 outer_params, outer_params, plain)
        for i in range(self.count):
            t = &self.tensors[i]
            if t.grad == NULL or t.size == 0 or (t.grad == t.checked_grad and not moved):
                continue
            self.measure(&r, i, grads, t.grad, plain)
            low, high = 0, self.range_count
            while low < high:   # the first range that starts behind this gradient
                middle = (low + high) // 2
                if self.ranges[middle].low < r.high:
                    low = middle + 1
                else:
                    high = middle
            self.check_range(&r, low, "grads", grads, params, outer_grads, outer_params, plain)
            if r.low < self.slab + self.slab_size and r.high > self.slab:
                raise ValueError(f"{self.name('grads', i, outer_grads)} shares memory with the "
                                 "optimizer's weights; pass a copy")
        for i in range(self.count):
            t = &self.tensors[i]
            t.checked_param = t.param if plain else NULL
            t.checked_grad = t.grad if plain else NULL
        return 0

    cdef int measure(self, Range* r, Py_ssize_t i, arrays, const char* data, bint plain) except -1:
        """The range of bytes of position i's array, which is at `data` if it is plain."""
        r.position = i
        if plain:
            r.low = data
            r.high = data + self.tensors[i].size * self.tensors[i].itemsize
        else:
            span(np.asarray(arrays[i]), &r.low, &r.high)
        return 0

    cdef int sort_ranges(self, params, bint plain) except -1:
        cdef Py_ssize_t i
        cdef const char* reach = NULL
        self.range_count = 0
        for i in range(self.count):
            if self.tensors[i].size > 0:
                self.measure(&self.ranges[self.range_count], i, params, self.tensors[i].param,
                             plain)
                self.range_count += 1
        qsort(self.ranges, self.range_count, sizeof(Range), compare_ranges)
        for i in range(self.range_count):
            reach = max(reach, self.ranges[i].high)
            self.ranges[i].reach = reach
        return 0

    cdef int check_range(self, const Range* r, Py_ssize_t before, which, arrays, params,
                         outer, outer_params, bint plain) except -1:
        """Refuse a range that shares memory with one of the first `before` parameters there."""
        while before > 0 and self.ranges[before - 1].reach > r.low:
            before -= 1
            if self.ranges[before].high > r.low and (plain or share_memory(
                    arrays[r.position], params[self.ranges[before].position])):
                other = self.ranges[before].position
                raise ValueError(f"{self.name(which, r.position, outer)} shares memory with "
                                 f"{self.name('params', other, outer_params)}; pass a copy")
        return 0

    cdef object positions(self, container, which):
        """The arrays of a list, tuple, dict or bare array, by position."""
        if isinstance(container, np.ndarray):
            container = (container,)
        elif isinstance(container, dict):
            if self.keys is None:
                raise TypeError(f"{which} is a dict, but the optimizer was built for a list")
            for key in self.keys:
                if key not in container:
                    raise ValueError(f"{which} has no key {key!r}" + (
                        "; pass None for a parameter without a gradient" if which == "grads"
                        else ", which the optimizer was built for"))
            if len(container) != self.count:
                key = next(key for key in container if key not in self.keys)
                raise ValueError(f"{which} has the key {key!r}, but the optimizer was built for "
                                 f"the keys {list(self.keys)}")
            return tuple([container[key] for key in self.keys])
        elif not isinstance(container, (list, tuple)):
            raise TypeError(f"{which} is of type {type(container).__name__}; pass a list or tuple "
                            "of arrays, a dict of arrays, or one array")
        if self.keys is not None:
            raise TypeError(f"{which} is a {type(container).__name__}, but the optimizer was built "
                            "for a dict")
        container = tuple(container)   # a subclass may say another length than it has
        if len(container) != self.count:
            if which == "grads":
                raise ValueError(f"grads has {len(container)} entries, but params has "
                                 f"{self.count}; pass None for a parameter without a gradient")
            raise ValueError(f"params has {len(container)} entries, but the optimizer was built "
                             f"for {self.count}; use another optimizer, or reset() this one")
        return container

    cdef int allocate_block_sums(self, size_t blocks) except -1:
        cdef double* grown
        if blocks > self.block_capacity:
            grown = <double*>PyMem_Realloc(self.block_sums, blocks * sizeof(double))
            if grown == NULL:
                raise MemoryError()
            self.block_sums = grown
            self.block_capacity = blocks
        return 0


cdef Plan new_plan(params):
    """The plan of a model that is seen for the first time."""
    if isinstance(params, dict):
        keys, arrays = tuple(params), list(params.values())
    elif isinstance(params, (list, tuple)):
        keys, arrays = None, list(params)
    elif isinstance(params, np.ndarray):
        keys, arrays = None, [params]
    else:
        raise TypeError(f"params is of type {type(params).__name__}; pass a list or tuple of "
                        "arrays, a dict of arrays, or one array")
    return Plan([checked_array(x, label("params", keys, i, isinstance(params, np.ndarray)))
                 for i, x in enumerate(arrays)], keys)


def checked_iterations(value, name):
    """The count as an int, or an error that names it."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; iterations must be an integer") from None
    if not 0 <= count <= 1 << 62:
        raise ValueError(f"{name} is {value!r}; iterations must be in [0, 2**62]")
    return count


cdef class Bound:
    """A step on fixed arrays: calling it is ``optimizer.step(params, grads)``."""

    cdef Core optimizer
    cdef object params, grads

    @cython.binding(False)   # a plain C function is called faster than an object with __call__
    def step(self):
        """Repeat the step."""
        self.optimizer.advance(self.params, self.grads)


cdef class Core:
    """Hyper-parameters and state in C, and the step that uses them: base of ``Optimizer``."""

    cdef Settings settings
    cdef int64_t steps
    cdef Plan plan               # None before the first step
    cdef bint busy               # under the GIL: a step, or an access to the state, is under way
    cdef bint locked             # it has released the GIL, or may, and holds the lock
    cdef unsigned long owner
    cdef int forks               # of the process when busy, locked and lock were last its own
    cdef PyThread_type_lock lock
    cdef int64_t long_steps      # that could have a team of their own
    cdef int64_t next_trial, gap
    cdef double pace[2]          # seconds per element of the latest ones, alone and in a team

    def __cinit__(self, *args, **kwargs):
        self.settings.clipnorm = self.settings.clipvalue = NAN
        self.next_trial, self.gap = trial_steps + trial_gap, trial_gap
        self.forks = rmsprop_threads_forks()
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef int enter(self) except -1:
        """Wait until no other thread is in a step of this optimizer, and begin one."""
        cdef PyThread_type_lock fresh_lock
        if self.forks != rmsprop_threads_forks():
            # Threads that were in here, or at the lock, have stayed behind in the parent.
            fresh_lock = PyThread_allocate_lock()
            if fresh_lock == NULL:
                raise MemoryError()
            self.lock = fresh_lock   # the old one may be held for ever: it is not freed
            self.locked = self.busy = False
            self.forks = rmsprop_threads_forks()
        while self.busy:
            if self.owner == PyThread_get_thread_ident():
                raise RuntimeError("this optimizer is in use further up in this very thread")
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
                PyThread_release_lock(self.lock)
        self.busy = True
        self.owner = PyThread_get_thread_ident()
        return 0

    cdef void hold(self) noexcept:
        """From here on the GIL may be released: let others wait for the lock, not spin."""
        if not self.locked:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            self.locked = True

    cdef void leave(self) noexcept:
        if self.plan is not None:
            self.plan.held = None
        if self.locked:
            self.locked = False
            PyThread_release_lock(self.lock)
        self.busy = False

    cdef Plan attach(self, params, grads, Job* job):
        """Check everything that a step needs; afterwards nothing can fail."""
        cdef Plan plan = self.plan
        cdef bint plain = False, checked = True
        if plan is None:
            self.hold()
            plan = new_plan(params)
        if (type(params) is list or type(params) is tuple) and plan.keys is None and (
                type(grads) is list or type(grads) is tuple) and (
                rmsprop_size(params) == plan.count and rmsprop_size(grads) == plan.count):
            param_list, grad_list = params, grads
        else:
            if isinstance(params, np.ndarray) and isinstance(grads, np.generic):
                grads = np.asarray(grads)
            if isinstance(params, np.ndarray) != isinstance(grads, np.ndarray):
                raise TypeError(f"params is of type {type(params).__name__}, but grads is of type "
                                f"{type(grads).__name__}")
            param_list = plan.positions(params, "params")
            grad_list = plan.positions(grads, "grads")
        if plan.elements >= unlocked_minimum:   # another thread may change the lists meanwhile
            param_list, grad_list = tuple(param_list), tuple(grad_list)
        memset(job, 0, sizeof(Job))
        plain = plan.attach_plain(param_list, grad_list, job, &checked)
        if not plain:
            self.hold()
            param_list, grad_list = tuple(param_list), tuple(grad_list)
            memset(job, 0, sizeof(Job))
            plan.attach_any(param_list, grad_list, params, grads, job)
        if not plain or not checked:
            plan.check_overlap(param_list, grad_list, params, grads, plain)
        if job.active == 0:
            raise ValueError("all gradients are None: there is nothing to do" if plan.count
                             else "params is empty: there is nothing to do")
        if plan.float32 and 0 < self.settings.epsilon <= 2.0 ** -150:
            raise ValueError(f"epsilon={self.settings.epsilon!r} rounds to 0 in float32; use at "
                             "least 1e-45, or 0 itself")
        job.tensors = plan.tensors
        job.count = plan.count
        job.settings = self.settings
        job.iterations = self.steps
        if self.settings.clipnorm > 0:
            plan.allocate_block_sums(job.blocks)
            job.block_sums = plan.block_sums
        if plan.held is None and plan.elements >= unlocked_minimum:
            plan.held = [param_list, grad_list]
        return plan

    cdef int advance(self, params, grads) except -1:
        """One step: all of it, or an exception and none."""
        cdef Job job
        cdef bint fresh = False
        self.enter()
        try:
            self.plan = self.attach(params, grads, &job)
            job.shares = threads_for(job.elements, &fresh)
            if job.elements < unlocked_minimum and job.shares == 1:
                self.finish(&job, False)
            else:
                self.hold()
                with nogil:
                    rmsprop_threads_enter()
                    self.finish(&job, fresh)
                    rmsprop_threads_leave()
        finally:
            self.leave()
        return 0

    cdef void perform_fresh(self, Job* job) noexcept nogil:
        """Perform a long step, alone or in a team of its own: as has proved faster in this program.

        A team halves the time where the processors are idle, but BLAS workers spin for up to 26 ms
        after a matmul (OpenBLAS), and threads that compete with them lose more than they gain.
        """
        cdef int64_t n = self.long_steps
        cdef bint trial = n >= self.next_trial
        cdef bint team = self.pace[1] < 0.95 * self.pace[0]
        cdef double start = rmsprop_threads_clock(), pace
        if n < trial_steps:
            team = n % 2
        elif trial:
            team = not team
        team = team and rmsprop_threads_run(perform, job)
        if not team:
            job.shares = 1
            perform(job)
        pace = (rmsprop_threads_clock() - start) / job.elements
        if trial:   # the more often it has lost, the seldomer it is tried
            self.gap = trial_gap if pace < self.pace[not team] else min(2 * self.gap, 1 << 16)
            self.next_trial = n + self.gap
        if trial or n < trial_steps:
            self.pace[team] = pace
        else:
            self.pace[team] += 0.25 * (pace - self.pace[team])
        self.long_steps = n + 1

    cdef void finish(self, Job* job, bint fresh) noexcept nogil:
        cdef Py_ssize_t i
        if fresh and job.shares > 1:
            self.perform_fresh(job)
        else:
            perform(job)
        for i in range(job.count):
            if job.tensors[i].landing != NULL:
                land(&job.tensors[i])
        self.steps += 1

    def step(self, params, grads):
        """Update `params` in place by one step of RMSprop along `grads`.

        Parameters
        ----------
        params : list or tuple of ndarray, dict of ndarray, or ndarray
            Arrays of float32 or float64 (they may be mixed), of any shape, strides, alignment and
            byte order, writeable and without a common element. Changed in place. The first step (or
            `build`) fixes number, shapes and dtypes; the arrays may be other ones at every step.
        grads : of the same form as `params`
            The gradients, each of its parameter's shape and dtype; only read. None leaves that
            parameter and its accumulator as they are. A NumPy scalar does for a 0-d parameter.

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
        every call.

        Returns
        -------
        callable

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
        array([1.36754445, 1.36754445, 1.36754445])
        """
        cdef Job job
        cdef Bound bound = Bound.__new__(Bound)
        self.enter()
        try:
            self.plan = self.attach(params, grads, &job)
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
            self.hold()
            if self.plan is None:
                self.plan = new_plan(params)
            else:
                self.plan.fitting(self.plan.positions(params, "params"), params)
        finally:
            self.leave()

    def reset(self):
        """Forget the accumulators and set `iterations` to 0."""
        self.enter()
        self.plan = None
        self.steps = 0
        self.leave()

    @property
    def iterations(self):
        """int: number of steps done. Assign to it to resume a count (at most 2**62)."""
        return self.steps

    @iterations.setter
    def iterations(self, value):
        cdef int64_t count = checked_iterations(value, "iterations")
        self.enter()
        self.steps = count
        self.leave()

    def _get_setting(self, int i):
        return (<double*>&self.settings)[i]

    def _set_setting(self, int i, double value):
        (<double*>&self.settings)[i] = value

    def _keys(self):
        """The keys of a model that is a dict, in the order of the positions; else None."""
        return None if self.plan is None else self.plan.keys

    def _views(self):
        """Read-only views of the accumulators, by position; [] before the first step."""
        views = []
        if self.plan is not None:
            for accumulator in self.plan.accumulators:
                view = accumulator.view()
                view.flags.writeable = False
                views.append(view)
        return views

    def _snapshot(self):
        """(keys, copies of the accumulators, iterations), as they are between two steps."""
        self.enter()
        try:
            self.hold()
            if self.plan is None:
                return None, None, self.steps
            return (self.plan.keys, [x.copy(order="K") for x in self.plan.accumulators], self.steps)
        finally:
            self.leave()

    def _assign(self, accumulators, iterations=None):
        """Set all accumulators, from arrays of their shapes and dtypes, between two steps."""
        self.enter()
        try:
            self.hold()
            owned = [] if self.plan is None else self.plan.accumulators
            if [own.shape for own in owned] != [given.shape for given in accumulators]:
                raise RuntimeError("another thread has rebuilt the optimizer meanwhile")
            for own, given in zip(owned, accumulators):
                own[...] = given
            if iterations is not None:
                self.steps = iterations
        finally:
            self.leave()

    def _restore(self, keys, accumulators, iterations):
        """Take over what `_snapshot` returned."""
        cdef Plan plan = None
        if accumulators is not None:
            plan = Plan(accumulators, keys)
            for own, given in zip(plan.accumulators, accumulators, strict=True):
                own[...] = given
        self.enter()
        self.plan = plan
        self.steps = iterations
        self.leave()


cdef void update_f32(float* p, const float* g, float* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil:
    cdef rmsprop_fenv found = rmsprop_fenv_enter()
    kernels.update_f32(p, g, a, n, scalars)
    rmsprop_fenv_leave(found)


cdef void update_f64(double* p, const double* g, double* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil:
    cdef rmsprop_fenv found = rmsprop_fenv_enter()
    kernels.update_f64(p, g, a, n, scalars)
    rmsprop_fenv_leave(found)


rmsprop_threads_init()
try:
    use_isa(os.environ.get("RMSPROP_C_ISA") or None)
except ValueError as error:
    raise ImportError(f"RMSPROP_C_ISA: {error}") from None

"""Tensors of other libraries, in DLPack's form, as NumPy's arrays over their memory."""


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

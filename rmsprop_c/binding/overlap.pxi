"""Who overlaps whom: no array that a step writes may share memory with another of its arrays."""


ctypedef struct Range:
    const char* low
    const char* high
    const char* reach        # the highest end of this range and of those before it
    Py_ssize_t position


cdef int compare_ranges(const void* x, const void* y) noexcept nogil:
    cdef const Range* left = <const Range*>x
    cdef const Range* right = <const Range*>y
    return (left.low > right.low) - (left.low < right.low)


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


cdef int check_overlap(Plan plan, params, grads, outer_params, outer_grads, bint plain,
                       bint zero_grad) except -1:
    """Raise for parameters that share memory with each other or with a gradient.

    Gradients that zero_grad clears must not share any among each other either.

    Gradients are new arrays in most steps, parameters are not: these are sorted by address only
    when one of them has moved, and then each new gradient is looked up among them. Where arrays
    were staged (not plain), all is checked and nothing remembered.
    """
    cdef Py_ssize_t i, low, high, middle
    cdef Tensor* t
    cdef bint moved = not plain
    cdef Range r
    for i in range(plan.count):
        moved = moved or plan.tensors[i].param != plan.forms[i].checked_param
    if moved:
        for i in range(plan.count):   # an error below must not leave what was checked before
            plan.forms[i].checked_param = plan.forms[i].checked_grad = NULL
        plan.range_count = sort_ranges(plan, plan.ranges, params, False, plain)
        for i in range(1, plan.range_count):
            check_range(plan, &plan.ranges[i], "params", params, outer_params,
                        plan.ranges, i, "params", params, outer_params, plain)
        for i in range(plan.range_count):
            if plan.ranges[i].position < plan.count:
                check_weights(plan, &plan.ranges[i], "params", outer_params)
    if zero_grad:
        plan.grad_range_count = sort_ranges(plan, plan.grad_ranges, grads, True, plain)
        for i in range(1, plan.grad_range_count):
            check_range(plan, &plan.grad_ranges[i], "grads", grads, outer_grads,
                        plan.grad_ranges, i, "grads", grads, outer_grads, plain)
    for i in range(plan.count):
        t = &plan.tensors[i]
        if not t.has_grad or t.size == 0 or (
                t.grad == plan.forms[i].checked_grad and not moved):
            continue
        measure(plan, &r, i, grads, t.grad, plain)
        low, high = 0, plan.range_count
        while low < high:   # the first range that starts behind this gradient
            middle = (low + high) // 2
            if plan.ranges[middle].low < r.high:
                low = middle + 1
            else:
                high = middle
        check_range(plan, &r, "grads", grads, outer_grads,
                    plan.ranges, low, "params", params, outer_params, plain)
        check_weights(plan, &r, "grads", outer_grads)
    for i in range(plan.count):
        t = &plan.tensors[i]
        plan.forms[i].checked_param = t.param if plain else NULL
        plan.forms[i].checked_grad = t.grad if plain and t.has_grad else NULL
    plan.apart = zero_grad
    return 0


cdef int measure(Plan plan, Range* r, Py_ssize_t i, given, const char* data, bint plain) except -1:
    """The range of bytes of position i's array, which is at `data` if it is plain."""
    r.position = i
    if plain:
        r.low = data
        r.high = data + plan.tensors[i].size * plan.tensors[i].itemsize
    else:
        span(np.asarray(given[i]), &r.low, &r.high)
    return 0


cdef Py_ssize_t sort_ranges(Plan plan, Range* ranges, given, bint grads, bint plain) except -1:
    """Fill in the ranges of the parameters, or of the gradients, by address; how many."""
    cdef Py_ssize_t i, count = 0
    cdef int slot
    cdef const char* reach = NULL
    cdef Tensor* t
    for i in range(plan.count):
        t = &plan.tensors[i]
        if t.size > 0 and (t.has_grad or not grads):
            measure(plan, &ranges[count], i, given, t.grad if grads else t.param, plain)
            count += 1
        for slot in range(0 if grads or t.size == 0 else SLOTS):
            if t.slots[slot] != NULL and plan.slots.slabs[slot] == NULL:
                ranges[count].position = (1 + slot) * plan.count + i
                ranges[count].low = t.slots[slot]
                ranges[count].high = t.slots[slot] + t.size * t.itemsize
                count += 1
    qsort(ranges, count, sizeof(Range), compare_ranges)
    for i in range(count):
        reach = max(reach, ranges[i].high)
        ranges[i].reach = reach
    return count


cdef int check_range(Plan plan, const Range* r, which, given, outer, const Range* others,
                     Py_ssize_t before, other_which, other_given, other_outer,
                     bint plain) except -1:
    """Raise for a range that shares memory with one of the first `before` of the others."""
    while before > 0 and others[before - 1].reach > r.low:
        before -= 1
        if others[before].high > r.low and (plain or arrays.share_memory(
                array_at(plan, given, r.position),
                array_at(plan, other_given, others[before].position))):
            raise ValueError(
                f"{plan.name(which, r.position, outer)} shares memory with "
                f"{plan.name(other_which, others[before].position, other_outer)}; pass a copy")
    return 0


cdef int check_weights(Plan plan, const Range* r, which, outer) except -1:
    """Raise for a range that shares memory with the slots."""
    cdef Slots slots = plan.slots
    cdef int slot
    for slot in range(SLOTS):
        if r.low < slots.slabs[slot] + slots.slab_sizes[slot] and r.high > slots.slabs[slot]:
            raise ValueError(f"{plan.name(which, r.position, outer)} shares memory with the "
                             "optimizer's weights; pass a copy")
    return 0


cdef object array_at(Plan plan, given, Py_ssize_t position):
    """The array of a range's position: of these, or behind them of the state."""
    if position < plan.count:
        return given[position]
    return plan.slots.arrays[position // plan.count - 1][position % plan.count]

"""The arrays of a model: which fit, where they lie, and which are staged for the kernels."""


ctypedef struct Form:            # of a position, as NumPy says it
    int type                     # NPY_FLOAT32 or NPY_FLOAT64
    int order                    # flag of the accumulator's memory order
    const char* checked_param    # pointers that passed the overlap check
    const char* checked_grad


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


@cython.final   # its methods are called directly
@cython.auto_pickle(False)
cdef class Plan:
    """The positions of one model: shape, dtype, memory order and state of each.

    Parameters
    ----------
    count : int
        How many there are.
    keys : tuple or None
        The keys of a model that is a dict.
    """

    cdef object keys
    cdef object labels           # what errors call the positions where it is not keys
    cdef Slots slots
    cdef bint float32            # a position is of float32
    cdef bint transposed         # an accumulator lies in Fortran's order
    cdef double scales[2]        # the largest lr_scale of a position in float32, and in float64
    cdef int64_t elements        # of all positions
    cdef Tensor* tensors
    cdef Form* forms
    cdef Range* ranges           # of the parameters, and of state that is lent, by address
    cdef Range* grad_ranges      # of the gradients, where zero_grad needs them apart
    cdef Py_ssize_t count, range_count, grad_range_count
    cdef double* block_sums
    cdef size_t block_capacity
    cdef char* panels
    cdef int panel_capacity
    cdef list held               # staged copies of the step under way
    cdef object lr_scale         # those that the positions' factors were
    cdef object excluded         # made from
    cdef bint apart              # the gradients of the latest check were, as zero_grad needs them

    def __cinit__(self, Py_ssize_t count, keys):
        self.count = count
        self.keys = keys
        self.excluded = ()
        self.tensors = <Tensor*>PyMem_Calloc(max(count, 1), sizeof(Tensor))
        self.forms = <Form*>PyMem_Calloc(max(count, 1), sizeof(Form))
        self.ranges = <Range*>PyMem_Calloc(max(count, 1) * (1 + SLOTS), sizeof(Range))
        self.grad_ranges = <Range*>PyMem_Calloc(max(count, 1), sizeof(Range))
        if self.tensors == NULL or self.forms == NULL or self.ranges == NULL or (
                self.grad_ranges == NULL):
            raise MemoryError()
        self.slots = Slots()
        self.slots.tensors, self.slots.count = self.tensors, count

    def __dealloc__(self):
        PyMem_Free(self.tensors)
        PyMem_Free(self.forms)
        PyMem_Free(self.ranges)
        PyMem_Free(self.grad_ranges)
        PyMem_Free(self.block_sums)
        PyMem_Free(self.panels)

    cdef bint describe(self):
        """Let the positions be like the accumulators; is one of another size than before?"""
        cdef Tensor* t
        cdef Form* form
        cdef Py_ssize_t i
        cdef bint other = False
        self.elements = 0
        self.float32 = self.transposed = False
        self.scales[0] = self.scales[1] = 1
        for i, accumulator in enumerate(self.slots.arrays[ACCUMULATOR]):
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

    cdef int lend(self, dict lent) except -1:
        """Take another owner's arrays for the state of a step."""
        cdef int slot
        cdef Py_ssize_t i
        cdef bint moved
        cdef char* place
        self.slots.take_lent(lent)
        moved = self.describe()
        for slot in range(SLOTS):
            for i in range(self.count):
                place = NULL
                if self.slots.allocated & 1 << slot:
                    x = self.slots.arrays[slot][i]
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
        self.lr_scale, self.excluded = None, ()
        return 0

    cdef int allocate_required(self, int required, params) except -1:
        """Make the slots that are required and not there; averages start at the parameters."""
        cdef int slot
        cdef list own
        for slot in range(SLOTS):
            if required & ~self.slots.allocated & 1 << slot:
                own = self.fitting(self.positions(params, "params"), params)
                self.slots.allocate(slot, self.slots.arrays[ACCUMULATOR])
                if slot == MOVING_AVERAGE:
                    self.slots.fill(slot, own)
        return 0

    cdef int resolve(self, lr_scale, tuple excluded) except -1:
        """Give each position its factor of the learning rate and its part in weight decay."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef bint wide
        cdef list factors, decays
        names = list(range(self.count)) if self.keys is None else list(self.keys)
        factors, decays = by_position(names, self.keys is None, lr_scale, excluded)
        self.scales[0] = self.scales[1] = 1 if lr_scale is None else 0
        for i in range(self.count):
            t = &self.tensors[i]
            t.lr_scale = factors[i]
            t.decays = decays[i]
            wide = t.itemsize == 8
            self.scales[wide] = max(self.scales[wide], t.lr_scale)
        self.lr_scale, self.excluded = lr_scale, excluded
        return 0

    cdef object name(self, which, Py_ssize_t position, container):
        name = arrays.label(which, self.keys if self.labels is None else self.labels,
                            position % self.count, isinstance(container, np.ndarray))
        if position >= self.count:
            return f"the {SLOT_NAMES[position // self.count - 1]} of {name}"
        return name

    cdef object positions(self, container, which):
        """The arrays of a list, tuple, dict or bare array, by position."""
        if type(container) is dict and self.keys is not None and len(container) == self.count:
            try:
                return tuple([container[key] for key in self.keys])
            except KeyError:
                pass
        return arrays.positions(container, which, self.keys, self.count)

    cdef list fitting(self, params, outer_params):
        """The parameters as plain ndarrays; raises for those that are not like the positions."""
        cdef list found = []
        for i in range(self.count):
            name = self.name("params", i, outer_params)
            p = arrays.parameter(params[i], name)
            accumulator = self.slots.arrays[ACCUMULATOR][i]
            arrays.like_position(p, name, accumulator.dtype, accumulator.shape)
            found.append(p)
        return found

    cdef int attach(self, params, grads, Job* job) except -1:
        """Line up a step's arrays, staged where they must be, once they have passed all checks."""
        cdef bint zero_grad = job.settings.zero_grad != 0
        cdef bint plain, checked = True
        if (type(params) is list or type(params) is tuple) and self.keys is None and (
                type(grads) is list or type(grads) is tuple) and (
                rmsprop_size(params) == self.count and rmsprop_size(grads) == self.count):
            param_list, grad_list = params, grads
        else:
            if isinstance(params, np.ndarray) and not isinstance(
                    grads, (list, tuple, dict, np.ndarray)) and grads is not None:
                grads, = arrays.all_readable((grads,), None, True, zero_grad)
            if isinstance(params, np.ndarray) != isinstance(grads, np.ndarray):
                raise arrays.other_form(params, grads)
            param_list = self.positions(params, "params")
            grad_list = self.positions(grads, "grads")
        if self.elements >= unlocked_minimum:   # another thread may change the lists meanwhile
            param_list, grad_list = tuple(param_list), tuple(grad_list)
        plain = self.attach_in_place(param_list, grad_list, job, &checked)
        if not plain:
            param_list = tuple(param_list)
            grad_list = arrays.all_readable(grad_list, self.keys, isinstance(grads, np.ndarray),
                                            zero_grad)
            self.attach_staged(param_list, grad_list, params, grads, job)
        if not plain or not checked or (zero_grad and not self.apart):
            check_overlap(self, param_list, grad_list, params, grads, plain, zero_grad)
        if self.held is None and not (param_list is params and grad_list is grads):
            self.held = [param_list, grad_list]   # our own tuples, and what only they may hold
        return 0

    cdef bint attach_in_place(self, list_or_tuple_params, list_or_tuple_grads, Job* job,
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
        begin_lining_up(job)
        for i in range(self.count):
            t, form = &self.tensors[i], &self.forms[i]
            if not is_plain(params[i], t, form,
                            form.order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE):
                return False
            t.param = rmsprop_data(params[i])
            t.copy_back_to = t.grad_copy_back_to = NULL
            t.grad, t.has_grad = NULL, grads[i] != <void*>None
            if t.has_grad:
                if not is_plain(grads[i], t, form, form.order | grad_flags):
                    return False
                t.grad = rmsprop_data(grads[i])
                checked[0] = checked[0] and t.grad == form.checked_grad
            checked[0] = checked[0] and t.param == form.checked_param
            line_up(t, job)
        return True

    cdef int attach_staged(self, params, grads, outer_params, outer_grads, Job* job) except -1:
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
        begin_lining_up(job)
        for i in range(self.count):
            t = &self.tensors[i]
            p = own[i]
            t.param = cnp.PyArray_BYTES(p)
            t.copy_back_to = t.grad_copy_back_to = NULL
            t.grad, t.has_grad = NULL, grads[i] is not None
            if t.has_grad:
                name = self.name("grads", i, outer_grads)
                if is_plain(<void*>grads[i], t, &self.forms[i], 0):
                    g = grads[i]
                else:
                    g = arrays.gradient(grads[i], name, p, self.name("params", i, outer_params))
                self.held.append(g)
                staged = self.stage(g, i, cnp.NPY_ARRAY_ALIGNED)
                t.grad = cnp.PyArray_BYTES(staged)
                if job.passes & RMSPROP_ZERO_GRAD:
                    if not g.flags.writeable or overlaps_itself(g):
                        raise ValueError(f"{name} is read-only or overlaps itself, and zero_grad "
                                         "clears it in place; pass a copy")
                    if staged is not g:
                        t.grad_copy_back_to = cnp.PyArray_BYTES(g)
                        t.grad_copy_back_strides = cnp.PyArray_STRIDES(g)
            line_up(t, job)
            if t.stop > t.start:
                staged = self.stage(p, i, cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)
                t.param = cnp.PyArray_BYTES(staged)
                if staged is not p and (t.active or job.passes & RMSPROP_OVERWRITE):
                    t.copy_back_to = cnp.PyArray_BYTES(p)
                    t.copy_back_strides = cnp.PyArray_STRIDES(p)
                    t.copy_back_swapped = not p.dtype.isnative
        return 0

    cdef cnp.ndarray stage(self, cnp.ndarray x, Py_ssize_t i, int flags):
        """The array itself if a kernel can use it, else a copy; held until the step ends."""
        if not is_plain(<void*>x, &self.tensors[i], &self.forms[i], self.forms[i].order | flags):
            x = np.array(x, x.dtype.newbyteorder("="), copy=True,
                         order="F" if self.tensors[i].fortran else "C")
        self.held.append(x)
        return x

    cdef int give_room(self, Job* job) except -1:
        """Room for the sums that a norm is made of."""
        cdef void* grown
        if job.blocks > self.block_capacity:
            grown = PyMem_Realloc(self.block_sums, job.blocks * sizeof(double))
            if grown == NULL:
                raise MemoryError()
            self.block_sums = <double*>grown
            self.block_capacity = job.blocks
        if self.transposed and job.shares > self.panel_capacity:
            grown = PyMem_Realloc(self.panels, <size_t>job.shares * PANEL * sizeof(double))
            if grown == NULL:
                raise MemoryError()
            self.panels = <char*>grown
            self.panel_capacity = job.shares
        job.block_sums, job.panels = self.block_sums, self.panels
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
    plan.slots.allocate(ACCUMULATOR, given)
    plan.describe()
    if start != 0:
        for accumulator in plan.slots.arrays[ACCUMULATOR]:
            accumulator[...] = start
    return plan

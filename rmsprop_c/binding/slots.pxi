"""The slots of state: what the positions of a model keep between steps."""


@cython.final   # its methods are called directly
@cython.auto_pickle(False)
cdef class Slots:
    """The arrays of each slot, by position, in one buffer for each slot.

    Required are those that the options ask for, allocated those that there are, and committed those
    that the latest call has left: who leaves a step discards the others.
    """

    cdef list arrays             # for each slot the list of its arrays; None: not allocated
    cdef int allocated           # bits of slots
    cdef int committed           # bits of slots
    cdef char* slabs[SLOTS]      # the buffer of a slot; NULL: none, or its arrays are lent
    cdef Py_ssize_t slab_sizes[SLOTS]
    cdef Tensor* tensors         # the plan's, which are told where their arrays lie
    cdef Py_ssize_t count        # of the positions

    def __cinit__(self):
        self.arrays = [None] * SLOTS

    cdef int allocate(self, int slot, like) except -1:
        """Make the arrays of a slot, like others, of zeros."""
        cdef cnp.ndarray array, slab
        cdef Py_ssize_t i
        cdef list made
        slab, made = arrays.slab(like)
        for i, array in enumerate(made):
            self.tensors[i].slots[slot] = cnp.PyArray_BYTES(array)
        self.slabs[slot] = cnp.PyArray_BYTES(slab)
        self.slab_sizes[slot] = cnp.PyArray_NBYTES(slab)
        self.arrays[slot] = made
        self.allocated |= 1 << slot
        return 0

    cdef int fill(self, int slot, list values) except -1:
        """Set the arrays of a slot."""
        cdef Py_ssize_t i
        cdef list own = self.arrays[slot]
        for i in range(self.count):
            own[i][...] = values[i]
        return 0

    cdef void discard_uncommitted(self) noexcept:
        """Forget the slots that a call which raised has made, or that a step had no option for."""
        cdef int slot
        cdef Py_ssize_t i
        for slot in range(SLOTS):
            if self.allocated & ~self.committed & 1 << slot:
                self.arrays[slot] = None
                self.slabs[slot] = NULL
                self.slab_sizes[slot] = 0
                for i in range(self.count):
                    self.tensors[i].slots[slot] = NULL
        self.allocated = self.committed

    cdef dict named(self, int bits):
        """The committed ones among some slots, by name."""
        cdef int slot
        return {SLOT_NAMES[slot]: self.arrays[slot] for slot in range(SLOTS)
                if self.committed & bits & 1 << slot}

    cdef void take_lent(self, dict lent):
        """Take another owner's arrays; `give_back` lets go of them."""
        cdef int slot
        self.allocated = 0
        for slot in range(SLOTS):
            self.arrays[slot] = lent.get(SLOT_NAMES[slot])
            if self.arrays[slot] is not None:
                self.allocated |= 1 << slot

    cdef void give_back(self) noexcept:
        """Let go of what was lent; addresses stay, to be compared with those of the next step."""
        cdef int slot
        for slot in range(SLOTS):
            self.arrays[slot] = None
            self.slabs[slot] = NULL   # one was made if another thread has switched an option on
            self.slab_sizes[slot] = 0
        self.allocated = self.committed = 0

"""Whose turn it is: one thread at a time is in an optimizer, and those that wait have their order.

All of it runs under the GIL.
"""


cdef struct Waiter:              # on the stack of a thread that waits
    uint64_t thread
    PyThread_type_lock turn      # is released when it is its turn
    Waiter* next


cdef struct Turns:
    bint busy                    # a step, or an access to the state, is under way
    uint64_t owner               # the thread that makes it, or whose turn it is
    Waiter* waiting              # the thread that has waited longest
    int forks                    # of the process when these were last its own


cdef inline int take_turn(Turns* turns) except -1:
    """Wait until no other thread is inside, and go in."""
    if turns.busy:
        if turns.owner == rmsprop_threads_self():
            raise RuntimeError("this optimizer is in use further up in this very thread")
        wait_for_turn(turns)
    turns.busy = True
    turns.owner = rmsprop_threads_self()
    return 0


cdef int wait_for_turn(Turns* turns) except -1:
    """Sleep until it is this thread's turn, behind all that wait already.

    Without a queue a thread that steps all the time would be inside again before one that waits is
    awake.
    """
    cdef Waiter waiter
    cdef Waiter** place = &turns.waiting
    if sys.is_finalizing():   # daemon threads never run again
        raise RuntimeError("a thread was in this optimizer when the interpreter shut down")
    if not turns.busy:   # any more: the line above may have let others run
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


cdef inline void end_turn(Turns* turns) noexcept:
    """Hand over to the thread that has waited longest, if there is one."""
    cdef Waiter* waiter = turns.waiting
    if waiter == NULL or turns.forks != rmsprop_threads_forks():   # they are the parent's
        turns.waiting = NULL
        turns.busy = False
    else:
        turns.waiting = waiter.next
        turns.owner = waiter.thread
        PyThread_release_lock(waiter.turn)   # from here on its stack is its own

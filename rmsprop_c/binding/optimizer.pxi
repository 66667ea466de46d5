"""Core: the hyper-parameters and the state of an optimizer, and the step that uses them."""


@cython.auto_pickle(False)   # Optimizer says how it pickles
cdef class Core:
    """Hyper-parameters and state in C, and the step that uses them: base of ``Optimizer``.

    Its C methods are final: a step of ten elements is 3 % faster without a table of them.
    """

    cdef Settings settings       # the hyper-parameters that are numbers
    cdef object schedule         # a callable that gives lr, or None
    cdef object lr_scale         # a tuple or dict of factors, or None
    cdef tuple excluded          # positions or keys without weight decay
    cdef int64_t updates         # the iterations
    cdef int64_t calls_in_cycle  # calls since the latest update: gradient_accumulation_steps
    cdef int64_t total_calls     # calls of all times, without those that were skipped
    cdef readonly int64_t skipped_steps  # calls whose gradients were not finite
    cdef readonly bint _suspended        # no steps: the parameters hold their averages
    cdef Plan plan               # the model's arrays; None before the first step
    cdef Plan lent               # the plan that `step_on` used last
    cdef Turns turns             # of the threads that want to step or to see the state
    cdef rmsprop_trials trials   # whether a team has proved faster

    def __cinit__(self, *args, **kwargs):
        self.excluded = ()
        rmsprop_team_begin(&self.trials)
        self.turns.forks = rmsprop_threads_forks()

    @cython.final
    cdef int begin_step(self) except -1:
        """Wait until no other thread is in a step of this optimizer, and begin one."""
        if self.turns.forks != rmsprop_threads_forks():
            self.inherit()
        return take_turn(&self.turns)

    @cython.final
    cdef void inherit(self) noexcept:
        """Go on in a forked child, where only the thread that has forked is left."""
        self.turns.waiting = NULL
        self.turns.forks = rmsprop_threads_forks()
        if self.turns.busy and self.turns.owner != rmsprop_threads_survivor():
            self.turns.owner = rmsprop_threads_self()   # for a finalizer that would enter
            self.end_step()

    @cython.final
    cdef void end_step(self) noexcept:
        """Forget what a step that was not made has left, and let others in."""
        if self.plan is not None:
            self.plan.held = None   # this may run a finalizer, and so let others come to wait
            if self.plan.slots.committed == 0:
                self.plan = None
            elif self.plan.slots.committed != self.plan.slots.allocated:
                self.plan.slots.discard_uncommitted()
        end_turn(&self.turns)

    @cython.final
    cdef inline int required(self) noexcept:
        """Bits of the slots that the options ask for."""
        return required_slots(&self.settings)

    @cython.final
    cdef int prepare(self, params, Job* job, bint dry) except -1:
        """What this call does; Python code may run, that of a schedule among it."""
        cdef Settings* settings = &self.settings
        cdef Settings fitting    # those that float32 was seen to hold
        cdef bint asked = False, fit = False
        cdef double lr = 0
        cdef int required
        if self._suspended:
            raise RuntimeError("a step inside averaged() would be lost at its end")
        if self.total_calls >= LARGEST_COUNT:
            raise ValueError("2**62 calls are as many as can be counted; set iterations, or "
                             "reset()")
        if self.plan is None:
            self.plan = new_plan(params, settings.initial_accumulator_value)
        # While Python code runs another thread may assign options, so that all is looked at again.
        # A schedule may replace itself: one is asked.
        while True:
            required = self.required()
            if self.schedule is not None and not asked and (
                    self.calls_in_cycle + 1 >= calls_in_a_cycle(settings)):
                asked, lr = True, scheduled_lr(self.schedule, self.total_calls)
            elif (self.plan.lr_scale is not self.lr_scale
                  or self.plan.excluded is not self.excluded):
                self.plan.resolve(self.lr_scale, self.excluded)
            elif required & ~self.plan.slots.allocated:
                self.plan.allocate_required(required, params)
            elif self.plan.float32 and not fit_float32(settings) and not (
                    fit and memcmp(&fitting, settings, sizeof(Settings)) == 0):
                fit, fitting = True, settings[0]
                check_float32(numbers_of(&fitting))
            else:
                break
        # From here to the end no Python code runs: what is read of the settings fits together.
        begin(job, settings, required, self.updates, self.calls_in_cycle + 1,
              self.lr_scale is not None)
        if asked:
            job.settings.lr = lr
        job.dry = dry
        job.transposed = self.plan.transposed
        return 0

    @cython.final
    cdef int attach(self, params, grads, Job* job) except -1:
        """Check all that a step needs, and say where it lies; afterwards nothing can fail."""
        cdef Plan plan = self.plan
        cdef const Settings* settings = &job.settings
        plan.attach(params, grads, job)
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
        job.shares = 1 if job.dry else rmsprop_team_size(job.elements, &job.one_shot)
        if job.updates and (settings.clipnorm > 0 or settings.parameter_clipnorm > 0):
            plan.give_room(job)
        return 0

    @cython.final
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

    @cython.final
    cdef inline void run(self, Job* job) noexcept nogil:
        """The arithmetic."""
        rmsprop_team_perform(&self.trials, job)

    @cython.final
    cdef inline void commit(self, Job* job) noexcept nogil:
        """Let the step be made: copy back what was staged, and count; or count a skipped one."""
        if job.nonfinite:
            if job.settings.nonfinite == 2:
                if job.passes & RMSPROP_ZERO_GRAD:
                    clear(job)
                self.skipped_steps += 1
            return
        self.plan.slots.committed = self.plan.slots.allocated & job.required
        finish(job)
        self.calls_in_cycle = 0 if job.updates else job.calls_in_cycle
        self.total_calls += 1
        if job.updates:
            self.updates += 1

    @cython.final
    cdef int raise_nonfinite(self, grads) except -1:
        """Raise for the gradient that was to blame."""
        cdef Py_ssize_t i = 0
        while not self.plan.tensors[i].nonfinite:
            i += 1
        raise ValueError(f"{self.plan.name('grads', i, grads)} holds NaN, infinity or a number "
                         "whose square overflows; nothing was changed")

    @cython.final
    cdef int advance(self, params, grads) except -1:
        """One step: all of it, or an exception and none."""
        self.begin_step()
        try:
            run_step(self, params, grads)
        finally:
            self.end_step()
        return 0

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

        The callable keeps the arrays alive and reads gradients again at every call, so compute them
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
            self.begin_step()
            try:
                self.prepare(params, &job, True)
                self.attach(params, grads, &job)
                if job.settings.nonfinite == 1:
                    self.run(&job)
                    if job.nonfinite:
                        self.raise_nonfinite(grads)
                self.plan.slots.committed = self.plan.slots.allocated
            finally:
                self.end_step()
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
        self.begin_step()
        try:
            if self.plan is None:
                self.plan = new_plan(params, self.settings.initial_accumulator_value)
            else:
                self.plan.fitting(self.plan.positions(params, "params"), params)
            self.plan.allocate_required(self.required(), params)
            self.plan.slots.committed = self.plan.slots.allocated
        finally:
            self.end_step()

    def reset(self):
        """Forget the accumulators and all other state, and set `iterations` to 0."""
        cdef Plan _plan = None
        self.begin_step()
        try:
            _plan, self.plan = self.plan, None   # freed when others may enter again
            self.updates = self.calls_in_cycle = 0
            self.total_calls = self.skipped_steps = 0
        finally:
            self.end_step()

    @property
    def iterations(self):
        """int: number of updates done. Assign to it to resume a count.

        The number of calls that a schedule is given becomes that of so many cycles of
        gradient_accumulation_steps, and of the calls since the latest update; it is at most 2**62.
        """
        return self.updates

    @iterations.setter
    def iterations(self, value):
        cdef int64_t count = states.checked_count(value, "iterations"), total
        self.begin_step()
        try:
            total = states.total_calls(
                count, calls_in_a_cycle(&self.settings), self.calls_in_cycle)
            self.updates, self.total_calls = count, total
        finally:
            self.end_step()

    def _get_setting(self, name):
        """A hyper-parameter that is a number."""
        return (<double*>&self.settings)[<int>SETTING_INDEX[name]]

    def _numbers(self):
        """All hyper-parameters that are numbers, by name."""
        return numbers_of(&self.settings)

    def _set_setting(self, name, double value):
        (<double*>&self.settings)[<int>SETTING_INDEX[name]] = value

    def _suspend(self, bint on):
        """Let steps raise from now on, or allow them again; waits for the one under way."""
        self.begin_step()
        try:
            self._suspended = on
        finally:
            self.end_step()

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

    def _set_excluded(self, tuple excluded):
        self.excluded = excluded

    def _counts(self):
        """The numbers of updates, of all calls without skipped ones, and of skipped ones."""
        return self.updates, self.total_calls, self.skipped_steps

    def _required(self):
        """Names of the slots that the options ask for."""
        return [name for slot, name in enumerate(SLOT_NAMES) if self.required() & 1 << slot]

    def _keys(self):
        """The keys of a model that is a dict, in the order of the positions; else None."""
        return None if self.plan is None else self.plan.keys

    def _views(self):
        """Read-only views of the weights by slot name, each by position; {} before the first step.
        """
        cdef Plan plan = self.plan   # no thread is kept out: it may be replaced meanwhile
        found = {}
        if plan is not None:
            for name, arrays in plan.slots.named(self.required() & ~(1 << GRADIENT_SUM)).items():
                found[name] = [array.view() for array in arrays]
                for view in found[name]:
                    view.flags.writeable = False
        return found

    def _snapshot(self, bint weights=False):
        """The `state.State` between two steps, as `_restore` takes it; its arrays are copies.

        What an option that is off has left is a part of the state until the next step, but none of
        the weights.
        """
        cdef Py_ssize_t i
        cdef int bits
        keys, slots, pending = None, {}, []
        self.begin_step()
        try:
            bits = self.required() & ~(1 << GRADIENT_SUM) if weights else -1
            if self.plan is not None:
                keys = self.plan.keys
                pending = [bool(self.plan.tensors[i].pending) for i in range(self.plan.count)]
                slots = {name: [x.copy(order="K") for x in arrays]
                         for name, arrays in self.plan.slots.named(bits).items()}
            return states.State(self.updates, self.calls_in_cycle, self.total_calls,
                                self.skipped_steps, keys, slots, pending)
        finally:
            self.end_step()

    def _assign(self, dict slots, iterations=None, calls=0, pending=None):
        """Set slots from arrays of the accumulators' shapes and dtypes, between two steps.

        Slots that are not there are made, and what options that are off have left is dropped. A new
        cycle begins, but for `calls`, of which the positions in `pending` had gradients.
        """
        cdef Py_ssize_t i
        cdef int slot
        cdef list found, held = []
        cdef cnp.ndarray sources   # addresses of the arrays to copy, by slot and position
        cdef bytes flags
        cdef Plan plan
        cdef int64_t updates, total, count = calls
        self.begin_step()
        try:
            plan = self.plan
            owned = None if plan is None else plan.slots.arrays[ACCUMULATOR]
            sources = np.zeros((SLOTS, 0 if plan is None else plan.count), np.uintp)
            for name in slots:
                slot = SLOT_NAMES.index(name)
                if owned is None or not self.required() & 1 << slot or (
                        states.forms(slots[name]) != states.forms(owned)):
                    raise RuntimeError("another thread has rebuilt the optimizer meanwhile")
                if not plan.slots.allocated & 1 << slot:
                    plan.slots.allocate(slot, owned)
                found = [np.asarray(x, order="F" if plan.tensors[i].fortran else "C")
                         for i, x in enumerate(slots[name])]
                held.append(found)
                for i in range(plan.count):
                    sources[slot, i] = <uintptr_t>cnp.PyArray_DATA(found[i])
            flags = bytes(plan.count if pending is None else pending)
            updates, total = self.updates, self.total_calls
            if iterations is not None:
                updates = iterations
                total = states.total_calls(updates, calls_in_a_cycle(&self.settings), calls)
            self.overwrite(<char**>cnp.PyArray_DATA(sources), flags, updates, count, total)
        finally:
            self.end_step()

    @cython.final
    cdef void overwrite(self, char** sources, const char* pending, int64_t updates, int64_t calls,
                        int64_t total_calls) noexcept:
        """Copy what is not NULL of sources by slot and position, and set the counts.

        NumPy's own copying would let go of the GIL, and a fork could find half of it.
        """
        cdef Plan plan = self.plan
        cdef Tensor* t
        cdef Py_ssize_t i
        cdef int slot
        rmsprop_fork_gate_enter()
        for i in range(plan.count):
            t = &plan.tensors[i]
            if t.slots[GRADIENT_SUM] != NULL:
                memset(t.slots[GRADIENT_SUM], 0, t.size * t.itemsize)
            for slot in range(SLOTS):
                if sources[slot * plan.count + i] != NULL:
                    memcpy(t.slots[slot], sources[slot * plan.count + i], t.size * t.itemsize)
            t.pending = pending[i] != 0
        self.updates, self.calls_in_cycle, self.total_calls = updates, calls, total_calls
        # Another thread may have assigned options since: a cycle keeps its sum.
        plan.slots.committed = plan.slots.allocated & (
            self.required() | (1 << GRADIENT_SUM if calls > 0 else 0))
        rmsprop_fork_gate_leave()

    def _take(self, Core other):
        """Take over hyper-parameters and state of an optimizer that no other thread uses."""
        cdef Plan _plan = None
        self.begin_step()
        try:
            if self._suspended:
                raise RuntimeError("the state can't be replaced inside averaged()")
            _plan, self.plan = self.plan, other.plan   # the old one is freed afterwards
            self.updates, self.calls_in_cycle = other.updates, other.calls_in_cycle
            self.total_calls, self.skipped_steps = other.total_calls, other.skipped_steps
            self.settings = other.settings
            self.schedule, self.lr_scale = other.schedule, other.lr_scale
            self.excluded = other.excluded
        finally:
            self.end_step()

    def _restore(self, state):
        """Take over a `state.State`; ValueError for one that no run can reach."""
        states.check(state)
        cdef Plan plan = None
        cdef Py_ssize_t i
        cdef int slot
        cdef dict slots = state.slots
        cdef list pending = state.pending
        cdef int64_t updates = state.iterations, calls = state.calls
        cdef int64_t total_calls = state.total_calls, skipped_steps = state.skipped_steps
        if slots:
            plan = Plan(len(slots["accumulator"]), state.keys)
            for name in slots:
                slot = SLOT_NAMES.index(name)
                plan.slots.allocate(slot, slots["accumulator"])
                plan.slots.fill(slot, slots[name])
            plan.describe()
            plan.slots.committed = plan.slots.allocated
            for i in range(plan.count):
                plan.tensors[i].pending = pending[i]
        self.begin_step()
        try:
            if self._suspended:
                raise RuntimeError("the state can't be replaced inside averaged()")
            plan, self.plan = self.plan, plan   # the old one is freed afterwards
            self.updates, self.calls_in_cycle = updates, calls
            self.total_calls, self.skipped_steps = total_calls, skipped_steps
        finally:
            self.end_step()


cdef dict numbers_of(const Settings* settings):
    """The hyper-parameters that are numbers, by name."""
    return {name: (<const double*>settings)[<int>i] for name, i in SETTING_INDEX.items()}


cdef inline int run_step(Core self, params, grads) except -1:
    """The step, once no other is under way."""
    cdef Job job
    self.prepare(params, &job, False)
    self.attach(params, grads, &job)
    if job.elements < unlocked_minimum and job.shares == 1:
        self.run(&job)
        self.commit(&job)
    else:
        with nogil:
            rmsprop_fork_gate_enter()
            self.run(&job)
            self.commit(&job)   # before others may come in, or the process may fork
            rmsprop_fork_gate_leave()
    if job.nonfinite and job.settings.nonfinite == 1:
        self.raise_nonfinite(grads)
    return 0


def step_on(Core optimizer not None, list params, list grads, dict slots, list counters,
            tuple labels):
    """`Core.step` on state that another library owns; the optimizer keeps nothing of it.

    Parameters
    ----------
    optimizer : Core
        Whose hyper-parameters the step has.
    params, grads : list of ndarray
        As for `Core.step`.
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
    cdef Plan plan = optimizer.lent
    optimizer.begin_step()
    try:
        if plan is None or plan.count != len(params):
            optimizer.lent = plan = Plan(len(params), None)
        try:
            plan.labels = labels
            plan.lend(slots)
            if optimizer.required() & ~plan.slots.allocated:
                raise ValueError(f"slots has {', '.join(slots)}, but the options need more")
            optimizer.plan = plan
            run_step(optimizer, params, grads)
            return [i for i, counter in enumerate(counters) if not count_up(counter)]
        finally:
            optimizer.plan = None
            plan.held = None
            plan.slots.give_back()
    finally:
        optimizer.end_step()


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

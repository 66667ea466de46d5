"""Long runs of anything: ``python verify/machine.py --seconds 600 [--seed 1]``.

A state machine makes every public call, changes every option in the middle of a run, copies, saves,
imports, asks for what can't be done, and moves arrays about. After each of these the optimizer is
compared by bits with `model.Model`, and each step of `reference.RMSprop` too. What fails is shrunk
by hypothesis to a short program, which it prints.
"""

import argparse
import collections
import copy
import pickle
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import LAYOUTS, assert_same_bits, layouts, place
from hypothesis import HealthCheck, Phase, Verbosity, seed as seeded, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import DEFAULTS, SLOTS, Model, RefusedError

from rmsprop_c import RMSprop, _core, hyperparameters, reference, schedules, set_num_threads

SHAPES = {
    "one": [("f4", (4,))],
    "bare": [("f8", (2, 3))],
    "mixed": [("f4", (3, 5)), ("f8", (2,)), ("f4", ()), ("f4", (3, 5))],
    "double": [("f8", (2, 2, 3)), ("f8", (1, 4))],
    "empty arrays": [("f4", (0, 3)), ("f8", (7,))],
    "blocks": [("f4", (70, 61)), ("f8", (5,)), ("f8", (3, 1400))],
    "nothing": [],
}
FORMS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda arrays: {f"w{i}": x for i, x in enumerate(arrays)},
    "bare": lambda arrays: arrays[0],
}
ISAS = [isa for isa, supported in _core.compiled_isas().items() if supported]
HALVING = schedules.InverseTimeDecay(0.5, 2, 0.5)
STEPS = schedules.PiecewiseConstantDecay([1, 5, 9], [0.5, 0.25, 2.0, 0.125])

# What may be assigned; float32 makes of some what a step refuses.
VALUES = {
    "lr": [0.001, HALVING, STEPS, 0.1, 0.0, 1e39, 1e300],
    "rho": [0.9, 0.5, 0.0, 1.0, 0.999, 1 - 1e-9],
    "epsilon": [1e-8, 1e-3, 0.0, 1e-46, 1e39],
    "decay": [0.0, 0.5],
    "clipnorm": [None, 0.7, 1e-3, -1.0, 1e-46],
    "clipvalue": [None, 0.5, 1e-3, 0.0, 1e-46, 1e39],
    "parameter_clipnorm": [None, 0.7, 1e-46],
    "momentum": [0.0, 0.9, 0.5, 1.0, 1 - 1e-9],
    "nesterov": [False, True],
    "centered": [False, True],
    "epsilon_in_sqrt": [False, True],
    "initial_accumulator_value": [0.0, 1.0, 0.5, 1e-46],
    "lr_in_momentum": [True, False],
    "bias_correction": [False, True],
    "maximize": [False, True],
    "weight_decay": [0.0, 0.25, 4.0, 1e39],
    "decoupled_weight_decay": [False, True],
    "use_ema": [False, True],
    "ema_momentum": [0.99, 0.5, 0.0, 1.0, 1 - 1e-9],
    "ema_overwrite_frequency": [None, 1, 2, 3],
    "gradient_accumulation_steps": [None, 2, 3, 4],
    "nonfinite": ["propagate", "raise", "skip"],
    "flush_subnormals": [False, True],
    "zero_grad": [False, True],
    "lr_scale": [None, 0.5, 2.0, 1e38],
    "exclude_from_weight_decay": [(), (0,)],
}
RUINOUS = [
    ("rho", 1 - 1e-9),
    ("momentum", 1 - 1e-9),
    ("ema_momentum", 1 - 1e-9),
    ("lr", 1e39),
    ("weight_decay", 1e39),
    ("epsilon", 1e39),
    ("epsilon", 1e-46),
    ("clipnorm", 1e-46),
    ("clipvalue", 1e-46),
    ("parameter_clipnorm", 1e-46),
]
USUAL = {name: values[:3] for name, values in VALUES.items()}
BAD = [
    ("lr", -1.0),
    ("rho", 1.5),
    ("nonfinite", "no"),
    ("clipnorm", True),
    ("lr_scale", {1.0, 2.0}),
]
BAD += [("gradient_accumulation_steps", 1), ("ema_overwrite_frequency", 0), ("momentum", "0.5")]
BAD += [("epsilon", float("nan")), ("exclude_from_weight_decay", 3)]
KERAS = ("moving_average", "gradient_sum", "accumulator", "momentum", "average_gradient")
TORCH = {"accumulator": "square_avg", "momentum": "momentum_buffer", "average_gradient": "grad_avg"}
REFERENCES = {name: f"{name}s" for name in SLOTS}  # what they are there
Rms = collections.namedtuple("Rms", "nu")
Centered = collections.namedtuple("Centered", "mu nu")
Trace = collections.namedtuple("Trace", "trace")
Count = collections.namedtuple("Count", "count")
REFUSALS = (ValueError, TypeError, RuntimeError, AttributeError, OverflowError)

seeds = st.integers(0, 999)
kinds = st.sampled_from(["normal"] * 6 + ["zeros", "tiny", "huge", "nan", "inf", "none"])
layout_names = st.sampled_from(["plain"] * 4 + list(LAYOUTS))


def numbers(dtype, shape, rng, kind="normal"):
    x = np.array(rng.standard_normal(shape), dtype)
    if kind in ("zeros", "tiny", "huge"):
        x *= {"zeros": 0, "tiny": 1e-23, "huge": 2e19}[kind]
    elif kind in ("nan", "inf") and x.size:
        x.flat[rng.integers(x.size)] = kind
    return x


# What an error says of it.
CANNOT = {
    "shape": "has shape",
    "dtype": "has dtype int32",
    "count": "entries|has no key",
    "frozen": "is read-only",
    "twice": "shares memory",
    "shared": "shares memory",
    "objects": "has dtype object",
    "text": "is of type str",
    "schedule": "BrokenError",
    "scales": "lr_scale",
}


class Sub(np.ndarray):
    """As np.memmap and np.matrix are: an array, but not one that a kernel reads as it lies."""


class BrokenError(Exception):
    """What a user's own code raises."""


def broken(step):
    raise BrokenError


class Asked:
    """It counts how often schedules are asked."""

    times = 0

    def __call__(self, schedule, call):
        Asked.times += 1
        return hyperparameters.scheduled_lr(schedule, call)


class Machine(RuleBasedStateMachine):
    """One optimizer and what it should be."""

    @initialize(
        shapes=st.sampled_from([*SHAPES, "mixed", "mixed"]),
        form=st.sampled_from(list(FORMS)),
        seed=seeds,
        threads=st.sampled_from([1, 1, 2, 3]),
        isa=st.sampled_from(ISAS),
        layout=layout_names,
        options=st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(values) for name, values in USUAL.items()}
        ),
    )
    def begin(self, shapes, form, seed, threads, isa, layout, options):
        self.form = form if form != "bare" or len(SHAPES[shapes]) == 1 else "list"
        self.shapes = SHAPES[shapes]
        rng = np.random.default_rng(seed)
        self.expected = [numbers(dtype, shape, rng) for dtype, shape in self.shapes]
        self.layouts = [layout] * len(self.shapes)
        self.lie_again()
        self.model = Model()
        self.opt = RMSprop()
        self.others = []  # optimizers that have been left behind, and their state
        self.bound = None
        set_num_threads(threads)
        _core.use_isa(isa)
        for name, value in options.items():
            self.assign(name, value)

    def __init__(self):
        super().__init__()
        self.chosen, self.minimums = _core.chosen_isa(), _core.configure_minimums(1, 1)
        _core.scheduled_lr = Asked()
        self.oracle = None
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self):
        _core.scheduled_lr = hyperparameters.scheduled_lr
        set_num_threads(None)
        _core.use_isa(self.chosen)
        _core.configure_minimums(**self.minimums)
        self.folder.cleanup()

    # Arrays.

    def lie_again(self):
        """Put the parameters where the layouts want them."""
        self.params, self.buffers = [], []
        for x, name in zip(self.expected, self.layouts, strict=True):
            array, buffer = place(x, **layouts(x.ndim)[name])
            self.params.append(array)
            self.buffers.append(buffer)
        self.bound, self.as_given = None, self.given(self.params)

    def given(self, arrays):
        return FORMS[self.form](arrays)

    def gradients(self, seed, kind, layout="plain"):
        """Gradients for the optimizer, and for the model."""
        rng, found, wanted = np.random.default_rng(seed), [], []
        one = rng.integers(len(self.shapes)) if self.shapes else 0
        for i, (dtype, shape) in enumerate(self.shapes):
            x = numbers(
                dtype, shape, rng, kind if i == one or kind in ("zeros", "tiny") else "normal"
            )
            none = kind == "none" and self.form != "bare" and (seed % 3 == 0 or i == one)
            wanted.append(None if none else x)
            g = place(x, **layouts(x.ndim)[layout])[0]
            found.append(None if none else g.view(Sub) if seed % 4 == 0 else g)
        return found, wanted

    # What is compared.

    def everything(self, opt):
        state = opt._snapshot()
        slots = {name: [x.tobytes() for x in arrays] for name, arrays in state.slots.items()}
        return state._replace(slots=slots), repr(opt)

    @invariant()
    def all_is_as_the_model_has_it(self):
        if not hasattr(self, "opt"):
            return
        for i, (found, wanted) in enumerate(zip(self.params, self.expected, strict=True)):
            assert_same_bits(found, wanted, f"params[{i}]")
            if not np.isnan(wanted).any():
                _, buffer = place(wanted, **layouts(wanted.ndim)[self.layouts[i]])
                assert (buffer == self.buffers[i]).all(), f"bytes around params[{i}]"
        state = self.opt._snapshot()
        self.same_slots(state.slots, self.model.slots or {})
        for name in ("iterations", "calls", "total_calls", "skipped_steps"):
            assert getattr(state, name) == getattr(self.model, name), name
        assert state.pending == self.model.pending, "pending"
        weights = self.opt.weights
        for i, (x, y) in enumerate(zip(weights, self.model.weights, strict=True)):
            assert_same_bits(x, y, f"weights[{i}]")
        for name, value in self.model.options.items():
            assert self.own(name, getattr(self.opt, name)) == value or callable(value), name
        assert self.opt.lr == self.model.current_rate()
        for opt, before in self.others:
            assert self.everything(opt) == before, "a copy has changed with its original"

    def own(self, name, value):
        """An option of the optimizer as the model has it: by position."""
        if name == "lr_scale" and isinstance(value, dict):
            return tuple(value[f"w{i}"] for i in range(len(self.shapes)))
        if name == "exclude_from_weight_decay":
            return tuple(int(str(x)[-1]) for x in value)
        return value

    def same_slots(self, found, wanted):
        assert list(found) == [x for x in SLOTS if x in wanted]
        for name, arrays in wanted.items():
            for i, (x, y) in enumerate(zip(found[name], arrays, strict=True)):
                assert_same_bits(x, y, f"{name}[{i}]")

    def refused(self, call, *errors):
        before = self.everything(self.opt)
        try:
            call()
        except REFUSALS as error:
            if errors and not isinstance(error, errors):
                raise
        else:
            raise AssertionError("it should have raised")
        assert self.everything(self.opt) == before, "it raised, but something has changed"

    # Options.

    def assign(self, name, value):
        model = self.model
        wanted = value
        if name == "lr_scale" and value is not None:
            wanted = tuple(1.0 if i % 2 else value for i in range(len(self.shapes)))
            value = wanted
            if self.form == "dict":
                value = {f"w{i}": x for i, x in enumerate(wanted)}
        if name == "exclude_from_weight_decay":
            wanted = value if self.shapes else ()
            value = tuple(f"w{i}" for i in wanted) if self.form == "dict" else wanted
        after = {**model.options, name: wanted}
        conflict = (
            (callable(after["lr"]) and after["decay"] > 0)
            or ((after["clipnorm"] or 0) > 0 and (after["parameter_clipnorm"] or 0) > 0)
            or (after["rho"] == 1 and after["bias_correction"])
        )
        if conflict:
            self.refused(lambda: setattr(self.opt, name, value), ValueError)
        else:
            setattr(self.opt, name, value)
            model.options[name] = wanted
            if name == "initial_accumulator_value":  # where another one would begin
                self.oracle = None
            elif self.oracle is not None:
                self.oracle.options[name] = wanted

    @rule(data=st.data(), names=st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4))
    def assign_options(self, data, names):
        for name in names:
            self.assign(name, data.draw(st.sampled_from(VALUES[name]), name))

    @rule(steps=st.sampled_from(VALUES["gradient_accumulation_steps"]))
    def change_the_cycle(self, steps):
        self.assign("gradient_accumulation_steps", steps)

    @rule(name=st.sampled_from(["momentum", "use_ema", "centered"]), seed=seeds)
    def switch_off_and_on(self, name, seed):
        """What it has left is dropped by the step in between."""
        before = self.model.options[name] or VALUES[name][1]
        for value in (before, DEFAULTS[name], before):
            self.assign(name, value)
            self.step(seed, "normal", "plain", "step", 1)

    @rule(pair=st.sampled_from(RUINOUS))
    def step_with_what_float32_cannot_hold(self, pair):
        before = self.model.options[pair[0]]
        self.assign(*pair)
        self.step(1, "normal", "plain", "step", 1)
        self.assign(pair[0], before)

    @rule(seed=seeds, layout=st.sampled_from(LAYOUTS))
    def clear_gradients_of_a_subclass(self, seed, layout):
        before = self.model.options["zero_grad"]
        self.assign("zero_grad", True)
        self.step(4 * seed, "normal", layout, "step", 1)
        self.assign("zero_grad", before)

    @rule(cycles=st.lists(st.sampled_from([None, 2, 3, 4]), min_size=2, max_size=3), seed=seeds)
    def cut_cycles_short(self, cycles, seed):
        for steps in cycles:
            self.assign("gradient_accumulation_steps", steps)
            self.step(seed, "normal", "plain", "step", seed % 4)
        self.go_there_and_back("keras3")

    @rule(pair=st.sampled_from(BAD))
    def assign_what_is_no_value(self, pair):
        self.refused(lambda: setattr(self.opt, *pair))

    @rule(value=st.sampled_from([0, 1, 3, 10, 2**61, 2**62, -1, 2**62 + 1, 1.0, True]))
    def assign_iterations(self, value):
        def assign():
            self.opt.iterations = value

        try:
            if type(value) is not int or not 0 <= value <= 2**62:
                raise RefusedError
            self.model.count_from(value)
        except RefusedError:
            self.refused(assign)
        else:
            assign()
            self.oracle = None

    # Steps.

    def step_both(self, call, wanted, grads):
        """Make a call, and the same of the model and of the reference."""
        oracle = self.reference()
        before = [g.tobytes() for g in grads if g is not None]
        params = [p.copy() for p in self.expected]
        own_grads = copy.deepcopy(wanted)
        try:
            done = self.model.step(self.expected, wanted)
        except RefusedError:
            self.refused(call, ValueError)
            assert [g.tobytes() for g in grads if g is not None] == before
            return "refused"
        asked = Asked.times
        call()
        # The schedule is asked once for an update, perhaps in vain: it may be one that is skipped.
        most = 1 if done or (done is None and self.model.calls + 1 >= self.model.cycle) else 0
        assert Asked.times - asked == (most if callable(self.model.lr) else 0)
        for i, (x, y) in enumerate(zip(grads, wanted, strict=True)):
            if y is not None:
                assert_same_bits(x, y, f"grads[{i}]")
        oracle.step(params, own_grads)
        for i, (x, y) in enumerate(
            zip([*params, *own_grads], [*self.expected, *wanted], strict=True)
        ):
            if y is not None:
                assert_same_bits(x, y, f"the reference's array {i}")
        self.same_reference(oracle)
        self.oracle = oracle
        return done

    def reference(self):
        """A reference.RMSprop in the model's state: that of the call before, if it was one."""
        if self.oracle is not None and self.oracle.total_calls == self.model.total_calls:
            return self.oracle
        oracle = reference.RMSprop(self.expected, **self.model.options)
        for name, arrays in (self.model.slots or {}).items():
            setattr(oracle, REFERENCES[name], [x.copy() for x in arrays])
        if self.model.slots is not None:
            oracle.averages = "moving_average" in self.model.slots
            oracle.pending = list(self.model.pending)
        for name in ("iterations", "calls", "total_calls", "skipped_steps"):
            setattr(oracle, name, getattr(self.model, name))
        return oracle

    def same_reference(self, oracle):
        for name in set(self.model.needed) & set(self.model.slots or ()):
            pairs = zip(getattr(oracle, REFERENCES[name]), self.model.slots[name], strict=True)
            for i, (x, y) in enumerate(pairs):
                assert_same_bits(x, y, f"the reference's {name}[{i}]")
        assert oracle.pending == (self.model.pending or [False] * len(self.shapes))
        for name in ("iterations", "calls", "total_calls", "skipped_steps"):
            assert getattr(oracle, name) == getattr(self.model, name), f"the reference's {name}"

    @rule(
        seed=seeds,
        kind=kinds,
        layout=layout_names,
        way=st.sampled_from(["step"] * 4 + ["pairs", "thread", "copies of lists"]),
        times=st.sampled_from([1, 1, 1, 2, 5]),
    )
    def step(self, seed, kind, layout, way, times):
        for more in range(times):
            grads, wanted = self.gradients(seed + more, kind, layout)

            def call(grads=grads):
                if way == "pairs" and self.form in ("list", "tuple"):
                    self.opt.apply_gradients(zip(grads, self.params, strict=True))
                elif way == "thread":
                    in_a_thread(lambda: self.opt.step(self.given(self.params), self.given(grads)))
                else:
                    params = self.as_given if way == "step" else self.given(self.params)
                    self.opt.step(params, self.given(grads))

            self.step_both(call, wanted, grads)

    @rule(seed=seeds, kind=kinds, layout=layout_names)
    def bind(self, seed, kind, layout):
        grads, wanted = self.gradients(seed, kind, layout)

        def bind():
            return self.opt.bind(self.given(self.params), self.given(grads))

        try:
            self.model.check(self.expected, wanted)
            with np.errstate(all="ignore"):
                if self.model.nonfinite == "raise" and not self.model.is_finite(wanted):
                    raise RefusedError
        except RefusedError:
            self.refused(bind, ValueError)
        else:
            asked = Asked.times
            self.bound, self.oracle = (bind(), grads), None
            assert Asked.times - asked <= 1, "bind asks the schedule no more than a step does"
            self.model.build(self.expected)

    @precondition(lambda self: self.bound)
    @rule(seed=seeds, kind=kinds)
    def step_bound(self, seed, kind):
        step, grads = self.bound
        _, new = self.gradients(seed, kind)
        wanted = []
        for g, x in zip(grads, new, strict=True):
            if g is not None:
                g[...] = 0 if x is None else x
            wanted.append(None if g is None else np.array(g, g.dtype.newbyteorder("="), order="C"))
        self.step_both(step, wanted, grads)

    @rule(seed=seeds, kind=kinds, constrained=st.booleans())
    def get_updates(self, seed, kind, constrained):
        grads, wanted = self.gradients(seed, kind)
        params = self.given(self.params)
        constraints, before = None, self.everything(self.opt)
        if constrained and self.shapes:
            constraints = {"w0" if self.form == "dict" else 0: lambda w: w * w.dtype.type(0.5)}
        updates = []

        def call():
            updates.extend(
                self.opt.get_updates(params, constraints, lambda _: (1.5, self.given(grads)))
            )

        done = self.step_both(call, wanted, grads)
        if done == "refused":
            return
        assert self.opt.last_loss == 1.5
        if done and constraints:
            with np.errstate(all="ignore"):
                self.expected[0] *= self.expected[0].dtype.type(0.5)
        assert bool(updates) == (done is not None), before
        if updates:
            weights, n = self.opt.weights, len(self.shapes)
            found = updates[1:] if self.model.decay > 0 else updates
            assert len(found) == len(weights) + n
            rows = len(weights) // n + 1
            for i, x in enumerate(found):
                at, slot = divmod(i, rows)
                assert_same_bits(x, self.params[at] if slot == rows - 1 else weights[slot * n + at])

    @rule(seed=seeds, kind=kinds)
    def get_gradients(self, seed, kind):
        grads, wanted = self.gradients(seed, kind)
        params = self.given(self.params)

        def call():
            return self.opt.get_gradients(lambda _: (2.5, self.given(grads)), params)

        model = self.model
        limits = (model.clipnorm, model.clipvalue, model.parameter_clipnorm)
        if any((limit or 0) > 0 for limit in limits):
            try:
                if any(dtype == "f4" for dtype, _ in self.shapes):
                    model.check_limits()
            except RefusedError:
                return self.refused(call, ValueError)
            if self.shapes and seed % 5 == 0:
                grads[-1] = np.zeros((9, 9), self.shapes[-1][0])
                return self.refused(call, ValueError)
            towards = Model(**{**model.options, "maximize": False})
            with np.errstate(all="ignore"):
                wanted = towards.clipped(wanted, 1)
        found = call()
        found = found.values() if self.form == "dict" else [found] if self.form == "bare" else found
        for x, y in zip(found, wanted, strict=True):
            assert (x is None) == (y is None)
            if y is not None:
                assert_same_bits(x, y, "get_gradients")

    # What can't be done.

    @precondition(lambda self: len(self.shapes) > 1)
    @rule(
        what=st.sampled_from(list(CANNOT)),
        how=st.sampled_from(["step", "bind"]),
    )
    def ask_for_what_cannot_be_done(self, what, how):
        grads, wanted = self.gradients(1, "normal")
        try:
            self.model.check(self.expected, wanted)
        except RefusedError:
            return  # it would raise for that
        params, message = list(self.params), CANNOT[what]
        if what == "shape":
            grads[-1] = np.zeros((2, 9), grads[-1].dtype)
        elif what == "dtype":
            grads[-1] = grads[-1].astype("i4")
        elif what == "count":
            grads.pop()
        elif what == "frozen":
            params[-1] = params[-1].view()
            params[-1].flags.writeable = False
        elif what == "twice":
            if self.shapes[0] != self.shapes[-1]:
                return
            params[0] = params[-1]
        elif what == "shared":
            grads[-1] = params[-1]
        elif what == "objects":
            grads[-1] = grads[-1].astype(object)
        elif what == "text":
            grads[-1] = "0.5"
        rate = self.model.lr
        scales = self.opt.lr_scale
        if what == "schedule":
            if self.model.decay > 0 or self.model.calls + 1 < self.model.cycle:
                return
            self.opt.lr = broken
        elif what == "scales":
            self.opt.lr_scale = (1.0,) * (len(self.shapes) + 1)
        before = self.opt._snapshot()
        try:
            getattr(self.opt, how)(self.given(params), self.given(grads))
        except (ValueError, TypeError, BrokenError) as error:
            found = repr(error)
        else:
            found = "nothing was raised"
        finally:
            self.opt.lr, self.opt.lr_scale = rate, scales
        assert re.search(message, found), found
        assert list(before.slots) == list(self.opt._snapshot().slots)

    # State.

    @rule()
    def build(self):
        self.opt.build(self.given(self.params))
        self.model.build(self.expected)
        self.oracle = None

    @rule()
    def reset(self):
        self.opt.reset()
        self.model.reset()
        self.oracle = None
        assert self.opt.last_loss is None

    @rule(
        way=st.sampled_from(["pickle", "copy", "deepcopy", "file", "in place", "corrupted"]),
        seed=seeds,
    )
    def go_on_with_a_copy(self, way, seed):
        opt = self.opt
        if way in ("file", "in place"):
            path = Path(self.folder.name, "run.npz")
            opt.save(path)
            twin = RMSprop(momentum=0.5, use_ema=True)
            twin.step([np.ones(3)], [np.ones(3)])
            twin = twin.load(path) if way == "in place" else RMSprop.load(path)
        elif way == "corrupted":
            return self.corrupt(seed)
        else:
            twin = {
                "pickle": lambda x: pickle.loads(pickle.dumps(x)),
                "copy": copy.copy,
                "deepcopy": copy.deepcopy,
            }[way](opt)
        assert repr(twin) == repr(opt)
        self.others = [*self.others[-1:], (opt, self.everything(opt))]
        self.opt, self.bound = twin, None

    def corrupt(self, seed):
        """A state that no run can reach is taken from nowhere."""
        pickled = self.opt.__getstate__()
        state, model = pickled["state"], self.model
        slots, sums = state["slots"], state["slots"].get("gradient_sum")
        size = sum(int(np.prod(shape)) for _, shape in self.shapes)
        changes = [
            lambda: state.update(total_calls=model.iterations + model.calls - 1),
            lambda: state.update(iterations=-1),
            lambda: state.update(iterations=2.0),
            lambda: state.update(skipped_steps=2**62 + 1),
            lambda: state.update(pending=[*state["pending"], False]),
            lambda: state.pop("calls"),
        ]
        if slots and self.shapes:
            changes += [
                lambda: slots.update(accumulator=slots["accumulator"][1:]),
                lambda: slots.update(momentum=[np.zeros(77) for _ in self.shapes]),
                lambda: slots.update(accumulator=[x.astype("c8") for x in slots["accumulator"]]),
                lambda: state.update(keys=("a",) * (len(self.shapes) + 1)),
            ]
            if model.calls == 0:
                changes.append(lambda: state.update(pending=[True] * len(self.shapes)))
                if sums and size:
                    changes.append(lambda: [x.fill(1) for x in sums])
                if not sums:
                    changes.append(lambda: state.update(calls=1, total_calls=2**61))
            else:
                changes.append(lambda: slots.pop("gradient_sum"))
                changes.append(lambda: state.update(calls=0, pending=[True] * len(self.shapes)))
                if size:
                    changes.append(
                        lambda: [
                            *[x.fill(1) for x in sums],
                            state.update(pending=[False] * len(sums)),
                        ]
                    )
        else:
            changes += [lambda: state.update(calls=1, total_calls=2**61)]
        changes[seed % len(changes)]()
        twin = RMSprop.__new__(RMSprop)
        before = self.everything(twin)
        try:
            twin.__setstate__(pickled)
        except ValueError:
            assert self.everything(twin)[0] == before[0]
        else:
            raise AssertionError("a state that no run can reach was taken over")

    @rule()
    def go_on_with_config_and_weights(self):
        twin, model = RMSprop.from_config(self.opt.get_config()), Model(**self.model.options)
        names = [x for x in self.model.needed if x != "gradient_sum"]
        slots = self.model.slots or {}
        if not self.shapes or not set(names) <= set(slots):
            return
        twin.build(self.given(self.params))
        model.build(self.expected)
        weights = [self.opt.iterations, *self.opt.get_weights()]
        try:
            model.replace({x: slots[x] for x in names}, self.model.iterations)
        except RefusedError:
            self.opt = twin
            self.refused(lambda: twin.set_weights(weights), ValueError)
            self.model = Model(**self.model.options)
            self.model.build(self.expected)
        else:
            twin.set_weights(weights)
            self.opt, self.model = twin, model
        self.bound = self.oracle = None

    @rule(seed=seeds, counted=st.booleans(), wrong=st.sampled_from([None] * 4 + ["shape", "count"]))
    def set_weights(self, seed, counted, wrong):
        model, rng = self.model, np.random.default_rng(seed)
        names = [x for x in model.needed if x != "gradient_sum" and x in (model.slots or {})]
        slots = {x: [np.abs(numbers(a.dtype, a.shape, rng)) for a in model.slots[x]] for x in names}
        weights = [x for arrays in slots.values() for x in arrays]
        if wrong == "count":
            weights = [*weights, np.zeros(3), np.zeros(3)]
        elif wrong == "shape" and weights:
            weights[-1] = np.zeros((9, 9))
        if counted and weights:
            weights = [np.int64(seed), *weights]
        if (wrong and (weights or wrong == "count")) or model.slots is None:
            return self.refused(lambda: self.opt.set_weights(weights), ValueError)
        if not weights:
            return None
        self.opt.set_weights(weights)
        self.oracle = None
        self.model.replace(slots, seed if counted else None)

    @rule(inside=st.sampled_from(["nothing", "step", "change", "freeze", "raise", "frozen before"]))
    def averaged(self, inside):
        model, params = self.model, self.given(self.params)
        if inside == "frozen before" and self.params:
            views = [p.view() for p in self.params]
            views[-1].flags.writeable = False
            params = self.given(views)
        if not model.use_ema or (inside == "frozen before" and self.params):
            return self.refused(lambda: self.opt.averaged(params).__enter__(), ValueError)
        model.build(self.expected)
        self.oracle = None
        averages = model.slots["moving_average"]
        frozen, lost = None, ""
        try:
            with self.opt.averaged(params):
                for x, y in zip(self.params, averages, strict=True):
                    assert_same_bits(x, y, "averaged")
                if inside == "step":
                    self.refused(lambda: self.opt.step(params, params), RuntimeError)
                elif inside == "change":
                    for p in self.params:
                        p[...] = 3
                elif inside == "freeze" and self.params:
                    frozen = self.params[0]
                    frozen.flags.writeable = False
                elif inside == "raise":
                    raise BrokenError
        except BrokenError:
            pass
        except ValueError as error:
            lost = str(error)
        assert bool(re.match("params.* can't be set back", lost)) == (frozen is not None), lost
        assert bool(lost) == (frozen is not None), lost
        if frozen is not None:
            frozen.flags.writeable = True
            self.expected[0][...] = averages[0]

    @rule(frozen=st.booleans())
    def finalize(self, frozen):
        params = list(self.params)
        if frozen and params:
            params[-1] = params[-1].view()
            params[-1].flags.writeable = False
        if not self.model.use_ema or (frozen and params):
            return self.refused(
                lambda: self.opt.finalize_variable_values(self.given(params)), ValueError
            )
        self.opt.finalize_variable_values(self.given(params))
        self.oracle = None
        self.model.build(self.expected)
        for p, e in zip(self.expected, self.model.slots["moving_average"], strict=True):
            p[...] = e

    # Other frameworks.

    def their_form(self, framework):
        """A state of a fresh optimizer of theirs with our options."""

        def zeros():
            return [np.zeros(shape, dtype) for dtype, shape in self.shapes]

        needed = self.model.needed
        if framework == "keras3":
            names = [x for x in KERAS if x in needed]
            return [np.int32(0), np.float32(0.001), *(x for _ in names for x in zeros())]
        if framework == "torch":
            entries = [
                {
                    "step": np.float64(0),
                    **{TORCH[x]: np.zeros(shape, dtype) for x in TORCH if x in needed},
                }
                for dtype, shape in self.shapes
            ]
            group = {"params": list(range(len(entries)))}
            group |= {"momentum": self.model.momentum, "centered": self.model.centered}
            return {"state": dict(enumerate(entries)), "param_groups": [group]}
        first = Centered(zeros(), zeros()) if self.model.centered else Rms(zeros())
        rest = [Trace(zeros())] if self.model.momentum > 0 else []
        if self.form == "dict":
            first = first._make(FORMS["dict"](x) for x in first)
            rest = [x._make(FORMS["dict"](y) for y in x) for x in rest]
        return (first, Count(np.int64(0)), *rest)

    def exported(self, framework):
        """(slots, iterations, calls) that go out; RefusedError where they can't."""
        model = self.model
        if model.slots is None:
            raise RefusedError
        if "moving_average" in model.needed and (
            "moving_average" not in model.slots or framework != "keras3"
        ):
            raise RefusedError
        if model.momentum > 0 and model.lr_in_momentum != (framework != "torch"):
            raise RefusedError
        if model.calls and (framework != "keras3" or model.calls >= model.cycle):
            raise RefusedError
        count = model.iterations * model.cycle + model.calls
        if framework == "keras3" and (
            count > 2**31 - 1 or (callable(model.lr) and count != model.total_calls)
        ):
            raise RefusedError
        names = [x for x in SLOTS if x in model.needed]
        like = model.slots["accumulator"]
        zeros = [np.zeros_like(x) for x in like]
        return {x: model.slots.get(x, zeros) for x in names}, model.iterations, model.calls

    @rule(framework=st.sampled_from(["keras3", "torch", "optax"]))
    def go_there_and_back(self, framework):
        form = self.their_form(framework)
        try:
            slots, iterations, calls = self.exported(framework)
        except RefusedError:
            return self.refused(lambda: self.opt.export_state(framework, form), ValueError)
        state = self.opt.export_state(framework, form)
        if framework == "torch":  # each parameter has its own count there, in floating point
            iterations = int(np.float64(iterations)) if self.shapes else 0
        self.come_in(framework, state, slots, iterations, calls)

    @rule(framework=st.sampled_from(["keras3", "torch", "optax"]), seed=seeds)
    def come_from_there(self, framework, seed):
        rng, model = np.random.default_rng(seed), self.model
        names = [x for x in SLOTS if x in model.needed]
        slots = {x: [np.abs(numbers(d, s, rng)) for d, s in self.shapes] for x in names}
        iterations, calls = divmod(seed, model.cycle) if framework == "keras3" else (seed, 0)
        if framework == "torch" and not self.shapes:
            iterations = 0  # each parameter has its own count there
        if not calls and "gradient_sum" in slots:
            slots["gradient_sum"] = [np.zeros(s, d) for d, s in self.shapes]
        state = self.their_form(framework)
        if framework == "keras3":
            state = [np.int64(seed), state[1], *(x for n in KERAS if n in slots for x in slots[n])]
        elif framework == "torch":
            for i, entry in state["state"].items():
                entry.update({TORCH[x]: slots[x][i] for x in slots if x in TORCH}, step=seed)
        else:
            own = dict(zip(("nu", "trace", "mu"), SLOTS[:3], strict=True))
            make = FORMS["dict" if self.form == "dict" else "list"]
            fill = {
                x: make([-y if x == "trace" else y for y in slots[own[x]]])
                for x in own
                if own[x] in slots
            }
            state = tuple(
                x._replace(**{f: fill.get(f, np.int64(seed)) for f in x._fields}) for x in state
            )
            if seed % 3 == 0:  # without a schedule or a bias correction it counts nothing
                state, iterations = (state[0], *state[2:]), None
        self.come_in(framework, state, slots, iterations, calls)

    @rule(
        framework=st.sampled_from(["keras3", "torch", "optax"]),
        what=st.sampled_from([-1, 7.9, 2**62 + 1, 2**63 - 1, 2**63, float("inf"), "7", "complex"]),
    )
    def come_with_what_is_no_state(self, framework, what):
        if not self.shapes or self.refuses_state(framework):
            return
        state, leaf = self.their_form(framework), what
        if what == "complex":
            leaf = np.ones(self.shapes[0][1], complex)
        if framework == "keras3":
            state[0 if what != "complex" else 2] = leaf
        elif framework == "torch":
            state["state"][0]["step" if what != "complex" else "square_avg"] = leaf
        elif what == "complex":
            state[0].nu["w0" if self.form == "dict" else 0] = leaf
        else:
            state = (state[0], Count(leaf), *state[2:])
        before = self.everything(self.opt)
        try:
            self.opt.import_state(framework, state)
        except (ValueError, TypeError) as error:
            found = str(error)
        else:
            found = "nothing was raised"
        assert re.search("must be a whole number|must be in|must be real numbers", found), found
        assert self.everything(self.opt) == before

    def refuses_state(self, framework):
        """Whether nothing can come from that framework."""
        model = self.model
        return (
            model.slots is None
            or (model.use_ema and framework != "keras3")
            or (model.momentum > 0 and model.lr_in_momentum != (framework != "torch"))
        )

    def come_in(self, framework, state, slots, iterations, calls):
        model = self.model

        def call():
            self.opt.import_state(framework, state)

        if (
            self.refuses_state(framework)
            or (calls and not self.shapes)
            or (iterations or 0) * model.cycle + calls > 2**62
        ):
            return self.refused(call, ValueError)
        sums = slots.get("gradient_sum", [np.zeros(0)] * len(self.shapes))
        call()
        self.oracle = None
        model.replace(slots, iterations, calls, [bool(x.any()) for x in sums])

    # Where arrays lie.

    @rule(data=st.data())
    def move_the_parameters(self, data):
        self.layouts = [data.draw(layout_names) for _ in self.shapes]
        self.lie_again()

    @rule(threads=st.sampled_from([None, 1, 2, 3]), isa=st.sampled_from(ISAS), small=st.booleans())
    def compute_otherwise(self, threads, isa, small):
        _core.configure_minimums(**self.minimums if small else {"unlocked": 1, "persistent": 1})
        set_num_threads(threads)
        _core.use_isa(isa)


def in_a_thread(work):
    errors = []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def search(seconds, seed, progress=lambda fraction: None):
    """Look for so long; the number of programs that were run. AssertionError if one fails."""
    start, programs = time.monotonic(), 0
    while time.monotonic() < start + seconds:

        class Counted(Machine):
            def teardown(self):
                nonlocal programs
                programs += 1
                super().teardown()

        run_state_machine_as_test(
            seeded(seed)(Counted),
            settings=settings(
                max_examples=30,
                stateful_step_count=50,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                verbosity=Verbosity.normal,
                phases=(Phase.generate, Phase.shrink),
            ),
        )
        seed += 1
        progress(min(1.0, (time.monotonic() - start) / seconds))
    return programs


def main():
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    arguments = parser.parse_args()
    with tqdm(total=100, unit="%", disable=None) as bar:
        count = search(
            arguments.seconds, arguments.seed, lambda x: bar.update(int(100 * x) - bar.n)
        )
    print(f"seed {arguments.seed}: {count} programs of up to 50 operations, no finding")


if __name__ == "__main__":
    sys.exit(main())

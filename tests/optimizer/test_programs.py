"""What programs do with an optimizer does what they mean, or an error says what to do instead."""

import copy
import functools
import gc
import pickle
import sys
import threading
import tracemalloc
import weakref

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import value_and_grad
from common import assert_same_bits

import rmsprop_c
from rmsprop_c import Optimizer, RMSprop, get, gradients, reference, schedules
from rmsprop_c.presets import PRESETS

# Bound steps and copies


class Trainer:
    """An object as people write it: a model, its gradients, and a step that is bound to them."""

    def __init__(self, make=RMSprop):
        self.params, self.grads = [np.ones(3), np.ones((2, 2))], [np.ones(3), np.ones((2, 2))]
        self.optimizer = make(lr=0.1)
        self.step = self.optimizer.bind(self.params, self.grads)


def test_a_deep_copy_of_what_holds_a_bound_step_trains_itself():
    one, other = Trainer(), None
    one.step()
    other = copy.deepcopy(one)
    before = copy.deepcopy(one.params)
    other.grads[0][...] = 2
    other.step()
    assert [x.tobytes() for x in one.params] == [x.tobytes() for x in before]
    assert (one.optimizer.iterations, other.optimizer.iterations) == (1, 2)
    one.grads[0][...] = 2
    one.step()
    for found, expected in zip(other.params, one.params, strict=True):
        assert_same_bits(found, expected)
    third = copy.deepcopy(other)  # of a copy, too
    third.step()
    assert other.optimizer.iterations == 2


def test_a_bound_step_alone_is_copied_with_its_arrays():
    w, g = np.ones(3), np.ones(3)
    step = RMSprop().bind([w], [g])
    copy.deepcopy(step)()
    assert (w == 1).all()
    assert copy.copy(step) is not None
    copy.copy(step)()
    assert (w != 1).all()


def test_a_bound_step_can_not_be_pickled_and_says_what_to_do():
    with pytest.raises(TypeError, match="pickle the optimizer, and bind again"):
        pickle.dumps(Trainer())


class Doubling(RMSprop):
    """A subclass with a step of its own."""

    def step(self, params, grads):
        super().step(params, [2 * g for g in grads])


@pytest.mark.parametrize("copied", [lambda x: x, copy.deepcopy])
def test_bind_and_the_other_ways_to_step_use_a_subclass_s_own_step(copied):
    trainer = copied(Trainer(Doubling))
    expected = [np.ones(3), np.ones((2, 2))]
    twin = RMSprop(lr=0.1)
    for _ in range(2):
        trainer.step()
        twin.step(expected, [2 * g for g in trainer.grads])
    trainer.optimizer.apply_gradients(zip(trainer.grads, trainer.params, strict=True))
    trainer.optimizer.get_updates(trainer.params, None, lambda params: (0.0, trainer.grads))
    for _ in range(2):
        twin.step(expected, [2 * g for g in trainer.grads])
    for x, y in zip(trainer.params, expected, strict=True):
        assert_same_bits(x, y)


def test_bind_uses_a_step_that_was_set_on_the_instance():
    class Patched(RMSprop):
        pass

    opt, called = Patched(), []
    opt.step = lambda params, grads: called.append((params, grads))
    opt.bind([np.ones(1)], [np.ones(1)])()
    assert len(called) == 1


def test_get_updates_asks_a_subclass_for_its_gradients():
    class Centralized(RMSprop):
        def get_gradients(self, loss, params):
            return [g - g.mean() for g in super().get_gradients(loss, params)]

    w, expected = np.ones(3), np.ones(3)
    g = np.array([1.0, 2.0, 6.0])
    opt = Centralized(lr=0.1)
    opt.get_updates([w], None, lambda params: (7.0, [g]))
    RMSprop(lr=0.1).step([expected], [g - 3])
    assert_same_bits(w, expected)
    assert opt.last_loss == 7


def test_get_updates_uses_gradients_that_were_set_on_the_instance():
    opt, w, expected = RMSprop(), np.ones(2), np.ones(2)
    opt.get_gradients = lambda loss, params: [np.full(2, 0.5)]
    opt.get_updates([w], None, lambda params: (0.0, [np.ones(2)]))
    RMSprop().step([expected], [np.full(2, 0.5)])
    assert_same_bits(w, expected)


# Names


@pytest.mark.parametrize(
    ("framework", "name", "message"),
    [
        (None, "eps", r"^RMSprop has no attribute 'eps'; did you mean epsilon\?"),
        (None, "alpha", r"^RMSprop has no attribute 'alpha'; did you mean rho\?.* torch"),
        (None, "nestrov", r"^RMSprop has no attribute 'nestrov'; did you mean nesterov\?$"),
        (None, "learning_rte", r"did you mean learning_rate\?$"),
        (None, "global_clipnorm", r"did you mean clipnorm\?.* keras3"),
        (None, "weight_deacy", r"did you mean weight_decay\?$"),
        ("tf1", "decay", "^tf1's decay is rho here: assign rho$"),
        ("optax", "decay", "^optax's decay is rho here: assign rho$"),
        ("torch", "alpha", "^torch's alpha is rho here: assign rho$"),
        ("keras3", "clipnorm", "^keras3's clipnorm is parameter_clipnorm here: assign param"),
        ("tf_keras", "clipnorm", "^tf_keras's clipnorm is parameter_clipnorm here"),
    ],
)
@pytest.mark.parametrize(
    "copied", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_name_without_effect_raises_and_says_which_one_is_meant(framework, name, message, copied):
    rate = {"learning_rate": 0.25} if framework in ("tf1", "optax") else {}
    opt = copied(RMSprop() if framework is None else RMSprop.like(framework, **rate))
    before = opt.get_config()
    with pytest.raises(AttributeError, match=message):
        setattr(opt, name, 0.5)
    assert opt.get_config() == before
    assert not hasattr(opt, name) or name in opt.get_config() or getattr(opt, name) != 0.5


def test_keras3s_own_name_of_our_clipnorm_can_be_assigned_where_ours_is_taken():
    opt = RMSprop.like("keras3")
    opt.global_clipnorm = 0.5
    assert (opt.clipnorm, opt.parameter_clipnorm) == (0.5, None)
    opt.global_clipnorm = None
    opt.parameter_clipnorm = 2
    assert opt.get_config()["parameter_clipnorm"] == 2


@pytest.mark.parametrize("framework", PRESETS)
def test_all_other_hyperparameters_of_a_preset_can_be_assigned(framework):
    opt = RMSprop.like(framework, learning_rate=0.25)
    taken = {ours for ours in opt.get_config() if PRESETS[framework].names.get(ours, ours) != ours}
    for name in ("lr", "rho", "epsilon", "momentum", "decay", "use_ema", "clipvalue"):
        if name not in taken and PRESETS[framework].names.get(name, name) in (name, "lr"):
            setattr(opt, name, getattr(opt, name))


def test_attributes_of_ones_own_are_free_where_they_mean_no_hyperparameter():
    opt = RMSprop()
    opt.note = "mine"

    class Mine(RMSprop):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.alpha = 3

    mine = Mine()
    mine.eps = 4
    assert (opt.note, mine.alpha, mine.eps) == ("mine", 3, 4)


@pytest.mark.parametrize(
    "name", ["lr_schedule", "lr_scheduler", "lr0", "lrs", "moments", "scale", "history", "model"]
)
def test_names_of_bookkeeping_are_free(name):
    opt = RMSprop()
    setattr(opt, name, "mine")
    assert getattr(opt, name) == "mine"


def test_a_preset_s_config_can_be_assigned_to_itself():
    for framework in PRESETS:
        opt = RMSprop.like(framework, learning_rate=0.25)
        for name, value in opt.get_config().items():
            setattr(opt, name, value)


def test_last_loss_can_be_set_by_a_subclass():
    class Mine(RMSprop):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.last_loss = 3

    assert Mine().last_loss == 3


def test_zero_grad_can_be_handed_on():
    assert RMSprop(zero_grad=RMSprop(zero_grad=True).zero_grad).zero_grad == 1


def test_zero_grad_is_an_option_that_says_so_when_it_is_called():
    opt = RMSprop()
    assert opt.zero_grad == False  # noqa: E712
    assert repr(opt.zero_grad) == "False"
    with pytest.raises(TypeError, match="zero_grad is an option, not a method"):
        opt.zero_grad()
    opt.zero_grad = True
    assert opt.get_config()["zero_grad"] is True
    assert RMSprop.from_config(opt.get_config()).zero_grad == 1


@pytest.mark.parametrize(
    "given",
    [([np.ones(3)],), ((np.ones(3),),), ({"W": np.ones(3)},), (np.ones(3),), (iter([]),)],
    ids=lambda x: type(x[0]).__name__,
)
def test_parameters_given_to_the_constructor_are_sent_to_step(given):
    for keywords in ({}, {"lr": 0.1}, {"learning_rate": 0.1}):
        with pytest.raises(
            TypeError, match=r"takes hyper-parameters only: .* opt.step\(params, gr"
        ):
            RMSprop(*given, **keywords)


def test_a_subclass_may_take_parameters_in_its_constructor():
    class Mine(RMSprop):
        def __init__(self, params, **arguments):
            super().__init__(**arguments)
            self.build(params)

    assert len(Mine([np.ones(3)], lr=0.5).weights) == 1


# Loading


def test_an_optimizer_loads_in_place_and_the_class_makes_a_new_one(tmp_path):
    path, w, g = tmp_path / "run.npz", np.ones(3), np.full(3, 0.5)
    saved = RMSprop(lr=schedules.ExponentialDecay(0.1, 10, 0.5), momentum=0.5, lr_scale=[2.0])
    saved.step([w], [g])
    saved.save(path)
    twin, twin_w = RMSprop.load(path), w.copy()
    opt = RMSprop(lr=9.0, use_ema=True)
    opt.step([np.ones((2, 2))], [np.ones((2, 2))])
    step = opt.bind([np.ones((2, 2))], [np.ones((2, 2))])
    assert opt.load(path) is opt
    assert opt.get_config() == saved.get_config() == twin.get_config()
    with pytest.raises(ValueError, match="has shape"):
        step()  # what was bound before sees the new state
    opt.step([w], [g])
    twin.step([twin_w], [g])
    assert_same_bits(w, twin_w)
    assert (opt.iterations, saved.iterations) == (2, 1)


def test_a_load_in_place_that_raises_changes_nothing(tmp_path):
    path, opt, w = tmp_path / "run.npz", RMSprop(lr=0.5, momentum=0.5), np.ones(3)
    opt.step([w], [np.ones(3)])
    opt.save(path)
    path.write_bytes(path.read_bytes()[:-30])
    before, weights = opt.get_config(), opt.get_weights()
    for bad in (path, tmp_path / "none.npz"):
        with pytest.raises((ValueError, OSError)):
            opt.load(bad)
    assert opt.get_config() == before
    assert opt.iterations == 1
    for found, expected in zip(opt.get_weights(), weights, strict=True):
        assert_same_bits(found, expected)


def test_a_subclass_loads_the_attributes_of_its_config_in_place(tmp_path):
    class Mine(RMSprop):
        def __init__(self, note="", **arguments):
            super().__init__(**arguments)
            self.note = note

        def get_config(self):
            return {**super().get_config(), "note": self.note}

    Mine("first").save(tmp_path / "run.npz")
    other = Mine("second")
    other.load(tmp_path / "run.npz")
    assert other.note == "first"


def test_a_load_in_place_takes_over_whose_names_the_attributes_have(tmp_path):
    RMSprop(decay=0.5).save(tmp_path / "run.npz")
    opt = RMSprop.like("tf1", learning_rate=0.1)
    opt.load(tmp_path / "run.npz")
    opt.decay = 0.25
    assert opt.get_config()["decay"] == 0.25


def test_a_subclass_s_own_load_loads_in_place_too(tmp_path):
    class Mine(RMSprop):
        @classmethod
        def load(cls, path, custom_objects=None):
            return super().load(path, custom_objects)

    opt = Mine(lr=0.5)
    opt.save(tmp_path / "run.npz")
    other = Mine(lr=0.25)
    assert other.load(tmp_path / "run.npz") is other
    assert other.lr == 0.5
    assert Mine.load(tmp_path / "run.npz").lr == 0.5


def test_a_load_inside_averaged_raises(tmp_path):
    opt, w = RMSprop(use_ema=True), np.ones(3)
    opt.step([w], [np.ones(3)])
    opt.save(tmp_path / "run.npz")
    with opt.averaged([w]), pytest.raises(RuntimeError, match="inside averaged"):
        opt.load(tmp_path / "run.npz")


# What is stored and what is read


def resident():
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def refused(opt, params, grads):
    with pytest.raises(ValueError, match="lr_scale"):
        opt.step(params, grads)


def loaded(opt, params, grads):
    opt.step(params, grads)
    opt._restore(RMSprop()._snapshot())


def reset(opt, params, grads):
    opt.step(params, grads)
    opt.reset()


@pytest.mark.parametrize(
    ("forget", "scale"), [(reset, None), (loaded, None), (refused, [1.0, 2.0])]
)
def test_accumulators_that_are_forgotten_are_freed(forget, scale):
    params, grads = [np.ones(1 << 18)], [np.ones(1 << 18)]
    opt = RMSprop(lr_scale=scale)
    tracemalloc.start()
    try:
        before = resident()
        forget(opt, params, grads)
        assert resident() - before < 1 << 18
    finally:
        tracemalloc.stop()


def test_a_schedule_that_assigns_lr_keeps_what_it_assigned():
    w, g, opt = np.ones(1), np.ones(1), None

    def last(call):
        opt.lr = 0.25
        return 0.5

    opt = RMSprop(lr=last)
    opt.step([w], [g])
    assert opt.lr == 0.25
    twin, expected = RMSprop(lr=0.5), np.ones(1)
    twin.step([expected], [g])
    assert_same_bits(w, expected)
    twin.lr = 0.25
    for one, array in ((opt, w), (twin, expected)):
        one.step([array], [g])
    assert_same_bits(w, expected)


class Key:
    """A key of a model that does something when it is compared."""

    def __init__(self, name):
        self.name, self.then = name, lambda: None

    def __hash__(self):
        return 0

    def __eq__(self, other):
        then, self.then = self.then, lambda: None
        then()
        return self is other


def test_an_lr_scale_that_is_set_while_the_old_one_is_resolved_is_used():
    first, second = Key("a"), Key("b")
    params = {first: np.ones(2), second: np.ones(2)}
    grads = {first: np.ones(2), second: np.ones(2)}
    opt = RMSprop(lr=0.5, lr_scale={first: 2.0})
    opt.build(params)

    def assign():
        opt.lr_scale = {second: 4.0}

    first.then = assign  # a lookup compares the keys of one hash
    opt.step(params, grads)
    expected = {"a": np.ones(2), "b": np.ones(2)}
    RMSprop(lr=0.5, lr_scale={"b": 4.0}).step(expected, {"a": np.ones(2), "b": np.ones(2)})
    assert_same_bits(params[first], expected["a"])
    assert_same_bits(params[second], expected["b"])


@pytest.mark.parametrize("bad", ["iterations", "calls", "skipped_steps", "slots", "pending"])
def test_a_state_that_can_not_be_taken_leaves_the_optimizer_usable(bad):
    opt, w = RMSprop(), np.ones(3)
    opt.step([w], [np.ones(3)])
    state = opt._snapshot()
    with pytest.raises((TypeError, ValueError, KeyError)):
        opt._restore(state._replace(**{bad: {"nothing": 1} if bad == "slots" else "x"}))
    opt.step([w], [np.ones(3)])
    assert opt.iterations == 2


class Poisoned:
    """Memory that is filled with NaN when the last array over it has gone."""

    def __init__(self, values):
        self.values = values.copy()
        self.__array_interface__ = self.values.__array_interface__

    def __del__(self):
        self.values[...] = np.nan


class Fleeting(dict):
    """A dict that makes its arrays when they are asked for."""

    def __getitem__(self, key):
        return np.asarray(Poisoned(super().__getitem__(key)))


@pytest.mark.parametrize("size", [1, 2000, 40_000])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "nonfinite": "raise"}])
def test_gradients_that_only_the_step_holds_live_until_it_ends(size, options):
    w, g = np.ones(size), np.full(size, 0.5)
    expected = {"W": w.copy()}
    params, grads = {"W": w}, Fleeting(W=g)
    opt, twin = RMSprop(**options), RMSprop(**options)
    for _ in range(2):
        opt.step(params, grads)
        twin.step(expected, {"W": g})
    step = opt.bind(params, grads)
    step()
    twin.step(expected, {"W": g})
    assert_same_bits(w, expected["W"])


def test_a_number_as_gradient_of_a_bare_parameter():
    w = np.array(2.0)
    RMSprop(lr=0.1).step(w, np.float64(0.5))
    assert f"{w:.3f}" == "1.684"


def test_a_gradient_is_let_go_of_after_the_step():
    g = np.ones(2000)
    gone = weakref.ref(g)
    RMSprop().step({"W": np.ones(2000)}, {"W": g})
    del g
    assert gone() is None


def test_lr_may_become_a_number_while_another_thread_steps_with_a_schedule():
    """With a switch interval of a microsecond the schedule was None in the middle of its call."""
    opt, w, g, errors = RMSprop(), np.ones(3), np.ones(3), []
    stop = threading.Event()

    def schedule(call):
        return 0.001

    def run(work):
        try:
            while not stop.is_set():
                work()
        except Exception as error:
            errors.append(error)

    def assign():
        opt.lr = schedule
        opt.lr = 0.001

    def look():
        assert opt.lr == 0.001
        repr(opt)

    threads = [
        threading.Thread(target=run, args=(f,)) for f in (assign, look, lambda: opt.step([w], [g]))
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        stop.wait(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not errors


# get_updates


def counted():
    calls = []

    def loss(params, batch):
        calls.append(batch)
        return anp.sum(params[0] ** 2) * batch

    return loss, calls


def renewed(loss, i):
    return lambda params: loss(params, float(i))


def partial(loss, i):
    return functools.partial(loss, batch=float(i))


class Model:
    """A loss that is an object, new for each batch."""

    def __init__(self, loss, i):
        self.loss, self.i = loss, i

    def __call__(self, params):
        return self.loss(params, float(self.i))


@pytest.mark.parametrize("make", [renewed, partial, Model, lambda loss, i: Model(loss, i).__call__])
def test_a_loss_that_is_new_at_each_step_is_evaluated_once_a_step(make):
    loss, calls = counted()
    opt, w = RMSprop(lr=0.1), np.ones(3)
    for i in range(5):
        opt.get_updates([w], None, make(loss, i))
        opt.get_gradients(make(loss, i), [w])
    assert calls == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]


def squares(params):
    return anp.sum((params[0] - 1) ** 2)


def differentiated(params):
    value, grads = value_and_grad(squares)(params)
    return float(value), grads


def by_hand(params):
    return float(anp.sum(params[0] ** 2)), [2 * params[0]]


BUFFER = np.empty(3)


def through_a_buffer(params):
    BUFFER[...] = params[0]
    pair = float(anp.sum(BUFFER**2)), [2 * BUFFER]
    return pair


@pytest.mark.parametrize("loss", [differentiated, by_hand, through_a_buffer])
def test_a_pair_may_be_computed_with_autograd_numpy(loss):
    w = np.array([1.0, 2.0, 3.0])
    expected = loss([w.copy()])[1][0].copy()
    for _ in range(2):
        (found,) = RMSprop().get_gradients(loss, [w])
        assert_same_bits(found, expected)


def test_an_error_of_a_scalar_loss_is_its_own():
    def loss(params):
        raise KeyError(f"mine, {anp.sum(params[0])}")

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            RMSprop().get_gradients(loss, [np.ones(3)])


def test_a_loss_that_names_much_costs_no_search_at_each_step(monkeypatch):
    looked = []
    monkeypatch.setattr(gradients, "_names_autograd", lambda loss: looked.append(loss) or False)
    opt, w = RMSprop(), np.ones(3)
    for _ in range(5):
        opt.get_updates([w], None, lambda params: [1.0, [np.ones(3)]].__class__ and pair(params))
    assert len(looked) <= 1


def pair(params):
    return 1.0, [np.ones(3)]


def test_a_long_chain_of_functions_is_no_recursion():
    namespace = {"anp": anp}
    exec("def f0(p): return 1.5", namespace)
    for i in range(1, 3000):
        exec(f"def f{i}(p): return f{i - 1}", namespace)
    namespace["np"] = np
    exec("def loss(p):\n    f2999\n    x = 1.0, [np.ones(3)]\n    return x", namespace)
    RMSprop().get_updates([np.ones(3)], None, namespace["loss"])


def test_one_function_may_return_either_kind():
    g = np.full(3, 0.5)

    def make(scalar):
        return lambda params: anp.sum(params[0] * 0.5) if scalar else (1.5, [g])

    for scalar in (True, False, False, True, True, False):
        (found,) = RMSprop().get_gradients(make(scalar), [np.ones(3)])
        assert_same_bits(found, g)


@pytest.mark.parametrize(
    "call",
    [
        lambda opt, loss, params: opt.get_updates(params, None, loss),
        lambda opt, loss, params: opt.get_updates(loss, params),
        lambda opt, loss, params: opt.get_updates(params, loss),
        lambda opt, loss, params: opt.get_updates(loss=loss, params=params),
        lambda opt, loss, params: opt.get_updates(params=params, constraints=None, loss=loss),
        lambda opt, loss, params: opt.get_updates(params, loss=loss),
        lambda opt, loss, params: opt.get_updates(loss, params=params),
        lambda opt, loss, params: opt.get_updates(loss, params, [None]),
    ],
)
def test_get_updates_takes_the_order_of_every_keras(call):
    w, expected, g = np.ones(3), np.ones(3), np.full(3, 0.5)
    call(RMSprop(), lambda params: (0.0, [g]), [w])
    RMSprop().step([expected], [g])
    assert_same_bits(w, expected)


@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        ((), {}, "misses params"),
        (([np.ones(1)],), {}, "misses loss"),
        (([np.ones(1)], None, abs, 4), {}, "got 4"),
        ((abs, [np.ones(1)]), {"loss": abs}, "got loss twice"),
        ((abs, [np.ones(1)]), {"lr": 1}, "unexpected keyword argument 'lr'"),
    ],
)
def test_other_arguments_of_get_updates_raise(args, keywords, message):
    with pytest.raises(TypeError, match=message):
        RMSprop().get_updates(*args, **keywords)


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (0.0, ValueError, r"returned shape \(\), but its parameter has shape \(3,\)"),
        (np.ones(1), ValueError, r"returned shape \(1,\), but"),
        (np.ones((1, 3)), ValueError, r"returned shape \(1, 3\), but"),
        (np.ones(3) * 1j, TypeError, "returned dtype complex128, but its parameter has dtype flo"),
        (np.array(["a"] * 3), TypeError, "returned dtype <U1, but"),
    ],
)
def test_what_a_constraint_returns_is_not_broadcast(form, returned, error, message):
    w, name = np.ones(3), 0 if form == "list" else "W"
    params = [w] if form == "list" else {"W": w}
    grads = [np.ones(3)] if form == "list" else {"W": np.ones(3)}
    with pytest.raises(error, match=rf"^constraints\[{name!r}\] {message}"):
        RMSprop(lr=0.5).get_updates(params, {name: lambda w: returned}, lambda p: (0.0, grads))
    assert (w == w[0]).all()
    assert w[0] not in (0.0, 1.0)  # the update was made


@pytest.mark.parametrize("call", ["get_updates", "get_gradients"])
@pytest.mark.parametrize(
    ("params", "name"), [([[np.ones(2), np.ones(3)]], "0"), ({"a": {"b": np.ones(2)}}, "'a'")]
)
def test_nested_parameters_raise_by_name(call, params, name):
    def loss(params):
        raise AssertionError("the loss was called")

    arguments = {"params": params, "loss": loss}
    with pytest.raises(TypeError, match=rf"^params\[{name}\] is of type (list|dict), not a NumPy"):
        getattr(RMSprop(), call)(**arguments)


# Arrays


WINDOW = np.lib.stride_tricks.sliding_window_view
AS_STRIDED = np.lib.stride_tricks.as_strided
OVERLAPPING = {
    "a sliding window": lambda: WINDOW(np.ones(5), 2, writeable=True),
    "a window of two dimensions": lambda: WINDOW(np.ones((4, 4)), (2, 2), writeable=True),
    "strides that meet": lambda: AS_STRIDED(np.ones(20), (4, 3), (16, 24)),
    "half an element apart": lambda: AS_STRIDED(np.ones(20), (4,), (4,)),
    "backwards": lambda: WINDOW(np.ones(5), 2, writeable=True)[::-1, ::-1],
}
APART = {
    "columns": lambda: np.ones((4, 6))[:, ::2],
    "strides that interleave": lambda: AS_STRIDED(np.ones(40), (2, 3), (24, 16)),
    "transposed and reversed": lambda: np.ones((3, 4, 5)).transpose(2, 0, 1)[::-1, :, ::-2],
    "empty": lambda: AS_STRIDED(np.ones(4), (0, 3), (0, 0)),
    "of one element": lambda: AS_STRIDED(np.ones(4), (1, 1), (0, 0)),
}


@pytest.mark.parametrize("what", OVERLAPPING)
def test_a_parameter_that_overlaps_itself_raises(what):
    w = OVERLAPPING[what]()
    before = w.copy()
    with pytest.raises(ValueError, match=r"^params\[1\] overlaps itself"):
        RMSprop().step([np.ones(1), w], [np.ones(1), np.ones(w.shape)])
    assert_same_bits(w, before)
    with pytest.raises(ValueError, match=r"^grads\[0\] is read-only or overlaps itself"):
        RMSprop(zero_grad=True).step([np.ones(w.shape)], [w])
    RMSprop().step([np.ones(w.shape)], [w])  # it is only read there


@pytest.mark.parametrize("what", APART)
def test_a_parameter_whose_elements_are_apart_is_updated(what):
    w = APART[what]()
    expected, g = w.copy(), np.random.default_rng(0).standard_normal(w.shape)
    RMSprop().step([w], [g])
    RMSprop().step([expected], [g])
    assert_same_bits(w, expected)


class ByArray:
    """A foreign array that NumPy reads through `__array__`, as those of JAX and pandas."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


class ByInterface:
    """Through the array interface."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


ByInterface.__array_interface__ = None  # the class has to have it


class ByDLPack:
    """Through DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("foreign", [ByArray, ByInterface, ByDLPack])
@pytest.mark.parametrize("form", ["list", "dict", "bare"])
@pytest.mark.parametrize("size", [3, 40_000])
def test_gradients_of_other_libraries_are_read(foreign, form, size):
    w, g = np.ones(size, np.float32), np.linspace(-1, 1, size, dtype=np.float32)
    expected = w.copy()
    opt, twin = RMSprop(clipnorm=0.5), RMSprop(clipnorm=0.5)
    forms = {"list": lambda x: [x], "dict": lambda x: {"W": x}, "bare": lambda x: x}
    params, grads = forms[form](w), forms[form](foreign(g))
    for _ in range(2):
        opt.step(params, grads)
        twin.step([expected], [g])
    opt.bind(params, grads)()
    twin.step([expected], [g])
    assert_same_bits(w, expected)
    clipped = opt.get_gradients(lambda p: (0.0, grads), params)
    (like,) = reference.clip([g], 0.5, None, None)
    found = clipped if form == "bare" else clipped["W" if form == "dict" else 0]
    assert_same_bits(found, like)


class Unreadable:
    """What some libraries' arrays do on another device."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("it is on a GPU")


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (
            Unreadable(),
            TypeError,
            r"^grads\[1\], of type Unreadable, can't be read by NumPy: it is",
        ),
        (ByArray(np.ones(2)), TypeError, r"^grads\[1\] has dtype float64, but params\[1\] has dty"),
        (ByArray(np.ones(3, np.float32)), ValueError, r"^grads\[1\] has shape \(3,\), but params"),
        ([1.0, 2.0], TypeError, r"^grads\[1\] is of type list, not a NumPy array"),
        (0.5, TypeError, r"^grads\[1\] is of type float, not a NumPy array"),
        (
            np.ones(2, int),
            TypeError,
            r"params\[1\] has dtype float32; convert it with astype\(np.f",
        ),
        (np.ones(2, np.float16), TypeError, r"has dtype float16, but .*astype\(np.float32\)$"),
        (np.array(["a", "b"]), TypeError, r"^grads\[1\] has dtype <U1, but .* dtype float32$"),
        (np.array([1, None]), TypeError, r"^grads\[1\] has dtype object, but .* dtype float32$"),
    ],
)
@pytest.mark.parametrize("call", ["step", "bind", "get_gradients"])
def test_a_gradient_that_can_not_be_used_is_named_and_the_model_is_not_blamed(
    gradient, error, message, call
):
    params = [np.ones(2, np.float32), np.ones(2, np.float32)]
    grads = [np.ones(2, np.float32), gradient]
    opt = RMSprop(clipvalue=1)
    calls = {
        "step": lambda: opt.step(params, grads),
        "bind": lambda: opt.bind(params, grads),
        "get_gradients": lambda: opt.get_gradients(lambda p: (0.0, grads), params),
    }
    with pytest.raises(error, match=message) as raised:
        calls[call]()
    assert "model" not in str(raised.value)
    assert (np.array(params) == 1).all()


def test_zero_grad_clears_no_copy_of_a_foreign_gradient():
    with pytest.raises(
        TypeError, match=r"^grads\[0\] is of type ByArray, which zero_grad can't cl"
    ):
        RMSprop(zero_grad=True).step([np.ones(2)], [ByArray(np.ones(2))])


@pytest.mark.parametrize("number", [0.5, np.float64(0.5), 1])
@pytest.mark.parametrize("form", [lambda x: [x], lambda x: {"b": x}, lambda x: x])
def test_a_number_as_parameter_is_told_what_to_be(number, form):
    with pytest.raises(TypeError, match=r"^params.* a number that can't be .* np.zeros\(\(\)\)$"):
        RMSprop().step(form(number), form(np.array(1.0)))


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 2 has them")
def test_text_of_numpy_2_is_named_too():
    text = np.array(["a", "b"], np.dtypes.StringDType())
    with pytest.raises(TypeError, match=r"^params\[0\] has dtype StringDType\(\)"):
        RMSprop().step([text], [np.ones(2)])
    with pytest.raises(TypeError, match=r"^grads\[0\] has dtype StringDType\(\)"):
        RMSprop().step([np.ones(2)], [text])


def test_a_dict_without_a_key_lists_those_it_has():
    w = {"W": np.ones(2), "b": np.ones(1)}
    with pytest.raises(ValueError, match=r"^grads has no key 'b', only \['W', 'c'\]; pass None"):
        RMSprop().step(w, {"W": np.ones(2), "c": np.ones(1)})


def test_another_model_of_the_same_positions_is_told_what_to_do():
    opt = RMSprop()
    opt.step([np.ones(3)], [np.ones(3)])
    with pytest.raises(ValueError, match=r"all parameters of a model in one call.* another optimi"):
        opt.step([np.ones(4)], [np.ones(4)])


# Keras after 2.0


def test_an_epsilon_of_none_is_that_of_keras_after_2_0():
    assert RMSprop(epsilon=None).epsilon == 1e-7
    assert RMSprop.from_config({"lr": 0.1, "epsilon": None}).get_config()["epsilon"] == 1e-7
    opt = RMSprop()
    opt.epsilon = None
    assert opt.epsilon == 1e-7


TF_KERAS = {
    "name": "RMSprop",
    "learning_rate": 0.01,
    "decay": 0.0,
    "rho": 0.8,
    "momentum": 0.5,
    "epsilon": 1e-7,
    "centered": True,
}
KERAS_3 = {
    "name": "rmsprop",
    "learning_rate": 0.01,
    "weight_decay": None,
    "clipnorm": 1.0,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "rho": 0.8,
    "momentum": 0.0,
    "epsilon": 1e-7,
    "centered": False,
}


@pytest.mark.parametrize(("framework", "config"), [("tf_keras", TF_KERAS), ("keras3", KERAS_3)])
def test_a_later_config_is_sent_to_like_which_takes_it(framework, config):
    message = rf"Unexpected keyword.*: use RMSprop.like\('{framework}', \*\*config\)$"
    with pytest.raises(TypeError, match=message):
        RMSprop.from_config(config)
    with pytest.raises(TypeError, match=message):
        get({"class_name": "RMSprop", "config": config})
    opt = RMSprop.like(framework, **config)
    assert (opt.lr, opt.rho, opt.momentum) == (0.01, 0.8, config["momentum"])


@pytest.mark.parametrize("framework", PRESETS)
def test_like_takes_a_serialized_schedule(framework):
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5)
    opt = RMSprop.like(framework, learning_rate=schedules.serialize(schedule))
    assert opt.get_config()["lr"] == schedules.serialize(schedule)
    assert opt.lr == 0.1


# The package


def test_integrations_load_when_they_are_asked_for():
    assert rmsprop_c.scipy.rmsprop.__module__ == "rmsprop_c.scipy"
    assert rmsprop_c.sklearn.MLPClassifier is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rmsprop_c.nothing  # noqa: B018


def test_no_folder_of_a_checkpoint_is_named_as_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        RMSprop().save(tmp_path / "none" / "run.npz")
    assert raised.value.filename == str(tmp_path / "none" / "run.npz")
    assert ".part" not in str(raised.value)
    assert str(raised.value).endswith("run.npz'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: b"", "it is not a file that save wrote$"),
        (lambda text: b"hello", "it is not a file that save wrote$"),
        (lambda text: text[:20], "it was cut off: it ends too early$"),
        (lambda text: text[:-200], "it was cut off: it ends too early$|should have .* cut off"),
        (lambda text: text[:-5], "it was cut off: it ends too early$"),
    ],
)
def test_a_foreign_or_cut_checkpoint_is_called_that(change, message, tmp_path):
    path, opt = tmp_path / "run.npz", RMSprop()
    opt.step([np.ones(3)], [np.ones(3)])
    opt.save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        RMSprop.load(path)
    assert "meta" not in str(raised.value)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"state": {0: {"square_avg": np.ones(3)}}}, ValueError, "parameter 0 has no step, only"),
        ({"state": {0: {"step": "x", "square_avg": np.ones(3)}}}, ValueError, "step .* is 'x'"),
        ({"state": {0: {"step": 1.5, "square_avg": np.ones(3)}}}, ValueError, "whole number"),
        ({"state": []}, TypeError, r"state\['state'\] is of type list"),
        ({"state": {0: []}}, TypeError, "state of parameter 0 is of type list"),
        ({"state": {}, "param_groups": [{}]}, ValueError, "has no params"),
    ],
)
def test_an_incomplete_state_of_torch_is_named(state, error, message):
    opt = RMSprop()
    opt.build([np.ones(3)])
    with pytest.raises(error, match=message):
        opt.import_state("torch", {"param_groups": [{"params": [0]}], **state})
    assert opt.iterations == 0


def test_a_state_of_keras_without_a_count_is_named():
    opt = RMSprop()
    opt.build([np.ones(3)])
    with pytest.raises(
        ValueError, match=r"^state\[0\], the iterations, is 'a'; it must be a whole"
    ):
        opt.import_state("keras3", ["a", 0.1, np.ones(3)])


def test_the_base_class_can_still_be_derived_from():
    class Mine(Optimizer):
        pass

    Mine(clipnorm=1.0).step([np.ones(1)], [np.ones(1)])

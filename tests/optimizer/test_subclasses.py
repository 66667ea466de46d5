"""Subclasses, bound steps in copies, and names that may be assigned."""

import copy
import pickle

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop
from rmsprop_c.presets import PRESETS


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

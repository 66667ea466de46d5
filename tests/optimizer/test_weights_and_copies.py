"""Weights, copies, build, reset, bind and apply_gradients."""

import copy
import pickle

import numpy as np
import pytest
from common import assert_same_bits
from small_model import ALL_OPTIONS, KEYS, Doubled, all_grads, as_form, by_reference, model, same

from rmsprop_c import RMSprop

COPIES = {
    **{
        f"pickle {protocol}": (lambda opt, p=protocol: pickle.loads(pickle.dumps(opt, p)))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("form", ["list", "dict", "fortran"])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_copy_continues_with_the_same_bits_and_shares_nothing(make_copy, form, steps_before):
    order = "F" if form == "fortran" else "C"
    params, grads = model(0, order), all_grads(6, order)
    opt = RMSprop(**ALL_OPTIONS)
    for g in grads[:steps_before]:
        opt.step(as_form(params, form), as_form(g, form))
    twin, twin_params = make_copy(opt), [p.copy(order="K") for p in params]
    assert type(twin) is RMSprop
    assert twin.get_config() == opt.get_config()
    assert twin.iterations == opt.iterations == steps_before
    assert [w.strides for w in twin.weights] == [w.strides for w in opt.weights]
    for mine, other in zip(twin.weights, opt.weights, strict=True):
        assert not np.shares_memory(mine, other)
    for g in grads[steps_before:]:
        opt.step(as_form(params, form), as_form(g, form))
    weights = opt.get_weights()
    for g in grads[steps_before:]:
        twin.step(as_form(twin_params, form), as_form(g, form))
    same(twin_params, params)
    same(twin.weights, weights)
    same(opt.weights, weights)
    same(params, by_reference(model(0, order), grads, **ALL_OPTIONS)[0])


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_dicts_optimizer_still_goes_by_key(make_copy):
    opt, params, grads = RMSprop(), as_form(model(), "dict"), as_form(model(1), "dict")
    opt.step(params, grads)
    twin = make_copy(opt)
    twin_params = {key: params[key].copy() for key in reversed(KEYS)}
    twin.step(twin_params, grads)
    opt.step(params, grads)
    same([twin_params[key] for key in KEYS], params.values())
    with pytest.raises(TypeError, match="built for a dict"):
        twin.step(model(), model(1))


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("when", ["new", "built", "stepped"])
def test_a_copy_of_a_subclass_keeps_its_attributes(make_copy, when):
    opt = Doubled(factor=5, lr=0.5, clipvalue=None, clipnorm=3)
    opt.history.append("here")
    if when == "built":
        opt.build(model())
    elif when == "stepped":
        opt.get_updates(model(), None, lambda _: (0.25, model(1)))
    twin = make_copy(opt)
    assert type(twin) is Doubled
    assert vars(twin) == vars(opt)
    assert (twin.history is opt.history) == (make_copy is copy.copy)
    assert twin.last_loss == opt.last_loss == (0.25 if when == "stepped" else None)
    assert twin.get_config() == opt.get_config()
    same(twin.weights, opt.weights)


def test_copies_have_hyperparameters_of_their_own():
    opt = RMSprop(lr=0.5)
    twin = copy.copy(opt)
    twin.lr, twin.iterations = 0.25, 9
    assert (opt.lr, opt.iterations) == (0.5, 0)


def test_there_are_no_weights_before_the_first_step():
    opt = RMSprop()
    assert opt.get_weights() == opt.weights == []
    with pytest.raises(ValueError, match=r"call build\(params\) or step first$"):
        opt.set_weights([])
    opt.build([])
    opt.set_weights([])
    assert opt.get_weights() == []


def test_weights_are_the_accumulators_in_the_order_of_the_parameters():
    opt, grads = RMSprop(), all_grads(2)
    params = model()
    for g in grads:
        opt.step(params, g)
    same(opt.get_weights(), by_reference(model(), grads)[1])
    same(opt.weights, opt.get_weights())


def test_get_weights_returns_copies():
    opt = RMSprop()
    opt.step(model(), model(1))
    before = opt.get_weights()
    for w in opt.get_weights():
        w[...] = 0
        assert w.flags.writeable
    same(opt.get_weights(), before)


def test_weights_are_read_only_and_live_views():
    opt, params = RMSprop(), model()
    opt.step(params, model(1))
    views, before = opt.weights, opt.get_weights()
    assert not any(w.flags.writeable for w in views)
    opt.step(params, model(2))
    same(views, opt.get_weights())
    assert all((v != b).any() for v, b in zip(views, before, strict=True))
    opt.set_weights(before)
    same(views, before)


@pytest.mark.parametrize("way", ["set_weights", "assignment"])
@pytest.mark.parametrize("count", [None, 0, 12, np.int64(12), np.array(12), 2**62], ids=repr)
@pytest.mark.parametrize("container", [list, tuple, iter])
def test_weights_with_or_without_iterations_can_be_set(way, count, container):
    source = RMSprop()
    source.step(model(), model(1))
    weights = source.get_weights()
    opt = RMSprop(decay=0.5)
    opt.step(model(), model(2))
    given = container(weights if count is None else [count, *weights])
    if way == "assignment":
        opt.weights = given
    else:
        opt.set_weights(given)
    same(opt.weights, weights)
    assert opt.iterations == (1 if count is None else int(count))


def test_weights_can_be_set_before_the_first_step():
    grads, params = all_grads(4), model()
    opt = RMSprop(**ALL_OPTIONS)
    for g in grads[:2]:
        opt.step(params, g)
    later = RMSprop(**ALL_OPTIONS)
    later.build(params)
    assert [w.any() for w in later.weights] == [False] * 3
    later.set_weights([opt.iterations, *opt.get_weights()])
    for g in grads[2:]:
        later.step(params, g)
    same(params, by_reference(model(), grads, **ALL_OPTIONS)[0])


def test_set_weights_copies_and_converts():
    opt = RMSprop()
    opt.build([np.ones((2, 2), order="F"), np.ones(2, np.float32)])
    mine = np.array([[1.0, 2.0], [3.0, 4.0]])
    opt.set_weights([mine, [0.1, 7]])
    mine[...] = 0
    same(opt.weights, [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.1, 7], np.float32)])


def test_weights_can_be_set_from_the_live_weights_in_another_order():
    opt = RMSprop()
    opt.step([np.ones(3), np.ones(3)], [np.full(3, 1.0), np.full(3, 2.0)])
    before = opt.get_weights()
    opt.weights = opt.weights[::-1]
    same(opt.weights, before[::-1])


def test_weights_of_an_overlapping_view_are_set_as_they_were():
    opt = RMSprop()
    opt.step([np.ones(5)], [np.arange(5.0)])
    before = opt.get_weights()[0]
    opt.set_weights([opt.weights[0][::-1]])
    assert_same_bits(opt.weights[0], before[::-1])


@pytest.mark.parametrize("meanwhile", ["nothing", "another model", "a model without momentum"])
def test_weights_are_not_set_into_a_model_that_another_thread_has_put_there(meanwhile):
    """Between the check of the shapes and the setting, where no lock is held."""

    class Interrupted(RMSprop):
        def _assign(self, slots, *counters):
            self.reset()
            if meanwhile == "another model":
                self.step(model()[::-1], model(1)[::-1])
            elif meanwhile == "a model without momentum":
                self.momentum = 0.0
                self.step(model(), model(1))
            super()._assign(slots, *counters)

    opt = Interrupted(momentum=0.5)
    opt.step(model(), model(1))
    fresh = [np.full_like(w, 7) for w in opt.weights]
    with pytest.raises(RuntimeError, match=r"^another thread has rebuilt the optimizer meanwhile$"):
        opt.set_weights(fresh)
    assert not any((w == 7).any() for w in opt.weights)
    opt.reset()
    opt.step(model(), model(1))
    assert opt.iterations == 1


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
def test_build_makes_zero_accumulators_and_only_reads(form):
    forms = {"list": model(), "dict": as_form(model(), "dict"), "bare": model()[0]}
    opt = RMSprop()
    opt.build(forms[form])
    expected = [np.zeros_like(p) for p in (model()[:1] if form == "bare" else model())]
    same(opt.weights, expected)
    assert opt.iterations == 0
    found = {"dict": lambda x: x.values(), "bare": lambda x: [x]}.get(form, list)(forms[form])
    same(found, model()[: len(expected)])


def test_build_keeps_the_state_of_a_model_that_fits():
    opt = RMSprop()
    opt.step(model(), model(1))
    before = opt.get_weights()
    opt.build(model(5))
    same(opt.weights, before)
    assert opt.iterations == 1


@pytest.mark.parametrize("stage", ["first", "again"])
def test_build_takes_read_only_parameters_since_it_only_reads(stage):
    opt, params = RMSprop(), model()
    if stage == "again":
        opt.build(params)
    for p in params:
        p.flags.writeable = False
    opt.build(params)
    assert len(opt.weights) == 3


def test_reset_forgets_accumulators_and_count_and_the_model():
    opt = RMSprop(**ALL_OPTIONS)
    opt.step(model(), model(1))
    views, before = opt.weights, opt.get_weights()
    opt.reset()
    assert (opt.iterations, opt.get_weights()) == (0, [])
    assert opt.get_config() == ALL_OPTIONS
    same(views, before)
    other, g = {"x": np.ones(3, np.float32)}, np.full(3, 0.5, np.float32)
    opt.step(other, {"x": g})
    same(other.values(), by_reference([np.ones(3, np.float32)], [[g]], **ALL_OPTIONS)[0])


def test_a_bound_step_goes_on_after_reset():
    opt, params, grads = RMSprop(), model(), model(1)
    step = opt.bind(params, grads)
    step()
    opt.reset()
    step()
    expected, _ = by_reference(model(), [grads])
    same(params, by_reference(expected, [grads])[0])
    assert opt.iterations == 1


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "bare"])
def test_a_bound_step_is_a_step_on_these_very_arrays(form):
    make = {
        "list": list,
        "tuple": tuple,
        "dict": lambda x: as_form(x, "dict"),
        "bare": lambda x: x[0],
    }[form]
    params, grads, opt = model(), model(1), RMSprop(**ALL_OPTIONS)
    bound_params, bound_grads = make(params), make(grads)
    step = opt.bind(bound_params, bound_grads)
    assert opt.iterations == 0
    same(params, model())
    if form in ("list", "dict"):
        bound_params.clear()
        bound_grads.clear()
    history = []
    for t in range(3):
        for g, new in zip(grads, model(1 + t), strict=True):
            g[...] = new
        history.append(model(1 + t)[: 1 if form == "bare" else 3])
        assert step() is None
    expected = by_reference(model()[: 1 if form == "bare" else 3], history, **ALL_OPTIONS)[0]
    same(params[: len(expected)], expected)
    assert opt.iterations == 3


def test_a_bound_step_keeps_its_arrays_and_its_optimizer():
    params, grads = model(), model(1)
    first = params[0]
    step = RMSprop().bind(params, grads)
    del params, grads
    step()
    assert (first != model()[0]).any()


def test_apply_gradients_is_a_step_from_pairs():
    params, grads = model(), all_grads(2)
    opt = RMSprop(**ALL_OPTIONS)
    opt.apply_gradients(zip(grads[0], params, strict=True))
    opt.apply_gradients([list(pair) for pair in zip(grads[1], params, strict=True)])
    same(params, by_reference(model(), grads, **ALL_OPTIONS)[0])


def test_apply_gradients_passes_over_none():
    params = model()
    RMSprop().apply_gradients([(None, params[0]), (model(1)[1], params[1]), (None, params[2])])
    same(params, by_reference(model(), [[None, model(1)[1], None]])[0])

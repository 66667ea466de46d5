"""Moving averages of the parameters."""

import copy
import pickle
import re

import numpy as np
import pytest
from common import LAYOUTS, layouts, place
from option_sets import (
    OPTION_SETS,
    as_form,
    copied,
    everything,
    memory,
    model,
    run,
    same,
)

from rmsprop_c import RMSprop, reference

AVERAGED = {"use_ema": True, "ema_momentum": 0.75, "lr": 0.1}


def averaged_model(form, steps=3, **more):
    """An optimizer that has averages, its arrays and their averages."""
    params, grads = model("mixed", steps, 7)
    arrays = params[:1] if form == "bare" else params
    opt, given = RMSprop(**AVERAGED, **more), as_form(arrays, form)
    for g in grads:
        opt.step(given, as_form(g, form))
    return opt, given, arrays, [view.copy() for view in opt._views()["moving_average"]]


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "bare"])
def test_averaged_shows_the_averages_and_restores_the_bits(form):
    opt, params, arrays, averages = averaged_model(form)
    before = memory(arrays), everything(opt)
    with opt.averaged(params) as nothing:
        assert nothing is None
        same(arrays, averages)
        assert memory(arrays) != before[0]
        assert everything(opt) == before[1]
    assert (memory(arrays), everything(opt)) == before
    if form == "dict":
        turned = dict(reversed(params.items()))
        with opt.averaged(turned):
            same(arrays, averages)
        assert memory(arrays) == before[0]


def test_averages_are_the_references():
    arguments = OPTION_SETS["keras 3"] | AVERAGED
    params, grads = model("float32", 7, 1)
    opt, expected = RMSprop(**arguments), copied(params)
    oracle = reference.RMSprop(expected, **arguments)
    for g in grads:
        run(opt, params, oracle, expected, [g])
        with opt.averaged(params):
            same(params, oracle.moving_averages)
    opt.finalize_variable_values(params)
    same(params, oracle.moving_averages)


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
@pytest.mark.parametrize("ending", ["raise", "return", "changed"])
def test_averaged_restores_whatever_the_body_does(ending, form):
    opt, params, arrays, _ = averaged_model(form)
    before = memory(arrays), everything(opt)

    def body():
        with opt.averaged(params):
            for x in arrays:
                x[...] = np.nan if ending == "changed" else x
            if ending == "raise":
                raise ZeroDivisionError("in the body")
            if ending == "return":
                return
        if isinstance(params, list):
            assert memory(params) == before[0]

    if ending == "raise":
        with pytest.raises(ZeroDivisionError, match="in the body"):
            body()
    else:
        body()
    assert (memory(arrays), everything(opt)) == before
    opt.step(params, copy.deepcopy(params))


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
def test_what_would_be_lost_inside_averaged_is_refused(form):
    opt, params, arrays, averages = averaged_model(form)
    grads = copy.deepcopy(params)
    bound = opt.bind(params, grads)
    state = everything(opt)
    before = memory(arrays)
    with opt.averaged(params):
        for call in (
            lambda: opt.step(params, grads),
            bound,
            lambda: opt.bind(params, grads),
            lambda: opt.get_updates(params, None, lambda _: (0.0, grads)),
            lambda: opt.finalize_variable_values(params),
            lambda: opt.averaged(params).__enter__(),
        ):
            with pytest.raises(RuntimeError, match=r"averaged\(\)"):
                call()
            assert everything(opt) == state
        same(arrays, averages)
        opt.get_gradients(lambda _: (0.0, grads), params)
        assert copy.deepcopy(opt).weights
    assert memory(arrays) == before
    bound()
    with opt.averaged(params):
        pass


def test_a_copy_made_inside_averaged_is_not_inside():
    opt, params, _, _ = averaged_model("list")
    with opt.averaged(params):
        twin = pickle.loads(pickle.dumps(opt))
        twin.step(copied(params), copied(params))


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "bare"])
def test_finalize_sets_the_parameters_to_their_averages_for_good(form):
    opt, params, arrays, averages = averaged_model(form)
    state = everything(opt)
    assert any((x != y).any() for x, y in zip(arrays, averages, strict=True))
    opt.finalize_variable_values(params)
    same(arrays, averages)
    assert everything(opt) == state
    opt.step(params, copy.deepcopy(params))


@pytest.mark.parametrize("name", LAYOUTS)
def test_averages_reach_parameters_of_every_layout_and_nothing_else(name):
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(shape) for shape in ((4, 3), (5,), (), (2, 3, 2))]
    placed = [place(x, **layouts(x.ndim)[name]) for x in values]
    params, opt = [x for x, _ in placed], RMSprop(**AVERAGED)
    for _ in range(2):
        opt.step(params, values)
    averages = opt._views()["moving_average"]
    wanted = [
        place(x, **layouts(x.ndim)[name])[1].tobytes() for x in [np.array(a) for a in averages]
    ]
    before = [buffer.tobytes() for _, buffer in placed]
    with opt.averaged(params):
        assert [buffer.tobytes() for _, buffer in placed] == wanted
    assert [buffer.tobytes() for _, buffer in placed] == before
    opt.finalize_variable_values(params)
    assert [buffer.tobytes() for _, buffer in placed] == wanted


AVERAGING = {
    "averaged": lambda opt, params: opt.averaged(params).__enter__(),
    "finalize": lambda opt, params: opt.finalize_variable_values(params),
}


@pytest.mark.parametrize("call", AVERAGING.values(), ids=AVERAGING)
def test_without_use_ema_there_are_no_averages(call):
    opt, params, arrays, _ = averaged_model("list")
    opt.use_ema = False
    for optimizer in (opt, RMSprop()):
        before = memory(arrays), everything(optimizer)
        with pytest.raises(ValueError, match="use_ema=True"):
            call(optimizer, params)
        assert (memory(arrays), everything(optimizer)) == before
    opt.use_ema = True
    call(opt, params)


@pytest.mark.parametrize("call", AVERAGING.values(), ids=AVERAGING)
@pytest.mark.parametrize(
    ("form", "name"), [("list", "params[1]"), ("dict", "params['b']"), ("bare", "params")]
)
def test_read_only_parameters_are_refused_by_name_before_any_is_changed(form, name, call):
    opt, params, arrays, _ = averaged_model(form)
    arrays[-4 if form != "bare" else 0].flags.writeable = False
    before = memory(arrays), everything(opt)
    with pytest.raises(ValueError, match="^" + re.escape(name) + " is read-only"):
        call(opt, params)
    assert (memory(arrays), everything(opt)) == before
    opt.step(copy.deepcopy(params), copy.deepcopy(params))


@pytest.mark.parametrize("call", AVERAGING.values(), ids=AVERAGING)
@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (lambda p: p[:4], ValueError, "^params has 4 entries"),
        (lambda p: [p[0][:9], *p[1:]], ValueError, r"^params\[0\] has shape \(9,\)"),
        (lambda p: [p[0].astype("f8"), *p[1:]], TypeError, r"^params\[0\] has dtype float64"),
        (lambda p: as_form(p, "dict"), TypeError, "^params is a dict"),
        (lambda p: None, TypeError, "^params is of type NoneType"),
    ],
    ids=["count", "shape", "dtype", "dict", "None"],
)
def test_averages_of_another_model_are_refused(change, exception, message, call):
    opt, params, arrays, _ = averaged_model("list")
    before = memory(arrays), everything(opt)
    with pytest.raises(exception, match=message):
        call(opt, change(params))
    assert (memory(arrays), everything(opt)) == before
    opt.step(params, copied(params))


def test_parameters_that_become_read_only_inside_averaged_do_not_lock_the_optimizer():
    opt, params, _, _ = averaged_model("list")
    with pytest.raises(ValueError, match="read-only"), opt.averaged(params):
        params[1].flags.writeable = False
    opt.step(model("mixed", 0, 0)[0], copied(params))


def test_before_the_first_step_averages_are_the_parameters():
    params, _ = model("mixed", 0, 0)
    before, opt = memory(params), RMSprop(use_ema=True)
    with opt.averaged(params):
        assert memory(params) == before
    opt.finalize_variable_values(params)
    assert memory(params) == before

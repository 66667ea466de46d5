"""zero_grad clears gradients, and nothing else."""

import re

import numpy as np
import pytest
from common import LAYOUTS, assert_same_bits, layouts, place
from option_sets import OPTION_SETS, as_form, everything, memory, model, refused, trap

from rmsprop_c import RMSprop, reference


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", ["step", "bound"])
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_zero_grad_clears_gradients_of_every_layout_and_nothing_else(name, steps, way, dtype):
    arguments = {"clipnorm": 1.0, "gradient_accumulation_steps": steps}
    rng = np.random.default_rng(0)
    for shape in ((4, 5), (3, 2, 4), (7,), (), (0, 3), (1, 1)):
        layout = layouts(len(shape))[name]
        p = np.array(rng.standard_normal(shape), dtype)
        g, buffer = place(np.zeros(shape, dtype), **layout)
        cleared = place(np.zeros(shape, dtype), **layout)[1]
        expected = p.copy()
        opt = RMSprop(zero_grad=True, **arguments)
        oracle = reference.RMSprop([expected], **arguments)
        step = (
            opt.bind([p], [g]) if way == "bound" else lambda p=p, g=g, opt=opt: opt.step([p], [g])
        )
        for _ in range(3):
            g[...] = values = np.array(rng.standard_normal(shape), dtype)
            step()
            oracle.step([expected], [values])
            assert_same_bits(p, expected, f"{shape}")
            assert buffer.tobytes() == cleared.tobytes(), f"{shape}"


def test_zero_grad_leaves_the_gradient_of_a_refused_step():
    params, grads = trap(0.5)
    wrong = [grads[0], np.ones(6, np.float32), grads[2]]
    message = r"^grads\[1\] has shape \(6,\)"
    refused("step", RMSprop(zero_grad=True), params, wrong, ValueError, message)


def read_only(g):
    g = g.copy()
    g.flags.writeable = False
    return g


def halves(share):
    """Two gradients of three elements in one buffer, which share so many of them."""
    buffer = np.arange(1.0, 7.0)
    return [buffer[:3], buffer[3 - share : 6 - share]]


NOT_TO_CLEAR = {
    "read-only": (lambda: [np.ones(3), read_only(np.ones(3))], ValueError, "{1} is read-only"),
    "read-only and strided": (
        lambda: [np.ones(3), read_only(np.ones(6))[::2]],
        ValueError,
        "{1} is read-only",
    ),
    "broadcast": (
        lambda: [np.broadcast_to(1.0, 3), np.ones(3)],
        ValueError,
        "{0} is read-only or overlaps itself",
    ),
    "with a stride of 0": (
        lambda: [np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,)), np.ones(3)],
        ValueError,
        "{0} is read-only or overlaps itself",
    ),
    "twice": (lambda: [np.ones(3)] * 2, ValueError, "{1} shares memory with {0};"),
    "two views of one": (lambda: halves(3), ValueError, "{1} shares memory with {0};"),
    "overlapping views": (lambda: halves(1), ValueError, "{1} shares memory with {0};"),
    "overlapping backwards": (
        lambda: [g[::-1] for g in halves(2)],
        ValueError,
        "{1} shares memory with {0};",
    ),
}


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
@pytest.mark.parametrize("way", ["step", "bind", "get_updates"])
@pytest.mark.parametrize("case", NOT_TO_CLEAR)
def test_a_gradient_that_zero_grad_cannot_clear_is_refused_by_name(case, way, form):
    make, exception, message = NOT_TO_CLEAR[case]
    names = ("grads['W']", "grads['b']") if form == "dict" else ("grads[0]", "grads[1]")
    message = "^" + re.escape(message.format(*names))
    params, grads = [np.ones(3), np.full(3, 2.0)], make()
    given = as_form(params, form), as_form(grads, form)
    opt = RMSprop(zero_grad=True)
    refused(way, opt, *given, exception, message)
    opt.step(*(as_form([x.copy() for x in arrays], form) for arrays in (params, grads)))
    refused(way, opt, *given, exception, message)
    opt.zero_grad = False
    before = memory(grads)
    opt.step(*given)
    assert memory(grads) == before


@pytest.mark.parametrize("case", NOT_TO_CLEAR)
@pytest.mark.parametrize("way", ["step", "bound"])
def test_gradients_that_were_accepted_are_refused_once_zero_grad_is_on(case, way):
    # The pointers have passed the checks of a step that only reads gradients.
    make, exception, message = NOT_TO_CLEAR[case]
    params, grads, opt = [np.ones(3), np.full(3, 2.0)], make(), RMSprop()
    step = opt.bind(params, grads) if way == "bound" else lambda: opt.step(params, grads)
    step()
    step()
    opt.zero_grad = True
    before = memory(params + grads), everything(opt)
    with pytest.raises(exception, match=re.escape(message.format("grads[0]", "grads[1]"))):
        step()
    assert (memory(params + grads), everything(opt)) == before


def test_gradients_are_looked_at_again_each_time_zero_grad_comes_back():
    opt, w, g = RMSprop(), [np.ones(3), np.ones(3)], [np.ones(3), np.ones(3)]
    for one, other in [(0, 1), (0, 0), (1, 0), (1, 1)] * 2:
        grads = [g[one], g[other]]
        for on in (False, True, True, False):
            opt.zero_grad = on
            g[0][...], g[1][...] = 1, 2
            if on and one == other:
                refused("step", opt, w, grads, ValueError, r"^grads\[1\] shares memory with grads")
            else:
                opt.step(w, grads)
                assert (grads[0].any(), grads[1].any()) == (not on, not on)


@pytest.mark.parametrize("container", [lambda x: x, lambda x: [x], lambda x: {"w": x}])
def test_a_numpy_scalar_cannot_be_cleared(container):
    w, g = np.array(1.0), np.float64(0.5)
    opt = RMSprop(zero_grad=True)
    with pytest.raises(TypeError, match=r"^grads.* scalar|^params .* grads is of type float64"):
        opt.step(container(w), container(g))
    assert w == 1
    assert opt.weights == []
    opt.zero_grad = False
    opt.step(container(w), container(g))
    assert w < 1


def test_gradients_that_lie_between_each_other_are_cleared():
    buffer, w = np.arange(1.0, 9.0), [np.ones(4), np.ones(4)]
    RMSprop(zero_grad=True).step(w, [buffer[::2], buffer[1::2]])
    assert not buffer.any()
    RMSprop(zero_grad=True).step([np.ones(3), *w[:1]], [None, np.ones(4)])


@pytest.mark.parametrize("arguments", OPTION_SETS.values(), ids=OPTION_SETS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_without_zero_grad_gradients_never_change(name, arguments):
    arguments = {**arguments, "zero_grad": False}
    params, all_grads = model("mixed", 4, 9)
    opt = RMSprop(**arguments)
    for grads in all_grads:
        placed = [None if g is None else place(g, **layouts(g.ndim)[name]) for g in grads]
        before = [x and x[1].tobytes() for x in placed]
        for x in placed:
            if x:
                x[0].flags.writeable = False
        opt.step(params, [x and x[0] for x in placed])
        assert [x and x[1].tobytes() for x in placed] == before

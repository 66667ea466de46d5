"""Arrays that share memory are found, in any layout and at every call."""

import gc
import weakref

import numpy as np
import pytest
from common import layouts, place
from refusals import CALLS, built, by_bind, by_step, refused, state

from rmsprop_c import RMSprop


@pytest.mark.parametrize("layout", [name for name in layouts(1) if name != "plain"])
def test_overlap_is_found_in_any_layout(layout):
    array, buffer = place(np.arange(1.0, 7.0), **layouts(1)[layout])
    other = np.ones(6)
    first = array[:1]
    message = r"shares memory with params\[0\]"
    refused(by_step, RMSprop(), [array, other], [array, other * 2], ValueError, message)
    refused(by_step, RMSprop(), [array, np.ones(1)], [other, first], ValueError, message)
    refused(by_step, RMSprop(), [array, first], [other, np.ones(1)], ValueError, "shares memory")
    opt = RMSprop()
    opt.step([array, np.ones(1)], [other, np.ones(1)])
    refused(by_step, opt, [array, np.ones(1)], [other, first], ValueError, message)
    refused(by_step, opt, [array, first], [other, np.ones(1)], ValueError, "shares memory")
    assert buffer.size > array.nbytes


@pytest.mark.parametrize("at", range(6))
def test_overlap_is_found_among_many_parameters(at):
    buffer = np.arange(60, dtype=np.float64)
    params = [buffer[10 * i : 10 * i + 10] for i in (3, 1, 5, 0, 4, 2)]
    grads = [np.ones(10) for _ in params]
    opt = RMSprop()
    opt.step(params, grads)
    moved = list(params)
    low = params[at].__array_interface__["data"][0] - buffer.__array_interface__["data"][0]
    start = low // 8 - 1 if low else 1
    moved[at] = buffer[start : start + 10]
    refused(by_step, opt, moved, grads, ValueError, r"^params\[\d\] shares memory with params")
    for i in range(6):
        bad = list(grads)
        bad[i] = params[at]
        message = rf"^grads\[{i}\] shares memory with params\[{at}\]"
        refused(by_step, opt, params, bad, ValueError, message)
    opt.step(params, grads)
    assert opt.iterations == 2


def test_overlap_with_a_long_array_is_found_beyond_a_short_one_inside_it():
    whole, g = np.arange(100.0), np.ones(1)
    long, short, apart = whole[::2], whole[1:2], np.ones(1)
    grads = [np.ones(50), g, g]
    opt = RMSprop()
    opt.step([long, short, apart], grads)
    bad = [grads[0], g, whole[80:81]]
    message = r"^grads\[2\] shares memory with params\[0\]"
    refused(by_step, opt, [long, short, apart], bad, ValueError, message)
    message = r"^params\[[02]\] shares memory with params\[[02]\]"
    refused(by_step, opt, [long, short, whole[80:81]], grads, ValueError, message)
    opt.step([long, short, whole[81:82]], grads)


def test_a_gradient_that_is_a_parameter_is_refused_after_a_refusal_with_other_parameters():
    a, b, g = np.ones(3), np.ones(3), np.full(3, 0.5)
    opt = RMSprop()
    opt.step([a], [g])
    refused(by_step, opt, [b], [b], ValueError, r"^grads\[0\] shares memory")
    refused(by_step, opt, [a], [a], ValueError, r"^grads\[0\] shares memory")
    refused(by_step, opt, [b], [b], ValueError, r"^grads\[0\] shares memory")


def test_a_gradient_that_passed_with_other_parameters_is_checked_again():
    a, b, other, g = (np.full(3, float(i)) for i in range(4))
    opt = RMSprop()
    opt.step([a, b], [g, g])
    refused(by_step, opt, [other, g], [a, g], ValueError, r"^grads\[1\] shares memory")
    refused(by_step, opt, [a, b], [a, g], ValueError, r"^grads\[0\] shares memory with params\[0\]")


def test_parameters_that_share_memory_are_refused_every_time():
    a, g = np.arange(4.0), np.full(3, 0.5)
    opt = RMSprop()
    for _ in range(3):
        refused(by_step, opt, [a[:3], a[1:]], [g, g], ValueError, "shares memory")
    opt.step([a[:3], np.ones(3)], [g, g])
    for _ in range(3):
        refused(by_step, opt, [a[:3], a[1:]], [g, g], ValueError, "shares memory")


@pytest.mark.parametrize("size", [10, 1000, 100_000])
@pytest.mark.parametrize("gradient", ["none", "given"])
def test_an_array_at_the_address_of_a_former_copy_is_checked(size, gradient):
    opt, strided, other = RMSprop(), np.ones(2 * size)[::2], np.ones(3)
    g = np.ones(3)
    for _ in range(20):
        opt.step([strided, other], [None if gradient == "none" else np.ones(size), g])
        fresh = np.ones(size)
        refused(by_step, opt, [fresh, other], [fresh, g], ValueError, r"^grads\[0\] shares memory")


def test_a_refused_bind_does_not_mislead_the_next_check():
    a, b, g = np.ones(3), np.ones(3), np.full(3, 0.5)
    opt = RMSprop()
    step = opt.bind([a], [g])
    refused(by_bind, opt, [b], [b], ValueError, r"^grads\[0\] shares memory")
    refused(by_step, opt, [a], [a], ValueError, r"^grads\[0\] shares memory")
    step()
    assert opt.iterations == 1


def test_a_bound_step_checks_its_arrays_at_every_call():
    w, g = np.ones(3), np.ones(3)
    opt = RMSprop()
    step = opt.bind([w], [g])
    w.flags.writeable = False
    before = state(opt)
    with pytest.raises(ValueError, match=r"^params\[0\] is read-only"):
        step()
    assert state(opt) == before
    w.flags.writeable = True
    step()
    assert opt.iterations == 1


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("which", ["params", "grads"])
def test_a_refused_call_keeps_no_array_alive(which, call):
    opt, params, grads = built("after steps")

    def attempt():
        given = {"params": list(params), "grads": list(grads)}
        given[which][0] = np.ones((7, 7), np.float32)
        try:
            call(opt, given["params"], given["grads"])
        except ValueError:
            return weakref.ref(given[which][0])
        raise AssertionError("not refused")

    reference_to_it = attempt()
    gc.collect()
    assert reference_to_it() is None

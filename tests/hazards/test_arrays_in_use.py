"""Arrays that can't be used raise by name; any layout gets the right bits."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from common import assert_same_bits, layouts, place
from promises import STATEFUL, in_each_case, memory, model, promise, right, small_model


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def mapped(x):
    """The values in a file that is mapped into memory to be read."""
    path = Path(os.environ["TMPDIR"], "mapped.npy")
    np.save(path, x)
    return np.load(path, mmap_mode="r")


def odd_view(x):
    return x.reshape(-1).view(np.uint8)[1:13].view(np.float32)


# What is refused: of params or grads, which one, what it is made into, the error, and its words.
REFUSED = {
    "a read-only parameter": ("params", 1, read_only, ValueError, "read-only"),
    "a parameter mapped to be read": ("params", 1, mapped, ValueError, "read-only"),
    "a broadcast parameter": (
        "params",
        1,
        lambda x: np.broadcast_to(x[:1], x.shape),
        ValueError,
        "read-only",
    ),
    "a float64 gradient": ("grads", 1, lambda x: x.astype(np.float64), TypeError, "float64"),
    "a float16 gradient": ("grads", 1, lambda x: x.astype(np.float16), TypeError, "float16"),
    "an integer gradient": ("grads", 1, lambda x: x.astype(np.int32), TypeError, "int32"),
    "a complex gradient": ("grads", 1, lambda x: x.astype(np.complex64), TypeError, "complex64"),
    "a gradient of objects": ("grads", 1, lambda x: x.astype(object), TypeError, "object"),
    "a parameter of objects": ("params", 1, lambda x: x.astype(object), TypeError, "object"),
    "an integer parameter": ("params", 1, lambda x: x.astype(np.int32), TypeError, "int32"),
    "a short gradient": ("grads", 1, lambda x: x[:2].copy(), ValueError, r"\(2,\)"),
    "an empty gradient": ("grads", 1, lambda x: x[:0].copy(), ValueError, r"\(0,\)"),
    "a transposed gradient": ("grads", 0, lambda x: x.T, ValueError, r"\(3, 4\)"),
    "a flat gradient": ("grads", 0, lambda x: x.ravel(), ValueError, r"\(12,\)"),
    "a gradient to broadcast": ("grads", 0, lambda x: x[:1], ValueError, r"\(1, 3\)"),
    "a masked parameter": (
        "params",
        1,
        lambda x: np.ma.array(x, mask=[0, 1, 0]),
        TypeError,
        "masked",
    ),
    "a masked gradient": (
        "grads",
        1,
        lambda x: np.ma.array(x, mask=[0, 1, 0]),
        TypeError,
        "masked",
    ),
}


# Two arrays of a model that share memory, and the second of them made from the first.
OVERLAPS = {
    "the same parameter twice": ("params", 1, "params", 3, lambda x: x),
    "two views of a parameter": ("params", 1, "params", 3, lambda x: x[:]),
    "a parameter reversed": ("params", 1, "params", 3, lambda x: x[::-1]),
    "a parameter byte-swapped": ("params", 1, "params", 3, lambda x: x.view(">f4")),
    "a row of a parameter": ("params", 0, "params", 1, lambda x: x[1]),
    "a column of a parameter": ("params", 0, "params", 1, lambda x: x[1:, 1]),
    "a parameter at an odd address": ("params", 0, "params", 1, odd_view),
    "a parameter as its gradient": ("params", 1, "grads", 1, lambda x: x),
    "a parameter as another's gradient": ("params", 1, "grads", 3, lambda x: x[:]),
    "a row of a parameter as a gradient": ("params", 0, "grads", 1, lambda x: x[2]),
    "an odd view of a parameter as a gradient": ("params", 0, "grads", 1, odd_view),
}


def check_refused(library, change, exception, words, options, before):
    """A step with a changed model after `before` good ones is refused and leaves no trace."""
    opt, (params, grads) = library.RMSprop(**options), small_model()
    twin, (twin_params, twin_grads) = library.RMSprop(**options), small_model()

    def good_step():
        for which in (grads, twin_grads):
            for g, again in zip(which, small_model()[1], strict=True):
                g[...] = again
        opt.step(params, grads)
        twin.step(twin_params, twin_grads)

    for _ in range(before):
        good_step()
    changed_params, changed_grads = change(list(params), list(grads))
    seen = memory(*changed_params, *changed_grads, *params, *grads, *opt.get_weights())
    count = opt.iterations
    with pytest.raises(exception, match=f"^({words})") as raised:
        opt.step(changed_params, changed_grads)
    assert type(raised.value) is exception
    after = memory(*changed_params, *changed_grads, *params, *grads, *opt.get_weights())
    assert after == seen, "something was changed"
    assert opt.iterations == count
    for _ in range(3):
        good_step()
    found, wanted = [*params, *opt.get_weights()], [*twin_params, *twin.get_weights()]
    for x, y in zip(found, wanted, strict=True):
        assert_same_bits(x, y)


def check_refused_in_any_state(library, change, exception, words):
    for options, before in itertools.product(STATEFUL.values(), (0, 1, 3)):
        check_refused(library, change, exception, words, options, before)


@pytest.fixture
def temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.usefixtures("temporary_files")
@promise(naive="AssertionError: broken in all")
def test_an_array_that_cannot_be_used_is_refused_by_name_and_nothing_changes(library):
    library.set_num_threads(1)

    def work(case):
        which, i, convert, exception, words = case

        def change(params, grads):
            arrays = params if which == "params" else grads
            arrays[i] = convert(arrays[i])
            return params, grads

        pattern = rf"{which}\[{i}\] .*{words}"
        check_refused_in_any_state(library, change, exception, pattern)

    in_each_case(REFUSED, work)


@promise(naive="AssertionError: broken in all")
def test_arrays_that_overlap_are_refused_by_name_and_nothing_changes(library):
    library.set_num_threads(1)

    def work(case):
        first, i, second, j, view = case

        def change(params, grads):
            arrays = {"params": params, "grads": grads}
            arrays[second][j] = view(arrays[first][i])
            return params, grads

        one, other = rf"{first}\[{i}\]", rf"{second}\[{j}\]"
        pattern = f"{one} shares memory with {other}|{other} shares memory with {one}"
        check_refused_in_any_state(library, change, ValueError, pattern)

    in_each_case(OVERLAPS, work)


# In these the naive loop over the elements in memory is right.
ALIKE = [{"plain", "unaligned"}, {"plain"}, {"unaligned"}, {"fortran"}, {"permuted"}]


LAYOUT_PAIRS = {
    f"{p} parameter, {g} gradient": (p, g)
    for p, g in itertools.product(layouts(3), layouts(3))
    if {p, g} not in ALIKE
}


@promise(naive="AssertionError: broken in all")
def test_any_layout_gets_the_right_bits_and_no_other_byte_changes(library):
    library.set_num_threads(1)
    shape = (5, 4, 7)
    (values,), (gradients,) = model(5 * 4 * 7)
    values, gradients = values.reshape(shape), gradients.reshape(shape)
    wanted = right(values.size, 3).reshape(shape)

    def work(case):
        p_layout, g_layout = (layouts(3)[name] for name in case)
        p, p_bytes = place(values, **p_layout)
        g, g_bytes = place(gradients, **g_layout)
        opt, untouched = library.RMSprop(), g_bytes.copy()
        for _ in range(3):
            opt.step([p], [g])
        assert_same_bits(p, wanted)
        assert (p_bytes == place(wanted, **p_layout)[1]).all(), "stray writes"
        assert (g_bytes == untouched).all(), "a gradient was written to"

    in_each_case(LAYOUT_PAIRS, work)


@promise(naive="AssertionError|Failed: DID NOT RAISE|SIGSEGV|SIGABRT|SIGBUS")
def test_arrays_resized_between_steps_are_found_where_they_are_now(library):
    size = 300_000
    params, grads = ([x[0].copy()] for x in model(size))  # they own their memory
    opt = library.RMSprop()
    library.set_num_threads(1)
    step = opt.bind(params, grads)
    step()
    for done in range(1, 5):
        kept = params[0].copy(), grads[0].copy()
        for x in (params[0], grads[0]):
            x.resize(0, refcheck=False)
        hole = np.full(size, 7, np.float32)  # takes the place of what was freed
        for x, values in zip((params[0], grads[0]), kept, strict=True):
            x.resize(2 * size, refcheck=False)
            if opt.iterations == done:
                with pytest.raises(ValueError, match=r"^(params|grads)\[0\] has shape \(600000,\)"):
                    step()
            x.resize(size, refcheck=False)
            x[...] = values
        step()
        assert (hole == 7).all(), "freed memory was written to"
        assert_same_bits(params[0], right(size, done + 1))

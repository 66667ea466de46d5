"""Every option, alone and together: the bits of reference.py."""

import numpy as np
import pytest
from common import LAYOUTS, layouts, place
from hypothesis import given, strategies as st
from option_sets import OPTION_SETS, assert_same_state, copied, examples, model, options, run, same

from rmsprop_c import RMSprop, reference, set_num_threads
from rmsprop_c.hyperparameters import DEFAULT


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@examples(100)
@given(arguments=options(), seed=st.integers(0, 99), threads=st.sampled_from([1, 2, 3]))
def test_any_options_give_the_bits_of_the_reference(
    dtype, isa, team_at_any_size, arguments, seed, threads
):
    set_num_threads(threads)
    own, grads = model(dtype, 7, seed, nonfinite=arguments.get("nonfinite") == "skip")
    params = copied(own)
    run(RMSprop(**arguments), own, reference.RMSprop(params, **arguments), params, grads)


def test_every_option_is_in_one_of_the_sets():
    assert {name for arguments in OPTION_SETS.values() for name in arguments} == set(DEFAULT)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("options", OPTION_SETS)
def test_bits_do_not_depend_on_layouts(options, name, dtype):
    # The gradients come in all layouts in turn; the norm follows the memory order of parameters.
    rng = np.random.default_rng(3)
    shapes = ((5, 7), (2, 3, 4), (33,), (), (0, 3))
    values = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
    placed = [place(x, **layouts(x.ndim)[name]) for x in values]
    params = [x for x, _ in placed]
    expected = [
        np.array(x, x.dtype.newbyteorder("="), order="F" if x.flags.fnc else "C") for x in params
    ]
    opt, oracle = (
        RMSprop(**OPTION_SETS[options]),
        reference.RMSprop(expected, **OPTION_SETS[options]),
    )
    clearing = OPTION_SETS[options].get("zero_grad")
    for call, layout in enumerate((*LAYOUTS, "plain")):
        grads = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
        if call == 4:
            grads[0] = None
        theirs = [
            None if g is None else np.array(g, order="F" if p.flags.fnc else "C")
            for g, p in zip(grads, expected, strict=True)
        ]
        ours = [None if g is None else place(g, **layouts(g.ndim)[layout]) for g in grads]
        after = [
            x and place(np.zeros_like(g) if clearing else g, **layouts(g.ndim)[layout])[1]
            for x, g in zip(ours, grads, strict=True)
        ]
        opt.step(params, [x and x[0] for x in ours])
        oracle.step(expected, theirs)
        for i, (x, wanted) in enumerate(zip(ours, after, strict=True)):
            assert x is None or x[1].tobytes() == wanted.tobytes(), f"grads[{i}], {layout}"
        for i, (_, buffer) in enumerate(placed):
            wanted = place(expected[i], **layouts(expected[i].ndim)[name])[1]
            assert buffer.tobytes() == wanted.tobytes(), f"params[{i}], {layout}"
    assert_same_state(opt, oracle)


LARGE = {
    "weight decay, averages, clipnorm, accumulation": {
        "weight_decay": 0.1,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
        "clipnorm": 0.5,
        "gradient_accumulation_steps": 2,
        "zero_grad": True,
    },
    "everything of one parameter": {
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "exclude_from_weight_decay": (1, 3),
        "lr_scale": (1.0, 2.0, 0.5, 3.0, 1.0),
        "parameter_clipnorm": 0.5,
        "momentum": 0.9,
        "nesterov": True,
        "centered": True,
        "flush_subnormals": True,
        "nonfinite": "skip",
    },
    "no passes": {"momentum": 0.5, "centered": True, "epsilon_in_sqrt": True, "maximize": True},
}


def large(values, itemsize):
    """Arrays that begin so many elements behind a cache line, larger than all blocks."""
    placed = []
    for x, offset in zip(values, (3, 0, 7, 15, 1), strict=True):
        buffer = np.empty(x.nbytes + 64 + 16 * itemsize, np.uint8)
        start = -buffer.ctypes.data % 64 + offset * itemsize
        array = buffer[start : start + x.nbytes].view(x.dtype)
        array[...] = x
        placed.append(array)
    return placed


@pytest.fixture(scope="module")
def trajectories():
    """What the reference makes of large arrays, computed once."""
    found = {}
    sizes = (45_003, 17, 16_383, 4_097, 1)
    for dtype in ("float32", "float64"):
        rng = np.random.default_rng(4)
        start = [rng.standard_normal(n).astype(dtype) for n in sizes]
        grads = [[rng.standard_normal(n).astype(dtype) for n in sizes] for _ in range(5)]
        grads[1][1] = grads[3][0] = None
        for name, arguments in LARGE.items():
            params = copied(start)
            oracle = reference.RMSprop(params, **arguments)
            for g in grads:
                oracle.step(params, copied(g))
            found[name, dtype] = start, grads, params, oracle
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LARGE)
def test_large_arrays_have_the_bits_of_the_reference(
    name, dtype, threads, trajectories, isa, team_at_any_size
):
    set_num_threads(threads)
    start, all_grads, expected, oracle = trajectories[name, dtype]
    itemsize = start[0].itemsize
    params, opt = large(start, itemsize), RMSprop(**LARGE[name])
    for call, grads in enumerate(all_grads):
        given = large([p if g is None else g for g, p in zip(grads, start, strict=True)], itemsize)
        if call == 2:  # where the arrays begin changes between steps
            params = large(params[::-1], itemsize)[::-1]
        opt.step(params, [None if g is None else x for g, x in zip(grads, given, strict=True)])
    same(params, expected)
    assert_same_state(opt, oracle)

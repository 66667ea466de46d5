"""Arrays of any layout just work: the right bits in the user's array, and nothing beside it."""

import collections
import weakref

import numpy as np
import pytest
from common import LAYOUTS, assert_same_bits, layouts, place
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from rmsprop_c import RMSprop, reference

SHAPES = [(), (0,), (1,), (37,), (5, 0), (6, 7), (1, 9), (9, 1), (3, 4, 5), (2, 3, 2, 3, 2)]
DTYPES = ["float32", "float64"]
OPTIONS = {"lr": 0.01, "rho": 0.8, "epsilon": 1e-6, "decay": 0.1, "clipvalue": 1.5}


def normal(rng, shape, dtype):
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


class Twin:
    """What `reference.step` makes of the same model, in arrays of its own."""

    def __init__(self, params, **options):
        self.params = [
            np.array(p, p.dtype.newbyteorder("="), order="F" if p.flags.fnc else "C")
            for p in params
        ]
        self.accumulators = [np.zeros_like(p) for p in self.params]
        self.options = options
        self.iterations = 0

    def step(self, grads):
        grads = [g if g is None else np.asarray(g) for g in grads]
        reference.step(self.params, grads, self.accumulators, self.iterations, **self.options)
        self.iterations += 1

    def check(self, opt, params):
        assert opt.iterations == self.iterations
        for i, (found, expected) in enumerate(zip(params, self.params, strict=True)):
            assert_same_bits(found, expected, f"params[{i}]")
        for i, (found, expected) in enumerate(zip(opt.weights, self.accumulators, strict=True)):
            assert_same_bits(found, expected, f"weights[{i}]")


def check_layouts(p, grads, p_layout, g_layout, options):
    """Steps with both arrays in these layouts: bits, and every byte of their buffers."""
    param, buffer = place(p, **p_layout)
    opt, twin = RMSprop(**options), Twin([p], **options)
    for g in grads:
        grad, grad_buffer = place(g, **g_layout)
        before = grad_buffer.copy()
        opt.step([param], [grad])
        twin.step([g])
        np.testing.assert_array_equal(grad_buffer, before, "the gradient's buffer was written")
    twin.check(opt, [param])
    expected = place(twin.params[0], **p_layout)[1]
    np.testing.assert_array_equal(buffer, expected, "bytes beside the parameter were written")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("g_layout", LAYOUTS)
@pytest.mark.parametrize("p_layout", LAYOUTS)
def test_any_pair_of_layouts_lands_in_the_users_array_and_nowhere_else(
    p_layout, g_layout, shape, dtype
):
    rng = np.random.default_rng(len(shape))
    p, g, h = (normal(rng, shape, dtype) for _ in range(3))
    ways = layouts(len(shape))
    check_layouts(p, [g, h], ways[p_layout], ways[g_layout], OPTIONS)


@st.composite
def any_layout(draw, ndim):
    return {
        "axes": draw(st.permutations(range(ndim))),
        "steps": [draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(ndim)],
        "margins": [draw(st.integers(0, 2)) for _ in range(ndim)],
        "offset": draw(st.integers(0, 9)),
        "swapped": draw(st.booleans()),
    }


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_no_layout_is_left_out(data):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from(DTYPES))
    p, g, h = (normal(rng, shape, dtype) for _ in range(3))
    p_layout, g_layout = (data.draw(any_layout(len(shape))) for _ in range(2))
    check_layouts(p, [g, h], p_layout, g_layout, OPTIONS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("g_layout", LAYOUTS)
@pytest.mark.parametrize("p_layout", LAYOUTS)
def test_the_global_norm_of_any_layout_has_the_reference_bits(p_layout, g_layout, dtype):
    ways = layouts(3)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        param, _ = place(normal(rng, (31, 40, 7), dtype), **ways[p_layout])
        grad, _ = place(normal(rng, param.shape, dtype), **ways[g_layout])
        opt, twin = RMSprop(clipnorm=1.0), Twin([param], clipnorm=1.0)
        opt.step([param], [grad])
        twin.step([grad])
        twin.check(opt, [param])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bound_step_reads_and_writes_any_layout(layout):
    rng = np.random.default_rng(0)
    p, g, h = (normal(rng, (6, 7), "float32") for _ in range(3))
    (param, _), (grad, _) = place(p, **layouts(2)[layout]), place(g, **layouts(2)[layout])
    opt, twin = RMSprop(**OPTIONS), Twin([p], **OPTIONS)
    step = opt.bind([param], [grad])
    for values in (g, h):
        grad[...] = values
        step()
        twin.step([values])
    twin.check(opt, [param])


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_a_parameter_may_be_another_array_in_another_layout_at_every_step(first, second):
    rng = np.random.default_rng(1)
    p = normal(rng, (6, 7), "float64")
    opt, twin = RMSprop(**OPTIONS), Twin([p], **OPTIONS)
    for layout in (first, second, second, first):
        param, _ = place(p, **layouts(2)[layout])
        grad, _ = place(normal(rng, p.shape, p.dtype), **layouts(2)[layout])
        opt.step([param], [grad])
        twin.step([grad])
        p = np.array(param, p.dtype, order="C")
        twin.check(opt, [param])


def test_new_arrays_at_every_step_continue_the_same_state():
    rng = np.random.default_rng(2)
    params = [normal(rng, (4, 3), "float32"), normal(rng, 5, "float64")]
    opt, twin = RMSprop(**OPTIONS), Twin(params, **OPTIONS)
    for _ in range(20):
        params = [p.copy() for p in params]
        grads = [normal(rng, p.shape, p.dtype) for p in params]
        opt.step(params, grads)
        twin.step(grads)
    twin.check(opt, params)


def test_state_belongs_to_the_position_and_not_to_the_array():
    x, y, g = np.ones(3), np.ones(3), np.full(3, 0.5)
    opt = RMSprop()
    opt.step([x, y], [g, None])
    opt.step([y, x], [g, None])
    twin = Twin([np.ones(3)])
    twin.step([g])
    assert_same_bits(x, twin.params[0])
    assert_same_bits(y, np.ones(3) - 0.001 * g / (np.sqrt(opt.weights[0]) + 1e-8))
    assert not opt.weights[1].any()


def test_halves_of_one_array_are_two_parameters():
    rng = np.random.default_rng(3)
    whole = normal(rng, (8, 10), "float32")
    params = [whole[:, :5], whole[:, 5:]]
    opt, twin = RMSprop(**OPTIONS), Twin(params, **OPTIONS)
    for _ in range(3):
        grad = normal(rng, whole.shape, whole.dtype)
        opt.step(params, [grad[:, :5], grad[:, 5:]])
        twin.step([grad[:, :5], grad[:, 5:]])
    twin.check(opt, params)
    assert_same_bits(whole, np.hstack(twin.params))


@pytest.mark.parametrize(
    "split",
    [
        lambda w: [w[::2], w[1::2]],
        lambda w: [w[:, ::3], w[:, 1::3], w[:, 2::3]],
        lambda w: [w[:, 1::2], w[::-1, ::2]],
        lambda w: [w[6:], w[:3], w[3:6]],
        lambda w: [w[:4, :5], w[4:, :5], w[:4, 5:], w[4:, 5:]],
        lambda w: list(w),
    ],
    ids=["rows", "columns", "backwards", "moved", "blocks", "each row"],
)
def test_interwoven_views_without_a_common_element_are_parameters_and_gradients(split):
    rng = np.random.default_rng(4)
    whole, expected = (np.copy(x) for x in [normal(rng, (8, 10), "float64")] * 2)
    grad = normal(rng, whole.shape, whole.dtype)
    RMSprop().step(split(whole), split(grad))
    RMSprop().step([expected], [grad])
    assert_same_bits(whole, expected)
    opt = RMSprop()
    params = split(whole)
    opt.step([params[0]], [split(whole)[0] * 2])
    if params[0].shape == params[1].shape:  # the other half of the array as the gradient
        opt.step([params[0]], [params[1]])
        assert opt.iterations == 2


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 300), max_size=12),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    clipvalue=st.none() | st.floats(0.01, 2),
)
def test_bits_do_not_depend_on_how_a_model_is_split(cuts, seed, dtype, layout, clipvalue):
    rng = np.random.default_rng(seed)
    whole = normal(rng, 300, dtype)
    grads = [normal(rng, 300, dtype) for _ in range(2)]
    param, buffer = place(whole, **layouts(1)[layout])
    parts = np.split(param, sorted(cuts))
    one, many = RMSprop(clipvalue=clipvalue), RMSprop(clipvalue=clipvalue)
    for g in grads:
        one.step(whole, g)
        many.step(parts, np.split(g, sorted(cuts)))
    assert_same_bits(param, whole)
    assert_same_bits(np.concatenate(many.weights), one.weights[0])
    np.testing.assert_array_equal(buffer, place(whole, **layouts(1)[layout])[1])


@pytest.mark.parametrize("order", ["C", "F"])
def test_accumulators_lie_in_memory_as_their_parameter_does(order):
    p = np.ones((4, 3), order=order)
    opt = RMSprop()
    opt.step([p], [np.asarray(np.arange(12.0).reshape(4, 3), order=order)])
    assert opt.weights[0].strides == p.strides
    assert_same_bits(opt.weights[0], (1 - 0.9) * np.arange(12.0).reshape(4, 3) ** 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulators_are_native_contiguous_and_of_the_parameters_dtype(layout):
    param, _ = place(np.ones((4, 3), np.float32), **layouts(2)[layout])
    opt = RMSprop()
    opt.step([param], [np.ones((4, 3), np.float32)])
    (weight,) = opt.weights
    assert weight.dtype == np.float32
    assert weight.dtype.isnative
    assert weight.flags.c_contiguous or weight.flags.f_contiguous


@pytest.mark.parametrize("order", ["small first", "large first"])
@pytest.mark.parametrize("count", range(1, 6))
def test_accumulators_are_aligned_in_models_of_both_dtypes(count, order):
    params = [np.ones(count, np.float32), np.ones(3), np.ones(1, np.float32), np.ones((2, 2))]
    params = params if order == "small first" else params[::-1]
    opt = RMSprop()
    opt.build(params)
    assert [w.flags.aligned for w in opt.weights] == [True] * 4


def test_dtypes_may_be_mixed():
    rng = np.random.default_rng(5)
    params = [normal(rng, n, DTYPES[n % 2]) for n in (3, 4, 0, 17, 1, 64)]
    opt, twin = RMSprop(**OPTIONS), Twin(params, **OPTIONS)
    for _ in range(3):
        grads = [normal(rng, p.shape, p.dtype) for p in params]
        opt.step(params, grads)
        twin.step(grads)
    twin.check(opt, params)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_and_0d_arrays_are_parameters_of_any_model(shape, dtype):
    rng = np.random.default_rng(6)
    params = [normal(rng, 4, "float64"), normal(rng, shape, dtype), normal(rng, 4, "float32")]
    opt, twin = RMSprop(clipnorm=0.5), Twin(params, clipnorm=0.5)
    for _ in range(2):
        grads = [normal(rng, p.shape, p.dtype) for p in params]
        opt.step(params, grads)
        twin.step(grads)
    twin.check(opt, params)


def test_a_model_of_empty_arrays_counts_its_steps():
    opt = RMSprop(clipnorm=1.0)
    opt.step([np.ones((0, 3)), np.ones(0, np.float32)], [np.ones((0, 3)), np.ones(0, np.float32)])
    assert opt.iterations == 1
    assert [w.shape for w in opt.weights] == [(0, 3), (0,)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("container", ["list", "dict", "bare"])
def test_a_numpy_scalar_is_the_gradient_of_a_0d_parameter(container, dtype):
    p, scalar = np.array(2.0, dtype), np.dtype(dtype).type(0.3)
    opt, twin = RMSprop(**OPTIONS), Twin([p], **OPTIONS)
    for _ in range(2):
        forms = {"list": ([p], [scalar]), "dict": ({"b": p}, {"b": scalar}), "bare": (p, scalar)}
        opt.step(*forms[container])
        twin.step([scalar])
    twin.check(opt, [p])


@pytest.mark.parametrize("mode", ["r+", "w+", "c"])
def test_a_memory_mapped_parameter_is_updated_in_its_file(tmp_path, mode):
    path = tmp_path / "weights.bin"
    rng = np.random.default_rng(7)
    start = normal(rng, 30, "float32")
    guard = np.arange(10, dtype=np.float32)
    np.concatenate([guard, start, guard]).tofile(path)
    mapped = np.memmap(path, np.float32, mode, 40, (30,)) if mode != "w+" else None
    if mapped is None:
        mapped = np.memmap(path, np.float32, mode, 40, (30,))
        mapped[:] = start
    opt, twin = RMSprop(**OPTIONS), Twin([start], **OPTIONS)
    for _ in range(2):
        g = normal(rng, 30, "float32")
        opt.step([mapped], [g])
        twin.step([g])
    twin.check(opt, [mapped])
    mapped.flush()
    on_disk = np.fromfile(path, np.float32)
    assert_same_bits(on_disk[10:40], start if mode == "c" else twin.params[0])
    if mode != "w+":
        assert_same_bits(on_disk[:10], guard)
        assert_same_bits(on_disk[40:], guard)


def test_a_memory_mapped_gradient_is_only_read(tmp_path):
    path = tmp_path / "grads.bin"
    g = np.linspace(-1, 1, 30)
    g.tofile(path)
    p = np.ones(30)
    opt, twin = RMSprop(), Twin([p])
    opt.step([p], [np.memmap(path, np.float64, "r")])
    twin.step([g])
    twin.check(opt, [p])
    assert_same_bits(np.fromfile(path), g)


class Tagged(np.ndarray):
    """A subclass that would notice being computed with."""

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("a step does no arithmetic in Python")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_subclasses_are_arrays_like_any_other(layout):
    rng = np.random.default_rng(8)
    p, g = (normal(rng, (6, 7), "float64") for _ in range(2))
    param, buffer = place(p, **layouts(2)[layout])
    opt, twin = RMSprop(**OPTIONS), Twin([p], **OPTIONS)
    opt.step([param.view(Tagged)], [place(g, **layouts(2)[layout])[0].view(Tagged)])
    twin.step([g])
    twin.check(opt, [param])
    np.testing.assert_array_equal(buffer, place(twin.params[0], **layouts(2)[layout])[1])


def test_fields_of_a_structured_array_are_parameters():
    rng = np.random.default_rng(9)
    packed = np.zeros(20, [("tag", "u1"), ("w", "f8"), ("b", ">f4")])
    packed["tag"] = np.arange(20)
    packed["w"], packed["b"] = normal(rng, 20, "float64"), normal(rng, 20, "float32")
    params = [packed["w"], packed["b"]]
    opt, twin = RMSprop(**OPTIONS), Twin(params, **OPTIONS)
    for _ in range(2):
        grads = [normal(rng, 20, "float64"), normal(rng, 20, "float32")]
        opt.step(params, grads)
        twin.step(grads)
    twin.check(opt, params)
    assert packed["tag"].tolist() == list(range(20))


@pytest.mark.parametrize("none", [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_none_leaves_the_parameter_and_its_accumulator_alone(layout, none):
    rng = np.random.default_rng(10)
    values = [normal(rng, (4, 5), "float32") for _ in range(3)]
    placed = [place(x, **layouts(2)[layout]) for x in values]
    params = [array for array, _ in placed]
    opt = RMSprop(clipnorm=0.5)
    opt.build(params)
    for idle in (none, set(), none):
        buffers, weights = [buffer.copy() for _, buffer in placed], opt.get_weights()
        grads = [None if i in idle else normal(rng, (4, 5), "float32") for i in range(3)]
        opt.step(params, grads)
        for i in range(3):
            assert (placed[i][1] == buffers[i]).all() == (i in idle)
            assert (opt.weights[i] == weights[i]).all() == (i in idle)
    assert opt.iterations == 3


def test_a_step_without_some_gradients_has_the_reference_bits():
    rng = np.random.default_rng(11)
    params = [normal(rng, n, "float64") for n in (3, 70, 5)]
    opt, twin = RMSprop(**OPTIONS), Twin(params, **OPTIONS)
    for idle in (0, 1, 2, None):
        grads = [None if i == idle else normal(rng, p.shape, p.dtype) for i, p in enumerate(params)]
        opt.step(params, grads)
        twin.step(grads)
    twin.check(opt, params)


@pytest.mark.parametrize(
    "read_only",
    [
        lambda g: np.frombuffer(g.tobytes(), g.dtype).reshape(g.shape),
        lambda g: np.broadcast_to(g[:1], g.shape),
        lambda g: g.T.copy().T.view(Tagged),
    ],
    ids=["bytes", "broadcast", "subclass"],
)
def test_a_read_only_gradient_is_fine(read_only):
    rng = np.random.default_rng(12)
    p = normal(rng, (6, 7), "float32")
    grad = read_only(normal(rng, p.shape, p.dtype))
    grad.flags.writeable = False
    opt, twin = RMSprop(**OPTIONS), Twin([p], **OPTIONS)
    opt.step([p], [grad])
    twin.step([np.array(grad)])
    twin.check(opt, [p])


def test_two_parameters_may_have_the_same_gradient_array():
    p, q, g = np.ones(5), np.full(5, 2.0), np.linspace(-1, 1, 5)
    opt, twin = RMSprop(), Twin([p, q])
    opt.step([p, q], [g, g])
    twin.step([g, g])
    twin.check(opt, [p, q])


def containers(names, arrays):
    """The forms in which a model can be given, with its arrays in the order of the names."""
    pair = collections.namedtuple("Model", names)
    both = dict(zip(names, arrays, strict=True))
    return {
        "list": list(arrays),
        "tuple": tuple(arrays),
        "namedtuple": pair(*arrays),
        "list subclass": type("Params", (list,), {})(arrays),
        "dict": both,
        "OrderedDict": collections.OrderedDict(both),
        "defaultdict": collections.defaultdict(None, both),
    }


FORMS = [
    (p, g)
    for group in (
        ["list", "tuple", "namedtuple", "list subclass"],
        ["dict", "OrderedDict", "defaultdict"],
    )
    for p in group
    for g in group
]


@pytest.mark.parametrize("forms", FORMS, ids=" and ".join)
def test_a_model_is_a_list_a_tuple_or_a_dict(forms):
    rng = np.random.default_rng(13)
    arrays = [normal(rng, 4, "float32"), normal(rng, (2, 3), "float64")]
    opt, twin = RMSprop(**OPTIONS), Twin(arrays, **OPTIONS)
    for _ in range(2):
        grads = [normal(rng, p.shape, p.dtype) for p in arrays]
        params = containers(["w", "b"], arrays)[forms[0]]
        opt.step(params, containers(["w", "b"], grads)[forms[1]])
        twin.step(grads)
    twin.check(opt, arrays)


def test_a_dict_is_matched_by_key_in_any_order():
    rng = np.random.default_rng(14)
    arrays = {key: normal(rng, 6, "float64") for key in ("w", 7, ("a", 1), None)}
    opt, twin = RMSprop(**OPTIONS), Twin(list(arrays.values()), **OPTIONS)
    for turn in range(4):
        keys = list(arrays)[turn:] + list(arrays)[:turn]
        grads = {key: normal(rng, 6, "float64") for key in arrays}
        opt.step({key: arrays[key] for key in keys}, {key: grads[key] for key in keys[::-1]})
        twin.step(list(grads.values()))
    twin.check(opt, list(arrays.values()))


@pytest.mark.parametrize("idle", ["w", "b"])
def test_a_dict_may_have_none_as_a_gradient(idle):
    params, grads = {"w": np.ones(3), "b": np.ones(2)}, {"w": np.ones(3), "b": np.ones(2)}
    grads[idle] = None
    RMSprop().step(params, grads)
    assert {key for key, p in params.items() if (p == 1).all()} == {idle}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bare_array_is_a_model_of_one_parameter_and_never_its_rows(shape):
    rng = np.random.default_rng(15)
    p = normal(rng, shape, "float64")
    opt, twin = RMSprop(**OPTIONS), Twin([p], **OPTIONS)
    for step in (opt.step, opt.step, lambda p, g: opt.bind(p, g)()):
        g = np.asarray(normal(rng, shape, "float64"))
        step(p, g)
        twin.step([g])
    twin.check(opt, [p])
    assert [w.shape for w in opt.weights] == [shape]


def test_many_dimensions_work():
    rng = np.random.default_rng(16)
    p, g = (normal(rng, (1, 2) * 10 + (1,) * 12, "float32") for _ in range(2))
    param, _ = place(p, steps=-1)
    opt, twin = RMSprop(), Twin([p])
    opt.step([param], [g])
    twin.step([g])
    twin.check(opt, [param])


def test_the_containers_and_their_arrays_stay_the_same_objects():
    params, grads = [np.ones((2, 3))[:, ::2], np.ones(2)], [np.ones((2, 2)), np.ones(2)]
    before = [*params, *grads]
    RMSprop().step(params, grads)
    assert all(x is y for x, y in zip([*params, *grads], before, strict=True))


def test_a_step_keeps_no_array_alive():
    opt = RMSprop()
    params, grads = [np.ones((2, 3))[:, ::2]], [np.ones((2, 2), order="F")]
    opt.step(params, grads)
    alive = [weakref.ref(x) for x in (*params, *grads)]
    del params, grads
    assert [x() for x in alive] == [None, None]

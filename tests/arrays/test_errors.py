"""Each refusal says what is wrong and where, comes before the first write, and leaves no trace."""

import collections.abc
import gc
import re
import types
import weakref

import numpy as np
import pytest
from common import assert_same_bits, layouts, place

import rmsprop_c
from rmsprop_c import Optimizer, RMSprop, reference

OPTIONS = {"lr": 0.01, "rho": 0.8, "decay": 0.1, "clipnorm": 100.0}
KEYS = ("W", "b", "c", "d")


def model():
    """Fresh parameters and gradients; 1 and 3 are alike."""
    rng = np.random.default_rng(0)
    like = [((4, 3), "float32"), (3, "float32"), (5, "float64"), (3, "float32")]
    return tuple([rng.standard_normal(s).astype(d) for s, d in like] for _ in range(2))


def values(container):
    """The entries of whatever was passed for a model."""
    if isinstance(container, collections.abc.Mapping):
        return list(container.values())
    return list(container) if isinstance(container, (list, tuple)) else [container]


def memory(*containers):
    """All bytes of all arrays, and of the arrays that these are views of."""
    seen = []
    for x in [entry for container in containers for entry in values(container)]:
        while isinstance(x, np.ndarray):
            seen.append((x.tobytes(), str(x.dtype), x.shape, x.strides))
            x = x.base
    return seen


def state(opt):
    weights = [(w.tobytes(), w.dtype, w.shape) for w in opt.get_weights()]
    return weights, opt.iterations, opt.get_config(), vars(opt).copy()


def built(stage, **options):
    """An optimizer, and the arrays that it knows, before or after its first steps."""
    opt, (params, grads) = RMSprop(**OPTIONS | options), model()
    if stage == "after steps":
        for _ in range(2):
            opt.step(params, grads)
    return opt, params, grads


def check_usable(opt, params, grads):
    """A right step after the refusals has the reference's bits."""
    expected, accumulators = [p.copy() for p in params], opt.get_weights()
    accumulators = accumulators or [np.zeros_like(p) for p in params]
    options = dict(opt.get_config())
    reference.step(expected, grads, accumulators, opt.iterations, **options)
    opt.step(params, grads)
    for found, right in zip([*params, *opt.weights], [*expected, *accumulators], strict=True):
        assert_same_bits(found, right)


def by_step(opt, params, grads):
    opt.step(params, grads)


def by_bind(opt, params, grads):
    opt.bind(params, grads)


def by_get_updates(opt, params, grads):
    opt.get_updates(params, None, lambda _: (0.0, grads))


CALLS = {"step": by_step, "bind": by_bind, "get_updates": by_get_updates}


def refused(call, opt, params, grads, exception, message):
    """The call is refused with this message, and nothing has changed."""
    memory_before, state_before = memory(params, grads), state(opt)
    with pytest.raises(exception, match=message) as raised:
        call(opt, params, grads)
    assert type(raised.value) is exception
    assert memory(params, grads) == memory_before
    assert state(opt) == state_before


def replaced(which, index, change):
    """A case in which one array of the model is another one."""

    def case(opt, params, grads):
        array = (params if which == "params" else grads)[index]
        new = change(array, params, grads, opt)
        (params if which == "params" else grads)[index] = new
        return params, grads

    return case


def grad(index, change):
    return replaced("grads", index, lambda x, *others: change(x))


def param(index, change):
    return replaced("params", index, lambda x, *others: change(x))


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def unaligned_view(params, start):
    """A gradient for position 1 at an odd address, over the memory of parameter 0."""
    return params[0].reshape(-1).view(np.uint8)[start : start + 12].view(np.float32)


def both(params, grads):
    return lambda *_: (params, grads)


def whole(change):
    """A case that makes both containers from the right ones."""
    return lambda opt, params, grads: change(params, grads)


def as_dict(arrays, keys=KEYS):
    return dict(zip(keys, arrays, strict=False))


ANY, BUILT = ("first step", "after steps"), ("after steps",)
NOT_AN_ARRAY = [
    ([1.0, 2.0, 3.0], "list"),
    ((1.0, 2.0, 3.0), "tuple"),
    (1.0, "float"),
    (3, "int"),
    ("123", "str"),
    (b"123", "bytes"),
    (memoryview(np.ones(3, np.float32)), "memoryview"),
    ({1, 2, 3}, "set"),
]
OTHER_DTYPES = [
    "float16",
    "longdouble",
    "complex64",
    "complex128",
    "int32",
    "int64",
    "uint8",
    "bool",
    "object",
    "U3",
    "S3",
    "m8[s]",
]

# (name, stages, case, exception, message)
ARRAY_CASES = [
    *(
        (
            f"a gradient of {dtype}",
            ANY,
            grad(1, lambda g, dtype=dtype: np.zeros(3, dtype)),
            TypeError,
            rf"^grads\[1\] has dtype {re.escape(str(np.dtype(dtype)))}, .*float32",
        )
        for dtype in OTHER_DTYPES
    ),
    *(
        (
            f"a parameter of {dtype}",
            ANY,
            param(1, lambda p, dtype=dtype: np.zeros(3, dtype)),
            TypeError,
            rf"^params\[1\] has dtype {re.escape(str(np.dtype(dtype)))}, .*float32",
        )
        for dtype in OTHER_DTYPES
    ),
    (
        "a structured gradient",
        ANY,
        grad(1, lambda g: np.zeros(3, [("x", "f4")])),
        TypeError,
        r"^grads\[1\] has dtype \[\('x', '<f4'\)\]",
    ),
    (
        "a float64 gradient of a float32 parameter",
        ANY,
        grad(1, lambda g: g.astype(np.float64)),
        TypeError,
        r"^grads\[1\] has dtype float64, but params\[1\] has dtype float32.*astype",
    ),
    (
        "a float32 gradient of a float64 parameter",
        ANY,
        grad(2, lambda g: g.astype(np.float32)),
        TypeError,
        r"^grads\[2\] has dtype float32, but params\[2\] has dtype float64.*astype",
    ),
    (
        "a byte-swapped gradient of another dtype",
        ANY,
        grad(1, lambda g: g.astype(">f8")),
        TypeError,
        r"^grads\[1\] has dtype >f8, but params\[1\] has dtype float32",
    ),
    (
        "a parameter of another dtype than before",
        BUILT,
        param(1, lambda p: p.astype(np.float64)),
        TypeError,
        r"^params\[1\] has dtype float64, but the optimizer was built for float32",
    ),
    *(
        (
            f"a {name} gradient",
            ANY,
            grad(0, change),
            ValueError,
            rf"^grads\[0\] has shape {re.escape(shape)}, but params\[0\] has shape \(4, 3\)",
        )
        for name, change, shape in (
            ("transposed", lambda g: g.T, "(3, 4)"),
            ("flat", lambda g: g.ravel(), "(12,)"),
            ("deeper", lambda g: g[..., None], "(4, 3, 1)"),
            ("shorter", lambda g: g[:3], "(3, 3)"),
            ("broadcastable", lambda g: g[:1], "(1, 3)"),
            ("empty", lambda g: g[:0], "(0, 3)"),
            ("0-d", lambda g: np.float32(1.0), "()"),
        )
    ),
    *(
        (
            f"a {name} parameter where there was another",
            BUILT,
            param(0, change),
            ValueError,
            rf"^params\[0\] has shape {re.escape(shape)}, but the optimizer was built for \(4, 3\)",
        )
        for name, change, shape in (
            ("transposed", lambda p: p.T, "(3, 4)"),
            ("smaller", lambda p: p[:3], "(3, 3)"),
            ("flat", lambda p: p.reshape(-1), "(12,)"),
        )
    ),
    *(
        (f"a {name} parameter", ANY, param(1, change), ValueError, r"^params\[1\] is read-only")
        for name, change in (
            ("read-only", read_only),
            ("broadcast", lambda p: np.broadcast_to(p[:1], p.shape)),
            ("byte-swapped read-only", lambda p: read_only(p.astype(">f4"))),
            ("frombuffer", lambda p: np.frombuffer(p.tobytes(), p.dtype)),
        )
    ),
    *(
        (
            f"a masked {name}",
            ANY,
            replaced(name, 1, lambda x, *_: np.ma.array(x, mask=[0, 1, 0])),
            TypeError,
            rf"^{name}\[1\] is a masked array",
        )
        for name in ("params", "grads")
    ),
    *(
        (
            f"a {kind} among {name}",
            ANY,
            replaced(name, 1, lambda *_, x=x: x),
            TypeError,
            rf"^{name}\[1\] is of type {kind}\b",
        )
        for name in ("params", "grads")
        for x, kind in [*NOT_AN_ARRAY, (None, "NoneType")]
        if (name, x) != ("grads", None)
    ),
    (
        "a NumPy scalar among params",
        ANY,
        param(1, lambda p: np.float32(1.0)),
        TypeError,
        r"^params\[1\] is of type float32\b",
    ),
    # overlap
    *(
        (
            f"params that share memory: {name}",
            ANY,
            replaced("params", 3, change),
            ValueError,
            rf"^params\[(3|{other})\] shares memory with params\[(3|{other})\]",
        )
        for name, change, other in (
            ("the same array", lambda x, params, *_: params[1], 1),
            ("the same memory", lambda x, params, *_: params[1][:], 1),
            ("reversed", lambda x, params, *_: params[1][::-1], 1),
            ("byte-swapped", lambda x, params, *_: params[1].view(">f4"), 1),
            ("a row of another", lambda x, params, *_: params[0][2], 0),
            ("a column of another", lambda x, params, *_: params[0][1:, 1], 0),
            ("at an odd address", lambda x, params, *_: unaligned_view(params, 1), 0),
            ("at an odd address near the end", lambda x, p, *_: unaligned_view(p, 35), 0),
        )
    ),
    *(
        (
            f"a gradient that shares memory with params: {name}",
            ANY,
            replaced("grads", index, change),
            ValueError,
            rf"^grads\[{index}\] shares memory with params\[{other}\]",
        )
        for name, index, change, other in (
            ("its own", 0, lambda x, params, *_: params[0], 0),
            ("its own in float64", 2, lambda x, params, *_: params[2], 2),
            ("its own reversed", 1, lambda x, params, *_: params[1][::-1], 1),
            ("its own byte-swapped", 1, lambda x, params, *_: params[1].view(">f4"), 1),
            ("its own read-only", 1, lambda x, params, *_: np.broadcast_to(params[1], 3), 1),
            ("its own as a subclass", 1, lambda x, params, *_: params[1].view(np.recarray), 1),
            ("another's", 1, lambda x, params, *_: params[3], 3),
            ("a row of another", 1, lambda x, params, *_: params[0][2], 0),
            ("a column of another", 1, lambda x, params, *_: params[0][1:, 1], 0),
            ("a diagonal of another", 1, lambda x, params, *_: np.diagonal(params[0]), 0),
            ("at an odd address", 1, lambda x, params, *_: unaligned_view(params, 1), 0),
            ("at an odd address near the end", 1, lambda x, p, *_: unaligned_view(p, 35), 0),
        )
    ),
    *(
        (
            f"a gradient that is {name}",
            BUILT,
            replaced("grads", 1, change),
            ValueError,
            r"^grads\[1\] shares memory with the optimizer's weights",
        )
        for name, change in (
            ("a view of the weights", lambda x, params, grads, opt: opt.weights[1]),
            ("a view of other weights", lambda x, params, grads, opt: opt.weights[0][1]),
            ("the weights backwards", lambda x, params, grads, opt: opt.weights[1][::-1]),
        )
    ),
    # which arrays there are
    (
        "too few gradients",
        ANY,
        whole(lambda p, g: (p, g[:3])),
        ValueError,
        r"^grads has 3 entries, but .*\b4\b",
    ),
    (
        "too many gradients",
        ANY,
        whole(lambda p, g: (p, [*g, g[0]])),
        ValueError,
        r"^grads has 5 entries, but .*\b4\b",
    ),
    (
        "no gradients",
        ANY,
        whole(lambda p, g: (p, [])),
        ValueError,
        r"^grads has 0 entries, but .*\b4\b",
    ),
    (
        "too few parameters",
        BUILT,
        whole(lambda p, g: (p[:3], g[:3])),
        ValueError,
        r"^params has 3 entries, but the optimizer was built for 4",
    ),
    (
        "too many parameters",
        BUILT,
        whole(lambda p, g: ([*p, np.ones(2)], [*g, np.ones(2)])),
        ValueError,
        r"^params has 5 entries, but the optimizer was built for 4",
    ),
    (
        "no parameters where there were some",
        BUILT,
        whole(lambda p, g: ([], [])),
        ValueError,
        r"^params has 0 entries, but the optimizer was built for 4",
    ),
    ("an empty model", ANY[:1], both([], []), ValueError, r"^params is empty"),
    ("an empty dict", ANY[:1], both({}, {}), ValueError, r"^params is empty"),
    *(
        (
            f"all gradients None in a {name}",
            stages,
            whole(lambda p, g, form=form: (form(p), form([None] * 4))),
            ValueError,
            r"^all gradients are None",
        )
        for name, form, stages in (
            ("list", list, ANY),
            ("tuple", tuple, ANY),
            ("dict", as_dict, ANY[:1]),
        )
    ),
    *(
        (
            f"params in a {kind}",
            ANY,
            whole(lambda p, g, form=form: (form(p), g)),
            TypeError,
            rf"^params is of type {kind}\b",
        )
        for kind, form in (
            ("generator", lambda p: (x for x in p)),
            ("set", lambda p: {1, 2}),
            ("str", lambda p: "abcd"),
            ("NoneType", lambda p: None),
            ("mappingproxy", lambda p: types.MappingProxyType(as_dict(p))),
        )
    ),
    *(
        (
            f"grads in a {kind}",
            ANY,
            whole(lambda p, g, form=form: (p, form(g))),
            TypeError,
            rf"grads is of type {kind}\b",
        )
        for kind, form in (
            ("generator", lambda g: (x for x in g)),
            ("set", lambda g: {1, 2}),
            ("str", lambda g: "abcd"),
            ("NoneType", lambda g: None),
            ("ndarray", lambda g: g[0]),
        )
    ),
    (
        "a bare parameter with listed gradients",
        ANY,
        whole(lambda p, g: (p[0], [g[0]])),
        TypeError,
        r"^params is of type ndarray, but grads is of type list",
    ),
    (
        "rows of a bare parameter",
        ANY[:1],
        whole(lambda p, g: (p[0], list(g[0]))),
        TypeError,
        r"^params is of type ndarray, but grads is of type list",
    ),
    (
        "a dict where there was a list",
        BUILT,
        whole(lambda p, g: (as_dict(p), as_dict(g))),
        TypeError,
        r"^params is a dict, but the optimizer was built for a list",
    ),
    (
        "a dict of gradients for a list",
        ANY,
        whole(lambda p, g: (p, as_dict(g))),
        TypeError,
        r"^grads is a dict\b",
    ),
    (
        "listed gradients for a dict",
        ANY[:1],
        whole(lambda p, g: (as_dict(p), g)),
        TypeError,
        r"^grads is a list\b.*dict",
    ),
]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("stage", "case", "exception", "message"),
    [
        pytest.param(stage, case, exception, message, id=f"{name}, {stage}")
        for name, stages, case, exception, message in ARRAY_CASES
        for stage in stages
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_anything_is_written(
    stage, case, exception, message, call
):
    opt, params, grads = built(stage)
    bad_params, bad_grads = case(opt, list(params), list(grads))
    refused(call, opt, bad_params, bad_grads, exception, message)
    check_usable(opt, params, grads)


@pytest.mark.parametrize("stage", ANY)
@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (lambda p, g: g.pop("b"), ValueError, r"^grads has no key 'b'"),
        (lambda p, g: g.update(x=g["b"]), ValueError, r"^grads has the key 'x'"),
        (lambda p, g: g.update(x=g.pop("b")), ValueError, r"^grads has (the|no) key '[xb]'"),
        (lambda p, g: g.update({1: g["b"]}), ValueError, r"^grads has the key 1\b"),
        (lambda p, g: g.update(b=g["c"]), TypeError, r"^grads\['b'\] has dtype float64"),
        (lambda p, g: g.update(W=g["W"].T), ValueError, r"^grads\['W'\].*params\['W'\] has shape"),
        (lambda p, g: g.update(W=[1.0]), TypeError, r"^grads\['W'\] is of type list"),
        (lambda p, g: g.update(b=p["b"]), ValueError, r"^grads\['b'\] shares .* params\['b'\]"),
        (lambda p, g: p.update(d=p["b"]), ValueError, r"^params\['[bd]'\] shares memory with"),
        (lambda p, g: p.update(b=read_only(p["b"])), ValueError, r"^params\['b'\] is read-only"),
        (lambda p, g: g.update(dict.fromkeys(g)), ValueError, r"^all gradients are None"),
    ],
    ids=[
        "missing key",
        "extra key",
        "renamed key",
        "position for a key",
        "dtype",
        "shape",
        "list",
        "own parameter",
        "shared parameters",
        "read-only",
        "all None",
    ],
)
def test_refusals_of_a_dict_name_its_keys(stage, change, exception, message):
    opt, (params, grads) = RMSprop(**OPTIONS), map(as_dict, model())
    if stage == "after steps":
        opt.step(params, grads)
    bad_params, bad_grads = dict(params), dict(grads)
    change(bad_params, bad_grads)
    refused(by_step, opt, bad_params, bad_grads, exception, message)
    opt.step(params, grads)
    expected, expected_grads = model()
    twin = RMSprop(**OPTIONS)
    for _ in range(opt.iterations):
        twin.step(expected, expected_grads)
    for found, right in zip(params.values(), expected, strict=True):
        assert_same_bits(found, right)


@pytest.mark.parametrize("which", ["params", "grads"])
@pytest.mark.parametrize("missing", KEYS)
def test_a_dict_without_a_key_of_the_model_is_refused(which, missing):
    opt, (params, grads) = RMSprop(), map(as_dict, model())
    opt.step(params, grads)
    given = {"params": dict(params), "grads": dict(grads)}
    del given[which][missing]
    refused(by_step, opt, given["params"], given["grads"], ValueError, f"^{which}.*'{missing}'")


def test_a_list_where_there_was_a_dict_is_refused():
    opt, (params, grads) = RMSprop(), model()
    opt.step(as_dict(params), as_dict(grads))
    refused(by_step, opt, params, grads, TypeError, "^params is a list, but .* built for a dict")
    refused(by_step, opt, params[0], grads[0], TypeError, "^params is .*built for a dict")


@pytest.mark.parametrize(
    ("params", "grads", "exception", "message"),
    [
        (np.ones(3), np.ones(4), ValueError, r"^grads has shape \(4,\), but params has shape"),
        (np.ones(3), np.ones(3, "f4"), TypeError, r"^grads has dtype float32, but params has"),
        (np.ones(3, "i8"), np.ones(3), TypeError, r"^params has dtype int64"),
        (read_only(np.ones(3)), np.ones(3), ValueError, r"^params is read-only"),
        (np.ma.array(np.ones(3)), np.ones(3), TypeError, r"^params is a masked array"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refusals_of_a_bare_array_have_no_index(params, grads, exception, message):
    refused(by_step, RMSprop(), params, grads, exception, message)


def test_a_bare_array_that_is_its_own_gradient_is_refused():
    w = np.ones(3)
    refused(by_step, RMSprop(), w, w, ValueError, "^grads shares memory with params;")


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


# A check that remembers what it has checked must not be misled by a step that was refused, by one
# that used copies, or by an address that another array had before.


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


NOT_NUMBERS = [True, np.True_, "0.1", b"1", 1j, [0.1], (0.1,), {}, object()]
HYPERPARAMETER_CASES = [
    *(
        (name, value, TypeError)
        for name in ("lr", "learning_rate", "rho", "epsilon", "decay", "clipnorm", "clipvalue")
        for value in NOT_NUMBERS
    ),
    *((name, None, TypeError) for name in ("lr", "learning_rate", "rho", "decay")),
    *(
        (name, value, ValueError)
        for name in ("lr", "learning_rate", "rho", "epsilon", "decay", "clipnorm", "clipvalue")
        for value in (
            float("nan"),
            float("inf"),
            -float("inf"),
            np.float64("nan"),
            np.float32("inf"),
            10**400,
            -(10**400),
        )
    ),
    *(
        (name, value, ValueError)
        for name in ("lr", "learning_rate", "rho", "epsilon", "decay")
        for value in (-1, -1e-300, np.float32(-0.5))
    ),
    *(("rho", value, ValueError) for value in (1.0000000000000002, 2, 1e300)),
]
HYPERPARAMETER_IDS = [
    f"{name}={str(value)[:20] if type(value) is not object else 'object'}"
    for name, value, _ in HYPERPARAMETER_CASES
]


def names(name, value):
    """The message names the argument (learning_rate is lr) and the value."""
    called = "(lr|learning_rate)" if name == "learning_rate" else name
    return rf"^{called} is {re.escape(repr(value))[:200]}"


@pytest.mark.parametrize(
    ("name", "value", "exception"), HYPERPARAMETER_CASES, ids=HYPERPARAMETER_IDS
)
def test_a_bad_hyperparameter_is_refused_by_the_constructor(name, value, exception):
    with pytest.raises(exception, match=names(name, value)) as raised:
        RMSprop(**{name: value})
    assert type(raised.value) is exception


@pytest.mark.parametrize(
    ("name", "value", "exception"), HYPERPARAMETER_CASES, ids=HYPERPARAMETER_IDS
)
def test_a_bad_hyperparameter_is_refused_by_assignment(name, value, exception):
    opt, params, grads = built("after steps", clipvalue=3.0)
    before, params_before = state(opt), memory(params)
    with pytest.raises(exception, match=names(name, value)):
        setattr(opt, name, value)
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


@pytest.mark.parametrize("name", ["amsgrad", "beta_1", "clip_norm", "name", "Lr"])
def test_an_unknown_keyword_is_refused_in_the_words_of_keras(name):
    message = f"^Unexpected keyword argument passed to optimizer: {name}$"
    with pytest.raises(TypeError, match=message):
        RMSprop(**{name: 0.1})
    with pytest.raises(TypeError, match=message):
        RMSprop.from_config({"lr": 0.1, name: 0.1})


@pytest.mark.parametrize("name", ["lr", "rho", "nesterov", "nonfinite", "lr_scale"])
@pytest.mark.parametrize("inner", [lambda x: [x], lambda x: {"config": x}])
def test_a_config_of_any_depth_is_a_value_error(inner, name):
    value = 1.0
    for _ in range(10**5):
        value = inner(value)
    config = {name: [value] if name == "lr_scale" else value}
    if name == "lr":
        config = {"lr": {"class_name": "CosineDecay", "config": {"initial_learning_rate": value}}}
        config["lr"]["config"]["decay_steps"] = 1
    with pytest.raises(ValueError, match="nested too deeply"):
        RMSprop.from_config(config)


@pytest.mark.parametrize("lr", [0.001, 0.1, 1e-3 + 0.0, np.float64(0.001)], ids=repr)
def test_lr_and_learning_rate_together_are_refused(lr):
    with pytest.raises(TypeError, match=r"both lr and learning_rate"):
        RMSprop(lr=lr, learning_rate=0.1)
    with pytest.raises(TypeError, match=r"both lr and learning_rate"):
        RMSprop(lr, learning_rate=lr)


def test_the_base_class_is_no_optimizer():
    with pytest.raises(TypeError, match="use RMSprop"):
        Optimizer()


@pytest.mark.parametrize("epsilon", [2.0**-150, 1e-46, 5e-324])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("stage", ANY)
def test_an_epsilon_that_rounds_to_0_in_float32_is_refused(stage, call, epsilon):
    opt, params, grads = built(stage)
    opt.epsilon = epsilon
    message = rf"^epsilon\W+{epsilon!r} rounds to 0 in float32"
    refused(call, opt, params, grads, ValueError, message)
    opt.epsilon = 1e-8
    check_usable(opt, params, grads)


@pytest.mark.parametrize(
    ("epsilon", "dtype"),
    [
        (5e-324, "float64"),
        (0.0, "float64"),
        (0.0, "float32"),
        (float(np.nextafter(2.0**-150, 1)), "float32"),
    ],
)
def test_an_epsilon_that_is_kept_is_accepted(epsilon, dtype):
    opt, p, g = RMSprop(epsilon=epsilon), np.ones(3, dtype), np.zeros(3, dtype)
    opt.step([p], [g])
    expected = np.nan if epsilon == 0 else 1.0
    assert_same_bits(p, np.full(3, expected, dtype))


ITERATIONS = [
    (-1, ValueError),
    (2**62 + 1, ValueError),
    (10**30, ValueError),
    (-(10**30), ValueError),
    (np.int64(-1), ValueError),
    (1.5, TypeError),
    (1.0, TypeError),
    (np.float64(1), TypeError),
    (float("nan"), TypeError),
    ("3", TypeError),
    (None, TypeError),
    (True, TypeError),
    (np.True_, TypeError),
    ([1], TypeError),
    (np.array(2.5), TypeError),
    (np.array(2.0), TypeError),
    (np.array([1, 2]), TypeError),
    (np.array([[7]]), TypeError),
]


@pytest.mark.parametrize(("value", "exception"), ITERATIONS, ids=lambda x: repr(x))
def test_bad_iterations_are_refused(value, exception):
    opt, params, grads = built("after steps")
    before = state(opt)
    with pytest.raises(exception, match=rf"^iterations is {re.escape(repr(value))}"):
        opt.iterations = value
    assert state(opt) == before
    check_usable(opt, params, grads)


class Broken:
    def __index__(self):
        raise OSError("no number today")


def test_an_error_of_the_assigned_object_leaves_the_optimizer_usable():
    opt, params, grads = built("after steps")
    with pytest.raises((OSError, TypeError)):
        opt.iterations = Broken()
    assert opt.iterations == 2
    check_usable(opt, params, grads)


def weights_like(opt, **changes):
    """Ones in the shapes of the weights, with some replaced by index."""
    weights = [np.ones(w.shape, w.dtype) for w in opt.weights]
    for name, value in changes.items():
        weights[int(name[1:])] = value
    return weights


SHAPE_MESSAGE = r"^Optimizer weight shape {} not compatible with provided weight shape {}"
WEIGHTS = {
    "too few": (
        lambda opt: weights_like(opt)[:3],
        ValueError,
        r"^Length of the specified weight list \(3\) does not match the number of weights "
        r"of the optimizer \(4\)",
    ),
    "too many": (
        lambda opt: [*weights_like(opt), np.ones(3)],
        ValueError,
        r"^Length of the specified weight list \(5\) .* \(4\)",
    ),
    "none": (
        lambda opt: [],
        ValueError,
        r"^Length of the specified weight list \(0\) .* \(4\)",
    ),
    "two counts": (
        lambda opt: [3, 3, *weights_like(opt)],
        ValueError,
        r"^Length of the specified weight list \([56]\) .* \(4\)",
    ),
    "a wrong shape in the first": (
        lambda opt: weights_like(opt, _0=np.ones((3, 4))),
        ValueError,
        SHAPE_MESSAGE.format(r"\(4, 3\)", r"\(3, 4\)"),
    ),
    "a wrong shape in the last": (
        lambda opt: weights_like(opt, _3=np.ones(4)),
        ValueError,
        SHAPE_MESSAGE.format(r"\(3,\)", r"\(4,\)") + r".*weights\[3\]",
    ),
    "a wrong shape in the last behind iterations": (
        lambda opt: [np.int64(9), *weights_like(opt, _3=np.ones(4))],
        ValueError,
        SHAPE_MESSAGE.format(r"\(3,\)", r"\(4,\)"),
    ),
    "a broadcastable last": (
        lambda opt: weights_like(opt, _3=np.float32(1.0)),
        ValueError,
        SHAPE_MESSAGE.format(r"\(3,\)", r"\(\)"),
    ),
    **{
        f"{dtype} in the last": (
            lambda opt, dtype=dtype: weights_like(opt, _3=np.ones(3, dtype)),
            TypeError,
            rf"^weights\[3\] has dtype {re.escape(str(np.dtype(dtype)))}",
        )
        for dtype in ("complex128", "object", "U1", "bool", "m8[s]")
    },
    "an object in the last": (
        lambda opt: weights_like(opt, _3=[None] * 3),
        TypeError,
        r"^weights\[3\] has dtype object",
    ),
    **{
        f"{count!r} iterations": (
            lambda opt, count=count: [count, *weights_like(opt)],
            TypeError if count in (1.5, 2.0, True, "3") else ValueError,
            r"^weights\[0\] is .*iterations",
        )
        for count in (-1, 1.5, np.float64(2), True, "3", 2**62 + 1, np.uint64(2**63 + 5), 10**30)
    },
}


@pytest.mark.parametrize("way", ["set_weights", "assignment"])
@pytest.mark.parametrize(("make", "exception", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fit_are_refused_and_none_is_set(make, exception, message, way):
    set_weights = {
        "set_weights": lambda opt, weights: opt.set_weights(weights),
        "assignment": lambda opt, weights: setattr(opt, "weights", weights),
    }
    opt, params, grads = built("after steps")
    weights, before = make(opt), state(opt)
    with pytest.raises(exception, match=message):
        set_weights[way](opt, weights)
    assert state(opt) == before
    check_usable(opt, params, grads)


def test_weights_too_large_for_float32_set_all_or_nothing():
    opt, params, grads = built("after steps")
    before = state(opt)
    with np.errstate(over="raise"):
        try:
            opt.set_weights(weights_like(opt, _3=np.full(3, 1e300)))
        except (FloatingPointError, ValueError):
            assert state(opt) == before
        else:
            assert np.isinf(opt.weights[3]).all()
    check_usable(opt, params, grads)


@pytest.mark.parametrize("weights", [[np.ones(3)], [5, np.ones(3)], [np.ones(3)] * 2], ids=len)
def test_weights_before_the_first_step_are_refused_with_what_to_do(weights):
    opt = RMSprop()
    with pytest.raises(ValueError, match=r"^Length of the .* call build\(params\) or step first$"):
        opt.set_weights(weights)
    assert state(opt) == state(RMSprop())


def test_iterations_before_the_first_step_are_set_or_refused_and_never_dropped():
    opt = RMSprop()
    try:
        opt.set_weights([7])
    except ValueError:
        assert opt.iterations == 0
    else:
        assert opt.iterations == 7


@pytest.mark.parametrize(
    ("params", "exception", "message"),
    [
        (None, TypeError, "^params is of type NoneType"),
        ([[1.0]], TypeError, r"^params\[0\] is of type list"),
        ([np.ones(3), np.ones(3, "i4")], TypeError, r"^params\[1\] has dtype int32"),
        ({"w": np.ones(3, "f2")}, TypeError, r"^params\['w'\] has dtype float16"),
        (np.ma.array([1.0]), TypeError, "^params is a masked array"),
    ],
    ids=["None", "list", "int32", "float16", "masked"],
)
def test_build_refuses_what_a_step_would(params, exception, message):
    opt = RMSprop()
    with pytest.raises(exception, match=message):
        opt.build(params)
    assert state(opt) == state(RMSprop())
    opt.build(model()[0])
    check_usable(opt, *model())


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (lambda p: p[:3], ValueError, "^params has 3 entries"),
        (lambda p: [p[0].T, *p[1:]], ValueError, r"^params\[0\] has shape \(3, 4\)"),
        (lambda p: [p[0].astype("f8"), *p[1:]], TypeError, r"^params\[0\] has dtype float64"),
        (as_dict, TypeError, "^params is a dict"),
    ],
    ids=["count", "shape", "dtype", "dict"],
)
def test_build_refuses_a_model_other_than_the_optimizers(change, exception, message):
    opt, params, grads = built("after steps")
    before = state(opt)
    with pytest.raises(exception, match=message):
        opt.build(change(params))
    assert state(opt) == before
    check_usable(opt, params, grads)


def test_weights_cannot_be_written_through_their_views():
    opt, params, grads = built("after steps")
    before = state(opt)
    for w in opt.weights:
        with pytest.raises(ValueError, match="read-only"):
            w[...] = 0
    assert state(opt) == before
    check_usable(opt, params, grads)


@pytest.mark.parametrize("method", ["get_gradients", "get_updates"])
@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (None, "NoneType"),
        ("0.5", "str"),
        ([1.0, [np.ones(3)]], "list"),
        ((1.0, [np.ones(3)], 3), "tuple"),
        ((1.0, 2.0, 3.0), "tuple"),
        ((1.0,), "tuple"),
        (np.ones(3), "ndarray"),
        ({"loss": 1.0}, "dict"),
        (object(), "object"),
    ],
    ids=["None", "str", "list", "ragged 3-tuple", "3-tuple", "1-tuple", "array", "dict", "object"],
)
def test_a_loss_that_returns_neither_a_pair_nor_a_scalar_is_refused(method, returned, kind):
    opt, params, grads = built("after steps")
    before, params_before = state(opt), memory(params)
    arguments = (None, lambda _: returned) if method == "get_updates" else (lambda _: returned,)
    arguments = (params, *arguments) if method == "get_updates" else (*arguments, params)
    with pytest.raises(TypeError, match=rf"^loss returned .*{kind}"):
        getattr(opt, method)(*arguments)
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


@pytest.mark.parametrize("method", ["get_gradients", "get_updates"])
@pytest.mark.parametrize("loss", [None, 0.5, "mse", [np.ones(3)], (0.5, [np.ones(3)])], ids=repr)
def test_a_loss_that_is_not_callable_is_refused(method, loss):
    opt, params, grads = built("after steps")
    before = state(opt)
    with pytest.raises(TypeError, match=f"^loss is of type {type(loss).__name__};"):
        opt.get_gradients(loss, params) if method == "get_gradients" else opt.get_updates(
            params, None, loss
        )
    assert state(opt) == before
    check_usable(opt, params, grads)


def test_an_exception_in_a_loss_changes_nothing():
    def broken(_):
        raise ZeroDivisionError("in the loss")

    opt, params, grads = built("after steps")
    before, params_before = state(opt), memory(params)
    for call in (
        lambda: opt.get_gradients(broken, params),
        lambda: opt.get_updates(params, None, broken),
    ):
        with pytest.raises(ZeroDivisionError, match="in the loss"):
            call()
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize(
    ("constraints", "exception", "message"),
    [
        (3, TypeError, "^constraints is of type int"),
        ("maxnorm", TypeError, "^constraints is of type str"),
        (abs, TypeError, "^constraints is of type builtin_function_or_method"),
        ([None] * 3, ValueError, "^constraints has 3 entries, but params has 4"),
        ([None] * 5, ValueError, "^constraints has 5 entries, but params has 4"),
        ({9: "nonneg"}, ValueError, "^constraints has the key 9"),
        ({-1: "nonneg"}, ValueError, "^constraints has the key -1"),
        ({"x": "nonneg"}, ValueError, "^constraints has the key 'x'"),
        ([None, 3, None, None], ValueError, r"constraints\[(1|'b')\].*\b3\b"),
        ([None, "nope", None, None], ValueError, r"constraints\[(1|'b')\].*\bnope\b"),
        ([None, {"class_name": "nope"}, None, None], ValueError, r"constraints\[(1|'b')\].*nope"),
        ([None, {}, None, None], ValueError, r"constraints\[(1|'b')\].*\{\}"),
    ],
    ids=str,
)
def test_bad_constraints_are_refused_before_the_loss_is_called(
    form, constraints, exception, message
):
    opt, (params, grads) = RMSprop(**OPTIONS), model()
    given = as_dict(params) if form == "dict" else params
    before, params_before = state(opt), memory(params)
    with pytest.raises(exception, match=message):
        opt.get_updates(given, constraints, lambda _: pytest.fail("the loss was called"))
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


def test_an_exception_in_a_constraint_leaves_the_update_and_a_usable_optimizer():
    def broken(_):
        raise ZeroDivisionError("in the constraint")

    opt, params, grads = built("after steps")
    expected = [p.copy() for p in params]
    twin = RMSprop.from_config(opt.get_config())
    twin.build(expected)
    twin.set_weights([opt.iterations, *opt.get_weights()])
    twin.step(expected, grads)
    with pytest.raises(ZeroDivisionError, match="in the constraint"):
        opt.get_updates(params, {1: broken, 3: np.zeros_like}, lambda _: (0.0, grads))
    for found, right in zip(params, expected, strict=True):
        assert_same_bits(found, right)
    check_usable(opt, params, grads)


@pytest.mark.parametrize(
    ("pairs", "exception", "message"),
    [
        ([(np.ones(3), np.ones(3), 1)], ValueError, r"^grads_and_vars\[0\] has 3 entries"),
        ([(np.ones(3), np.ones(3)), (np.ones(3),)], ValueError, r"^grads_and_vars\[1\] has 1 entr"),
        ([], ValueError, "^params is empty"),
        ([(None, np.ones(3))], ValueError, "^all gradients are None"),
        ([(np.ones(4), np.ones(3))], ValueError, r"^grads\[0\] has shape \(4,\)"),
        ([(np.ones(3), None)], TypeError, r"^params\[0\] is of type NoneType"),
        ([3], TypeError, r"^grads_and_vars\[0\] is of type int"),
        (None, TypeError, r"^grads_and_vars is of type NoneType"),
    ],
    ids=["triple", "single", "empty", "None", "shape", "no parameter", "no pair", "nothing"],
)
def test_pairs_that_cannot_be_used_are_refused(pairs, exception, message):
    opt = RMSprop()
    with pytest.raises(exception, match=message):
        opt.apply_gradients(pairs)
    assert state(opt) == state(RMSprop())


def test_a_list_that_lies_about_its_length_is_read_as_it_is():
    class Long(list):
        def __len__(self):
            return 2

    w = np.ones(3)
    opt = RMSprop()
    opt.step([w, np.ones(2)], [np.ones(3), np.ones(2)])
    before = w.copy()
    with pytest.raises(ValueError, match=r"^grads has 1 entries, but params has 2"):
        opt.step([w, np.ones(2)], Long([np.ones(3)]))
    assert_same_bits(w, before)


def test_a_parameter_that_overlaps_itself_is_refused():
    w = np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,))
    with pytest.raises(ValueError, match=r"^params\[0\] overlaps itself"):
        RMSprop().step([w], [np.ones(3)])
    assert w[0] == 1


def test_a_subclass_cannot_lie_about_its_shape():
    class Small(np.ndarray):
        def __array_function__(self, function, types, args, kwargs):
            return (5,)

    w = np.ones(5)
    with pytest.raises(ValueError, match=r"^grads\[0\] has shape \(2,\)"):
        RMSprop().step([w], [np.ones(2).view(Small)])
    assert (w == 1).all()


def test_gradients_of_another_number_are_refused_by_get_gradients():
    opt = RMSprop(clipvalue=1.0)
    with pytest.raises(ValueError, match=r"^loss returned 1 gradients, but params has 2"):
        opt.get_gradients(lambda p: (0.0, [np.ones(1)]), [np.ones(1), np.ones(1)])


def test_a_constraint_class_is_refused_before_anything_changes():
    from rmsprop_c.constraints import NonNeg

    w, opt = np.ones(2), RMSprop()
    with pytest.raises(ValueError, match="NonNeg is a class; pass an instance"):
        opt.get_updates([w], [NonNeg], lambda p: (0.0, [np.ones(2)]))
    assert (w == 1).all()
    assert opt.iterations == 0


def test_what_is_no_mapping_is_not_deserialized():
    with pytest.raises(ValueError, match="Improper config format"):
        rmsprop_c.deserialize("rmsprop")

"""A model that can't be used raises before anything is written, by name."""

import re
import types

import numpy as np
import pytest
from refusals import (
    ANY,
    BUILT,
    CALLS,
    as_dict,
    built,
    check_usable,
    read_only,
    refused,
    whole,
)


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


def unaligned_view(params, start):
    """A gradient for position 1 at an odd address, over the memory of parameter 0."""
    return params[0].reshape(-1).view(np.uint8)[start : start + 12].view(np.float32)


def both(params, grads):
    return lambda *_: (params, grads)


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

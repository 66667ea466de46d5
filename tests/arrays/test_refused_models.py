"""Models of another form or number raise, by key or index."""

import numpy as np
import pytest
from common import assert_same_bits
from refusals import ANY, KEYS, OPTIONS, as_dict, by_step, model, read_only, refused

from rmsprop_c import RMSprop


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


@pytest.mark.parametrize("grads", [None, [np.ones(2)], (np.ones(2),), {"w": np.ones(2)}], ids=str)
def test_the_gradient_of_a_bare_array_is_one_too(grads):
    message = f"^params is of type ndarray, but grads is of type {type(grads).__name__}"
    with pytest.raises(TypeError, match=message):
        RMSprop().step(np.ones(2), grads)


def test_a_dict_of_as_many_other_keys_raises_by_key():
    opt = RMSprop()
    opt.build({"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"^params has no key 'a', only \['b'\]"):
        opt.step({"b": np.ones(2)}, {"a": np.ones(2)})

"""get_updates in the order of every Keras, and what constraints return."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop


@pytest.mark.parametrize(
    "call",
    [
        lambda opt, loss, params: opt.get_updates(params, None, loss),
        lambda opt, loss, params: opt.get_updates(loss, params),
        lambda opt, loss, params: opt.get_updates(params, loss),
        lambda opt, loss, params: opt.get_updates(loss=loss, params=params),
        lambda opt, loss, params: opt.get_updates(params=params, constraints=None, loss=loss),
        lambda opt, loss, params: opt.get_updates(params, loss=loss),
        lambda opt, loss, params: opt.get_updates(loss, params=params),
        lambda opt, loss, params: opt.get_updates(loss, params, [None]),
    ],
)
def test_get_updates_takes_the_order_of_every_keras(call):
    w, expected, g = np.ones(3), np.ones(3), np.full(3, 0.5)
    call(RMSprop(), lambda params: (0.0, [g]), [w])
    RMSprop().step([expected], [g])
    assert_same_bits(w, expected)


@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        ((), {}, "misses params"),
        (([np.ones(1)],), {}, "misses loss"),
        (([np.ones(1)], None, abs, 4), {}, "got 4"),
        ((abs, [np.ones(1)]), {"loss": abs}, "got loss twice"),
        ((abs, [np.ones(1)]), {"lr": 1}, "unexpected keyword argument 'lr'"),
    ],
)
def test_other_arguments_of_get_updates_raise(args, keywords, message):
    with pytest.raises(TypeError, match=message):
        RMSprop().get_updates(*args, **keywords)


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (0.0, ValueError, r"returned shape \(\), but its parameter has shape \(3,\)"),
        (np.ones(1), ValueError, r"returned shape \(1,\), but"),
        (np.ones((1, 3)), ValueError, r"returned shape \(1, 3\), but"),
        (np.ones(3) * 1j, TypeError, "returned dtype complex128, but its parameter has dtype flo"),
        (np.array(["a"] * 3), TypeError, "returned dtype <U1, but"),
    ],
)
def test_what_a_constraint_returns_is_not_broadcast(form, returned, error, message):
    w, name = np.ones(3), 0 if form == "list" else "W"
    params = [w] if form == "list" else {"W": w}
    grads = [np.ones(3)] if form == "list" else {"W": np.ones(3)}
    with pytest.raises(error, match=rf"^constraints\[{name!r}\] {message}"):
        RMSprop(lr=0.5).get_updates(params, {name: lambda w: returned}, lambda p: (0.0, grads))
    assert (w == w[0]).all()
    assert w[0] not in (0.0, 1.0)  # the update was made

"""lr_scale, parameter_clipnorm and exclude_from_weight_decay."""

import numpy as np
import pytest
from common import assert_same_bits
from option_sets import KEYS, as_form, copied, made, model, same

from rmsprop_c import RMSprop


def alone(params, grads, **options):
    """What separate optimizers, one for each position, make of the parameters."""
    params = copied(params)
    for i, p in enumerate(params):
        own = {name: values[i] for name, values in options.items()}
        opt = RMSprop(lr=own.pop("lr"), momentum=0.5, **own)
        for g in grads:
            if g[i] is not None:
                opt.step([p], [g[i]])
            else:  # no gradient leaves the parameter alone, yet the call counts
                opt.build([p])
                opt.iterations += 1
    return params


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
@pytest.mark.parametrize(
    ("factors", "excluded"),
    [
        ((2.0, 0.5, 0.0, 1.0, 3.0), (0, 2)),
        ((1.0, 0.1, 1.0, 1.0, 1.0), ()),
        (None, (1,)),
        (None, (0, 1, 2, 3, 4)),
    ],
    ids=str,
)
def test_options_by_position_are_those_of_separate_optimizers(factors, excluded, decoupled, form):
    params, grads = model("mixed", 7, 2)
    expected = alone(
        params,
        grads,
        lr=[0.01 * (factors[i] if factors else 1) for i in range(5)],
        weight_decay=[0.0 if i in excluded else 0.25 for i in range(5)],
        decoupled_weight_decay=[decoupled] * 5,
    )
    arguments = {"lr_scale": factors, "exclude_from_weight_decay": excluded}
    opt = made(
        arguments
        | {"lr": 0.01, "weight_decay": 0.25, "decoupled_weight_decay": decoupled}
        | {"momentum": 0.5},
        form,
    )
    for g in grads:
        opt.step(as_form(params, form), as_form(g, form))
    same(params, expected)


def test_parameters_are_clipped_as_by_separate_optimizers():
    params, grads = model("mixed", 5, 2)
    expected = alone(params, grads, lr=[0.01] * 5, parameter_clipnorm=[0.5] * 5)
    opt = RMSprop(lr=0.01, parameter_clipnorm=0.5, momentum=0.5)
    for g in grads:
        opt.step(params, g)
    same(params, expected)


def test_keys_go_by_name_not_by_order():
    params, grads = model("mixed", 4, 3)
    arguments = {"lr_scale": {"v": 0.5, "W": 2.0}, "exclude_from_weight_decay": ("s", "W")}
    arguments |= {"weight_decay": 0.5, "lr": 0.01}
    by_position = RMSprop(
        lr=0.01,
        weight_decay=0.5,
        lr_scale=(2.0, 1.0, 1.0, 0.5, 1.0),
        exclude_from_weight_decay=(0, 2),
    )
    opt, expected = RMSprop(**arguments), copied(params)
    for t, g in enumerate(grads):
        names = list(reversed(KEYS)) if t else [KEYS[i] for i in (3, 0, 4, 2, 1)]
        opt.step(
            {key: params[KEYS.index(key)] for key in names},
            {key: g[KEYS.index(key)] for key in reversed(names)},
        )
        by_position.step(expected, g)
    same(params, expected)


@pytest.mark.parametrize("form", [tuple, list, set, dict.fromkeys, iter, np.array])
def test_any_sequence_names_what_does_not_decay(form):
    excluded = form([0, 0])
    opt, w = RMSprop(lr=1.0, weight_decay=0.5, decoupled_weight_decay=True), np.ones(2)
    opt.exclude_from_weight_decay = excluded
    opt.step([w, np.ones(1)], [np.zeros(2), np.zeros(1)])
    assert_same_bits(w, np.ones(2))
    opt.exclude_from_weight_decay = [1]
    opt.step([w, np.ones(1)], [np.zeros(2), np.zeros(1)])
    assert_same_bits(w, np.full(2, 0.5))


@pytest.mark.parametrize("form", [list, tuple, np.array, iter])
def test_a_bare_array_has_the_position_0(form):
    w, v = np.ones(3), np.ones(3)
    RMSprop(lr=0.25, lr_scale=form([0.5])).step(w, np.ones(3))
    RMSprop(lr=0.125).step([v], [np.ones(3)])
    assert_same_bits(w, v)


@pytest.mark.parametrize("name", [True, [1], {}], ids=str)
def test_what_can_be_no_key_is_not_excluded(name):
    opt = RMSprop()
    with pytest.raises(TypeError, match=r"^exclude_from_weight_decay\[1\] is .* index or a key$"):
        opt.exclude_from_weight_decay = [0, name]
    assert opt.exclude_from_weight_decay == ()

"""State goes to other frameworks' RMSprop and comes back; these structures are made by hand."""

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c.interchange import read, write

SHAPES = [(2, 3), (4,), ()]
SLOTS = ["accumulator", "momentum", "average_gradient"]
KEYS = ["w", "b", "a"]
FRAMEWORKS = ["torch", "keras3", "optax"]


class ScaleByRmsState(NamedTuple):
    nu: Any


class ScaleByRStdDevWithCountState(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class TraceState(NamedTuple):
    trace: Any


class ScaleByScheduleState(NamedTuple):
    count: Any


class EmptyState(NamedTuple):
    pass


class MultiStepsState(NamedTuple):
    mini_step: Any
    gradient_step: Any
    inner_opt_state: Any
    acc_grads: Any
    skip_state: Any = ()


class EmaState(NamedTuple):
    count: Any
    ema: Any


class InjectStatefulHyperparamsState(NamedTuple):
    count: Any
    hyperparams: Any
    hyperparams_states: Any
    inner_state: Any


class Params(NamedTuple):
    w: Any
    b: Any
    a: Any


def arrays(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def state_of_torch(slots=SLOTS, groups=((0, 1), (2,)), fresh=False):
    """As ``torch.optim.RMSprop(...).state_dict()``."""
    names = {"accumulator": "square_avg", "momentum": "momentum_buffer"}
    names["average_gradient"] = "grad_avg"
    group = {"lr": 0.5, "momentum": 0.5 * ("momentum" in slots)}
    group["centered"] = "average_gradient" in slots
    made = {slot: arrays(seed, np.float32) for seed, slot in enumerate(slots)}
    entries = {} if fresh else {i: {"step": np.array(7, np.float32)} for i in range(len(SHAPES))}
    for i, entry in entries.items():
        entry.update({names[slot]: made[slot][i] for slot in slots})
    return {
        "state": entries,
        "param_groups": [{**group, "params": list(params)} for params in groups],
    }


def state_of_keras(slots=SLOTS, schedule=False):
    """As the values of ``keras.optimizers.RMSprop(...).variables``."""
    order = ["moving_average", "gradient_sum", *SLOTS]
    head = [np.array(7, np.int32)] + [np.array(0.5, np.float32)] * (not schedule)
    return head + [x for i, slot in enumerate(order) if slot in slots for x in arrays(i, "f4")]


def state_of_optax(slots=SLOTS, form=list, counts=True):
    """As the state of ``optax.rmsprop(...)``, with bias correction and a schedule if it counts."""
    nu, mu, trace = (form(arrays(i, np.float32)) for i in range(3))
    count = np.array(7, np.int32)
    first = ScaleByRStdDevWithCountState(count, mu, nu) if counts else ScaleByRmsState(nu)
    schedule = ScaleByScheduleState(count) if counts else EmptyState()
    return (first, schedule, TraceState(trace) if "momentum" in slots else EmptyState())


def by_key(values):
    # jax sorts the keys of a dict.
    return dict(sorted(zip(KEYS, values, strict=True)))


STATES = {"torch": state_of_torch, "keras3": state_of_keras, "optax": state_of_optax}


def leaves(tree):
    """All arrays and numbers of a structure, with where they are."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        return {(): tree}
    return {
        (type(tree).__name__, key, *path): x for key, v in items for path, x in leaves(v).items()
    }


def assert_same_state(found, expected):
    found, expected = leaves(found), leaves(expected)
    assert list(found) == list(expected)
    for path, x in expected.items():
        if np.asarray(x).dtype.kind == "f":
            assert_same_bits(found[path], x, path)
        else:
            assert found[path] == x, path


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_state_that_is_read_and_written_is_the_same(framework):
    state, template = STATES[framework](), STATES[framework]()
    values, iterations, calls = read(framework, state, SLOTS, 3)
    assert sorted(values) == sorted(SLOTS)
    assert (iterations, calls) == (7, 0)
    assert_same_state(write(framework, template, values, 7), state)
    zeros = {slot: [np.zeros(shape) for shape in SHAPES] for slot in SLOTS}
    empty = write(framework, template, zeros, 0)
    assert_same_state(template, state)  # not changed
    assert all(not x.any() for slot in SLOTS for x in read(framework, empty, SLOTS, 3)[0][slot])
    assert_same_state(write(framework, empty, values, 7), state)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_read_or_written_are_copies(framework):
    state = STATES[framework]()
    values, _, _ = read(framework, state, SLOTS, 3)
    written = write(framework, state, values, 7)
    theirs = [x for tree in (state, written) for x in leaves(tree).values()]
    ours = [x for slot in SLOTS for x in values[slot]]
    assert all(isinstance(x, np.ndarray) for x in ours)
    assert not any(np.shares_memory(x, y) for x in ours for y in theirs)
    for x in leaves(written).values():
        if isinstance(x, np.ndarray):
            assert not any(np.shares_memory(x, y) for y in leaves(state).values())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_dtypes_are_those_of_the_state_that_is_replaced(framework):
    values = {slot: arrays(9) for slot in SLOTS}
    written = write(framework, STATES[framework](), values, 7)
    found, _, _ = read(framework, written, SLOTS, 3)
    for slot in SLOTS:
        for x, y in zip(found[slot], values[slot], strict=True):
            assert_same_bits(x, y.astype(np.float32))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_leaf_makes_all_arrays(framework):
    class Tensor:
        def __init__(self, array):
            assert type(array) is np.ndarray
            self.array = array

    values = {slot: arrays(9) for slot in SLOTS}
    written = leaves(write(framework, STATES[framework](), values, 7, leaf=Tensor))
    others = [path for path, x in written.items() if not isinstance(x, Tensor)]
    assert all("param_groups" in path for path in others)


def test_torch_names_lead_to_our_slots():
    state = state_of_torch()
    values, _, _ = read("torch", state, SLOTS, 3)
    for i, entry in state["state"].items():
        assert_same_bits(values["accumulator"][i], entry["square_avg"])
        assert_same_bits(values["momentum"][i], entry["momentum_buffer"])
        assert_same_bits(values["average_gradient"][i], entry["grad_avg"])


def test_torch_parameters_count_in_the_order_of_the_groups():
    state = state_of_torch(groups=((2, 0), (1,)))
    values, _, _ = read("torch", state, SLOTS, 3)
    assert [x.shape for x in values["momentum"]] == [(), (2, 3), (4,)]
    written = write("torch", state, values, 8)
    assert [written["state"][i]["grad_avg"].shape for i in range(3)] == SHAPES


def test_what_else_torch_has_is_kept():
    state = {**state_of_torch(), "made by": "a hook"}
    written = write("torch", state, {slot: arrays(9) for slot in SLOTS}, 7)
    assert written["made by"] == "a hook"
    assert written["param_groups"] == state["param_groups"]
    written["param_groups"][0]["lr"] = 3.0
    assert state["param_groups"][0]["lr"] == 0.5


def test_torch_state_may_be_fresh():
    values = {slot: arrays(9, np.float32) for slot in SLOTS}
    fresh = state_of_torch(fresh=True)
    assert read("torch", fresh, SLOTS, 3) == (dict.fromkeys(SLOTS, [None] * 3), 0, 0)
    written = write("torch", fresh, values, 12)
    assert fresh["state"] == {}
    assert written["param_groups"] == fresh["param_groups"]
    found, iterations, _ = read("torch", written, SLOTS, 3)
    assert iterations == 12
    assert_same_bits(written["state"][0]["step"], np.array(12, np.float32))
    for slot in SLOTS:
        for x, y in zip(found[slot], values[slot], strict=True):
            assert_same_bits(x, y)


def test_a_torch_parameter_that_never_had_a_gradient_has_zeros():
    state = state_of_torch()
    del state["state"][1]
    state["state"][0]["step"] = np.array(3, np.float32)
    values, iterations, _ = read("torch", state, SLOTS, 3)
    assert [[x is None for x in values[slot]] for slot in SLOTS] == [[False, True, False]] * 3
    assert iterations == 7


def test_the_keras_variables_are_in_this_order():
    slots = {"moving_average", "gradient_sum", *SLOTS}
    variables = [np.array(23), np.array(0.5), *(np.full(2, float(i)) for i in range(10))]
    values, iterations, calls = read("keras3", variables, slots, 2, cycle=4)
    assert (iterations, calls) == (5, 3)  # Keras counts calls
    order = ["moving_average", "gradient_sum", "accumulator", "momentum", "average_gradient"]
    assert {slot: [x[0] for x in values[slot]] for slot in slots} == {
        slot: [2 * i, 2 * i + 1] for i, slot in enumerate(order)
    }
    written = write("keras3", variables, values, iterations, calls, cycle=4)
    assert_same_state(written, variables)


def test_keras_has_no_learning_rate_beside_a_schedule():
    state = state_of_keras(schedule=True)
    values, iterations, _ = read("keras3", state, SLOTS, 3)
    assert iterations == 7
    assert [x.shape for x in values["accumulator"]] == SHAPES
    assert_same_state(write("keras3", state, values, 7), state)


@pytest.mark.parametrize("form", [list, tuple, by_key, Params._make])
def test_optax_parameters_may_be_in_any_form(form):
    state = state_of_optax(form=form)
    keys = KEYS if form is by_key else None
    values, iterations, _ = read("optax", state, SLOTS, 3, keys=keys)
    assert iterations == 7
    assert [x.shape for x in values["accumulator"]] == SHAPES
    for slot, seed, sign in (
        ("accumulator", 0, 1),
        ("average_gradient", 1, 1),
        ("momentum", 2, -1),
    ):
        for x, y in zip(values[slot], arrays(seed, np.float32), strict=True):
            assert_same_bits(x, np.float32(sign) * y)
    assert_same_state(write("optax", state, values, 7, keys=keys), state)


def test_optax_may_have_one_bare_array():
    state = (ScaleByRmsState(np.ones(3)), EmptyState(), EmptyState())
    values, iterations, _ = read("optax", state, {"accumulator"}, 1)
    assert iterations is None
    (nu,) = values["accumulator"]
    assert_same_bits(nu, np.ones(3))
    written = write("optax", state, {"accumulator": [np.full(3, 2.0)]}, 5)
    assert_same_state(written, (ScaleByRmsState(np.full(3, 2.0)), EmptyState(), EmptyState()))


def test_optax_counts_only_where_it_needs_to():
    slots = ["accumulator", "momentum"]
    state = state_of_optax(slots, counts=False)
    values, iterations, _ = read("optax", state, slots, 3)
    assert iterations is None
    assert_same_state(write("optax", state, values, 100), state)
    counted = (*state[:1], ScaleByScheduleState(np.array(5)), *state[2:])
    assert read("optax", counted, slots, 3)[1] == 5
    assert write("optax", counted, values, 100)[1].count == 100


@pytest.mark.parametrize("framework", ["torch", "optax"])
def test_a_cycle_under_way_is_only_known_to_keras(framework):
    state = STATES[framework]()
    slots = ["gradient_sum", *SLOTS]
    values, iterations, calls = read(framework, state, slots, 3, cycle=4)
    assert values["gradient_sum"] == [None] * 3
    assert (iterations, calls) == (7, 0)
    values["gradient_sum"] = [np.zeros(shape) for shape in SHAPES]
    assert_same_state(write(framework, state, values, 7, 0, cycle=4), state)
    with pytest.raises(ValueError, match=f"{framework}'s state has no place .* 3 of 4 calls"):
        write(framework, state, values, 7, 3, cycle=4)


def in_steps(mini_step, acc_grads, counts=True):
    """As the state of ``optax.MultiSteps(optax.rmsprop(...), 4)``."""
    return MultiStepsState(mini_step, np.array(7), state_of_optax(counts=counts), acc_grads)


class ScaleByAdamState(NamedTuple):
    count: Any
    mu: Any
    nu: Any


UNREAD = {
    "Adam's": (
        "optax",
        (ScaleByAdamState(*state_of_optax()[0]), *state_of_optax()[1:]),
        "state is that of another optimizer, a ScaleByAdamState, not that of optax.rmsprop",
    ),
    "a cycle under way": (
        "optax",
        in_steps(np.array(3), [np.ones(shape) for shape in SHAPES]),
        "state is that of a cycle of gradients under way (mini_step is 3); finish the cycle first",
    ),
    "a cycle of zeros": (
        "optax",
        in_steps(np.array(1), [np.zeros(shape) for shape in SHAPES]),
        "cycle of gradients under way (mini_step is 1)",
    ),
    "gradients that are not finite": (
        "optax",
        in_steps(np.array(0), [np.full(shape, np.nan) for shape in SHAPES]),
        "state has acc_grads, which optax.rmsprop does not keep; pass the state of optax.rmsprop",
    ),
    "an average of updates": (
        "optax",
        (*state_of_optax(), EmaState(np.array(7), {"w": np.zeros(2), "b": [np.array([0, 1])]})),
        "state has ema, which optax.rmsprop does not keep",
    ),
    "a wrapper of torch": (
        "torch",
        {
            **state_of_torch(),
            "state": {
                i: {**entry, "slow_buffer": entry["square_avg"]}
                for i, entry in state_of_torch()["state"].items()
            },
        },
        "state of parameter 0 has slow_buffer, which torch.optim.RMSprop does not keep",
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_would_be_lost_of_a_state_is_refused_both_ways(case):
    framework, state, message = UNREAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        read(framework, state, SLOTS, 3)
    values, _, _ = read("keras3", state_of_keras(), SLOTS, 3)
    with pytest.raises(ValueError, match=re.escape(message)):
        write(framework, state, values, 7)


@pytest.mark.parametrize("counts", [True, False])
def test_optax_wrappers_without_numbers_of_their_own_are_seen_through(counts):
    slots = SLOTS if counts else ["accumulator", "momentum"]
    zeros = [np.zeros(shape) for shape in SHAPES]
    state = (
        InjectStatefulHyperparamsState(
            np.array(7), {"learning_rate": np.array(0.5)}, {}, in_steps(np.array(0), zeros, counts)
        ),
        EmaState(np.array(7), zeros),
    )
    values, iterations, calls = read("optax", state, slots, 3)
    assert (iterations, calls) == (7, 0)
    assert_same_bits(values["accumulator"][0], arrays(0, np.float32)[0])
    written = write("optax", state, values, 9)
    assert_same_state(write("optax", written, values, 7), state)
    steps = written[0].inner_state
    assert (written[0].count, steps.gradient_step, steps.mini_step) == (9, 9, 0)
    assert written[0].hyperparams == {"learning_rate": 0.5}
    # Where rmsprop itself counts nothing, the wrapper's number of updates is it.
    assert read("optax", in_steps(np.array(0), zeros, counts), slots, 3)[1] == 7


def without(*slots):
    return [slot for slot in SLOTS if slot not in slots]


@pytest.mark.parametrize(
    ("framework", "state", "slots", "exception", "message"),
    [
        (
            "torch",
            state_of_torch(),
            without("momentum"),
            ValueError,
            "momentum_buffer.* make it with momentum",
        ),
        (
            "torch",
            state_of_torch(),
            without("average_gradient"),
            ValueError,
            "grad_avg.* make it with centered",
        ),
        (
            "torch",
            state_of_torch(without("momentum")),
            SLOTS,
            ValueError,
            "no momentum_buffer.* make it without momentum",
        ),
        (
            "torch",
            state_of_torch(without("average_gradient")),
            SLOTS,
            ValueError,
            "no grad_avg.* make it without centered",
        ),
        (
            "torch",
            state_of_torch(),
            [*SLOTS, "moving_average"],
            ValueError,
            "torch keeps no average of the weights.* without use_ema",
        ),
        (
            "torch",
            state_of_torch(groups=((0, 1),)),
            SLOTS,
            ValueError,
            "state has 2 parameters, but this optimizer has 3",
        ),
        (
            "torch",
            state_of_torch()["state"],
            SLOTS,
            TypeError,
            "state is of type dict; pass state_dict",
        ),
        ("torch", [1], SLOTS, TypeError, "state is of type list; pass state_dict"),
        (
            "keras3",
            state_of_keras(),
            without("momentum"),
            ValueError,
            "has 11 arrays.* 3 each of accumulator, average_gradient$",
        ),
        (
            "keras3",
            state_of_keras(without("momentum")),
            SLOTS,
            ValueError,
            "has 8 arrays.* momentum",
        ),
        ("keras3", state_of_keras()[:2], SLOTS, ValueError, "has 2 arrays"),
        ("keras3", state_of_keras()[:0], SLOTS, ValueError, "has 0 arrays"),
        (
            "keras3",
            [np.array(7), *(np.zeros(1) for _ in range(10))],
            SLOTS,
            ValueError,
            "has 11 arrays",
        ),
        ("keras3", {}, SLOTS, TypeError, "state is of type dict; pass"),
        (
            "optax",
            state_of_optax(),
            without("momentum"),
            ValueError,
            "state has trace.* make it with momentum",
        ),
        (
            "optax",
            state_of_optax(),
            without("average_gradient"),
            ValueError,
            "state has mu.* make it with centered",
        ),
        (
            "optax",
            state_of_optax(without("momentum")),
            SLOTS,
            ValueError,
            "no trace.* make it without momentum",
        ),
        (
            "optax",
            state_of_optax(counts=False),
            SLOTS,
            ValueError,
            "no mu.* make it without centered",
        ),
        (
            "optax",
            state_of_optax(),
            [*SLOTS, "moving_average"],
            ValueError,
            "optax keeps no average",
        ),
        ("optax", (EmptyState(),), SLOTS, ValueError, "state, of type tuple, has no nu"),
        ("optax", (state_of_optax(), state_of_optax()), SLOTS, ValueError, "several mu"),
        (
            "optax",
            state_of_optax(form=lambda x: x[:2]),
            SLOTS,
            ValueError,
            "[nm]u of state has 2 arrays, but this optimizer has 3",
        ),
        (
            "optax",
            (*state_of_optax(), ScaleByScheduleState(np.array(8))),
            SLOTS,
            ValueError,
            "several count",
        ),
        ("optax", state_of_optax(form=by_key), SLOTS, ValueError, "has the keys .*'a'.* have none"),
        ("tf", [], SLOTS, ValueError, "framework is 'tf'; it must be one of torch, keras3, optax"),
        (["torch"], [], SLOTS, ValueError, r"framework is \['torch'\]; it must be one of"),
    ],
)
def test_state_of_other_options_or_forms_is_refused_both_ways(
    framework, state, slots, exception, message
):
    with pytest.raises(exception, match=message):
        read(framework, state, slots, 3)
    with pytest.raises(exception, match=message):
        write(framework, state, {slot: arrays(9) for slot in slots}, 7)


def test_keys_are_those_of_this_optimizer():
    state = state_of_optax(form=by_key)
    with pytest.raises(ValueError, match=r"nu of state has .* parameters have \['w', 'b', 'c'\]"):
        read("optax", state, SLOTS, 3, keys=["w", "b", "c"])
    listed, _, _ = read("optax", state_of_optax(), SLOTS, 3, keys=KEYS)
    assert [x.shape for x in listed["accumulator"]] == SHAPES


@pytest.mark.parametrize(
    ("framework", "name"),
    [
        ("torch", r"square_avg of parameter 1"),
        ("keras3", r"state\[3\]"),
        ("optax", r"nu\[1\]"),
    ],
)
def test_state_of_other_shapes_is_not_written(framework, name):
    values = {slot: arrays(9) for slot in SLOTS}
    values["accumulator"][1] = np.zeros(5)
    with pytest.raises(ValueError, match=name + r" has shape \(4,\), but here it is \(5,\)"):
        write(framework, STATES[framework](), values, 7)

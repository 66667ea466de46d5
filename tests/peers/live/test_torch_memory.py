"""Tensors of any strides may move, share memory and be resized between steps."""

import copy
import gc
import json
import subprocess
import sys
import weakref
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch_runs import (
    STATE,
    assert_close,
    assert_same_bits,
    assert_same_run,
    gradients,
    parameters,
    train,
)

from rmsprop_c.torch import RMSprop

# Strided and overlapping gradients are what autograd makes of sums and transposes.
LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "permuted": lambda x: x.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize("grad_layout", [*LAYOUTS, "contiguous"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_have_the_bits_of_contiguous_tensors(layout, grad_layout):
    shape = (2, 3, 4, 5)
    (plain,), (data,) = parameters(shapes=[shape]), parameters(shapes=[shape])
    p = torch.nn.Parameter(LAYOUTS[layout](data.detach()))
    assert p.stride() != plain.stride()
    optimizer, expected = RMSprop([p], momentum=0.5), RMSprop([plain], momentum=0.5)
    for step in range(5):
        (g,) = gradients(step, shapes=[shape])
        p.grad = LAYOUTS[grad_layout](g) if grad_layout in LAYOUTS else g
        plain.grad = g
        optimizer.step()
        expected.step()
    assert_same_bits([p], [plain])
    for kind in STATE[:3]:
        state = optimizer.state[p][kind]
        assert_same_bits([state], [expected.state[plain][kind]])
        if kind != "step":
            assert state.stride() == torch.zeros_like(p).stride()


def test_a_gradient_that_was_expanded_is_used():
    w, expected = parameters(shapes=[(3, 4)]) + parameters(shapes=[(3, 4)])
    w.grad = torch.ones(1, dtype=torch.float64).expand(3, 4)
    expected.grad = torch.ones(3, 4, dtype=torch.float64)
    RMSprop([w]).step()
    RMSprop([expected]).step()
    assert_same_bits([w], [expected])


MOVES = {
    "new memory": lambda p: p.detach().clone(),
    "transposed in place": lambda p: p.detach().t(),
    "transposed copy": lambda p: p.detach().t().contiguous().t(),
    "a view": lambda p: torch.stack([p.detach(), p.detach()])[1],
}


@pytest.mark.parametrize("move", MOVES)
def test_a_parameter_may_move_between_steps(move):
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        params = parameters(shapes=[(3, 3), (3,)])
        optimizer = kind(params, momentum=0.5)
        train(optimizer, params, range(3))
        for step in range(3, 6):
            params[0].data = MOVES[move](params[0])
            train(optimizer, params, [step])
        runs.append(params)
    for p, e in zip(*runs, strict=True):
        assert_close(p.detach(), e.detach())


def test_a_parameter_may_move_to_shared_memory():
    params, expected = parameters(), parameters()
    optimizer, theirs = RMSprop(params), torch.optim.RMSprop(expected)
    train(optimizer, params, range(3))
    for p in params:
        p.share_memory_()
    train(optimizer, params, range(3, 6))
    train(theirs, expected, range(6))
    assert all(p.is_shared() for p in params)
    assert_same_run(optimizer, theirs, params, expected)


def test_a_model_may_change_its_precision_or_layout_and_keeps_its_state():
    model = torch.nn.Conv2d(3, 4, 3)
    optimizer = RMSprop(model.parameters(), momentum=0.5)
    x = torch.ones(1, 3, 5, 5)
    for change in (
        lambda: model.double(),
        lambda: model.to(memory_format=torch.channels_last),
        lambda: model.float(),
    ):
        optimizer.zero_grad()
        model(x.to(model.weight.dtype)).square().mean().backward()
        optimizer.step()
        before = copy.deepcopy(optimizer.state[model.weight])
        change()
        optimizer.zero_grad()
        model(x.to(model.weight.dtype)).square().mean().backward()
        expected = (
            optimizer.param_groups[0]["alpha"] * before["square_avg"].to(model.weight.dtype)
            + 0.01 * model.weight.grad.square()
        )
        optimizer.step()
        state = optimizer.state[model.weight]
        assert state["square_avg"].dtype == model.weight.dtype
        assert state["square_avg"].stride() == model.weight.stride()
        assert state["step"] == before["step"] + 1
        assert (state["square_avg"] - expected).abs().max() < 1e-6


def test_a_parameter_of_another_shape_is_refused():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([w])
    w.grad = torch.ones(3)
    optimizer.step()
    w.data, w.grad = torch.ones(4), None
    w.grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"square_avg of param_groups\[0\]\['params'\]\[0\] has"):
        optimizer.step()
    assert (w == 1).all()


def shared(entry):
    for tensor in entry.values():
        tensor.share_memory_()


def sent_to_another_process(entry):
    ForkingPickler.dumps(entry)


def given_other_data(entry):
    for tensor in entry.values():
        tensor.data = tensor.data.clone()


def set_to_another(entry):
    for tensor in entry.values():
        tensor.set_(tensor.clone())


def made_a_part_of_another(entry):
    for kind, tensor in entry.items():
        if kind != "step":
            tensor.data = torch.stack([tensor, tensor])[1]


def made_again(entry):
    for kind, tensor in entry.items():
        entry[kind] = tensor.clone()


STATE_MOVES = (
    shared,
    sent_to_another_process,
    given_other_data,
    set_to_another,
    made_a_part_of_another,
    made_again,
)


@pytest.mark.parametrize("move", STATE_MOVES)
def test_state_that_moves_in_the_middle_of_a_run_is_updated_where_it_is(move):
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = kind([p], lr=0.01, momentum=0.9)
        for step in range(6):
            if step == 3:
                move(optimizer.state[p])
                held = dict(optimizer.state[p])
            p.grad = 2 * p.detach()
            optimizer.step()
        assert all(held[name] is tensor for name, tensor in optimizer.state[p].items())
        resumed = torch.nn.Parameter(p.detach().clone())
        other = kind([resumed], lr=0.01, momentum=0.9)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(other, [resumed], range(4))
        runs.append((optimizer, p, other, resumed))
    (ours, p, other, resumed), (theirs, expected, their_other, their_resumed) = runs
    assert ours.state[p]["step"] == 6
    assert f"{ours.state[p]['square_avg'][0]:.6f}" == "0.108164"
    assert_same_run(ours, theirs, [p], [expected])
    assert_same_run(other, their_other, [resumed], [their_resumed])


# The recipe of A3C: state in shared memory, made before the first step, for workers that each have
# an optimizer over it. A process of its own, since forks do not go with the threads of the others.
A3C = """
import json, multiprocessing, sys, torch
from rmsprop_c.torch import RMSprop

torch.set_num_threads(1)

class Shared:
    def __init__(self, params, counter, **arguments):
        super().__init__(params, **arguments)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["step"] = counter.clone().share_memory_()
                self.state[p]["square_avg"] = torch.zeros_like(p).share_memory_()

def work(optimizer, p):
    p.grad = torch.full_like(p, 2.0)
    optimizer.step()

found = []
for kind in (RMSprop, torch.optim.RMSprop):
    for counter in (torch.zeros(1), torch.zeros(()), torch.zeros((), dtype=int)):
        p = torch.nn.Parameter(torch.zeros(2)).share_memory_()
        optimizer = type("SharedRMSprop", (Shared, kind), {})([p], counter)
        entry = dict(optimizer.state[p])
        for _ in range(3):
            worker = multiprocessing.get_context("fork").Process(target=work, args=(optimizer, p))
            worker.start()
            worker.join(60)
            assert worker.exitcode == 0
        assert all(optimizer.state[p][name] is tensor for name, tensor in entry.items())
        found.append([*p.tolist(), *entry["square_avg"].tolist(), entry["step"].item()])
print(json.dumps(found))
"""


def test_workers_update_the_state_that_they_share():
    run = subprocess.run([sys.executable, "-c", A3C], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = np.array(json.loads(run.stdout))
    assert np.abs(found[:3] - found[3:]).max() < 1e-6
    assert [f"{x:.6f}" for x in found[0]] == ["-0.228913"] * 2 + ["0.118804"] * 2 + ["3.000000"]


def test_a_plain_number_as_step_is_counted():
    """States of old versions of torch have one, and so has the recipe of A3C in many copies."""
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p])
    optimizer.state[p] = {"step": 0, "square_avg": torch.zeros_like(p)}
    train(optimizer, [p], range(3))
    assert optimizer.state[p]["step"] == 3


UNUSABLE_STATE = {
    "another shape": (
        lambda p: torch.zeros(4),
        ValueError,
        r"has shape \(4,\), but must have \(2, 3\)",
    ),
    "shared memory of another dtype": (
        lambda p: torch.zeros_like(p).double().share_memory_(),
        TypeError,
        "has dtype torch.float64 .* needs torch.float32",
    ),
    "shared memory of another order": (
        lambda p: torch.zeros(3, 2).share_memory_().t(),
        TypeError,
        r"strides \(1, 2\), where its parameter needs .* \(3, 1\)",
    ),
    "a part of a larger tensor, with gaps": (
        lambda p: torch.zeros(2, 6)[:, ::2],
        TypeError,
        r"strides \(6, 2\), .* other tensors or processes may use its memory",
    ),
    "an expanded tensor": (lambda p: torch.zeros(3).expand(2, 3), TypeError, r"strides \(0, 1\)"),
    "a list": (lambda p: [[0.0] * 3] * 2, TypeError, "is of type list"),
    "on another device": (lambda p: torch.zeros_like(p).to("meta"), TypeError, "is on meta"),
    "complex": (lambda p: torch.zeros_like(p).to(torch.complex64), TypeError, "has dtype"),
}


@pytest.mark.parametrize("what", UNUSABLE_STATE)
def test_state_that_can_not_be_updated_in_place_raises_by_name_and_stays(what):
    make, error, message = UNUSABLE_STATE[what]
    first, second = parameters(torch.float32, [(2,), (2, 3)])
    optimizer = RMSprop([first, second])
    given = {"step": torch.zeros(()), "square_avg": make(second)}
    optimizer.state[second] = dict(given)
    first.grad, second.grad = torch.ones(2), torch.ones(2, 3)
    before = [x.detach().clone() for x in (first, second)]
    where = r"^the square_avg of param_groups\[0\]\['params'\]\[1\] "
    with pytest.raises(error, match=where + ".*" + message):
        optimizer.step()
    assert_same_bits([first, second], before)
    assert given["step"] == 0
    assert optimizer.state[second].keys() == given.keys()
    assert all(optimizer.state[second][name] is x for name, x in given.items())
    assert first not in optimizer.state


def test_state_in_shared_memory_may_have_an_order_of_its_own_where_the_parameter_has_gaps():
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        p = torch.nn.Parameter(torch.ones(2, 6)[:, ::2])
        optimizer = kind([p])
        state = torch.zeros(3, 2).share_memory_().t()
        optimizer.state[p] = {"step": torch.zeros(()), "square_avg": state}
        train(optimizer, [p], range(3))
        assert optimizer.state[p]["square_avg"] is state
        runs.append((optimizer, p))
    (ours, p), (theirs, expected) = runs
    assert_same_run(ours, theirs, [p], [expected])


def test_what_shares_memory_with_the_state_raises():
    p = torch.nn.Parameter(torch.ones(3))
    both = torch.zeros(3)
    optimizer = RMSprop([p])
    optimizer.state[p] = {"step": torch.zeros(()), "square_avg": both}
    p.grad = both
    with pytest.raises(ValueError, match=r"grads\[0\] shares memory with the accumulator of par"):
        optimizer.step()
    p.grad = torch.ones(3)
    optimizer.state[p]["square_avg"] = p.detach()
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.step()
    assert (p == 1).all()


def test_a_parameter_that_becomes_shorter_in_place_is_not_written_outside():
    base = torch.arange(6.0)
    p = torch.nn.Parameter(base)
    optimizer = RMSprop([p], lr=0.5)
    p.grad = torch.ones(6)
    optimizer.step()
    before = base.clone()
    p.data = p.data[:4]
    with pytest.raises(ValueError, match="has shape"):
        optimizer.step()
    assert_same_bits([base], [before])
    p.grad = torch.ones(4)
    optimizer.state[p]["square_avg"] = optimizer.state[p]["square_avg"][:4]
    optimizer.step()
    assert (base[:4] < before[:4]).all()
    assert_same_bits([base[4:]], [before[4:]])


def test_a_gradient_with_torchs_negative_bit_is_used():
    (p,), (expected,) = parameters(shapes=[(3,)]), parameters(shapes=[(3,)])
    g = torch.tensor([1 + 2j, 3 - 4j, 5j], dtype=torch.complex128).conj().imag
    assert g.is_neg()
    p.grad, expected.grad = g, g.resolve_neg()
    for parameter in (p, expected):
        RMSprop([parameter]).step()
    assert_same_bits([p], [expected])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_gradient_of_another_dtype_steps_as_in_torch(dtype):
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this torch wants gradients of the parameter's dtype")
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        (p,) = parameters(torch.float32, shapes=[(3,)])
        p.grad_dtype = None
        p.grad = torch.tensor([0.5, -2.0, 1.5], dtype=dtype)
        optimizer = kind([p])
        optimizer.step()
        runs.append((optimizer, p))
    (ours, p), (theirs, expected) = runs
    assert_same_run(ours, theirs, [p], [expected])


def test_storages_can_be_resized_after_a_step():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([p])
    train(optimizer, [p], range(1))
    for tensor in (p.data, p.grad, optimizer.state[p]["square_avg"]):
        tensor.untyped_storage().resize_(0)


def test_memory_that_was_let_go_of_is_free_at_once():
    arrays = [np.ones(3, np.float32) for _ in range(3)]
    alive = [weakref.ref(x) for x in arrays]
    p = torch.nn.Parameter(torch.from_numpy(arrays[0]))
    optimizer = RMSprop([p])
    optimizer.state[p] = {"step": torch.zeros(()), "square_avg": torch.from_numpy(arrays[1])}
    p.grad = torch.from_numpy(arrays[2])
    arrays.clear()
    optimizer.step()
    p.data, p.grad = torch.ones(3), None
    optimizer.state.clear()
    gc.collect()
    assert [x() for x in alive] == [None] * 3


@pytest.mark.parametrize("shape", [(), (1,), (1, 3), (3, 1, 1), (0, 2), (2, 3)])
def test_state_of_any_shape_follows_the_precision_of_its_parameter(shape):
    p = torch.nn.Parameter(torch.ones(shape))
    optimizer = RMSprop([p], momentum=0.5, centered=True)
    train(optimizer, [p], range(1))
    held = dict(optimizer.state[p])
    p.grad = None
    p.data = p.data.double()
    train(optimizer, [p], range(1, 2))
    for kind, tensor in optimizer.state[p].items():
        assert tensor is held[kind]
        assert tensor.dtype == (torch.float32 if kind == "step" else torch.float64)


ALIASES = {
    "a view": lambda x: (x.double(), lambda y: y.view(-1)),
    "NumPy's": lambda x: (torch.from_numpy(np.zeros(3)), lambda y: y.numpy()),
    "another order": lambda x: (torch.zeros(3).double(), lambda y: y[:]),
}


@pytest.mark.parametrize("what", ALIASES)
def test_state_of_another_form_whose_memory_is_used_elsewhere_raises(what):
    w = torch.nn.Parameter(torch.ones(3))
    state, other = ALIASES[what](torch.zeros(3))
    kept = other(state)
    optimizer = RMSprop([w])
    optimizer.state[w] = {"step": torch.zeros(()), "square_avg": state}
    w.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"has dtype torch\.float64 .* may use its memory"):
        optimizer.step()
    assert (w == 1).all()
    assert kept is not None


def test_one_state_of_two_parameters_raises_where_it_would_take_two_forms():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = RMSprop([{"params": [p]}, {"params": [q]}])
    shared = torch.zeros(3).double()
    for x in (p, q):
        optimizer.state[x] = {"step": torch.zeros(()), "square_avg": shared}
        x.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"state of param_groups\[1\].* is that of another param"):
        optimizer.step()
    assert (p == 1).all()


def test_states_of_two_orders_are_used_where_the_parameter_has_gaps():
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        p = torch.nn.Parameter(torch.arange(200.0).reshape(10, 20)[::2, ::2].t())
        optimizer = kind([p], momentum=0.5)
        optimizer.state[p] = {
            "step": torch.zeros(()),
            "square_avg": torch.ones(p.shape),
            "momentum_buffer": torch.zeros_like(p),
        }
        train(optimizer, [p], range(3))
        runs.append((optimizer, p))
    (ours, p), (theirs, expected) = runs
    assert_close(p.detach(), expected.detach(), accumulated=True)
    for kind, value in theirs.state[expected].items():
        assert_close(ours.state[p][kind], value, accumulated=True)


def test_65_dimensions_raise_by_name():
    p = torch.nn.Parameter(torch.ones([1] * 65))
    with pytest.raises(TypeError, match="has 65 dimensions, but arrays have 64 at most"):
        RMSprop([p])


@pytest.mark.parametrize("counter", [None, "a", True, [1.0]])
def test_a_step_that_can_not_be_counted_raises_before_anything_changes(counter):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([w])
    optimizer.state[w] = {"step": counter, "square_avg": torch.zeros(3)}
    w.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"^the step of param_groups\[0\].* is of type"):
        optimizer.step()
    assert (w == 1).all()


def test_a_step_with_torchs_negative_bit_is_counted_up():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([w])
    step = torch.tensor(1 + 4j).conj().imag
    assert step.is_neg()
    optimizer.state[w] = {"step": step, "square_avg": torch.zeros(3)}
    train(optimizer, [w], range(3))
    assert optimizer.state[w]["step"] == -1


def groups_that_share(kind):
    """Two groups of which the second holds memory of the first; the names of both places."""
    flat = torch.ones(6)
    first, second = torch.nn.Parameter(flat[:4]), torch.nn.Parameter(torch.ones(3))
    first.grad, second.grad = torch.ones(4), torch.ones(3)
    optimizer = RMSprop([{"params": [first]}, {"params": [second]}])
    for _ in range(3):
        optimizer.step()
    mine, other = "param_groups[1]['params'][0]", "param_groups[0]['params'][0]"
    if kind == "parameter":
        second.data = flat[3:]
    elif kind == "gradient":
        second.grad = flat[1:4]
        mine = f"the gradient of {mine}"
    else:
        optimizer.state[second]["square_avg"] = flat[1:4]
        mine = f"the square_avg of {mine}"
    return optimizer, (mine, other)


@pytest.mark.parametrize("kind", ["parameter", "gradient", "state"])
def test_memory_shared_between_groups_raises_as_within_one(kind):
    optimizer, names = groups_that_share(kind)
    before = copy.deepcopy([group["params"] for group in optimizer.param_groups])
    with pytest.raises(ValueError, match="shares memory with") as caught:
        optimizer.step()
    assert all(name in str(caught.value) for name in names), caught.value
    for group, expected in zip(optimizer.param_groups, before, strict=True):
        assert_same_bits(group["params"], expected)


def test_groups_may_have_parts_of_one_tensor_and_gradients_in_common():
    flat, runs = torch.ones(4, 6), []
    for maker in (RMSprop, torch.optim.RMSprop):
        data = flat.clone()
        parts = [data[:2, ::2], data[:2, 1::2], data[2:], data[:0]]
        params = [torch.nn.Parameter(part) for part in parts]
        gradient = torch.ones(2, 3)
        for p in params:
            p.grad = gradient if p.shape == gradient.shape else torch.ones(p.shape)
        maker([{"params": [p]} for p in params], lr=0.5).step()
        runs.append(data)
    assert torch.allclose(*runs)
    assert (runs[0] < -3.9).all()

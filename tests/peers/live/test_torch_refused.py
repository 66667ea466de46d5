"""What can't be updated raises by group and index."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_runs import (
    assert_same_bits,
    parameters,
    train,
)

from rmsprop_c.torch import RMSprop

FROZEN = {
    "bfloat16": lambda: torch.ones(3).bfloat16(),
    "int32": lambda: torch.ones(3, dtype=torch.int32),
    "expanded": lambda: torch.ones(1).expand(3),
    "negated": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
}


@pytest.mark.parametrize("what", FROZEN)
def test_a_frozen_parameter_may_be_anything_until_it_has_a_gradient(what):
    w = torch.nn.Parameter(torch.ones(3))
    frozen = torch.nn.Parameter(FROZEN[what](), requires_grad=False)
    before = frozen.detach().clone()
    optimizer, expected = RMSprop([frozen, w]), torch.nn.Parameter(torch.ones(3))
    train(optimizer, [w], range(2))
    train(RMSprop([expected]), [expected], range(2))
    assert_same_bits([w], [expected])
    assert (frozen == before).all()
    assert frozen not in optimizer.state


def test_a_frozen_parameter_that_gets_a_gradient_raises_by_name():
    w, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3).half(), False)
    optimizer = RMSprop([("w", w), ("half", half)])
    w.grad, half.grad = torch.ones(3), torch.ones(3).half()
    with pytest.raises(TypeError, match=r"^param_groups\[0\]\['params'\]\[1\] \('half'\) has dty"):
        optimizer.step()
    assert (w == 1).all()


def test_errors_of_a_step_name_the_position_in_the_group():
    params = parameters(shapes=[(3,), (3,), (3,)])
    optimizer = RMSprop(params)
    params[2].grad = torch.ones(3, dtype=torch.float64)
    params[2].data = params[2].data[:2]  # of another shape at the same place
    with pytest.raises(ValueError, match=r"grads\[2\] has shape \(3,\), but params\[2\] has shap"):
        optimizer.step()


class Wrapper(torch.Tensor):
    """A tensor that keeps its numbers in another one."""

    @staticmethod
    def __new__(cls, inner):
        wrapped = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapped.inner = inner
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("a step must not compute with it")


@pytest.mark.parametrize("what", ["parameter", "gradient", "state"])
def test_tensors_without_memory_of_their_own_raise_by_name(what):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([w])
    w.grad = torch.ones(3)
    if what == "state":
        optimizer.state[w] = {"step": torch.zeros(()), "square_avg": Wrapper(torch.zeros(3))}
    elif what == "gradient":
        w.grad = Wrapper(torch.ones(3))
    else:
        with pytest.raises(TypeError, match=r"params'\]\[0\] is a Wrapper, which has no memory"):
            RMSprop([Wrapper(torch.ones(3)).requires_grad_()])
        return
    with pytest.raises(TypeError, match=r"of param_groups\[0\].* is a Wrapper, which has no mem"):
        optimizer.step()
    assert (w == 1).all()


def test_fake_tensors_raise_by_name():
    with FakeTensorMode():
        p = torch.nn.Parameter(torch.ones(3))
        with pytest.raises(TypeError, match="is a FakeTensor, which has no memory of its own"):
            RMSprop([p])


@pytest.mark.parametrize("what", ["parameter", "gradient", "square_avg"])
def test_memory_that_was_taken_away_raises_by_name(what):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = RMSprop([w])
    train(optimizer, [w], range(1))
    tensor = {"parameter": w.data, "gradient": w.grad}.get(what, optimizer.state[w]["square_avg"])
    tensor.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=r"param_groups\[0\].* has no memory: its storage has been"):
        optimizer.step()
    assert optimizer.state[w]["step"] == 1


REFUSED = {
    "has dtype torch.float16": lambda x: x.half(),
    "has dtype torch.bfloat16": lambda x: x.bfloat16(),
    "has dtype torch.complex64": lambda x: x.to(torch.complex64),
    "is sparse": lambda x: x.to_sparse(),
    "is on meta": lambda x: x.to("meta"),  # as CUDA's would be on cuda:0
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_parameter_that_can_not_be_updated_is_refused_by_name(what):
    good, bad = torch.ones(3), torch.nn.Parameter(REFUSED[what](torch.ones(3)))
    where = r"^param_groups\[0\]\['params'\]\[1\] "
    with pytest.raises(TypeError, match=where + what):
        RMSprop([torch.nn.Parameter(good), bad])
    named = [("layer.bias", torch.nn.Parameter(good)), ("layer.weight", bad)]
    with pytest.raises(TypeError, match=where + rf"\('layer.weight'\) {what}"):
        RMSprop(named)
    optimizer = RMSprop([torch.nn.Parameter(good)])
    with pytest.raises(TypeError, match=r"^param_groups\[1\]\['params'\]\[0\] " + what):
        optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1


def test_a_parameter_that_becomes_such_is_refused_before_anything_is_written():
    first, second = parameters(shapes=[(3,), (3,)])
    optimizer = RMSprop([{"params": [first]}, {"params": [second]}])
    train(optimizer, [first, second], range(2))
    before = [first.detach().clone(), copy.deepcopy(optimizer.state[first])]
    second.grad = None
    second.data = second.detach().half()
    second.grad = torch.ones(3).half()
    with pytest.raises(TypeError, match=r"^param_groups\[1\]\['params'\]\[0\] has dtype torch.flo"):
        optimizer.step()
    assert_same_bits([first], before[:1])
    assert_same_bits(optimizer.state[first].values(), before[1].values())


def test_a_sparse_gradient_is_refused_before_anything_is_written():
    linear, embedding = torch.nn.Linear(2, 2), torch.nn.Embedding(4, 2, sparse=True)
    model = torch.nn.ModuleDict({"linear": linear, "embedding": embedding})
    optimizer = RMSprop(model.named_parameters())
    linear(embedding(torch.tensor([1]))).sum().backward()
    before = linear.weight.detach().clone()
    with pytest.raises(
        TypeError, match=r"the gradient of param_groups.*\('embedding.weight'\) is sparse.*False$"
    ):
        optimizer.step()
    assert_same_bits([linear.weight], [before])
    assert not optimizer.state


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("alpha", 1.5, ValueError),
        ("momentum", 2, ValueError),
        ("eps", float("inf"), ValueError),
        ("weight_decay", True, TypeError),
        ("capturable", True, ValueError),
        ("differentiable", True, ValueError),
    ],
)
def test_an_argument_that_can_not_be_used_is_refused_by_name(argument, value, error):
    (w,) = parameters(shapes=[(3,)])
    where = rf"^param_groups\[0\]\['{argument}'\]"
    with pytest.raises(error, match=where):
        RMSprop([w], **{argument: value})
    optimizer = RMSprop([w])
    optimizer.param_groups[0][argument] = value
    before = w.detach().clone()
    with pytest.raises(error, match=where):
        train(optimizer, [w], range(1))
    assert_same_bits([w], [before])


def test_a_refused_argument_leaves_no_trace():
    (w,), (expected,) = parameters(shapes=[(3,)]), parameters(shapes=[(3,)])
    optimizer, other = RMSprop([w], lr=0.5), RMSprop([expected], lr=0.5)
    train(optimizer, [w], range(1))
    group = optimizer.param_groups[0]
    group.update(lr=0.25, alpha=1.5)  # lr is refused after it was given to our optimizer
    with pytest.raises(ValueError, match="alpha"):
        train(optimizer, [w], range(1, 2))
    group.update(lr=0.5, alpha=0.99)
    train(optimizer, [w], range(1, 2))
    train(other, [expected], range(2))
    assert_same_bits([w], [expected])


def test_parameters_that_share_memory_are_refused_and_parts_of_one_tensor_are_not():
    flat = torch.ones(6)
    halves = [torch.nn.Parameter(flat[:3]), torch.nn.Parameter(flat[3:])]
    optimizer = RMSprop(halves, lr=0.5)
    for p in halves:
        p.grad = torch.ones(3)
    optimizer.step()
    before = flat.clone()
    assert (before < -3.9).all()
    tied = [torch.nn.Parameter(flat[:4]), torch.nn.Parameter(flat[3:])]
    for p in tied:
        p.grad = torch.ones(p.shape)
    optimizer = RMSprop(tied)
    with pytest.raises(ValueError, match=r"^param_groups\[0\]: params\[1\] shares memory with"):
        optimizer.step()
    assert_same_bits([flat], [before])
    assert not optimizer.state

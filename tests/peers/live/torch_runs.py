"""Runs of both classes, and how they are compared."""

import torch

SHAPES = ((5,), (3, 4), (), (0, 2), (2, 3, 4, 5))


STATE = ("step", "square_avg", "momentum_buffer", "grad_avg")


def parameters(dtype=torch.float64, shapes=SHAPES):
    """The same for each call. They stay away from zero, where errors have no scale."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [torch.nn.Parameter((x + 2 * x.sign()).to(dtype)) for x in values]


def gradients(step, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def train(optimizer, params, steps):
    """Steps along gradients that depend on the number of the step alone."""
    for step in steps:
        grads = gradients(step, params[0].dtype, [p.shape for p in params])
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()


def assert_close(found, expected, accumulated=False, where="", scale=None):
    """Tensors agree to the tolerance of their dtype."""
    assert found.dtype == expected.dtype, where
    assert found.shape == expected.shape, where
    if expected.numel():
        tolerance = 1e-12 if found.dtype == torch.float64 else 3e-5 if accumulated else 1e-5
        error = (found - expected).abs().max() / (scale or expected.abs().max())
        assert error <= tolerance, f"{where}: {error:.3g} of the largest value"


def assert_same_run(ours, theirs, params, expected, accumulated=False):
    """Parameters and states agree; a state relative to the largest of its kind in the model.

    A single mean of gradients passes through zero, where errors have no scale.
    """
    largest = {}
    for state in theirs.state.values():
        for kind, value in state.items():
            largest[kind] = max([largest.get(kind, 0), *value.abs().flatten().tolist()])
    for i, (p, e) in enumerate(zip(params, expected, strict=True)):
        assert_close(p.detach(), e.detach(), accumulated, f"params[{i}]")
        mine, other = ours.state.get(p, {}), theirs.state.get(e, {})
        assert list(mine) == list(other)
        for kind, value in other.items():
            where = f"{kind} of params[{i}]"
            assert_close(mine[kind], value, accumulated, where, largest[kind])
            assert mine[kind].stride() == value.stride()


def assert_same_bits(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        assert f.detach().contiguous().numpy().tobytes() == (
            e.detach().contiguous().numpy().tobytes()
        )

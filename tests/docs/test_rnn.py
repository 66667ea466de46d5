"""The recurrent network of examples/rnn.py: its gradients are right, and it learns."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from rmsprop_c import RMSprop

EXAMPLE = Path(__file__).parents[2] / "examples" / "rnn.py"


@pytest.fixture
def rnn(monkeypatch):
    """The example, with short sequences and a small network."""
    spec = importlib.util.spec_from_file_location("rnn", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LENGTH", 10)
    monkeypatch.setattr(module, "HIDDEN", 16)
    return module


def test_a_sum_is_that_of_the_marked_numbers_one_of_each_half(rnn):
    x, sums = rnn.sequences(np.random.default_rng(0), 200)
    numbers, marks = x[..., 0], x[..., 1]
    assert x.dtype == sums.dtype == np.float32
    assert set(np.unique(marks)) == {0, 1}
    assert (marks[:5].sum(axis=0) == 1).all()
    assert (marks[5:].sum(axis=0) == 1).all()
    assert (marks.sum(axis=1) > 0).all()  # any step may have it
    np.testing.assert_allclose((numbers * marks).sum(axis=0), sums, rtol=1e-6)


def test_backpropagation_through_time_agrees_with_finite_differences(rnn):
    """In float64, to 1e-7 of the largest entry: central differences over 1e-6 leave so much."""
    rng = np.random.default_rng(0)
    x, sums = (array.astype(np.float64) for array in rnn.sequences(rng, 8))
    params = [np.asarray(p + 0.1 * rng.standard_normal(p.shape)) for p in rnn.new_model(rng)]
    loss, grads = rnn.loss_and_gradients(params, x, sums)
    assert loss == ((rnn.forward(params, x)[1] - sums) ** 2).mean()
    for p, g in zip(params, grads, strict=True):
        found = np.empty(p.shape)
        for index in np.ndindex(p.shape):
            value = p[index]
            p[index] = value + 1e-6
            above = rnn.loss_and_gradients(params, x, sums)[0]
            p[index] = value - 1e-6
            below = rnn.loss_and_gradients(params, x, sums)[0]
            p[index] = value
            found[index] = (above - below) / 2e-6
        assert np.shape(g) == p.shape
        np.testing.assert_allclose(g, found, rtol=0, atol=1e-7 * abs(found).max())


def test_it_learns_to_add(rnn, monkeypatch):
    monkeypatch.setattr(rnn, "UPDATES", 1500)
    with tqdm(disable=True) as progress:
        losses, error = rnn.train(RMSprop(lr=0.003, clipnorm=1.0), progress)
    assert np.mean(losses[:20]) > 0.1
    assert error < 0.02


def test_plain_gradient_descent_clips_as_rmsprop_does(rnn):
    """So that the comparison is of the methods: along one direction, and of the clipped length."""
    grads = [np.full((2, 2), 3.0, np.float32), np.full(4, 4.0, np.float32)]
    params = [np.zeros_like(g) for g in grads]
    rnn.SGD(0.5).step(params, grads)
    clipped = RMSprop(clipnorm=rnn.CLIPNORM).get_gradients(lambda _: (0.0, grads), params)
    for p, g in zip(params, clipped, strict=True):
        np.testing.assert_allclose(p, -0.5 * g, rtol=1e-6)

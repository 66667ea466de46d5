"""The pages of docs/ that need PyTorch or JAX."""

import pytest
from pages import run_integration, run_page

import rmsprop_c


@pytest.mark.parametrize("name", ["jax.md", "torch.md", "../README.md"])
def test_each_page_runs_and_prints_what_it_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name)


def test_the_line_for_pytorch_runs():
    import torch

    made = run_integration("PyTorch")["RMSprop"]([torch.nn.Parameter(torch.ones(3))])
    assert isinstance(made, torch.optim.RMSprop)


def test_the_line_for_jax_runs_on_jaxs_own_arrays():
    import jax
    import numpy as np

    w = np.ones(3, np.float32)
    run_integration("JAX", jax=jax, params=[w], loss=lambda params: (params[0] ** 2).sum())
    assert (w < 1).all()


def test_gradients_of_pytorch_are_read_and_cleared_by_nobody():
    import numpy as np
    import torch

    w, g = np.ones(3, np.float32), torch.ones(3)
    rmsprop_c.RMSprop().step([w], [g])
    assert (w < 1).all()
    with pytest.raises(TypeError, match=r"^grads\[0\], of type Tensor, can't be read by NumPy"):
        rmsprop_c.RMSprop().step([w], [torch.ones(3).bfloat16()])
    with pytest.raises(TypeError, match="zero_grad can't clear"):
        rmsprop_c.RMSprop(zero_grad=True).step([w], [g])

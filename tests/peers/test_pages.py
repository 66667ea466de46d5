"""The pages of docs/ that need PyTorch or JAX."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import run_page


@pytest.mark.parametrize("name", ["jax.md", "torch.md"])
def test_each_page_runs_and_prints_what_it_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name)

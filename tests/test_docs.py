"""What the pages of docs/ show is what happens."""

import pytest
from pages import pages, run_page

# They need a framework of bench/.venv: tests/peers/test_pages.py runs these.
ELSEWHERE = ("jax.md", "torch.md")


@pytest.mark.parametrize("name", [name for name in pages() if name not in ELSEWHERE])
def test_each_page_runs_and_prints_what_it_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name)

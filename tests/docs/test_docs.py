"""What the pages of docs/ show is what happens."""

import pytest
from markdown_it import MarkdownIt
from pages import DOCS, pages, run_page

# They need a framework of bench/.venv: tests/peers/live/test_pages.py runs these.
ELSEWHERE = ("jax.md", "torch.md")


@pytest.mark.parametrize("name", [name for name in pages() if name not in ELSEWHERE])
def test_each_page_runs_and_prints_what_it_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name)


@pytest.mark.parametrize("page", ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))])
def test_formulas_keep_their_asterisks(page):
    """In plain text two of them make italics of what lies between; formulas are set as code."""
    for block in MarkdownIt("commonmark").enable("table").parse((DOCS / page).read_text()):
        for part in block.children or ():
            assert part.type != "em_open", block.content
            assert part.type != "text" or "*" not in part.content, part.content

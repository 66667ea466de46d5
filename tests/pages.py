"""Runs the code of a page of docs/: its blocks of Python, from top to bottom in one namespace."""

import contextlib
import io
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages():
    """The names of all pages with code."""
    return sorted(path.name for path in DOCS.glob("*.md") if "```python\n" in path.read_text())


def run_page(name):
    """Run a page; a text behind a block is all that the block prints."""
    namespace = {"__name__": "__main__"}
    printed = None
    for language, text in BLOCK.findall((DOCS / name).read_text()):
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, name, "exec"), namespace)
            printed = out.getvalue()
        elif printed is not None:
            assert printed == text, f"{name} shows\n{text}but prints\n{printed}"
            printed = None

"""Runs the code of a page of docs/: its blocks of Python, from top to bottom in one namespace."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np

import rmsprop_c

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def integration_lines():
    """The lines of code in the README's table of integrations, by library."""
    table = (DOCS.parent / "README.md").read_text().split("| library | line |")[1]
    rows = re.findall(r"^\| ([^|]+) \| (`.+`) \|", table.split("\n\n")[0], re.MULTILINE)
    return {library: re.findall(r"`([^`]+)`", cell) for library, cell in rows}


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


def run_integration(library, **given):
    """Run the lines of a library, each with what a reader would have at that point."""
    w = np.ones(3)

    def loss(params):
        return float((params[0] ** 2).sum()), [2 * params[0]]

    namespace = {
        "rmsprop_c": rmsprop_c,
        "opt": rmsprop_c.RMSprop(),
        "params": [w],
        "grads": [np.ones(3)],
        "loss": loss,
        "fun": lambda x: ((x**2).sum(), 2 * x),
        "x0": np.ones(3),
        **given,
    }
    for line in integration_lines()[library]:
        exec(line, namespace)
    return namespace

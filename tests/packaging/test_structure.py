"""The package is built in one direction, of files that can be read at a sitting."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rmsprop_c"

# Each imports only from those above it, wherever in the file it does so.
ORDER = [
    "_version",
    "arrays",
    "state",
    "hyperparameters",
    "_core",
    "model",
    "reference",
    "serialization",
    "threads",
    "schedules",
    "presets",
    "constraints",
    "gradients",
    "checkpoint",
    "interchange",
    "optimizer",
    "rmsprop",
    "__init__",
    "__main__",
    "scipy",
    "sklearn",
    "torch",
]


def imports(name):
    """The modules of the package that one imports, anywhere in its file."""
    path = PACKAGE / f"{name}.py"
    if name == "_core":
        text = (PACKAGE / "_core.pyx").read_text()
        found = set(re.findall(r"^from rmsprop_c\.(\w+) import", text, re.MULTILINE))
        for names in re.findall(r"^from rmsprop_c import (.+)$", text, re.MULTILINE):
            found |= {part.split(" as ")[0].strip() for part in names.split(",")}
        return found
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [alias.name for alias in node.names]
            found |= {node.module.split(".")[0]} if node.module else set(names)
        elif isinstance(node, ast.ImportFrom) and node.module == "rmsprop_c":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("rmsprop_c.")}
    return found & set(ORDER)


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} | {"_core"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name):
    assert imports(name) <= set(ORDER[: ORDER.index(name)])


def test_c_knows_no_python_and_the_header_no_file_of_ours():
    allowed = {
        "roots": {"../include/rmsprop.h"},
        "roots_x86": {"roots.h"},
        "kernels": {"kernels.h", "roots_x86.h", "../include/rmsprop.h"},
        "step": {"step.h", "kernels.h", "fenv.h", "threads.h"},
        "threads": {"threads.h", "fenv.h"},
        "team": {"team.h", "step.h", "threads.h"},
        "fenv": set(),
    }
    for path in PACKAGE.glob("src/*"):
        included = set(re.findall(r'#\s*include "(.+)"', path.read_text()))
        assert included <= allowed[path.stem], path.name
    header = (PACKAGE / "include" / "rmsprop.h").read_text()
    assert set(re.findall(r'#\s*include "(.+)"', header)) == {"rmsprop.h"}


def test_nobody_uses_the_private_names_of_another_module():
    for path in sorted(PACKAGE.glob("*.py")):
        tree = ast.parse(path.read_text())
        theirs = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                private = [a.name for a in node.names if re.match("_[a-z]", a.name)]
                assert not private, path.name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.value.id in theirs and re.match("_[a-z]", node.attr)
                assert not private, (path.name, node.attr)


def test_no_file_is_longer_than_700_lines():
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.p[xy]*"), *PACKAGE.glob("src/*")]
    long = {path.name for path in files if path.read_bytes().count(b"\n") > 700}
    assert not long

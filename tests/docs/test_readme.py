"""What the README and the docstrings in compiled code show is what happens."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import integration_lines, run_integration
from scipy.optimize import minimize

import rmsprop_c
from rmsprop_c import RMSprop, _core, presets
from rmsprop_c.hyperparameters import OPTIONS

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FORMULAS, OPTIONS_PAGE, GUARANTEES, C_PAGE = (
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("formulas", "options", "guarantees", "c")
)


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_the_example_prints_what_it_says(capsys):
    code, *_ = blocks("python")
    exec(code, {})
    shown = re.search(r"# (\[.*\] 3\.0)", code)[1]
    assert capsys.readouterr().out.strip() == shown


def test_each_line_for_a_framework_makes_an_optimizer():
    calls = re.findall(r"`(RMSprop(?:\.like)?\(.*?\))`", FORMULAS.split("| yours |")[1])
    assert len(calls) == 13
    named = {call.split('"')[1] for call in calls if ".like" in call}
    assert named == set(presets.PRESETS)
    (_, shown) = blocks("python")
    lines = [line.split("#")[0].strip() for line in shown.splitlines()]
    assert {line.split('"')[1] for line in lines} == named
    for call in (*calls, *lines):
        assert isinstance(eval(call, {"RMSprop": RMSprop}), RMSprop)


def test_the_options_listed_are_all_there_are():
    rows = [line.split("|")[1] for line in OPTIONS_PAGE.splitlines() if line.startswith("| `")]
    listed = re.findall(r"`(\w+)", "".join(rows))
    assert sorted(listed) == sorted(OPTIONS)


def test_the_c_example_compiles_and_prints_what_it_says(tmp_path):
    (code,) = blocks("c", C_PAGE)
    (tmp_path / "example.c").write_text(code)
    (command,) = [block for block in blocks("sh", C_PAGE) if block.startswith("gcc")]
    command = command.replace("$(python ", f"$({sys.executable} ")
    subprocess.run(f"{command.strip()} -Wall -Wextra -Werror", shell=True, cwd=tmp_path, check=True)
    out = subprocess.run(tmp_path / "a.out", capture_output=True, text=True, check=True).stdout
    assert out == "-0.581139 0.418861 1.418861 2.418861\n"


ERRORS = {
    "grads[2] has shape": lambda: RMSprop().step(
        [np.ones(1), np.ones(1), np.ones((512, 10))], [np.ones(1), np.ones(1), np.ones((10, 512))]
    ),
    "grads['W'] has dtype": lambda: RMSprop().step(
        {"W": np.ones(2, np.float32)}, {"W": np.ones(2)}
    ),
    "params[0] is read-only": lambda: RMSprop().step(
        [np.broadcast_to(np.ones(1), 2)], [np.ones(2)]
    ),
    "params[1] shares memory": lambda: RMSprop().step([w := np.ones(2), w], [np.ones(2)] * 2),
    "Unexpected keyword": lambda: RMSprop(amsgrad=True),
}


@pytest.mark.parametrize("begin", ERRORS)
def test_errors_read_as_shown(begin):
    (line,) = [line for line in GUARANTEES.splitlines() if begin in line and "Error: " in line]
    with pytest.raises((TypeError, ValueError)) as caught:
        ERRORS[begin]()
    assert f"{caught.type.__name__}: {caught.value}" == line


def test_the_readme_shows_errors_of_the_page():
    shown = [line for line in README.splitlines() if re.match("[A-Z][a-z]+Error: ", line)]
    assert len(shown) == 3
    assert set(shown) <= set(GUARANTEES.splitlines())


def test_the_examples_of_compiled_docstrings_print_what_they_say():
    failed, tried = doctest.testmod(_core)
    assert tried >= 9
    assert failed == 0


def test_the_names_in_the_readme_exist():
    for name in rmsprop_c.__all__:
        assert getattr(rmsprop_c, name) is not None


@pytest.mark.parametrize(
    "library", ["scikit-learn", "SciPy", "autograd, gradients by hand", "PyTorch", "JAX"]
)
def test_each_line_of_the_integrations_runs(library):
    assert set(integration_lines()) == {
        "scikit-learn",
        "SciPy",
        "autograd, gradients by hand",
        "PyTorch",
        "JAX",
    }
    if library not in ("PyTorch", "JAX"):  # which tests/peers/live/test_pages.py has
        assert run_integration(library, minimize=minimize)["params"][0].shape == (3,)

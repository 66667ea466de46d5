"""The integrations: what they need, and that one that is not used costs nothing."""

import re
import subprocess
import sys
from importlib.metadata import requires

import pytest

# What each integration imports, and the distribution that has it.
INTEGRATIONS = {
    "sklearn": ("sklearn", "scikit-learn"),
    "scipy": ("scipy", "scipy"),
    "torch": ("torch", "torch"),
}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_imports_neither_an_integration_nor_its_library():
    names = {f"rmsprop_c.{integration}" for integration in INTEGRATIONS}
    names |= {library for library, _ in INTEGRATIONS.values()}
    found = run(f"import rmsprop_c, sys; print({names} & sys.modules.keys())")
    assert found.stdout == "set()\n", found.stderr


@pytest.mark.parametrize("integration", INTEGRATIONS)
def test_an_integration_without_its_library_names_the_extra_that_brings_it(integration):
    library, distribution = INTEGRATIONS[integration]
    found = run(f"import sys; sys.modules[{library!r}] = None; import rmsprop_c.{integration}")
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), found.stderr
    assert "During handling" not in found.stderr  # of the library's own error: it says nothing more
    (extra,) = re.findall(r"pip install 'rmsprop_c\[([\w-]+)\]'", last)
    brought = [line for line in requires("rmsprop_c") if f'extra == "{extra}"' in line]
    assert any(re.match(rf"{distribution}\b", line) for line in brought), brought

# Each target makes .venv and installs what it needs; a second run does only what has changed.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
SOURCES = setup.py pyproject.toml $(wildcard rmsprop_c/*.pyx rmsprop_c/*.pxd rmsprop_c/_kernels.* \
	rmsprop_c/_threads.* rmsprop_c/include/*.h)
# In the project's own builds the C compiler's warnings are errors.
CHECKED = CFLAGS="$(CFLAGS) -Wall -Wextra -Werror"

.PHONY: run test lint clean

run: $(VENV)/installed
	$(BIN)/python examples/digits.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -q

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint rmsprop_c
	$(BIN)/clang-format --dry-run --Werror rmsprop_c/_kernels.[ch] rmsprop_c/_threads.[ch] \
		rmsprop_c/include/*.h
	$(BIN)/mypy

$(VENV)/tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "setuptools>=77" "Cython>=3.1" "numpy>=2.0"
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(CHECKED) $(BIN)/python -m pip install -q --no-build-isolation -e ".[examples,lint,test]"
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info rmsprop_c/_core.c rmsprop_c/*.so

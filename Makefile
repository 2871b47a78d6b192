# Everything a checkout needs, from nothing but Python and make.
#   make demo    train, certify, attack and export a classifier
#   make test    the test suite (TensorFlow), but for what takes long
#   make bench   what the constraint costs, in two minutes
#   make bench-program   what a training step is made of, in ten; also
#                        bench-program-jax, bench-program-torch
#   make doc     the documentation, in doc/_build/html

PYTHON ?= python3
VENV ?= .venv
export TF_CPP_MIN_LOG_LEVEL ?= 2

REQUIREMENTS := setup.py $(wildcard requirements/*.txt)

.PHONY: demo test test-slow test-adversarial bench bench-program bench-program-jax bench-program-torch test-formats test-jax test-torch doc doc-links notebooks lint format clean

$(VENV)/ready: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[demo,test]"
	touch $@

demo: $(VENV)/ready
	$(VENV)/bin/python examples/demo.py

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest --numprocesses auto -m "not slow"

# Notebooks, programs, processes, and more of the layers with more arguments. By
# file, for what a file has trained once is for all of its tests.
test-slow: $(VENV)/ready
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile \
	    -m slow --ignore tests/adversarial tests

# The long searches for broken promises: a quarter of an hour here. `make
# test-torch` has them too, where they take a few minutes.
test-adversarial: $(VENV)/ready
	$(VENV)/bin/python -m pytest --numprocesses auto tests/adversarial

# Files of other formats, and neighbours of Keras, which users need not have.
$(VENV)/ready-formats: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --editable ".[formats]"
	touch $@

test-formats: $(VENV)/ready-formats
	$(VENV)/bin/python -m pytest -m "not slow" \
	    tests/test_export.py tests/test_export_command.py \
	    tests/test_ecosystem.py

# Sphinx shares the environment of the tests: it imports the library to read
# its docstrings, and a second TensorFlow would only cost time.
$(VENV)/ready-doc: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --editable ".[docs]"
	touch $@

doc: $(VENV)/ready-doc
	rm -rf doc/api/generated
	$(VENV)/bin/python -m sphinx -q -W --keep-going doc doc/_build/html
	@echo "The site is in doc/_build/html/index.html"

# Asks every address that the pages name, so it needs the network.
doc-links: $(VENV)/ready-doc
	$(VENV)/bin/python -m sphinx -q -b linkcheck doc doc/_build/linkcheck

# Runs the notebooks and stores what they show. DEEL_LIP_DATA may name a folder
# with mnist.npz and cifar10.npz; without it, Keras downloads the data.
notebooks: $(VENV)/ready-doc
	$(VENV)/bin/python doc/run_notebooks.py

# The long form, with memory and the large networks, is without these options.
bench: $(VENV)/ready
	$(VENV)/bin/python benchmarks/training.py mnist-conv mnist-mlp mlp-512 \
	    --steps-only --seconds 0.5

bench-program: $(VENV)/ready
	$(VENV)/bin/python benchmarks/program.py

# The other backends, each in an environment without TensorFlow, with what their
# users combine them with.
.venv-%/ready: $(REQUIREMENTS)
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet "$(or $(BACKEND_PACKAGE),$*)" \
	    keras -r requirements/test.txt -r requirements/$*.txt
	DEEL_LIP_CORE=1 .venv-$*/bin/python -m pip install --quiet --no-deps \
	    --editable .
	touch $@

# JAX compiles hundreds of small functions; each is compiled once for both
# processes, and not again in the next run.
test-jax: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.venv-jax/compiled
test-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
test-jax: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1

# One thread for each process of the tests: threads of PyTorch wait for each
# other by spinning, which is slow where processes share the cores.
test-torch: export OMP_NUM_THREADS := 1

# JAX compiles each network anew: long programs, more rows of arguments, and what
# is the same on every backend are left to the others.
# By file, for what a process has compiled once it need not read again.
SELECTED_jax = -m "(not slow or processes) and not elsewhere" --dist loadfile

test-jax test-torch: test-%: .venv-%/ready
	KERAS_BACKEND=$* .venv-$*/bin/python -m pytest --numprocesses auto \
	    $(SELECTED_$*)

bench-program-jax bench-program-torch: bench-program-%: .venv-%/ready
	KERAS_BACKEND=$* .venv-$*/bin/python benchmarks/program.py

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-jax .venv-torch build dist doc/_build doc/api/generated *.egg-info

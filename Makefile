# Everything a checkout needs, from nothing but Python and make.
#   make demo    train, certify, attack and export a classifier
#   make test    the test suite (TensorFlow)

PYTHON ?= python3
VENV ?= .venv
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-jax test-torch lint format clean

$(VENV)/ready: setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[demo,test]"
	touch $@

demo: $(VENV)/ready
	$(VENV)/bin/python examples/demo.py

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest --numprocesses auto

# The other backends, each in an environment without TensorFlow.
.venv-%/ready: setup.py
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet "$(or $(BACKEND_PACKAGE),$*)" \
	    keras hypothesis matplotlib pytest pytest-xdist scikit-learn
	.venv-$*/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-jax test-torch: test-%: .venv-%/ready
	KERAS_BACKEND=$* .venv-$*/bin/python -m pytest --numprocesses auto

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-jax .venv-torch build dist *.egg-info

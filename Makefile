# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Three workers for two cores, because acceptance tests mostly wait for processes; they come first. A file's tests stay
# together, for they share their servers.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((3 * (os.cpu_count() or 1) + 1) // 2)')
PYTEST_FLAGS ?= -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-kubernetes check lint format clean
help:
	@echo "make demo    set up, run the whole product once for real (about a minute), exit 0"
	@echo "make test    set up, run the tests"
	@echo "make test-kubernetes  the cluster's tests, beside a real control plane where this machine can start one"
	@echo "make check   lint, types, layers, tests: what CI runs"
	@echo "make format  rewrite the sources in the house format"

# One stamp an installation: editing pyproject.toml installs again, nothing else does.
$(VENV)/.app: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Turnstile needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 demo" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable .
	@touch $@
$(VENV)/.test: $(VENV)/.app
	$(PIP) install --quiet --editable '.[test]'
	@touch $@

demo: $(VENV)/.app
	@$(BIN)/turnstile demo $(DEMO_FLAGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-kubernetes: $(VENV)/.test
	.ci/with-cluster $(BIN)/python -m pytest tests/k8s $(PYTEST_FLAGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

# ensemblekit. On a machine with Python (3.11 or newer) and make: `make tour` shows it at work, `make test` proves it.
# The first call makes the environment $(VENV); the stamps in it make the next call quick.

PYTHON ?= python3
VENV ?= .venv
PYTEST ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help tour test test-slow lint docs bench clean

help:
	@echo "make tour       three fields through one store: writes tour/index.html"
	@echo "make test       the tests"
	@echo "make test-slow  the tests that take minutes, too"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the manual: writes site/"
	@echo "make bench      benchmarks against peers, quick form (BENCH='core' for the full one)"
	@echo "make clean      remove what these made, the environment included"

tour: $(VENV)/.tour
	$(BIN)/ensemblekit tour --out tour

# one process a core, each with one thread of BLAS: threads of several processes would only wait for each other. Tests start
# hundreds of processes, which take twice as long to import what is not kept compiled: that is on, whatever the shell says
test: $(VENV)/.test
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/user_script.py

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict --config-file .mkdocs.yml

BENCH ?= core --quick
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) tour site build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find ensemblekit benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ensemblekit needs Python 3.11 or newer, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: so pip is free to take the build that fits this machine, and the rest finds it in place
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@echo "Making $(VENV): this takes some minutes, once."
	$(PIP) $(TORCH)
	@touch $@

# one stamp an extra of pyproject.toml: .tour, .test, .dev
$(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(PIP) --constraint constraints.txt --editable '.[$*]'
	@touch $@

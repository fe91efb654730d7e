# The same commands for a person and for CI.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CPU builds of PyTorch, several gigabytes smaller than the CUDA ones on Linux. Where the index can't be reached, pip
# goes on with the package index alone. For GPUs: make install TORCH_INDEX=https://download.pytorch.org/whl/cu128
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-ray check bench install format help clean

help:  ## Show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hneurons needs Python 3.11 or newer, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned dependencies into $(VENV)"
	@$(PIP) install -qq --constraint constraints.txt --no-deps --retries 0 --extra-index-url $(TORCH_INDEX) torch
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Make .venv with pinned dependencies

demo: install  ## Find the H-Neurons of the demo model: ends with the verdict and the report's path
	$(BIN)/hneurons demo

test: install  ## The whole test suite, the real model's tests included
	$(BIN)/python -m pytest

$(VENV)/.installed-ray: $(VENV)/.installed
	@echo "Installing Ray into $(VENV)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	@touch $@

test-ray: $(VENV)/.installed-ray  ## The tests that need Ray: two nodes on this machine, one of which is killed
	$(BIN)/python -m pytest tests/on_ray

check: install  ## Lint, format, types, and known vulnerabilities of the pinned packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python .ci/audit.py constraints.txt

bench: install  ## Measure speed and memory against plain ways, one after the other: benchmarks/results.json, an hour
	$(BIN)/python benchmarks/bench.py

format: install  ## Format the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

clean:  ## Remove .venv and caches, keep runs
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

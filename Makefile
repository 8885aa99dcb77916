# The commands of the project. They need Python 3.11 or newer, git and make, and nothing else:
# the first one makes a virtual environment in .venv and installs what the others use.

PYTHON ?= python3
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
DEMO_ARGS ?=
BENCH_ARGS ?=
CHAOS ?= random
PIP_ARGS ?=

VENV := .venv
BENCH_VENV := .venv-bench
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# Others by name, where `python3` is too old and nobody asked for it in particular.
CANDIDATES := $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# This test runs mypy itself.
TYPES := $(if $(wildcard tests/test_typing.py),,types)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test lint types chaos soak bench bench-full bench-setup clean help

demo: $(INSTALLED) ## Train a small model; Ctrl-C saves it, DEMO_ARGS=--resume goes on
	@$(RUN) examples/train_bytes.py $(DEMO_ARGS)

test: lint $(TYPES) ## Run the linter, the type checker and the tests (PYTEST_ARGS=..., TEST_PROCESSES=0)
	@$(RUN) -m compileall -q aioloader  # once, also where Python is told to write no bytecode
	$(RUN) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(INSTALLED) ## Check the code with ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .

types: $(INSTALLED) ## Check the types with mypy
	$(RUN) -m mypy

chaos: $(INSTALLED) ## Ten minutes of random faults (CHAOS="matrix", cancellation, killing, recovery, sharing, remote)
	@PYTHONPATH=tests $(RUN) -W error -m chaos $(CHAOS)

soak: $(INSTALLED) ## An hour of loaders, and what grows meanwhile
	@PYTHONPATH=tests $(RUN) -W error -m chaos soak

bench: $(INSTALLED) ## Compare with other loaders in ten minutes (BENCH_ARGS="tiny --full", "startup")
	@$(RUN) -m benchmarks $(BENCH_ARGS)

bench-full: $(INSTALLED) ## Compare with all of them in full, which takes an hour
	@$(RUN) -m benchmarks $(BENCH_ARGS) --full

# PyTorch without CUDA, where the index has both:
# make bench-setup PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple"
bench-setup: $(INSTALLED) ## Install the loaders to compare with into .venv-bench (PIP_ARGS=...)
	@test -x $(BENCH_VENV)/bin/python || $(RUN) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	    --editable '.[bench]' "jax==$$($(RUN) -c 'import jax; print(jax.__version__)')"

clean: ## Remove .venv and .venv-bench, the demo's checkpoint, builds and caches
	rm -rf $(VENV) $(BENCH_VENV) .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find aioloader tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml | $(RUN)
	@echo "installing aioloader, and what its tests and examples use, into $(VENV)"
	@$(RUN) -m pip install --quiet --quiet --disable-pip-version-check --editable '.[test,examples]'
	@touch $@

$(RUN):
	@chosen=; for python in $(CANDIDATES); do \
	    if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then chosen=$$python; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	    found=$$($(PYTHON) --version 2>&1) || found='no $(PYTHON) that runs'; \
	    echo "aioloader needs Python 3.11 or newer, and there is $$found." >&2; \
	    echo "Say where one is: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$chosen, which is $$("$$chosen" --version)"; \
	if ! "$$chosen" -m venv --clear $(VENV); then \
	    rm -rf $(VENV); \
	    echo "$$chosen cannot make a virtual environment." >&2; \
	    echo "On Debian and Ubuntu its venv module is a package: apt install python3-venv" >&2; \
	    exit 1; \
	fi

# make run    the whole pipeline, laptop preset, into runs/laptop
# make test   everything that CI runs
# make lab    JupyterLab on notebooks/
.PHONY: run test lab notebooks setup

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PRESET ?= laptop
OUT ?= runs/$(PRESET)
export PATH := $(CURDIR)/$(BIN):$(PATH)

run: $(READY)
	@echo "Running the $(PRESET) preset into $(OUT); stop it with Ctrl-C, and the same command goes on."
	@$(BIN)/python -m rlhf_lib run --preset $(PRESET) --out $(OUT)

test: $(READY)
	@echo "Checking style, then running the tests."
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python -m pytest -q
	@echo "Running the worked notebooks."
	@$(BIN)/python -m pytest -q --nbval-lax solutions

lab: $(READY)
	@$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(READY)
	@$(BIN)/python -m rlhf_lib.notebooks

setup: $(READY)

# pip takes the exact versions of constraints.txt; on Linux without a GPU the CPU build of torch is enough.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (a few minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || (echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12"; exit 1)
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
	@echo "Ready."

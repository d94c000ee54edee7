# make run    the whole pipeline, laptop preset, into runs/laptop
# make test   what CI runs: all tests that are quick, a share of the rest that the commit draws (tests/drawn.py), the worked notebooks
# make test-all  the same with every case of every test (about an hour)
# make lab    JupyterLab on your own copy of the notebooks, in my_course/; nothing in it is ever overwritten
# make bench  the benchmarks, into benchmarks/results; ROWS="decode ppo" for some of them, CORPUS=FILE for a text of your own
# make student-release  what a class gets, without solutions: release/ and release.zip; HINTS=no leaves the hints out
# make gpu    on a machine with a CUDA card: its tests, the gpu preset, chapters 03, 06, 08 and 09, and the benchmarks, in about an hour
.PHONY: run test test-all lab notebooks bench gpu setup student-release

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PRESET ?= laptop
OUT ?= runs/$(PRESET)
CORPUS ?= tiny
WITH_WIDGETS := 00 04 05 08 09 11
export PATH := $(CURDIR)/$(BIN):$(PATH)

run: $(READY)
	@echo "Running the $(PRESET) preset into $(OUT); stop it with Ctrl-C, and the same command goes on."
	@$(BIN)/python -m rlhf_lib run --preset $(PRESET) --out $(OUT)

test test-all: $(READY)
	@echo "Checking style, then running the tests."
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(if $(filter test,$@),--drawn)
	@echo "Running the worked notebooks at the smoke preset, two at a time."
	@RLHF_PRESET=smoke OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --nbval-lax solutions
	@echo "Widgets and notebooks with widgets again, on the versions that Colab has."
	@PYTHONPATH=.venv/colab RLHF_PRESET=smoke OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/widgets \
		--nbval-lax $(wildcard $(if $(filter test,$@),solutions/00*.ipynb solutions/05*.ipynb,$(WITH_WIDGETS:%=solutions/%*.ipynb)))

lab: $(READY)
	@$(BIN)/python -m rlhf_lib.notebooks --copy my_course
	@JUPYTER_CONFIG_PATH=$(CURDIR)/rlhf_lib/lab $(BIN)/jupyter lab --notebook-dir=my_course

notebooks: $(READY)
	@$(BIN)/python -m rlhf_lib.notebooks

student-release: $(READY)
	@$(BIN)/python -m rlhf_lib release --out release $(if $(filter no,$(HINTS)),--without-hints)

bench: .venv/bench
	@echo "Measuring against the peers; leave the machine alone until it is done (about an hour on two cores)."
	@$(BIN)/python -m benchmarks $(ROWS) --corpus $(CORPUS)

gpu: .venv/bench
	@$(BIN)/python -c 'import torch; assert torch.cuda.is_available(), "no CUDA card"; print(torch.cuda.get_device_name())'
	@$(BIN)/python -m pytest -q tests/test_gpu.py
	@$(BIN)/python -m rlhf_lib run --preset gpu --out runs/gpu
	@RLHF_PRESET=gpu $(BIN)/python -m pytest -q --nbval-lax --nbval-cell-timeout=1800 --durations=4 solutions/03_pretraining.ipynb \
		solutions/06_the_reward_model.ipynb solutions/08_rlhf.ipynb solutions/09_over_optimisation.ipynb
	@$(BIN)/python -m benchmarks decode ppo throughput --device cuda --corpus $(CORPUS)
	@echo "Figures: runs/gpu/summary.json and benchmarks/results. The chapters' times stand above."

setup: $(READY)

# pip takes the exact versions of constraints.txt; on Linux without a GPU the CPU build of torch is enough.
$(READY): pyproject.toml constraints.txt tests/colab.txt
	@echo "Setting up .venv (a few minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || (echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12"; exit 1)
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/colab -r tests/colab.txt
	@touch $(READY)
	@echo "Ready."

# The peers, at the versions of constraints.txt, beside everything else.
.venv/bench: $(READY)
	@echo "Adding the benchmarks' peers to .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch .venv/bench

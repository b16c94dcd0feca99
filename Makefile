# Everything a person does with a checkout. `make help` lists the targets.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Anything that pip should be told, an index with CPU builds of torch for instance.
PIP_FLAGS ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-cluster mutants lint format typecheck tensorboard results seeds reproduce bench gpu-check gpu-wheels bench-jobs bench-peers docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="seed=3 trainer.num_env_steps=2000" make train passes overrides on'

# The stamp makes a second call quick; torch comes first, alone, so that its build is chosen by pip's settings
# and everything else fits around it.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'mbpo-train needs Python 3.11 or newer: make PYTHON=python3.12 ...'; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/installed ## make .venv with all that training and tests need

# What ARGS leaves open is agent=sac and env=pendulum by default; said here, it would overrule an experiment's own.
train: install ## train SAC with a learned model on Pendulum (ARGS="..." overrides)
	$(BIN)/mbpo-train $(or $(ARGS),agent=sac env=pendulum)

test: install ## run the fast tests
	$(BIN)/pytest -q -n 2 --dist worksteal $(ARGS)

test-slow: install ## run the long tests: learning, packaging
	$(BIN)/pytest -q -m slow $(ARGS)

# Ray is large, so that only this target installs it.
test-cluster: install ## run sweeps on a Ray and a Slurm, started for them on this machine (Debian, as root)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[ray]'
	$(BIN)/pytest -q -m cluster $(ARGS)

mutants: install ## measure how many small faults the fast tests notice, an hour (ARGS="--number 20 --seed 1 --again")
	$(BIN)/python -m scripts.mutants $(ARGS)

lint: install ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: install ## check types
	$(BIN)/mypy

tensorboard: install ## open TensorBoard on all runs, on this machine only
	$(BIN)/tensorboard --logdir outputs --host 127.0.0.1

results: install ## train the runs of docs/results.md that are missing, and draw them (ARGS="--only sac_pendulum")
	$(BIN)/python -m scripts.results $(ARGS)

seeds: install ## train with many fresh seeds: what share learns, for docs/seeds.md (ARGS="--env pendulum --seeds 50 --jobs 1")
	$(BIN)/python -m scripts.seeds $(ARGS)

reproduce: install ## train the paper's tasks and draw them over the published curves (ARGS="--tasks hopper --seeds 0 1")
	$(BIN)/python -m scripts.reproduce $(ARGS)

bench: install ## measure speed against the machine's limit, and against peers if they are installed
	$(BIN)/python -m benchmarks.compare $(ARGS)

gpu-check: install ## check and measure the program on a GPU, eight minutes at most (ARGS="--parts times")
	$(BIN)/python -m scripts.gpu_check $(ARGS)

# For a GPU machine that reaches no package index but has torch: what else the check needs, as wheels for its Python.
GPU_PYTHON ?= 3.12
GPU_PACKAGES = absl-py etils farama-notifications glfw gymnasium hydra-core mujoco omegaconf pyopengl rich
gpu-wheels: install ## collect wheels for a GPU machine without a package index (GPU_PYTHON=3.12)
	rm -rf .wheels
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir .wheels antlr4-python3-runtime==4.9.3 .
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest .wheels $(shell grep -E '^($(subst $(eval ) ,|,$(GPU_PACKAGES)))==' constraints.txt)

bench-jobs: install ## measure whole jobs, peers' too if they are installed (more than an hour)
	$(BIN)/python -m benchmarks.jobs $(ARGS)

# One that does not install here is left out. mbrl-lib asks for packages of 2020 and runs with today's; it comes
# last, without what it asks for.
PEER_PIP = .venv-peers/bin/pip install --quiet --disable-pip-version-check $(PIP_FLAGS)
.venv-peers/installed: constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	$(PEER_PIP) -c constraints.txt torch
	-grep -v '^#' benchmarks/peers.txt | xargs -n 1 $(PEER_PIP) -c constraints.txt
	-$(PEER_PIP) --no-deps mbrl==0.2.0
	@touch $@

bench-peers: .venv-peers/installed bench ## the same with stable-baselines3, sbx and mbrl-lib in an environment of their own

# Material's notice about MkDocs 2 is not a warning about these pages.
docs: install ## build the documentation into site/ (any warning fails)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'open site/index.html'

wheel: install ## build the wheel
	$(BIN)/python -m build --wheel

clean: ## remove the environment and caches; runs stay
	rm -rf $(VENV) .venv-peers build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .mutants

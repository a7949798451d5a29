# Everything runs in .venv, which the first command makes. On Windows without make, README gives the same steps for pip.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
  BIN := .venv/Scripts
else
  BIN := .venv/bin
endif
PY := $(BIN)/python
ARGS ?=
CUDA ?= 13

.PHONY: help reproduce lab course exercises test test-all test-oracles test-gpu attack notebooks lint wheel clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## */: /'

reproduce: .venv/installed            ## train on real text and draw every figure (ARGS=--notebooks runs the notebooks too, ARGS=--full takes hours)
	$(PY) -m lora_np reproduce $(ARGS)

COURSE ?= my-course
lab: .venv/installed                  ## JupyterLab on a copy of the course, written on the first call: the folder COURSE=my-course
	$(PY) -m lora_np notebooks write $(COURSE)
	cd $(COURSE) && "$(CURDIR)/$(BIN)/jupyter" lab --ServerApp.root_dir=. 00_start_here.ipynb $(ARGS)

course: .venv/installed               ## only write the copy of the course: the folder COURSE=my-course
	$(PY) -m lora_np notebooks write $(COURSE) $(ARGS)

TO ?= my-exercises
exercises: .venv/installed            ## a copy of the exercises alone, without solutions: the folder TO=my-exercises
	$(PY) -m lora_np exercises write $(TO) $(ARGS)

PYTEST = $(PY) -m pytest -q -n auto --dist worksteal
PEERS := oracle or serve or cluster
DEVICES := gpu or cupy

test: .venv/installed                 ## the proofs, then the units, on all cores: no network, no GPU, no PyTorch
	$(PYTEST) tests/proofs $(ARGS)
	$(PYTEST) --ignore=tests/proofs -m "not (slow or smollm2 or $(PEERS) or $(DEVICES))" $(ARGS)

test-all: test                        ## `make test`, then what takes long: studies, pictures, SmolLM2, the core over CuPy's double
	$(PYTEST) -m "(slow or smollm2) and not ($(PEERS) or $(DEVICES))" $(ARGS)

test-oracles: .venv/oracles           ## the comparisons with PyTorch, PEFT and transformers, OpenAI's client on the server, a Dask cluster
	$(PYTEST) --dist loadfile -m "$(PEERS)" $(ARGS)

test-gpu: .venv/cuda$(CUDA)           ## the core's tests on a GPU, and what CuPy can say without one (CUDA=12 for that driver)
	$(PY) -m pytest -m "$(DEVICES)" $(ARGS)

SECONDS ?= 3600
attack: export LORA_NP_ATTACK_SECONDS = $(SECONDS)
attack: .venv/installed               ## damaged files and hostile input, with new random ones for an hour (SECONDS=3600)
	$(PYTEST) tests/attacks -m "not ($(PEERS) or $(DEVICES))" $(ARGS)

notebooks: .venv/installed            ## after editing notebooks/*.py or an exercise: execute them into the .ipynb, write the teachers' key
	$(PY) -m lora_np.report.notebooks notebooks
	$(PY) -m lora_np.exercises.editions notebooks/exercises
	$(PY) -m lora_np notebooks key

lint: .venv/installed                 ## ruff, mypy and numpydoc: style, types, and complete public docstrings
	$(PY) -m pip install --quiet --editable ".[dev]"
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(PY) .ci/docstrings.py

wheel:                                ## build the wheel, install it in clean environments, run every command there
	$(PYTHON) .ci/wheel.py

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --requirement requirements.txt
	@touch $@

.venv/oracles: .venv/installed
	$(PY) -m pip install --editable ".[oracles,serve,cluster,tensorboard,dev]"
	@touch $@

.venv/cuda$(CUDA): .venv/installed
	$(PY) -m pip install --editable ".[cuda$(CUDA)]"
	@touch $@

clean:           ## remove the environment and what was built
	rm -rf .venv build dist *.egg-info

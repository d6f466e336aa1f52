# make demo: the real pair of the README, in a virtual environment of its own
# make test: lint, types, tests and doctests, on all cores; make lint: the first two
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.PHONY: demo test lint
demo: $(VENV)/installed
	$(BIN)/elang demo

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

# make demo: the real pair of the README, in a virtual environment of its own
# make quick: lint, types and the nearest tests of what differs from main, in under 90 s on 2 cores
# make test: lint, types, tests and doctests, on all cores; make lint: the first two
# make coverage: the tests again, with the lines and branches of elang/ that they reach, reported if tests fail, too
# make oldest: some tests with the oldest versions that are allowed, in VENV; make audit: known vulnerabilities of what CI installs
# make language-model: answers of a real language model from the package index, if DATA has glue/SST-2 and banking77
# make dist: the wheel and the source distribution, in dist/
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.PHONY: demo quick test tests lint style types oldest audit coverage language-model dist
demo: $(VENV)/installed
	$(BIN)/elang demo

lint: style types

style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

quick: lint
	OMP_NUM_THREADS=1 $(BIN)/python .ci/quick.py

# torch's own oldest builds bring gigabytes; TORCH=torch==2.6.0 takes them.
TORCH ?= torch
oldest:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint .ci/oldest.txt --editable . pytest pytest-timeout
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -p no:cacheprovider tests/method/test_scores.py tests/records/test_records.py \
	  tests/cli/test_bad_input.py tests/test_compatibility.py tests/test_pitfalls.py tests/test_strangers.py

audit: $(VENV)/installed
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --no-deps --disable-pip --requirement .ci/lock.txt

# In the order of tests/conftest.py, with a process more than cores: many tests wait for others.
SPREAD = -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder

coverage: $(VENV)/installed
	$(BIN)/python -m pip install --quiet 'coverage>=7.10'
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest $(SPREAD); status=$$?; \
	  $(BIN)/python -m coverage combine --quiet && \
	  $(BIN)/python -m coverage report --skip-covered --show-missing && exit $$status

# Types are checked beside the tests, which leave a part of the cores idle.
test: style
	$(MAKE) --jobs 2 types tests

tests:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD)

DATA ?= $(ELANG_TEST_DATA)/data
language-model: $(VENV)/installed
	$(BIN)/python benchmarks/quality/zero_shot.py --check $(DATA)

dist: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m hatchling build

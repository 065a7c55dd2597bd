# make demo   the main job on a real graph, in a virtual environment of its own
# make test   the whole suite
# make short PYTHON=python3.12  a part of it (tests/short.txt) that takes a minute or two, on another Python
# make check  linting, strict typing, layers
# make nightly  the suites for as long as they take; see docs/faults.md

PYTHON ?= python3
# Each Python has an environment of its own: .venv, .venv-python3.12.
VENV := .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin

.PHONY: demo test short nightly check bench clean

$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(filter short,$*),--only-binary :all:) \
		-e '.[cli,testing,benchmarks]' $(if $(filter user,$*),,--group $*)
	touch $@

demo: $(VENV)/installed-user
	$(BIN)/python -m holdfast.benchmarks.demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

short: $(VENV)/installed-short
	HOLDFAST_PROFILE=default $(BIN)/python -m pytest -q -p no:cacheprovider @tests/short.txt $(ARGS)

nightly: $(VENV)/installed-dev
	HOLDFAST_PROFILE=nightly $(BIN)/python -m pytest -n 2 --dist worksteal --timeout=0 $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-user
	$(BIN)/python -m holdfast.benchmarks

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage dist

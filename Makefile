# make demo   the main job on a real graph, in a virtual environment of its own
# make test   the whole suite
# make check  linting, strict typing, layers
# make nightly  the suites for as long as they take; see docs/faults.md

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test nightly check bench clean

$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli,testing,benchmarks]' $(if $(filter dev,$*),--group dev)
	touch $@

demo: $(VENV)/installed-user
	$(BIN)/python -m holdfast.benchmarks.demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered $(ARGS)

nightly: $(VENV)/installed-dev
	HOLDFAST_PROFILE=nightly $(BIN)/python -m pytest -n 2 --timeout=0 $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-user
	$(BIN)/python -m holdfast.benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage dist

# The targets say after their ## what they do, and `make help` lists them.

PYTHON ?= python3
# Each Python has an environment of its own: .venv, .venv-python3.12.
VENV := .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin

.PHONY: help demo test short nightly check bench clean

help: ## list the targets; what `make` alone does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(filter short,$*),--only-binary :all:) \
		-e '.[cli,testing,benchmarks,repository]' $(if $(filter user,$*),,--group $*)
	touch $@

demo: $(VENV)/installed-user ## the main job on a real graph: load, back up, kill, recover, restore, compare
	$(BIN)/python -m holdfast.benchmarks.demo

test: $(VENV)/installed-dev ## the whole suite; ARGS=… goes to pytest
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

short: $(VENV)/installed-short ## a minute or two of it (tests/short.txt), on the disk; PYTHON=python3.12 takes another
	HOLDFAST_PROFILE=default TMPDIR=$${TMPDIR:-/tmp} $(BIN)/python -m pytest -q -p no:cacheprovider @tests/short.txt $(ARGS)

nightly: $(VENV)/installed-dev ## the suites for as long as they take; see docs/faults.md
	HOLDFAST_PROFILE=nightly $(BIN)/python -m pytest -n 2 --dist worksteal --timeout=0 $(ARGS)

check: $(VENV)/installed-dev ## linting, strict typing, layers, spelling, prose
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/docs/test_prose.py

bench: $(VENV)/installed-user ## every benchmark beside its peers; takes long, see CONTRIBUTING.md for one alone
	$(BIN)/python -m holdfast.benchmarks

clean: ## remove the environments and what tools have left
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage dist

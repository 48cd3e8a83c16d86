# Everything sets itself up in $(VENV); only Python 3.11 or newer and make are needed.
#
#   make run      start a server with the built-in plugins on ./wkhost-data
#   make test     format check, lint, types, tests
#   make fmt      format the code and mend what the linter can
#   make stubs    generate the gRPC stubs from proto/ again
#   make docs     write docs/configuration.md and docs/metrics.md again
#   make attacks  the whole matrix of attacks on the sandbox
#   make chaos    the long runs: kills, full disks, hostile peers
#   make clean    remove all that make made, but no data

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CODE := wkhost plugin_sdk plugins tests examples
ARGS ?=

.PHONY: run test fmt stubs docs chaos attacks clean

run: $(RUN_STAMP)
	@$(BIN)/wkhost plugin install --builtin
	@exec $(BIN)/wkhost run $(ARGS)

test: $(TEST_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE)
	$(BIN)/pytest $(ARGS)

fmt: $(TEST_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

stubs: $(TEST_STAMP)
	PYTHON=$(BIN)/python PATH="$(abspath $(BIN)):$$PATH" proto/generate.sh

docs: $(RUN_STAMP)
	$(BIN)/python -c 'from wkhost.config.page import render; print(render(), end="")' \
		> docs/configuration.md
	$(BIN)/python -c 'from wkhost.metrics.page import render; print(render(), end="")' \
		> docs/metrics.md

# Counts of the long runs; docs/testing.md says what they count.
chaos: export CHAOS_KILLS ?= 50
chaos: export CHAOS_PLUGIN_KILLS ?= 8
chaos: export CHAOS_RELOADS ?= 20
chaos: export CHAOS_RATE ?= 1000
chaos: export CHAOS_SPARE_KILLS ?= 120
chaos: export CHAOS_OBSERVED ?= 100000
chaos: export CHAOS_OBSERVER_KILLS ?= 20
chaos: export HOSTILE_TIMES ?= 10000
chaos: $(TEST_STAMP)
	$(BIN)/pytest -m "chaos or slow" -o faulthandler_timeout=1200 $(ARGS)

attacks: $(TEST_STAMP)
	$(BIN)/pytest -m "slow or not slow" tests/attacks $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	@echo "installing wkhost into $(VENV) ..."
	$(PIP) install --editable .
	@touch $@

$(TEST_STAMP): pyproject.toml | $(BIN)/python
	@echo "installing wkhost and its test tools into $(VENV) ..."
	$(PIP) install --editable '.[test,lint]'
	@touch $@ $(RUN_STAMP)

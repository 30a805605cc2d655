# `make help` lists the targets. Needs Python 3.11+, Java 17+ and Maven; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling what they import is two thirds of the start of a role, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo dev test retest containers unit lint format schemas peers bench chaos fuzz clean
help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## create .venv with everything a developer needs
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Towline needs Python 3.11 or newer: make install PYTHON=python3.11"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[test]'
	touch $@

demo: install ## all seven patterns through real Kafka, then stop
	$(BIN)/towline demo

dev: install ## keep the local stack up (APP=module:attr)
	$(BIN)/towline dev $(if $(APP),--app $(APP))

# Most tests wait for processes rather than compute: three at a time on two cores.
TEST_PROCESSES ?= 3
# These build an image and run two stacks in containers: side by side with the others they would make `make test`
# longer than its ten minutes on two cores. CI runs them after it: make containers.
ENGINE_TESTS := $(addprefix tests/containers/test_,compose.py image.py testcontainers.py)

# Else nobody knows what has failed.
RUN_TO_ITS_END := .pytest_cache/run-to-its-end

test: install ## all tests
	rm -f $(RUN_TO_ITS_END)
	$(BIN)/python -m pytest tests --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(ENGINE_TESTS)); \
	status=$$?; test $$status -gt 1 || touch $(RUN_TO_ITS_END); exit $$status

containers: install ## the tests that need a Docker engine (they start one if there is none, as root)
	$(BIN)/python -m pytest $(ENGINE_TESTS)

retest: install ## the tests that failed last, one at a time
	@test -e $(RUN_TO_ITS_END) || { echo "the last run did not come to its end: make test"; exit 1; }
	$(BIN)/python -m pytest tests --last-failed --last-failed-no-failures none $(addprefix --ignore=,$(ENGINE_TESTS))

unit: install ## tests that need no service
	$(BIN)/python -m pytest tests/unit

lint: install ## ruff, pyright strict, import rules, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m towline.contracts.schemas --check

format: install ## format and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: install ## write contracts/schemas, contracts/asyncapi.yaml from the models
	$(BIN)/python -m towline.contracts.schemas

peers: install ## fetch the systems that the benchmarks compare with, into the user's cache
	$(BIN)/python benchmarks/install.py

bench: install ## the short benchmarks
	$(BIN)/python benchmarks/run.py --short

chaos: install ## the long chaos test: make chaos MINUTES=30
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),30)

fuzz: install ## fuzz the event decoder: make fuzz MINUTES=5
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test,fuzz]'
	$(BIN)/python tests/fuzz/decoder.py --minutes $(or $(MINUTES),5)

clean: ## remove what was built
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis

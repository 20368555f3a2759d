# Every target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
BIN := $(VENV)/bin
DIR ?= services/blog
DISTRIBUTIONS := crds services/kernel services/gateway services/blog operator
STAMP := $(VENV)/.installed

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: install
install: $(STAMP) ## Install every distribution and every tool into .venv
$(STAMP): requirements/dev.lock $(addsuffix /pyproject.toml,$(DISTRIBUTIONS)) scripts/install
	scripts/install "$(VENV)"
	@touch "$@"

.PHONY: up
up: install ## Run services/blog (or DIR=…) on this machine: gateway on http://127.0.0.1:8080
	$(BIN)/moorage up $(DIR) $(ARGS)

.PHONY: down
down: install ## Stop what `make up` runs; ARGS=--purge removes its state
	$(BIN)/moorage down $(ARGS)

.PHONY: test
test: install ## Everything that CI checks: lint, types, generated files, unit, local mode, cluster
	scripts/test

.PHONY: test-fast
test-fast: install lint ## Lint, types and the tests that need no cluster
	$(BIN)/pytest -m "not cluster" -q

.PHONY: conformance
conformance: install ## Every port on its embedded and its real backend; prints a table
	$(BIN)/pytest tests/conformance -q

.PHONY: chaos
chaos: install ## Kill processes, brokers and databases under load; LONG=1 for the long form and the soak
	$(BIN)/pytest tests/chaos -q $(if $(LONG),--long)

.PHONY: bench
bench: install ## Every benchmark; SHORT=1 for a run that only shows that they work
	PYTHONPATH=tests/bench:tests/rigs:tests/cluster $(PY) -m bench $(if $(SHORT),--short)

bench-%: install ## One benchmark: bench-events, bench-up, …
	PYTHONPATH=tests/bench:tests/rigs:tests/cluster $(PY) -m bench $* $(if $(SHORT),--short)

.PHONY: lint
lint: install ## Format check, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .import_linter_cache

.PHONY: format
format: install ## Format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: generate
generate: install ## Regenerate CRDs, schemas, reference docs, chart copies and kustomize/base
	scripts/generate

.PHONY: lock
lock: install ## Resolve requirements/*.lock anew
	scripts/lock

.PHONY: cluster-up
cluster-up: install ## Start the test cluster and keep it (docs/testing-cluster.md)
	PYTHONPATH=tests/cluster $(PY) -m testcluster up

.PHONY: cluster-down
cluster-down: install ## Stop the test cluster
	PYTHONPATH=tests/cluster $(PY) -m testcluster down

.PHONY: clean
clean: ## Remove caches and the environment; .moorage/ stays (`make down ARGS=--purge`)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage .coverage.* htmlcov

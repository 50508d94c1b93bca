# Everything a person needs; hooks and CI call the same targets.
PYTHON ?= python3
CONFIG ?= config/quickstart.yaml
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-fast check format docs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## install everything into .venv (done by the others when needed)
	@$(PYTHON) install.py

serve: setup ## start the service (CONFIG=file.yaml PORT=9000 to change)
	@exec $(BIN)/axion serve --config $(CONFIG) $(if $(PORT),--port $(PORT))

test: setup ## run every test, with the real engines (about 10 minutes)
	@$(BIN)/python -m pytest

test-fast: setup ## run the tests that need no engine (under a minute)
	@$(BIN)/python -m pytest -m "not real"

check: setup ## check format, style, types and the direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## format the code and mend what can be mended by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup ## write the generated pages again
	@$(BIN)/python -m router.docs

clean: ## remove .venv and caches (the model cache in ~/.cache/axion stays)
	rm -rf .venv .venv.lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info build dist

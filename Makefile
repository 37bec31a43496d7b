# `make help` lists the targets. Everything runs from .venv, which is made when missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
OUT ?= demo_output
ARGS ?=
BIN := .venv/bin
CHECKED := $(wildcard src modeling_tests examples benchmarks)

.PHONY: help demo test test-slow test-hf style quality examples bench bench-quality

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

demo: .venv/.stamp-demo ## train, evaluate and predict on drawn people (with PAR_DATA also on photographs); result in OUT=demo_output
	$(BIN)/vlm-par demo --out $(OUT)

# One thread per process: two test workers of one thread each are faster on two cores than two of two.
test test-slow test-hf examples quality: export OMP_NUM_THREADS ?= 1

test: .venv/.stamp-dev ## run the tests (PAR_DATA=folder adds real images; ARGS="-k name" goes to pytest)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: .venv/.stamp-dev ## run the long proofs
	$(BIN)/python -m pytest -m slow $(ARGS)

test-hf: .venv/.stamp-dev ## run the common tests of the installed transformers over our models (fetches them once, 10 MB)
	$(BIN)/python -m pytest -m "" $(ARGS) modeling_tests/hf_common

examples: .venv/.stamp-dev ## run every script in examples/ at small size
	$(BIN)/python -m pytest -m "slow or not slow" modeling_tests/test_examples.py $(ARGS)

bench: .venv/.stamp-dev ## measure the tables of docs/speed.md (long; on an idle machine)
	$(BIN)/python benchmarks/speed.py $(ARGS)

bench-quality: .venv/.stamp-dev ## measure the tables of docs/quality.md (long)
	$(BIN)/python benchmarks/quality.py $(ARGS)

style: .venv/.stamp-dev ## format, and repair what ruff can repair
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

quality: .venv/.stamp-dev ## what a change must pass besides the tests
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/python -m pytest -q modeling_tests/test_floors.py

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# The order-only prerequisite makes .venv once; the stamps make an install repeat when the requirements change.
.venv/.stamp-demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	@touch $@

.venv/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch .venv/.stamp-demo $@

# `make help` lists the targets. Everything runs from .venv, which is made when missing, with the versions of the lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
OUT ?= demo_output
ARGS ?=
PYTHONS ?= $(PYTHON)
BIN := .venv/bin
LOCK := lock-py311.txt
CHECKED := $(wildcard src modeling_tests examples benchmarks docs/*.py)

.PHONY: help demo docs test test-slow test-services fuzz test-hf test-latest test-oldest test-wheel lock style quality examples \
	bench bench-quality bench-serving

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

demo: .venv/.stamp-demo ## train, evaluate and predict on drawn people (with PAR_DATA also on photographs); result in OUT=demo_output
	$(BIN)/vlm-par demo --out $(OUT)

# A worker that dies ends the run: with another one in its place, the run would wait for the dead one without end.
WORKERS := -n 2 --dist loadfile --max-worker-restart 0

docs: .venv-docs/.stamp ## build the documentation site in .cache/docs/site, every link checked (without a network, once .venv-docs is there)
	PATH="$(CURDIR)/.venv-docs/bin:$$PATH" python docs/build.py

# One thread per process: two test workers of one thread each are faster on two cores than two of two.
test test-slow test-services fuzz test-hf test-latest test-oldest examples quality: export OMP_NUM_THREADS ?= 1

test: .venv/.stamp-dev ## run the tests (PAR_DATA=folder adds real images; ARGS="-k name" goes to pytest)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-slow: .venv/.stamp-dev ## run the long proofs
	$(BIN)/python -m pytest -m slow $(ARGS)

# moto needs other versions of packages than ours: its server runs from an environment of its own.
test-services: .venv/.stamp-dev .venv-services/bin/moto_server .venv-ray/.stamp ## run the tests of galleries on an S3 server, and of Ray
	$(BIN)/python -m pytest -m services $(ARGS)

fuzz: .venv/.stamp-dev ## run damaged and strange inputs against oracles, the same ones each time (FUZZ_SEED=1 for others)
	$(BIN)/python -m pytest -m fuzz $(WORKERS) $(ARGS) modeling_tests/fuzz

test-hf: .venv/.stamp-dev ## run the common tests of the installed transformers over our models (fetches them once, 10 MB)
	$(BIN)/python -m pytest -m "" $(ARGS) modeling_tests/hf_common

# Without a stamp: what is newest changes from day to day.
test-latest: | .venv-latest/bin/pip ## run the tests over the newest packages of today, with deprecations as errors
	.venv-latest/bin/python -m pip install -q --upgrade --upgrade-strategy eager -c constraints.txt -e ".[dev]"
	.venv-latest/bin/python -m pytest $(WORKERS) --deprecations-fail $(ARGS)

test-oldest: .venv-oldest/.stamp-dev ## run the tests over the lowest versions that pyproject.toml admits (Python 3.11)
	.venv-oldest/bin/python -m pytest $(WORKERS) $(ARGS)

test-wheel: ## try wheel and source distribution in empty environments (PYTHONS="python3.11 python3.12"); long
	.ci/pythons $(PYTHONS)

# The header stays. torch goes in without +cpu, and without what its CUDA build brings: the build is the user's choice.
lock: ## resolve all packages anew and write the lock that .venv is installed with (PYTHON must be 3.11)
	@$(PYTHON) -c 'import sys; sys.exit("$(LOCK) is for Python 3.11, $(PYTHON) is another" if sys.version_info[:2] != (3, 11) else 0)'
	rm -rf .venv-lock && $(MAKE) .venv-lock/bin/pip
	trap 'rm -rf .venv-lock $(LOCK).part' EXIT; set -eo pipefail; \
	.venv-lock/bin/python -m pip install -q -c constraints.txt ".[dev]" hatchling editables; \
	{ grep '^#' $(LOCK); .venv-lock/bin/python -m pip freeze --exclude vlm-par-hf | sed 's/+.*//' \
	| grep -vE '^(nvidia-|cuda-|triton)'; } > $(LOCK).part; mv $(LOCK).part $(LOCK)

examples: .venv/.stamp-dev ## run every script in examples/ at small size
	$(BIN)/python -m pytest -m "slow or not slow" modeling_tests/test_examples.py $(ARGS)

bench: .venv/.stamp-dev ## measure the tables of docs/speed.md (long; on an idle machine)
	$(BIN)/python benchmarks/speed.py $(ARGS)

bench-quality: .venv/.stamp-dev ## measure the tables of docs/quality.md (long)
	$(BIN)/python benchmarks/quality.py $(ARGS)

bench-serving: .venv/.stamp-dev ## measure the service under load (long; on an idle machine)
	$(BIN)/python benchmarks/serving.py --work $(OUT) $(ARGS)

style: .venv/.stamp-dev ## format, and repair what ruff can repair
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

quality: .venv/.stamp-dev ## what a change must pass besides the tests
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/python -m pytest -q modeling_tests/test_floors.py

# Each environment is made once; the stamps make an install repeat when the requirements change.
.venv/bin/pip .venv-latest/bin/pip .venv-oldest/bin/pip .venv-lock/bin/pip .venv-docs/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(@:/bin/pip=)

# Held by the environment and not by -c, which would not reach the build of this package (hatchling and what it needs).
define install
	@held=$$($(BIN)/python -c 'import sys; print("lock-py{}{}.txt".format(*sys.version_info))'); \
	if [ ! -f $$held ]; then \
		echo "There is no $$held: the newest versions that pyproject.toml admits are installed"; held=constraints.txt; \
	fi; \
	PIP_CONSTRAINT=$$held $(BIN)/python -m pip install -q -e "$(1)"
endef

.venv/.stamp-demo: pyproject.toml constraints.txt $(LOCK) | .venv/bin/pip
	$(call install,.[demo])
	@touch $@

.venv/.stamp-dev: pyproject.toml constraints.txt $(LOCK) | .venv/bin/pip
	$(call install,.[dev])
	@touch .venv/.stamp-demo $@

.venv-services/bin/moto_server:
	$(PYTHON) -m venv .venv-services
	.venv-services/bin/python -m pip install -q "moto[server]>=5.1"

# Ray Serve needs packages that nothing else here does: they lie beside those of .venv, which this environment sees.
.venv-ray/.stamp: .venv/.stamp-dev
	$(PYTHON) -m venv .venv-ray
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
	> $$(.venv-ray/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/main.pth
	.venv-ray/bin/python -m pip install -q "ray[serve]"
	@touch $@

.venv-oldest/.stamp-dev: pyproject.toml constraints-oldest.txt | .venv-oldest/bin/pip
	.venv-oldest/bin/python -m pip install -q -c constraints-oldest.txt -e ".[dev]"
	@touch $@

.venv-docs/.stamp: docs/requirements.txt | .venv-docs/bin/pip
	.venv-docs/bin/python -m pip install -q -r docs/requirements.txt
	@touch $@

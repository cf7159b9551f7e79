# make demo   environment, synthetic cohort, training, evaluation, translation, report: runs/demo/report.html
# make test   environment, lint, types, the whole CPU test suite
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# idle threads of torch spin unless this is set before it is imported
export OMP_WAIT_POLICY := passive
# requirements/lowest.txt tests the lower bounds, /dev/null the newest releases that pyproject.toml admits
CONSTRAINTS ?= requirements/lock.txt
VERSIONS := $(shell (echo $(CONSTRAINTS); cat pyproject.toml $(CONSTRAINTS)) 2>/dev/null | sha256sum | cut -c1-12)
# `make demo` wants no test tools; `make test` and `make docs` add theirs to the same environment
RUN_STAMP := $(VENV)/.run-$(VERSIONS)
DEV_STAMP := $(VENV)/.dev-$(VERSIONS)
DOCS_STAMP := $(VENV)/.docs-$(VERSIONS)
SEEDS ?= 0 1 2
CONFIGS ?= neuroquant-demo anatome-demo

.PHONY: help setup setup-dev demo demo-seeds test pytest test-slow test-gpu lint docs freeze-commands lock bench clean

help:
	@sed -n '1,2s/^# //p' Makefile
	@echo "make demo-seeds   three seeds of each demo config, and the table of docs/reference/demo.md"
	@echo "make docs         the documentation, with the reference of the Python interface: site/index.html"
	@echo "make pytest       the tests without lint; CONSTRAINTS=requirements/lowest.txt with the oldest dependencies"
	@echo "make test-slow    the long fault and fuzz campaigns"
	@echo "make test-gpu     what needs a CUDA device"
	@echo "make bench        every benchmark, side by side with a peer"
	@echo "make lint | freeze-commands | lock | clean"

setup: $(RUN_STAMP)
setup-dev: $(DEV_STAMP)

$(RUN_STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e .
	@rm -f $(VENV)/.run-*; touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@rm -f $(VENV)/.dev-*; touch $@

$(DOCS_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	@rm -f $(VENV)/.docs-*; touch $@

demo: setup
	$(BIN)/neurotome demo runs/demo

demo-seeds: setup
	set -e; for config in $(CONFIGS); do for seed in $(SEEDS); do \
	  $(BIN)/neurotome demo runs/seeds/$$config-$$seed --config $$config --seed $$seed; done; done
	$(BIN)/python -m benchmarks.demo_table runs/seeds

lint: setup-dev
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/mypy

test: lint pytest

pytest: setup-dev
	$(BIN)/python -m pytest -m "not slow and not gpu"

# a warning is an error; links between pages, anchors and commands are checked by tests/test_docs.py as well
docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs site

# after a wanted change of verbs or flags; tests/cli/test_frozen_command_line.py compares
freeze-commands: setup-dev
	$(BIN)/python -m tests.cli.test_frozen_command_line

test-slow: setup-dev
	$(BIN)/python -m pytest -m slow --timeout 3600

test-gpu: setup-dev
	$(BIN)/python -m pytest -m gpu -n 0 --timeout 900

bench: setup-dev
	set -e; for job in quantizer ssim attention start slabs encode loading prepare; do $(BIN)/python -m benchmarks.$$job; done

# a fresh environment from pyproject.toml, frozen; the CPU wheel's local tag is stripped so that others can install it
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q 'torch==2.13.0' -e '.[dev,docs]'
	( echo "# tested together; made by \`make lock\`, never by hand"; \
	  .venv-lock/bin/python -m pip freeze --all --exclude-editable | grep -viE '^(pip|neurotome)(==| @)' | sed 's/+cpu$$//' ) > requirements/lock.txt
	! grep -i '^torchvision' requirements/lock.txt
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo   environment, synthetic cohort, training, evaluation, translation, report: runs/demo/report.html
# make test   environment, lint, types, the whole CPU test suite
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# idle threads of torch spin unless this is set before it is imported
export OMP_WAIT_POLICY := passive
# `make demo` wants no test tools; `make test` adds them to the same environment
RUN_STAMP := $(VENV)/.run-$(shell cat pyproject.toml requirements/lock.txt 2>/dev/null | sha256sum | cut -c1-12)
DEV_STAMP := $(VENV)/.dev-$(shell cat pyproject.toml requirements/lock.txt 2>/dev/null | sha256sum | cut -c1-12)
SEEDS ?= 0 1 2
CONFIGS ?= neuroquant-demo neuroquant-aligned-demo

.PHONY: help setup setup-dev demo demo-seeds test test-slow test-gpu lint lock bench clean

help:
	@sed -n '1,2s/^# //p' Makefile
	@echo "make demo-seeds   three seeds of each demo config, and the README's table"
	@echo "make test-slow    the long fault and fuzz campaigns"
	@echo "make test-gpu     what needs a CUDA device"
	@echo "make bench        every benchmark, side by side with a peer"
	@echo "make lint | lock | clean"

setup: $(RUN_STAMP)
setup-dev: $(DEV_STAMP)

$(RUN_STAMP): pyproject.toml requirements/lock.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements/lock.txt -e .
	@rm -f $(VENV)/.run-*; touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements/lock.txt -e '.[dev]'
	@rm -f $(VENV)/.dev-*; touch $@

demo: setup
	$(BIN)/neurotome demo runs/demo

demo-seeds: setup
	set -e; for config in $(CONFIGS); do for seed in $(SEEDS); do \
	  $(BIN)/neurotome demo runs/seeds/$$config-$$seed --config $$config --seed $$seed; done; done
	$(BIN)/python -m benchmarks.demo_table runs/seeds

lint: setup-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: setup-dev
	$(BIN)/python -m pytest -m slow --timeout 3600

test-gpu: setup-dev
	$(BIN)/python -m pytest -m gpu -n 0 --timeout 900

bench: setup-dev
	set -e; for job in quantizer ssim attention start slabs encode loading prepare; do $(BIN)/python -m benchmarks.$$job; done

# a fresh environment from pyproject.toml, frozen; the CPU wheel's local tag is stripped so that others can install it
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q 'torch==2.13.0' -e '.[dev]'
	( echo "# tested together; made by \`make lock\`, never by hand"; \
	  .venv-lock/bin/python -m pip freeze --all --exclude-editable | grep -viE '^(pip|neurotome)(==| @)' | sed 's/+cpu$$//' ) > requirements/lock.txt
	! grep -i '^torchvision' requirements/lock.txt
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Tandem. Needs Python 3.11, 3.12 or 3.13, git and make; everything else is installed into .venv.
.DEFAULT_GOAL := help
.PHONY: help demo up install test check format format-check lint types imports spelling \
	tests tests-quick tests-slow gpu-test gpu-bench chaos proto docs baseline clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) and print("$(name)")' 2>/dev/null)))
TORCH := $(shell grep '^torch==' constraints.txt)
# The environment follows these files: when one changes, pip runs again, otherwise never.
PINS := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN_READY := .venv/ready-to-run-$(PINS)
DEV_READY := .venv/ready-to-develop-$(PINS)
PYTEST := $(BIN)/python -m pytest -q
COMMA := ,

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(RUN_READY) ## Start a small cluster, send prompts through it, print where the time went
	$(BIN)/python -m deploy.local demo

up: $(RUN_READY) ## Keep the same cluster running until Ctrl-C
	$(BIN)/tandem up

install: $(DEV_READY) ## Only set up .venv, with everything that tests and checks need

check: format-check lint types imports spelling tests-quick ## All checks and the quick tests

test: format-check lint types imports spelling tests ## All checks and all tests; what CI runs

format: $(DEV_READY) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

format-check: $(DEV_READY)
	$(BIN)/ruff format --check .

lint: $(DEV_READY)
	$(BIN)/ruff check .

types: $(DEV_READY)
	$(BIN)/mypy

imports: $(DEV_READY) ## Check who imports whom (.importlinter)
	$(BIN)/lint-imports

spelling: $(DEV_READY)
	$(BIN)/codespell

tests: tests-quick tests-slow

tests-quick: $(DEV_READY)
	$(PYTEST) -m 'not slow' -n auto --maxprocesses 4

# Two files at a time: whole clusters share the cores as it is, but wait a good deal as well.
tests-slow: $(DEV_READY)
	$(PYTEST) -m slow -n 2 --dist loadfile

gpu-test: $(DEV_READY) ## What only a CUDA device can show; minutes, skipped without one
	$(PYTEST) -m gpu

gpu-bench: $(DEV_READY) ## Speed beside the limits of the device, in MINUTES=8: docs/gpu.md
	$(BIN)/python -m benchmarks.gpu --out $(or $(OUT),benchmarks/results/gpu.json) \
		--minutes $(or $(MINUTES),8) $(if $(LENGTHS),--lengths $(LENGTHS))

chaos: $(DEV_READY) ## Random harm under load for SECONDS=600, or one round again: SEED=123
	$(BIN)/python -m deploy.chaos $(if $(SEED),--seed $(SEED)) $(if $(SIZE),--size $(SIZE)) \
		$(if $(SECONDS)$(SEED),$(if $(SECONDS),--seconds $(SECONDS)),--seconds 600)

proto: $(DEV_READY) ## Write the Python stubs of proto/ anew
	$(BIN)/python -m tools.generate_stubs

docs: $(DEV_READY) ## Write the generated parts of docs/ anew
	$(BIN)/python -m tools.generate_docs

baseline: $(DEV_READY) ## Accept the present wire contract as the one that must not break
	cd proto && ../$(BIN)/buf build --exclude-source-info --output baseline.binpb

clean: ## Remove .venv, caches and build results
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "Tandem needs Python 3.11, 3.12 or 3.13; install one, or name it: make PYTHON=/path/to/python3.11"; \
		exit 1; }
	@echo "making .venv with $(PYTHON)"; $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; \
		exit 1; }

# Linux wheels of torch on the default index bring several GB of CUDA libraries. Without an NVIDIA
# driver the CPU build is taken: from the configured indexes where they have it, else from its own.
# It goes first, because other packages ask for any torch.
define install
	@if [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null \
		|| $(PIP) install --quiet --dry-run --no-deps '$(TORCH)+cpu' >/dev/null 2>&1; \
	then set -- ; else set -- --index-url https://download.pytorch.org/whl/cpu; fi; \
	set -x; $(PIP) install --no-deps "$$@" '$(TORCH)'
	$(PIP) install --constraint constraints.txt --editable '.[$(1)]'
	@rm -f .venv/ready-*
	@touch $(2)
endef

$(RUN_READY): | $(BIN)/python
	$(call install,worker$(COMMA)embedded,$@)

$(DEV_READY): | $(BIN)/python
	$(call install,worker$(COMMA)embedded$(COMMA)simulate$(COMMA)test$(COMMA)dev,$@ $(RUN_READY))

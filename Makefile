# make demo and make test do all their own set-up: nothing but Python 3.11 or newer, make and git has to be there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
COMPILE = $(BIN)/uv pip compile -q --upgrade --python $(BIN)/python --no-header --no-annotate --no-emit-index-url
# Where pip was told to look, uv looks too.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export SAM_CLI_TELEMETRY := 0
export ORT_DISABLE_TELEMETRY := 1
PEERS := flask fastapi bentoml mlserver litserve
# The newest interpreter of the deployed runtime's version, if there is one; a shim that does not start does not count.
PYTHON313 ?= $(shell for p in $$(command -v python3.13) $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13) /opt/python/cp313*/bin/python3.13; do \
	$$p -c 'import sys; assert sys.version_info[:2] == (3, 13)' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help demo local train-all test check lint types imports template build deploy stress bench layer tree results constraints clean

help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: .venv/.demo ## Train, upload, register and call a model on the local stack, then stop
	@$(BIN)/python -m local.demo

local: .venv/.demo ## The same, and the stack stays until Ctrl-C
	@$(BIN)/python -m local.demo --keep

train-all: .venv/.demo ## Train, register and ask every recipe on the local stack, then stop; a table
	@$(BIN)/python -m local.train_all

test: .venv/.all .venv-kserve/.done .venv-sagemaker/.done .venv-sam/.done $(if $(shell command -v cc),.venv-toolkit/.done) $(if $(PYTHON313),.venv-313/.done .venv-lambda/.done .aws-sam/.built) ## Everything that can be tested here
ifneq ($(PYTHON313),)
	.venv-313/bin/python -m pytest -q -p no:cacheprovider -m "not train and not stress" tests/unit tests/integration --ignore-glob='*training*' --ignore-glob='*job*'
endif
	$(BIN)/python -m pytest

check: lint types imports template test ## What CI runs: lint, types, import contracts, template, test

lint: .venv/.all ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.all ## mypy --strict
	$(BIN)/mypy

imports: .venv/.all ## Who may import whom
	$(BIN)/lint-imports

template: .venv-sam/.done ## sam validate --lint
	.venv-sam/bin/sam validate --lint

build: .aws-sam/.built ## sam build, pruned and compiled (needs python3.13)

deploy: build ## sam deploy --guided (needs an AWS account)
	.venv-sam/bin/sam deploy --guided --capabilities CAPABILITY_IAM

stress: .venv/.all ## The long runs: 10,000 mutated models, 1,000 models in one environment, 500 histories, every planted fault, every kill
	$(BIN)/python -m tests.stress.mutants
	$(BIN)/python -m tests.stress.many_models
	$(BIN)/python -m pytest -m stress tests

bench: .venv/.demo $(PEERS:%=.venv-peer-%/.done) ## The benchmarks; results are added to benchmarks/results/
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.warm_request
	$(BIN)/python -m benchmarks.register
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.many_models
	$(BIN)/python -m benchmarks.peers
	@$(MAKE) results

layer: ## Generate layers/*/requirements.txt from pyproject.toml
	$(PYTHON) -m scripts.layer

tree: ## Write the README's tree from the files' docstrings
	$(PYTHON) -m scripts.tree

results: ## Write the README's tables from benchmarks/results/
	$(PYTHON) -m scripts.results

constraints: .venv/.uv ## Pin again what the direct requirements pull in
	$(COMPILE) --group lint --group train --group parquet --group tune -o constraints/main.txt
	$(COMPILE) --group kserve -o constraints/kserve.txt
	$(COMPILE) --group sagemaker -o constraints/sagemaker.txt
	$(COMPILE) --group toolkit -o constraints/toolkit.txt
	$(COMPILE) --group sam -o constraints/sam.txt
	for peer in $(PEERS); do $(COMPILE) --group peer-$$peer -o constraints/peer-$$peer.txt; done
	sed -i 's/+cpu$$//' constraints/*.txt

clean: ## Remove environments, builds and the local stack's state
	rm -rf .venv .venv-* .aws-sam .local artifacts

# --- environments: each is made once, and again when its requirements change ----------------------------------------
INSTALL = $(BIN)/uv pip install --python

.venv/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Mayfly needs Python 3.11 or newer: make PYTHON=python3.11")'
	@scripts/progress "Making the environment in .venv" $(PYTHON) -m venv .venv
	@scripts/progress "Installing uv" $(BIN)/python -m pip install --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.demo: .venv/.uv pyproject.toml constraints/main.txt
	@scripts/progress "Installing what the demo needs (1.4 GB, most of it torch)" \
		$(INSTALL) $(BIN)/python -c constraints/main.txt --group local --group train
	@touch $@

.venv/.all: .venv/.demo
	@scripts/progress "Installing what the tests need" \
		$(INSTALL) $(BIN)/python -c constraints/main.txt --group lint --group train --group parquet --group tune
	@touch $@

.venv-313/.done: .venv/.uv pyproject.toml constraints/main.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON313) .venv-313
	@scripts/progress "Installing the tests for the deployed Python in .venv-313" \
		$(INSTALL) .venv-313/bin/python -c constraints/main.txt --group test
	@touch $@

.venv-lambda/.done: .venv/.uv pyproject.toml constraints/main.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON313) .venv-lambda
	@scripts/progress "Installing what the managed runtime holds in .venv-lambda" \
		$(INSTALL) .venv-lambda/bin/python -c constraints/main.txt --group lambda
	@touch $@

.venv-%/.done: .venv/.uv pyproject.toml constraints/%.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON) .venv-$*
	@scripts/progress "Installing $* in .venv-$*, apart for its own requirements" \
		$(INSTALL) .venv-$*/bin/python -c constraints/$*.txt --group $*
	@touch $@

# --- the bundle ------------------------------------------------------------------------------------------------------
.aws-sam/.built: .venv-sam/.done template.yaml scripts/bundle.py $(wildcard layers/*/requirements.txt) $(shell find functions -name '*.py')
	@test -n "$(PYTHON313)" || { echo "sam build needs python3.13: install it, or run make build PYTHON313=/path/to/python3.13"; exit 1; }
	@PATH="$(dir $(realpath $(PYTHON313))):$$PATH" scripts/progress "Building the bundle (sam build)" .venv-sam/bin/sam build
	@scripts/progress "Pruning and compiling it" $(PYTHON313) -m scripts.bundle .aws-sam/build
	@touch $@

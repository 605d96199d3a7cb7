# Everything a person types here. `make` alone lists it. PYTHON=python3.12 chooses another interpreter for .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
export PYTHON
# Where this is set, each process would compile Prefect, MLflow and torch anew: seconds a start. Caches go into .venv and
# __pycache__, and whatever is started later without make reads them too.
export PYTHONDONTWRITEBYTECODE :=
BIN := .venv/bin
PYTEST := $(BIN)/pytest

.PHONY: help setup pipeline up down status test test-unit test-slow test-gpu lint format types package licences sbom audit check lock \
	chaos pages screenshots clean bench bench-peers bench-step bench-curves bench-text bench-loading bench-around \
	bench-writing bench-gpu

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sort | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do \
	  printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: ## make .venv as the lock says (done by the others when needed)
	@.ci/setup

pipeline: setup ## the main job: corpus, shards, training, evaluation; a second run reuses what the first made
	@$(BIN)/gptflow run --preset quickstart

up: setup ## start Prefect, MLflow and a worker on this machine, register the deployments
	@$(BIN)/python -m tasks.services up

down: setup ## stop them
	@$(BIN)/python -m tasks.services down

status: setup ## how they are
	@$(BIN)/python -m tasks.services status || true

test: setup ## all tests but the slow ones and those that need a GPU
	@$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu"

test-unit: setup ## those that need no server: seconds
	@$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu" tests/unit

test-slow: setup ## those that take minutes each
	@$(PYTEST) -m "slow and not gpu"

test-gpu: setup ## those that need a CUDA device
	@$(PYTEST) -m gpu

N ?= 20
SEED ?= 1
THROUGH ?= plain
chaos: setup ## N kills at random moments of small pipelines, compared with an undisturbed one; THROUGH=plain|cli|worker
	@$(BIN)/python tests/chaos.py --kills $(N) --seed $(SEED) --through $(THROUGH)

lint: setup ## style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup ## put style and formatting right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup ## strict type checking, of README's Python too
	@$(BIN)/mypy
	@mkdir -p .run
	@sed -n '/^```python$$/,/^```$$/{/^```/d;p}' README.md >.run/readme.py
	@$(BIN)/mypy .run/readme.py

package: setup ## build sdist and wheel into dist/, install the wheel elsewhere and try it
	@.ci/package

licences: setup ## the licence of every package of the lock; fails on one that .ci/licences.toml does not admit
	@$(BIN)/python .ci/licences.py

sbom: setup ## bill of materials of .venv, CycloneDX, into dist/
	@$(BIN)/python .ci/bill.py

ADVISORIES ?=
audit: setup ## known vulnerabilities of the locked versions; ADVISORIES=folder or zip of OSV records to ask too
	@eval "$$($(BIN)/python .ci/pip_settings.py)"; \
	  $(BIN)/python .ci/audit.py $(if $(ADVISORIES),--advisories "$(ADVISORIES)")

check: lint types licences package test ## all that CI checks

lock: setup ## resolve all dependencies anew
	@.ci/lock

NANOGPT ?=
bench: bench-step bench-curves bench-text bench-loading bench-around bench-writing ## what the speed rests on, measured; tables and JSON in benchmarks/results

bench-peers: setup ## the packages to race against, in .bench
	@[ -x .bench/bin/python ] || $(BIN)/python -m venv .bench
	@$(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["benchmark"], sep="\n")' \
	  | .bench/bin/python -m pip install -q --disable-pip-version-check "$$(grep ^torch== requirements.lock)" -r /dev/stdin

bench-step: bench-peers ## a training step against peers; NANOGPT=path/to/model.py adds nanoGPT
	@$(BIN)/python -m benchmarks.training_step $(if $(NANOGPT),--nanogpt $(NANOGPT))

bench-curves: setup ## what bfloat16 and Muon do to the loss, over seeds
	@$(BIN)/python -m benchmarks.curves

bench-text: setup ## text to shards, beside bare tiktoken
	@$(BIN)/python -m benchmarks.tokenization

bench-loading: setup ## a batch from shards beside a memmap, and the first batch of 10 GB (needs that much disk)
	@$(BIN)/python -m benchmarks.loading

bench-around: setup ## what Prefect, MLflow and manifests cost around the work
	@$(BIN)/python -m benchmarks.orchestration

bench-writing: setup ## text generation beside transformers
	@$(BIN)/python -m benchmarks.generation

bench-gpu: setup ## all figures of one GPU, in at most nine minutes; needs one
	@$(BIN)/python -m benchmarks.gpu

pages: setup ## run the commands of tutorial and how-tos, and write what they print into these pages
	@$(BIN)/python -m tests.pages --write

PRESET ?= quickstart
STEPS ?= 200
screenshots: setup ## start a run from the form, look at all of it in a browser, keep pictures; needs `make up`, Chromium
	@$(BIN)/python docs/screenshots.py --preset $(PRESET) --steps $(STEPS)

clean: ## remove what can be made again; keeps the store, MLflow's and Prefect's records, and .venv
	@[ ! -f .venv/.setup ] || $(BIN)/python -m tasks.services down
	@rm -rf dist build .run .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

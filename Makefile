# Fleet Twin's commands. Only python3 (3.11 or newer), make and the package registries are assumed: each target sets up what it needs.
.DEFAULT_GOAL := help
.PHONY: help setup parts demo test lint sim sim-mutants e2e soak bench proto crds chart image requirements clean

PYTHON ?= python3
VENV := .venv
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fleet-twin
AWSCLI := $(CACHE)/awscli
DURATION ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
SEEDS ?= 500
CHURN_MINUTES ?= 30

help: ## what there is (this list)
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.project ## .venv with the project and its tools: .venv/bin/fleet-twin

# Installed in place, so an edit needs no new install; pyproject.toml matters for its scripts and folders.
$(VENV)/.project: requirements-dev.txt pyproject.toml scripts/make_venv.sh
	@PYTHON=$(PYTHON) scripts/make_venv.sh $(VENV) requirements-dev.txt
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@touch $@

demo: setup ## the whole system on this machine: simulated fleet, embedded Kinesis and S3, live view [DURATION=seconds]
	@$(VENV)/bin/fleet-twin demo $(if $(DURATION),--duration $(DURATION)) $(DEMO_ARGS)

sim: setup ## seeded runs in virtual time, of a pipeline and of whole fleets, with every fault there is [SEEDS=500] (docs/simulator.md)
	@SIM_SEEDS=$(SEEDS) $(VENV)/bin/python -m pytest -n auto tests/sim/test_sim.py $(PYTEST_ARGS)
	@$(VENV)/bin/python -m tests.sim.fleet_runs --seeds $(SEEDS)

sim-mutants: setup ## plants bugs in the production code, one at a time, and looks whether the simulator finds them
	@$(VENV)/bin/python -m tests.sim.mutants

# What these take is made before anything is timed. What a machine lacks for the cluster is told twice: here, and as the reason of each
# test that is skipped for it.
parts: setup ## what the tests take: programs, Debian packages, images; made once, kept in the cache folder of the user
	@PYTHON=$(PYTHON) UV=$(VENV)/bin/uv scripts/make_venv.sh $(AWSCLI) requirements-awscli.txt
	@$(VENV)/bin/python -m tests.support.kubernetes_programs >/dev/null
	@$(VENV)/bin/python -m tests.support.go_tools >/dev/null
	@tests/e2e/packages.sh && $(VENV)/bin/python -m tests.e2e.images >/dev/null || echo "fleet-twin: going on without a cluster" >&2

e2e: parts ## a whole Kubernetes cluster made on this machine (Debian, root; docs/testing.md), real workers, real emulators
	@FLEET_TWIN_AWSCLI=$(AWSCLI)/bin/aws $(VENV)/bin/python -m pytest tests/integration tests/e2e -m "processes or cluster or e2e_only" $(PYTEST_ARGS)

soak: parts ## fifty fleets under one operator, edited for half an hour: in time, silent at rest, no larger [CHURN_MINUTES=30]
	@$(VENV)/bin/python -m tests.e2e.operator_scale --churn-minutes $(CHURN_MINUTES)

# What only computes runs on every core; what starts processes of its own, one after the other, since it is timed by the clock.
test: lint parts ## lint, then every test that this machine can run, the cluster's too [PYTEST_ARGS=…]
ifeq ($(strip $(PYTEST_ARGS)),)
	@$(VENV)/bin/python -m pytest -n auto --dist worksteal -m "not processes and not cluster and not e2e_only"
	@FLEET_TWIN_AWSCLI=$(AWSCLI)/bin/aws $(VENV)/bin/python -m pytest -m "processes and not cluster and not e2e_only"
	@$(VENV)/bin/python -m pytest -m "cluster and not e2e_only"
else
	@FLEET_TWIN_AWSCLI=$(AWSCLI)/bin/aws $(VENV)/bin/python -m pytest $(PYTEST_ARGS)
endif

lint: setup ## format, lint, types, import rules, generated code up to date
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/mypy tests
	@$(VENV)/bin/lint-imports
	@VENV=$(VENV) scripts/proto.sh --check
	@$(VENV)/bin/python scripts/crds.py --check
	@$(VENV)/bin/python scripts/chart.py --check

bench: setup ## the benchmarks on this machine, about a quarter of an hour (docs/benchmarks.md) [BENCH_ARGS=--json]
	@$(VENV)/bin/fleet-twin bench engine --devices 100000 --records 5000000 --cpu 0 $(BENCH_ARGS)
	@$(VENV)/bin/fleet-twin bench engine --devices 1000000 --partitions 10 --records 5000000 --cpu 0 $(BENCH_ARGS)
	@$(VENV)/bin/fleet-twin bench worker --behind $(BENCH_ARGS)
	@$(VENV)/bin/fleet-twin bench worker --rate 10000 --shards 10 --duration 120 $(BENCH_ARGS)
	@$(VENV)/bin/fleet-twin bench checkpoint --devices 1000000 --records 8000000 $(BENCH_ARGS)

proto: setup ## proto/fleet_proto anew from proto/*.proto
	@VENV=$(VENV) scripts/proto.sh

crds: setup ## crds/*.yaml, and the chart's, anew from model/fleet_model/crd
	@$(VENV)/bin/python scripts/crds.py

chart: setup ## the chart's README and dashboard anew from values.yaml and scripts/chart_dashboard.py
	@$(VENV)/bin/python scripts/chart.py

image: ## the image, with docker or buildah [IMAGE=name BASE_IMAGE=name] (docs/reference/image.md)
	@IMAGE=$(IMAGE) BASE_IMAGE=$(BASE_IMAGE) scripts/image.sh

requirements: setup ## the pinned requirements anew from pyproject.toml [UPGRADE=1 for the newest]
	@VENV=$(VENV) UPGRADE=$(UPGRADE) scripts/requirements.sh

clean: ## removes .venv and what tools left behind (not the user's cache, not data folders)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

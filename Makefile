# weaverant. Every target works from a fresh clone; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= out

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help install run test test-all test-slow hostile faults faults-mutants fuzz audit check format bench bench-others bench-routing bench-peers sim-peers chaos test-ray train-tiny train-specialists malt malt-rounds malt-sweeps clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-21s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## .venv with weaverant and what its tests need

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "weaverant needs Python 3.11 or newer; found $$($(PYTHON) --version). Use: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

# What needs torch, transformers and datasets gets an environment of its own, so that the light one stays light.
$(VENV)-heavy/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-heavy
	$(VENV)-heavy/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-heavy/bin/python -m pip install --quiet "torch==2.13.0"
	$(VENV)-heavy/bin/python -m pip install --quiet --editable . --group dev --group heavy
	@touch $@

run: install  ## weave 300 questions with the embedded model, write the data sets, evaluate on 1,000 held-out problems
	$(BIN)/python -m weaverant.recipes.malt --out $(OUT)

# Tests wait more than they compute, so three processes keep two cores busy. A file's tests stay in one process.
WORKERS ?= 3
PYTEST  := -m pytest --numprocesses $(WORKERS) --dist loadfile

# Threads of numpy's linear algebra that wait for one another, on cores that others use, take three times as long.
test test-all: export OPENBLAS_NUM_THREADS = 1

test: install  ## all tests that need no extra, in WORKERS=3 processes
	$(BIN)/python $(PYTEST)

test-all: check test audit $(VENV)-heavy/.installed  ## format, lint, types, dependencies, all tests, and those that need the heavy extras
	$(VENV)-heavy/bin/python $(PYTEST) -m "heavy and not slow"

test-slow: install  ## the long forms: 2,000 random workflows, 200 crash trials, a million rows
	$(BIN)/python -m pytest -m slow --timeout 3600 -rA

hostile: install  ## real runs against servers that fail in every way: what is lost, late, or asked twice
	$(BIN)/python tests/test_hostile.py

SEEDS ?= 10000
faults: install  ## the fault gate: SEEDS=10000 simulated runs through crashes, power cuts, errors and edits; SEED=7 tells one
	$(BIN)/python -m weaverant.testing.world $(or $(SEED),--seeds $(SEEDS))

faults-mutants: install  ## the test of the gate: planted bugs, each to be caught within 500 seeds
	$(BIN)/python -m weaverant.testing.world --mutants

MINUTES ?= 60
fuzz: install  ## hostile bytes for everything that reads what others wrote, for MINUTES=60 in all
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

audit: install  ## dependencies: versions, licences, origins; the index and pip-audit are asked where they answer
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit; } || true
	$(BIN)/python tools/audit.py --strict --pip-audit $(VENV)-audit/bin/pip-audit

check: install  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: install  ## mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## the benchmark tables (bench/README.md)
	@rm -rf bench/results
	@for bench in bench/bench_*.py; do $(BIN)/python $$bench || exit 1; done
	@$(BIN)/python bench/report.py

bench-others: install  ## other libraries beside ours, each installed into an environment of its own (20 minutes, 3 GB)
	@$(BIN)/python bench/installed_others.py

bench-routing: install  ## routers on public tables, and RouteMoA's released run; rows without their data say so
	@rm -f bench/results/bench-routing-*.json
	@for bench in bench/routing_*.py; do $(BIN)/python $$bench || exit 1; done
	@$(BIN)/python bench/report.py bench-routing

bench-peers: install  ## runs on peers: hops, scaling, the lease book, drains, bytes on the wire
	@rm -f bench/results/peers-*.json
	@for bench in bench/peers_*.py; do $(BIN)/python $$bench || exit 1; done
	@$(BIN)/python bench/report.py bench-peers peers

sim-peers: install  ## a simulated swarm of 1,000 peers weaves 100,000,000 rows, for four sizes of leases (15 minutes)
	@$(BIN)/python bench/sim_peers.py

TRIALS ?= 30
chaos: $(VENV)-heavy/.installed  ## 5,000 rows on two hosts made of network namespaces, a fault in each of TRIALS=30 trials (needs root; PRIVATE=1: in a store)
	@cd tests && ../$(VENV)-heavy/bin/python -m chaos --trials $(TRIALS) $(if $(SEED),--seed $(SEED)) $(if $(PRIVATE),--private)

test-ray: $(VENV)-heavy/.installed  ## peers on real Ray clusters of this machine, nodes killed
	$(VENV)-heavy/bin/python -m pytest -m heavy tests/test_swarm_ray.py

malt: $(VENV)-heavy/.installed  ## train the embedded model's three roles by real SFT and DPO, print the paper's tables (under 15 minutes on 2 cores)
	$(VENV)-heavy/bin/python -m weaverant improve malt --out $(OUT)/malt

malt-rounds: $(VENV)-heavy/.installed  ## two rounds of it, each kept only where it gains on problems of its own; no tables
	$(VENV)-heavy/bin/python -m weaverant improve malt --rounds 2 --theta 0.5,0.67 --no-tables --out $(OUT)/malt-rounds

malt-sweeps: $(VENV)-heavy/.installed  ## MALT for n = 2, 3, 4, for theta = 0.34, 0.5, 0.67, and on a base with weaker habits (hours; the same command goes on)
	$(VENV)-heavy/bin/python bench/malt_sweeps.py --out $(OUT)/malt-sweeps

train-tiny: $(VENV)-heavy/.installed  ## train the packaged model anew (under 30 minutes on 2 cores)
	$(VENV)-heavy/bin/python training/tiny/train.py

train-specialists: $(VENV)-heavy/.installed  ## train the pool of small models that routing is measured on (half an hour on one core)
	$(VENV)-heavy/bin/python training/specialists/make.py
	$(BIN)/python training/specialists/table.py

clean:  ## remove environments and caches, never runs
	rm -rf $(VENV) $(VENV)-heavy $(VENV)-others $(VENV)-audit .pytest_cache .ruff_cache

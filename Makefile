# Two commands on a fresh machine: `make quickstart` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Extra pip options, for example an index that holds the CPU build of torch.
PIP_OPTIONS ?=
# Tests that run side by side.
WORKERS ?= 2

.PHONY: setup test test-gpu quickstart reproduce reproduce-quick reproduce-docs lint clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt launch/setup_env.sh
	bash launch/setup_env.sh "$(PYTHON)" "$(VENV)" $(PIP_OPTIONS)
	touch $@

quickstart: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/quickstart.py --out runs/quickstart

# The paper's claims with a small model, from scratch: docs/reproduction.md. The second is smaller.
reproduce: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/reproduce.py --out runs/reproduction

reproduce-quick: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/reproduce.py --quick --out runs/reproduction-quick

# Two seeds, and docs/reproduction.md of both.
reproduce-docs: reproduce
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/reproduce.py --size core --seed 1 --out runs/reproduction-1
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/reproduce.py --out runs/reproduction --beside runs/reproduction-1 --docs docs

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder

# On a machine with a GPU: every attention kernel that is there against the reference; -rs says why others are not.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest tests/gpu -s -rs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

# Two commands on a fresh machine: `make quickstart` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Extra pip options, for example an index that holds the CPU build of torch.
PIP_OPTIONS ?=

.PHONY: setup test quickstart lint clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt launch/setup_env.sh
	bash launch/setup_env.sh "$(PYTHON)" "$(VENV)" $(PIP_OPTIONS)
	touch $@

quickstart: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/quickstart.py --out runs/quickstart

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

# Two commands do everything on a fresh machine: `make demo` and `make test`.
# They need Python 3.11 or newer with venv, and make; the rest they fetch by name.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install tools demo test test-trl lint format bench contracts contracts-audit clean

help:  ## show these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(VENV)/.installed  ## make .venv with pinned versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

tools: contracts/node_modules/.installed tests/emulators/node_modules/.installed tests/page/node_modules/.installed  ## fetch Anvil, forge, the Solidity compiler, Azurite and Chromium from npm

contracts/node_modules/.installed: contracts/package.json contracts/install-tools.sh | $(VENV)/.installed
	contracts/install-tools.sh $(BIN)
	touch $@

tests/emulators/node_modules/.installed: tests/emulators/package.json contracts/install-tools.sh | $(VENV)/.installed
	contracts/install-tools.sh $(BIN) tests/emulators
	touch $@

tests/page/node_modules/.installed: tests/page/package.json contracts/install-tools.sh | $(VENV)/.installed
	contracts/install-tools.sh $(BIN) tests/page
	touch $@

demo: $(VENV)/.installed contracts/node_modules/.installed  ## train, record, anchor, prove, verify, attack
	$(BIN)/rlhf-audit demo

test: $(VENV)/.installed contracts/node_modules/.installed tests/emulators/node_modules/.installed tests/page/node_modules/.installed lint  ## every check and test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist loadfile

TRL ?= 1.9.0
test-trl: $(VENV)/.installed  ## trainers' tests with another TRL: make test-trl TRL=0.24.0
	$(BIN)/python tests/train/other_trl.py $(TRL)

lint: $(VENV)/.installed  ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## rewrite the layout of the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed contracts/node_modules/.installed  ## run every benchmark
	$(BIN)/python -m benchmarks all --json

contracts: $(VENV)/.installed contracts/node_modules/.installed  ## compile the contract and rewrite its artifact
	$(BIN)/python -m rlhf_audit_trail.ledger.chain.contract.build

contracts-audit: $(VENV)/.installed contracts/node_modules/.installed contracts/.audit/.installed  ## the contract's slow checks: fuzz, halmos, slither
	$(BIN)/python contracts/audit.py

contracts/.audit/.installed: contracts/install-audit-tools.sh | $(VENV)/.installed
	contracts/install-audit-tools.sh "$(CURDIR)/$(BIN)/python"

clean:  ## remove everything that was made
	rm -rf $(VENV) contracts/node_modules tests/emulators/node_modules tests/page/node_modules contracts/out contracts/cache contracts/.audit build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

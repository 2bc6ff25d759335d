# make train   train a language model on real text, under a memory budget, on two Ray workers
# make test    run the tests
# Both make a virtual environment in .venv first, and are quick the second time. More options: make train ARGS="--steps 100".

PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Compiled at once, as pip does it with what it copies: each worker imports them.
PACKAGES := framework checkpointing distributed scripts
# In two processes; in one with ARGS="-n 0". What a test of the larger suites prints is shown at the end (-rP).
PYTEST ?= $(BIN)/python -m pytest -n 2
ARGS ?=

.PHONY: train test test-peers test-memory test-browser lint format docs install soak clean

train: .venv/.installed
	$(BIN)/python scripts/train.py $(ARGS)

test: .venv/.installed-test
	$(PYTEST) $(ARGS)

lint: .venv/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Makes a site of the documentation in build/site; warnings are errors. It needs no network to build or to read.
docs: .venv/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/site
	@echo "build/site/index.html"

# Compares with PyTorch, which the peers extra installs.
test-peers: .venv/.installed-peers
	$(PYTEST) -m peers -rP tests/peers tests/scripts tests/docs $(ARGS)

# Many more draws of the laws of memory than `make test` has.
test-memory: .venv/.installed-test
	$(PYTEST) -m memory -rP $(ARGS)

# Opens pages in Chromium (apt-get install chromium) in many more ways than `make test` does.
test-browser: .venv/.installed-test
	$(PYTEST) -m browser -rP $(ARGS)

# What takes longer than CI allows.
soak: .venv/.installed-test
	$(PYTEST) -m soak -rP $(ARGS)

install: .venv/.installed-test .venv/.installed-lint

clean:
	rm -rf .venv build *.egg-info

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	$(BIN)/python -m compileall -q $(PACKAGES)
	touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) --editable '.[test,datasets,tensorboard,browser]'
	touch $@

.venv/.installed-peers: .venv/.installed-test
	$(PIP) --editable '.[peers]'
	touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) --editable '.[docs]'
	touch $@

.venv/.installed-lint: .venv/.installed
	$(PIP) --editable '.[lint]'
	touch $@

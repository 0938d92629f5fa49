# `make demo` and `make test` work on a fresh machine: each builds .venv first, with what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Byte code is written by the first import: compiling all of it took a third of the installation.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
FOR_DEMO := $(VENV)/.installed-demo
FOR_ALL := $(VENV)/.installed

# Images of containers often forbid it. Then each of the thousands of processes that tests start compiles much
# of what it imports anew, a tenth of all their processor time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo docs notebooks reference test test-unit mutations chaos mutants soak quality peers lint install clean
demo: $(FOR_DEMO)
	$(BIN)/parsl-rasda run workflows/cfd_defiltering/study.yaml --site local --dir $$(mktemp -d -p . runs.XXXXXX)/cfd_defiltering

test: install
	$(BIN)/python -m pytest --hypothesis-profile=ci $(PYTEST_ARGS)

# What answers in a minute: no processes of seconds, few examples, one thread for each of two workers.
test-unit: export OMP_NUM_THREADS = 1
test-unit: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests/unit tests/contract $(PYTEST_ARGS)

# 100,000 mutated study and site files: no traceback, always file:line, none over 2 s. Minutes.
mutations: install
	PYTHONPATH=. $(BIN)/python benchmarks/mutations.py --count 100000 --parts $$(nproc)

# A death of the controller after every record of its journal, and 200 runs with whatever dies in them. Hours.
chaos: install
	RASDA_CRASH_POINTS=1:1000 $(BIN)/python -m pytest tests/integration/test_crash_points.py
	PYTHONPATH=. $(BIN)/python benchmarks/chaos.py --runs 200 --out benchmarks/results/chaos.json

# Small changes of what decides, of which unit tests must notice 85 in 100. An hour.
mutants: install
	$(BIN)/python benchmarks/mutants.py --count 200 --out benchmarks/results/mutants.json

# 10,000 emulated trials on 256 logical slots: neither the controller nor its files may grow.
soak: install
	$(BIN)/python benchmarks/soak.py --out benchmarks/results/soak.json

# The winner's quality by ASHA, RASDA and random search, 10 seeds of each shipped study. Hours; goes on where it stopped.
quality: install
	$(BIN)/python benchmarks/quality.py runs/quality --out benchmarks/results/quality.json

# An environment of their own for the peers that benchmarks/peers/ compares with; nothing else imports them.
PEERS := benchmarks/peers/.venv
peers: $(PEERS)/.installed
$(PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r $<
	touch $@

# The docs site, into build/docs; a warning is an error.
docs: export NO_MKDOCS_2_WARNING = 1
docs: install
	$(BIN)/mkdocs build --quiet

# The notebooks of the docs, run anew.
notebooks: install
	$(BIN)/python docs/run_notebook.py

# Pages of keys, methods, events and exit codes, and the JSON Schemas, from the code that they describe.
reference: install
	PYTHONPATH=. $(BIN)/python docs/generate.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for folder in workflows/*/; do $(BIN)/mypy $$folder || exit 1; done
	$(BIN)/lint-imports

install: $(FOR_ALL)
$(FOR_ALL): $(FOR_DEMO)
	$(PIP) -e '.[dev]'
	touch $@
$(FOR_DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[demo]'
	touch $@

clean:
	rm -rf $(VENV) runs runs.*

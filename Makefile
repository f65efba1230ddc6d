# make simulate   the FedATA study on embedded phantoms, from nothing: environment, install, run, report
# make federation  the same study in a real federation on this machine: kits, processes, mutual TLS; Ctrl-C ends it
# make test       fast tests
# make ci         what gates a change: lint, types, fast tests, packaging, smallest simulator runs
# make nightly    everything: full runs, process faults, soaks, phantom difficulty (an hour and more)
# make bench      what can be measured in 20 minutes on 2 cores, with the goal beside each figure
# make bench-full every benchmark at full length; the same call goes on where it was interrupted
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGE := custom tests benchmarks setup.py

.PHONY: simulate federation test ci nightly bench bench-full format lint type-check test-integration clean

$(VENV)/installed: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

simulate: $(VENV)/installed
	$(BIN)/fedmedseg simulate fedata -n 3 -w simulator_workspace

federation: $(VENV)/installed
	$(BIN)/fedmedseg federation fedata --sites 3 --out runs/federation

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not integration and not slow" -q -n logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check $(PACKAGE)
	$(BIN)/ruff format --check $(PACKAGE)

type-check: $(VENV)/installed
	$(BIN)/mypy custom/fedmedseg
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks/*.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix $(PACKAGE)
	$(BIN)/ruff format $(PACKAGE)

test-integration: $(VENV)/installed
	$(BIN)/python -m pytest -m "integration and not slow" -q -n 2 --dist loadfile

ci: lint type-check test test-integration

bench: $(VENV)/installed
	$(BIN)/python benchmarks/bench.py --minutes 20

bench-full: $(VENV)/installed
	$(BIN)/python benchmarks/bench.py --full

# tracking has an environment of its own: MONAI imports MLflow wherever it is installed, which every process would pay
nightly: ci
	$(BIN)/python -m pytest -m slow -q
	$(PYTHON) -m venv $(VENV)-tracking
	$(VENV)-tracking/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,tracking]"
	$(VENV)-tracking/bin/python -m pytest tests/core/test_tracking.py -q

clean:
	rm -rf $(VENV) $(VENV)-tracking build dist simulator_workspace.fedmedseg

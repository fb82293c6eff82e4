# Every target makes its own environment: with uv where it is on the PATH, else with venv and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help train test bench lint format docs clean

help:
	@echo "make train   train on the embedded digits, under a minute: pcflax train"
	@echo "make test    the tests, the doctests and the README's code"
	@echo "make bench   time the notebook's job against its own loop, into benchmarks/results"
	@echo "make lint    ruff and pyright"
	@echo "make docs    the documentation, into site"

$(READY): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --python $(BIN)/python -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $(READY)

train: $(READY)
	$(BIN)/pcflax train

test: $(READY)
	$(BIN)/python -m pytest -n 2 $(TEST_OPTIONS)

bench: $(READY)
	@if command -v uv >/dev/null 2>&1; then uv pip install --python $(BIN)/python -e '.[bench]'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'; fi
	$(BIN)/python benchmarks/notebook_job.py
	$(BIN)/python benchmarks/notebook_job.py --job digits

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project . --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	@if command -v uv >/dev/null 2>&1; then uv pip install --python $(BIN)/python -e '.[docs]'; \
	else $(BIN)/python -m pip install --quiet -e '.[docs]'; fi
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-* build dist site .pytest_cache .ruff_cache

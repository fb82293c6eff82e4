# Every target makes its own environment: with uv where it is on the PATH, else with venv and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# $(call install,EXTRA): this package with an extra
install = if command -v uv >/dev/null 2>&1; then uv pip install --python $(BIN)/python -e '.[$(1)]'; \
  else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'; fi

.PHONY: help train test coverage mutation bench bench-peers guard lint format docs tutorials clean

help:
	@echo "make train   train on the embedded digits, under a minute: pcflax train"
	@echo "make test    the tests, the doctests and the README's code"
	@echo "make coverage  the tests, and which lines of pcflax none of them runs"
	@echo "make mutation  faults put into pcflax one by one: does a test see each?"
	@echo "make bench   every job by every library, and docs/benchmarks.md: an hour or two"
	@echo "make guard   is pcflax as fast as it was, beside bare jax: seconds"
	@echo "make lint    ruff and pyright"
	@echo "make docs    the documentation, into site, and a look at it where chromium is"
	@echo "make tutorials  every page of docs/tutorials as a program, and their figures: minutes"

$(READY): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then uv venv --allow-existing --python $(PYTHON) $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi
	@$(call install,dev)
	@touch $(READY)

train: $(READY)
	$(BIN)/pcflax train

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TEST_OPTIONS)

coverage: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov=pcflax --cov-report=term-missing:skip-covered $(TEST_OPTIONS)

mutation: $(READY)
	$(BIN)/python scripts/mutation.py

# TFDS_DATA_DIR names the folder of prepared sets, for the accuracy of the cross-library job.
bench: bench-peers
	$(BIN)/python benchmarks/suite.py $(BENCH_OPTIONS)
	@if [ -n "$$TFDS_DATA_DIR" ]; then \
	  $(BIN)/python benchmarks/time_to_accuracy.py --data-dir "$$TFDS_DATA_DIR"; \
	else echo "set TFDS_DATA_DIR for seconds to an accuracy by rule"; fi
	$(BIN)/python benchmarks/page.py

bench-peers: $(READY)
	$(BIN)/python benchmarks/peers.py

guard: $(READY)
	$(BIN)/python benchmarks/guard.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project . --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/mkdocs build --strict
	$(BIN)/python scripts/browse_docs.py site

tutorials: $(READY)
	$(BIN)/python scripts/tutorials.py $(TUTORIAL_OPTIONS)

clean:
	rm -rf $(VENV) .venv-* build dist site .pytest_cache .ruff_cache

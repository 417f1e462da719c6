# make demo   the whole story on packaged data and a small real model; ends in an HTML report
# make test   lint, types, tests
# make test-matrix   quick tests and a smoke test with the lowest versions of everything and Colab's, and inside earlier TRL; half an hour
# make docs   the documentation site, in build/site
# make bench  every benchmark; quiet machine, hours
# All set up everything they need in .venv.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: demo test test-matrix bench lint types docs tests clean

demo: .venv/runtime
	$(BIN)/margincast demo --out runs/demo

test: lint types docs tests

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Two processes of one thread each: most tests are too small for two threads.
tests: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-matrix: .venv/dev
	$(BIN)/python -m tests.matrix $(MATRIX)

.venv/runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "margincast needs Python 3.10 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch
	$(BIN)/pip install --quiet --editable '.[fast]'
	touch $@

.venv/dev: .venv/runtime
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

bench: .venv/dev
	$(BIN)/pip install --quiet --editable '.[bench]'
	for name in engine horizon packing packed_trl tokens displacement attribution; do $(BIN)/python -m benchmarks $$name || exit 1; done

clean:
	rm -rf .venv runs build dist

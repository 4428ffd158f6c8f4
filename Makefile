# Two commands for a new user: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test quick lint types topology check setup dist clean

demo: $(READY)
	$(VENV)/bin/latentpack demo

test: $(READY)
	$(VENV)/bin/pytest -n auto --dist worksteal

# The same without the tests that run flows on a Prefect server, which take most of the time.
quick: $(READY)
	$(VENV)/bin/pytest -n auto --dist worksteal -m "not server"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

# Every process of a production site on loopback, its jobs run and its parts killed: minutes.
topology: $(READY)
	$(VENV)/bin/python infra/topology.py

check: test lint types

setup: $(READY)

# torch comes first and by its exact version: a looser requirement would fetch gigabytes of CUDA.
# Bytecode comes last and on all cores (pip makes it on one), without a third of it that nothing needs; a few files of
# packages are for other versions of Python.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --no-compile $$(grep '^torch==' constraints.txt)
	$(VENV)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(VENV)/bin/python -m compileall -qq -j 0 -x 'site-packages/(kubernetes/|.*/tests/)' $(VENV)/lib compressor flows tasks || true
	touch $(READY)

# The source and, made of it, the wheel. Without build and egg-info, which would bring back files that are gone.
dist: $(READY)
	rm -rf build dist latentpack.egg-info
	$(VENV)/bin/pip install --quiet --constraint constraints.txt build
	$(VENV)/bin/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info latentpack-demo

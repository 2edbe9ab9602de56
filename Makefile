# The entry points. `make demo` and `make test` need nothing but Python 3.11+ and a package index.
VENV  := .venv
BIN   := $(VENV)/bin
MODEL ?= demo
ARGS  ?=

# A file's tests share what takes long to start, so a worker takes whole files.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
# All that runs JAX, here or in a process of its own.
JAX_TESTS := tests/models tests/neuron tests/system tests/test_notebooks.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-jax gpu gpu-check check format mutants lock packages packages-test clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 11

demo: $(VENV)/.ready  ## serve a real chat model on this machine: MODEL=demo|id|folder|file.gguf ARGS="--once"
	@$(BIN)/cortex up --model $(MODEL) $(ARGS)

test: $(VENV)/.ready  ## the tests, but for the slow ones: make test ARGS="-k text"
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.ready  ## the whole test suite
	@$(PYTEST) $(ARGS)

test-jax: $(VENV)/.ready  ## of the tests, those of all that touches JAX: make test-jax PYTHON=python3.13 VENV=.venv-3.13
	@$(PYTEST) -m "not slow" $(JAX_TESTS) $(ARGS)

gpu:  ## with an NVIDIA card: try the kernels on it, measure it, write build/gpu.json (ARGS="--shape tiny": the script alone)
	@sh tools/gpu.sh $(ARGS)

gpu-check:  ## compile for NVIDIA GPUs, without one, and hold the programs to what they were (6 GB of wheels, .venv-cuda)
	@sh tools/gpu_check.sh $(ARGS)

check: $(VENV)/.ready  ## format, lint, types, import table
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py

format: $(VENV)/.ready  ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

mutants: $(VENV)/.ready  ## plant small faults in the pure modules and see whether the tests notice: ARGS="--each 12"
	@$(BIN)/python tools/mutants.py $(ARGS)

lock:  ## pin every dependency with its hashes, for all supported Pythons (needs uv)
	@for extras in "dev" "dev cuda12"; do \
	  set -- $$extras; lock=requirements$${2:+-$$2}.lock; \
	  uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
	    $$(printf -- "--extra %s " $$extras) pyproject.toml -o $$lock; \
	done
	@uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
	  packaging/release.in -o packaging/release.lock

packages: $(VENV)/.ready  ## wheel, sdist, CPU kernels, debs and RPMs into dist/: ARGS="wheels deb rpm" (docs/installing.md)
	@packaging/build.sh $(ARGS)

packages-test:  ## install what dist/ has into roots of their own, serve the demo there, upgrade, remove (root, on Debian)
	@packaging/trial/try.sh deb
	@packaging/trial/try.sh rpm

clean:  ## remove the environments and what tools left
	rm -rf $(VENV) .venv-* .mypy_cache .pytest_cache .ruff_cache dist build

$(VENV)/.ready: requirements.lock requirements-cuda12.lock pyproject.toml tools/setup.sh
	@sh tools/setup.sh $(VENV)

include packaging/release.mk

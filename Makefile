# Everything runs in .venv, which each target makes if need be. Begin with `make help`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Another torch:   make test TORCH=torch==2.6.0
# Another index:   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu   (after make clean)
TORCH ?= $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)
TORCH_INDEX ?=
# Another JAX:     make test JAX=jax==0.6.0
JAX ?= $(shell sed -n 's/^\(jax==[^ ;]*\).*/\1/p' constraints.txt)
# What is installed beside the project; libraries is what some tests of JAX are about.
EXTRAS ?= all,dev,libraries
OLDEST_JAX := jax==$(shell sed -n 's/^jax = \["jax>=\(.*\)"\]/\1/p' pyproject.toml)

PIP := $(RUN) -m pip --disable-pip-version-check
# make demo PIP_FLAGS= shows all that pip has to say.
PIP_FLAGS ?= --quiet
PYTEST_ARGS ?=
# Processes that share the tests among them.
JOBS ?= 2

# On a machine with a GPU, JAX warns of a CUDA build that is not installed; all of this runs on the CPU.
export JAX_PLATFORMS ?= cpu

.PHONY: help demo test check slow oldest-jax docs-outputs bench dist format clean FORCE
.DEFAULT_GOAL := help

help:
	@echo 'make demo    right and wrong gradients judged in NumPy, PyTorch and JAX'
	@echo 'make test    the tests, without the slow ones'
	@echo 'make slow    the slow tests alone'
	@echo 'make check   formatting, lint, types and the tests'
	@echo 'make oldest-jax   the tests of JAX, with the oldest version that is supported'
	@echo 'make docs-outputs   rewrites the outputs in docs/ and the README with what is printed'
	@echo 'make bench   every script in benchmarks/'
	@echo 'make dist    wheel and sdist, into dist/'
	@echo 'make format  formats the code and applies the safe fixes of the linter'
	@echo 'make clean   removes .venv and all that was built'
	@echo
	@echo 'PYTHON=python3.12             the Python to make .venv with; needs 3.11 or newer'
	@echo 'TORCH=torch==2.6.0            another torch than $(TORCH)'
	@echo 'JAX=jax==0.6.0                another JAX than $(JAX)'
	@echo 'TORCH_INDEX=URL               another index for torch, such as the one of CPU builds'
	@echo 'JOBS=4                        processes for the tests, in place of $(JOBS)'
	@echo 'PYTEST_ARGS="-k sweep -x"     more arguments for pytest'

demo: $(VENV)/installed
	@$(RUN) examples/demo.py

test: $(VENV)/installed
	$(RUN) -m pytest -n $(JOBS) $(PYTEST_ARGS)

slow: $(VENV)/installed
	$(RUN) -m pytest -n $(JOBS) -m slow $(PYTEST_ARGS)

# In an environment of its own.
oldest-jax:
	@$(MAKE) test VENV=$(VENV)-oldest-jax JAX=$(OLDEST_JAX) EXTRAS=all,dev PYTEST_ARGS="-k jax $(PYTEST_ARGS)"

check: $(VENV)/installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n $(JOBS) $(PYTEST_ARGS)

docs-outputs: $(VENV)/installed
	$(RUN) -m tests.documents $(wildcard docs/*.md) README.md

bench: $(VENV)/installed
	@set -e; for script in $(or $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)),$(error no script in benchmarks/)); do \
	  echo "$$script"; $(RUN) "$$script"; \
	done

# The wheel is built from the sdist, so a file that the sdist lacks is noticed here.
dist: $(VENV)/installed
	rm -rf dist
	$(RUN) -m build --no-isolation

format: $(VENV)/installed
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-oldest-jax build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so that an installation that broke off is taken up again.
$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/wanted
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo '$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.11 ...' >&2; exit 1; }
	@echo 'Making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV)
	@echo 'Installing $(TORCH) (a large download)'
	@$(PIP) install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@echo 'Installing xgradcheck and its tools'
	@# The torch that is there stays, whichever it is: the pin in constraints.txt would replace it.
	@sed '/^torch==/d; /^jax\(lib\)*==/d' constraints.txt > $(VENV)/constraints.txt
	@echo '$(JAX)' >> $(VENV)/constraints.txt
	@$(PIP) freeze | sed -n '/^torch==/p' >> $(VENV)/constraints.txt
	@# Without isolation the project is built by the pinned setuptools, not by the newest one.
	@$(PIP) install $(PIP_FLAGS) -c $(VENV)/constraints.txt setuptools wheel
	@$(PIP) install $(PIP_FLAGS) -c $(VENV)/constraints.txt --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

# Changes only when another torch or JAX is named, which is then installed in place of the first.
$(VENV)/wanted: FORCE
	@mkdir -p $(VENV)
	@echo '$(TORCH) $(JAX)' | cmp -s - $@ || echo '$(TORCH) $(JAX)' > $@

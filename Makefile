# Every target makes what it needs, and does nothing twice: .venv and .venv-tflite carry a stamp that is older than
# pyproject.toml or their constraints when they have to be brought up to date.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The first that runs and is one of 3.10 to 3.13; 3.11 is what everything is tested with.
PYTHON ?= $(shell for found in python3.11 python3 python3.12 python3.13 python3.10; do \
	$$found -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$found && break; done)

VENV := .venv
TFLITE := .venv-tflite
# tflite-runtime 2.14 was built for Linux and Python up to 3.11; elsewhere a note takes the place of the environment.
TFLITE_FITS := $(shell $(PYTHON) -c \
	'import sys; print("yes" if sys.platform == "linux" and sys.version_info < (3, 12) else "")' 2>/dev/null)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# What packages are built with is pinned too: older pips take the first for that, newer ones the second.
PINNED = PIP_CONSTRAINT=$(1) PIP_BUILD_CONSTRAINT=$(1)
PIP_INSTALL := -m pip install --quiet
WITHOUT_DEPENDENCIES := ai-edge-quantizer immutabledict tf-keras tensorflow-model-optimization dm-tree \
	onnx2tf onnx onnx-graphsurgeon sne4onnx sng4onnx
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --durations=12
# A missed target ends in exit code 4, which is told; any other code is a failure.
BENCH = code=0; $(VENV)/bin/python $(1) || code=$$?; \
	if [ $$code -eq 4 ]; then echo "$(1): a target is missed"; elif [ $$code -ne 0 ]; then exit $$code; fi
FAST := not tensorflow and not browser and not tflite and not processes and not slow

.PHONY: help setup demo test test-fast lint check-slow bench docs browser no-tflite

help:  ## print this page
	@echo "Evenfleet. Each target installs what it needs first."
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name does; do printf '  make %-11s %s\n' "$$name" "$$does"; done

setup: $(VENV)/.stamp $(if $(TFLITE_FITS),$(TFLITE)/.stamp,no-tflite)  ## create .venv and .venv-tflite, and install everything, pinned

demo: setup  ## run the whole loop on real data; ARGS="--exit" ends by itself, see "evenfleet demo --help"
	@$(VENV)/bin/evenfleet demo $(ARGS)

test: setup browser  ## run every test but the slow ones (CI=true: a test that cannot run fails)
	@$(PYTEST) -m "not slow" $(ARGS)

test-fast: $(VENV)/.stamp  ## run the tests that need neither TensorFlow, a browser, .venv-tflite nor a whole collector
	@$(PYTEST) -n 4 -m "$(FAST)" $(ARGS)  # they wait more than they compute

lint: $(VENV)/.stamp  ## check style, types and the direction of imports
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo

check-slow: setup browser  ## run the slow tests, and the false-flag figures on 5,000 device-months (40 minutes)
	@$(VENV)/bin/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: there is none
	@$(call BENCH,bench/detection.py --device-months 5000)

bench: $(VENV)/.stamp  ## print measured figures beside their targets, and say which are missed
	@for file in bench/*.py; do echo "== $$file"; $(call BENCH,$$file); done

docs: $(VENV)/.stamp  ## write the generated pages of docs/ anew
	@for file in docs/*.py; do $(VENV)/bin/python "$$file"; done

$(VENV)/.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (the first time some minutes: TensorFlow is large)"
	@$(call PINNED,constraints.txt) $(VENV)/bin/python $(PIP_INSTALL) -e '.[all,dev]'
	@# Each asks for more, or for other versions, than it needs for what we do with it.
	@$(call PINNED,constraints.txt) $(VENV)/bin/python $(PIP_INSTALL) --no-deps $(WITHOUT_DEPENDENCIES)
	@touch $@

# The project itself comes without its dependencies: this environment only ever runs the runner.
$(TFLITE)/.stamp: pyproject.toml constraints-tflite.txt | $(TFLITE)/bin/python
	@echo "installing into $(TFLITE)"
	@$(call PINNED,constraints-tflite.txt) $(TFLITE)/bin/python $(PIP_INSTALL) click msgspec numpy tflite-runtime
	@$(call PINNED,constraints-tflite.txt) $(TFLITE)/bin/python $(PIP_INSTALL) --no-deps -e .
	@touch $@

# Debian keeps what a virtual environment takes in a package of its own.
$(VENV)/bin/python $(TFLITE)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.10 to 3.13 on the PATH; install python3.11" >&2; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		package=$$($(PYTHON) -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing the Debian package $$package"; \
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $$package; } >/dev/null; \
		else echo "$(PYTHON) cannot make virtual environments; as root: apt-get install $$package" >&2; exit 1; fi; \
	fi
	@directory=$(patsubst %/bin/python,%,$@); \
		$(PYTHON) -m venv "$$directory" || { rm -rf "$$directory"; echo "cannot make $$directory" >&2; exit 1; }

no-tflite:
	@echo "note: tflite-runtime 2.14 has no build for this Python (it was built for Linux, up to 3.11);" \
		"$(TFLITE) is left out, and with it one device of the demo and some tests"

browser:
	@if ! { command -v chromium && command -v chromedriver; } >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing the Debian packages chromium and chromium-driver"; \
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -qq -y --no-install-recommends chromium chromium-driver; } >/dev/null \
				|| echo "they could not be installed; the tests in a browser are left out" >&2; \
		else echo "note: without the Debian packages chromium and chromium-driver the tests in a browser are left out"; fi; \
	fi

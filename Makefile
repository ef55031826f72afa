PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TASKS := report test lab app bench lint

.PHONY: help clean $(TASKS)
.DEFAULT_GOAL := help

help:
	@echo 'make report   run every notebook, draw every figure, and bind them in one page'
	@echo 'make test     unit, property, doc and browser tests, every notebook, lint'
	@echo 'make lab      open the notebooks in JupyterLab, on this machine only'
	@echo 'make app      the panels alone, as a page in the browser, on this machine only'
	@echo 'make bench    measure speed and memory, beside brute-force twins'
	@echo 'make lint     check format, style and types'
	@echo 'make clean    remove the environment and all caches; figures stay'

# What they do is told in llminfer/__main__.py, which needs no make.
$(TASKS): $(READY)
	@$(PY) -m llminfer $@

clean:
	rm -rf $(VENV) *.egg-info build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find llminfer notebooks tests -name __pycache__ -prune -exec rm -rf {} +

# Python compiles a module when it is first imported, which is sooner than all at once.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null || { echo '$(PYTHON): Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...' >&2; \
		exit 1; }
	@echo 'Installing the pinned packages into $(VENV)/ (once)'
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check --no-compile \
		--require-hashes -r requirements.txt
	@$(PY) -m pip install -qq --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	@touch $@

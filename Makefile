PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# JupyterLab refuses to start as root, as in a container, unless it is told to.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help report test lab app bench lint clean
.DEFAULT_GOAL := help

help:
	@echo 'make report   run every notebook and draw every figure, into figures/'
	@echo 'make test     unit, property, doc and browser tests, then every notebook'
	@echo 'make lab      open the notebooks in JupyterLab, on this machine only'
	@echo 'make app      the panels alone, as a page in the browser, on this machine only'
	@echo 'make bench    measure speed and memory, beside brute-force twins'
	@echo 'make lint     check format, style and types'
	@echo 'make clean    remove the environment and all caches; figures stay'

# From the last to the first: the long ones begin first, the short ones fill the gaps.
report: $(READY)
	@$(PY) notebooks/execute.py $$(ls -r $(NOTEBOOKS))
	@$(PY) notebooks/fill_readme.py
	@echo 'Done: look at figures/, and at the notebooks with `make lab`.'

# All steps find each other's runs in one cache, gone at the end; figures drawn by a
# test go the same way. The browser goes through the notebooks from the first to the
# last, while the tests run and then the notebooks are checked from the last to the
# first. At the end, what they wrote for the report must compile.
test: $(READY)
	@set -e; \
	scratch=$$(mktemp -d); \
	trap 'kill $$browser 2>/dev/null || :; rm -rf "$$scratch"' EXIT; \
	trap 'exit 130' INT TERM; \
	export LLMINFER_CACHE="$${LLMINFER_CACHE:-$$scratch/cache}"; \
	export LLMINFER_FIGURES="$${LLMINFER_FIGURES:-$$scratch/figures}"; \
	$(PY) -m pytest -p no:cacheprovider tests/test_browser.py \
		>"$$scratch/browser.log" 2>&1 & browser=$$!; \
	$(PY) -m pytest --ignore=tests/test_browser.py --ignore=tests/test_latex.py; \
	TQDM_DISABLE=1 $(PY) -m pytest --nbval-lax --nbval-current-env \
		--nbval-cell-timeout 600 $$(ls -r $(NOTEBOOKS)); \
	$(PY) -m pytest tests/test_latex.py; \
	wait $$browser || { cat "$$scratch/browser.log"; exit 1; }; \
	grep 'seen once' "$$scratch/browser.log" || :; \
	tail -n 3 "$$scratch/browser.log"

lab: $(READY)
	@$(PY) -m jupyterlab --ip=127.0.0.1 $(AS_ROOT) --notebook-dir=notebooks

app: $(READY)
	@$(PY) -m voila --Voila.ip=127.0.0.1 notebooks/app.ipynb

bench: $(READY)
	@$(PY) tests/bench.py
	@$(PY) tests/bench_continuous.py
	@$(PY) tests/bench_memory.py --most 100000
	@$(PY) tests/bench_browser.py

lint: $(READY)
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

clean:
	rm -rf $(VENV) *.egg-info build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find llminfer notebooks tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null || { echo '$(PYTHON): Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...' >&2; \
		exit 1; }
	@echo 'Installing the pinned packages into $(VENV)/ (once)'
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(PY) -m pip install -qq --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	@touch $@

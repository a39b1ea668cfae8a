# make demo     converts two networks, trains one of them, writes out/demo/report.html
# make fashion  the paper's experiments in small on Fashion-MNIST, writes out/fashion/report.html
#               (Debian, Ubuntu: apt install dataset-fashion-mnist)
# make test     runs the tests (the fast ones, on the CPU)
# make lint     runs ruff and mypy
# make site     builds the documentation into out/site; warnings and broken links are errors
# make wheel    builds the packages, and tests the wheel alone, outside of the checkout
# make clean    removes what these commands made, the environment included
#
# Everything runs in the environment $(VENV), which is made on first use with $(PYTHON). (Not compiled by pip: of the
# 14,000 files, most are never imported, and compiling them takes half a minute.)

PYTHON ?= python3
VENV ?= .venv

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.bu2td-installed

.PHONY: demo fashion test lint site wheel clean

demo: $(STAMP)
	$(RUN) examples/demo.py --out out/demo

fashion: $(STAMP)
	$(RUN) -m bu2td.evaluate all --preset fashion-mnist-quick -o out/fashion --no-estimate $(if $(wildcard out/fashion/run.json),--resume)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow and not gpu" -n 2 --dist worksteal

lint: $(STAMP)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --site-dir out/site

wheel: $(STAMP)
	$(RUN) .ci/wheel.py

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 10) else "bu2td needs Python 3.10 or newer, but $(PYTHON) is " + v + ". Run: make PYTHON=/path/to/python3")'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "$(PYTHON) cannot make an environment (on Debian: apt install python3-venv)." >&2; \
		exit 1; }
	@echo "Installing bu2td and its tools into $(VENV) (once; PyTorch is large) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --progress-bar off --no-compile -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

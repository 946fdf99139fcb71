# make demo: train and measure on the sample that comes with the package.   make test: all checks and tests but the slowest.
# Both make .venv first: the demo with the package alone, the tests with their tools and the libraries they compare with.
# No root, no network beyond the package index. make PYTHON=python3.12 … takes another Python; make TORCH=torch==VERSION …
# another build of torch than the pinned one.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt

TORCH ?=

BIN := .venv/bin
PACKAGE := .venv/.package-$(CONSTRAINTS)
TOOLS := .venv/.tools-$(CONSTRAINTS)

# A slow or broken line to the package index is retried by pip, then by the loop below.
export PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT ?= 60
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_PROGRESS_BAR ?= $(if $(CI),off,on)

# Tests run in up to 4 processes of one thread each: two threads bring a tiny model nothing, a second process halves the wait.
WITH_TOOLS = .[test,lint,export,serve,ray]# the comma would end an argument of $(call)
PYTEST_FLAGS ?= -n auto --maxprocesses 4 $(if $(CI),--durations 15,)

.PHONY: help venv package demo check test test-slow tables clean
.NOTPARALLEL:

help:
	@echo "make package  .venv with the package, at the pinned versions"
	@echo "make venv     the same with the tools of the tests, and the libraries that they compare with"
	@echo "make demo     trains a Vision Transformer on the embedded sample (2 minutes), evaluates it, writes a report"
	@echo "make check    style, types and the order of the rooms"
	@echo "make test     make check, then the tests, but for the slowest"
	@echo "make test-slow   the slowest: faults done to real trainings, several processes (some 5 minutes)"
	@echo "make tables   writes the measured figures of benchmarks/results into README, docs and recipes"
	@echo "make clean    removes what builds and checks leave behind; keeps .venv and runs"

# With another torch, pip chooses a torchvision that fits it.
PINS = $(if $(TORCH),.venv/constraints-without-torch.txt,$(CONSTRAINTS))

define install
	@for try in 1 2 3; do \
	  echo "$(BIN)/pip install -c $(PINS) $(TORCH) -e $(1)"; \
	  $(BIN)/python -m pip install $(if $(CI),--quiet) -c $(PINS) $(TORCH) -e '$(1)' && exit 0; \
	  echo "make: try $$try of 3 to install the packages failed" >&2; sleep $$((try * 5)); \
	done; exit 1
endef

venv: $(TOOLS)

package: $(PACKAGE)

$(PACKAGE): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null \
	  || { echo 'make: there is no "$(PYTHON)" here; install Python 3.11 or newer, or name one: make venv PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'make: $(PYTHON) is older than Python 3.11; name a newer one: make venv PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo 'make: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@rm -f .venv/.package-* .venv/.tools-*
	@grep -v -E '^(torch|torchvision)==' $(CONSTRAINTS) >.venv/constraints-without-torch.txt
	$(call install,.)
	@touch $@

$(TOOLS): $(PACKAGE)
	$(call install,$(WITH_TOOLS))
	@touch $@

demo: package
	@run=runs/demo; n=1; while [ -e $$run ]; do n=$$((n + 1)); run=runs/demo-$$n; done; \
	set -e; \
	$(BIN)/vitrail train --out $$run --no-report; \
	$(BIN)/vitrail evaluate $$run; \
	echo; \
	echo "The trained model, its settings and its figures are in $$run; open $$run/report.html in a browser. What to run next:"; \
	echo "  $(BIN)/vitrail predict $$run IMAGE.png     # labels of images"; \
	echo "  $(BIN)/vitrail explain $$run IMAGE.png     # what the model looks at, as a picture"; \
	echo "  $(BIN)/vitrail train PHOTOS               # your own folder, with one folder per class"; \
	echo "  $(BIN)/vitrail models                     # the sizes there are"

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Types are checked with the pinned versions only: NumPy's and Pillow's annotations change from version to version.
test: $(if $(filter constraints.txt,$(CONSTRAINTS)),check,venv)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow'

test-slow: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow

tables: venv
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf build dist .coverage .hypothesis .mypy_cache .ruff_cache .import_linter_cache .cache src/*.egg-info
	find src tests benchmarks examples tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

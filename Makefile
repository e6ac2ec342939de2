# A fresh checkout needs only python3 (3.11 or 3.12) and make.
#
#   make demo     create the environment and run the embedded study
#   make test     create the environment and run the tests
#   make test-slurm   run the embedded study on a Slurm cluster of this machine (as root)
#   make test-faults  kill the embedded study a hundred times and run other slow tests of faults
#   make lint     check the style of the code and the workflow
#   make report   write Snakemake's HTML report of a finished study; STUDY=mini by default
#   make env      create the environment only, in .venv
#   make schemas  write the schemas that editors read in workflow/schemas
#   make lock     update requirements.lock after pyproject.toml has changed
#   make clean    delete the environment and the caches of tools, but no results, fits or data

PYTHON ?= python3
STUDY ?= mini
UV_VERSION := 0.13.9

PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# With the PATH below, the recipe would take the Python of an old environment.
BASE_PYTHON := $(shell $(PYTHON) -c 'import sys; print(sys.executable)')
INSTALLED := .venv/.installed-$(PYTHON_VERSION)

# Recipes find the environment's programs through this, and so do Snakemake's jobs.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test test-faults test-slurm lint report env schemas lock clean

demo: env
	snakemake --cores 1 --resources gpu=1

# Two processes of one thread each, because starting processes takes longer than computing.
test: env
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-faults: env
	pytest -m faults tests/faults
	pytest -s tests/faults/check_kills.py

test-slurm: env
	pytest -rs tests/slurm/check_slurm.py

lint: env
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

report: env
	snakemake --config study=$(STUDY) --report results/$(STUDY)/report.html

env: $(INSTALLED)

# The stamp is removed before packages change, so that an interrupted installation starts afresh.
$(INSTALLED): requirements.lock pyproject.toml
ifeq ($(filter 3.11 3.12,$(PYTHON_VERSION)),)
	$(error Python 3.11 or 3.12 is needed, but $(PYTHON) is $(or $(PYTHON_VERSION),missing); choose another one with PYTHON=/path/to/python3.12)
endif
	test -e $@ || $(BASE_PYTHON) -m venv --clear .venv
	rm -f $@
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	.venv/bin/uv pip sync --python .venv --require-hashes --compile-bytecode requirements.lock
	.venv/bin/uv pip install --quiet --python .venv --no-deps --no-build-isolation -e .
	touch $@

schemas: env
	blocklora schema study > workflow/schemas/study.schema.yaml
	blocklora schema config > workflow/schemas/config.schema.yaml

lock: env
	uv pip compile --quiet --universal --generate-hashes --all-extras --no-annotate --no-header \
		--python-version 3.11 --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two commands are `make book` and `make test`. Each sets itself up on a fresh machine.
# Another interpreter: make book PYTHON=python3.12
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

# With more threads than idle cores, torch's small operations spin and get up to 200 times slower.
export OMP_NUM_THREADS := 1
# Passed through the environment, so that the shell does not interpret what is in it.
export URL

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help environment book test check selftest mutants resolve look table bench url clean distclean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

environment:
	@$(PYTHON) tools/environment.py

book: environment  ## build the executed book into _build/html
	@$(VENV_PYTHON) tools/build.py

test: environment  ## run all tests, stage by stage
	@$(VENV_PYTHON) tools/stages.py

check: environment  ## lint and formatting only
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

selftest: environment  ## plant faults and see that the tests find them (slow)
	@$(VENV_PYTHON) tools/selftest.py

mutants: environment  ## plant bugs in lvmlib, one at a time, and see that a test fails on each
	@$(VENV_PYTHON) tools/mutants.py

resolve: environment  ## see that requirements.txt resolves for every supported Python (needs the network)
	@$(VENV_PYTHON) tools/resolve.py

look: environment  ## keep screenshots of the built pages, light, dark and phone (needs Chromium)
	@$(VENV_PYTHON) tools/look.py

table: environment  ## train, evaluate and compare the runs of the MNIST table: many hours, and goes on where it stopped; SHORT=1: a minute on digits
	@$(VENV_PYTHON) -m lvmlib table $(if $(SHORT),runs/short --short --resume,runs/mnist --full --resume --force --output lvmlib/data/mnist_table.json --keep lvmlib/data)

bench:  ## compare lvmlib's speed with its peers', in an environment of its own (minutes); SHORT=1: only see that it runs
	@$(PYTHON) tools/environment.py bench
	@.venv-bench/bin/python tools/bench $(if $(SHORT),--short)

url: environment  ## change the repository's address everywhere: make url URL=https://github.com/OWNER/NAME
	@$(VENV_PYTHON) tools/set_url.py "$$URL"

clean:  ## remove what was built and all caches
	rm -rf _build build dist lvmlib.egg-info .pytest_cache .ruff_cache
	find . -path ./.git -prune -o -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean  ## also remove the virtual environments
	rm -rf .venv .venv-bench .venv-new-* .venv-old-*

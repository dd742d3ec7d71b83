# The two commands of the README: `make book` and `make test`. Each makes its own environment first if there is none.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.bar-installed
# waiting threads sleep instead of spinning: where other programs share the cores this is several times as fast
export OMP_WAIT_POLICY ?= PASSIVE

# `make book PRUNING_FACTOR=8`: every other NAME=value of the command line is a parameter for the notebooks.
PARAMETERS = $(filter-out PYTHON=% VENV=% WORKERS=%,$(MAKEOVERRIDES))

.DEFAULT_GOAL := help
.PHONY: help install book assignments test test-all reproduce lint notebooks address lock clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo
	@echo '  make book PRUNING_FACTOR=8 SEED=1   gives parameters to the notebooks that declare them;'
	@echo '                                      a name that none of them declares is answered with the list'
	@echo '  SEED=7                              with `make assignments`: other budgets and seeds'
	@echo '  PYTHON=python3.12  VENV=path        the interpreter and the environment to use'
	@echo '  WORKERS=4                           so many tests at a time'
	@echo '  NAME=bar/table-1  JOBS=2            what `make reproduce` is about, and so many runs at a time'

install: $(STAMP)  ## make .venv and install the package in it, in the versions of requirements.lock

$(STAMP): pyproject.toml requirements.lock
	@echo 'installing into $(VENV); the first time this fetches some GB (PyTorch) and takes minutes'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[book,charts,cluster,course,onnx,timm,test]'
	touch $@

book: $(STAMP)  ## run the notebooks and build the book: book/_build/html/index.html
	$(BIN)/bar book $(PARAMETERS)

# Two at a time with a thread each; the notebooks are the longest, so they come first.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=20 \
	--nbval --nbval-current-env notebooks tests src/bar

test: $(STAMP)  ## unit tests, doctests, stored notebook outputs, every page of the book in a browser
	$(TEST)

test-all: $(STAMP)  ## the same with everything at full length: takes half an hour
	$(TEST) --all

reproduce: $(STAMP)  ## list the papers' figures and tables; with MINUTES=60, run what is missing of them
	$(BIN)/bar reproduce $(NAME) $(if $(MINUTES),--run --minutes $(MINUTES) $(if $(JOBS),--jobs $(JOBS)))

assignments: $(STAMP)  ## make the student versions of the six assignments, and prove that they can be graded
	$(BIN)/python assignments/release.py $(if $(SEED),--seed $(SEED))

lint: $(STAMP)  ## style, formatting, imports that point down, complexity and length of files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tests/house.py

notebooks: $(STAMP)  ## run the notebooks again and store the outputs that the tests compare
	$(BIN)/python -c 'from bar.book import store_outputs; store_outputs()'

address: $(STAMP)  ## after setting launch_repository in book/_config.yml: write it into the notebooks
	$(BIN)/python -c 'from bar.book import write_first_cells; write_first_cells()'

lock: $(STAMP)  ## write the installed versions to requirements.lock
	sed -i.old '/^[^#]/d' requirements.lock && rm requirements.lock.old
	$(BIN)/python -m pip freeze --exclude-editable >> requirements.lock

clean:  ## remove what `make book` and the tools wrote (not .venv)
	rm -rf book/_executed book/_build book/_cache book/_unfinished .pytest_cache .ruff_cache .hypothesis

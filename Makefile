# Two commands, each with all set-up: `make demo` (train and plan in front of you) and `make test`.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
WORLDS := $(VENV)/.worlds

.PHONY: demo test

demo: $(INSTALLED)
	$(VENV)/bin/jepa-wm demo

test: $(WORLDS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder
	test -z "$$CI" || $(VENV)/bin/python -m pytest -q -m slow tests/slurm

# The stamp makes set-up happen once; a change of what is to be installed brings it back.
$(INSTALLED): setup.py pyproject.toml
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e '.[dev]'
	touch $@

# The physics of all worlds, which only their tests need.
$(WORLDS): $(INSTALLED)
	$(VENV)/bin/pip install -e '.[dev,worlds]'
	touch $@

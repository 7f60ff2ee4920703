# Two commands set everything up on a machine with Python 3.11, make and pip:
#   make image   pictures.png, a sheet of what the bundled checkpoint draws
#   make test    the whole suite
PYTHON ?= python3
VENV := .venv
ALONE := tests/test_startup.py tests/test_bundled.py tests/models \
	$(addprefix tests/pipelines/test_,loading.py stable_diffusion.py unconditional.py image_tasks.py textual_inversion.py)
BIN := $(VENV)/bin

.PHONY: image test lint bench clean

image: $(VENV)/.installed
	$(BIN)/calotype generate --prompts examples/pictures.txt --grid pictures.png --seed 6

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist worksteal
	@echo "once more, as where Diffusers is not installed:"
	CALOTYPE_TEST_ALONE=1 $(BIN)/python -m pytest -n 2 $(ALONE)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test-installed
	$(BIN)/python benchmarks/spine.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.test-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) pictures.png

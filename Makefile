# Two commands set everything up on a machine with Python 3.11, make and pip:
#   make image   pictures.png, a sheet of what the bundled checkpoint draws
#   make test    the whole suite
# For those who work on it:
#   make lint          ruff and mypy
#   make lock          constraints.txt anew: the exact versions of all packages in these environments
#   make test-newest   the suite with the newest versions that pyproject.toml allows (TORCH=torch: of PyTorch too)
PYTHON ?= python3
VENV := .venv
ALONE := tests/test_startup.py tests/test_bundled.py tests/models \
	$(addprefix tests/pipelines/test_,loading.py stable_diffusion.py unconditional.py image_tasks.py textual_inversion.py)
BIN := $(VENV)/bin

NEWEST := .venv-newest
TORCH ?= torch==2.13.0

.PHONY: image test test-newest lint lock bench clean

image: $(VENV)/.installed
	$(BIN)/calotype generate --prompts examples/pictures.txt --grid pictures.png --seed 6 --overwrite

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist worksteal
	@echo "once more, as where Diffusers is not installed:"
	CALOTYPE_TEST_ALONE=1 $(BIN)/python -m pytest -n 2 $(ALONE)

test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet $(TORCH) -e ".[test]"
	$(NEWEST)/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test-installed
	$(BIN)/python benchmarks/spine.py

lock: $(VENV)/.made
	$(BIN)/python tools/lock.py

# Without build isolation what builds the package is locked, too.
$(VENV)/.made: constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt pip hatchling editables
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e .
	@touch $@

$(VENV)/.test-installed: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[test]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(NEWEST) pictures.png

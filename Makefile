# make repro | ablation | photos | test | lint | bench | soak — each makes .venv first, where it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
PHOTOS := ../shared/data/coco-mini/dataset_karpathy.json
FAISS := $(if $(wildcard /proc/driver/nvidia/version),gpu,cpu)
export DVC_NO_ANALYTICS := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro ablation photos test lint bench soak clean
.DELETE_ON_ERROR:

repro: .venv/ready-$(FAISS)
	dvc repro
	cusa-train --show

ablation: .venv/ready-$(FAISS)
	python -m experiments.ablation

ifeq ($(wildcard $(PHOTOS)),)
photos:
	@echo "Skipped: there is no $(PHOTOS); the photographs are no part of the project."
else
photos: .venv/ready-photos
	python -m experiments.photos
endif

test: .venv/ready-test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONUTF8=1 python -m pytest -n 2 --dist worksteal -m "not soak"

soak: .venv/ready-test
	HF_HUB_OFFLINE=1 PYTHONUTF8=1 python -m pytest -m soak

lint: .venv/ready-lint
	ruff check .
	ruff format --check .
	mypy
	lint-imports

bench: .venv/ready-$(FAISS)
	python -m benchmarks

# What was made of data (artifacts, dvc_plots) is a person's to delete.
clean:
	rm -rf .venv

.venv/ready-%: pyproject.toml constraints.txt | .venv/bin/python
	PYTHONWARNINGS=ignore python -m pip install --quiet --constraint constraints.txt --editable ".[$(FAISS),$*]"
	touch $@

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "cusa needs Python 3.11 or newer; say make PYTHON=python3.12, for example")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --upgrade pip

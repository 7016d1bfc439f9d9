# make demo | test | test-all | lint | format | ledger | capabilities | matrix      no GPU needed
# make test-gpu | bench                          on a GPU
#
# Everything runs in .venv, which is created and filled on first use. To use an environment of your own instead:
#   make test-gpu PY=python3 STAMP=

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
PIP     = $(PY) -m pip install -qq --disable-pip-version-check

# What is installed first where there is no GPU, so that no CUDA packages come along with torch.
CPU_TORCH ?= torch==2.13.0
HAS_GPU   := $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1)
WORKERS   ?= 2
BENCH     ?=

SOURCES    := $(wildcard quack tests benchmarks examples)
HOST_CODE  := $(wildcard quack/arch.py quack/gemm_config.py quack/activation.py quack/rounding.py quack/runtime quack/heuristics quack/emulator \
                quack/autotune.py quack/activation_ref.py quack/gemm_interface.py quack/grouped.py quack/grouped_activation.py quack/grouped_reduction.py quack/grouped_table.py quack/linear.py quack/mlp.py quack/gemm_activation.py \
                quack/gemm_norm.py quack/gemm_forward.py quack/gemm_backward.py quack/gemm_operands.py quack/gemm_reduction.py quack/reduction.py quack/rms_final_reduce.py quack/gemm_symmetry.py quack/split_k.py quack/block_scales.py quack/blockscaled.py quack/capabilities quack/roofline)

.PHONY: demo test test-all test-gpu bench lint format ledger capabilities matrix install
.SILENT:

install: $(STAMP)

$(VENV)/bin/python:
	echo "creating $(VENV)"
ifeq ($(HAS_GPU),1)
	if $(PYTHON) -c "import torch" 2>/dev/null; then site=--system-site-packages; fi; \
	$(PYTHON) -m venv $$site $(VENV)
else
	$(PYTHON) -m venv $(VENV)
endif

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	echo "installing quack-gemm into $(VENV)"
ifneq ($(HAS_GPU),1)
	$(PIP) $(CPU_TORCH)
endif
	$(PIP) -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(PY) examples/01_gemm.py

test: $(STAMP)
	$(PY) -m pytest -q $(wildcard tests/unit tests/emulated) -n $(WORKERS) -m "not gpu"

test-all: $(STAMP)
	QUACK_TESTS=all $(PY) -m pytest -q $(wildcard tests/unit tests/emulated) -n $(WORKERS) -m "not gpu"

test-gpu: $(STAMP)
	$(PY) -m pytest -q tests/gpu

bench: $(STAMP)
	$(PY) benchmarks/gemm.py $(BENCH)

lint: $(STAMP)
	$(PY) -m ruff check --quiet $(SOURCES)
	$(PY) -m ruff format --check --quiet $(SOURCES) || { echo "not formatted: run 'make format'"; exit 1; }
	$(PY) -m mypy --no-error-summary $(HOST_CODE)

format: $(STAMP)
	$(PY) -m ruff check --quiet --fix-only $(SOURCES)
	$(PY) -m ruff format --quiet $(SOURCES)

ledger: $(STAMP)
	$(PY) tests/unit/ledger.py --write --jobs $(WORKERS)

# Writes the table of what works where into README.md.
capabilities: $(STAMP)
	$(PY) -m quack.capabilities --readme README.md

# Compiles every legal combination; goes on where it was interrupted. MATRIX="--arch sm_120a --results build/matrix.json"
matrix: $(STAMP)
	$(PY) -m quack.capabilities --compile --jobs $(WORKERS) $(MATRIX)

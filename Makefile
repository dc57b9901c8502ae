# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs, once.
# PYTHON=/path/to/python3 chooses the interpreter (3.10 to 3.13); PIP_… variables reach pip as usual.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.10; do \
	"$$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && command -v "$$p" && break; done)
# Two processes of one thread each: threads of two processes that share a core wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-adapters test-tensorrt check-conversion lint clean

demo: $(VENV)/.installed-all
	$(BIN)/edgecv demo --out demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(PYTEST)

# timm and torchvision in a folder of their own, without what they would pull in: a torchvision that does not fit this
# torch breaks other libraries' imports. What these tests need must be there: nothing is skipped.
test-adapters: $(VENV)/.installed-dev $(VENV)/.libraries
	PYTHONPATH="$(CURDIR)/$(VENV)/.libraries" EDGECV_REQUIRE=timm,torchvision,torch,onnx,onnxruntime,openvino \
		$(PYTEST) tests/adapters

$(VENV)/.libraries: Makefile | $(BIN)/python
	@echo "installing timm and torchvision into $@ (once)"
	@rm -rf $@ $@.partial
	$(PIP) --no-deps --target $@.partial timm==1.0.31 torchvision==0.29.2 pillow pyyaml
	@mv $@.partial $@ && touch $@

# TensorRT-RTX parses and builds without a GPU. In a folder of its own: a machine may have another of NVIDIA's variants.
test-tensorrt: $(VENV)/.installed-dev $(VENV)/.tensorrt_rtx
	PYTHONPATH="$(CURDIR)/$(VENV)/.tensorrt_rtx" EDGECV_REQUIRE=tensorrt_rtx,torch,onnx,onnxruntime \
		$(PYTEST) tests/tensorrt

$(VENV)/.tensorrt_rtx: Makefile | $(BIN)/python
	@echo "installing TensorRT-RTX into $@ (once; 96 MB)"
	@rm -rf $@ $@.partial
	$(PIP) --no-deps --target $@.partial tensorrt_rtx_cu13_libs==1.7.1.116 tensorrt_rtx_cu13_bindings==1.7.1.116
	@mv $@.partial $@ && touch $@

# Every network on every backend in every precision, against the figures that are kept; EDGECV_DATA names the weights.
check-conversion: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/conversion.py matrix --check

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing edgecv[$*] into $(VENV) (once; some minutes)"
	$(PIP) --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "edgecv needs Python 3.10 to 3.13; none was found (try: make PYTHON=/path/to/python3)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --without-pip --clear $(VENV) && $(PYTHON) -m pip --quiet --python $@ install pip; } 2>/dev/null \
		|| { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 2; }

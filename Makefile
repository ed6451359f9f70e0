# The only commands the README needs. Each works first on a machine with Python 3.11+ and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := pyproject.toml CMakeLists.txt $(wildcard stage_rt/kernels/*.h stage_rt/kernels/*.cpp stage_rt/kernels/*.cu)
# One process a core; threads of their own would only take turns.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --durations=15 --durations-min=5
# import-linter and mypy read packages from disk, where the packages of pyproject.toml lie beside stage_rt. The finder of
# the editable install would show import-linter the whole checkout instead, so it runs without site (-S).
TREE := build/tree
BESIDE := training export engines benchmarks/quality

# A driver made of software takes the driver's name, so the tests of the loop on it have processes of their own.
SOFTCUDA := build/softcuda
ON_SOFTCUDA := tests/cuda

# Pinned for every environment that is built here, that of the build itself too.
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip --quiet --disable-pip-version-check

.PHONY: demo test check lint softcuda carried bench audit constraints clean

demo: $(VENV)/.demo
	$(BIN)/stage-rt demo --model models/demo -o build/demo

test: lint softcuda
	$(PYTEST) -m "not slow" --ignore=$(ON_SOFTCUDA)
	$(SOFTCUDA)/run env $(PYTEST) -m "not slow" $(ON_SOFTCUDA)

check: lint softcuda carried
	$(PYTEST) --ignore=$(ON_SOFTCUDA)
	$(SOFTCUDA)/run env $(PYTEST) $(ON_SOFTCUDA)
	$(MAKE) audit

softcuda: $(VENV)/.dev
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python tests/support/softcuda/build.py $(SOFTCUDA)

# What run.sh --dry installs into a bare Python of this version, with the PyCUDA that is built already.
carried: softcuda
	[ -e $(SOFTCUDA)/missing ] || { mkdir -p build/dry/wheels && cp $(SOFTCUDA)/wheels/*.whl build/dry/wheels && \
	  PYTHON=$(BIN)/python WHEELS=build/dry/wheels benchmarks/gpu/carry.sh; }

lint: $(VENV)/.dev $(TREE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(TREE) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p stage_rt
	cd $(TREE) && PYTHONPATH=.:$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  $(CURDIR)/$(BIN)/python -S -c 'from importlinter.cli import lint_imports_command as run; run()' \
	  $(CURDIR)/pyproject.toml --no-cache

bench: $(VENV)/.dev build/demo/engine/engine.json
	$(BIN)/python benchmarks/step_cpu.py
	$(BIN)/stage-rt bench build/demo/engine

build/demo/engine/engine.json: $(VENV)/.demo
	$(BIN)/stage-rt build models/demo -o build/demo/engine

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Known faults of what is installed, which needs the advisory database at PyPI, and a bill of materials.
audit: $(VENV)/.dev
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit cyclonedx-bom
	build/audit/bin/cyclonedx-py environment $(BIN)/python -o build/sbom.json
	build/audit/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

constraints: $(VENV)/.dev
	(echo '# What a fresh `make` installed and the tests passed with; `make constraints` writes it anew.'; \
	  $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; grep scikit_build_core constraints.txt) > build/constraints.txt
	mv build/constraints.txt constraints.txt

# torch first and pinned: a looser requirement with no torch present pulls the CUDA build.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stage-rt needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(NATIVE)
	$(PIP) install --editable '.[cpu,export]'
	touch $@

# The type stubs ask for TensorRT itself, which only NVIDIA's own index has. Of Triton's client the tests read the schema of
# a model's configuration alone: all of it would bring gRPC, and hold protobuf below what onnx and others are tested with.
$(VENV)/.dev: $(VENV)/.torch $(NATIVE)
	$(PIP) install --editable '.[dev]'
	$(PIP) install --no-deps 'tensorrt-stubs>=10.13' 'tritonclient>=2.73'
	touch $@ $(VENV)/.demo

$(TREE): $(wildcard stage_rt/*) $(BESIDE)
	rm -rf $@ && mkdir -p $@/stage_rt
	ln -s $(addprefix $(CURDIR)/,$(wildcard stage_rt/*) $(BESIDE)) $@/stage_rt/

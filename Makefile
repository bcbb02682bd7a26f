# `make demo` and `make test` do all the set-up they need, in .venv. The others build on it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
# Built for the two architectures that the kernels are proved on; `pip install .` covers more.
export TORCH_CUDA_ARCH_LIST ?= 8.0;9.0a

SOURCES := setup.py build_backend.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test test-gpu test-abi test-install bench kernels build clean

demo: build
	$(BIN)/segkern demo --output out

# Threads that wait for others sleep: two processes share the cores, and spinning takes their time.
test: export OMP_WAIT_POLICY = PASSIVE
test: build
	$(BIN)/python -m tests.kernels.compile_kernels
	$(BIN)/python -m tests.simt.build
	$(BIN)/python -m pytest tests bench -n 2 --dist worksteal

# On a machine with a GPU: all tests, then the small cases under compute-sanitizer.
test-gpu: build
	$(BIN)/python -m pytest tests bench
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python -m tests.kernels.small_cases
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python -m tests.kernels.small_cases

# The binaries built here, unchanged, on the newest torch of the package index.
test-abi: build
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade torch numpy pytest hypothesis
	PYTHONPATH=. $(NEWEST)/bin/python -m pytest tests/ops tests/nn/test_pooling_layers.py

# Four real installations in environments of their own; downloads several GB.
test-install:
	$(PYTHON) tests/packaging/installs.py

bench: build
	$(BIN)/python -m pytest bench --benchmark
	$(BIN)/python -m bench.tables

kernels: build
	$(BIN)/python -m tests.kernels.compile_kernels

build: $(VENV)/.built

$(VENV)/.installed: tests/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement tests/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -c "import segkern; print(segkern.env()['build']['summary'])"
	touch $@

clean:
	rm -rf build dist out *.egg-info segkern/*.so segkern/_build.json $(VENV)/.built

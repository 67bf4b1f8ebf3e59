"""Configs: what is refused and how, defaults and sweeps, and what an edit can touch."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd.errors import Bad
from opd.plan import Artifact, plan, targets
from opd.recipes import resolve, schema

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]


def config(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "t",
        "world": {"rl_times": 0.6, "other_times": 0.1},
        "defaults": {"opd": {"steps": 3, "prompts": "p", "loss": {"k": 4}}},
        "prompts": {
            "p": {"world": {"split": "rl", "n": 8}},
            "o": {"world": {"split": "other", "n": 8}},
            "d": {"dedup": {"prompts": "o", "against": "p", "encoder": "hashed"}},
        },
        "pairs": {"c": {"world": {"n": 8}}},
        "models": {
            "i": {"init": {}},
            "a": {"sft": {"student": "i", "data": "c", "steps": 2}},
            "b": {"grpo": {"student": "a", "prompts": "p", "steps": 2}},
            "x": {"opd": {"student": "a", "teacher": "b"}},
        },
        "evaluations": {"e": {"benchmarks": ["p"], "max_new_tokens": 8}},
        "tables": {
            "t1": {
                "title": "T",
                "evaluation": "e",
                "columns": ["avg"],
                "rows": [{"label": "x", "model": "x", "base": "a"}],
            }
        },
    }
    for path, value in changes.items():
        node, (*parts, last) = base, path.split("__")
        for part in parts:
            node = node.setdefault(part, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return base


def artifacts(raw: dict[str, Any]) -> dict[str, Artifact]:
    return plan(resolve(raw), {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sedes": [1]}, ["sedes", "did you mean 'seeds'"]),
        ({"models__x__opd__lrr": 1.0}, ["models.x.opd.lrr", "did you mean 'lr'"]),
        ({"models__x__opd__studnt": "a", "models__x__opd__student": None}, ["studnt", "'student'"]),
        ({"defaults__opd__stepz": 3}, ["defaults.opd.stepz", "'steps'"]),
        ({"defaults__odp": {}}, ["defaults.odp", "'opd'"]),
        ({"models__x__opd__steps": "many"}, ["models.x.opd.steps", "'many'", "integer"]),
        ({"models__x__opd__steps": 0}, ["models.x.opd.steps", "0", "greater than or equal to 1"]),
        ({"models__x__opd__lr": True}, ["models.x.opd.lr", "number"]),
        ({"models__x__opd__loss": {"support": "best"}}, ["'best'", "'sampled', 'student'"]),
        ({"models__x__opd__loss": {"preset": "sampled"}}, ["loss", "takes no k"]),
        ({"models__x__opd__loss": {"preset": "code"}}, ["loss.preset", "'rethinking_code'"]),
        ({"models__x__opd__loss": {"tail": True}}, ["a tail goes with"]),
        ({"models__x__opd__teacher_update": "live"}, ["teacher_update: live needs teacher"]),
        ({"models__x__opd__ema_decay": 0.9}, ["ema_decay goes with teacher_update"]),
        ({"models__x": {}}, ["models.x", "exactly one of init, hub", "none"]),
        ({"models__x__init": {}}, ["models.x", "init and opd"]),
        ({"models__x__opd__teacher": "bb"}, ["models.x.opd.teacher", "'bb'", "did you mean 'b'"]),
        ({"models__a__sft__student": "x"}, ["refers to itself", "models.a -> models.x"]),
        ({"models__a__sft__student": "a"}, ["models.a -> models.a"]),
        ({"prompts__d__dedup__against": "d"}, ["prompts.d -> prompts.d"]),
        ({"prompts__p__template": "no place"}, ["prompts.p", "{question}"]),
        ({"prompts__p__path": {"file": "x"}}, ["prompts.p", "world and path"]),
        ({"targets": ["t2"]}, ["targets", "'t2'", "there are: t1"]),
        ({"seeds": []}, ["seeds", "at least 1"]),
        ({"models__x__sweep": {"opd.lr": 3}}, ["models.x.sweep", "[VALUE"]),
    ],
)
def test_bad_config_gets_one_line_that_names_key_value_and_remedy(changes, words):
    with pytest.raises(Bad) as caught:
        resolve(config(**changes))
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_missing_data_folder_and_missing_file_are_named(monkeypatch, tmp_path):
    monkeypatch.delenv("OPD_DATA_DIR", raising=False)
    given = config(prompts__p={"path": {"file": "x.parquet"}})
    with pytest.raises(Bad, match=r"prompts\.p\.path\.file.*OPD_DATA_DIR"):
        artifacts(given)
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    with pytest.raises(Bad, match=r"prompts\.p\.path\.file: no such file.*x\.parquet"):
        artifacts(given)
    (tmp_path / "x.parquet").write_bytes(b"")
    made = artifacts(given)["prompts/p"]
    assert made.inputs == (str(tmp_path / "x.parquet"),)
    assert str(tmp_path) not in json.dumps(made.cfg)  # a path is no part of identity


def test_defaults_are_inherited_and_overridden_key_by_key():
    made = artifacts(config(models__x__opd__loss={"support": "student"}, models__x__opd__lr=0.5))
    cfg = made["models/x/s0"].cfg
    assert (cfg["steps"], cfg["loss"]["k"], cfg["lr"]) == (3, 4, 0.5)


def test_what_changes_how_a_model_is_trained_is_apart_from_what_changes_it():
    plain = artifacts(config())["models/x/s0"].cfg
    assert plain["execution"] == {"checkpoint_every": 50}
    training = {
        "checkpoint_every": 5,
        "report_to": "wandb",
        "precision": "bfloat16",
        "processes": 2,
    }
    cfg = artifacts(config(training=training))["models/x/s0"].cfg
    assert cfg["execution"] == {"checkpoint_every": 5, "report_to": "wandb"}
    assert (cfg["precision"], cfg["processes"]) == ("bfloat16", 2)
    assert not {"precision", "processes"} & set(plain)
    vllm = {"mode": "server", "server_host": "a", "tensor_parallel_size": 2}
    cfg = artifacts(config(training={"vllm": vllm}, backend="vllm"))["models/x/s0"].cfg
    assert cfg["vllm"] == {"mode": "server", "tensor_parallel_size": 2}
    assert cfg["execution"]["vllm"] == {"server_host": "a"}


def test_a_teacher_with_other_chat_template_options_is_asked_with_its_own():
    off = {"enable_thinking": False}
    made = artifacts(config(models__b__chat_template=off))["models/x/s0"].cfg
    assert made["teacher_chat_template_kwargs"] == off and made["chat_template_kwargs"] == {}
    made = artifacts(config(models__b__chat_template=off, models__a__chat_template=off))
    assert "teacher_chat_template_kwargs" not in made["models/x/s0"].cfg


def test_sweep_expands_to_named_runs():
    made = artifacts(config(models__x__sweep={"opd.loss.k": [1, 8]}, tables=None))
    assert made["models/x-1/s0"].cfg["loss"]["k"] == 1
    assert made["models/x-8/s0"].cfg["loss"]["k"] == 8
    assert "models/x/s0" not in made


def _changed(before: dict, after: dict) -> set[str]:
    old, new = artifacts(before), artifacts(after)
    assert old.keys() == new.keys()
    return {folder for folder in old if old[folder] != new[folder]}


def test_an_edit_changes_the_settings_of_just_the_stages_it_concerns():
    assert _changed(config(), config(models__x__opd__loss={"k": 8})) == {"models/x/s0"}
    evaluations = {f"evaluations/e/{m}/s0" for m in "iabx"}
    assert _changed(config(), config(evaluations__e__max_new_tokens=9)) == evaluations
    assert _changed(config(), config(prompts__d__dedup__threshold=0.7)) == {"prompts/d"}


def test_seeds_are_derived_and_give_each_model_a_folder_of_its_own():
    made = artifacts(config(seeds=[0, 1]))
    first, second = (made[f"models/a/s{s}"] for s in (0, 1))
    assert first.cfg["seed"] != second.cfg["seed"]
    assert second.inputs == ("models/i/s1", "pairs/c")
    assert made["tables/t1"].inputs == (
        "evaluations/e/x/s0",
        "evaluations/e/x/s1",
        "evaluations/e/a/s0",
        "evaluations/e/a/s1",
        "models/x/s0",
        "models/x/s1",
    )


def test_targets_are_all_or_those_named_also_where_figure_and_table_share_a_name():
    figure = {
        "title": "F",
        "kind": "bars",
        "evaluation": "e",
        "series": [{"label": "x", "model": "x"}],
    }
    given = config(figures={"t1": figure, "f": figure})
    assert targets(resolve(given)) == ["figures/t1", "figures/f", "tables/t1"]
    assert targets(resolve({**given, "targets": ["t1"]})) == ["figures/t1", "tables/t1"]
    assert targets(resolve({**given, "targets": ["f"]})) == ["figures/f"]


def test_stage_settings_are_plain_and_hold_no_recipe_names():
    made = artifacts(config())
    for artifact in made.values():
        assert json.loads(json.dumps(artifact.cfg)) == artifact.cfg
    cfg = made["models/x/s0"].cfg
    assert "student" not in cfg and "teacher" not in cfg
    assert cfg["inputs"] == ["student", "teacher", "prompts"]


def test_chat_template_options_follow_the_student():
    given = config(models__i={"init": {}, "chat_template": {"enable_thinking": False}})
    made = artifacts(given)
    assert made["models/x/s0"].cfg["chat_template_kwargs"] == {"enable_thinking": False}


def test_schema_file_is_what_the_models_generate():
    path = ROOT / "workflow" / "schemas" / "config.schema.json"
    assert json.loads(path.read_text()) == schema(), "run: opd schema > " + str(path)


@pytest.mark.parametrize("name", ["mini", "mini-all"])
def test_shipped_configs_resolve(name):
    raw = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    if name != "mini":
        raw |= yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    config = resolve(raw)
    assert config.name == name
    assert set(targets(config)) <= plan(config, {}).keys()
    assert targets(config)

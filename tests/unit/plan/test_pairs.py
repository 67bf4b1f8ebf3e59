"""What a plan says of pairs of models whose folders are at hand."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from probing import Inputs, make
from transformers import GenerationConfig

from opd.doctor import examine
from opd.plan import pairs, show
from opd.plan.artifacts import plan
from opd.recipes.resolve import resolve


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A teacher that stops at one token more than its student."""
    made = make(tmp_path_factory.mktemp("pairs"), 4)
    GenerationConfig(eos_token_id=[1, 3]).save_pretrained(made["teacher"])
    return made


def config(models: Inputs, **distill: Any) -> dict[str, Any]:
    run = {"student": "tuned", "teacher": "t", "prompts": "p", "steps": 2, "keep_steps": [1],
           "max_prompt_tokens": 100, "max_new_tokens": 100, "micro_batch": 4}  # fmt: skip
    return {
        "name": "pairs",
        "seeds": [0, 1],
        "world": {"rl_times": 0.4, "other_times": 0.1},
        "prompts": {"p": {"world": {"split": "rl", "n": 4}}},
        "sft_data": {"d": {"world": {"n": 8}}},
        "models": {
            "s": {"path": str(models["student"])},
            "t": {"path": str(models["teacher"])},
            "tuned": {"sft": {"student": "s", "data": "d", "steps": 1}},
            "x": {"distill": run | distill},
            "later": {"distill": {**run, "student": "x@1", "end_tokens": "both"}},
            "unknown": {"distill": {**run, "teacher": "h"}},
            "h": {"hub": {"id": "a/b"}},
        },
    }


def lines(raw: dict[str, Any], results: Path) -> list[str]:
    artifacts = plan(resolve(raw), {})
    return [str(error) for error in pairs.refused(artifacts, artifacts, results)]


def test_what_training_would_refuse_is_said_before(models: Inputs, tmp_path: Path) -> None:
    """Of trained models by what they come from, once for all seeds; not of what is yet to be
    fetched, and not where the config has decided it."""
    (line,) = lines(config(models), tmp_path)
    assert line.startswith("models/x: end_tokens: responses end with <eos> for the student and")
    assert lines(config(models, end_tokens="student"), tmp_path) == []
    (long,) = {line.partition(" but ")[0] for line in lines(
        config(models, end_tokens="both", max_new_tokens=500), tmp_path)}  # fmt: skip
    assert long.startswith("models/x: max_prompt_tokens and max_new_tokens: prompt and response")
    assert "600 tokens," in long


def test_end_tokens_of_the_student_change_no_identity(models: Inputs) -> None:
    """They are what a run uses anyway; those of both make another model."""
    plain, own, both = (
        plan(resolve(config(models, **more)), {})["models/x/s0"].cfg
        for more in ({}, {"end_tokens": "student"}, {"end_tokens": "both"})
    )
    assert own["execution"].pop("end_tokens") == "student" and own == plain
    assert both == plain | {"end_tokens": "both"}


def test_plan_and_doctor_show_it(
    models: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config(models)))
    (tmp_path / "calibration.yaml").symlink_to(Path("config/calibration.yaml").resolve())
    for name in ("claims", "figures"):
        (tmp_path / name).symlink_to(Path("config", name).resolve())
    planned = show.lines([path], ["models/x/s0"])
    assert planned[-1].startswith("would be refused: models/x: end_tokens: responses end with")
    monkeypatch.setattr(examine.interpreters, "examine", lambda *arguments: ([], {}))
    raw = config(models) | {"targets": []}
    artifacts = plan(resolve(raw), {})
    monkeypatch.setattr(examine.outputs, "targets", lambda *arguments: ["models/x/s0"])
    monkeypatch.setattr(examine.state, "artifacts_of", lambda *arguments: artifacts)
    classes = examine.resources.read_classes(Path("workflow/resources.yaml"))
    site = examine.resources.Site()
    findings, _ = examine._run(resolve(raw), "config.yaml", site, classes, True)
    (found,) = (finding for finding in findings if finding.subject == "models")
    assert found.state == "warning" and found.what.startswith("models/x: end_tokens: responses")
    assert "student (its own)" in found.remedy

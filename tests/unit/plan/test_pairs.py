"""What a plan says of pairs of models, whose weights nobody needs for that."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

pytest.importorskip("torch")

from probing import Inputs, make, with_swapped_tokens
from transformers import GenerationConfig

from opd.doctor import examine
from opd.plan import pairs, show
from opd.plan.artifacts import plan
from opd.recipes.resolve import resolve
from opd.rehearsal import hub
from opd.stages import fresh


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A teacher that stops at one token more than its student."""
    made = make(tmp_path_factory.mktemp("pairs"), 4)
    GenerationConfig(eos_token_id=[1, 3]).save_pretrained(made["teacher"])
    return made


SHORT = {"max_prompt_tokens": 100, "max_new_tokens": 100}


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
    assert line.startswith(
        "models/x (student tuned, teacher t): end_tokens: responses end with <eos> for the student"
    )
    assert lines(config(models, end_tokens="student"), tmp_path) == []
    (long,) = {line.partition(" but ")[0] for line in lines(
        config(models, end_tokens="both", max_new_tokens=500), tmp_path)}  # fmt: skip
    assert long.startswith(
        "models/x (student tuned, teacher t): max_prompt_tokens and max_new_tokens: prompt and"
    )
    assert "600 tokens," in long


def test_every_teacher_of_a_sum_is_compared(models: Inputs, tmp_path: Path) -> None:
    """One that fits does not hide one that does not, and a reference to the student fits."""
    parts = [{"teacher": "s"}, {"teacher": "t", "weight": 0.5}, {"reference": "tuned"}]
    raw = config(models, teacher=None, terms=parts)
    del raw["models"]["later"], raw["models"]["unknown"]
    (line,) = lines(raw, tmp_path)
    assert line.startswith("models/x: end_tokens: responses end with <eos> for the student")


def test_a_generation_is_of_a_model_with_the_students_tokens(
    models: Inputs, tmp_path: Path
) -> None:
    """Which need not have room for what the run reads."""
    other = with_swapped_tokens(models["teacher"], tmp_path / "other", "1", "2")
    lines_of = {}
    for name in ("t", "o"):
        half = [{"own": 0.5}, {"generations": "g", "share": 0.5}]
        raw = config(models, end_tokens="both", rollouts=half)
        raw["models"]["o"] = {"path": str(other)}
        del raw["models"]["later"], raw["models"]["unknown"]
        raw["generations"] = {"g": {**SHORT, "model": name, "prompts": "p"}}
        lines_of[name] = lines(raw, tmp_path)
    assert lines_of["t"] == []
    (line,) = lines_of["o"]
    assert line.startswith("models/x (student tuned, teacher t): generations:0: the student has")


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
    about = "models/x (student tuned, teacher t): end_tokens: responses end with"
    assert planned[-1].startswith(f"would be refused: {about}")
    monkeypatch.setattr(examine.interpreters, "examine", lambda *arguments: ([], {}))
    raw = config(models) | {"targets": []}
    artifacts = plan(resolve(raw), {})
    monkeypatch.setattr(examine.outputs, "targets", lambda *arguments: ["models/x/s0"])
    monkeypatch.setattr(examine.state, "artifacts_of", lambda *arguments: artifacts)
    classes = examine.resources.read_classes(Path("workflow/resources.yaml"))
    site = examine.resources.Site()
    findings, _ = examine._run(resolve(raw), "config.yaml", site, classes, True)
    (found,) = (finding for finding in findings if finding.subject == "models")
    assert found.state == "missing" and found.what.startswith(about)
    assert "student (its own)" in found.remedy


def test_models_of_the_hub_are_compared_before_their_weights(
    models: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By what a run calls: a pair that does not fit is refused, also where a probe reads it, and
    what the hub does not have is named, too; no file of weights is asked for."""
    probe = {"student": "s", "teacher": "t", "prompts": "p"}
    probe |= {"max_prompt_tokens": 100, "max_new_tokens": 100}
    raw = config(models, end_tokens="both") | {"probes": {"seen": {"indicators": probe}}}
    del raw["models"]["later"]
    names = {"s": "org/student", "t": "org/teacher", "h": "org/gone"}
    raw["models"] |= {name: {"hub": {"id": id}} for name, id in names.items()}
    folders = {name: tmp_path / "hub" / "models" / id for name, id in names.items()}
    shutil.copytree(models["student"], folders["s"])
    shutil.copytree(models["teacher"], folders["t"])
    vocabulary = (folders["t"] / "tokenizer.json").read_text()
    (folders["t"] / "tokenizer.json").write_text(vocabulary.replace('"7"', '"seven"'))
    requests: list[str] = []

    def refused(teacher: str) -> tuple[int, list[str]]:
        """Exit status and lines, the hub having the teacher's files at this commit."""
        commits = {f"models/{id}": hub.commit(id) for id in names.values()}
        commits["models/org/teacher"] = teacher
        artifacts = plan(resolve(raw), commits)
        file = tmp_path / "results" / "pairs" / "plan.json"
        fresh.write_plan(file, artifacts)
        with hub.served(tmp_path / "hub", commits, requests) as address:
            here = partial(download, endpoint=address, cache_dir=tmp_path / "home")
            monkeypatch.setattr(huggingface_hub, "snapshot_download", here)
            status = pairs.main(file, artifacts)
        lines = capsys.readouterr().err.splitlines()
        return status, [line for line in lines if line.startswith("error: ")]

    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    status, (gone, trained, probed) = refused("1" * 40)
    assert status == 1
    assert gone.startswith(
        "error: models/h: fetch.hub: org/gone: could not be fetched from the hub at"
    )
    differs = "teacher: student and teacher have different tokenizers: token"
    assert trained.startswith(f"error: models/x (student tuned, teacher t): {differs}")
    assert probed.startswith(f"error: probes/seen (student s, teacher t): {differs}")
    assert "is '7' for the student and 'seven' for the teacher" in trained
    (folders["t"] / "tokenizer.json").write_text(vocabulary)
    del raw["models"]["unknown"], raw["models"]["h"]
    assert refused("2" * 40) == (0, [])
    assert [x for x in requests if "tokenizer.json" in x]
    assert not [x for x in requests if "safetensors" in x]

"""Distillation from a teacher behind a server: the run that the teacher itself would give, and what
is refused before it. The server is a stand-in; ``tests/unit/models/test_served.py`` has vLLM's."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from probing import rendered, rows_of
from safetensors.torch import load_file
from serving import Json, Served, serving
from tiny import OPD, Inputs, course, files, run
from transformers import AutoTokenizer

from opd.core.errors import UserError
from opd.models import served

CFG = {**OPD, "micro_batch": 2}
LOSSES: dict[str, dict[str, Any]] = {
    "teacher": {"preset": "teacher", "k": 4},
    "many faces": {"preset": "many_faces_default", "k": 4},
    "tail": {"preset": "tail_augmented", "support": "teacher", "k": 4},
    "full": {"preset": "teacher", "gradient": "direct", "k": 54},
    "sampled": {"preset": "sampled"},
    "k3": {"preset": "k3"},
}
METRICS = ("overlap_ratio", "top_mass_teacher", "entropy_student_nats", "log_ratio_other_nats")


@pytest.fixture
def teacher(inputs: Inputs) -> Served:
    return Served(inputs["teacher"], "t")


@pytest.fixture
def url(teacher: Served) -> Iterator[str]:
    with serving(teacher) as address:
        yield address


@pytest.fixture
def given(inputs: Inputs, tmp_path: Path) -> Inputs:
    """The inputs of the stage, with a teacher that has no weights."""
    shutil.copytree(inputs["teacher"], tmp_path / "unread")
    (tmp_path / "unread" / "model.safetensors").unlink()
    return {**inputs, "teacher": tmp_path / "unread"}


def at(url: str, name: str = "teacher") -> dict[str, Any]:
    """The settings of a run whose teacher is served."""
    return {"execution": {"servers": {name: {"url": url, "names": ["t"]}}}}


def apart(one: Path, other: Path) -> float:
    """The Euclidean distance between the weights of two models."""
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    return sum(float((w - weights[1][n]).square().sum()) for n, w in weights[0].items()) ** 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_a_teacher_behind_a_server_is_the_teacher(
    inputs: Inputs, given: Inputs, tmp_path: Path, teacher: Served, url: str, name: str
) -> None:
    """Within rounding. All rollouts of a step are asked about at once, each of them once."""
    cfg = {**CFG, "loss": LOSSES[name]}
    run("distill", cfg, inputs, tmp_path / "live")
    numbers = run("distill", {**cfg, **at(url), "server": True}, given, tmp_path / "served")
    for metric in ("loss", "grad_norm"):
        ours, theirs = (course(tmp_path / which, metric) for which in ("served", "live"))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), metric
    changed = apart(tmp_path / "live", given["student"])
    assert apart(tmp_path / "served", tmp_path / "live") < 1e-3 * changed
    for metric in METRICS:
        ours, theirs = (course(tmp_path / which, metric) for which in ("served", "live"))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), metric
    for absent in ("kl_nats", "entropy_teacher_nats", "entropy_gap_of_means_nats"):
        assert not course(tmp_path / "served", absent)
    text, *asked = teacher.requests
    assert len(asked) == 3 * 8 and text["prompt"] == served.TEXT
    k = max(4, LOSSES[name].get("k", 0))
    assert {request["prompt_logprobs"] for request in teacher.requests} == {k}
    made = {"id": "t", "root": str(inputs["teacher"]), "max_model_len": 512, "version": "0.31"}
    assert numbers["served"] == {"teacher": {"k": k, **made}}


def test_terms_of_some_rows_that_are_told_more(
    inputs: Inputs, given: Inputs, tmp_path: Path, teacher: Served, url: str
) -> None:
    """A server is asked about the rows of its terms alone, after the teacher's own prompt, and as
    often as it reads another one."""
    rows = rows_of(inputs["prompts"])
    own = {"teacher": "teacher:0", "weight": 1.0, "loss": LOSSES["teacher"]}
    told = {**own, "information": [{"message": "say {question}"}]}
    parts = [
        {**told, "where": {"answer": rows[0]["answer"]}},
        {**own, "weight": 0.5, "loss": {"preset": "sampled"}},
        {"reference": "student", "weight": 0.1, "loss": {"preset": "k3"}},
    ]
    cfg = {key: value for key, value in CFG.items() if key != "loss"}
    cfg |= {"max_prompt_tokens": 32, "steps": 1}
    live = {**inputs, "teacher:0": inputs["teacher"]}
    run("distill", {**cfg, "terms": parts}, live, tmp_path / "live")
    served_parts = [{**part, "server": True} for part in parts[:2]] + parts[2:]
    behind = {**given, "teacher:0": given["teacher"]}
    run(
        "distill",
        {**cfg, **at(url, "teacher:0"), "terms": served_parts},
        behind,
        tmp_path / "served",
    )
    for i in range(3):
        for metric in (f"term_{i}_loss", f"term_{i}_token_share"):
            ours, theirs = (course(tmp_path / which, metric) for which in ("served", "live"))
            assert ours == pytest.approx(theirs, rel=1e-4), metric
    changed = apart(tmp_path / "live", given["student"])
    assert apart(tmp_path / "served", tmp_path / "live") < 1e-3 * changed
    wanted = [rows[i]["answer"] == rows[0]["answer"] for i in range(4)]
    assert 0 < sum(wanted) < 4
    beginnings = [rendered(inputs["teacher"], f"say {row['question']}") for row in rows[:4]]
    asked = [request["prompt"] for request in teacher.requests[1:]]
    for beginning, reads in zip(beginnings, wanted, strict=True):
        after = [tokens for tokens in asked if tokens[: len(beginning)] == beginning]
        assert len(after) == 2 * reads
    assert len(asked) == 2 * sum(wanted) + 8


def test_a_server_that_goes_away_ends_the_run_which_then_goes_on(
    given: Inputs, tmp_path: Path, teacher: Served, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(served, "PAUSES_SECONDS", (0.05, 0.05))
    cfg = {**CFG, "loss": LOSSES["teacher"], "server": True, **at(url)}
    cfg["execution"]["checkpoint_every"] = 1
    run("distill", cfg, given, tmp_path / "whole")
    begun = len(teacher.requests)

    def away(handler: Any) -> bool:
        if len(teacher.requests) > begun + 1 + 8:
            handler.send(503, {})
            return True
        return False

    teacher.before = away
    message = r"http://127\S+: the server has not answered for 0.2 seconds .*last checkpoint"
    with pytest.raises(UserError, match=message):
        run("distill", cfg, given, tmp_path / "cut")
    assert not list((tmp_path / "cut").iterdir())
    teacher.before = lambda handler: False
    left = len(teacher.requests)
    run("distill", cfg, given, tmp_path / "cut")
    assert len(teacher.requests) - left == 1 + 2 * 8
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("listed", "more", "message"),
    [
        (
            {"id": "other", "root": "org/other"},
            {},
            r"it serves other \(org/other\), and not the te",
        ),
        ({"max_model_len": 22}, {}, r"it reads 22 tokens, .* may have 22; .*--max-model-len 23"),
        ({}, {"metrics_k": 21}, r"\(400: Requested prompt logprobs of 21.*--max-logprobs"),
    ],
)
def test_a_server_that_will_not_do_is_refused_before_training(
    given: Inputs,
    tmp_path: Path,
    teacher: Served,
    url: str,
    listed: Json,
    more: dict[str, Any],
    message: str,
) -> None:
    teacher.max_logprobs = 20
    teacher.listed[0] |= listed
    cfg = {**CFG, "loss": LOSSES["teacher"], "server": True, **at(url), **more}
    with pytest.raises(UserError, match=message):
        run("distill", cfg, given, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_tokens_of_the_teacher_alone_are_refused(
    given: Inputs, tmp_path: Path, teacher: Served, url: str
) -> None:
    """A server gives them probability, which no student can learn."""
    tokenizer = AutoTokenizer.from_pretrained(given["teacher"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(given["teacher"])
    cfg = {**CFG, "loss": LOSSES["teacher"], "server": True, **at(url)}
    with pytest.raises(UserError, match=r"server: its teacher has special tokens .* \(\[54\]\)"):
        run("distill", cfg, given, tmp_path / "a")
    assert not teacher.requests

"""What is kept of a teacher, held to the teacher itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probing import logits, rendered
from tiny import Inputs, generated

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import read_json
from opd.models import score
from opd.models.schemas import GENERATIONS

K = 6


@pytest.fixture(scope="module")
def given(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Two responses of the student to each of ten prompts, one of them rejected."""
    folder = tmp_path_factory.mktemp("scored")
    made = generated(inputs["student"], inputs["prompts"], folder / "made")
    rows = tables.read(made / "generations.parquet", GENERATIONS).to_pylist()
    rows[3]["rejected"] = "boxed"
    tables.write(made / "generations.parquet", rows, GENERATIONS)
    return {**inputs, "generations": made}


def scored(given: Inputs, out: Path, **changed: Any) -> list[dict[str, Any]]:
    scratch = out.with_name(f"{out.name}-scratch")
    for folder in (out, scratch):
        folder.mkdir(exist_ok=True)
    score.run({"k": K, "threads": 1, **changed}, given, out, scratch)
    rows: list[dict[str, Any]] = tables.read(out / "scores.parquet", score.SCORES).to_pylist()
    return rows


def test_scores_are_those_of_the_teacher_to_the_precision_that_is_stated(
    given: Inputs, tmp_path: Path
) -> None:
    """Half a unit in the last of 11 bits: |l| / 2048 nats. Sampled tokens are not rounded."""
    rows = scored(given, tmp_path / "a")
    asked = tables.read(given["generations"] / "generations.parquet", GENERATIONS).to_pylist()
    asked = [row for row in asked if row["rejected"] is None]
    assert len(rows) == len(asked) == 19
    for row, response in zip(rows, asked, strict=True):
        assert (row["prompt_id"], row["sample"]) == (response["prompt_id"], response["sample"])
        prompt = rendered(given["teacher"], response["prompt"])
        assert row["prompt_ids"] == prompt
        tokens = response["token_ids"]
        read = logits(given["teacher"], [*prompt, *tokens])[len(prompt) - 1 : -1]
        logq = torch.log_softmax(torch.tensor(read).double(), -1).numpy()
        order = np.argsort(-logq, axis=1)[:, :K]
        assert np.array_equal(np.reshape(row["ids"], (-1, K)), order)
        exact = np.take_along_axis(logq, order, 1)
        kept = np.reshape(row["log_probs"], (-1, K)).astype(float)
        assert (abs(kept - exact) <= abs(exact) / 2048 + 1e-6).all()
        sampled = logq[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(row["sampled"], sampled, atol=1e-5)
        np.testing.assert_allclose(row["tail"], 1 - np.exp(exact).sum(1), atol=1e-6)
    report = read_json(tmp_path / "a" / "report.json")
    assert report == {"k": K, "vocabulary": logq.shape[1]}


def test_a_named_students_top_k_is_kept_with_what_the_teacher_makes_of_it(
    given: Inputs, tmp_path: Path
) -> None:
    alone = scored(given, tmp_path / "alone")
    rows = scored({**given, "named_student": given["student"]}, tmp_path / "a")
    for row, plain in zip(rows, alone, strict=True):
        assert plain["student_ids"] == plain["student_log_probs"] == []
        assert {**row, "student_ids": [], "student_log_probs": []} == plain
    asked = tables.read(given["generations"] / "generations.parquet", GENERATIONS).to_pylist()
    response, row = asked[0], rows[0]
    prompt = rendered(given["teacher"], response["prompt"])
    own, teacher = (
        np.array(logits(given[name], [*prompt, *response["token_ids"]])[len(prompt) - 1 : -1])
        for name in ("student", "teacher")
    )
    order = np.argsort(-own, axis=1)[:, :K]
    assert np.array_equal(np.reshape(row["student_ids"], (-1, K)), order)
    logq = torch.log_softmax(torch.tensor(teacher).double(), -1).numpy()
    kept = np.reshape(row["student_log_probs"], (-1, K))
    np.testing.assert_allclose(kept, np.take_along_axis(logq, order, 1), atol=1e-5)


def test_what_was_read_before_a_kill_is_not_read_again(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "PART", 8)
    whole = scored(given, tmp_path / "whole")
    read, part_of = [], score._scored

    def killed(models: Any, rows: Any, *others: Any) -> Any:
        read.append(len(rows))
        if len(read) == 2:
            raise KeyboardInterrupt
        return part_of(models, rows, *others)

    monkeypatch.setattr(score, "_scored", killed)
    with pytest.raises(KeyboardInterrupt):
        scored(given, tmp_path / "killed")
    assert not (tmp_path / "killed" / "scores.parquet").exists()
    assert scored(given, tmp_path / "killed") == whole
    assert read == [8, 8, 8, 3]
    # A part that is not as it was written is read again.
    part = tmp_path / "killed-scratch" / "scores-8.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert scored(given, tmp_path / "killed") == whole
    assert read[4:] == [8]


def test_what_cannot_be_scored_is_refused(given: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"k is 1000, but student and teacher have only \d+ tokens"):
        scored(given, tmp_path / "a", k=1000)
    rows = tables.read(given["generations"] / "generations.parquet", GENERATIONS).to_pylist()
    for name, change, message in (
        ("none", {"rejected": "boxed"}, "there is no response in it"),
        ("beyond", {"token_ids": [1000]}, "token 1000 is beyond"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        tables.write(folder / "generations.parquet", [r | change for r in rows], GENERATIONS)
        with pytest.raises(UserError, match=message):
            scored({**given, "generations": folder}, tmp_path / f"out-{name}")
        assert not list((tmp_path / f"out-{name}").iterdir())

"""Prompts that are too long for some model: left out by name, and counted by model."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from probing import with_template
from tiny import OPD, Inputs
from tiny import run as train

from opd.core import tables
from opd.core.errors import UserError
from opd.data import schemas
from opd.data.schemas import PROMPTS
from opd.models import fit

LONG = "{% for m in messages %}please: {{ m.content }}{% endfor %}<assistant>"


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir()
    made = [
        schemas.prompt_row(**{"id": f"q{i}", "answer": "1", "source": "s", "row": i, **row})
        for i, row in enumerate(rows)
    ]
    tables.write(folder / "prompts.parquet", made, PROMPTS)
    return folder


def run(
    tmp_path: Path, prompts: Path, limit: int, more: dict[str, Any] | None = None, **models: Path
) -> tuple[list[str], Any]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    cfg = {"max_prompt_tokens": limit, "chat_templates": {name: {} for name in models}}
    cfg |= more or {}
    named = {f"model:{name}": folder for name, folder in models.items()}
    fit.run(cfg, {"prompts": prompts, **named}, out)
    kept = tables.read(out / "prompts.parquet", PROMPTS).to_pylist()
    return [row["id"] for row in kept], json.loads((out / "report.json").read_text())


def test_every_model_counts_its_own_template(inputs: Inputs, tmp_path: Path) -> None:
    """A character is a token: <user>QUESTION<assistant> has two more, the polite template nine.
    One row does not end a run."""
    polite = with_template(inputs["teacher"], tmp_path / "polite", LONG)
    rows = [{"question": "1+" * n + "1="} for n in (1, 4, 5, 400)]
    rows[0]["turns"] = [{"role": "user", "content": "1="}, {"role": "assistant", "content": "1"}]
    prompts = write(tmp_path / "prompts", *rows)
    # 4, 10, 12, 802 characters; <user>1=<assistant>1<eos> before the first one.
    kept, report = run(tmp_path, prompts, 14, small=inputs["student"])
    assert kept == ["q0", "q1", "q2"]
    assert report["models"] == {"small": {"too_long": 1, "longest_tokens": 804}}
    kept, report = run(tmp_path, prompts, 19, polite=polite, small=inputs["student"])
    assert kept == ["q1"]
    assert report == {
        "prompts": 4,
        "kept": 1,
        "max_prompt_tokens": 19,
        "models": {
            "small": {"too_long": 1, "longest_tokens": 804},
            "polite": {"too_long": 3, "longest_tokens": 811},
        },
    }
    cfg = {**OPD, "prompts_per_step": 1, "steps": 1, "max_prompt_tokens": 19}
    with pytest.raises(UserError, match=r"row 3 \(q3\): the prompt has 804 tokens.* fit"):
        train("distill", cfg, {**inputs, "prompts": prompts}, tmp_path / "a")
    assert train("distill", cfg, {**inputs, "prompts": tmp_path / "out"}, tmp_path / "b")


def test_what_a_teacher_is_told_is_counted_too(inputs: Inputs, tmp_path: Path) -> None:
    """The longest of its contexts, which training holds to the same limit: <user>QUESTION so
    ANSWER<assistant> is seven tokens longer than the question."""
    prompts = write(tmp_path / "prompts", *({"question": "1+" * n + "1="} for n in (1, 4, 5)))
    told = {"information": [{"message": "{question}"}, {"message": "{prompt} so {answer}"}]}
    limits = {**told, "max_teacher_prompt_tokens": 17}
    kept, report = run(tmp_path, prompts, 14, limits, small=inputs["student"])
    assert kept == ["q0", "q1"]
    assert report["models"] == {
        "small": {
            **{"too_long": 0, "longest_tokens": 14},
            **{"teacher_too_long": 1, "teacher_longest_tokens": 19},
        }
    }
    cfg = {**OPD, **limits, "prompts_per_step": 1, "steps": 1, "max_prompt_tokens": 14}
    with pytest.raises(UserError, match=r"prompt q2: the teacher's prompt has 19 tokens.*\(fit\)"):
        train("distill", cfg, {**inputs, "prompts": prompts}, tmp_path / "a")
    assert train("distill", cfg, {**inputs, "prompts": tmp_path / "out"}, tmp_path / "b")
    # As in training, its limit is that of prompts where it has none of its own.
    assert run(tmp_path, prompts, 14, told, small=inputs["student"])[0] == ["q0"]
    line = r"at most 9 tokens, and 10 for a teacher \(small: longest 14 and 19\)"
    with pytest.raises(UserError, match=line):
        more = {**told, "max_teacher_prompt_tokens": 10}
        run(tmp_path, prompts, 9, more, small=inputs["student"])


def test_control_tokens_are_counted_by_model(inputs: Inputs, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts", {"question": "a<eos>b<user>"}, {"question": "<eos>"})
    _, report = run(tmp_path, prompts, 99, small=inputs["student"])
    assert report["models"]["small"]["control_tokens"] == {"<eos>": 2, "<user>": 1}


def test_nothing_that_fits_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts", {"question": "1+1="})
    line = r"none of 1 prompts has at most 5 tokens \(small: longest 6\)"
    with pytest.raises(UserError, match=line):
        run(tmp_path, prompts, 5, small=inputs["student"])
    assert not [*(tmp_path / "out").iterdir()]

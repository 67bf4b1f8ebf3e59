"""The stage that makes SFT pairs of generations."""

import json
from pathlib import Path
from typing import Any

import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.data import schemas
from opd.data.schemas import PROMPTS, SFT_PAIRS
from opd.models import filters
from opd.models.schemas import GENERATIONS


def stage(
    tmp_path: Path, cfg: dict[str, Any], generations: list[tuple[Any, ...]]
) -> tuple[list[str], dict[str, Any], dict[str, Path]]:
    """Run on generations (prompt, sample, response, finish, rejected); every answer is 5."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    prompts = sorted({p for p, *_ in generations})
    tables.write(
        folder / "prompts.parquet",
        [schemas.prompt_row(p, p, "5", "s", i) for i, p in enumerate(prompts)],
        PROMPTS,
    )
    tables.write(
        folder / "generations.parquet",
        [
            {
                "prompt_id": p,
                "sample": s,
                "attempt": 0,
                "prompt": f"{p}?",
                "response": r,
                "token_ids": [1],
                "finish": f,
                "rejected": why[0] if why else None,
            }
            for p, s, r, f, *why in generations
        ],
        GENERATIONS,
    )
    inputs = {"generations": folder, "prompts": folder}
    out = tmp_path / "out"
    out.mkdir()
    report = filters.run(cfg, inputs, out)
    assert json.loads((out / "report.json").read_text()) == report
    pairs = tables.read(out / "pairs.parquet", SFT_PAIRS).to_pylist()
    for file in out.iterdir():
        file.unlink()
    out.rmdir()
    return [p["id"] for p in pairs], report, inputs


RIGHT, WRONG = "so \\boxed{5}", "so \\boxed{6}"
RESPONSES = [
    ("a", 0, WRONG, "stop"),
    ("a", 1, RIGHT, "stop"),
    ("a", 2, RIGHT, "length"),
    ("b", 0, "  ", "stop"),
    ("b", 1, "five", "stop"),
    ("b", 2, WRONG, "stop"),
    ("c", 0, RIGHT, "stop"),
    ("c", 1, "\\boxed{}", "stop"),
]


def test_first_matching_rule_counts(tmp_path: Path) -> None:
    cfg = {"rules": ["finished", "nonempty", "boxed", "answered"], "grader": "rule"}
    ids, report, _ = stage(tmp_path, cfg, RESPONSES)
    assert ids == ["a-0", "a-1", "b-2", "c-0"]
    assert report["rejected"] == {
        "finished": 1, "nonempty": 1, "boxed": 1, "answered": 1, "over per_prompt": 0, "over n": 0,
    }  # fmt: skip
    assert (report["kept"], report["prompts_kept"], report["kept_correct"]) == (4, 3, 2)


@pytest.mark.parametrize(
    ("more", "ids"),
    [
        ({"per_prompt": 1}, ["a-0", "b-2", "c-0"]),
        ({"per_prompt": 1, "correct": "first"}, ["a-1", "b-2", "c-0"]),
        ({"per_prompt": 1, "correct": "only"}, ["a-1", "c-0"]),
        ({"n": 2}, ["a-0", "a-1"]),
        ({"n": 2, "correct": "first"}, ["a-1", "c-0"]),
        ({"n": 3, "correct": "first"}, ["a-0", "a-1", "c-0"]),
        ({"n": 99}, ["a-0", "a-1", "b-2", "c-0"]),
    ],
)
def test_selection(tmp_path: Path, more: dict[str, Any], ids: list[str]) -> None:
    cfg = {"rules": ["finished", "boxed", "answered"], "grader": "rule", **more}
    assert stage(tmp_path, cfg, RESPONSES)[0] == ids


def test_what_was_rejected_before_keeps_its_reason(tmp_path: Path) -> None:
    tried = [
        ("a", 0, WRONG, "stop", "repeated_line"),
        ("a", 0, RIGHT, "stop"),
        ("b", 0, "no box", "length", "boxed"),
        ("b", 0, RIGHT, "length", "finished"),
        ("c", 0, "no box", "stop"),
    ]
    ids, report, _ = stage(tmp_path, {"rules": ["boxed"]}, tried)
    assert ids == ["a-0"]
    assert report["rejected"] == {
        "boxed": 2, "repeated_line": 1, "finished": 1, "over per_prompt": 0, "over n": 0,
    }  # fmt: skip
    assert report["generations"] == 5 and report["kept"] == 1


def test_nothing_left_and_bad_settings(tmp_path: Path) -> None:
    for cfg, message in [
        (
            {"rules": ["boxed"], "correct": "only", "grader": "rule"},
            r"none of 2 .*boxed: 1, wrong: 1",
        ),
        ({"rules": [], "per_prompt": 0}, r"none of 2 .*over per_prompt: 2"),
        ({"rules": [], "n": 0}, r"none of 2 .*over n: 2"),
        ({"rules": ["boxes"]}, "unknown rule 'boxes'; use boxed, "),
        ({"rules": ["answered"], "grader": "maths"}, "unknown grader 'maths'"),
    ]:
        with pytest.raises(UserError, match=message):
            stage(tmp_path, cfg, [("a", 0, WRONG, "stop"), ("a", 1, "no", "stop")])
        assert not list((tmp_path / "out").iterdir())
        (tmp_path / "out").rmdir()


def test_generations_of_other_prompts_are_refused(tmp_path: Path) -> None:
    _, _, inputs = stage(tmp_path, {"rules": []}, RESPONSES)
    other = tmp_path / "other"
    other.mkdir()
    rows = tables.read(inputs["prompts"] / "prompts.parquet", PROMPTS).to_pylist()[1:]
    tables.write(other / "prompts.parquet", rows, PROMPTS)
    with pytest.raises(UserError, match="prompts: there is no prompt 'a', which row 0 answers"):
        filters.run({"rules": []}, inputs | {"prompts": other}, tmp_path)

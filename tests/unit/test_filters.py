"""Rejection rules at their boundaries, and the stage that applies them."""

import json
from pathlib import Path
from typing import Any

import pytest

from opd import filters, tables
from opd.errors import Bad

LINE = "x" * 20
UNIQUE = "".join(f"{i:05d}" for i in range(4000))


def test_boxed() -> None:
    assert filters.no_box("the answer is 5") and not filters.no_box("so \\boxed{5}")


@pytest.mark.parametrize(
    ("lines", "rejected"),
    [
        ([LINE] * 5, True),
        ([LINE] * 4, False),
        ([f"  {LINE} ", LINE, f"{LINE}\t", LINE, f" {LINE}"], True),
        ([LINE[:-1]] * 9, False),
        ([f"{LINE[:-1]} "] * 9, False),
        ([LINE, "y" * 20] * 4, False),
    ],
)
def test_repeated_line(lines: list[str], rejected: bool) -> None:
    assert filters.repeated_line("\n".join(lines)) is rejected


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        (UNIQUE[:100] * 3, True),
        (UNIQUE[:100] * 2, False),
        # Windows start at every tenth character, so a period of 105 is seen at every second turn.
        (UNIQUE[:105] * 3, False),
        (UNIQUE[:105] * 5, True),
        (UNIQUE, False),
        ("a" * 119, False),
        ("a" * 120, True),
        ("", False),
    ],
)
def test_repeated_window(text: str, rejected: bool) -> None:
    assert filters.repeated_window(text) is rejected


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        (UNIQUE[:4851] + UNIQUE[-50:] * 3, True),
        (UNIQUE[:4850] + UNIQUE[-50:] * 3, False),
        (UNIQUE[:7000] + UNIQUE[-50:] * 2, False),
        (UNIQUE[:7000] + "z" + UNIQUE[-50:] * 2 + UNIQUE[-50:-1], False),
        (UNIQUE[:7003] + UNIQUE[-50:] * 3 + UNIQUE[:90], True),
        (UNIQUE[:7000] + "ab" * 75, True),
        (UNIQUE[:7000], False),
    ],
)
def test_repeated_block(text: str, rejected: bool) -> None:
    assert filters.repeated_block(text) is rejected


def stage(
    tmp_path: Path, cfg: dict[str, Any], generations: list[tuple[str, int, str, str]]
) -> tuple[list[str], dict[str, Any], dict[str, Path]]:
    """Run on generations (prompt, sample, response, finish); every answer is 5."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    prompts = sorted({p for p, *_ in generations})
    tables.write(
        folder / "prompts.parquet",
        [tables.prompt(p, p, "5", "s", i) for i, p in enumerate(prompts)],
        tables.PROMPTS,
    )
    tables.write(
        folder / "generations.parquet",
        [
            {
                "prompt_id": p,
                "sample": s,
                "prompt": f"{p}?",
                "response": r,
                "token_ids": [1],
                "finish": f,
            }
            for p, s, r, f in generations
        ],
        tables.GENERATIONS,
    )
    inputs = {"generations": folder, "prompts": folder}
    out = tmp_path / "out"
    out.mkdir()
    report = filters.run(cfg, inputs, out)
    assert json.loads((out / "report.json").read_text()) == report
    pairs = tables.read(out / "pairs.parquet", tables.PAIRS).to_pylist()
    for file in out.iterdir():
        file.unlink()
    out.rmdir()
    return [p["id"] for p in pairs], report, inputs


RIGHT, WRONG = "so \\boxed{5}", "so \\boxed{6}"
GENERATIONS = [
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
    ids, report, _ = stage(tmp_path, cfg, GENERATIONS)
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
    assert stage(tmp_path, cfg, GENERATIONS)[0] == ids


def test_nothing_left_and_bad_settings(tmp_path: Path) -> None:
    for cfg, message in [
        (
            {"rules": ["boxed"], "correct": "only", "grader": "rule"},
            r"none of 2 .*boxed: 1, wrong: 1",
        ),
        ({"rules": ["boxes"]}, "unknown rule 'boxes'; use boxed, "),
        ({"rules": [], "correct": "maybe"}, "use null, only or first"),
        ({"rules": ["answered"], "grader": "maths"}, "unknown grader 'maths'"),
    ]:
        with pytest.raises(Bad, match=message):
            stage(tmp_path, cfg, [("a", 0, WRONG, "stop"), ("a", 1, "no", "stop")])
        assert not list((tmp_path / "out").iterdir())
        (tmp_path / "out").rmdir()


def test_generations_of_other_prompts_are_refused(tmp_path: Path) -> None:
    _, _, inputs = stage(tmp_path, {"rules": []}, GENERATIONS)
    other = tmp_path / "other"
    other.mkdir()
    rows = tables.read(inputs["prompts"] / "prompts.parquet", tables.PROMPTS).to_pylist()[1:]
    tables.write(other / "prompts.parquet", rows, tables.PROMPTS)
    with pytest.raises(Bad, match=r"generations\.parquet: row 0: prompt 'a'"):
        filters.run({"rules": []}, inputs | {"prompts": other}, tmp_path)

"""The real prompt files: loading, stripping, selection."""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.data import prompts, templates
from opd.data.schemas import PROMPTS, REPEATED


@pytest.fixture(autouse=True)
def folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_DATA_DIR", str(data_dir.absolute()))
    monkeypatch.chdir(data_dir)


def load(tmp_path: Path, path: str, **cfg: Any) -> list[dict[str, Any]]:
    return made(tmp_path, path, **cfg)[0]


def made(
    tmp_path: Path, path: str, inputs: dict[str, Path] | None = None, **cfg: Any
) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    """The prompt set of a file: its rows, its numbers and its folder."""
    out = tmp_path / f"{path.replace('/', '_')}{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    source = {"path": path, **cfg.pop("source", {})}
    numbers = prompts.run({"source": source, "seed": 0, **cfg}, inputs or {}, out)
    rows: list[dict[str, Any]] = tables.read(out / "prompts.parquet", PROMPTS).to_pylist()
    return rows, numbers, out


# Of the text as the file asks it, and of the question without template and white space around it.
AS_ASKED = {"distinct": 17398, "en": 14116, "zh": 3282, "repeated": 495, "conflicting": 7}
BARE = {"distinct": 17255, "en": 14042, "zh": 3213, "repeated": 628, "conflicting": 12}
SHA256 = {
    "dapo-math-17k.parquet": ("039f3afd", "41925"),
    "dapo-math-17k-processed.parquet": ("500bd8c4", "bd0b39"),
    "deepmath-deduped.parquet": ("e79d4245", "25d4"),
}


def test_files_are_those_released(data_dir: Path) -> None:
    for name, (start, end) in SHA256.items():
        digest = hashlib.sha256((data_dir / name).read_bytes()).hexdigest()
        assert digest.startswith(start) and digest.endswith(end)


@pytest.mark.parametrize(
    ("file", "template", "trimmed"),
    [
        ("dapo-math-17k.parquet", "dapo", AS_ASKED),
        # Two pairs of its prompts, of English questions, differ in white space at the start.
        (
            "dapo-math-17k-processed.parquet",
            "boxed_double_brace",
            {"distinct": 17396, "en": 14114, "zh": 3282, "repeated": 497, "conflicting": 7},
        ),
    ],
)
def test_counts_of_dapo_under_each_rule(
    tmp_path: Path, file: str, template: str, trimmed: dict[str, int]
) -> None:
    rows, numbers, out = made(tmp_path, file, strip=[template])
    assert len(rows) == 17917
    assert numbers["strip"] == {template: {"exact": 17917}}
    assert numbers["templates"] == {t: 17917 * (t == template) for t in templates.TEMPLATES}
    assert numbers["texts"] == {
        "prompt": AS_ASKED,
        "prompt_stripped": trimmed,
        "question": AS_ASKED,
        "question_stripped": BARE,
    }
    repeated = tables.read(out / "repeated.parquet", REPEATED).to_pylist()
    assert Counter(r["rule"] for r in repeated) == {"prompt": 495, "question": 628}
    conflicts = [r["answers"] for r in repeated if r["rule"] == "prompt" and r["conflicting"]]
    assert conflicts == [
        ["64", "6"], ["15", "25"], ["99", "21"], ["36", "248"], ["239", "48"], ["108", "180"],
        ["-2", "-1"],
    ]  # fmt: skip
    raw = pq.read_table(Path(os.environ["OPD_DATA_DIR"]) / file).to_pylist()
    for text in repeated:
        if text["rule"] == "prompt":
            assert {raw[i]["prompt"][0]["content"] for i in text["rows"]} == {text["text"]}
            truths = [raw[i]["reward_model"]["ground_truth"] for i in text["rows"]]
            assert list(dict.fromkeys(truths)) == text["answers"]


def test_distinct_prompts_by_language(tmp_path: Path) -> None:
    """As open-r1 has split it: 14,116 English and 3,282 Chinese ones."""
    for language, n in (("en", 14116), ("zh", 3282)):
        cfg = {"strip": ["dapo"], "distinct": "prompt", "language": language}
        assert len(load(tmp_path, "dapo-math-17k.parquet", **cfg)) == n


@pytest.mark.parametrize(
    ("file", "template", "column", "spaced"),
    [
        ("dapo-math-17k.parquet", "dapo", None, 790),
        ("dapo-math-17k-processed.parquet", "boxed_double_brace", None, 790),
        ("deepmath-deduped.parquet", "boxed", "prompt", 0),
        ("math-train.parquet", "boxed", None, 0),
    ],
)
def test_template_of_the_question_is_the_prompt(
    tmp_path: Path, file: str, template: str, column: str | None, spaced: int
) -> None:
    """To the byte for every row whose question has no white space around it, for those but for it.

    790 DAPO questions have some: 742 at the end, 64 at the start, 16 of them at both.
    """
    source = {"question": column} if column else {}
    rows = load(tmp_path, file, source=source, strip=[template], drop_empty=True)
    differ = [r for r in rows if templates.apply(template, r["question"]) != r["prompt"]]
    assert len(differ) == spaced
    for row in differ:
        inner, how = templates.unwrap(row["prompt"], template)
        assert how == "exact" and inner != inner.strip() == row["question"]
        assert templates.apply(template, inner) == row["prompt"]
    ends = Counter((r != r.lstrip(), r != r.rstrip()) for r in (
        templates.unwrap(row["prompt"], template)[0] for row in differ
    ))  # fmt: skip
    if spaced:
        assert ends == {(True, True): 16, (True, False): 48, (False, True): 726}


def test_deepmath_asks_less_than_its_question_column_has(tmp_path: Path) -> None:
    """In 118 rows the column goes on with a box to fill in, which the prompt breaks off before."""
    rows = load(tmp_path, "deepmath-deduped.parquet")
    differ = [r for r in rows if templates.apply("boxed", r["question"]) != r["prompt"]]
    assert len(differ) == 118
    for row in differ:
        asked = templates.unwrap(row["prompt"], "boxed")[0].strip()
        assert row["question"].startswith(asked)
        assert row["question"][len(asked) :].strip().startswith("\\boxed{")


def test_both_dapo_files_hold_the_same_bare_questions(tmp_path: Path) -> None:
    raw = load(tmp_path, "dapo-math-17k.parquet", strip=["dapo"])
    processed = load(tmp_path, "dapo-math-17k-processed.parquet", strip=["boxed_double_brace"])
    for column in ("question", "answer", "language", "text_hash", "row"):
        assert [r[column] for r in raw] == [r[column] for r in processed]
    assert all(r["answer"].removeprefix("-").isdigit() for r in raw)
    assert len({r["id"] for r in raw + processed}) == 2 * 17917


def test_the_single_brace_suffix_matches_nothing_in_the_processed_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"strip\.0: no row of dapo-math-17k-processed"):
        load(tmp_path, "dapo-math-17k-processed.parquet", strip=["boxed"])


def test_counts_of_deepmath_under_each_rule(tmp_path: Path) -> None:
    ours, numbers, _ = made(tmp_path, "deepmath-deduped.parquet")
    assert len(ours) == 14116
    distinct = {rule: counts["distinct"] for rule, counts in numbers["texts"].items()}
    assert distinct == {
        "prompt": 14085,
        "prompt_stripped": 14085,
        "question": 14086,
        "question_stripped": 14085,
    }


def test_samples_of_real_questions_are_disjoint(tmp_path: Path) -> None:
    """DAPO repeats 628 bare questions: apart by row some remain in both, by question none."""
    cfg = {"strip": ["dapo"], "distinct": None}
    taken, _, sft = made(tmp_path, "dapo-math-17k.parquet", sample={"n": 9000, "seed": 3}, **cfg)
    rows, questions = {r["row"] for r in taken}, {r["question"] for r in taken}
    for by in ("row", "question"):
        rest, numbers, _ = made(
            tmp_path, "dapo-math-17k.parquet", {"apart_from": sft}, apart_from=by, **cfg
        )
        shared = [r for r in rest if r["question"] in questions]
        assert not rows & {r["row"] for r in rest}
        assert numbers["apart_from"]["rows_with_shared_questions"] == len(shared)
        if by == "row":
            assert len(rest) == 17917 - 9000 and len(shared) > 200
        else:
            every = load(tmp_path, "dapo-math-17k.parquet", strip=["dapo"])
            assert not shared
            assert len(rest) == sum(r["question"] not in questions for r in every)


def test_an_id_that_comes_twice_in_math_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"math-train\.parquet: row \d+: its id 'test/.*' is that of .* row"
    ):
        load(tmp_path, "math-train.parquet", source={"row_id": "id"}, drop_empty=True)


def test_math_levels(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"math-train\.parquet: row 1165: the answer is empty .*2 rows"
    ):
        load(tmp_path, "math-train.parquet")
    cfg = {"strip": ["boxed"], "drop_empty": True, "difficulty": {"at_most": 2.0}}
    rows = load(tmp_path, "math-train.parquet", **cfg)
    assert Counter(r["difficulty"] for r in rows) == {1.0: 958, 2.0: 2152}

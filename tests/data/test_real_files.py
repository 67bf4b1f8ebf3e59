"""The real prompt files: loading, stripping, selection, deduplication."""

from pathlib import Path
from typing import Any

import pytest

from opd import dedup, prompts, tables
from opd.errors import Bad

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    '{question}\n\nRemember to put your answer on its own line after "Answer:".'
)
BOXED = "{question} Please reason step by step, and put your final answer within \\boxed{}."
DOUBLE = BOXED.replace("{}", "{{}}")


@pytest.fixture(autouse=True)
def folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_DATA_DIR", str(data_dir))


def load(tmp_path: Path, path: str, **cfg: Any) -> list[dict[str, Any]]:
    out = tmp_path / path.replace("/", "_")
    out.mkdir()
    prompts.run({"source": {"path": path}, "seed": 0, **cfg}, {}, out)
    rows: list[dict[str, Any]] = tables.read(out / "prompts.parquet", tables.PROMPTS).to_pylist()
    return rows


def test_both_dapo_files_hold_the_same_bare_questions(tmp_path: Path) -> None:
    raw = load(tmp_path, "dapo-math-17k.parquet", strip=[DAPO])
    processed = load(tmp_path, "dapo-math-17k-processed.parquet", strip=[DOUBLE])
    questions = [r["question"] for r in raw]
    assert questions == [r["question"] for r in processed]
    assert [r["answer"] for r in raw] == [r["answer"] for r in processed]
    # 17,398 are unique as written (Rethinking OPD's released file); some differ in white space.
    assert (len(raw), len({r["prompt"] for r in raw}), len(set(questions))) == (17917, 17398, 17255)
    assert len({r["id"] for r in raw + processed}) == 2 * 17917


def test_the_single_brace_suffix_matches_nothing_in_the_processed_file(tmp_path: Path) -> None:
    with pytest.raises(Bad, match=r"strip\.0: no row of dapo-math-17k-processed"):
        load(tmp_path, "dapo-math-17k-processed.parquet", strip=[BOXED])


def test_released_deepmath_has_no_exact_duplicate_of_dapo(tmp_path: Path) -> None:
    ours = load(tmp_path, "deepmath-deduped.parquet")
    theirs = load(tmp_path, "dapo-math-17k.parquet", strip=[DAPO])
    texts = [r["question"] for r in ours]
    assert (len(texts), len(set(texts))) == (14116, 14085)
    found = dedup.exact_matches(texts, [r["question"] for r in theirs])
    assert (found < 0).all()


def test_duplicates_planted_in_real_questions_are_found(tmp_path: Path) -> None:
    """300 DeepMath questions against 300 of DAPO, with copies and reworded copies of DAPO's."""
    pytest.importorskip("faiss")
    theirs = load(tmp_path, "dapo-math-17k.parquet", strip=[DAPO], sample={"n": 300, "seed": 0})
    ours = load(tmp_path, "deepmath-deduped.parquet", sample={"n": 300, "seed": 0})
    for i in range(10):
        ours[i]["question"] = f"  {theirs[i]['question']}\n"
        ours[i + 10]["question"] = f"Please find the answer. {theirs[i]['question']}"
    inputs = {"prompts": tmp_path / "a", "against": tmp_path / "b"}
    for side, rows in (("prompts", ours), ("against", theirs)):
        inputs[side].mkdir()
        tables.write(inputs[side] / "prompts.parquet", rows, tables.PROMPTS)
        inputs[f"{side}_embedded"] = tmp_path / side
        (tmp_path / side).mkdir()
        dedup.run_embed({"encoder": "hashed"}, {"prompts": inputs[side]}, tmp_path / side)
    out = tmp_path / "out"
    out.mkdir()
    report = dedup.run({"threshold": 0.9}, inputs, out)
    removed = tables.read(out / "removed.parquet", dedup.REMOVED).to_pylist()
    assert report["exact"] == 10
    near = {r["id"]: r["neighbour"] for r in removed if r["stage"] == "semantic"}
    long = [i for i in range(10) if len(theirs[i]["question"]) > 150]
    assert len(long) >= 5
    assert all(near[ours[i + 10]["id"]] == theirs[i]["id"] for i in long)
    assert not set(near) & {r["id"] for r in ours[20:]}


def test_math_levels(tmp_path: Path) -> None:
    with pytest.raises(Bad, match=r"the answer is empty .*2 rows"):
        load(tmp_path, "math-train.parquet")
    (tmp_path / "math-train.parquet").rmdir()
    rows = load(tmp_path, "math-train.parquet", strip=[BOXED], drop_empty=True, levels=[1, 2])
    assert {r["difficulty"] for r in rows} == {1, 2}
    assert 3100 <= len(rows) <= 3110

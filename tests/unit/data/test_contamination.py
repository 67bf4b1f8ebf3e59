"""Contamination reports: shared words against a naive count, and the stage on a case by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from duplicates import neighbours_of, payload
from hypothesis import given
from hypothesis import strategies as st

from opd.core import tables
from opd.core.errors import UserError
from opd.data import contamination
from opd.data.schemas import PROBLEMS


def test_words_are_runs_of_letters_and_digits_and_chinese_characters() -> None:
    assert contamination.words("Find $\\frac{1}{2}x_0$, n't?") == [
        *("find", "frac", "1", "2", "x", "0", "n", "t")
    ]
    assert contamination.words("求三角形ABC的面积") == [*"求三角形", "abc", *"的面积"]
    assert contamination.runs("a b c", 2) == {("a", "b"), ("b", "c")}
    assert contamination.runs("a b c", 13) == {("a", "b", "c")}
    assert contamination.runs("?!", 13) == set()


TEXT = st.lists(st.sampled_from("abc"), max_size=8).map(" ".join)


@given(st.lists(TEXT, max_size=5), st.lists(TEXT, max_size=5), st.integers(1, 4))
def test_shared_words_equal_a_naive_count(problems: list[str], prompts: list[str], n: int) -> None:
    shares, first = contamination.shared_words(problems, prompts, n)

    def pieces(text: str) -> list[str]:
        letters = text.replace(" ", "")
        found = [letters[i : i + n] for i in range(len(letters) - n + 1)]
        return found or ([letters] if letters else [])

    for problem, share, place in zip(problems, shares, first, strict=True):
        mine = set(pieces(problem))
        holders = [j for j, prompt in enumerate(prompts) if mine & set(pieces(prompt))]
        hit = [piece for piece in mine if any(piece in pieces(prompt) for prompt in prompts)]
        assert share == (len(hit) / len(mine) if mine else 0)
        assert place == (holders[0] if holders else -1)


def test_stage_reports_the_three_senses_apart(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    prompts = payload(tmp_path / "train", ["filler", f"so {long}", "the same", "near by"])
    first = payload(tmp_path / "first", [" the same\n", f"{long} fifteen", "something else"])
    second = payload(tmp_path / "second", ["close by"])
    inputs = {"prompts": prompts}
    found = {
        "x": (first, [(2, 2, 1.0), (None, 1, 0.55), (None, 0, 0.1)]),
        "y": (second, [(None, 3, 0.6)]),
    }
    for name, (problems, rows) in found.items():
        inputs[f"benchmark:{name}"] = problems
        inputs[f"neighbours:{name}"] = neighbours_of(tmp_path / f"n{name}", problems, prompts, rows)
    out = tmp_path / "out"
    out.mkdir()
    made = contamination.run({"threshold": 0.6}, inputs, out)
    assert made == {"prompts": 4, "found": 3}
    report = json.loads((out / "report.json").read_text())["benchmarks"]
    keys = ("problems", "exact", "semantic", "words", "any")
    assert [report["x"][key] for key in keys] == [3, 1, 1, 2, 2]
    assert [report["y"][key] for key in keys] == [1, 0, 1, 0, 1]
    assert report["x"]["at"]["0.55"] == 2 and report["x"]["largest_cosine"] == 1.0
    rows = tables.read(out / "problems.parquet", PROBLEMS).to_pylist()
    assert [r["sharer"] for r in rows] == ["train-2", "train-1", None, None]
    # 15 words have three runs of 13; two of them are in the prompt.
    np.testing.assert_allclose([r["shared_words"] for r in rows], [1, 2 / 3, 0, 0])
    page = (out / "contamination.html").read_text()
    assert "67% of its runs of 13 words" in page and "something else" not in page
    assert "cosine 0.6000" in page


def test_neighbours_of_other_prompts_are_refused(tmp_path: Path) -> None:
    prompts, problems = payload(tmp_path / "t", ["a", "b"]), payload(tmp_path / "p", ["c"])
    found = neighbours_of(tmp_path / "n", problems, prompts, [(None, 1, 0.5)])
    inputs = {"prompts": payload(tmp_path / "u", ["a", "x"]), "benchmark:c": problems}
    with pytest.raises(UserError, match="belongs to other prompts"):
        contamination.run({"threshold": 0.6}, {**inputs, "neighbours:c": found}, tmp_path)
    assert not (tmp_path / "report.json").exists()

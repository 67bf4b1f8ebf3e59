"""Scores and their summary against numbers worked out by hand, and the stage on a tiny model."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd import evaluation, tables
from opd.errors import Bad


def scores(name: str, matrix: list[list[int]]) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": name,
            "problem": f"p{i}",
            "sample": j,
            "answer": "1",
            "response": "r",
            "extracted": None if i == j == 0 else "1",
            "correct": bool(value),
            "tokens": 10 * (i + 1),
            "finish": "length" if j == 1 else "stop",
        }
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    ]


def test_summary() -> None:
    rows = scores("a", [[0, 0], [1, 0], [1, 1]]) + scores("b", [[1, 1], [1, 1]])
    summary = evaluation.summarise(rows, ["a", "b"], 2, seed=0)
    a, b = summary["benchmarks"]["a"], summary["benchmarks"]["b"]
    assert a["avg"] == pytest.approx(0.5) and b["avg"] == 1
    assert a["pass"] == {"1": pytest.approx(0.5), "2": pytest.approx(2 / 3)}
    assert a["format_rate"] == pytest.approx(5 / 6) and a["truncation_rate"] == pytest.approx(0.5)
    assert a["mean_tokens"] == pytest.approx(20)
    assert (a["problems"], a["samples"]) == (3, 2)
    assert a["low"] <= a["avg"] <= a["high"]
    assert summary["macro"]["avg"] == pytest.approx(0.75)
    assert summary["macro"]["low"] <= 0.75 <= summary["macro"]["high"]
    assert summary == evaluation.summarise(rows, ["a", "b"], 2, seed=0)
    json.dumps(summary, allow_nan=False)


def test_incomplete_scores_are_refused() -> None:
    rows = scores("a", [[0, 1], [1, 1]])
    for bad, message in [
        (rows[:-1], r"samples \[0\] of problem 'p1'"),
        ([*rows, rows[0]], "5 scores for 2 problems x 2 samples"),
        ([], "0 scores"),
    ]:
        with pytest.raises(Bad, match=message):
            evaluation.correct_matrix(bad, "a", 2)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_equals_counting_subsets(k: int) -> None:
    correct = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=float)
    counted = np.mean(
        [np.mean([max(chosen) for chosen in itertools.combinations(row, k)]) for row in correct]
    )
    assert evaluation.pass_at_k(correct, k) == pytest.approx(counted)


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="k = 3 of 2"):
        evaluation.pass_at_k(np.ones((1, 2)), 3)


def test_gap_recovery() -> None:
    assert evaluation.gap_recovery(after=0.8, before=0.5, teacher=0.9) == pytest.approx(0.75)
    assert evaluation.gap_recovery(after=0.4, before=0.5, teacher=0.9) == pytest.approx(-0.25)
    assert math.isnan(evaluation.gap_recovery(0.6, 0.5, 0.5))


def test_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from opd import prompts, world

    settings = {
        "seed": 0, "rl_times": 0.4, "other_times": 0.1,
        "exact_duplicates": 0.1, "near_duplicates": 0.1,
    }  # fmt: skip
    inputs = {"model": tmp_path / "model"}
    inputs["model"].mkdir()
    shape = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 64, "seed": 0}
    world.run_init(shape, {}, inputs["model"])
    for name in ("easy", "hard"):
        inputs[f"benchmark:{name}"] = tmp_path / name
        (tmp_path / name).mkdir()
        cfg = {"source": {"world": {"split": name, "n": 5}}, "world": settings}
        prompts.run(cfg, {}, tmp_path / name)
    cfg = {
        "protocol": {"samples": 3, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 12},
        "max_prompt_tokens": 32,
        "grader": "world",
        "benchmarks": ["hard", "easy"],
        "seed": 1,
    }
    written = []
    (tmp_path / "scratch").mkdir()
    for out in (tmp_path / "one", tmp_path / "two"):
        out.mkdir()
        numbers = evaluation.run(cfg, inputs, out, tmp_path / "scratch")
        written.append({p.name: p.read_bytes() for p in out.iterdir()})
    assert written[0] == written[1] and set(written[0]) == {"scores.parquet", "summary.json"}
    table = tables.read(tmp_path / "one" / "scores.parquet", tables.SCORES)
    assert table["benchmark"].to_pylist() == ["hard"] * 15 + ["easy"] * 15
    assert table["sample"].to_pylist() == [0, 1, 2] * 10
    summary = json.loads(written[0]["summary.json"])
    assert summary["benchmarks"]["hard"]["problems"] == 5
    assert numbers["macro"] == summary["macro"]["avg"]

"""Tables of words: which responses are shown, and how."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from measurements import evaluation

from opd.core import tables
from opd.data.schemas import PROMPTS, prompt_row
from opd.evaluation.schemas import RESPONSES
from opd.results import report
from opd.results.tables import run_table

pytestmark = pytest.mark.unit


def made(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> list[list[str]]:
    """The rows of the csv, which the page of the report has as well."""
    out.mkdir()
    run_table({"title": "T", **cfg}, inputs, out)
    rows = [*csv.reader((out / "table.csv").read_text().splitlines())]
    header, shown, _ = report.parse((out / "table.md").read_text())
    assert [header, *shown] == [[" ".join(cell.split()) for cell in row] for row in rows]
    return rows


def test_five_problems_are_shown_before_and_after(tmp_path: Path) -> None:
    """At even distances, the first sample of each, with a verdict and the question."""
    before = evaluation(tmp_path / "before", {"b": [0] * 10}, samples=2)
    after = evaluation(tmp_path / "after", {"b": [*[1] * 5, *[0] * 5]}, samples=2)
    rows = tables.read(after / "responses.parquet", RESPONSES).to_pylist()
    rows[0]["response"] = "a | b\n" + "x" * 400 + " end"
    tables.write(after / "responses.parquet", rows, RESPONSES)
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    about = {"answer": "7", "source": "s"}
    asked = [prompt_row(id=f"b-{i}", question=f"{i}+7=", row=i, **about) for i in range(9)]
    tables.write(prompts / "prompts.parquet", asked, PROMPTS)
    row = {"label": "mine", "evaluations": ["after"], "base": ["before"]}
    inputs = {"before": before, "after": after, "prompts:b": prompts}
    header, *shown = made({"words": "responses", "rows": [row]}, inputs, tmp_path / "out")
    assert header == ["", "question", "answer", "before", "after"]
    assert [cells[1] for cells in shown] == ["0+7=", "2+7=", "4+7=", "6+7=", "8+7="]
    assert [cells[3] for cells in shown] == ["✗ "] * 5
    assert [cells[4] for cells in shown[1:]] == ["✓ #7", "✓ #7", "✗ ", "✗ "]
    begins, ends = "a | b " + "x" * 144, "x" * 246 + " end"
    assert shown[0][4] == f"✓ {begins} … {ends}"
    # A question that nothing tells is the problem's id; fewer problems are all shown.
    few = {"before": evaluation(tmp_path / "few", {"b": [0, 1]}), "after": after}
    shown = made({"words": "responses", "rows": [row]}, few, tmp_path / "more")[1:]
    assert [cells[1] for cells in shown] == ["b-0", "b-1"]


def test_a_response_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    sides = {side: evaluation(tmp_path / side, {"b": [0]}) for side in ("before", "after")}
    for side, response in (("before", "\ufffd" * 7 + "ab"), ("after", "\ufffd" * 2 + "abc")):
        rows = tables.read(sides[side] / "responses.parquet", RESPONSES).to_pylist()
        rows[0]["response"] = response
        tables.write(sides[side] / "responses.parquet", rows, RESPONSES)
    row = {"label": "mine", "evaluations": ["after"], "base": ["before"]}
    shown = made({"words": "responses", "rows": [row]}, sides, tmp_path / "out")[1]
    assert shown[3:] == [
        "✗ (no text: most of its 9 characters are bytes of none)",
        "✗ \ufffd\ufffdabc",
    ]


def test_an_outlook_is_shown_with_its_reason(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    value = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    names = (
        *("overlap_ratio", "overlap_mass_student", "overlap_mass_teacher", "kl_nats"),
        *("truncation_ratio", "entropy_student_nats", "entropy_teacher_nats", "entropy_gap_nats"),
        "response_tokens",
    )
    told = {
        **{"outlook": "unlikely to help", "because": "They hardly speak one language.", "k": 4},
        **{"values": dict.fromkeys(names, value), "depths": [], "notes": [], "prompts": 3},
        **{"tokens": 260, "rollouts": 6},
        **{"templates": {"differing": 0}, "thinking": {"student": "on", "teacher": "on"}},
    }
    (probe / "preflight.json").write_text(json.dumps(told))
    cfg = {"words": "outlook", "rows": [{"label": "p", "probe": ["probe"]}]}
    rows = made(cfg, {"probe": probe}, tmp_path / "out")
    assert rows[1][:3] == ["overlap of top k", "0.500", "0.400 to 0.600"]
    note = report.parse((tmp_path / "out" / "table.md").read_text())[2]
    assert note.startswith("Outlook: unlikely to help. They hardly speak one language.")
    assert "What to try next: " in note
    assert "6 responses of the student, of 0 tokens on average, to 3 prompts" in note

"""A pair of one's own, from `opd init` to the report."""

import re
from pathlib import Path

import pytest
from pairs import pair, questions
from project import Project

from opd.cli import main
from opd.results import report

pytestmark = pytest.mark.workflow


def test_a_first_config_ends_in_a_report_with_curves_outlook_and_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pair(tmp_path)
    models = ["--student", "./student", "--teacher", "./teacher"]
    asked = str(questions(tmp_path / "q.jsonl").name)
    main.main(["init", *models, "--questions", asked, "--out", "tiny.yaml"])
    project = Project(tmp_path)
    project.run(
        "--config",
        "models={distilled: {distill: {steps: 2, max_new_tokens: 16}}}",
        "probes={outlook: {indicators: {n: 2, samples: 2, max_new_tokens: 16}}}",
        "protocols={short: {max_new_tokens: 16}}",
    )
    page = project.result("report.html").read_text()
    for name in ("figure:training-distill", "table:pair", "table:outlook-outlook"):
        assert re.search(rf'id="[^"]*{name.partition(":")[2]}', page), name
    assert "are current, and their files are as they were" in " ".join(page.split())
    header, rows, _ = report.parse(project.result("tables/responses-pair.md").read_text())
    assert header == ["", "question", "answer", "before", "after"] and len(rows) == 5
    assert all(re.fullmatch(r"\d+ \+ \d+ =", row[1]) for row in rows)
    note = report.parse(project.result("tables/outlook-outlook.md").read_text())[2]
    assert note.startswith("Outlook: ") and "What to try next" in note

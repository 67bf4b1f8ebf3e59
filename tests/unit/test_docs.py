"""The generated page of the documentation site, and its notebook."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import matplotlib
import measurements
import pytest

from opd.losses.metric_names import DISTILL, GRPO

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_page_of_keys_is_that_of_the_schema() -> None:
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert spec and spec.loader
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    schema = json.loads(conf.SCHEMA.read_text())
    page = (DOCS / "config.md").read_text()
    assert page == conf.reference(schema), "run: make docs"
    # A key with its bounds, its default and its description; one that is needed; one of recipes.
    assert "| `threads` | integer ≥ 1 | `1` | torch threads a stage uses on a CPU |" in page
    assert "| `name` | string | needed |" in page
    assert "| `models` | name: [Model](#model) |" in page
    for name in schema["$defs"]:
        assert f"\n## {name}\n" in page


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a run and an evaluation made by hand, with the numbers that these have."""
    run = "small-from-small-rl/s0/payload"
    measurements.run(
        tmp_path / "models" / run, overlap_ratio={1: 0.5, 2: 0.75}, kl_nats={1: 1, 2: 0.25}
    )
    measurements.evaluation(
        tmp_path / "evaluations" / "held-out" / run, {"easy": [4, 0], "hard": [1, 2]}
    )
    monkeypatch.setenv("OPD_RESULTS", str(tmp_path))
    monkeypatch.chdir(DOCS / "examples")
    matplotlib.use("agg")
    notebook = json.loads((DOCS / "examples" / "metrics.ipynb").read_text())
    variables: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(compile("".join(cell["source"]), cell["id"], "exec"), variables)
    assert variables["accuracy"] == {"easy": 4 / 8, "hard": 3 / 8}
    lines = [axis.lines[0] for axis in variables["axes"]]  # type: ignore[attr-defined]
    assert [list(line.get_ydata()) for line in lines] == [[0.5, 0.75], [1, 0.25]]


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(
    _git("rev-parse", "--is-shallow-repository").stdout.strip() != "false",
    reason="needs the project's history",
)
def test_the_commits_that_pages_name_are_in_the_history() -> None:
    """So that who reads a number can have the code that it is from."""
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    named = {
        (page.name, commit)
        for page in pages
        for commit in re.findall(r"commits?\s+`?([0-9a-f]{7,40})\b", page.read_text())
    }
    assert {commit for _, commit in named} >= {"c9298bb"}
    lost = {
        (page, commit)
        for page, commit in named
        if _git("merge-base", "--is-ancestor", commit, "HEAD").returncode
    }
    assert not lost


def test_every_metric_is_explained() -> None:
    text = (DOCS / "training.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert {*DISTILL.split(), *GRPO.split(), "nll_nats", "perplexity"} - named == {
        f"{part}_code"
        for of in ("student", "teacher")
        for part in (f"overlap_mass_{of}", f"max_advantage_{of}", f"min_advantage_{of}")
    }  # named by their pattern

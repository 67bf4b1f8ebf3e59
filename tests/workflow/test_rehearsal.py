"""A config of paper size, executed to its report on this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT

from opd.core import marked
from opd.core.files import read_json
from opd.stages.fresh import read_plan
from opd.stages.registry import STAGES

pytestmark = pytest.mark.workflow
# Made in the miniature world, adopted, or about pairs of which there are too few here.
PROBES = [
    f"results/large-rehearsal/probes/{name}/s0/digest.json"
    for name in yaml.safe_load(Path(__file__).with_name("rehearsed.yaml").read_text())["probes"]
]
NOT_HERE = {"init", "corpus", "dataset", "forecast", "outcome", "claims"}


def rehearse(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "opd", "rehearse", "--configfile", "rehearsed.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": ""}
    return subprocess.run(
        [*command, *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's workflow beside the config."""
    root = tmp_path_factory.mktemp("rehearsal")
    for name in ("Snakefile", "workflow", "config"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(Path(__file__).with_name("rehearsed.yaml"), root)
    return root


def test_every_stage_runs_to_a_report_that_is_marked(clone: Path) -> None:
    done = rehearse(clone, "--", "all", *PROBES)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = clone / "rehearsals" / "large"
    results = folder / "results" / "large-rehearsal"
    plan, reason = read_plan(results / "plan.json")
    assert plan and not reason
    there = [folder for folder in plan if (results / folder / "digest.json").exists()]
    made = {entry.stage for folder, entry in plan.items() if entry and folder in there}
    assert made == STAGES.keys() - NOT_HERE
    # Nothing beside the rehearsal's own folder.
    assert {path.name for path in clone.iterdir()} == {
        "Snakefile",
        "workflow",
        "config",
        "rehearsed.yaml",
        "rehearsals",
    }
    for page in (
        results / "report.html",
        results / "tables" / "runs.md",
        folder / "rehearsal.html",
    ):
        assert marked.MARK in page.read_text()
    # Released weights come from the hub of this machine, as does all else.
    manifest = read_json(results / "models" / "released" / "manifest.json")
    assert manifest["cfg"]["hub"] == "lllyx/Qwen3-4B-Base-GRPO"
    assert " jobs were made, 0 failed" in done.stdout
    again = rehearse(clone, "--", "all", *PROBES)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr


def test_what_nothing_stands_in_for_is_named_and_the_rest_runs(clone: Path) -> None:
    strange = "models={strange: {hub: {id: own/strange}}}"
    shown = rehearse(clone, "--config", strange, "--out", "rehearsals/strange", "--", "-n")
    assert shown.returncode == 0, shown.stderr
    assert "note: own/strange: nothing is known that could stand in for it; " in shown.stderr
    wrong = rehearse(clone, "--config", "seedz=1")
    assert wrong.returncode == 2 and "error: seedz: no such key" in wrong.stderr

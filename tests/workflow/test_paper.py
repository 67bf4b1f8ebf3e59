"""The paper's scale, planned by Snakemake itself from nothing: no lock, no hub, no data."""

import re
import shutil
from pathlib import Path

import pytest
from project import ROOT, Project

from opd.core.files import read_json

pytestmark = pytest.mark.workflow


def jobs(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that a dry run ends with."""
    table = output.rpartition("Job stats:")[2]
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@pytest.fixture
def paper(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for variable in ("OPD_DATA_DIR", "OPD_MODEL_DIR"):
        monkeypatch.delenv(variable, raising=False)
    code = tmp_path / "code"
    for part in ("src", "workflow", "config"):
        shutil.copytree(ROOT / part, code / part)
    shutil.copy(ROOT / "Snakefile", code)
    (code / "config" / "hub.lock.yaml").unlink(missing_ok=True)
    paper = Project(project.folder, code)
    paper.config = code / "config" / "paper.yaml"
    return paper


def test_every_run_is_planned_from_a_fresh_clone_without_a_hub(paper: Project):
    output = paper.run("-n")
    assert "not locked, so planned but not fetched: models.mpnet.hub, models.r1-1.5b.hub" in output
    found = jobs(output)
    assert (found["distill"], found["figure"], found["claims"]) == (27, 23, 1)
    assert (found["pair"], found["continuation"]) == (2, 1)
    assert "grpo" not in found and "sft" not in found


def test_teacher_and_cold_start_are_planned_where_released_ones_are_not_taken(paper: Project):
    found = jobs(paper.run("-n", "--config", "use_released=false"))
    assert (found["distill"], found["grpo"], found["sft"]) == (27, 1, 1)
    assert (found["generate"], found["filter"]) == (3, 1)


def test_numbers_below_the_first_level_of_a_setting_are_numbers(paper: Project):
    """Snakemake itself gives them as text."""
    target = "results/paper/models/k-4/s0/digest.json"
    output = paper.run(
        *("-n", "--printshellcmds", target, "--config"),
        "models={k-4: {distill: {loss: {k: 8}, micro_batch: null}}}",
    )
    assert '"loss":{"k":8,"preset":"rethinking_code"}' in output
    assert '"micro_batch"' not in output


def test_jobs_get_settings_of_the_command_line_as_they_were_planned(project: Project):
    rows = {}
    for n in (5, 7):
        project.run(
            "results/tiny/prompts/rl/digest.json",
            "--config",
            f"prompts={{rl: {{world: {{n: {n}}}}}}}",
        )
        manifest = read_json(project.result("prompts/rl/manifest.json"))
        rows[n] = (manifest["cfg"]["source"]["world"]["n"], manifest["numbers"]["prompts"])
    assert rows == {5: (5, 5), 7: (7, 7)}

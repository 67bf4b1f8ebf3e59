"""The paper's scale, planned by Snakemake itself from nothing: no lock, no hub, no data."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from project import ROOT, Project

from opd.core.files import read_json
from opd.plan.artifacts import plan
from opd.plan.outputs import exhibits
from opd.recipes.resolve import read
from opd.stages.artifact import closure
from opd.stages.registry import STAGES

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


def stages(output: str) -> Counter[str]:
    """Stage -> number of its jobs in the dry run; what is read from the hub has a rule of its
    own."""
    counts: Counter[str] = Counter()
    for rule, n in jobs(output).items():
        counts["prompts" if rule == "download" else rule] += n
    return Counter({stage: n for stage, n in counts.items() if stage in STAGES})


def wanted(paper: Project, *settings: str) -> Counter[str]:
    """Stage -> number of artifacts that figures, claims and report of the config are made from."""
    config = read([paper.config], settings)
    made = plan(config, {})
    made |= (shown := exhibits(config, made, paper.code / "config"))
    return Counter(made[folder].stage for folder in closure(shown, made))


def test_every_run_is_planned_from_a_fresh_clone_without_a_hub(paper: Project):
    output = paper.run("-n")
    assert "not locked, so planned but not fetched: models.mpnet.hub, models.r1-1.5b.hub" in output
    planned = stages(output)
    assert planned == wanted(paper) and planned["distill"] == 27
    assert not {"grpo", "sft"} & {*planned}


def test_teacher_and_cold_start_are_planned_where_released_ones_are_not_taken(paper: Project):
    setting = "use_released=false"
    planned = stages(paper.run("-n", "--config", setting))
    assert planned == wanted(paper, setting)
    # Two runs in place of two fetched models, and the responses that one of them is trained on.
    added = planned - wanted(paper)
    assert [added[stage] for stage in ("grpo", "sft", "generate", "filter")] == [1, 1, 1, 1]
    assert not {"distill", "evaluate", "keep"} & {*added}


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

"""The paper's prompt sets made from the authors' files: how many prompts the runs get."""

from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from opd.core import tables
from opd.data import prompts
from opd.data.schemas import PROMPTS
from opd.data.templates import unwrap
from opd.plan.artifacts import plan
from opd.recipes.resolve import resolve
from opd.stages.artifact import closure

pytestmark = pytest.mark.data
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Name -> rows of each set that the authors' files give; OpenThoughts3 is not among ours."""
    raw = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    update_config(raw, yaml.safe_load((ROOT / "config" / "paper-files.yaml").read_text()))
    raw["prompts"]["openthoughts"]["path"]["file"] = "dapo-math-17k.parquet"  # planned, not made
    planned = plan(resolve(raw), {})
    sets = ("dapo", "dapo-boxed", "dapo-en", "deepmath", "aime24", "aime25", "amc23-83", "amc23-40")
    root = tmp_path_factory.mktemp("made")
    rows = {}
    for folder in closure([f"prompts/{name}" for name in sets], planned):
        artifact = planned[folder]
        paths = {
            name: Path(path) if Path(path).is_absolute() else root / path
            for name, path in zip(artifact.cfg["inputs"], artifact.inputs, strict=True)
        }
        (root / folder).mkdir(parents=True)
        prompts.run(artifact.cfg, paths, root / folder)
        read = tables.read(root / folder / "prompts.parquet", PROMPTS)
        rows[folder.removeprefix("prompts/")] = read.to_pylist()
    return rows


def test_epochs_have_the_steps_that_the_runs_are_given(made):
    """64 prompts a step: 279 of DAPO, 220 of its English part and of DeepMath."""
    assert len(made["dapo"]) == 17890 and 17890 // 64 == 279
    assert len(made["dapo-questions"]) == 14116
    assert len(made["dapo-en"]) == 14089 and 14089 // 64 == 220
    assert len(made["deepmath"]) // 64 == 220


def test_both_templates_ask_the_same_questions_in_the_same_order(made):
    asked = [unwrap(row["prompt"], "dapo")[0].strip() for row in made["dapo"]]
    assert [row["question"].strip() for row in made["dapo-boxed"]] == asked
    assert all(row["prompt"].endswith("within \\boxed{}.") for row in made["dapo-boxed"])
    assert all(row["prompt"].startswith("Solve the following") for row in made["dapo"])


def test_benchmarks_have_their_problems(made):
    sizes = {name: len(made[name]) for name in ("aime24", "aime25", "amc23-83", "amc23-40")}
    assert sizes == {"aime24": 30, "aime25": 30, "amc23-83": 83, "amc23-40": 40}

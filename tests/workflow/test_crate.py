"""A finished workflow is exported as a crate that the RO-Crate community's validator accepts."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from project import ROOT, Project

from opd.stages import check, on_disk

VALIDATE = Path(__file__).with_name("validate_crate.py")


@pytest.fixture(scope="module")
def validator() -> str:
    """Python with roc-validator; where it is missing the test skips, in CI it fails."""
    path = os.environ.get("OPD_CRATE", str(ROOT / ".venv-crate" / "bin" / "python"))
    if Path(path).is_file():
        return path
    if os.environ.get("CI"):
        pytest.fail(f"no {path}: make .venv-crate/installed")
    pytest.skip(f"no {path}: make .venv-crate/installed, or name another in OPD_CRATE")


def exported(project: Project, out: Path, *options: str) -> None:
    """Run the command as a user does, where the workflow lies."""
    command = [sys.executable, "-m", "opd", "export", str(project.result("")), "--out", str(out)]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=project.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def validated(validator: str, crate: Path, severity: str = "REQUIRED") -> tuple[int, list[str]]:
    """How many checks the validator has made, and what it found."""
    command = [validator, str(VALIDATE), str(crate), severity]
    done = subprocess.run(command, capture_output=True, text=True)
    *issues, last = done.stdout.splitlines() or [done.stderr]
    counts = re.fullmatch(r"(\d+) checks, (\d+) issues", last)
    assert counts, done.stdout + done.stderr
    assert int(counts[2]) == len(issues)
    return int(counts[1]), issues


def test_the_crate_of_a_workflow_validates_and_stays_whole(
    finished: Project, validator: str, tmp_path: Path
):
    crate = tmp_path / "crate.zip"
    exported(finished, crate, "--full")
    checks, issues = validated(validator, crate)
    assert issues == []
    assert checks > 80  # those of RO-Crate and of all four profiles of a run
    with zipfile.ZipFile(crate) as archive:
        archive.extractall(tmp_path / "unpacked")
    root = tmp_path / "unpacked" / "results" / "tiny"
    folders = [path.parent for path in root.rglob("digest.json")]
    there = [p for p in finished.result("").rglob("digest.json") if "payload" not in p.parts]
    assert len(folders) == len(there) > 30
    made = on_disk.behind(on_disk.at(root, folder) for folder in folders)
    assert not [finding for one in made for finding in check.shown(one)]
    # what it would be run again with
    config = yaml.safe_load((root / "config.yaml").read_text())
    assert config == yaml.safe_load(finished.config.read_text())


def test_the_crate_of_one_figure_validates_with_an_agent(
    finished: Project, validator: str, tmp_path: Path
):
    crate = tmp_path / "crate"
    exported(finished, crate, "--target", "overlap", "--agent", "Ada <https://orcid.org/0-0>")
    checks, issues = validated(validator, crate, "RECOMMENDED")
    assert checks > 80  # those that are required, too
    # What is left to be wished for: addresses of the tools, a publisher, an affiliation.
    assert {issue.split(":")[0].rpartition(" ")[2].rpartition(".")[0] for issue in issues} <= {
        "process-run-crate-0.5_3",
        "process-run-crate-0.5_4",
        "process-run-crate-0.5_5",
        "ro-crate-1.1_22",
        "ro-crate-1.1_30",
    }


def test_the_validator_sees_what_is_wrong(finished: Project, validator: str, tmp_path: Path):
    """It is the real one: without its main entity, or a file that is listed, a crate is refused."""
    crate = tmp_path / "crate"
    exported(finished, crate, "--target", "overlap")
    (crate / "Snakefile").unlink()
    path = crate / "ro-crate-metadata.json"
    graph = json.loads(path.read_text())
    for entity in graph["@graph"]:
        if entity["@id"] == "#run":
            del entity["instrument"]
    path.write_text(json.dumps(graph))
    _, issues = validated(validator, crate)
    assert any("Snakefile" in issue for issue in issues)
    assert any("instrument" in issue for issue in issues)

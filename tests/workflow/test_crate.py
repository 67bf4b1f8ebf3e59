"""A finished workflow is exported as a crate that the RO-Crate community's validator accepts."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from project import ROOT, Project

from opd.provenance import audit
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


PARTS = {
    "name": "parts",
    "papers": [],
    "targets": ["t", "course", "report"],
    "world": {"rl_times": 0.6, "other_times": 0.1},
    "defaults": {
        "init": {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 32},
        "sft": {"batch_size": 8, "lr": 1.0e-2, "max_tokens": 64},
        "evaluations": {"max_prompt_tokens": 32, "batch_size": 64},
    },
    "prompts": {"easy": {"world": {"split": "easy", "n": 8}}},
    "sft_data": {"mixed": {"world": {"n": 64}}},
    "models": {
        "init": {"init": {}},
        "base": {"sft": {"student": "init", "data": "mixed", "steps": 2}},
        "longer": {"sft": {"student": "init", "data": "mixed", "steps": 4, "keep_steps": [2]}},
    },
    "benchmarks": {"easy": {"task": "opd_world", "prompts": "easy"}},
    "protocols": {"one": {"samples": 1, "temperature": 0.7, "top_p": 1.0, "max_new_tokens": 12}},
    "evaluations": {"held-out": {"benchmarks": ["easy"], "protocol": "one"}},
    "figures": {
        "course": {
            "title": "Its loss",
            "kind": "curves",
            "metrics": [{"name": "loss"}],
            "series": [{"label": "longer", "model": "longer"}],
        }
    },
    "tables": {
        "t": {
            "title": "Both",
            "evaluation": "held-out",
            "columns": ["avg:easy", "change:easy"],
            "rows": [
                {"label": "longer", "model": "longer", "base": "base"},
                {"label": "half of it", "model": "longer@2", "base": "base"},
            ],
        }
    },
}


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


@pytest.mark.parametrize("end", [".zip", ".tar.xz"])
def test_small_crates_of_single_seeds_are_put_together_without_training(end: str, tmp_path: Path):
    """What is made of both seeds is made anew, from scores alone, and an audit finds all of it."""
    together = tmp_path / "together"
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "tiny.yaml").write_text(yaml.safe_dump({**PARTS, "seeds": [seed]}))
        part = Project(folder)
        part.run()
        crate = tmp_path / f"{seed}{end}"
        exported(part, crate, "--small")
        shutil.unpack_archive(crate, together)
    if end == ".zip":
        for path in together.rglob("*"):  # as unzip does, and shutil does not
            os.utime(path, (315_532_800,) * 2)
    assert not [*together.rglob("*.safetensors"), *together.rglob("responses.parquet")]
    (together / "tiny.yaml").write_text(yaml.safe_dump({**PARTS, "seeds": [0, 1]}))
    project = Project(together)
    assert project.would_make() == {"tables/t", "figures/course", "report"}
    command = [sys.executable, "-m", "opd", "plan", "--json", "--configfile", "tiny.yaml"]
    done = subprocess.run(
        command, cwd=together, env=project.environment, capture_output=True, text=True
    )
    states = {job["folder"]: job["state"] for job in json.loads(done.stdout)["artifacts"]}
    assert {name for name, made in states.items() if made != "there"} == project.would_make()
    project.run()
    assert "Seeds: 2" in project.result("tables/t.md").read_text()
    result = audit.audit(project.result(""))
    assert not audit.fails(result), [x for x in result.audited if x.findings]
    # Weights of six models and two kept steps, and the texts of six evaluations and of the corpus.
    assert len([name for x in result.audited for name in x.left_out]) == 15
    assert project.would_make() == set()


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

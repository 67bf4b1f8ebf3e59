"""A pair that does not fit, in a run that would fetch its weights."""

from pathlib import Path

import pytest
import yaml
from probing import make
from project import Project

from opd.rehearsal import hub

pytestmark = pytest.mark.workflow
CONFIG = {
    "name": "tiny",
    "world": {"rl_times": 0.4, "other_times": 0.1},
    "prompts": {"p": {"world": {"split": "rl", "n": 4}}},
    "models": {
        "s": {"hub": {"id": "org/student", "revision": hub.commit("org/student")}},
        "t": {"hub": {"id": "org/teacher", "revision": hub.commit("org/teacher")}},
        "x": {"distill": {"student": "s", "teacher": "t", "prompts": "p", "steps": 1}},
    },
}


def test_a_run_ends_before_weights_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "hub" / "models" / "org"
    make(models)
    vocabulary = models / "teacher" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"7"', '"seven"'))
    commits = {f"models/org/{name}": hub.commit(f"org/{name}") for name in ("student", "teacher")}
    project = Project(tmp_path)
    project.config.write_text(yaml.safe_dump(CONFIG))
    requests: list[str] = []
    with hub.served(tmp_path / "hub", commits, requests) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        said = project.run("results/tiny/models/x/s0/digest.json", ok=False)
    about = "error: models/x (student s, teacher t): teacher: student and teacher have different"
    assert len([line for line in said.splitlines() if line.startswith(about)]) == 1, said
    assert "error: nothing was fetched or started" in said
    assert requests and not [x for x in requests if "safetensors" in x]
    results = project.folder / "results" / "tiny"
    assert {path.name for path in results.iterdir()} == {"plan.json", "config.yaml"}

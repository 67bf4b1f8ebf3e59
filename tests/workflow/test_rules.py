"""Each stage has a rule of its own name, by which Snakemake is told what to do with it."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from project import TINY, Project

pytestmark = pytest.mark.workflow


@pytest.fixture
def empty(tmp_path: Path) -> Project:
    return Project(tmp_path)


def rules(output: str) -> set[str]:
    return {*re.findall(r"^(?:local)?rule (\w+):$", output, re.MULTILINE)}


def test_until_and_omit_from_take_the_name_of_a_stage(empty: Project):
    every = rules(empty.run("-n"))
    assert {"sft", "distill", "evaluate", "dedup", "figure", "table", "report"} <= every
    until = rules(empty.run("-n", "--until", "distill"))
    assert {"prompts", "sft", "distill"} <= until and not until & {"evaluate", "table", "report"}
    without = rules(empty.run("-n", "--omit-from", "distill"))
    assert {"sft", "evaluate"} <= without and not without & {"distill", "report"}


def test_resources_and_threads_are_set_by_the_name_of_a_stage(empty: Project):
    asked = ("distill:mem_mb=1234", "figure:runtime=77")
    output = empty.run("-n", "--set-resources", *asked, "--set-threads", "sft=2")
    jobs = re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", output, re.MULTILINE | re.DOTALL)
    for name, text in jobs:
        assert ("mem_mb=1234," in text) is (name == "distill"), text
        assert ("runtime=77," in text) is (name == "figure"), text
        assert ("threads: 2" in text) is (name == "sft"), text


def test_a_command_runs_the_stage_of_its_own_rule(empty: Project):
    """Rules are made in a loop: a name in a command would be that of the last."""
    output = empty.run("-n", "--printshellcmds")
    commands = re.findall(r"\$OPD_PYTHON_(\w+)\" -m opd stage (\w+) .*?/(\w+)/", output)
    assert len(commands) > 20 and all(python == stage for python, stage, _ in commands)
    jobs = re.findall(r"^rule (\w+):\n.*?opd stage (\w+) ", output, re.MULTILINE | re.DOTALL)
    assert len(jobs) == len(commands) and all(rule == stage for rule, stage in jobs)


def test_a_rule_is_forced_by_its_name(finished: Project):
    made = finished.would_make("-R", "claims")
    assert made == {"claims", "report"}
    made = finished.would_make("--forcerun", "distill")
    assert {"models/forward/s0", "evaluations/held-out/forward/s0", "report"} <= made
    assert not [name for name in made if name.startswith(("prompts", "sft_data"))]


def test_a_path_with_a_space_or_a_shells_characters_is_one_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a plain input below OPD_DATA_DIR, and of an interpreter: nothing in them is executed."""
    project = Project(tmp_path)
    odd = tmp_path / "my data; $(touch executed) 'it' & \"so\""
    odd.mkdir()
    (odd / "labelled file.jsonl").write_text(TINY.with_name("labelled.jsonl").read_text())
    python = odd / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("OPD_DATA_DIR", str(odd))

    def change(config: dict[str, Any]) -> None:
        config["prompts"]["labelled"] = {"path": {"file": "labelled file.jsonl"}}
        config["interpreters"] = {"light": str(python)}

    project.edit(change)
    project.run("results/tiny/prompts/labelled/digest.json")
    assert not (tmp_path / "executed").exists()

"""Commands of the rules: no path in them is run, and they stay within what the system takes, also
with many seeds."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from rules import rules

from opd.core.files import canonical
from opd.plan import artifacts as plan
from opd.plan import outputs
from opd.recipes import resolve
from opd.stages import artifact

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
LONGEST = 128 * 1024  # of one argument on Linux (MAX_ARG_STRLEN), its last zero included
SEEDS = 8


@pytest.fixture(scope="module")
def artifacts() -> dict[str, artifact.Artifact]:
    config = resolve.read([ROOT / "config/paper.yaml"], [f"seeds={[*range(SEEDS)]}"])
    made = plan.plan(config, {})
    return made | outputs.exhibits(config, made, ROOT / "config")


def test_every_path_in_a_command_is_quoted() -> None:
    """By Snakemake (:q), or as a variable in double quotes. Names of stages and of results folders
    are words."""
    commands = {name: rule["shell"] for name, rule in rules().items() if rule["shell"]}
    text = (ROOT / "workflow/rules/common.smk").read_text()
    commands |= dict(enumerate(re.findall(r"^ +shell\('(.*)'\)$", text, re.MULTILINE)))
    assert {"distill", "figure", "table", "claims", "report", "release", 0} <= commands.keys()
    words = {"params.stage", "PLAN"}
    for name, command in commands.items():
        places = re.findall(r"{(.*?)}", command)
        assert [place for place in places if place not in words and place[-2:] != ":q"] == [], name
        assert re.findall(r"(?<!\")\$|\$[\w{}.]*(?![\w{}.\"])", command) == [], name


def test_settings_that_are_an_argument_are_short_enough(
    artifacts: dict[str, artifact.Artifact],
) -> None:
    commands = {name: rule["shell"] for name, rule in rules().items()}
    lengths: dict[str, int] = {}
    for one in artifacts.values():
        if "--cfg {params.cfg:q}" in commands[one.stage]:
            lengths[one.stage] = max(lengths.get(one.stage, 0), len(canonical(one.cfg).encode()))
    assert {"distill", "figure", "claims"} <= lengths.keys() and "report" not in lengths
    assert max(lengths.values()) < LONGEST / 2, lengths


def test_the_reports_settings_arrive_whatever_their_length(
    artifacts: dict[str, artifact.Artifact], tmp_path: Path
) -> None:
    report = artifacts["report"]
    cfg = canonical(report.cfg)
    assert len(cfg.encode()) > LONGEST
    given = tmp_path / "given"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncat "$6" > {given}\necho "$#"\n')
    python.chmod(0o755)
    inputs = [f"results/paper/{folder}/digest.json" for folder in report.inputs]
    values = {
        "{params.cfg:q}": shlex.quote(cfg),
        "{params.stage}": "report",
        "{input:q}": " ".join(inputs),
        "{output.digest:q}": "digest.json",
        "{output.html:q}": "report.html",
        "{log:q}": str(tmp_path / "log"),
    }
    command = rules()["report"]["shell"]
    for place, value in values.items():
        assert place in command
        command = command.replace(place, value)
    # As Snakemake runs what is too long for `bash -c`: from a file.
    script = tmp_path / "script.sh"
    script.write_text(f"set -euo pipefail; OPD_PYTHON_report={python}; {command}")
    subprocess.run(["bash", script], check=True, cwd=tmp_path)
    assert given.read_text() == cfg
    # -m opd stage report --cfg FILE --input FILES --output FILE --copy FILE=PATH
    assert (tmp_path / "log").read_text() == f"{11 + len(inputs)}\n"

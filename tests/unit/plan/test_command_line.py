"""What Snakemake is asked for under other names than those of files."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from opd.core.errors import UserError
from opd.plan import command_line
from opd.stages.artifact import Artifact

STAGES = {
    "models/small/s0": "sft",
    "models/small/s1": "sft",
    "prompts/new": "dedup",
    "tables/headline": "table",
    "figures/a_paper/fig06": "figure",
    "claims": "claims",
    "report": "report",
}
ARTIFACTS = {folder: Artifact(stage, folder, {}, ()) for folder, stage in STAGES.items()}
RULES = {"all", "sft", "table", "report"}
TABLE = ["results/mini/tables/headline.csv", "results/mini/tables/headline.md"]


def aliases(**options: Any) -> dict[str, list[str]]:
    asked = {"targets": [], "forcerun": [], "until": [], "omit_from": [], **options}
    return command_line.aliases(argparse.Namespace(**asked), RULES, ARTIFACTS, "mini")


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("headline", TABLE),
        ("results/mini/tables/headline", TABLE),
        ("results/mini/tables/headline/payload", TABLE),
        ("fig06", [f"results/mini/figures/a_paper/fig06.{suffix}" for suffix in ("png", "svg")]),
        ("prompts/new", ["results/mini/prompts/new.html"]),
        ("small", [f"results/mini/models/small/s{seed}/digest.json" for seed in (0, 1)]),
        ("results/mini/logs/models/small/s1.log", ["results/mini/models/small/s1/digest.json"]),
        ("claims", [f"results/mini/claims.{suffix}" for suffix in ("html", "json", "md")]),
    ],
)
def test_a_name_of_an_artifact_stands_for_the_files_of_its_rule(
    target: str, files: list[str]
) -> None:
    assert aliases(targets=[target]) == {target: files}


@pytest.mark.parametrize(
    "target",
    [
        *("all", "sft", *TABLE, "./results/mini/report.html", "results/mini/prompts/new.html"),
        "results/mini/models/small/s0/digest.json",
        str(Path("results/mini/claims.json").absolute()),
    ],
)
def test_what_snakemake_knows_is_left_to_it(target: str) -> None:
    assert aliases(targets=[target], forcerun=[target]) == {}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"targets": ["hedline"]}, "target: no artifact is called 'hedline'; did you mean 'head"),
        ({"targets": ["my.yaml"]}, "my.yaml is a config, no target; snakemake --configfile my."),
        ({"targets": ["results/x/report.html"]}, "target: results/x/report.html is of another con"),
        ({"until": ["hedline"]}, "--until: no artifact is called 'hedline'; did you mean 'head"),
        (
            {"forcerun": ["small/s1"]},
            "--forcerun: small/s1 is neither a rule nor a file that one makes; write "
            "results/mini/models/small/s1/digest.json",
        ),
    ],
)
def test_what_nothing_is_called_is_an_error(options: dict[str, list[str]], line: str) -> None:
    with pytest.raises(UserError) as error:
        aliases(**options)
    assert line in str(error.value)


def test_other_programs_ask_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/pytest", "fig06"])
    assert not command_line.given().targets
    for program in ("/x/bin/snakemake", "/x/snakemake/__main__.py"):
        monkeypatch.setattr("sys.argv", [program, "-n", "fig06", "-R", "sft"])
        assert command_line.given().targets == ["fig06"]
        assert [*command_line.given().forcerun] == ["sft"]

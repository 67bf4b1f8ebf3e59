"""The locks in envs/ say what pyproject.toml says: a version is chosen in one place only."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(lines: list[str]) -> set[tuple[str, str]]:
    """Name and version of the requirements that have an exact one; a lock that serves several
    versions of Python may hold more than one of a name."""
    found = set()
    for line in lines:
        if match := re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", line):
            found.add((match[1].lower().replace("_", "-"), match[2]))
    return found


def lock(name: str) -> set[tuple[str, str]]:
    return pins((ROOT / "envs" / name).read_text().splitlines())


def conda(name: str) -> set[tuple[str, str]]:
    return pins(yaml.safe_load((ROOT / "envs" / name).read_text())["dependencies"][-1]["pip"])


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", ["train", "vllm", "dev"]),
        ("workflow.txt", ["slurm"]),
        ("gpu.yaml", ["train", "vllm"]),
        ("workflow.yaml", ["slurm"]),
    ],
)
def test_locks_hold_what_pyproject_asks_for(file: str, extras: list[str]) -> None:
    locked = conda(file) if file.endswith("yaml") else lock(file)
    wanted = [*PROJECT["dependencies"], *(r for extra in extras for r in EXTRAS[extra])]
    assert pins(wanted) <= locked, "run `make lock`"
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted}
    assert names <= {name for name, _ in locked}, "run `make lock`"


@pytest.mark.parametrize(
    ("environment", "of"), [("gpu.yaml", "constraints.txt"), ("workflow.yaml", "workflow.txt")]
)
def test_conda_environments_agree_with_the_locks(environment: str, of: str) -> None:
    assert conda(environment) <= lock(of), "run `make lock`"

"""The locks in envs/ say what pyproject.toml says: a version is chosen in one place only."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from opd.doctor import envs

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.11.9", "3.12.4")


def conda(name: str) -> dict[str, str]:
    listed = yaml.safe_load((ROOT / "envs" / name).read_text())["dependencies"][-1]["pip"]
    return {canonical(one): version for one, version in (line.split("==") for line in listed)}


def asked(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [Requirement(line) for line in lines]


def test_locks_are_of_what_pyproject_asks_for_now() -> None:
    assert not envs.old(ROOT / "pyproject.toml", ROOT / "envs"), "run `make lock`"


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ('"jinja2",', '"jinja2<9",'),
        ('"jinja2",', ""),
        ('"trl==1.16.0",', '"trl==1.16.1",'),
        ("python-dateutil<3", "python-dateutil<4"),
        ('requires-python = ">=3.11"', 'requires-python = ">=3.12"'),
    ],
)
def test_an_edit_of_what_is_asked_for_makes_locks_old_and_no_other(
    tmp_path: Path, was: str, now: str
) -> None:
    edited, text = tmp_path / "pyproject.toml", (ROOT / "pyproject.toml").read_text()
    assert was in text
    edited.write_text(text.replace(was, now) + "\n# why not\n")
    assert envs.old(edited, ROOT / "envs") == [*envs.FILES]
    edited.write_text(text.replace("line-length = 100", "line-length = 99") + "\n# why not\n")
    assert not envs.old(edited, ROOT / "envs")
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    (tmp_path / "envs" / "gpu.yaml").write_text("dependencies: []\n")
    assert envs.old(edited, tmp_path / "envs") == ["gpu.yaml"]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("file", "extras"),
    [("constraints.txt", ["train", "slurm", "export", "dev"]), ("vllm.txt", ["train", "vllm"])],
)
def test_locks_hold_what_pyproject_asks_for(file: str, extras: list[str], python: str) -> None:
    pinned = envs.pins(ROOT / "envs" / file, python)
    for one in asked(*extras):
        assert pinned[canonical(one.name)] in one.specifier, "run `make lock`"


@pytest.mark.parametrize(
    ("environment", "of", "extras"),
    [
        ("gpu.yaml", "vllm.txt", ["train", "vllm"]),
        ("workflow.yaml", "constraints.txt", ["slurm"]),
    ],
)
def test_conda_environments_agree_with_the_locks(
    environment: str, of: str, extras: list[str]
) -> None:
    theirs = conda(environment)
    assert theirs.items() <= envs.pins(ROOT / "envs" / of, PYTHONS[0]).items(), "run `make lock`"
    assert {canonical(one.name) for one in asked(*extras)} <= theirs.keys(), "run `make lock`"


def test_a_wheel_holds_the_templates_of_pages() -> None:
    """It holds every file of the package that git does not ignore."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build == {"targets": {"wheel": {"packages": ["src/opd"]}}}
    folders = (ROOT / "src" / "opd").glob("*/pages")
    pages = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in pages} == {".j2", ".css", ".js", ".mplstyle"}
    ignored = subprocess.run(["git", "check-ignore", *pages], cwd=ROOT, capture_output=True)
    assert (ignored.returncode, ignored.stdout) == (1, b"")


def test_pins_are_those_of_a_version_of_python_on_this_system(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# Made.\nPy_YAML.x==6.0.3\n\n"
        "scipy==1.17.1 ; python_full_version < '3.12'\n"
        "scipy==1.18.1 ; python_full_version >= '3.12'\n"
        "pywin32==312 ; sys_platform == 'win32'\n"
        "extra[one]==1 # why\n"
    )
    assert envs.pins(lock, "3.11.9") == {"py-yaml-x": "6.0.3", "scipy": "1.17.1", "extra": "1"}
    assert envs.pins(lock, "3.12.0")["scipy"] == "1.18.1"


def test_every_package_of_a_lock_has_one_version() -> None:
    for file in ("constraints.txt", "vllm.txt"):
        lines = (ROOT / "envs" / file).read_text().splitlines()
        plain = [re.split(r"==", line)[0] for line in lines if ";" not in line and "==" in line]
        assert len(plain) == len({*plain})

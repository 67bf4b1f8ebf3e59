"""A finished run of the tiny config, shared by the tests of one session, and copies of it."""

import shutil
from pathlib import Path

import pytest
from project import Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of the tiny config to its end. Do not change it: take a ``copy``."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.run()
    return project


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished run, Snakemake's own records included, to be changed at will."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty working directory."""
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")

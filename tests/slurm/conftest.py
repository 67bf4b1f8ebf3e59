"""A cluster for all tests of a session, and a finished run on it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clone import WORKFLOW, Clone
from cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real Slurm, with daemons and files of its own. What cannot be set up fails: no test here is
    ever skipped."""
    if not os.environ.get("OPD_SLURM_INSIDE"):
        pytest.fail("these tests run by `make test-slurm`: the cluster is a machine of its own")
    if not WORKFLOW.is_file():
        pytest.fail(f"no {WORKFLOW}: the environment of `make install`")
    # Not where pytest keeps files: other users than root have to get there.
    folder = Path(tempfile.mkdtemp(prefix="opd-slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    """Where a test puts its clone."""
    return cluster.folder / request.node.name


@pytest.fixture(scope="session")
def finished(cluster: Cluster) -> Clone:
    """A clone in which the small config has run to its end, by jobs alone. Take a ``copy``."""
    clone = Clone(cluster.folder / "finished", cluster)
    clone.run()
    return clone

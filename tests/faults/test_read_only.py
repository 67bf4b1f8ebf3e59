"""Results that cannot be written: mounted read-only, which binds root too."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from stages import ROOT, Run, environment, mended, only_error

pytestmark = pytest.mark.faults


@pytest.fixture
def read_only(run: Run) -> Iterator[Run]:
    """Mounting needs root, and fails here without."""
    results = run.folder / "results"
    run.forget("tables/accuracy")
    run.forget("models/cold/s0")
    subprocess.run(["mount", "--bind", results, results], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", results], check=True)
    yield run
    # The test takes it off itself where it comes to its end.
    subprocess.run(["umount", results], stderr=subprocess.DEVNULL)


def test_results_that_are_read_only(whole: Run, read_only: Run, tried) -> None:
    for name in ("tables/accuracy", "models/cold/s0"):
        ended = read_only.make(name)
        assert ended.status == 2
        assert "Read-only file system" in only_error(ended)
        assert "results/" in only_error(ended)
        tried("results that are read-only", read_only.artifacts[name].stage)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", ROOT / "Snakefile"]
    done = subprocess.run(
        [*command, "--configfile", "tiny.yaml"],
        cwd=read_only.folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode and ("Read-only file system" in said or "Write-protected" in said), said
    subprocess.run(["umount", read_only.folder / "results"], check=True)
    mended(read_only, "models/cold/s0", {}, set())
    mended(read_only, "tables/accuracy", whole.digests(), whole.files())

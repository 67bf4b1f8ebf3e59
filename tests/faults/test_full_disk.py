"""A disk that is full: a stage of each kind on a small file system of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stages import Run, mended, only_error

pytestmark = pytest.mark.faults

MEGABYTES = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory; mounting needs root, and fails here without."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "opd", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, free: int) -> Path:
    """A file that leaves ``free`` KiB."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, ballast.stat().st_size - free * 1024))
    return ballast


# KiB that are left: for nothing, for some of what the stage writes.
@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("tables/accuracy", (0, 8)),
        ("figures/overlap", (0, 24)),
        ("models/init/s0", (0, 32)),
        ("models/forward/s0", (0, 256)),
        ("generations/rollouts/s0", (0, 16)),
    ],
)
def test_a_full_disk(whole: Run, disk: Path, name: str, free: tuple[int, ...], tried) -> None:
    run = whole.copy(disk / "run")
    digests, files = run.digests(), run.files()
    for left in free:
        run.forget(name)
        ballast = fill(disk, left)
        # Its log lies elsewhere: on a disk with no room at all it would be empty.
        ended = run.make(name, log=str(disk.with_name("log")))
        assert ended.status == 2, ended.log
        said = only_error(ended)
        assert any(w in said for w in ("no room", "disk is full", "cannot be written")), said
        assert not (run.results / name / "digest.json").exists()
        assert {f: data for f, data in run.digests().items() if digests.get(f) != data} == {}
        ballast.unlink()
        mended(run, name, digests, files)
        tried("a full disk", run.artifacts[name].stage)

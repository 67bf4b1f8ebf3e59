"""Two that want to make the same: stages of one artifact, and Snakemake runs of one folder."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stages import ROOT, TINY, Run, environment

from opd.stages import lock

pytestmark = pytest.mark.faults


def first_line(log: Path) -> str:
    deadline = time.monotonic() + 300
    while "\n" not in (text := log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return text.splitlines()[0]


def test_two_stages_of_one_artifact(run: Run, tried) -> None:
    digests, files, name = run.digests(), run.files(), "contamination/easy-in-rl"
    identity = run.identity(name)
    run.forget(name)
    scratch = run.store / ".scratch" / identity
    with lock.alone(scratch):
        os.utime(scratch / lock.OWNER, (time.time() - 42,) * 2)
        logs = [run.folder / "a.log", run.folder / "b.log"]
        both = [run.start(name, log) for log in logs]
        waiting = f"waiting for process {os.getpid()} on {platform.node()}, last heard "
        for log in logs:
            line = first_line(log)
            assert line.startswith(waiting) and line.endswith(" s ago")
            assert 42 <= int(line.removeprefix(waiting).split()[0]) < 400
        assert not (run.results / name / "digest.json").exists()
    assert [process.wait() for process in both] == [0, 0]
    said = [log.read_text().splitlines()[-1] for log in logs]
    assert sorted(line.partition(":")[0] for line in said) == ["found in the store", "made"]
    assert run.digests() == digests and run.files() == files
    tried("two processes that make one artifact", "contamination")


def snakemake(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--rerun-incomplete"]
    command += ["--snakefile", str(ROOT / "Snakefile"), *arguments, "--configfile", str(TINY)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_two_snakemakes_on_one_folder(tmp_path: Path, tried) -> None:
    """The second changes nothing and says why; after a kill the lock is taken off by hand."""
    target = "results/tiny/prompts/easy/digest.json"
    first = snakemake(tmp_path, target)
    deadline = time.monotonic() + 300
    # Each lock names what a run makes.
    locks = tmp_path / ".snakemake" / "locks"
    while not any(target in path.read_text() for path in locks.glob("*output*")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGSTOP)  # in the middle of what it does
    there = sorted(tmp_path.glob("results/**/*"))
    second = snakemake(tmp_path, target)
    said = second.communicate()[0]
    assert second.returncode and "Directory cannot be locked" in said and "--unlock" in said
    assert sorted(tmp_path.glob("results/**/*")) == there
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    for arguments in (["--unlock"], [target]):
        done = snakemake(tmp_path, *arguments)
        said = done.communicate()[0]
        assert done.returncode == 0, said
    assert (tmp_path / target).is_file()
    tried("two Snakemakes on one folder, one of them killed", "Snakemake")

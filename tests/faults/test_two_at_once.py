"""Two that want to make the same: stages of one artifact, and Snakemake runs of one folder."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stages import ROOT, Run, environment

from opd import owner

pytestmark = pytest.mark.faults


def test_two_stages_of_one_artifact(run: Run, tried) -> None:
    digests, files, name = run.digests(), run.files(), "contamination/easy-in-rl"
    identity = run.identity(name)
    run.forget(name)
    scratch = run.store / ".scratch" / identity
    with owner.alone(scratch):
        os.utime(scratch / owner.OWNER, (time.time() - 42,) * 2)
        both = [run.start(name) for _ in range(2)]
        waiting = f"waiting for process {os.getpid()} on {platform.node()}, last heard "
        for process in both:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith(waiting) and line.endswith(" s ago\n")
            assert 42 <= int(line.removeprefix(waiting).split()[0]) < 400
        assert not (run.results / name / "digest.json").exists()
    said = [process.communicate()[0].splitlines()[-1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(line.partition(":")[0] for line in said) == ["found in the store", "made"]
    assert run.digests() == digests and run.files() == files
    tried("two stages of one artifact", name)


def snakemake(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    config = ROOT / "tests" / "workflow" / "tiny.yaml"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--rerun-incomplete"]
    command += ["--snakefile", str(ROOT / "Snakefile"), *arguments, "--configfile", str(config)]
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
    while not list(tmp_path.glob(".snakemake/locks/*output*")):
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
    tried("two Snakemakes on one folder", "all")

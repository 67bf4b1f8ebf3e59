"""The lock on a scratch folder, what it tells those who wait, and the end of a stage that hangs."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from opd.core.errors import UserError
from opd.stages import lock as owner

pytestmark = pytest.mark.unit
SOURCE = str(Path(owner.__file__).parents[2])
WATCHED = """
import subprocess, sys, time
from pathlib import Path
from opd.stages import lock as owner
from opd.core.errors import UserError
scratch = Path(sys.argv[1])
with owner.alone(scratch), owner.watched(scratch, "results/x"):
    {body}
print("done")
"""


def stage(scratch: Path, body: str, minutes: float) -> "subprocess.Popen[str]":
    """A process that does something under watch; its log is a file, as in the rules."""
    with scratch.with_name("log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", WATCHED.format(body=body), str(scratch)],
            env={**os.environ, "PYTHONPATH": SOURCE, owner.LIMIT: str(minutes)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def test_one_at_a_time(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    assert not owner.held(scratch)
    with owner.alone(scratch):
        assert owner.held(scratch) and owner.take(scratch) is None
        text = (scratch / owner.OWNER).read_text()
        assert text == f"process {os.getpid()} on {os.uname().nodename}"
    assert not owner.held(scratch)
    lock = owner.take(scratch)
    assert lock and owner.held(scratch)
    lock.close()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(owner.fcntl, "flock", flock)
    with pytest.raises(
        UserError, match=r"owner: files cannot be locked there .*; mount that file system"
    ):
        owner.take(tmp_path / "scratch")


def test_who_was_heard_of_when(tmp_path: Path) -> None:
    path = tmp_path / "owner"
    path.write_text("process 7 on there")
    os.utime(path, (time.time() - 75,) * 2)
    assert owner.life(path) == "process 7 on there, last heard 75 s ago"
    os.utime(path, (time.time() + 3600,) * 2)  # another machine's clock
    assert owner.life(path) == "process 7 on there, last heard 0 s ago"
    assert owner.life(tmp_path / "none") == "another process, last heard 0 s ago"


@pytest.mark.parametrize(
    ("body", "ends"),
    [
        ("time.sleep(60)", True),
        ("subprocess.run(['sleep', '60'])", True),
        # In its scratch folder, in its log, in a file elsewhere that a child holds open.
        ("for i in range(30): (scratch / 'work').write_text(str(i)); time.sleep(0.1)", False),
        ("for i in range(30): print(i, file=sys.stderr, flush=True); time.sleep(0.1)", False),
        (
            "subprocess.run(['sh', '-c', 'exec 3> $0/../far; for i in `seq 30`; do echo 1 >&3;"
            " sleep 0.1; done', str(scratch)])",
            False,
        ),
        ("time.sleep(0.1)", False),
    ],
)
def test_what_writes_nothing_is_ended(tmp_path: Path, body: str, ends: bool) -> None:
    """The limit is well below what the others take in all."""
    started = time.monotonic()
    process = stage(tmp_path / "scratch", body, 1.5 / 60)
    out, _ = process.communicate(timeout=50)
    err = (tmp_path / "log").read_text()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    if not ends:
        assert process.returncode == 0 and out == "done\n" and not lines, err
        return
    assert process.returncode == 2 and time.monotonic() - started < 30
    (line,) = lines
    assert "results/x: nothing was written for 0.025 minutes" in line
    assert "most recent call first" in err[: err.index(line)] and "<module>" in err


def test_without_a_limit_nothing_is_ended(tmp_path: Path) -> None:
    process = stage(tmp_path / "scratch", "time.sleep(3)", 0)
    assert process.communicate(timeout=50)[0] == "done\n"


def test_the_time_that_a_stage_was_suspended_does_not_count(tmp_path: Path) -> None:
    body = "(scratch / 'up').touch(); time.sleep(0.5)"
    process = stage(tmp_path / "scratch", body, 2 / 60)
    while not (tmp_path / "scratch" / "up").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=50)[0] == "done\n"


def test_the_owner_file_tells_of_the_last_progress(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.05)
    scratch = tmp_path / "scratch"
    with owner.alone(scratch), owner.watched(scratch, "x"):
        path = scratch / owner.OWNER
        time.sleep(0.3)
        os.utime(path, (1000, 1000))
        time.sleep(0.3)
        assert path.stat().st_mtime == 1000
        (scratch / "work").write_text("1")
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 1000:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_folders_that_come_and_go_do_not_end_the_watch(tmp_path: Path) -> None:
    done = threading.Event()

    def comes_and_goes() -> None:
        while not done.is_set():
            (tmp_path / "a" / "b" / "c").mkdir(parents=True)
            shutil.rmtree(tmp_path / "a")

    other = threading.Thread(target=comes_and_goes)
    other.start()
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            owner._written(tmp_path)
    finally:
        done.set()
        other.join()

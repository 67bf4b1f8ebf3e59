"""Who works in a scratch folder: a lock, a sign of life, and an end for a stage that hangs.

The lock is on the file ``owner``; child processes inherit it, so it is free once nothing of a
stage is left. The file's time is when the stage was last seen to write anything.
"""

import errno
import faulthandler
import fcntl
import os
import platform
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import IO, Any

from opd.core.errors import UserError

OWNER = "owner"
LIMIT = "OPD_STALL_MINUTES"
BEAT_SECONDS = 10.0
POLL_SECONDS = 0.2
SAY_SECONDS = 60.0


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Hold the scratch folder of one identity: an orphan of a killed run and its replacement never
    work at the same time, the second waits and finds what the first has made. It says for whom."""
    path = scratch / OWNER
    last_line = -SAY_SECONDS
    while (file := take(scratch)) is None:
        if time.monotonic() - last_line >= SAY_SECONDS:
            last_line = time.monotonic()
            print(f"waiting for {life(path)}", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)
    with suppress(OSError):  # a full disk will be told of where it matters
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
    try:
        yield
    finally:
        file.close()


def take(scratch: Path) -> IO[bytes] | None:
    """The locked owner file of a scratch folder, which is made; None where another holds it."""
    path = scratch / OWNER
    while True:
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("ab")
        except FileNotFoundError:  # removed in between, by one that has finished
            continue
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            reason = f"files cannot be locked there ({error.strerror})"
            remedy = "mount that file system with flock, or keep the store on another"
            raise UserError(reason, str(path), remedy) from error
        # Whoever held it may have finished and removed the folder.
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        file.close()


def held(scratch: Path) -> bool:
    """Whether a process works in a scratch folder: one that was killed does not."""
    try:
        with (scratch / OWNER).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def life(path: Path) -> str:
    """Who holds an owner file, and when it was last heard of."""
    try:
        who, seconds = path.read_text(errors="replace"), time.time() - path.stat().st_mtime
    except OSError:
        who, seconds = "", 0.0
    return f"{who or 'another process'}, last heard {max(0.0, seconds):.0f} s ago"


@contextmanager
def repeated(function: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every so many seconds while the block runs, in a thread of its own."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(seconds):
            function()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def watched(scratch: Path, where: str) -> Iterator[None]:
    """Note in the owner file when the stage or a child of it last wrote something: below
    ``scratch``, to its log, or to any file that it holds open. A stage that has written nothing for
    the minutes in ``OPD_STALL_MINUTES`` (0, or not set: no limit) is ended with its children, a
    line about ``where``, and exit status 2. Time in which the process is stopped does not count."""
    limit = 60 * float(os.environ.get(LIMIT) or 0)
    pause = min(BEAT_SECONDS, limit / 4) if limit else BEAT_SECONDS
    before, silent = _written(scratch), 0.0

    def beat() -> None:
        nonlocal before, silent
        now = _written(scratch)
        silent = silent + pause if now == before else 0.0
        before = now
        if not silent:
            with suppress(OSError):
                os.utime(scratch / OWNER)
        if limit and silent >= limit:
            _end(where, limit)

    with repeated(beat, pause):
        yield


def _written(scratch: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """Time and size of every file that this stage may be writing, by its device and inode."""
    written = {}
    # What a stage's processes hold open: journals in the cache, the log if it is a file.
    processes = (os.getpid(), *_descendants(os.getpid()))
    paths = [path for pid in processes for path in glob(f"/proc/{pid}/fd/*")]
    # Unlike rglob, os.walk stands a folder that is gone before it is read.
    paths += [os.path.join(folder, name) for folder, _, names in os.walk(scratch) for name in names]
    for path in paths:
        with suppress(OSError):
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                written[status.st_dev, status.st_ino] = status.st_mtime_ns, status.st_size
    with suppress(OSError):  # its time is ours
        status = (scratch / OWNER).stat()
        written.pop((status.st_dev, status.st_ino), None)
    return written


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    for path in glob(f"/proc/{pid}/task/*/children"):
        with suppress(OSError):  # it has ended
            children += map(int, Path(path).read_text().split())
    return [pid for child in children for pid in (child, *_descendants(child))]


def _end(where: str, limit: float) -> Any:
    # Where it hangs: of use to whoever reads the log.
    faulthandler.dump_traceback(sys.stderr)
    error = UserError(
        f"nothing was written for {limit / 60:g} minutes",
        where,
        "the stage hung and was ended (its stack stands above in this log): start again, what it "
        "has kept is used; stall_minutes in the config is the limit",
    )
    print(f"error: {error}", file=sys.stderr, flush=True)
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(2)

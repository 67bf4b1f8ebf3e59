"""Runs `opd stage STAGE` in forks of one process that has imported what the stages import, and
kills them at points of their progress.

Reads tasks as lines of JSON from standard input: argv, folder (to work in), log, and optionally
``kill`` (the number of the event to end before), ``half`` (write half a file first), ``signal``
(SIGKILL if not given), ``hub`` (a folder that stands for the hub), ``damaged`` (what becomes of its
files on the way) and ``env``. Answers each with a line: exit status and number of events.

An event is a step by which what lies on the disk changes or is looked at: opening, renaming,
removing, linking, listing, syncing a file in the working folder. Between two of them a kill leaves
the same files behind.
"""

import atexit
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import hub

from opd.cli import warm

EVENTS = {
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link"),
    *("os.listdir", "os.scandir", "os.truncate", "shutil.copyfile", "shutil.rmtree"),
}


class Progress:
    """Counts events, and ends the process before the one with number ``kill``."""

    def __init__(self, root: str, kill: int | None, half: bool, by: signal.Signals) -> None:
        self.root, self.kill, self.half, self.by = root, kill, half, by
        self.count, self.thread = 0, threading.get_ident()

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        # The watch over a stage runs in a thread of its own, by the clock.
        if event not in EVENTS or threading.get_ident() != self.thread:
            return
        path = args[0]
        if isinstance(path, int | None):  # of a descriptor that was counted when it was opened
            return
        name = os.fsdecode(path)
        below = os.path.abspath(name).startswith(self.root)
        # Removing a tree names files by their folder's descriptor.
        if below or (args[-1] != -1 and event in ("os.remove", "os.rmdir")):
            self.step(name if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) else None)

    def step(self, written: str | None = None) -> None:
        self.count += 1
        if self.count - 1 == self.kill:
            self.kill = None
            if self.half and written:
                with open(written, "ab") as file:
                    file.write(b'{"half": ')
            os.kill(os.getpid(), self.by)

    def fsync(self, file: Any) -> None:
        """In place of ``os.fsync``, of which Python tells nobody."""
        number = file if isinstance(file, int) else file.fileno()
        if self.count == self.kill and self.half:
            os.ftruncate(number, max(0, os.fstat(number).st_size - 3))
        self.step()


def become(task: dict[str, Any]) -> Progress:
    """Turn a fork into the process that the task asks for."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(task["folder"])
    if task.get("hub"):
        hub.install(Path(task["hub"]), task.get("damaged", {}))
    os.environ.update(task.get("env", {}))
    root, by = os.path.realpath(task["folder"]) + os.sep, signal.Signals[task["signal"]]
    progress = Progress(root, task["kill"], task["half"], by)
    sync = os.fsync
    os.fsync = lambda file: (progress.fsync(file), sync(file))[1]
    sys.addaudithook(progress.hook)
    return progress


def main() -> None:
    warm.preload()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        counted, counting = os.pipe()

        def begin(task: dict[str, Any] = task, counting: int = counting) -> None:
            progress = become(task)
            atexit.register(lambda: os.write(counting, str(progress.count).encode()))

        child = warm.fork(task["argv"], begin)
        os.close(counting)
        _, status = os.waitpid(child, 0)
        count = os.read(counted, 20).decode()
        os.close(counted)
        answer = {"status": os.waitstatus_to_exitcode(status), "events": int(count or -1)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

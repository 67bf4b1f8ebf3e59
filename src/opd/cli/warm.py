"""Warm starts: local stages begin as forks of a process that has imported what they need.

To import torch, transformers and TRL takes longer than much of the work of a small stage. The run
of the workflow makes a folder (``begin``) and names it in ``OPD_WARM``. The first stage that is
started leaves a server there, a process that has imported the stages' modules, and asks it for a
fork of itself; so do all stages after it that would start as that one did: with the same
interpreter, source, environment, limits. Whoever started a stage sees no difference: the process
that was started hands its arguments, environment and open files to the fork, passes signals on, and
ends as the fork ends. If it is killed, so is the fork. Where anything stands in the way, a stage
starts in the usual way.

Only the standard library is imported here, as every stage that starts does so.
"""

import atexit
import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.stages.registry import STAGES

FOLDER = "OPD_WARM"
# In that folder: the process that servers end with, and a lock for who may be starting one.
RUN, TURN = "run", "turn"
READY = ".ready"  # suffix of a file beside the socket of a server that has imported all it will
SERVERS = 3
# Variables that nothing reads before a stage begins, as those whose names begin with OPD_. All
# others may have been read when a library was imported.
READ_LATE = {"PWD", "OLDPWD", "SHLVL", "_", "PYTEST_CURRENT_TEST"}
# What the functions of stages import when they are called.
LATE_IMPORTS = ("datasets", "lm_eval.tasks", "matplotlib.pyplot", "scipy.stats", "trl")
PASSED_ON = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTSTP, signal.SIGCONT),
)
LENGTH, FILES = 8, 253  # bytes of a number that is sent, files that can be sent at a time


# The run


def begin() -> None:
    """Let the stages that this process starts begin warm. Their servers end with this process,
    however it ends. In a process that a run has started, that run's servers are used."""
    if not hasattr(os, "pidfd_open") or os.path.isdir(os.environ.get(FOLDER, "")):  # of Linux
        return
    folder = Path(tempfile.mkdtemp(prefix="opd-warm-"))
    (folder / RUN).write_text(str(os.getpid()))
    os.environ[FOLDER] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


# A stage that starts


def start(argv: Sequence[str]) -> None:
    """Have ``opd`` with these arguments done by a fork of a warm process, and end as it ends.
    Returns where it is to be done in this process."""
    folder = os.environ.get(FOLDER)
    if not folder or list(argv[:1]) != ["stage"]:
        return
    # What asks the hub reads other settings when it is imported.
    stage = STAGES.get(argv[1]) if len(argv) > 1 else None
    if stage is None or stage.network != "never":
        return
    try:
        # What computes nothing starts faster than a server.
        connection = _connect(Path(folder), stage.python == "light")
    except OSError:
        return
    if connection is None:
        return
    with connection:
        status = _done_by(connection, argv)
    if status is None:
        return
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no other handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _connect(folder: Path, only_ready: bool) -> socket.socket | None:
    """A connection to the server of processes that started as this one. If there is none it is
    started, or None is returned: where there are enough others, and with ``only_ready``."""
    path = folder / f"{_key()}.socket"
    if only_ready and not path.with_suffix(READY).exists():
        return None
    with (folder / TURN).open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            path.with_suffix(READY).unlink(missing_ok=True)
        if only_ready or len(list(folder.glob("*.socket"))) >= SERVERS:
            return None
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(128)
        with path.with_suffix(".log").open("w") as log:
            subprocess.Popen(
                [sys.executable, "-m", "opd.cli.warm", str(folder), str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        listener.close()
        connection.connect(str(path))
        return connection


def _key() -> str:
    """Digest of all that a process has from its start and does not change, of what libraries may
    read when they are imported, and of when what is imported was changed last."""
    umask = os.umask(0)
    os.umask(umask)
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    early = {
        name: value
        for name, value in os.environ.items()
        if name not in READ_LATE and not name.startswith("OPD_")
    }
    values: list[Any] = [
        *(sys.executable, list(sys.flags), sys.path[1:], sorted(early.items()), umask, os.nice(0)),
        [resource.getrlimit(getattr(resource, name)) for name in limits],
        [str(signal.getsignal(number)) for number in PASSED_ON],
        *(sorted(os.sched_getaffinity(0)), Path("/proc/self/cgroup").read_text()),
        [(file.path, file.stat().st_mtime_ns) for file in _files(Path(__file__).parents[1])],
        [os.stat(folder).st_mtime_ns for folder in sys.path[1:] if os.path.isdir(folder)],
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir():
            yield entry
        elif entry.name != "__pycache__":
            yield from _files(Path(entry.path))


def _done_by(connection: socket.socket, argv: Sequence[str]) -> int | None:
    """Exit status of the fork that has done it, negative for the signal that has ended it; None if
    there was no fork."""
    files = []  # whatever whoever started this has opened for it: <(...) of a shell is a file, too
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the folder itself was one of them
            if os.get_inheritable(number):
                files.append(number)
    about = {"argv": list(argv), "folder": os.getcwd(), "env": dict(os.environ), "files": files}
    task = json.dumps(about).encode()
    try:
        socket.send_fds(connection, [len(task).to_bytes(LENGTH, "big")], files)
        connection.sendall(task)
        if not connection.recv(1):  # a byte says that there is a fork
            return None
    except OSError:
        return None

    def pass_on(number: int, _: Any) -> None:
        with contextlib.suppress(OSError):
            connection.send(bytes([number]))
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    answer = connection.recv(LENGTH, socket.MSG_WAITALL)
    if len(answer) < LENGTH:
        print("error: the process that stages are forked from was ended", file=sys.stderr)
        return 1
    return int.from_bytes(answer, "big", signed=True)


# The server


def serve(folder: Path, listener: socket.socket) -> None:
    """Have a process for whoever connects, until the run ends."""
    run = os.pidfd_open(int((folder / RUN).read_text()))
    handlers: dict[int, Any] = {
        number: signal.getsignal(number) for number in (*PASSED_ON, signal.SIGCHLD)
    }
    # What the terminal sends to all of its processes is for the stages.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    preload()
    # Libraries that watch for forks end their threads now. Others' would be missing in a fork.
    if not os.fork():
        os._exit(0)
    forks = len(os.listdir("/proc/self/task")) == 1
    Path(listener.getsockname()).with_suffix(READY).touch()
    either: list[Any] = [listener, run]
    while run not in select.select(either, [], [])[0]:
        connection, _ = listener.accept()
        if forks and not os.fork():
            listener.close()
            os.close(run)
            _attend(connection, handlers)
            os._exit(0)
        connection.close()
    shutil.rmtree(folder, ignore_errors=True)  # a run that was killed has not done so


def _attend(connection: socket.socket, handlers: Mapping[int, Any]) -> None:
    """Fork for one who has connected, pass on the signals that come, and say how the fork ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, files, *_ = socket.recv_fds(connection, LENGTH, FILES)
    task = json.loads(connection.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL) or "null")
    if task is None:  # it was ended before it had asked
        return

    def become() -> None:
        # Not of the server's group, as one that is sent to all of a terminal comes twice otherwise.
        os.setpgid(0, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _end_with_parent()
        connection.close()
        # To where no other of them belongs, then each to its own number.
        moved = [fcntl.fcntl(file, fcntl.F_DUPFD, 2 * FILES) for file in files]
        for file in files:
            os.close(file)
        for file, number in zip(moved, task["files"], strict=True):
            os.dup2(file, number)
            os.close(file)
        os.chdir(task["folder"])
        sys.path[0] = task["folder"]
        os.environ.clear()
        os.environ.update(task["env"])
        random.seed()
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()

    pid = fork(task["argv"], become)
    for file in files:
        os.close(file)
    connection.send(b"!")
    stage = os.pidfd_open(pid)
    either: list[Any] = [connection, stage]
    while stage not in select.select(either, [], [])[0]:
        numbers = connection.recv(64)
        if not numbers:  # the process that was started for the stage was killed
            os.kill(pid, signal.SIGKILL)
            break
        for number in numbers:
            # In a group that no shell knows, it would not stop for SIGTSTP.
            os.kill(pid, signal.SIGSTOP if number == signal.SIGTSTP else number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(status.to_bytes(LENGTH, "big", signed=True))


def settle_threads() -> None:
    """Tell libraries that are yet to be imported what their threads do, unless the user has: those
    of tokenizers are none, and those of torch that wait for each other look for 10,000 rounds, not
    for 300,000, before they sleep. On a machine with other work they would take from each other
    what they wait for (tests/bench/README.md)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def preload() -> None:
    """Import what the stages import, as a stage does that needs no hub, and have it stay as it is
    in the memory that forks share."""
    from opd.core.security import Redacting

    sys.stderr = Redacting(sys.stderr)
    settle_threads()
    os.environ["HF_HUB_OFFLINE"] = "1"
    # An allocator that pyarrow brings along and does not use has a thread otherwise.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    modules = [stage.run.partition(":")[0] for stage in STAGES.values()]
    for module in (*LATE_IMPORTS, *modules, "opd.cli.main"):
        with contextlib.suppress(Exception):  # a stage that needs it says what is wrong
            importlib.import_module(module)
    gc.collect()
    gc.freeze()


def fork(argv: Sequence[str], become: Callable[[], None]) -> int:
    """Process id of a fork that does ``become``, then ``opd`` with these arguments, and ends."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from opd.cli.main import main

        become()
        sys.argv = ["opd", *argv]
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        # As an interpreter ends, but for taking apart all that was imported, which takes longer
        # than many stages.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _end_with_parent() -> None:
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))

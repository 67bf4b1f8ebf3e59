"""Stages that begin as forks: nobody can tell the difference, and nothing outlives the run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opd.cli import warm

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")

# A run with a server whose command does what the second argument after `stage corpus` says.
RUN = """
import os, socket, subprocess, sys, types
from pathlib import Path
from opd.cli import warm

warm.begin()
folder = Path(os.environ[warm.FOLDER])
print(folder, flush=True)
for line in sys.stdin:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / line.strip()))
    listener.listen()
    subprocess.Popen([sys.executable, "-c", sys.argv[1], folder, str(listener.fileno())],
                     pass_fds=[listener.fileno()])
    listener.close()
    print("listening", flush=True)
"""
SERVER = """
import socket, sys, types
from pathlib import Path
from opd.cli import warm

module = types.ModuleType("opd.cli.main")
module.main = lambda: exec(sys.argv[3], {})
sys.modules["opd.cli.main"] = module
warm.preload = lambda: None
warm.serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
"""
KEY = "from opd.cli import warm; print(warm._key())"


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Warm:
    """A run, and processes that start in it."""

    def __init__(self, folder: Path) -> None:
        self.work = folder
        self.run = subprocess.Popen(
            [sys.executable, "-c", RUN, SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {warm.FOLDER: ""},
            text=True,
        )
        assert self.run.stdout
        self.folder = Path(self.run.stdout.readline().strip())

    def environment(self, **more: str) -> dict[str, str]:
        same = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        return {**same, warm.FOLDER: str(self.folder), **more}

    def key(self, **more: str) -> str:
        command = [sys.executable, "-c", KEY]
        return subprocess.check_output(command, env=self.environment(**more), text=True).strip()

    def serve(self) -> None:
        assert self.run.stdin and self.run.stdout
        self.run.stdin.write(f"{self.key()}.socket\n")
        self.run.stdin.flush()
        assert self.run.stdout.readline()
        wait(lambda: (self.folder / f"{self.key()}{warm.READY}").exists())

    def start(self, code: str, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "opd", "stage", "corpus", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**more),
            cwd=self.work,
            text=True,
        )

    def does(self, code: str, **more: str) -> tuple[int, str, str]:
        process = self.start(code, **more)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def servers(self) -> list[int]:
        of_run = f"/proc/{self.run.pid}/task/{self.run.pid}/children"
        return [int(pid) for pid in Path(of_run).read_text().split()]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Warm]:
    made = Warm(tmp_path)
    made.serve()
    yield made
    made.run.kill()
    made.run.communicate()
    shutil.rmtree(made.folder, ignore_errors=True)  # of a server that the test has killed


def test_a_fork_has_arguments_environment_folder_and_files_of_who_started_it(run: Warm):
    code = (
        "import os, sys, json, resource;"
        "print(json.dumps([sys.argv[:3], dict(os.environ), os.getcwd(), os.umask(0),"
        " sorted(os.listdir('/proc/self/fd'))[:-1]]));"
        "print('to stderr', file=sys.stderr)"
    )
    status, out, err = run.does(code, OPD_X="ä\n1")
    assert (status, err) == (0, "to stderr\n")
    argv, environment, folder, umask, files = json.loads(out)
    assert argv == ["opd", "stage", "corpus"]
    assert environment == run.environment(OPD_X="ä\n1") and folder == str(run.work)
    assert umask == os.umask(umask) and files == ["0", "1", "2"]


def test_a_fork_reads_what_a_shell_has_opened_for_its_stage(run: Warm):
    code = "import sys; print([open(path).read() for path in sys.argv[4:]])"
    command = f'{sys.executable} -m opd stage corpus "$OPD_CODE" <(echo one) <(echo two)'
    out = subprocess.check_output(
        ["bash", "-c", command], env=run.environment(OPD_CODE=code), text=True
    )
    assert out == "['one\\n', 'two\\n']\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *(("pass", 0), ("raise SystemExit(3)", 3), ("raise SystemExit", 0), ("1 / 0", 1)),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os._exit(7)", 7),
    ],
)
def test_who_started_a_fork_ends_as_it_ends(run: Warm, code: str, status: int):
    ended, out, err = run.does(code)
    assert (ended, out) == (status, "")
    assert ("ZeroDivisionError" in err) == (status == 1)


def test_threads_and_exit_functions_of_a_fork_come_to_their_end(run: Warm):
    code = (
        "import atexit, threading, time;"
        "atexit.register(print, 'at exit');"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()"
    )
    assert run.does(code) == (0, "thread\nat exit\n", "")


def test_forks_draw_other_random_numbers(run: Warm):
    code = "import random; print(random.random())"
    assert len({run.does(code)[1] for _ in range(3)}) == 3


COUNTING = """
import os, signal, sys, time
seen = []
for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda number, _: seen.append(number))
print(os.getpid(), flush=True)
end = time.monotonic() + 20
while len(seen) < 3 and time.monotonic() < end: time.sleep(0.01)
time.sleep(0.2)
print(sorted(seen))
sys.exit(5)
"""
WAITING = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


def test_signals_reach_a_fork_once_each(run: Warm):
    process = run.start(COUNTING)
    assert process.stdout and process.stdout.readline()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (5, f"{sorted([2, 10, 15])}\n")


def test_a_stage_that_is_killed_takes_its_fork_along(run: Warm):
    process = run.start(WAITING)
    assert process.stdout
    fork = int(process.stdout.readline())
    assert alive(fork)
    process.kill()
    wait(lambda: not alive(fork))


def test_a_stage_that_is_stopped_stops_its_fork(run: Warm):
    process = run.start(WAITING)
    assert process.stdout
    fork = int(process.stdout.readline())

    def states() -> set[str]:
        texts = [Path(f"/proc/{pid}/stat").read_text() for pid in (process.pid, fork)]
        return {text.rsplit(")", 1)[1].split()[0] for text in texts}

    process.send_signal(signal.SIGTSTP)
    wait(lambda: states() == {"T"})
    process.send_signal(signal.SIGCONT)
    wait(lambda: states() == {"S"})
    process.kill()


def test_what_runs_outlives_its_server_and_the_next_starts_as_usual(run: Warm):
    process = run.start("import time; print(1, flush=True); time.sleep(1); print(2)")
    assert process.stdout and process.stdout.readline() == "1\n"
    (server,) = run.servers()
    os.kill(server, signal.SIGKILL)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "2\n")
    assert "usage: opd stage" in run.does("pass")[2]


def test_servers_end_with_the_run_however_it_ends_and_forks_stay(run: Warm):
    process = run.start(WAITING)
    assert process.stdout
    fork = int(process.stdout.readline())
    (server,) = run.servers()
    run.run.kill()
    wait(lambda: not alive(server))
    assert alive(fork) and process.poll() is None and not run.folder.exists()
    process.kill()
    wait(lambda: not alive(fork))


def test_a_stage_of_text_and_tables_waits_for_no_server(run: Warm):
    """It takes one that is there: the fork says so, where a start as usual ends with an error."""
    (server,) = run.servers()
    assert run.does("print('forked')") == (0, "forked\n", "")
    os.kill(server, signal.SIGKILL)
    status, out, err = run.does("print('forked')")
    assert (status, out) == (2, "") and "usage: opd stage" in err
    assert not [*run.folder.glob("*.log"), *run.folder.glob(f"*{warm.READY}")]  # none was started


def test_what_libraries_may_have_read_at_their_import_tells_servers_apart(run: Warm, tmp_path):
    keys = [
        *(run.key(), run.key(OMP_NUM_THREADS="7"), run.key(CUDA_VISIBLE_DEVICES="1")),
        *(run.key(PYTHONHASHSEED="1"), run.key(MKL_CBWR="COMPATIBLE"), run.key(ANYTHING="else")),
    ]
    assert len(set(keys)) == 6
    assert run.key(OPD_DATA_DIR="x", PWD="/", SHLVL="9") == keys[0]


def test_an_edited_module_tells_servers_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a" / "b.py"
    file.parent.mkdir()
    file.write_text("x = 1")
    monkeypatch.setattr(warm, "__file__", str(tmp_path / "cli" / "warm.py"))
    before = warm._key()
    assert warm._key() == before
    os.utime(file, (1, 1))
    assert warm._key() != before


def test_only_stages_that_ask_no_hub_and_only_in_a_run_start_warm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warm, "_connect", lambda *_: pytest.fail("it asks"))
    monkeypatch.setenv(warm.FOLDER, "/nowhere")
    for argv in (["fetch"], ["stage"], ["stage", "fetch"], ["stage", "prompts"], ["plan"], []):
        warm.start(argv)
    monkeypatch.delenv(warm.FOLDER)
    warm.start(["stage", "corpus"])


def test_where_there_is_no_server_a_stage_starts_as_usual(tmp_path: Path):
    environment = {**os.environ, warm.FOLDER: str(tmp_path / "gone")}
    command = [sys.executable, "-m", "opd", "stage", "corpus", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: opd stage")


IMPORTED = """
import os, sys
from opd.cli import warm
warm.preload()
import torch
os.waitpid(os.fork() or os._exit(0), 0)
print(len(os.listdir("/proc/self/task")), torch.cuda.is_initialized(), torch.get_num_threads())
print(*sorted({stage.run.partition(":")[0] for stage in warm.STAGES.values()} - {*sys.modules}))
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_server_has_all_modules_of_stages_one_thread_and_no_cuda(threads: str):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, threads)}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    command = [sys.executable, "-c", IMPORTED]
    out = subprocess.check_output(command, env=environment, text=True)
    assert out.splitlines() == [f"1 False {threads}", ""]

"""The process that compares answers: reused, replaced, limited, and never left behind."""

import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from opd.core.errors import UserError
from opd.grading import sandbox

EQUAL = [("\\frac{2}{4}", "\\frac{1}{2}")]
UNEQUAL = [("\\frac{2}{4}", "\\frac{1}{3}")]
HOPELESS = [("9^{9^{9^{9}}}", "5")]


@pytest.fixture
def ask() -> Any:
    process = sandbox.Verifier()
    yield process
    process.stop()


def test_process_is_reused_and_replaced_when_it_dies(ask: sandbox.Verifier) -> None:
    assert ask("rule", EQUAL) is True
    assert ask.process is not None
    first = ask.process.pid
    assert ask("math_verify", UNEQUAL) is False
    assert ask.process.pid == first
    os.kill(first, signal.SIGKILL)
    ask.process.wait()
    assert ask("rule", EQUAL) is True
    assert ask.process.pid != first


def test_all_pairs_have_to_be_equal(ask: sandbox.Verifier) -> None:
    assert ask("rule", EQUAL * 2) is True
    assert ask("rule", EQUAL + UNEQUAL) is False


def test_limits_of_time_and_memory(ask: sandbox.Verifier) -> None:
    before = children_cpu_seconds()
    assert ask("math_verify", HOPELESS) is None
    # With what the start of the process took; sympy alone would not end.
    assert children_cpu_seconds() - before < sandbox.CPU_SECONDS + 5
    assert ask("math_verify", EQUAL) is True
    assert ask.process is not None
    soft, _ = resource.prlimit(ask.process.pid, resource.RLIMIT_AS)
    assert soft == sandbox.MEMORY_BYTES
    # A list of 99,999 x 99,999 zeros.
    assert ask("math_verify", [("\\operatorname{eye}(99999)", "x")]) is not True
    if ask.process is not None:
        status = Path(f"/proc/{ask.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmPeak"))
        assert int(peak.split()[1]) * 1024 <= sandbox.MEMORY_BYTES


HUNGRY = """
import os
from opd.grading import sandbox

def compare(given, truth):
    if given == "much":
        raise MemoryError
    return given == truth

sandbox.COMPARE = {"rule": compare}
sandbox.serve(os.getppid())
"""


def test_want_of_memory_is_told_as_a_limit_and_ends_the_process() -> None:
    asked = '["rule", [["much", "1"]]]\n["rule", [["1", "1"]]]\n'
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY], input=asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["ready", "null"]


@pytest.mark.parametrize("killed", [1, 2])
def test_a_process_that_is_killed_while_it_compares_is_asked_once_more(
    ask: sandbox.Verifier, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    """As an out-of-memory killer does it: that is no verdict on the answer."""
    starts, wait, pids = ask._running, select.select, []

    def stopped() -> Any:
        process = starts()
        if len(pids) < killed:
            os.kill(process.pid, signal.SIGSTOP)  # it answers nothing before it is killed
        return process

    def kill(*of: Any) -> Any:
        assert ask.process is not None
        pids.append(ask.process.pid)
        if len(pids) <= killed:
            os.kill(ask.process.pid, signal.SIGKILL)
        return wait(*of)

    monkeypatch.setattr(ask, "_running", stopped)
    monkeypatch.setattr(select, "select", kill)
    if killed == 1:
        assert ask("rule", EQUAL) is True
    else:
        with pytest.raises(UserError, match=r"compares answers was ended by signal 9, 2 times"):
            ask("rule", EQUAL)
    assert len(set(pids)) == 2 and not any(running(pid) for pid in pids[:killed])
    monkeypatch.undo()
    assert ask("rule", UNEQUAL) is False


def test_a_process_that_gets_no_time_is_not_a_verdict(
    ask: sandbox.Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = ask._running

    def stopped() -> Any:
        process = starts()
        os.kill(process.pid, signal.SIGSTOP)
        return process

    monkeypatch.setattr(ask, "_running", stopped)
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 0.1)
    with pytest.raises(UserError, match="gave no answer within 0 s, 2 times in a row"):
        ask("rule", EQUAL)


def children_cpu_seconds() -> float:
    """Of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_an_interrupted_comparison_leaves_no_answer_behind(
    ask: sandbox.Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask("rule", EQUAL) is True

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(select, "select", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask("rule", EQUAL)
    assert ask("rule", UNEQUAL) is False


def test_threads_get_their_own_answers(ask: sandbox.Verifier) -> None:
    got: dict[int, list[bool | None]] = {0: [], 1: []}

    def work(i: int) -> None:
        got[i] = [ask("rule", (UNEQUAL, EQUAL)[i]) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(i,)) for i in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {0: [False] * 50, 1: [True] * 50}


PARENT = """
import os, time
from opd.grading import sandbox as verifier
ask = verifier.verifier(os.getpid())
assert ask("rule", [("x", "x")])
if os.fork() == 0:  # holds the other end of the process's input
    time.sleep(60)
    os._exit(0)
print(ask.process.pid, flush=True)
time.sleep(60)
"""


def test_process_ends_with_its_parent_though_a_fork_lives_on() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert running(pid)
    parent.kill()
    parent.wait()
    try:
        end = time.monotonic() + 10 * sandbox.PARENT_SECONDS
        while running(pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not running(pid)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()


def running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


GUARDED = """
import sympy
from opd.grading import sandbox as verifier
assert verifier.equal_for_sympy("(x+1)^{2}", "x^{2}+2x+1")
verifier.forbid_code()
for text in ("__import__('os').system('echo ran')", "1+1", "x", "print(1)", "[1]"):
    try:
        print("converted", sympy.sympify(text))
    except Exception:
        pass
print(sympy.sympify("12") + sympy.sympify("1/2"), sympy.sympify("0.5"))
"""


def test_strings_are_not_evaluated() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["25/2", "0.500000000000000"]

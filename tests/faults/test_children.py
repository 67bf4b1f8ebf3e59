"""What becomes of a stage whose children die or hang: workers of vLLM, processes that train."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from stages import HERE, Run, environment, only_error

from opd.models import journal
from opd.stages import lock

pytestmark = pytest.mark.faults

# Every import is told in the log: on a busy machine they take longer than the limit.
TOLD = {"PYTHONVERBOSE": "1"}
FAKE = {"PYTHONPATH": os.pathsep.join([str(HERE / "fake"), environment()["PYTHONPATH"]])}
ROLLOUTS, TRAINED = "generations/rollouts/s0", "models/cold/s0"


def journaled(run: Run) -> journal.Finished:
    found: journal.Finished = {}
    for path in run.store.glob(".cache/responses/*/*.jsonl"):
        found |= journal.read(path)[0]
    return found


def test_a_worker_of_vllm_that_is_killed_or_hangs(run: Run, tried) -> None:
    """As the kernel kills one for want of memory; and one that stands still, within an engine."""
    run.forget(ROLLOUTS)
    run.change(ROLLOUTS, {"backend": "vllm"})
    ended = run.make(ROLLOUTS, env=FAKE)
    assert ended.status == 0, ended.log
    whole = run.digests()
    run.forget(ROLLOUTS)
    ended = run.make(ROLLOUTS, env={**FAKE, "FAKE_VLLM": "SIGKILL:3"})
    assert ended.status == 2
    assert "a vLLM worker ended with exit status -9" in only_error(ended)
    assert len(journaled(run)) == 3
    tried("a worker of vLLM is killed, as for want of memory", "generate")
    ended = run.make(ROLLOUTS, env={**FAKE, **TOLD, lock.LIMIT: "0.5", "FAKE_VLLM": "SIGSTOP:4"})
    assert ended.status == 2
    said = only_error(ended)
    assert f"results/tiny/{ROLLOUTS}: nothing was written for 0.5 minutes" in said
    assert "stall_minutes" in said and "vllm_engine.py" in ended.log
    assert len(journaled(run)) == 7
    tried("a worker of vLLM hangs", "generate")
    ended = run.make(ROLLOUTS, env=FAKE)
    assert ended.status == 0, ended.log
    assert run.digests() == whole


def ranks(process: "subprocess.Popen[bytes]") -> list[int]:
    """The processes that train, of a stage with several."""
    found = []
    for pid in lock._descendants(process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if "opd.training.launch" in words and "torch.distributed.run" not in words:
            found.append(pid)
    return found


def at_step(run: Run, process: "subprocess.Popen[bytes]", step: int) -> None:
    deadline = time.monotonic() + 300
    while True:
        (text,) = [p.read_text() for p in run.store.glob(".scratch/*/metrics.jsonl")] or [""]
        if text.count("\n") >= step:
            return
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_a_process_of_training_that_is_killed_or_hangs(run: Run, tried) -> None:
    """One of two: the other waits for it in the middle of a sum."""
    several: dict[str, Any] = {"processes": 2, "steps": 40, "execution": {"checkpoint_every": 2}}
    run.forget(TRAINED)
    run.change(TRAINED, several)
    ended = run.make(TRAINED)
    assert ended.status == 0, ended.log
    whole = run.digests()
    run.forget(TRAINED)
    for number, step, fault, said in (
        (signal.SIGKILL, 6, "is killed", "a training process ended with exit status"),
        (signal.SIGSTOP, 14, "hangs", "nothing was written for 0.5 minutes"),
    ):
        log = run.folder / "own.log"
        process = run.start(TRAINED, log, **TOLD, **{lock.LIMIT: "0.5"})
        at_step(run, process, step)
        children = ranks(process)
        assert len(children) == 2
        os.kill(children[1], number)
        status, text = process.wait(300), log.read_text(errors="replace")
        assert status == 2, text[-5000:]
        (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert said in error
        assert not [pid for pid in children if alive(pid)]
        tried(f"one of two training processes {fault}", "sft")
    ended = run.make(TRAINED)
    assert ended.status == 0, ended.log
    assert "going on from step" in ended.log
    assert run.digests() == whole


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

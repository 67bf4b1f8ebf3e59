"""One finished run of the tiny config for all tests, copies of it, and the table of outcomes."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stages import Run, Zygote, finished

from opd.stages.registry import STAGES


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run to its end. Do not change it: take a ``run``."""
    return finished(tmp_path_factory.mktemp("whole"), zygote)


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, to be changed at will."""
    return whole.copy(tmp_path / "run")


@pytest.fixture(scope="session")
def outcomes() -> Iterator[Counter[tuple[str, str]]]:
    """What was tried, and how often. FAULTS_TABLE names a file to write it to as a table."""
    found: Counter[tuple[str, str]] = Counter()
    yield found
    if path := os.environ.get("FAULTS_TABLE"):
        Path(path).write_text("".join(f"{line}\n" for line in table(found)))


@pytest.fixture
def tried(outcomes: Counter[tuple[str, str]]) -> Callable[[str, str], None]:
    """``tried(fault, where)``: it happened, and every promise was kept."""

    def note(fault: str, where: str) -> None:
        outcomes[fault, where] += 1

    return note


# Of the stage that it happens to; everything else stays. Where nothing is named: nothing is lost.
LOST = {
    "SIGKILL": "what it had done since its last checkpoint, or line in a journal",
    "Ctrl-C": "what it had done since its last checkpoint, or line in a journal",
    "SIGTERM": "of training at most a step, of others what is in no journal yet",
    "a worker of vLLM is killed, as for want of memory": "the responses in flight",
    "a worker of vLLM hangs": "the responses in flight",
    "one of two training processes is killed": "the steps since the last checkpoint",
    "one of two training processes hangs": "the steps since the last checkpoint",
    "a checkpoint or a journal with one changed bit": "the steps since the checkpoint before, or "
    "the responses from there on",
    "a full disk": "what it had done since its last checkpoint, or line in a journal",
}


def table(outcomes: Counter[tuple[str, str]]) -> Iterator[str]:
    """Markdown: fault, how often it was tried, on what, what was lost by it."""
    yield "| what happened | times | to | lost |"
    yield "| --- | ---: | --- | --- |"
    for fault in dict.fromkeys(fault for fault, _ in outcomes):
        of = {where: n for (one, where), n in outcomes.items() if one == fault}
        to = ", ".join(of) if len(of) < len(STAGES) else "every kind of stage"
        yield f"| {fault} | {sum(of.values())} | {to} | {LOST.get(fault, 'nothing')} |"

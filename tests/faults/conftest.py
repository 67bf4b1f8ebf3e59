"""One finished run of the tiny config for all tests, copies of it, and the table of outcomes."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stages import Run, Zygote, finished


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


def table(outcomes: Counter[tuple[str, str]]) -> Iterator[str]:
    """Markdown: fault, how often it was tried, on what."""
    yield "| what happened | times | to |"
    yield "| --- | ---: | --- |"
    for fault in dict.fromkeys(fault for fault, _ in outcomes):
        of = {where: n for (one, where), n in outcomes.items() if one == fault}
        yield f"| {fault} | {sum(of.values())} | {', '.join(of)} |"

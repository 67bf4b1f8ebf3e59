"""What all examinations share: findings, and asking other programs."""

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "missing"]
SECONDS = 20  # that a program may take


class Finding(NamedTuple):
    """One thing looked at: its ``state`` (``missing``: what is asked for cannot run without it),
    ``what`` was found, and what to do about it where that is not ``ok``."""

    subject: str
    state: State
    what: str
    remedy: str = ""


def ready(findings: Iterable[Finding]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(finding.state != "missing" for finding in findings)


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A table to print, each remedy below what it mends."""
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        yield f"{finding.state:<8} {finding.subject:<{width}}  {finding.what}"
        if finding.remedy:
            yield f"{'':<8} {'':<{width}}  -> {finding.remedy}"
    states = [finding.state for finding in findings]
    missing, warnings = states.count("missing"), states.count("warning")
    yield f"{missing} missing, {warnings} warning{'s' if warnings != 1 else ''}"


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def ask(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a program, and end it with what it started after ``seconds`` (``TimeoutExpired``)."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # Its children hold the pipes: without them gone, nobody would ever read to the end.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def output(*command: str) -> str | None:
    """Standard output of a program; None where it fails or does not end in time."""
    try:
        done = ask(command, SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

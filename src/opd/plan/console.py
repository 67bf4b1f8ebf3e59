"""What a run says on the console when it ends: why its jobs failed, what its data have that a user
may not expect, and where the results are to be read. Jobs say all of it in their logs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd.core.security import visible
from opd.results.claims_page import headline, mark
from opd.stages.artifact import Artifact

MOST = 8  # lines of one kind; the others are counted
STOPPED = ("told to stop:", "interrupted:")  # how the log of a job ends that others took down


def failures(artifacts: Iterable[str], results: Path, began: float = 0.0) -> dict[str, str]:
    """A line for each artifact whose job has written a log since ``began`` (seconds since 1970) and
    has not made it, by its folder: the last line of the log that begins with ``error:``, else its
    last line."""
    lines = {}
    for folder in artifacts:
        log = results / "logs" / f"{folder}.log"
        if (results / folder / "digest.json").exists() or not _since(log, began):
            continue
        text = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in text if line.startswith("error: ")]
        last = (errors or text or ["its log is empty"])[-1]
        if not last.startswith(STOPPED):
            lines[folder] = f"error: {folder}: {visible(last)} (all of it: {log})"
    return lines


def notes_of_data(artifacts: Mapping[str, Artifact], results: Path, began: float) -> list[str]:
    """The notes of the prompt sets that were made since ``began``, a line each."""
    lines: list[str] = []
    for folder, artifact in artifacts.items():
        report = results / folder / "payload" / "report.json"
        if artifact.stage == "prompts" and _since(results / folder / "digest.json", began):
            notes = json.loads(report.read_text()).get("notes", [])
            lines += [f"note: {folder}: {visible(note)}" for note in notes]
    return lines


def findings(results: Path, began: float) -> list[str]:
    """Verdicts by paper, and the pages to read, of those that were made since ``began``."""
    lines, pages = [], []
    if _since(results / "claims" / "digest.json", began):
        verdicts: dict[str, Any] = json.loads((results / "claims.json").read_text())
        for paper in verdicts["papers"].values():
            lines.append(f"{paper['title']}: {headline(verdicts | paper, mark)}")
        pages.append(results / "claims.html")
    if _since(results / "report" / "digest.json", began):
        pages.append(results / "report.html")
    return lines + [f"to be read: {page}" for page in pages]


def shortened(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - MOST
    return lines[:MOST] + ([f"and {more} more"] if more > 0 else [])


def _since(path: Path, began: float) -> bool:
    return path.is_file() and path.stat().st_mtime >= began

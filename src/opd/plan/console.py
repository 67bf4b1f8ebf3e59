"""What a run says on the console: what its jobs are at, and when it ends why jobs failed, what its
data have that a user may not expect, and where the results are to be read. Jobs say all of it in
their logs."""

import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from opd.core import marked
from opd.core.files import read_json
from opd.core.security import visible
from opd.results.claims_page import headline, mark
from opd.results.outcome import outcomes
from opd.stages.artifact import Artifact
from opd.stages.registry import STAGES

MOST = 8  # lines of one kind; the others are counted
# How the log of a job ends that others took down.
STOPPED = ("told to stop:", "interrupted:", "KeyboardInterrupt")
LOOK_SECONDS, SAY_SECONDS = 5.0, 60.0
TAIL_BYTES = 4096
BAR = re.compile(r"\d+%\|.*\|")  # of tqdm


def failures(artifacts: Iterable[str], results: Path, began: float = 0.0) -> dict[str, str]:
    """A line for each artifact whose job has written a log since ``began`` (seconds since 1970) and
    has not made it, by its folder (``ending``)."""
    lines = {}
    for folder in artifacts:
        log = results / "logs" / f"{folder}.log"
        if (results / folder / "digest.json").exists() or not _since(log, began):
            continue
        last = ending(log)
        if not last.startswith(STOPPED):
            lines[folder] = f"error: {folder}: {last} (all of it: {log})"
    return lines


def ending(log: Path) -> str:
    """Why a job ended that has not made its artifact: the last line of its log that begins with
    ``error:``, else its last line; of a bar that it ended in the midst of it, without a word."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    text = [line for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in text if line.startswith("error: ")]
    last = (errors or text or ["its log is empty"])[-1].strip()
    return visible(f"it ended without a word, at {last}" if BAR.search(last) else last)


def under_way(artifacts: Iterable[str], results: Path, since: float) -> dict[str, str]:
    """The last line of each log that was written to since then (seconds since 1970), by the folder
    of the artifact, which is not made yet: of most stages a bar with the time that is left."""
    lines = {}
    for folder in artifacts:
        log = results / "logs" / f"{folder}.log"
        if not _since(log, since) or (results / folder / "digest.json").exists():
            continue
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        if last and not last.startswith(("error:", *STOPPED)):
            lines[folder] = visible(last)
    return lines


def teller(
    artifacts: Iterable[str], results: Path, tell: Callable[[str], None]
) -> Callable[[], None]:
    """A function to be called every few seconds: it tells what jobs are at (``under_way``), of each
    job once a minute, and at once that it waits for another process."""
    told: dict[str, float] = {}

    def look() -> None:
        now = time.time()
        for folder, line in under_way(artifacts, results, now - 2 * SAY_SECONDS).items():
            waits = folder not in told and line.startswith("waiting for")
            if waits or now - told.setdefault(folder, now) >= SAY_SECONDS:
                told[folder] = now
                tell(f"{folder}: {line}")

    return look


def end_at_interrupt() -> None:
    """Have Ctrl-C end the run with one line. What Snakemake would say of the jobs that it ends is
    no news then, nor is a second Ctrl-C, which jobs receive by themselves."""

    def interrupted(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.disable(logging.CRITICAL)
        # A handler may run in the middle of a print.
        os.write(2, b"interrupted: what was finished is kept, the same command goes on\n")
        raise SystemExit(130)

    # Whoever starts a run in the background ignores Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def notes_of_data(artifacts: Mapping[str, Artifact], results: Path, began: float) -> list[str]:
    """The notes of the prompt sets that were made since ``began``, a line each."""
    lines: list[str] = []
    for folder, artifact in artifacts.items():
        report = results / folder / "payload" / "report.json"
        if artifact.stage == "prompts" and _since(results / folder / "digest.json", began):
            notes = json.loads(report.read_text(encoding="utf-8")).get("notes", [])
            lines += [f"note: {folder}: {visible(note)}" for note in notes]
    return lines


def findings(results: Path, began: float) -> list[str]:
    """Verdicts by paper, and the pages to read, of those that were made since ``began``."""
    lines, pages = [], []
    if _since(results / "claims" / "digest.json", began):
        verdicts: dict[str, Any] = json.loads((results / "claims.json").read_text(encoding="utf-8"))
        lines += [marked.mark()] if marked.mark() else []
        for paper in verdicts["papers"].values():
            lines.append(f"{paper['title']}: {headline(verdicts | paper, mark)}")
        pages.append(results / "claims.html")
    if _since(results / "report" / "digest.json", began):
        pages.append(results / "report.html")
    return lines + [f"to be read: {page}" for page in pages]


def trained(results: Path, began: float) -> list[str]:
    """What came out of training, by the tables that were made since ``began``, and where the models
    are that were trained since then; nothing where claims are judged."""
    if (results / "claims").exists():
        return []
    tables = [*results.glob("tables/*/manifest.json")]
    runs = [*results.glob("models/*/s*/manifest.json")]
    tables, runs = ([file for file in sorted(of) if _since(file, began)] for of in (tables, runs))
    read = {file: read_json(file) for file in (*tables, *runs)}
    lines = [visible(sentence) for table in tables for sentence in outcomes(read[table]["numbers"])]
    return lines + [
        f"trained: {run.with_name('payload')}, which transformers loads"
        for run in runs
        if (stage := STAGES.get(read[run]["stage"])) and stage.trains
    ]


def shortened(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - MOST
    return lines[:MOST] + ([f"and {more} more"] if more > 0 else [])


def _since(path: Path, began: float) -> bool:
    return path.is_file() and path.stat().st_mtime >= began

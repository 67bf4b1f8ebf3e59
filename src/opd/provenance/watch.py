"""``opd watch FOLDER``: the metrics of a training run in the terminal, step by step."""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import is_plain, read_json
from opd.losses.schemas import METRICS
from opd.plan.console import ending
from opd.stages import lock, on_disk

NUMBERS = TypeAdapter(dict[str, float])

# In this order, as many as the terminal is wide; others are in metrics.parquet.
SHOWN = (
    "loss",
    "grad_norm",
    "reward",
    "kl_nats",
    "overlap_ratio",
    "response_tokens",
    "truncation_ratio",
    "entropy_student_nats",
    "entropy_teacher_nats",
    "top_mass_student",
    "repetition_ratio",
    "overlap_token_advantage",
)


def watch(folder: Path, seconds: float = 0.5) -> Iterator[str]:
    """Lines to print of the run whose artifact is ``folder``: of one that is under way until it
    ends, of one that is done all steps, of one that stopped why it did; every minute without a
    step, when the run was last heard of. Raises ``UserError`` where there is none."""
    widths: dict[str, int] | None = None
    done = (folder / "digest.json").is_file()
    for line in _finished(folder) if done else _under_way(folder, seconds):
        if isinstance(line, str):
            yield line
            continue
        if widths is None:
            widths = {name: max(9, len(name)) for name in SHOWN if name in line}
            room = shutil.get_terminal_size((120, 24)).columns - 11
            while widths and sum(widths.values()) + 2 * len(widths) > room:
                widths.popitem()
            yield "  ".join([f"{'step':>11}", *(f"{n:>{width}}" for n, width in widths.items())])
        step = f"{line['step']:.0f}/{line['of']:.0f}"
        cells = (f"{line[n]:>{w}.4g}" if n in line else " " * w for n, w in widths.items())
        yield "  ".join([f"{step:>11}", *cells])


def _finished(folder: Path) -> Iterator[dict[str, float]]:
    payload = on_disk.at(on_disk.results_folder(folder), folder).payload()
    path = (payload or folder) / "metrics.parquet"
    if not is_plain(path):
        raise UserError("it is no training run", str(folder), "name a model that was trained")
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    for row in tables.read(path, METRICS).to_pylist():
        if row["position"] is None and row["step"] > 0:
            steps[row["step"]][row["name"]] = row["value"]
    for step, line in sorted(steps.items()):
        yield {"step": step, "of": max(steps), **line}


def _under_way(folder: Path, seconds: float) -> Iterator[dict[str, float] | str]:
    running, root = folder / "running.json", on_disk.results_folder(folder)
    if not is_plain(running):
        log = root / "logs" / f"{folder.relative_to(root)}.log"
        if log.is_file():
            yield f"it stopped: {ending(log)} (all of it: {log})"
            return
        remedy = "name the model of a training run"
        raise UserError("no run is under way or done here", str(folder), remedy)
    scratch = read_json(running)
    scratch = scratch.get("scratch") if isinstance(scratch, dict) else None
    # A folder that was received may name any place.
    if not (isinstance(scratch, str) and on_disk.inside(root, Path(scratch))):
        raise UserError("it does not say where the run works", str(running), "remove it")
    journal = Path(scratch, "metrics.jsonl")
    seen, last, heard = 0, 0.0, time.monotonic()
    while True:
        alive = running.is_file() and lock.held(journal.parent)
        text = journal.read_text(encoding="utf-8", errors="replace") if is_plain(journal) else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        # A run that goes on from a checkpoint writes a shorter journal first.
        for number, text in enumerate(lines[min(seen, len(lines)) :], min(seen, len(lines)) + 1):
            line = _line(text, f"{journal}: line {number}")
            if line["step"] > last:
                last, heard = line["step"], time.monotonic()
                yield line
        seen = len(lines)
        if not alive:
            if running.is_file():  # which a stage that ends by itself removes
                yield "it was killed: start it again, it goes on from its last checkpoint"
            return
        if time.monotonic() - heard >= lock.SAY_SECONDS:
            heard = time.monotonic()
            yield lock.life(journal.with_name(lock.OWNER))
        time.sleep(seconds)


def _line(text: str, where: str) -> dict[str, float]:
    try:
        line = NUMBERS.validate_json(text)
        if not {"step", "of"} <= line.keys():
            raise ValueError
    except ValueError:
        raise UserError("not the metrics of a step", where, "start the run again") from None
    return line

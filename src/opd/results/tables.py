"""Tables: models in rows, and what was measured of them in columns.

A row names one input per seed (``opd.evaluation.reader`` reads them). Same inputs, same bytes.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from opd.evaluation.reader import NothingLogged, Reader
from opd.results.estimate import Measurements, Missing, Undefined, estimate
from opd.results.labels import axis, benchmark_label, cell, label_of, of_draws, plain
from opd.results.quantity import METRIC, SCORES, TableColumn, column

MISSING = "–"
NO_GAP = "no gap"
# What a row may name.
ROLES = ("evaluations", "base", "teacher", "run", "probe")


class Cell(NamedTuple):
    """What a table shows, and what the csv has of it in the order of the column's endings."""

    text: str
    numbers: tuple[float | str | None, ...]


def _cell(shown: TableColumn, row: str, measured: Measurements) -> Cell:
    """The cell of a row; a dash where the row has not what the column is of. Raises ``UserError``
    for a benchmark or a metric that its evaluations or its run do not have."""
    nothing = Cell(MISSING, (None,) * len(shown.endings))
    try:
        if not shown.quantities:
            return _outlook(row, measured)
        if shown.kind in SCORES and all(measured.arms[row].get(role) for role in shown.inputs):
            measured.evaluations(row).benchmarks(shown.quantities[0].name)
        runs = measured.arms[row].get("run")
        if runs and shown.quantities[0].kind == METRIC:
            measured.reader.metric(runs, shown.name, measured.label(row, "run"))
        of_row = [replace(quantity, of=row) for quantity in shown.quantities]
        estimates = [estimate(quantity, measured) for quantity in of_row]
    except Undefined:
        return nothing._replace(text=NO_GAP)
    except (Missing, NothingLogged):
        return nothing
    if len(shown.endings) < 3:
        values = [one.value for one in estimates]
        texts = [cell(value, quantity) for value, quantity in zip(values, of_row, strict=True)]
        return Cell(" → ".join(texts), tuple(values))
    interval = estimates[0].interval()
    value, low, high = (cell(number, of_row[0]) for number in interval)
    return Cell(f"{value} [{low}, {high}]", tuple(interval))


def _outlook(row: str, measured: Measurements) -> Cell:
    """What the probe of every seed said before training."""
    runs, where = measured.inputs(row, "probe"), measured.label(row, "probe")
    words = [measured.reader.json(run, "preflight.json", where)["outlook"] for run in runs]
    counted = Counter(words).most_common()
    text = ", ".join(f"{word} ({n})" if len(runs) > 1 else word for word, n in counted)
    return Cell(text, (text,))


def _header(shown: TableColumn, measured: Measurements) -> str:
    """What a column says above its cells, by default."""
    first = measured.reader.first
    if shown.kind in SCORES:
        words = axis(shown.kind, first)
        return f"{words}, {benchmark_label(shown.name, first)}" if first and shown.name else words
    if shown.kind == "outlook":
        return "outlook before training"
    steps = {"first": ", first step", "last": ", last step", "course": ", first → last step"}
    return label_of(shown.name) + steps.get(shown.kind, "")


def run_table(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write table.csv (raw numbers, shares from 0 to 1, and digests) and table.md (to be read).

    cfg: ``title``, ``caption``, ``columns`` [KIND[:NAME] or {column, label}], ``rows`` [{label,
    evaluations, base, teacher, run, probe}]; the last five are lists of names of ``inputs``, one
    per seed; ``seed`` and ``resamples`` of the bootstrap. ``opd.results.quantity.column`` has the
    columns. The last column of the csv holds role:input/file=digest (sha256, 12
    digits) of every file that was read of a row's inputs. Returns {row: {csv column: number}}.
    Raises ``UserError`` as ``opd.results.figures.run_figure`` does.
    """
    # Rows go by their place: two may have the same label.
    arms = {str(place): row for place, row in enumerate(cfg["rows"])}
    probes = {k: {"label": row["label"], "runs": row.get("probe")} for k, row in arms.items()}
    measured = Measurements({**cfg, "arms": arms, "probes": probes}, Reader(inputs))
    asked = [c if isinstance(c, dict) else {"column": c} for c in cfg["columns"]]
    columns = [column(one["column"]) for one in asked]
    names = [
        one["column"].replace(":", "_") + ending
        for one, shown in zip(asked, columns, strict=True)
        for ending in shown.endings
    ]
    cells = {place: [_cell(shown, place, measured) for shown in columns] for place in arms}
    lines, kept = [["row", *names, "seeds", "digests"]], {}
    for place, row in arms.items():
        numbers = [number for one in cells[place] for number in one.numbers]
        seeds = max(len(row.get(role) or []) for role in ROLES)
        # Ten digits: beyond them the order in which a machine adds up may show.
        written = ["" if n is None else n if isinstance(n, str) else f"{n:.10g}" for n in numbers]
        used = [
            f"{role}:{name}/{file}={digest}"
            for role in ROLES
            for name in row.get(role) or []
            for file, digest in measured.reader.digests(name).items()
        ]
        lines.append([row["label"], *written, str(seeds), " ".join(used)])
        plainly = [n if isinstance(n, str) else plain(n) for n in numbers]
        kept[row["label"]] = dict(zip(names, plainly, strict=True))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    (out / "table.csv").write_text(text.getvalue())
    shown = [[arms[place]["label"], *(one.text for one in row)] for place, row in cells.items()]
    headers = [
        one.get("label") or _header(column, measured)
        for one, column in zip(asked, columns, strict=True)
    ]
    page = [f"**{cfg['title']}**", ""] if cfg.get("title") else []
    page += [cfg["caption"].strip(), ""] if cfg.get("caption") else []
    page += [_line(["", *headers]), _line(["---", *["---:"] * len(headers)])]
    page += [*map(_line, shown), "", _note(cfg, measured, columns, shown), ""]
    (out / "table.md").write_text("\n".join(page))
    return kept


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _note(
    cfg: Mapping[str, Any],
    measured: Measurements,
    columns: Sequence[TableColumn],
    shown: Sequence[Sequence[str]],
) -> str:
    """What the numbers of a table are, and how far they reach."""
    seeds = {len(row[role]) for row in cfg["rows"] for role in ROLES if row.get(role)}
    parts = []
    if measured.reader.first:
        shape = measured.reader.first.shape().items()
        each = ", ".join(f"{name} {len(problems)} × {k}" for name, (problems, k) in shape)
        if len(shape) > 1:
            parts.append("Where a column names no benchmark: the unweighted mean of all.")
        parts.append(
            f"Problems × samples: {each}. In brackets: 95 % intervals from "
            f"{of_draws(cfg, 'problems', seeds)}, paired where two models are compared."
        )
    if any(NO_GAP in cells for cells in shown):
        parts.append(
            f"{NO_GAP}: the interval of the gap from base to teacher reaches zero, so that no "
            "share of it is ruled out."
        )
    if any(shown.kind == "probe" for shown in columns):
        parts.append(f"Intervals of a probe's values are from {of_draws(cfg, 'prompts', seeds)}.")
    if seeds == {1}:
        parts.append("One seed: how training runs differ from each other is not in the intervals.")
    else:
        counts = " or ".join(map(str, sorted(seeds)))
        parts.append(f"Seeds: {counts}; so few understate how much training runs differ.")
    parts.append(f"{MISSING}: does not apply. Raw numbers and digests are in the csv file.")
    return " ".join(parts)

"""Tables: models in rows, and what was measured of them in columns.

A row names one input per seed (``opd.evaluation.reader`` reads them). Same inputs, same bytes.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.code import package_file
from opd.core.html import MISSING, render
from opd.core.markdown import line
from opd.core.text import distinct
from opd.evaluation.reader import Reader
from opd.results import excerpts
from opd.results.estimate import Measurements, Missing, Undefined, estimate
from opd.results.labels import axis, benchmark_label, cell, label_of, of_draws, plain
from opd.results.quantity import METRIC, SCORES, TableColumn, column

PAGES = package_file(__file__, "pages/tables")
NO_GAP = "no gap"
# What a row may name.
ROLES = ("evaluations", "base", "teacher", "run", "probe")
WORDS = {"responses": excerpts.responses, "outlook": excerpts.outlook}


# What a table shows, and what the csv has of it in the order of the column's endings.
Cell = tuple[str, tuple[float | str | None, ...]]


def _cell(parsed: TableColumn, row: str, measured: Measurements) -> Cell:
    """The cell of a row; a dash where the row has not what the column is of. Raises ``UserError``
    for a benchmark or a metric that its evaluations or its run do not have."""
    nothing = (None,) * len(parsed.endings)
    try:
        if not parsed.quantities:
            return _outlook(row, measured)
        if parsed.kind in SCORES and all(measured.arms[row].get(role) for role in parsed.inputs):
            measured.evaluations(row).benchmarks(parsed.quantities[0].name)
        runs = measured.arms[row].get("run")
        if runs and parsed.quantities[0].kind == METRIC:
            measured.reader.metric(runs, parsed.name, measured.label(row, "run"))
        of_row = [replace(quantity, of=row) for quantity in parsed.quantities]
        estimates = [estimate(quantity, measured) for quantity in of_row]
    except Undefined:
        return NO_GAP, nothing
    except Missing:
        return MISSING, nothing
    if len(parsed.endings) < 3:
        values = [result.value for result in estimates]
        texts = [cell(value, quantity) for value, quantity in zip(values, of_row, strict=True)]
        return " → ".join(texts), tuple(map(plain, values))
    interval = estimates[0].interval()
    value, low, high = (cell(number, of_row[0]) for number in interval)
    return f"{value} [{low}, {high}]", tuple(map(plain, interval))


def _outlook(row: str, measured: Measurements) -> Cell:
    """What the probe of every seed said before training."""
    runs, where = measured.inputs(row, "probe"), measured.label(row, "probe")
    words = [measured.reader.json(run, "preflight.json", where)["outlook"] for run in runs]
    counted = Counter(words).most_common()
    text = ", ".join(f"{word} ({n})" if len(runs) > 1 else word for word, n in counted)
    return text, (text,)


def _header(parsed: TableColumn, measured: Measurements) -> str:
    """What a column says above its cells, by default."""
    first = measured.reader.first
    if parsed.kind in SCORES:
        words = axis(parsed.kind, first)
        return f"{words}, {benchmark_label(parsed.name, first)}" if first and parsed.name else words
    if parsed.kind == "outlook":
        return "outlook before training"
    steps = {"first": ", first step", "last": ", last step", "course": ", first → last step"}
    return label_of(parsed.name) + steps.get(parsed.kind, "")


def run_table(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write table.csv (raw numbers, shares from 0 to 1, and digests) and table.md (to be read).

    With cfg ``words`` it is one of ``WORDS``. Else

    cfg: ``title``, ``caption``, ``columns`` [KIND[:NAME] or {column, label}], ``rows`` [{label,
    evaluations, base, teacher, run, probe}]; the last five are lists of names of ``inputs``, one
    per seed; ``seed`` and ``resamples`` of the bootstrap. ``opd.results.quantity.column`` has the
    columns. The last column of the csv holds role:input/file=digest (sha256, 12
    digits) of every file that was read of a row's inputs. Returns {row: {csv column: number}}, in
    which rows of one label go by their place, too. Raises ``UserError`` as
    ``opd.results.figures.run_figure`` does.
    """
    if "words" in cfg:
        return WORDS[cfg["words"]](cfg, inputs, out)
    # Rows go by their place: two may have the same label.
    arms = {str(place): row for place, row in enumerate(cfg["rows"])}
    probes = {k: {"label": row["label"], "runs": row.get("probe")} for k, row in arms.items()}
    measured = Measurements({**cfg, "arms": arms, "probes": probes}, Reader(inputs))
    specs = [spec if isinstance(spec, dict) else {"column": spec} for spec in cfg["columns"]]
    columns = [(spec["column"], spec.get("label"), column(spec["column"])) for spec in specs]
    names = [name.replace(":", "_") + end for name, _, parsed in columns for end in parsed.endings]
    cells = {place: [_cell(parsed, place, measured) for _, _, parsed in columns] for place in arms}
    raw, records = [["row", *names, "seeds", "digests"]], {}
    row_names = distinct([row["label"] for row in arms.values()])
    for row_name, (place, row) in zip(row_names, arms.items(), strict=True):
        values = [value for _, numbers in cells[place] for value in numbers]
        written = [f"{value:.10g}" if isinstance(value, float) else value for value in values]
        seeds = max(len(row.get(role) or []) for role in ROLES)
        digests = " ".join(
            f"{role}:{name}/{file}={digest}"
            for role in ROLES
            for name in row.get(role) or []
            for file, digest in measured.reader.digests(name).items()
        )
        raw.append([row["label"], *written, seeds, digests])
        records[row_name] = dict(zip(names, values, strict=True))
    tables.write_csv(out / "table.csv", raw)
    headers = [label or _header(parsed, measured) for _, label, parsed in columns]
    texts = [[arms[place]["label"], *(text for text, _ in row)] for place, row in cells.items()]
    lines = [["", *headers], ["---", *["---:"] * len(headers)], *texts]
    shape = measured.reader.first.shape() if measured.reader.first else {}
    counts = {len(row[role]) for row in cfg["rows"] for role in ROLES if row.get(role)}
    page = render(
        PAGES,
        "table.md.j2",
        cfg=cfg,
        lines=map(line, lines),
        shape=[f"{name} {len(problems)} × {k}" for name, (problems, k) in shape.items()],
        draws=lambda drawn: of_draws(cfg, drawn, counts),
        no_gap=any(NO_GAP in row for row in texts),
        kinds=[parsed.kind for _, _, parsed in columns],
        seeds=sorted(counts),
    )
    tables.write_text(out / "table.md", page)
    return records

"""Tables: models in rows, and what was measured of them in columns.

A row names one input per seed (``opd.evaluation.reader`` reads them). Same inputs, same bytes.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opd.core.errors import UserError
from opd.evaluation.reader import MACRO, Evaluations, NothingLogged, Reader
from opd.results import columns
from opd.results.estimate import Missing, estimate
from opd.results.labels import (
    avg_at,
    benchmark_label,
    label_of,
    number,
    of_draws,
    plain,
    resampling,
    samples_at,
)
from opd.stats.draws import RESAMPLES as PROBE_DRAWS
from opd.stats.intervals import Interval, difference, interval, paired_test, recovery

MISSING = "–"
NO_GAP = "no gap"
# What a row may name.
ROLES = ("evaluations", "base", "teacher", "run", "probe")


class Cell(NamedTuple):
    """What a table shows, and what the csv has of it in the order of the column's endings."""

    text: str
    numbers: tuple[float | str | None, ...]


def _cell(spec: str, row: Mapping[str, Any], reader: Reader, cfg: Mapping[str, Any]) -> Cell | None:
    """The cell of a row in a column; None where the row does not name what the column needs."""
    kind, name = columns.parse(spec)
    where = f"row '{row['label']}'"
    needs = columns.KINDS[kind][0]
    if not all(row.get(need) for need in needs):
        return None
    if needs == ("run",):
        try:
            _, values = reader.metric(row["run"], name, where)
        except NothingLogged:
            return None
        logged = [v[~np.isnan(v)] for v in values]
        if not all(len(v) for v in logged):
            return None
        ends = {"_first": float(np.mean([v[0] for v in logged]))}
        ends["_last"] = float(np.mean([v[-1] for v in logged]))
        numbers = tuple(v for k, v in ends.items() if kind == "course" or k == f"_{kind}")
        return Cell(" → ".join(map(number, numbers)), numbers)
    if kind == "outlook":
        said = Counter(reader.json(run, "preflight.json", where)["outlook"] for run in row["probe"])
        several = len(row["probe"]) > 1
        text = ", ".join(f"{one} ({n})" if several else one for one, n in said.most_common())
        return Cell(text, (text,))
    if kind == "probe":
        probes = {"it": {"label": row["label"], "runs": row["probe"]}}
        try:
            found = estimate({"probe": "it", "value": name}, reader, {}, probes, *resampling(cfg))
        except Missing:
            return None
        bounds = found.interval()
        shown, least, most = map(number, bounds)
        return Cell(f"{shown} [{least}, {most}]", tuple(bounds))
    models = [reader.evaluations(row[need], where) for need in needs]
    if len({len(m.seeds) for m in models} - {1}) > 1:
        raise UserError(
            f"{', '.join(needs)} have different numbers of seeds",
            where,
            "name as many inputs for each, or one",
        )
    scores = [m.scores(name or MACRO) for m in models]
    if kind == "avg":
        return _bounded(interval(scores[0], *resampling(cfg)))
    if kind == "change":
        return _bounded(difference(scores[0], scores[1], *resampling(cfg)), signed=True)
    if kind == "recovery":
        share = recovery(scores[0], scores[1], scores[2], *resampling(cfg))
        return _bounded(share) if share else Cell(NO_GAP, (None, None, None))
    if kind == "p":
        value = paired_test(scores[0], scores[1], seed=cfg.get("seed", 0))
        return Cell(number(value), (value,))
    if kind in ("pass", "maj"):
        mean = reader.summary(row["evaluations"], models[0].benchmarks(name or MACRO), kind)
        return None if mean is None else Cell(f"{100 * mean:.1f}", (mean,))
    mean = float(np.mean([s.mean() for s in models[0].scores(name or MACRO, kind)]))
    return Cell(f"{mean:.0f}" if kind == "tokens" else f"{100 * mean:.1f}", (mean,))


def _bounded(value: Interval, signed: bool = False) -> Cell:
    mean, low, high = (f"{100 * v:{'+' if signed else ''}.1f}".replace("-", "−") for v in value)
    return Cell(f"{mean} [{low}, {high}]", tuple(value))


def _header(spec: str, first: Evaluations | None) -> str:
    """What a column says above its cells, by default; ``first`` is any evaluation of the table."""
    kind, name = columns.parse(spec)
    words = {
        "avg": f"{avg_at(first)} (%)" if first else "avg (%)",
        "change": "change (points)",
        "recovery": "gap recovered (%)",
        "p": "p of the change",
        "pass": f"pass@{samples_at(first)} (%)" if first else "pass (%)",
        "maj": f"maj@{samples_at(first)} (%)" if first else "maj (%)",
        "tokens": "response (tokens)",
        "truncated": "cut off (%)",
        "answered": "with an answer (%)",
        "first": f"{label_of(name)}, first step",
        "last": f"{label_of(name)}, last step",
        "course": f"{label_of(name)}, first → last step",
        "probe": label_of(name),
        "outlook": "outlook before training",
    }[kind]
    if columns.KINDS[kind][0] in (("run",), ("probe",)) or first is None or not name:
        return words
    return f"{words}, {benchmark_label(name, first)}"


def run_table(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write table.csv (raw numbers, shares from 0 to 1, and digests) and table.md (to be read).

    cfg: ``title``, ``caption``, ``columns`` [kind[:NAME] or {column, label}], ``rows`` [{label,
    evaluations, base, teacher, run, probe}]; the last five are lists of names of ``inputs``, one
    per seed; ``seed`` and ``resamples`` of the bootstrap. Columns, over all benchmarks or the one
    named: avg, change (against ``base``), recovery (of the gap from ``base`` to ``teacher``), p (of
    the change, a paired permutation test over problems), pass, maj, tokens, truncated, answered;
    for a metric of ``run``: first, last, course; for a value of ``probe``: probe, and the outlook
    of the probe ``indicators``. The last column of the csv holds role:input/file=digest (sha256, 12
    digits) of every file that was read of a row's inputs. Returns {row: {csv column: number}}.
    Raises ``UserError`` as ``opd.results.figures.run_figure`` does.
    """
    reader = Reader(inputs)
    asked = [c if isinstance(c, dict) else {"column": c} for c in cfg["columns"]]
    specs = [c["column"] for c in asked]
    ends = {spec: columns.KINDS[columns.parse(spec)[0]][1] for spec in specs}
    names = [spec.replace(":", "_") + end for spec in specs for end in ends[spec]]
    shown, raw, kept = [], [], {}
    for row in cfg["rows"]:
        cells = [_cell(spec, row, reader, cfg) for spec in specs]
        numbers: list[float | str | None] = []
        for spec, cell in zip(specs, cells, strict=True):
            numbers += cell.numbers if cell else [None] * len(ends[spec])
        seeds = max(len(row.get(role) or []) for role in ROLES)
        # Ten digits: beyond them the order in which a machine adds up may show.
        written = ["" if n is None else n if isinstance(n, str) else f"{n:.10g}" for n in numbers]
        raw.append([row["label"], *written, seeds])
        shown.append([row["label"], *(cell.text if cell else MISSING for cell in cells)])
        plainly = [n if isinstance(n, str) else plain(n) for n in numbers]
        kept[row["label"]] = dict(zip(names, plainly, strict=True))
    # Last, so that what is listed of an input does not depend on the order of rows.
    for row, line in zip(cfg["rows"], raw, strict=True):
        used = [
            f"{role}:{name}/{file}={found}"
            for role in ROLES
            for name in row.get(role) or []
            for file, found in reader.digests(name).items()
        ]
        line.append(" ".join(used))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["row", *names, "seeds", "digests"], *raw])
    (out / "table.csv").write_text(text.getvalue())
    headers = [c.get("label") or _header(c["column"], reader.first) for c in asked]
    lines = [f"**{cfg['title']}**", ""] if cfg.get("title") else []
    lines += [cfg["caption"].strip(), ""] if cfg.get("caption") else []
    lines += [_line(["", *headers]), _line(["---", *["---:"] * len(headers)])]
    lines += [*map(_line, shown), "", _note(cfg, reader, shown), ""]
    (out / "table.md").write_text("\n".join(lines))
    return kept


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _note(cfg: Mapping[str, Any], reader: Reader, shown: Sequence[Sequence[str]]) -> str:
    """What the numbers of a table are, and how far they reach."""
    seeds = {len(row[role]) for row in cfg["rows"] for role in ROLES if row.get(role)}
    parts = []
    if reader.first:
        shape = reader.first.shape().items()
        each = ", ".join(f"{name} {len(problems)} × {k}" for name, (problems, k) in shape)
        if len(shape) > 1:
            parts.append("Where a column names no benchmark: the unweighted mean of all.")
        draws = of_draws(resampling(cfg)[0], "problems", seeds)
        parts.append(
            f"Problems × samples: {each}. In brackets: 95 % intervals from {draws}, paired where "
            "two models are compared."
        )
    specs = [c["column"] if isinstance(c, dict) else c for c in cfg["columns"]]
    if any(NO_GAP in cells for cells in shown):
        parts.append(
            f"{NO_GAP}: the interval of the gap from base to teacher reaches zero, so that no "
            "share of it is ruled out."
        )
    if any(columns.parse(spec)[0] == "probe" for spec in specs):
        draws = of_draws(PROBE_DRAWS, "prompts", seeds)
        parts.append(f"Intervals of a probe's values are from {draws}.")
    if seeds == {1}:
        parts.append("One seed: how training runs differ from each other is not in the intervals.")
    else:
        counts = " or ".join(map(str, sorted(seeds)))
        parts.append(f"Seeds: {counts}; so few understate how much training runs differ.")
    parts.append(f"{MISSING}: does not apply. Raw numbers and digests are in the csv file.")
    return " ".join(parts)

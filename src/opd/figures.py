"""Figures and tables, one function per kind; what a figure shows is config.

A series or a row names one input per seed (``opd.measured`` reads them). Same inputs, same bytes.
"""

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from opd.errors import Bad
from opd.intervals import (
    RESAMPLES,
    Array,
    Interval,
    difference,
    interval,
    paired_test,
    recovery,
)
from opd.measured import MACRO, Evaluations, Reader

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawing

# Okabe and Ito's palette without its yellow; line styles and markers carry the same distinction
# for readers who see no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++")
WIDTH = 7.0  # inches, the text width of a page
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "figure.titlesize": 10,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.hashsalt": "opd",
    "text.parse_math": False,
}

# Names with a better label than their own words.
LABELS = {
    "kl_nats": "KL(student ‖ teacher) (nats)",
    "overlap_mass_student": "student mass on overlap",
    "overlap_mass_teacher": "teacher mass on overlap",
}
UNITS = {"nats": "nats", "tokens": "tokens", "min": "min", "gib": "GiB"}


def label_of(name: str) -> str:
    """A metric's name in words, its unit in brackets: kl_nats -> kl (nats)."""
    if name in LABELS:
        return LABELS[name]
    words = name.split("_")
    if len(words) > 1 and words[-1] in UNITS:
        return f"{' '.join(words[:-1])} ({UNITS[words[-1]]})"
    return " ".join(words)


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _legend(labels: Sequence[str]) -> tuple[list[str], int, int]:
    """Wrapped labels, in how many columns they fit across the page, and how many lines high."""
    if not labels:
        return [], 1, 0
    columns = max(1, min(len(labels), 4, int(WIDTH * 16 / (max(map(len, labels)) + 6))))
    wrapped = [_wrap(label, 90) for label in labels]
    high = max(label.count("\n") + 1 for label in wrapped)
    return wrapped, columns, high * math.ceil(len(labels) / columns)


@contextmanager
def _page(
    out: Path, title: str | None, height: float, legend: Sequence[str]
) -> Iterator[tuple["Figure", dict[str, "Artist"]]]:
    """A page with room for panels ``height`` inches high in all, a title above and a legend below.

    Yields the figure and a dict to be filled with one artist per label of the legend; writes
    figure.png and figure.svg when the block ends.
    """
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        heading = _wrap(title or "", 80)
        labels, columns, lines = _legend(legend)
        room = 0.2 * (heading.count("\n") + 1 if heading else 0) + 0.19 * lines + 0.25
        page = Figure(
            figsize=(WIDTH, height + room), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        )
        if heading:
            page.suptitle(heading, fontweight="bold")
        artists: dict[str, Artist] = {}
        yield page, artists
        shown = {text: artists[one] for one, text in zip(legend, labels, strict=True)}
        if shown:
            page.legend(
                list(shown.values()),
                list(shown),
                loc="outside lower center",
                ncols=columns,
                handlelength=3.2,
            )
        page.savefig(out / "figure.png", dpi=160, metadata={"Software": None})
        page.savefig(out / "figure.svg", metadata={"Date": None, "Creator": None})


def _curve(axes: "Axes", at: int, steps: Array, values: Array) -> "Artist":
    """Mean over seeds of values [S, N] as a line, with a band from the lowest to the highest."""
    seen = ~np.isnan(values).all(axis=0)
    steps, values = steps[seen], values[:, seen]
    colour = COLOURS[at % len(COLOURS)]
    (line,) = axes.plot(
        steps,
        np.nanmean(values, axis=0),
        color=colour,
        linestyle=LINES[at % len(LINES)],
        marker=MARKERS[at % len(MARKERS)],
        # Shifted from series to series, so that markers on lines that coincide stay apart.
        markevery=(at * max(1, len(steps) // 40) % max(1, len(steps)), max(1, len(steps) // 8)),
    )
    if len(values) > 1 and len(steps):
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    return line


def _panels(
    cfg: Mapping[str, Any],
    reader: Reader,
    out: Path,
    groups: Sequence[Mapping[str, Any]],
    rows: int,
    columns: int,
) -> dict[str, Any]:
    """Panels of curves, metric by metric and within it group by group.

    A label has one style wherever it stands, so that one legend serves all panels.
    """
    several = len(groups) > 1
    order = list(dict.fromkeys(one["label"] for group in groups for one in group["series"]))
    kept: dict[str, Any] = {}
    height = (2.5 if columns < 3 else 2.1) * rows
    with _page(out, cfg.get("title"), height, order) as (page, artists):
        grid = page.subplots(rows, columns, squeeze=False, sharey="row" if several else False)
        panels = list(itertools.product(cfg["metrics"], groups))
        for at, (axes, (metric, group)) in enumerate(zip(grid.flat, panels, strict=False)):
            for one in group["series"]:
                where = f"series '{one['label']}'"
                steps, values = reader.metric(one["runs"], metric["name"], where)
                line = _curve(axes, order.index(one["label"]), steps, values)
                artists[one["label"]] = line
                shown = kept.setdefault(group["title"], {}) if several else kept
                ends = np.concatenate([v[~np.isnan(v)][-1:] for v in values])
                shown.setdefault(one["label"], {})[metric["name"]] = _json(
                    ends.mean() if len(ends) else None
                )
            if metric.get("log"):
                _logarithmic(axes)
            label = metric.get("label") or label_of(metric["name"])
            if several:
                axes.set_title(_wrap(group["title"], 84 // columns) if at < columns else "")
                axes.set_ylabel(_wrap(label, 32) if at % columns == 0 else "")
            else:
                axes.set_title(_wrap(label, 84 // columns))
            if at + columns >= len(panels):
                axes.set_xlabel(cfg.get("xlabel", "training step"))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.margins(x=0.02)
        for empty in list(grid.flat)[len(panels) :]:
            empty.set_visible(False)
    return kept


def _logarithmic(axes: "Axes") -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _layout(panels: int) -> tuple[int, int]:
    """Rows and columns for so many panels: up to three across, four as a square."""
    columns = 2 if panels == 4 else min(panels, 3)
    return math.ceil(panels / columns), columns


def draw_curves(cfg: Mapping[str, Any], reader: Reader, out: Path) -> dict[str, Any]:
    """One panel per metric, one line per series over steps."""
    rows, columns = _layout(len(cfg["metrics"]))
    return _panels(cfg, reader, out, [{"title": "", "series": cfg["series"]}], rows, columns)


def draw_grid(cfg: Mapping[str, Any], reader: Reader, out: Path) -> dict[str, Any]:
    """Small multiples: metrics downwards, panels (groups of series) across, one scale per row."""
    return _panels(cfg, reader, out, cfg["panels"], len(cfg["metrics"]), len(cfg["panels"]))


def draw_bars(cfg: Mapping[str, Any], reader: Reader, out: Path) -> dict[str, Any]:
    """avg@k of each series as a bar with its 95 % interval, one panel per benchmark."""
    from matplotlib.patches import Patch

    series = cfg["series"]
    models = [reader.evaluations(s["evaluations"], f"series '{s['label']}'") for s in series]
    wanted = cfg.get("benchmarks") or [MACRO]
    results = {
        name: [interval(m.scores(name), *_resampling(cfg)) for m in models] for name in wanted
    }
    groups = list(dict.fromkeys(s["group"] for s in series if s.get("group")))
    style = {name: (COLOURS[i % len(COLOURS)], HATCHES[i % 7]) for i, name in enumerate(groups)}
    rows, columns = _layout(len(wanted))
    labels = [_wrap(s["label"], 34) for s in series]
    widest = 100 * max(v.high for values in results.values() for v in values)
    heights = np.array([max(1.6, label.count("\n") + 1.3) for label in labels])
    height = rows * (0.8 + 0.17 * heights.sum())
    with _page(out, cfg.get("title"), height, groups) as (page, artists):
        grid = page.subplots(rows, columns, squeeze=False, sharey=True)
        places = heights / 2 - np.cumsum(heights)  # downwards, as tall as their labels
        for axes, (name, values) in zip(grid.flat, results.items(), strict=False):
            for place, one, value in zip(places, series, values, strict=True):
                colour, hatch = style.get(one.get("group", ""), (COLOURS[0], ""))
                mean, low, high = (100 * v for v in value)
                axes.barh(
                    place,
                    mean,
                    height=1,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0,
                )
                axes.errorbar(
                    mean,
                    place,
                    xerr=[[mean - low], [high - mean]],
                    color="black",
                    capsize=2.5,
                    linewidth=1,
                )
                axes.annotate(
                    f"{mean:.1f}",
                    (high, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                )
            # Room for the number behind the longest bar; no figure pretends that 2 % is a lot.
            axes.set_xlim(0, max(widest * (1.1 + 0.08 * columns), 10))
            axes.set_xticks([t for t in axes.get_xticks() if t <= 100])
            axes.set_yticks(places, labels)
            axes.set_ylim(-heights.sum(), 0)
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.set_title(_benchmark_label(name, models[0]))
            axes.set_xlabel(f"{_avg_at(models[0])} (%), 95 % interval")
        for empty in list(grid.flat)[len(wanted) :]:
            empty.set_visible(False)
        for group, (colour, hatch) in style.items():
            artists[group] = Patch(facecolor=colour, hatch=hatch, edgecolor="white")
    return {
        one["label"]: {name: [_json(v) for v in results[name][i]] for name in wanted}
        for i, one in enumerate(series)
    }


KINDS: dict[str, Callable[[Mapping[str, Any], Reader, Path], dict[str, Any]]] = {
    "curves": draw_curves,
    "grid": draw_grid,
    "bars": draw_bars,
}


def run_figure(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Draw a figure: figure.png (160 dpi) and figure.svg.

    cfg: ``kind`` (curves, grid or bars), ``title``, ``seed`` and ``resamples`` of the bootstrap;
    curves and grid: ``metrics`` [{name, label, log}], ``xlabel``, ``series`` [{label, runs}] or
    ``panels`` [{title, series}]; bars: ``benchmarks``, ``series`` [{label, evaluations, group}].
    ``runs`` and ``evaluations`` are names of ``inputs``, one per seed. Returns the values drawn:
    the last of each curve, or [mean, low, high] of each bar. Raises ``Bad`` on a name that is not
    there and on evaluations that do not compare.
    """
    if cfg["kind"] not in KINDS:
        raise Bad(f"no kind of figure '{cfg['kind']}'", "kind", f"there are {', '.join(KINDS)}")
    return KINDS[cfg["kind"]](cfg, Reader(inputs), out)


# Tables

MISSING = "–"


# Kind of column -> what a row must name for it, and the endings of its columns in the csv.
_BOUNDED = ("", "_low", "_high")
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "avg": (("evaluations",), _BOUNDED),
    "change": (("evaluations", "base"), _BOUNDED),
    "recovery": (("evaluations", "base", "teacher"), _BOUNDED),
    "p": (("evaluations", "base"), ("",)),
    "pass": (("evaluations",), ("",)),
    "maj": (("evaluations",), ("",)),
    "tokens": (("evaluations",), ("",)),
    "truncated": (("evaluations",), ("",)),
    "answered": (("evaluations",), ("",)),
    "first": (("run",), ("",)),
    "last": (("run",), ("",)),
    "course": (("run",), ("_first", "_last")),
}


class Cell(NamedTuple):
    """What a table shows, and its numbers for the csv in the order of the column's endings."""

    text: str
    numbers: tuple[float, ...]


def _parse(spec: str) -> tuple[str, str]:
    """``kind[:NAME]`` -> kind, name. Raises ``Bad`` on a column that does not exist."""
    kind, _, name = spec.partition(":")
    if kind not in COLUMNS:
        raise Bad(f"no column '{spec}'", "columns", f"there are {', '.join(COLUMNS)}")
    if COLUMNS[kind][0] == ("run",) and not name:
        raise Bad(f"column '{spec}' names no metric", "columns", f"write {kind}:METRIC")
    return kind, name


def _cell(spec: str, row: Mapping[str, Any], reader: Reader, cfg: Mapping[str, Any]) -> Cell | None:
    """The cell of a row in a column; None where the row does not name what the column needs."""
    kind, name = _parse(spec)
    where = f"row '{row['label']}'"
    needs = COLUMNS[kind][0]
    if not all(row.get(need) for need in needs):
        return None
    if needs == ("run",):
        _, values = reader.metric(row["run"], name, where)
        logged = [v[~np.isnan(v)] for v in values]
        if not all(len(v) for v in logged):
            return None
        ends = {"_first": float(np.mean([v[0] for v in logged]))}
        ends["_last"] = float(np.mean([v[-1] for v in logged]))
        numbers = tuple(v for k, v in ends.items() if kind == "course" or k == f"_{kind}")
        return Cell(" → ".join(map(_number, numbers)), numbers)
    models = [reader.evaluations(row[need], where) for need in needs]
    if len({len(m.seeds) for m in models} - {1}) > 1:
        raise Bad(
            f"{', '.join(needs)} have different numbers of seeds",
            where,
            "name as many inputs for each, or one",
        )
    scores = [m.scores(name or MACRO) for m in models]
    if kind == "avg":
        return _bounded(interval(scores[0], *_resampling(cfg)))
    if kind == "change":
        return _bounded(difference(scores[0], scores[1], *_resampling(cfg)), signed=True)
    if kind == "recovery":
        return _bounded(recovery(scores[0], scores[1], scores[2], *_resampling(cfg)))
    if kind == "p":
        value = paired_test(scores[0], scores[1], seed=cfg.get("seed", 0))
        return Cell(_number(value), (value,))
    if kind in ("pass", "maj"):
        found = reader.summary(row["evaluations"], models[0].benchmarks(name or MACRO), kind)
        return None if found is None else Cell(f"{100 * found:.1f}", (found,))
    value = float(np.mean([s.mean() for s in models[0].scores(name or MACRO, kind)]))
    return Cell(f"{value:.0f}" if kind == "tokens" else f"{100 * value:.1f}", (value,))


def _bounded(value: Interval | None, signed: bool = False) -> Cell | None:
    if value is None:
        return None
    mean, low, high = (f"{100 * v:{'+' if signed else ''}.1f}".replace("-", "−") for v in value)
    return Cell(f"{mean} [{low}, {high}]", tuple(value))


def _number(value: float) -> str:
    """Three significant digits, without exponents at usual sizes."""
    if value == 0 or not 1e-4 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("-", "−")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".replace("-", "−")


def _header(spec: str, first: Evaluations | None) -> str:
    """What a column says above its cells, by default; ``first`` is any evaluation of the table."""
    kind, name = _parse(spec)
    words = {
        "avg": f"{_avg_at(first)} (%)" if first else "avg (%)",
        "change": "change (points)",
        "recovery": "gap recovered (%)",
        "p": "p of the change",
        "pass": f"pass@{_at(first)} (%)" if first else "pass (%)",
        "maj": f"maj@{_at(first)} (%)" if first else "maj (%)",
        "tokens": "response (tokens)",
        "truncated": "cut off (%)",
        "answered": "with an answer (%)",
        "first": f"{label_of(name)}, first step",
        "last": f"{label_of(name)}, last step",
        "course": f"{label_of(name)}, first → last step",
    }[kind]
    if COLUMNS[kind][0] == ("run",) or first is None or not name:
        return words
    return f"{words}, {_benchmark_label(name, first)}"


def run_table(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write table.csv (raw numbers, shares from 0 to 1, and digests) and table.md (to be read).

    cfg: ``title``, ``caption``, ``columns`` [kind[:NAME] or {column, label}], ``rows`` [{label,
    evaluations, base, teacher, run}]; the last four are lists of names of ``inputs``, one per
    seed; ``seed`` and ``resamples`` of the bootstrap. Columns, over all benchmarks or the one
    named: avg, change (against ``base``), recovery (of the gap from ``base`` to ``teacher``), p (of
    the change, a paired permutation test over problems), pass, maj, tokens, truncated, answered;
    and for a metric of ``run``: first, last, course. The last column of the csv holds
    role:input=digest (sha256, 12 digits) of every file behind a row. Returns {row: {csv column:
    number}}. Raises ``Bad`` as ``run_figure`` does.
    """
    reader = Reader(inputs)
    columns = [c if isinstance(c, dict) else {"column": c} for c in cfg["columns"]]
    specs = [c["column"] for c in columns]
    names = [spec.replace(":", "_") + end for spec in specs for end in COLUMNS[_parse(spec)[0]][1]]
    shown, raw, kept = [], [], {}
    for row in cfg["rows"]:
        cells = [_cell(spec, row, reader, cfg) for spec in specs]
        numbers: list[float | None] = []
        for spec, cell in zip(specs, cells, strict=True):
            numbers += cell.numbers if cell else [None] * len(COLUMNS[_parse(spec)[0]][1])
        used = [
            f"{role}:{name}={reader.digests[name]}"
            for role in ("evaluations", "base", "teacher", "run")
            for name in row.get(role) or []
            if name in reader.digests
        ]
        seeds = max(len(row.get(role) or []) for role in ("evaluations", "run"))
        # Ten digits: beyond them the order in which a machine adds up may show.
        written = ["" if number is None else f"{number:.10g}" for number in numbers]
        raw.append([row["label"], *written, seeds, " ".join(used)])
        shown.append([row["label"], *(cell.text if cell else MISSING for cell in cells)])
        kept[row["label"]] = dict(zip(names, map(_json, numbers), strict=True))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["row", *names, "seeds", "digests"], *raw])
    (out / "table.csv").write_text(text.getvalue())
    headers = [c.get("label") or _header(c["column"], reader.first) for c in columns]
    lines = [f"**{cfg['title']}**", ""] if cfg.get("title") else []
    lines += [cfg["caption"].strip(), ""] if cfg.get("caption") else []
    lines += [_line(["", *headers]), _line(["---", *["---:"] * len(headers)])]
    lines += [*map(_line, shown), "", _note(cfg, reader), ""]
    (out / "table.md").write_text("\n".join(lines))
    return kept


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _note(cfg: Mapping[str, Any], reader: Reader) -> str:
    """What the numbers of a table are, and how far they reach."""
    seeds = {len(row[k]) for row in cfg["rows"] for k in ("evaluations", "run") if row.get(k)}
    parts = []
    if reader.first:
        shape = reader.first.shape().items()
        each = ", ".join(f"{name} {len(problems)} × {k}" for name, (problems, k) in shape)
        if len(shape) > 1:
            parts.append("Where a column names no benchmark: the unweighted mean of all.")
        parts.append(
            f"Problems × samples: {each}. In brackets: 95 % intervals from {_resampling(cfg)[0]} "
            "bootstrap draws of seeds and problems, paired where two models are compared."
        )
    if seeds == {1}:
        parts.append("One seed: how training runs differ from each other is not in the intervals.")
    else:
        counts = " or ".join(map(str, sorted(seeds)))
        parts.append(f"Seeds: {counts}; so few understate how much training runs differ.")
    parts.append(f"{MISSING}: does not apply. Raw numbers and digests are in the csv file.")
    return " ".join(parts)


# Shared by figures and tables


def _resampling(cfg: Mapping[str, Any]) -> tuple[int, int]:
    return cfg.get("resamples", RESAMPLES), cfg.get("seed", 0)


def _benchmark_label(name: str, evaluations: Evaluations) -> str:
    names = evaluations.benchmarks(name)
    if name != MACRO:
        return name
    return names[0] if len(names) == 1 else f"mean of {len(names)} benchmarks"


def _at(evaluations: Evaluations) -> str:
    return "/".join(str(k) for k in evaluations.samples())


def _avg_at(evaluations: Evaluations) -> str:
    return f"avg@{_at(evaluations)}"


def _json(value: float | None) -> float | None:
    """A number as a manifest holds it: short, and no NaN, which JSON does not know."""
    return None if value is None or math.isnan(value) else round(float(value), 6)

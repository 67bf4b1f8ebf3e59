"""Figures: what one shows is config; its numbers are worked out here and drawn by
``opd.results.drawing``.

A series names an arm or a probe of the scale, or its inputs outright, one per seed
(``opd.evaluation.reader`` reads them). Same inputs, same bytes.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binned_statistic_2d

from opd.core import tables
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.html import render
from opd.core.text import suggestion
from opd.evaluation.reader import Evaluations, Reader
from opd.probes.schemas import ROLLOUTS
from opd.results import drawing
from opd.results.claim_spec import read_targets, require
from opd.results.estimate import Measurements, Missing, estimate, numbered
from opd.results.labels import axis, benchmark_label, ends, label_of, of_draws, plain
from opd.results.published import parse
from opd.results.quantity import (
    MACRO,
    METRIC,
    POINTS,
    PROBE,
    SCORES,
    Quantity,
    of_curve,
    of_panel,
    of_series,
)

PAGES = package_file(__file__, "pages/figures")
BINS = 30  # of a histogram
_ROLLOUTS = pa.schema(ROLLOUTS.field(name) for name in ("reward_nats", "correct"))

Cfg = Mapping[str, Any]
Data = dict[str, Any]


# Series


def _named(cfg: Cfg) -> Data:
    """The config with every series as an arm or a probe: ``of`` is its name, ``label`` is there.
    ``groups`` [{title, series}] are what curves have side by side, ``panels`` those of bars.
    Evaluations by step are arms of their own."""
    arms, probes = dict(cfg.get("arms") or {}), cfg.get("probes") or {}
    panels = cfg.get("panels") or []
    names = cfg.get("benchmarks") or ([MACRO] if cfg["kind"] == "bars" else [])
    panels = panels or [{"quantity": {"avg": name}} for name in names]
    grid = cfg["kind"] == "grid"
    groups = [
        {**group, "series": [_known(series, arms, probes) for series in group["series"]]}
        for group in (panels if grid else [{"title": "", "series": cfg["series"]}])
    ]
    levels = [_known(level, arms, probes) for level in cfg.get("levels") or []]
    for group in groups:
        # Behind a label that several series have stands the name of the arm.
        rows = [*group["series"], *([] if grid else levels)]
        counts = Counter(row["label"] for row in rows)
        for row in rows:
            if counts[row["label"]] > 1 and row["of"] != row["label"]:
                row["label"] += f" ({row['of']})"
    for name, arm in list(arms.items()):
        for step, inputs in (arm.get("scores") or {}).items():
            arms[_at_step(name, step)] = {"label": arm["label"], "evaluations": inputs}
    every = [series for group in groups for series in group["series"]]
    named = {"groups": groups, "series": every, "levels": levels, "panels": [] if grid else panels}
    return {**cfg, **named, "arms": arms, "probes": probes}


def _known(series: Cfg, arms: dict[str, Any], probes: Mapping[str, Any]) -> Data:
    """A series with the name and label of its arm or probe; its own inputs become an arm."""
    for kind, known in (("arm", arms), ("probe", probes)):
        if name := series.get(kind):
            if name not in known:
                raise UserError(f"no {kind} '{name}'", "series", suggestion(name, known))
            return {**series, "of": name, "label": series.get("label") or known[name]["label"]}
    name = series["label"]
    while name in arms:
        name += "'"
    arms[name] = {**series, "run": series.get("runs")}
    return {**series, "of": name}


def _at_step(arm: str, step: str | int) -> str:
    return f"{arm} at step {step}"


def _scored(cfg: Cfg, measured: Measurements) -> Evaluations:
    """Some series' evaluations: all that are compared have the same benchmarks."""
    for series in (*cfg["series"], *cfg["levels"]):
        arm = measured.arms.get(series["of"], {})
        for inputs in (arm.get("evaluations"), *(arm.get("scores") or {}).values()):
            if inputs:
                return measured.reader.evaluations(inputs, series["label"])
    raise UserError("no series has an evaluation", "series", "name models that are evaluated")


def _written_out(
    parts: Sequence[tuple[Cfg, Quantity]], cfg: Cfg, measured: Measurements
) -> Iterator[tuple[Cfg, Quantity]]:
    """Metrics or panels with their quantities. ``each`` becomes every benchmark, or nothing where
    the mean of a lone benchmark stands beside it."""
    means = [quantity.kind for _, quantity in parts if quantity.name == MACRO]
    for part, quantity in parts:
        names = _scored(cfg, measured).benchmarks() if quantity.each else (quantity.name,)
        if quantity.each and len(names) == 1 and quantity.kind in means:
            continue
        for name in names:
            yield part, replace(quantity, name=name)


def _plain(values: Iterable[float]) -> list[float | None]:
    return [plain(value) for value in values]


# Curves


def _scores_line(quantity: Quantity, measured: Measurements) -> Data:
    """avg@k at the kept steps, with its intervals as a band."""
    by_step = measured.arms.get(quantity.of, {}).get("scores")
    if not by_step:
        where = measured.label(quantity.of, "evaluations")
        raise UserError("no evaluations over steps", where, "keep steps and evaluate them")
    steps = sorted(by_step, key=int)
    at_steps = [replace(quantity, of=_at_step(quantity.of, step)) for step in steps]
    estimates = [estimate(at_step, measured) for at_step in at_steps]
    y, low, high = map(_plain, zip(*(result.interval() for result in estimates), strict=True))
    x, seeds = [int(step) for step in steps], estimates[-1].seeds
    return {"x": x, "y": y, "low": low, "high": high, "last": y[-1], "seeds": seeds}


def _metric_line(quantity: Quantity, measured: Measurements) -> Data:
    """A metric over steps, the mean of seeds, with a band from the lowest seed to the highest."""
    runs, where = measured.inputs(quantity.of, "run"), measured.label(quantity.of, "run")
    steps, values = measured.reader.metric(runs, quantity.name, where)
    logged = ~np.isnan(values).all(axis=0)
    sides = (np.nanmean, np.nanmin, np.nanmax) if len(runs) > 1 else (np.nanmean,)
    y, *band = (_plain(side(values[:, logged], axis=0)) for side in sides)
    low, high = band or (None, None)
    x, last = steps[logged].tolist(), None
    with suppress(Missing):
        last = plain(estimate(quantity, measured).value)
    return {"x": x, "y": y, "low": low, "high": high, "last": last, "seeds": len(runs)}


def read_curves(cfg: Cfg, measured: Measurements) -> Data:
    """One panel per metric, one line per series over steps; or groups of series across."""
    panels = []
    try:
        metrics = [(metric, of_curve(metric["name"])) for metric in cfg["metrics"]]
    except ValueError as error:
        raise UserError(str(error), "metrics", "mend the figure") from error
    for metric, quantity in _written_out(metrics, cfg, measured):
        is_score, label, levels = quantity.kind != METRIC, label_of(quantity.name), []
        line_of = _scores_line if is_score else _metric_line
        if is_score:
            scored = _scored(cfg, measured)
            label = f"{axis('avg', scored)}, {benchmark_label(quantity.name, scored)}"
            for level in cfg["levels"]:
                interval = estimate(replace(quantity, of=level["of"]), measured).interval()
                names = {"series": level["of"], "label": level["label"]}
                levels.append({**names, **ends(interval)})
        panels += [
            {
                "group": group["title"],
                "metric": quantity.short if is_score else quantity.name,
                "label": metric.get("label") or label,
                "log": bool(metric.get("log")),
                "percent": is_score,
                "lines": [
                    {"series": series["of"], "label": series["label"], "marks": []}
                    | line_of(replace(quantity, of=series["of"]), measured)
                    for series in group["series"]
                ],
                "levels": levels,
            }
            for group in cfg["groups"]
        ]
    return {
        "groups": [group["title"] for group in cfg["groups"]],
        "xlabel": cfg.get("xlabel", "training step"),
        "panels": panels,
    }


# Bars


def _bars(
    panel: Cfg, first: Quantity, series: Cfg, alone: bool, measured: Measurements
) -> Iterator[Data]:
    """The bars of a series, one for each value, named without the series where it is ``alone``."""
    quantities = [replace(first, of=series["of"])]
    if first.kind == PROBE:
        quantities = of_panel(panel["quantity"], series["of"])
    several = isinstance(panel["quantity"].get("value"), list) or first.several
    for quantity in quantities:
        try:
            names = numbered(quantity, measured) if quantity.several else [quantity.name]
        except Missing:
            continue
        for name in names:
            own, label = replace(quantity, name=name), series["label"]
            if several:
                part = name.removeprefix(quantity.name.removesuffix("*")) or name
                words = panel.get("each", "{}").replace("{}", part.replace("_", " "))
                label = words if alone else f"{label}: {words}"
            bar = {"series": own.of, "metric": own.short, "label": label, "marks": []}
            bar |= {"group": series.get("group"), "value": None, "low": None, "high": None}
            try:
                result = estimate(own, measured)
                yield {**bar, **ends(result.interval()), "seeds": result.seeds}
            except Missing as missing:
                yield {**bar, "seeds": 0, "missing": str(missing)}


def _titles(quantity: Quantity, cfg: Cfg, measured: Measurements) -> tuple[str, str]:
    """What stands above a panel of bars, and what below its axis."""
    if quantity.kind in SCORES:
        scored = _scored(cfg, measured)
        words = axis(quantity.kind, scored)
        if quantity.kind == "change":
            words = f"change in {axis('avg', scored).replace('%', 'points')}"
        return benchmark_label(quantity.name, scored), words
    unit = quantity.unit or "value"
    if quantity.kind == PROBE:
        return label_of(quantity.name.rstrip("*_")), unit
    when = {"start": "at the start", "end": "at the end"}.get(quantity.at or "", quantity.at)
    label = label_of(quantity.name)
    return f"{label.rpartition(' (')[0] or label}, {when}", unit  # the unit is below the axis


def _bar_panels(panels: Sequence[Cfg], cfg: Cfg, measured: Measurements) -> list[Data]:
    """A panel for every quantity that a series may have."""
    parts = [(panel, of_panel(panel["quantity"])[0]) for panel in panels]
    drawn = []
    for panel, first in _written_out(parts, cfg, measured):
        is_score, of_probes = first.kind in SCORES, first.kind == PROBE
        rows = [series for series in cfg["series"] if of_probes == ("probe" in series)]
        alone = len(rows) == 1
        bars = [bar for series in rows for bar in _bars(panel, first, series, alone, measured)]
        if not bars:
            continue
        title, unit = _titles(first, cfg, measured)
        unit = panel.get("unit") or ("%" if panel.get("percent") and not is_score else unit)
        bounded = any(bar["value"] is not None and bar["low"] < bar["high"] for bar in bars)
        drawn.append(
            {
                "label": panel.get("label") or title,
                "unit": unit,
                "axis": f"{unit}, 95 % interval" if bounded else unit,
                "percent": panel.get("percent", is_score and first.unit in ("share", POINTS)),
                "bars": bars,
            }
        )
    return drawn


def read_bars(cfg: Cfg, measured: Measurements) -> Data:
    """One panel per quantity, one bar per series, or per value of a probe."""
    panels = _bar_panels(cfg["panels"], cfg, measured)
    if not panels:
        remedy = "name arms for scores and metrics, probes for values"
        raise UserError("no series has any of these quantities", "panels", remedy)
    return {"panels": panels}


def read_heatmap(cfg: Cfg, measured: Measurements) -> Data:
    """A metric by step and response position, mean over seeds, one panel per series."""
    (metric,) = cfg["metrics"]
    panels = []
    for series in cfg["series"]:
        runs, where = measured.inputs(series["of"], "run"), measured.label(series["of"], "run")
        curves = measured.reader.positions(runs, metric["name"], where)
        logged = np.concatenate(curves, axis=1)
        steps, starts = np.unique(logged[0]), np.unique(logged[1])
        width = np.diff(starts).min() if len(starts) > 1 else starts[0] + 1
        # Bins that no response reached at any step keep their place.
        bins = np.arange(0, starts[-1] + 1, width)
        borders = [[*bins, bins[-1] + width], [*steps, steps[-1] + 1]]
        step, position, value = logged[:, ~np.isnan(logged[2])]
        means = np.full((len(bins), len(steps)), np.nan)
        if len(value):
            means = binned_statistic_2d(position, step, value, "mean", borders).statistic
        panels.append(
            {
                "series": series["of"],
                "label": series["label"],
                "metric": metric["name"],
                "seeds": len(runs),
                "steps": steps.astype(int).tolist(),
                "positions": bins.astype(int).tolist(),
                "width": int(width),
                "values": [_plain(row) for row in means],
            }
        )
    if not any(row.count(None) < len(row) for panel in panels for row in panel["values"]):
        reason = f"'{metric['name']}' is no number at any position"
        raise UserError(reason, "metrics", "name another metric")
    label = metric.get("label") or label_of(metric["name"])
    return {"label": label, "xlabel": cfg.get("xlabel", "training step"), "panels": panels}


def read_scatter(cfg: Cfg, measured: Measurements) -> Data:
    """Two quantities, one point per series; a series that lacks one has no point."""
    data: Data = {"points": [], "missing_points": []}
    sides = []
    for side in ("x", "y"):
        panels = _bar_panels([cfg[side]], cfg, measured)
        if not panels:
            raise UserError("no series has this quantity", side, "name arms for scores and metrics")
        label, unit = panels[0]["label"], panels[0]["unit"]
        is_score = of_panel(cfg[side]["quantity"])[0].kind in SCORES
        text = f"{unit}, {label}" if is_score else f"{label} ({unit})"
        data[side] = {"label": text, "percent": panels[0]["percent"]}
        sides.append(panels[0]["bars"])
    for x, y in zip(*sides, strict=True):
        if x["value"] is None or y["value"] is None:
            data["missing_points"].append(x if x["value"] is None else y)
        else:
            data["points"].append({"series": x["series"], "label": x["label"], "x": x, "y": y})
    if not data["points"]:
        raise UserError("no series has both quantities", "series", "name arms that were measured")
    return data


def read_distribution(cfg: Cfg, measured: Measurements) -> Data:
    """Histograms of the sequence mean reward of right and wrong rollouts (Rethinking OPD, section
    6.2), one panel per probe, over the same bins; values of the probes as bars below.

    The outer bins hold the two per mille that lie beyond them on either side.
    """
    rollouts = []
    for series in cfg["series"]:
        runs, where = measured.inputs(series["of"], "probe"), measured.label(series["of"], "probe")
        paths = [measured.reader.file(run, "rollouts.parquet", where) for run in runs]
        every = pa.concat_tables([tables.read(path, _ROLLOUTS) for path in paths])
        rollouts.append(every.filter(every["correct"].is_valid()))
    rewards = pa.concat_tables(rollouts)["reward_nats"].to_numpy()
    if not len(rewards):
        raise UserError("no rollout is graded", "series", "grade the rollouts of the probe")
    edges = np.histogram_bin_edges(np.quantile(rewards, [0.002, 0.998]), BINS)
    panels = []
    for series, graded in zip(cfg["series"], rollouts, strict=True):
        panel = {"series": series["of"], "label": series["label"], "edges": _plain(edges)}
        rewards = graded["reward_nats"].to_numpy().clip(edges[0], edges[-1])
        right = graded["correct"].to_numpy().astype(bool)
        for kind, chosen in {"right": right, "wrong": ~right}.items():
            counts, _ = np.histogram(rewards[chosen], edges)
            panel[kind] = _plain(counts / max(1, counts.sum()))
            panel[f"n_{kind}"] = int(counts.sum())
        panels.append(panel)
    return {
        "label": cfg.get("xlabel", "sequence mean reward (nats per token)"),
        "panels": panels,
        "bars": _bar_panels(cfg["panels"], cfg, measured),
    }


# Published values


def _panels(data: Data) -> list[Data]:
    return [*data.get("panels", []), *data.get("bars", [])]


def _mark(data: Data, place: Cfg, row: Cfg, of_probe: bool) -> bool:
    """Put a published value where its series is drawn; False where it is not."""
    value = parse(row["value"])
    if value is None or not place.get("series"):
        return False
    mark = {**value._asdict(), "text": row["value"]}
    series, at, placed = place["series"], place.get("at"), False
    quantity = of_series(place["metric"], series, None if at is None else str(at), of_probe)
    for panel in _panels(data):
        for line in panel.get("lines", []):
            if (line["series"], panel["metric"]) == (series, place["metric"]) and line["x"]:
                ends: dict[Any, int] = {"start": line["x"][0], "end": line["x"][-1]}
                line["marks"].append({**mark, "x": ends.get(at, at)})
                placed = True
        for bar in panel.get("bars", []):
            its_own = (bar["series"], bar["metric"]) == (series, quantity.short)
            # A bar is a metric at some time, or a score or a probe's value, which have none.
            if its_own and bar["value"] is not None and (quantity.kind == METRIC or at is None):
                bar["marks"].append(mark)
                placed = True
    return placed


def _publish(data: Data, cfg: Cfg, inputs: Mapping[str, Path]) -> None:
    """Mark published values where the scale is comparable, and list them all."""
    files = [path for name, path in inputs.items() if name.startswith("targets:")]
    rows = {row["id"]: row for path in files for row in read_targets(path)}
    probes = {series["of"] for series in cfg["series"] if "probe" in series}
    data["published"] = []
    for place in cfg.get("published") or []:
        require(place["target"], rows, "published")
        row = rows[place["target"]]
        of_probe = place.get("series") in probes
        drawn = bool(cfg.get("comparable")) and _mark(data, place, row, of_probe)
        data["published"].append({**place, "row": row, "drawn": drawn})


def _caption(data: Data, cfg: Cfg) -> str:
    """What a reader has to know beside the drawing, as Markdown."""
    panels = _panels(data)
    bars = [bar for panel in panels for bar in panel.get("bars", [])]
    bars += [point[side] for point in data.get("points", []) for side in ("x", "y")]
    lines = [(panel, line) for panel in panels for line in panel.get("lines", [])]
    counted = (*bars, *(line for _, line in lines), *panels)
    seeds = sorted({part["seeds"] for part in counted if part.get("seeds")})
    labels = {
        series["label"]: cfg["probes" if "probe" in series else "arms"][series["of"]]["label"]
        for series in (*cfg["series"], *cfg["levels"])
    }
    shown = [*cfg["panels"], *(cfg[side] for side in ("x", "y") if side in cfg)]
    kinds = {of_panel(panel["quantity"])[0].kind for panel in shown}
    text = render(
        PAGES,
        "caption.md.j2",
        cfg=cfg,
        published=data["published"],
        seeds=seeds,
        several=max(seeds, default=1) > 1,
        draws=lambda drawn: of_draws(cfg, drawn, seeds),
        stands=[f"{label}: {own}" for label, own in labels.items() if own != label],
        bands_of_scores=any(panel["percent"] for panel, _ in lines),
        other_bands=any(line["low"] for panel, line in lines if not panel["percent"]),
        levels=dict.fromkeys(row["label"] for p in panels for row in p.get("levels", [])),
        gaps=any(None in row for panel in panels for row in panel.get("values", [])),
        kinds={"score" if kind in SCORES else kind for kind in kinds},
        absent=[
            f"{bar['metric']}, {bar['label']}: {bar['missing']}"
            for bar in (*bars, *data.get("missing_points", []))
            if bar.get("missing")
        ]
        + [f"{panel['metric']}, {line['label']}" for panel, line in lines if not line["x"]],
    )
    return text.strip() + "\n"


KINDS: dict[str, tuple[Callable[[Cfg, Measurements], Data], Callable[[Cfg], Any]]] = {
    "curves": (read_curves, drawing.draw_curves),
    "grid": (read_curves, drawing.draw_curves),
    "bars": (read_bars, drawing.draw_bars),
    "heatmap": (read_heatmap, drawing.draw_heatmap),
    "scatter": (read_scatter, drawing.draw_scatter),
    "distribution": (read_distribution, drawing.draw_distribution),
}


def run_figure(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Draw a figure (``opd.results.drawing.draw``), and write figure.json (all numbers that are
    drawn, and the digests of all files that were read for them) and caption.md.

    cfg: ``kind``, ``title``, ``caption``, ``seed`` and ``resamples`` of the bootstrap, and by kind:

    - curves: ``metrics`` [{name, label, log}] over steps, ``series``, ``levels`` (series whose
      final score is a horizontal line), ``xlabel``. A metric ``avg:BENCHMARK`` is accuracy; the
      benchmark may be ``macro``, or ``each`` for a panel of every one.
    - grid: the same with ``panels`` [{title, series}] across.
    - bars: ``benchmarks``, or ``panels`` [{quantity, label, unit, percent, each}]; a quantity is
      {avg: BENCHMARK}, {metric, at} or {value: NAME | [NAMES] | "advantage_*"} of probes
      (``opd.results.quantity.of_panel``). ``each`` words a bar of several values, as
      "prefix of {} tokens".
    - heatmap: one of ``metrics`` by step and response position.
    - scatter: ``x`` and ``y``, each as a panel of bars.
    - distribution: rewards of right and wrong rollouts of probes; ``panels`` of bars below.

    A series is {arm} or {probe} with an optional label and group, looked up in ``arms`` {NAME:
    {label, evaluations, base, teacher, run, scores: {STEP: [..]}}} and ``probes`` {NAME: {label,
    runs}}; or {label, runs, evaluations, group}. All of these name ``inputs``, one per seed.
    ``published`` [{target, series, metric, at}] are rows of inputs ``targets:PAPER``, marked where
    the scale is ``comparable``, else named in the caption, as is what is ``missing``.

    Returns the last value of each curve, or [value, low, high] of each bar. Raises ``UserError`` on
    a name that is not there and on evaluations that do not compare.
    """
    kind = cfg["kind"]
    if kind not in KINDS:
        raise UserError(f"no kind of figure '{kind}'", "kind", suggestion(kind, KINDS))
    read, draw = KINDS[kind]
    cfg = _named(cfg)
    measured = Measurements(cfg, Reader(inputs))
    try:
        numbers = read(cfg, measured)
    except Missing as missing:
        raise UserError(f"there is no {missing}", "series", "name what is measured") from missing
    data = {"kind": kind, "title": cfg.get("title"), **numbers}
    _publish(data, cfg, inputs)
    data["sources"] = [
        f"{name}/{file}={digest}"
        for name in inputs
        for file, digest in measured.reader.digests(name).items()
    ]
    # What is drawn is what is written.
    data = json.loads(json.dumps(data, allow_nan=False))
    drawing.draw(draw, data, out)
    tables.write_json(out / "figure.json", data)
    tables.write_text(out / "caption.md", _caption(data, cfg))
    return _summary(data)


def _summary(data: Data) -> dict[str, Any]:
    """The few numbers of a figure that its manifest holds."""
    summary: dict[str, Any] = {}
    several = len(data.get("groups", [])) > 1
    for panel in _panels(data):
        group = summary.setdefault(panel["group"], {}) if several else summary
        for line in panel.get("lines", []):
            group.setdefault(line["label"], {})[panel["metric"]] = line["last"]
        for bar in panel.get("bars", []):
            interval = [bar[end] for end in drawing.ENDS]
            group.setdefault(bar["label"], {})[bar["metric"]] = interval
    for point in data.get("points", []):
        summary[point["label"]] = {side: point[side]["value"] for side in ("x", "y")}
    return summary

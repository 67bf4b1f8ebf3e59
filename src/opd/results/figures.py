"""Figures: what one shows is config; its numbers are worked out here and drawn by
``opd.results.drawing``.

A series names an arm or a probe of the scale, or its inputs outright, one per seed
(``opd.evaluation.reader`` reads them). Same inputs, same bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opd.core import tables
from opd.core.errors import UserError
from opd.core.text import suggestion
from opd.evaluation.reader import Evaluations, NothingLogged, Reader
from opd.probes.schemas import ROLLOUTS
from opd.results.claim_spec import read_targets
from opd.results.drawing import draw
from opd.results.estimate import Estimate, Measurements, Missing, estimate, numbered
from opd.results.labels import axis, benchmark_label, label_of, of_draws, plain
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

BINS = 30  # of a histogram
_ROLLOUTS = pa.schema(ROLLOUTS.field(name) for name in ("reward_nats", "correct"))

Cfg = Mapping[str, Any]
Data = dict[str, Any]


# Series


def _named(cfg: Cfg) -> Data:
    """The config with every series as an arm or a probe: ``of`` is its name, ``label`` is there,
    and evaluations by step are arms of their own."""
    arms, probes = dict(cfg.get("arms") or {}), cfg.get("probes") or {}
    named = {
        key: [_known(series, arms, probes) for series in cfg.get(key) or []]
        for key in ("series", "levels")
    }
    panels = [
        {**panel, "series": [_known(series, arms, probes) for series in panel["series"]]}
        if "series" in panel
        else panel
        for panel in cfg.get("panels") or []
    ]
    _tell_apart([*named["series"], *named["levels"]])
    for panel in panels:
        _tell_apart(panel.get("series", []))
    for name, arm in list(arms.items()):
        for step, inputs in (arm.get("scores") or {}).items():
            arms[_at_step(name, step)] = {"label": arm["label"], "evaluations": inputs}
    return {**cfg, **named, "panels": panels, "arms": arms, "probes": probes}


def _known(series: Cfg, arms: dict[str, Any], probes: Mapping[str, Any]) -> Data:
    """A series with the name and the label of its arm or probe. One that names its inputs outright
    becomes an arm."""
    for kind, known in (("arm", arms), ("probe", probes)):
        if name := series.get(kind):
            if name not in known:
                raise UserError(f"no {kind} '{name}'", "series", suggestion(name, known))
            return {**series, "of": name, "label": series.get("label") or known[name]["label"]}
    name = series["label"]
    while name in arms:
        name += "'"
    roles = {"evaluations": "evaluations", "run": "runs", "scores": "scores"}
    arms[name] = {role: series[key] for role, key in roles.items() if key in series}
    arms[name]["label"] = series["label"]
    return {**series, "of": name}


def _tell_apart(series: Sequence[Data]) -> None:
    """Put the names of arms behind labels that several series have."""
    labels = [one["label"] for one in series]
    for one in series:
        if labels.count(one["label"]) > 1 and one["of"] != one["label"]:
            one["label"] += f" ({one['of']})"


def _at_step(arm: str, step: str | int) -> str:
    return f"{arm} at step {step}"


def _all_series(cfg: Cfg) -> Iterator[Data]:
    yield from cfg["series"]
    for panel in cfg["panels"]:
        yield from panel.get("series") or []


def _where(series: Cfg) -> str:
    return f"series '{series['label']}'"


def _scored(cfg: Cfg, measured: Measurements) -> Evaluations:
    """Some series' evaluations: all that are compared have the same benchmarks."""
    for series in [*_all_series(cfg), *cfg["levels"]]:
        arm = measured.arms.get(series["of"], {})
        by_step = list((arm.get("scores") or {}).values())
        if "evaluations" in arm or by_step:
            inputs = arm["evaluations"] if "evaluations" in arm else by_step[0]
            return measured.reader.evaluations(inputs, _where(series))
    raise UserError("no series has an evaluation", "series", "name models that are evaluated")


def _written_out(
    shown: Sequence[tuple[Cfg, Quantity]], cfg: Cfg, measured: Measurements
) -> Iterator[tuple[Cfg, Quantity]]:
    """Metrics or panels with their quantities, ``each`` as every benchmark: as none where a lone
    one is its own mean beside it."""
    asked = [(quantity.kind, quantity.name) for _, quantity in shown]
    for what, quantity in shown:
        names: Sequence[str] = (quantity.name,)
        if quantity.each:
            names = _scored(cfg, measured).benchmarks()
            names = () if len(names) == 1 and (quantity.kind, MACRO) in asked else names
        for name in names:
            yield what, replace(quantity, name=name)


def _ends(result: Estimate) -> dict[str, float | None]:
    return dict(zip(("value", "low", "high"), map(plain, result.interval()), strict=True))


# Curves


def _scores_line(series: Cfg, benchmark: str, measured: Measurements) -> Data:
    """avg@k at the kept steps, with its intervals as a band."""
    by_step = measured.arms.get(series["of"], {}).get("scores")
    if not by_step:
        raise UserError("no evaluations over steps", _where(series), "keep steps and evaluate them")
    steps = sorted(by_step, key=int)
    at_steps = [Quantity("avg", _at_step(series["of"], step), benchmark) for step in steps]
    intervals = [estimate(quantity, measured).interval() for quantity in at_steps]
    y, low, high = ([plain(end) for end in side] for side in zip(*intervals, strict=True))
    seeds = len(by_step[steps[-1]])
    x = [int(step) for step in steps]
    return {"seeds": seeds, "x": x, "y": y, "low": low, "high": high, "last": y[-1]}


def _metric_line(series: Cfg, quantity: Quantity, measured: Measurements) -> Data:
    """A metric over steps, the mean of seeds, with a band from the lowest seed to the highest."""
    runs = measured.arms.get(series["of"], {}).get("run") or []
    try:
        steps, values = measured.reader.metric(runs, quantity.name, _where(series))
    except NothingLogged:
        steps, values = np.empty(0, int), np.empty((len(runs), 0))
    seen = ~np.isnan(values).all(axis=0)
    values = values[:, seen]
    points = [side(values, axis=0) for side in (np.nanmean, np.nanmin, np.nanmax)]
    y, low, high = ([plain(value) for value in side] for side in points)
    try:
        last = plain(estimate(replace(quantity, of=series["of"]), measured).value)
    except Missing:
        last = None
    band = {"low": low, "high": high} if len(runs) > 1 else {"low": None, "high": None}
    return {"seeds": len(runs), "x": steps[seen].tolist(), "y": y, **band, "last": last}


def _line(series: Cfg, quantity: Quantity, measured: Measurements) -> Data:
    if quantity.kind == METRIC:
        line = _metric_line(series, quantity, measured)
    else:
        line = _scores_line(series, quantity.name, measured)
    return {"series": series["of"], "label": series["label"], **line}


def read_curves(cfg: Cfg, measured: Measurements) -> Data:
    """One panel per metric, one line per series over steps; or groups of series across."""
    groups = cfg["panels"] or [{"title": "", "series": cfg["series"]}]
    panels = []
    try:
        metrics = [(metric, of_curve(metric["name"])) for metric in cfg["metrics"]]
    except ValueError as error:
        reason, _, remedy = str(error).rpartition(": ")
        raise UserError(reason, "metrics", remedy) from error
    for metric, quantity in _written_out(metrics, cfg, measured):
        is_score, label, levels = quantity.kind != METRIC, label_of(quantity.name), []
        if is_score:
            scored = _scored(cfg, measured)
            label = f"{axis('avg', scored)}, {benchmark_label(quantity.name, scored)}"
            for level in cfg["levels"]:
                ends = _ends(estimate(replace(quantity, of=level["of"]), measured))
                levels.append({"series": level["of"], "label": level["label"], **ends})
        panels += [
            {
                "group": group["title"],
                "metric": quantity.short if is_score else quantity.name,
                "label": metric.get("label") or label,
                "log": bool(metric.get("log")),
                "percent": is_score,
                "lines": [_line(series, quantity, measured) for series in group["series"]],
                "levels": levels,
            }
            for group in groups
        ]
    return {
        "groups": [group["title"] for group in groups],
        "xlabel": cfg.get("xlabel", "training step"),
        "panels": panels,
    }


# Bars


def _quantities(
    panel: Cfg, first: Quantity, series: Cfg, measured: Measurements
) -> Iterator[tuple[Quantity, str]]:
    """What a panel shows of a series, and words of its own where that is several values of a
    probe."""
    asked = of_panel(panel["quantity"]) if first.kind == PROBE else [first]
    several = isinstance(panel["quantity"].get("value"), list) or first.several
    for quantity in asked:
        own = replace(quantity, of=series["of"])
        try:
            names = numbered(own, measured) if quantity.several else [quantity.name]
        except Missing:
            names = []
        for name in names:
            part = name.removeprefix(quantity.name.removesuffix("*")) or name
            words = panel.get("each", "{}").format(part.replace("_", " "))
            yield replace(own, name=name), words if several else ""


def _bar(quantity: Quantity, words: str, series: Cfg, alone: bool, measured: Measurements) -> Data:
    label = words if words and alone else ": ".join(filter(None, (series["label"], words)))
    bar: Data = {
        "series": series["of"],
        "metric": quantity.short,
        "label": label,
        "group": series.get("group"),
        "value": None,
        "low": None,
        "high": None,
        "seeds": 0,
    }
    try:
        result = estimate(quantity, measured)
    except Missing as missing:
        return {**bar, "missing": str(missing)}
    return {**bar, **_ends(result), "seeds": result.seeds}


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
    shown = [(panel, of_panel(panel["quantity"])[0]) for panel in panels]
    written = _written_out(shown, cfg, measured)
    drawn = [_bar_panel(panel, first, cfg, measured) for panel, first in written]
    return [panel for panel in drawn if panel["bars"]]


def _bar_panel(panel: Cfg, first: Quantity, cfg: Cfg, measured: Measurements) -> Data:
    is_score, of_probes = first.kind in SCORES, first.kind == PROBE
    series = [one for one in cfg["series"] if of_probes == ("probe" in one)]
    bars = [
        _bar(quantity, words, one, len(series) == 1, measured)
        for one in series
        for quantity, words in _quantities(panel, first, one, measured)
    ]
    title, unit = _titles(first, cfg, measured)
    unit = panel.get("unit") or ("%" if panel.get("percent") and not is_score else unit)
    drawn = any(bar["value"] is not None and bar["low"] < bar["high"] for bar in bars)
    return {
        "label": panel.get("label") or title,
        "unit": unit,
        "axis": f"{unit}, 95 % interval" if drawn else unit,
        "percent": panel.get("percent", is_score and first.unit in ("share", POINTS)),
        "bars": bars,
    }


def read_bars(cfg: Cfg, measured: Measurements) -> Data:
    """One panel per quantity, one bar per series, or per value of a probe."""
    panels = cfg["panels"] or [{"quantity": {"avg": b}} for b in cfg.get("benchmarks") or [MACRO]]
    return {"panels": _bar_panels(panels, cfg, measured)}


# Heat maps


def read_heatmap(cfg: Cfg, measured: Measurements) -> Data:
    """A metric by step and response position, mean over seeds, one panel per series."""
    (metric,) = cfg["metrics"]
    panels = []
    for series in cfg["series"]:
        runs = measured.arms.get(series["of"], {}).get("run") or []
        curves = measured.reader.positions(runs, metric["name"], _where(series))
        steps, positions = (np.unique(np.concatenate([c[i] for c in curves])) for i in (0, 1))
        cells = np.full((len(curves), len(positions), len(steps)), np.nan)
        for seed, (at, position, value) in zip(cells, curves, strict=True):
            seed[np.searchsorted(positions, position), np.searchsorted(steps, at)] = value
        counted = (~np.isnan(cells)).sum(axis=0)
        means = np.where(counted, np.nansum(cells, axis=0) / np.maximum(counted, 1), np.nan)
        width = int(np.diff(positions).min()) if len(positions) > 1 else int(positions[0]) + 1
        # Bins that no response reached at any step keep their place.
        bins = np.arange(0, positions[-1] + 1, width)
        values = np.full((len(bins), len(steps)), np.nan)
        values[np.searchsorted(bins, positions)] = means
        panels.append(
            {
                "series": series["of"],
                "label": series["label"],
                "metric": metric["name"],
                "seeds": len(runs),
                "steps": steps.tolist(),
                "positions": bins.tolist(),
                "width": width,
                "values": [[plain(v) for v in row] for row in values],
            }
        )
    label = metric.get("label") or label_of(metric["name"])
    return {"label": label, "xlabel": cfg.get("xlabel", "training step"), "panels": panels}


# One quantity against another


def read_scatter(cfg: Cfg, measured: Measurements) -> Data:
    """Two quantities, one point per series; a series that lacks one has no point."""
    sides = {side: _bar_panels([cfg[side]], cfg, measured) for side in ("x", "y")}
    data: Data = {"points": [], "missing_points": []}
    for side, panels in sides.items():
        if not panels:
            raise UserError("no series has this quantity", side, "name arms for scores and metrics")
        label, unit = panels[0]["label"], panels[0]["unit"]
        is_score = of_panel(cfg[side]["quantity"])[0].kind in SCORES
        text = f"{unit}, {label}" if is_score else f"{label} ({unit})"
        data[side] = {"label": text, "percent": panels[0]["percent"]}
    for x, y in zip(*(panels[0]["bars"] for panels in sides.values()), strict=True):
        if x["value"] is None or y["value"] is None:
            data["missing_points"].append(x if x["value"] is None else y)
        else:
            data["points"].append({"series": x["series"], "label": x["label"], "x": x, "y": y})
    if not data["points"]:
        raise UserError("no series has both quantities", "series", "name arms that were measured")
    return data


# Distributions


def _rollouts(series: Cfg, measured: Measurements) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and whether right of a probe's graded rollouts, all seeds together."""
    runs = measured.probes.get(series["of"], {}).get("runs") or []
    if not runs:
        raise UserError("no run of the probe is named", _where(series), "name one input per seed")
    paths = [measured.reader.file(run, "rollouts.parquet", _where(series)) for run in runs]
    rollouts = pa.concat_tables([tables.read(path, _ROLLOUTS) for path in paths])
    graded = rollouts.filter(rollouts["correct"].is_valid())
    return graded["reward_nats"].to_numpy(), graded["correct"].to_numpy()


def read_distribution(cfg: Cfg, measured: Measurements) -> Data:
    """Histograms of the sequence mean reward of right and wrong rollouts (Rethinking OPD, section
    6.2), one panel per probe, over the same bins; values of the probes as bars below.

    The outer bins hold the two per mille that lie beyond them on either side.
    """
    rollouts = [(series, *_rollouts(series, measured)) for series in cfg["series"]]
    rewards = np.concatenate([reward for _, reward, _ in rollouts])
    if not len(rewards):
        raise UserError("no rollout is graded", "series", "grade the rollouts of the probe")
    low, high = np.quantile(rewards, [0.002, 0.998])
    edges = np.histogram_bin_edges([low, high], BINS)
    panels = []
    for series, reward, right in rollouts:
        held = np.clip(reward, edges[0], edges[-1])
        kinds = {"right": right.astype(bool), "wrong": ~right.astype(bool)}
        counts = {kind: np.histogram(held[those], edges)[0] for kind, those in kinds.items()}
        panels.append(
            {
                "series": series["of"],
                "label": series["label"],
                "edges": [plain(v) for v in edges],
                **{k: [plain(v) for v in n / max(1, n.sum())] for k, n in counts.items()},
                **{f"n_{k}": int(n.sum()) for k, n in counts.items()},
            }
        )
    return {
        "label": cfg.get("xlabel", "sequence mean reward (nats per token)"),
        "panels": panels,
        "bars": _bar_panels(cfg["panels"], cfg, measured),
    }


# Published values


def _panels(data: Data) -> list[Data]:
    return [*data.get("panels", []), *data.get("bars", [])]


def _mark(data: Data, row: Cfg, of_probe: bool) -> bool:
    """Put a published value where its series is drawn; False where it is not."""
    value = parse(row["value"])
    if value is None or not row.get("series") or not row.get("metric"):
        return False
    mark = {"series": row["series"], **value._asdict(), "text": row["value"]}
    at, placed = row.get("at"), False
    quantity = of_series(row["metric"], row["series"], str(at), of_probe)
    # A bar is a metric at some time, or a score or a probe's value, which have none.
    has_bar = (quantity.kind == METRIC) == (at is not None)
    for panel in _panels(data):
        for line in panel.get("lines", []) if panel.get("metric") == row["metric"] else []:
            if line["series"] == row["series"] and line["x"]:
                ends = {"start": line["x"][0], "end": line["x"][-1], None: None}
                x = ends.get(at, at)
                last = x is not None and x > (line["x"][0] + line["x"][-1]) / 2
                panel["marks"].append({**mark, "metric": row["metric"], "x": x, "last": last})
                placed = True
        for bar in panel.get("bars", []) if has_bar else []:
            its_own = (bar["series"], bar["metric"]) == (row["series"], quantity.short)
            if its_own and bar["value"] is not None:
                panel["marks"].append({**mark, "metric": quantity.short})
                placed = True
    return placed


def _publish(data: Data, cfg: Cfg, inputs: Mapping[str, Path]) -> None:
    """Mark published values where the scale is comparable, and list them all."""
    for panel in _panels(data):
        panel["marks"] = []
    files = [path for name, path in inputs.items() if name.startswith("targets:")]
    rows = {row["id"]: row for path in files for row in read_targets(path)}
    probes = {series["of"] for series in _all_series(cfg) if "probe" in series}
    data["published"] = []
    for shown in cfg.get("published") or []:
        if shown["target"] not in rows:
            raise UserError(
                f"no published row '{shown['target']}'", "published", "name one of the targets"
            )
        row = rows[shown["target"]]
        about = [row[key] for key in ("student", "teacher", "metric", "benchmark", "setting")]
        entry = {
            **shown,
            "value": row["value"],
            "confidence": row["confidence"],
            "about": ", ".join(text for text in about if text not in ("", "-")),
        }
        drawn = bool(cfg.get("comparable")) and _mark(data, entry, shown.get("series") in probes)
        data["published"].append({**entry, "drawn": drawn})


# Captions


def _caption(data: Data, cfg: Cfg) -> str:
    """What a reader has to know beside the drawing, as Markdown."""
    panels = _panels(data)
    bars = [bar for panel in panels for bar in panel.get("bars", [])]
    points = [point[side] for point in data.get("points", []) for side in ("x", "y")]
    lines = [line for panel in panels for line in panel.get("lines", [])]
    seeds = sorted({x["seeds"] for x in (*bars, *points, *lines, *panels) if x.get("seeds")})
    labels = {
        x["label"]: cfg["probes" if "probe" in x else "arms"][x["of"]]["label"]
        for x in (*_all_series(cfg), *cfg["levels"])
    }
    stands = "; ".join(f"{label}: {own}" for label, own in labels.items() if own != label)
    text = [(cfg.get("caption") or "").strip(), f"{stands}." if stands else ""]
    parts = [f"**{cfg['title']}**"] if cfg.get("title") else []
    parts.append(" ".join(filter(None, [*text, *_how(data, cfg, seeds)])))
    if cfg.get("missing"):
        parts.append(f"Not run at this scale, so not drawn: {', '.join(cfg['missing'])}.")
    without = [bar for bar in (*bars, *data.get("missing_points", [])) if bar.get("missing")]
    absent = "; ".join(f"{bar['metric']}, {bar['label']}: {bar['missing']}" for bar in without)
    parts += [f"Without a value: {absent}."] if absent else []
    others = sum(not row["drawn"] for row in data["published"])
    if others < len(data["published"]):
        more = f"; {others} more have no place in the drawing" if others else ""
        parts.append(f"Open diamonds are published values{more}.")
    elif others and cfg.get("comparable"):
        parts.append("Published values have no place in the drawing.")
    elif others:
        parts.append("Published values belong to other models and data, and are not drawn.")
    return "\n\n".join(parts) + "\n"


def _how(data: Data, cfg: Cfg, seeds: Sequence[int]) -> Iterator[str]:
    """How many seeds the numbers are from, and what bands and intervals mean."""
    if seeds:
        several = f"Means over {' or '.join(map(str, seeds))} seeds."
        yield "One seed." if list(seeds) == [1] else several
    panels = data.get("panels", [])
    scores = any(panel["percent"] for panel in panels if panel.get("lines"))
    if scores:
        draws = of_draws(cfg, "problems", seeds)
        yield f"Bands of scores are 95 % intervals from {draws}."
    if any(line["low"] for p in panels for line in p.get("lines", []) if not p["percent"]):
        bands = "Other bands" if scores else "Bands"
        yield f"{bands} reach from the lowest seed to the highest."
    levels = dict.fromkeys(level["label"] for p in panels for level in p.get("levels", []))
    if levels:
        many = len(cfg["levels"]) > 1
        start = "Horizontal lines are the scores" if many else "The horizontal line is the score"
        yield f"{start} of {' and '.join(levels)}."
    if data["kind"] == "heatmap" and any(None in row for p in panels for row in p["values"]):
        yield "Hatched: no response is that long."
    if data["kind"] in ("bars", "scatter", "distribution"):
        yield f"Intervals are 95 %: {'; '.join(_intervals(cfg, seeds))}."


def _intervals(cfg: Cfg, seeds: Sequence[int]) -> Iterator[str]:
    """What the intervals of quantities are from, for each kind that is drawn."""
    panels = cfg.get("panels") or [cfg[side] for side in ("x", "y") if side in cfg]
    kinds = {of_panel(panel["quantity"])[0].kind for panel in panels}
    if not panels or kinds & {*SCORES}:
        yield f"of scores from {of_draws(cfg, 'problems', seeds)}"
    if PROBE in kinds:
        yield f"of probes from {of_draws(cfg, 'prompts', seeds)}"
    if METRIC in kinds and max(seeds, default=1) > 1:
        yield "of what training logs Student's t over seeds"
    elif METRIC in kinds:
        steps = of_draws(cfg, "blocks of steps", seeds)
        yield f"of what training logs, where it is a mean over steps, from {steps}"


# All kinds

KINDS: dict[str, Callable[[Cfg, Measurements], Data]] = {
    "curves": read_curves,
    "grid": read_curves,
    "bars": read_bars,
    "heatmap": read_heatmap,
    "scatter": read_scatter,
    "distribution": read_distribution,
}


def run_figure(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Draw a figure: figure.png (160 dpi), figure.svg, figure.json (all numbers that are drawn,
    and the digests of all files that were read for them) and caption.md.

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
    cfg = _named(cfg)
    measured = Measurements(cfg, Reader(inputs))
    drawn = "curves" if kind == "grid" else kind
    try:
        data = {"kind": drawn, "title": cfg.get("title"), **KINDS[kind](cfg, measured)}
    except Missing as missing:
        raise UserError(f"there is no {missing}", "series", "name what is measured") from missing
    _publish(data, cfg, inputs)
    data["sources"] = [
        f"{name}/{file}={digest}"
        for name in inputs
        for file, digest in measured.reader.digests(name).items()
    ]
    # What is drawn is what is written.
    data = json.loads(json.dumps(data, allow_nan=False))
    draw(data, out)
    tables.write_json(out / "figure.json", data)
    tables.write_text(out / "caption.md", _caption(data, cfg))
    return _summary(data)


def _summary(data: Data) -> dict[str, Any]:
    """The few numbers of a figure that its manifest holds."""
    summary: dict[str, Any] = {}
    several = len(data.get("groups", [])) > 1
    for panel in _panels(data):
        shown = summary.setdefault(panel["group"], {}) if several else summary
        for line in panel.get("lines", []):
            shown.setdefault(line["label"], {})[panel["metric"]] = line["last"]
        for bar in panel.get("bars", []):
            values = [bar[key] for key in ("value", "low", "high")]
            shown.setdefault(bar["label"], {})[bar["metric"]] = values
    for point in data.get("points", []):
        summary[point["label"]] = {side: point[side]["value"] for side in ("x", "y")}
    return summary

"""Figures: what one shows is config; its numbers are worked out here and drawn by
``opd.results.drawing``.

A series names an arm or a probe of the scale, or its inputs outright, one per seed
(``opd.evaluation.reader`` reads them). Same inputs, same bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opd.core import tables
from opd.core.errors import UserError
from opd.evaluation.reader import MACRO, Evaluations, NothingLogged, Reader
from opd.probes.schemas import ROLLOUTS
from opd.results.claim_spec import EACH, SCORES, read_targets
from opd.results.drawing import draw
from opd.results.estimate import Missing, estimate, numbered, unit_of
from opd.results.labels import avg_at, benchmark_label, label_of, of_draws, plain, resampling
from opd.results.published import parse
from opd.stats.draws import RESAMPLES as PROBE_DRAWS
from opd.stats.intervals import Interval

BINS = 30  # of a histogram
_ROLLOUTS = pa.schema(ROLLOUTS.field(name) for name in ("reward_nats", "correct"))

Cfg = Mapping[str, Any]
Data = dict[str, Any]


# Series


def _named(cfg: Cfg) -> Data:
    """The config with every series as an arm or a probe: ``of`` is its name, ``label`` is there.

    A series that names its inputs outright becomes an arm of its own.
    """
    arms, probes = dict(cfg.get("arms") or {}), cfg.get("probes") or {}

    def named(series: Sequence[Cfg]) -> list[Data]:
        found = []
        for one in series:
            of, known = one.get("arm") or one.get("probe"), probes if "probe" in one else arms
            if of is None:
                of = one["label"]
                while of in arms:
                    of += "'"
                sources = {"evaluations": "evaluations", "run": "runs", "scores": "scores"}
                arms[of] = {"label": one["label"]} | {
                    key: one[given] for key, given in sources.items() if given in one
                }
            elif of not in known:
                kind = "probe" if "probe" in one else "arm"
                raise UserError(
                    f"no {kind} '{of}'", "series", f"there are {', '.join(known) or 'none'}"
                )
            found.append({**one, "of": of, "label": one.get("label") or known[of]["label"]})
        return found

    panels = [
        {**panel, "series": named(panel["series"])} if "series" in panel else panel
        for panel in cfg.get("panels") or []
    ]
    series, levels = (named(cfg.get(key) or []) for key in ("series", "levels"))
    for together in ([*series, *levels], *(panel.get("series", []) for panel in panels)):
        labels = [one["label"] for one in together]
        for one in together:
            if labels.count(one["label"]) > 1 and one["of"] != one["label"]:
                one["label"] += f" ({one['of']})"
    every = {"series": series, "levels": levels, "panels": panels}
    return {**cfg, **every, "arms": arms, "probes": probes}


def _all_series(cfg: Cfg) -> Iterator[Data]:
    yield from cfg["series"]
    for panel in cfg["panels"]:
        yield from panel.get("series") or []


def _where(one: Cfg) -> str:
    return f"series '{one['label']}'"


def _evaluations(one: Cfg, cfg: Cfg, reader: Reader) -> Evaluations | None:
    """A series' evaluations, at any step if they are by step."""
    arm = cfg["arms"].get(one["of"], {})
    if "evaluations" not in arm and not arm.get("scores"):
        return None
    names = arm["evaluations"] if "evaluations" in arm else next(iter(arm["scores"].values()))
    return reader.evaluations(names, _where(one))


def _scored(cfg: Cfg, reader: Reader) -> Evaluations:
    """Some series' evaluations: all that are compared have the same benchmarks."""
    for one in [*_all_series(cfg), *cfg["levels"]]:
        found = _evaluations(one, cfg, reader)
        if found is not None:
            return found
    raise UserError("no series has an evaluation", "series", "name models that are evaluated")


def _every(beside_mean: bool, cfg: Cfg, reader: Reader) -> tuple[str, ...]:
    """The benchmarks that ``each`` stands for: none where a lone one is its own mean beside it."""
    known = _scored(cfg, reader).benchmarks()
    return () if beside_mean and len(known) == 1 else known


def _score(
    name: str, inputs: Sequence[str], benchmark: str, where: str, cfg: Cfg, reader: Reader
) -> Interval:
    """avg@k of evaluations with its 95 % interval."""
    reader.evaluations(inputs, where).benchmarks(benchmark)
    arms = {**cfg["arms"], name: {"label": name, "evaluations": inputs}}
    wanted = {"avg": name, "benchmark": benchmark}
    found = estimate(wanted, reader, arms, cfg["probes"], *resampling(cfg))
    return found.interval()


# Curves


def _metrics(cfg: Cfg, reader: Reader) -> list[Data]:
    """Metrics with ``avg:each`` written out; ``benchmark`` is set where they are scores."""
    beside_mean = any(metric["name"] == f"avg:{MACRO}" for metric in cfg["metrics"])
    written: list[Data] = []
    for metric in cfg["metrics"]:
        kind, _, benchmark = metric["name"].partition(":")
        if kind != "avg":
            written.append({**metric, "benchmark": None})
            continue
        known = _every(beside_mean, cfg, reader) if benchmark == EACH else (benchmark,)
        written += [{**metric, "name": f"avg:{n}", "benchmark": n} for n in known]
    return written


def _line(one: Cfg, metric: Cfg, cfg: Cfg, reader: Reader) -> Data:
    arm = cfg["arms"].get(one["of"], {})
    if metric["benchmark"] is None:
        try:
            steps, values = reader.metric(arm.get("run") or [], metric["name"], _where(one))
        except NothingLogged:
            steps, values = np.empty(0, int), np.empty((len(arm["run"]), 0))
        seen = ~np.isnan(values).all(axis=0)
        steps, values = steps[seen], values[:, seen]
        points = [np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0)]
        ends = [v[~np.isnan(v)][-1:] for v in values]
        last = np.concatenate(ends).mean() if seen.any() else None
        seeds, band = len(values), len(values) > 1
    else:
        if not arm.get("scores"):
            raise UserError(
                "no evaluations over steps", _where(one), "keep steps and evaluate them"
            )
        by_step = sorted((int(step), names) for step, names in arm["scores"].items())
        steps = np.array([step for step, _ in by_step])
        scores = [
            _score(one["of"], names, metric["benchmark"], _where(one), cfg, reader)
            for _, names in by_step
        ]
        points = list(np.array(scores).T)
        last, seeds, band = points[0][-1], len(by_step[-1][1]), True
    y, low, high = ([plain(v) for v in side] for side in points)
    return {
        "series": one["of"],
        "label": one["label"],
        "seeds": seeds,
        "x": steps.tolist(),
        "y": y,
        "low": low if band else None,
        "high": high if band else None,
        "last": plain(last),
    }


def _score_label(benchmark: str, cfg: Cfg, reader: Reader) -> str:
    scored = _scored(cfg, reader)
    return f"{avg_at(scored)} (%), {benchmark_label(benchmark, scored)}"


def read_curves(cfg: Cfg, reader: Reader) -> Data:
    """One panel per metric, one line per series over steps; or groups of series across."""
    groups = cfg["panels"] or [{"title": "", "series": cfg["series"]}]
    panels = []
    for metric in _metrics(cfg, reader):
        benchmark = metric["benchmark"]
        label = metric.get("label") or (
            _score_label(benchmark, cfg, reader) if benchmark else label_of(metric["name"])
        )
        levels = []
        for one in cfg["levels"] if benchmark else []:
            names = cfg["arms"][one["of"]].get("evaluations") or []
            found = _score(one["of"], names, benchmark, _where(one), cfg, reader)
            bounds = dict(zip(("value", "low", "high"), map(plain, found), strict=True))
            levels.append({"series": one["of"], "label": one["label"], **bounds})
        panels += [
            {
                "group": group["title"],
                "metric": metric["name"],
                "label": label,
                "log": bool(metric.get("log")),
                "percent": benchmark is not None,
                "lines": [_line(one, metric, cfg, reader) for one in group["series"]],
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


def _quantities(panel: Cfg, one: Cfg, cfg: Cfg, reader: Reader) -> Iterator[tuple[str, str, Data]]:
    """(name, words of its own, quantity) of what a panel shows of a series: one, or several values
    of a probe."""
    quantity = panel["quantity"]
    kind = next(iter(quantity.keys() & {*SCORES, "metric", "value"}))
    if kind in SCORES:
        benchmark = quantity[kind]
        yield f"{kind}:{benchmark}", "", {kind: one["of"], "benchmark": benchmark}
    elif kind == "metric":
        name, at = quantity["metric"], quantity.get("at", "end")
        yield f"{name}@{at}", "", {"metric": name, "of": one["of"], "at": at}
    else:
        wanted = quantity["value"]
        for pattern in [wanted] if isinstance(wanted, str) else wanted:
            for name in _matching(pattern, one, cfg, reader):
                part = name.removeprefix(pattern.removesuffix("*")) or name
                several = isinstance(wanted, list) or wanted.endswith("*")
                words = panel.get("each", "{}").format(part.replace("_", " "))
                yield name, words if several else "", {"probe": one["of"], "value": name}


def _matching(pattern: str, one: Cfg, cfg: Cfg, reader: Reader) -> list[str]:
    """Names of a probe's values that ``NAME_*`` stands for, by number."""
    if not pattern.endswith("*"):
        return [pattern]
    try:
        return numbered({"probe": one["of"], "value": pattern}, reader, cfg["probes"])
    except Missing:
        return []


def _bar(
    name: str, words: str, quantity: Cfg, one: Cfg, alone: bool, cfg: Cfg, reader: Reader
) -> Data:
    label = words if words and alone else ": ".join(filter(None, (one["label"], words)))
    bar: Data = {
        "series": one["of"],
        "metric": name,
        "label": label,
        "group": one.get("group"),
        "value": None,
        "low": None,
        "high": None,
        "seeds": 0,
    }
    try:
        found = estimate(quantity, reader, cfg["arms"], cfg["probes"], *resampling(cfg))
    except Missing as missing:
        return {**bar, "missing": str(missing)}
    bounds = dict(zip(("value", "low", "high"), map(plain, found.interval()), strict=True))
    return {**bar, **bounds, "seeds": found.seeds}


def _titles(panel: Cfg, cfg: Cfg, reader: Reader) -> tuple[str, str]:
    """What stands above a panel of bars, and what below its axis."""
    quantity = panel["quantity"]
    for kind in SCORES:
        if kind in quantity:
            scored = _scored(cfg, reader)
            unit = {
                "avg": f"{avg_at(scored)} (%)",
                "change": f"change in {avg_at(scored)} (points)",
                "recovery": "gap recovered (%)",
                "length": "tokens of responses (% of those before)",
            }[kind]
            return benchmark_label(quantity[kind], scored), unit
    if "metric" in quantity:
        when = {"start": "at the start", "end": "at the end"}.get(quantity.get("at", "end"))
        when = when or quantity["at"]
        # The unit stands below the axis.
        words = label_of(quantity["metric"]).rpartition(" (")[0] or label_of(quantity["metric"])
        return f"{words}, {when}", unit_of(quantity["metric"]) or "value"
    first = quantity["value"] if isinstance(quantity["value"], str) else quantity["value"][0]
    return label_of(first.rstrip("*_")), unit_of(first) or "value"


def _written_out(panels: Sequence[Cfg], cfg: Cfg, reader: Reader) -> Iterator[Cfg]:
    """Panels with ``each`` written out."""
    for panel in panels:
        kind = _score_of(panel)
        if kind is None or panel["quantity"][kind] != EACH:
            yield panel
            continue
        beside_mean = any(other["quantity"].get(kind) == MACRO for other in panels)
        for name in _every(beside_mean, cfg, reader):
            yield {**panel, "quantity": {kind: name}}


def _score_of(panel: Cfg) -> str | None:
    return next((kind for kind in SCORES if kind in panel["quantity"]), None)


def _bar_panels(panels: Sequence[Cfg], cfg: Cfg, reader: Reader) -> list[Data]:
    return [
        found
        for panel in _written_out(panels, cfg, reader)
        for found in [_bar_panel(panel, cfg, reader)]
        if found["bars"]
    ]


def _bar_panel(panel: Cfg, cfg: Cfg, reader: Reader) -> Data:
    kind, of_probes = _score_of(panel), "value" in panel["quantity"]
    series = [one for one in cfg["series"] if of_probes == (one["of"] in cfg["probes"])]
    bars = []
    for one in series:
        scored = _evaluations(one, cfg, reader)
        if kind and scored:
            scored.benchmarks(panel["quantity"][kind])
        for name, words, quantity in _quantities(panel, one, cfg, reader):
            bars.append(_bar(name, words, quantity, one, len(series) == 1, cfg, reader))
    title, unit = _titles(panel, cfg, reader)
    if panel.get("percent") and not kind:
        unit = "%"
    drawn = any(bar["value"] is not None and bar["low"] < bar["high"] for bar in bars)
    unit = panel.get("unit") or unit
    return {
        "label": panel.get("label") or title,
        "unit": unit,
        "axis": f"{unit}, 95 % interval" if drawn else unit,
        "percent": panel.get("percent", kind is not None),
        "bars": bars,
    }


def read_bars(cfg: Cfg, reader: Reader) -> Data:
    """One panel per quantity, one bar per series, or per value of a probe."""
    panels = cfg["panels"] or [{"quantity": {"avg": b}} for b in cfg.get("benchmarks") or [MACRO]]
    return {"panels": _bar_panels(panels, cfg, reader)}


# Heat maps


def read_heatmap(cfg: Cfg, reader: Reader) -> Data:
    """A metric by step and response position, mean over seeds, one panel per series."""
    (metric,) = cfg["metrics"]
    panels = []
    for one in cfg["series"]:
        runs = cfg["arms"].get(one["of"], {}).get("run") or []
        curves = reader.positions(runs, metric["name"], _where(one))
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
                "series": one["of"],
                "label": one["label"],
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


def read_scatter(cfg: Cfg, reader: Reader) -> Data:
    """Two quantities, one point per series; a series that lacks one has no point."""
    sides = {side: _bar_panels([cfg[side]], cfg, reader) for side in ("x", "y")}
    found: Data = {"points": [], "missing_points": []}
    for side, panels in sides.items():
        if not panels:
            raise UserError("no series has this quantity", side, "name arms for scores and metrics")
        label, unit = panels[0]["label"], panels[0]["unit"]
        text = f"{unit}, {label}" if _score_of(cfg[side]) else f"{label} ({unit})"
        found[side] = {"label": text, "percent": panels[0]["percent"]}
    for x, y in zip(*(panels[0]["bars"] for panels in sides.values()), strict=True):
        if x["value"] is None or y["value"] is None:
            found["missing_points"].append(x if x["value"] is None else y)
            continue
        found["points"].append({"series": x["series"], "label": x["label"], "x": x, "y": y})
    if not found["points"]:
        raise UserError("no series has both quantities", "series", "name arms that were measured")
    return found


# Distributions


def _rollouts(one: Cfg, cfg: Cfg, reader: Reader) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and whether right of a probe's graded rollouts, all seeds together."""
    parts = []
    for run in cfg["probes"].get(one["of"], {}).get("runs") or []:
        path = reader.file(run, "rollouts.parquet", _where(one))
        parts.append(tables.read(path, _ROLLOUTS))
    if not parts:
        raise UserError("no run of the probe is named", _where(one), "name one input per seed")
    whole = pa.concat_tables(parts)
    whole = whole.filter(whole["correct"].is_valid())
    return whole["reward_nats"].to_numpy(), whole["correct"].to_numpy()


def read_distribution(cfg: Cfg, reader: Reader) -> Data:
    """Histograms of the sequence mean reward of right and wrong rollouts (Rethinking OPD, section
    6.2), one panel per probe, over the same bins; values of the probes as bars below.

    The outer bins hold the two per mille that lie beyond them on either side.
    """
    read = [(one, *_rollouts(one, cfg, reader)) for one in cfg["series"]]
    rewards = np.concatenate([reward for _, reward, _ in read])
    if not len(rewards):
        raise UserError("no rollout is graded", "series", "grade the rollouts of the probe")
    low, high = np.quantile(rewards, [0.002, 0.998])
    edges = np.histogram_bin_edges([low, high], BINS)
    panels = []
    for one, reward, right in read:
        held = np.clip(reward, edges[0], edges[-1])
        counts = {k: np.histogram(held[right == v], edges)[0] for k, v in _KINDS.items()}
        panels.append(
            {
                "series": one["of"],
                "label": one["label"],
                "edges": [plain(v) for v in edges],
                **{k: [plain(v) for v in n / max(1, n.sum())] for k, n in counts.items()},
                **{f"n_{k}": int(n.sum()) for k, n in counts.items()},
            }
        )
    return {
        "label": cfg.get("xlabel", "sequence mean reward (nats per token)"),
        "panels": panels,
        "bars": _bar_panels(cfg["panels"], cfg, reader),
    }


_KINDS = {"right": True, "wrong": False}


# Published values


def _mark(data: Data, one: Cfg) -> bool:
    """Put a published value where its series is drawn; False where it is not."""
    found = parse(one["value"])
    if found is None or not one.get("series") or not one.get("metric"):
        return False
    mark = {"series": one["series"], **found._asdict(), "text": one["value"]}
    at, placed = one.get("at"), False
    for panel in data.get("panels", []) + data.get("bars", []):
        name = one["metric"]
        for line in panel.get("lines", []) if panel.get("metric") == name else []:
            if line["series"] == one["series"] and line["x"]:
                ends = {"start": line["x"][0], "end": line["x"][-1], None: None}
                x = ends.get(at, at)
                last = x is not None and x > (line["x"][0] + line["x"][-1]) / 2
                panel["marks"].append({**mark, "metric": name, "x": x, "last": last})
                placed = True
        name = f"{name}@{at}" if at else name
        for bar in panel.get("bars", []):
            if (bar["series"], bar["metric"]) == (one["series"], name) and bar["value"] is not None:
                panel["marks"].append({**mark, "metric": name})
                placed = True
    return placed


def _publish(data: Data, cfg: Cfg, inputs: Mapping[str, Path]) -> None:
    """Mark published values where the scale is comparable, and list them all."""
    for panel in data.get("panels", []) + data.get("bars", []):
        panel["marks"] = []
    files = [path for name, path in inputs.items() if name.startswith("targets:")]
    rows = {row["id"]: row for path in files for row in read_targets(path)}
    data["published"] = []
    for one in cfg.get("published") or []:
        if one["target"] not in rows:
            raise UserError(
                f"no published row '{one['target']}'", "published", "name one of the targets"
            )
        row = rows[one["target"]]
        about = [row[key] for key in ("student", "teacher", "metric", "benchmark", "setting")]
        shown = {
            **one,
            "value": row["value"],
            "confidence": row["confidence"],
            "about": ", ".join(text for text in about if text not in ("", "-")),
        }
        drawn = bool(cfg.get("comparable")) and _mark(data, shown)
        data["published"].append({**shown, "drawn": drawn})


# Captions


def _caption(data: Data, cfg: Cfg) -> str:
    """What a reader has to know beside the drawing, as Markdown."""
    series = [*_all_series(cfg), *cfg["levels"]]
    panels = data.get("panels", []) + data.get("bars", [])
    drawn = [x for p in panels for x in p.get("lines", []) + p.get("bars", [])]
    drawn += [p for p in data.get("panels", []) if "seeds" in p] + [
        side for point in data.get("points", []) for side in (point["x"], point["y"])
    ]
    seeds = sorted({x["seeds"] for x in drawn if x["seeds"]})
    parts = [f"**{cfg.get('title') or ''}**"] if cfg.get("title") else []
    first = [(cfg.get("caption") or "").strip()]
    known = {**cfg["arms"], **cfg["probes"]}
    stands = {
        one["label"]: known[one["of"]]["label"]
        for one in series
        if known[one["of"]]["label"] != one["label"]
    }
    if stands:
        first.append(f"{'; '.join(f'{a}: {b}' for a, b in stands.items())}.")
    first += [_how(data, cfg, seeds)]
    parts.append(" ".join(filter(None, first)))
    if cfg.get("missing"):
        parts.append(f"Not run at this scale, so not drawn: {', '.join(cfg['missing'])}.")
    bars = [bar for panel in panels for bar in panel.get("bars", [])]
    bars += data.get("missing_points", [])
    absent = [f"{b['metric']}, {b['label']}: {b['missing']}" for b in bars if b.get("missing")]
    if absent:
        parts.append(f"Without a value: {'; '.join(absent)}.")
    others = sum(not one["drawn"] for one in data["published"])
    if others < len(data["published"]):
        more = f"; {others} more have no place in the drawing" if others else ""
        parts.append(f"Open diamonds are published values{more}.")
    elif others:
        why = "have no place in the drawing"
        if not cfg.get("comparable"):
            why = "belong to other models and data, and are not drawn"
        parts.append(f"Published values {why}.")
    return "\n\n".join(parts) + "\n"


def _how(data: Data, cfg: Cfg, seeds: Sequence[int]) -> str:
    """How many seeds the numbers are from, and what bands and intervals mean."""
    counts = " or ".join(map(str, seeds))
    of = {"": "", "1": "One seed."}.get(counts, f"Means over {counts} seeds.")
    count = resampling(cfg)[0]
    panels = data.get("panels", [])
    lines = [(p["percent"], line) for p in panels for line in p.get("lines", [])]
    scores = any(score for score, _ in lines)
    if scores:
        draws = of_draws(count, "problems", seeds)
        of += f" Bands of scores are 95 % intervals from {draws}."
    if any(not score and line["low"] for score, line in lines):
        bands = "Other bands" if scores else "Bands"
        of += f" {bands} reach from the lowest seed to the highest."
    levels = " and ".join(dict.fromkeys(o["label"] for p in panels for o in p.get("levels", [])))
    if levels:
        many = len(cfg["levels"]) > 1
        lines_are = (
            "Horizontal lines are the scores" if many else "The horizontal line is the score"
        )
        of += f" {lines_are} of {levels}."
    if data["kind"] == "heatmap" and any(None in row for p in panels for row in p["values"]):
        of += " Hatched: no response is that long."
    if data["kind"] in ("bars", "scatter", "distribution"):
        of += f" Intervals are 95 %: {'; '.join(_intervals(cfg, seeds))}."
    return of.strip()


def _intervals(cfg: Cfg, seeds: Sequence[int]) -> list[str]:
    """What the intervals of quantities are from, for each kind that is drawn."""
    panels = cfg.get("panels") or [cfg[side] for side in ("x", "y") if side in cfg]
    kinds = {key for panel in panels for key in panel["quantity"]}
    count = resampling(cfg)[0]
    found = []
    if not panels or kinds & {*SCORES}:
        found.append(f"of scores from {of_draws(count, 'problems', seeds)}")
    if "value" in kinds:
        found.append(f"of probes from {of_draws(PROBE_DRAWS, 'prompts', seeds)}")
    if "metric" in kinds and max(seeds, default=1) > 1:
        found.append("of what training logs Student's t over seeds")
    elif "metric" in kinds:
        steps = of_draws(count, "blocks of steps", seeds)
        found.append(f"of what training logs, where it is a mean over steps, from {steps}")
    return found


# All kinds

KINDS: dict[str, Callable[[Cfg, Reader], Data]] = {
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
      {avg | change | recovery: BENCHMARK}, {metric, at} or {value: NAME | [NAMES] | "advantage_*"}
      of probes (``opd.results.estimate``, without what it is of: that is the series). ``each``
      words a bar of several values, as "prefix of {} tokens".
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
        raise UserError(f"no kind of figure '{kind}'", "kind", f"there are {', '.join(KINDS)}")
    cfg = _named(cfg)
    reader = Reader(inputs)
    drawn = "curves" if kind == "grid" else kind
    data = {"kind": drawn, "title": cfg.get("title"), **KINDS[kind](cfg, reader)}
    _publish(data, cfg, inputs)
    data["sources"] = [
        f"{name}/{file}={found}" for name in inputs for file, found in reader.digests(name).items()
    ]
    # What is drawn is what is written.
    data = json.loads(json.dumps(data, allow_nan=False))
    draw(data, out)
    tables.write_json(out / "figure.json", data)
    tables.write_text(out / "caption.md", _caption(data, cfg))
    return _summary(data)


def _summary(data: Data) -> dict[str, Any]:
    """The few numbers of a figure that its manifest holds."""
    found: dict[str, Any] = {}
    several = len(data.get("groups", [])) > 1
    for panel in data.get("panels", []) + data.get("bars", []):
        shown = found.setdefault(panel["group"], {}) if several else found
        for line in panel.get("lines", []):
            shown.setdefault(line["label"], {})[panel["metric"]] = line["last"]
        for bar in panel.get("bars", []):
            values = [bar[key] for key in ("value", "low", "high")]
            shown.setdefault(bar["label"], {})[bar["metric"]] = values
    for point in data.get("points", []):
        found[point["label"]] = {side: point[side]["value"] for side in ("x", "y")}
    return found

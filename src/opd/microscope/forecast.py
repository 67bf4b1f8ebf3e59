"""Does the microscope predict what training then does? Ours: the paper trains nothing.

A forecast is written before any outcome is read, as an artifact of its own whose inputs are
alignments alone; what compares it with outcomes records its digest.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import file_digest, read_json
from opd.evaluation.reader import Answers, read_answers
from opd.microscope.statistics import MEASURES
from opd.stats import draws
from opd.stats.intervals import Array

PERMUTATIONS = 20_000


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``forecast``: forecast.json and probe.json.

    cfg: pairs (labels) and students (which student each has), for inputs ``alignment:0``, ...;
    measure (what the forecast goes by). A pair that could not be measured has no numbers there.
    """
    found = []
    for number, (label, student) in enumerate(zip(cfg["pairs"], cfg["students"], strict=True)):
        values = read_json(inputs[f"alignment:{number}"] / "probe.json")["values"]
        numbers = {name: values.get(name, {}).get("value") for name in MEASURES}
        found.append({"pair": label, "student": student, **numbers})
    measured = [one for one in found if one[cfg["measure"]] is not None]
    order = sorted(measured, key=lambda one: (-one[cfg["measure"]], one["pair"]))
    whole = {
        "measure": cfg["measure"],
        "pairs": found,
        "ranking": [one["pair"] for one in order],
    }
    tables.write_json(out / "forecast.json", whole)
    weights = draws.multiplicities([one["pair"] for one in found])
    counts = {"pairs": draws.total([one[cfg["measure"]] is not None for one in found], weights)}
    draws.write(out, counts, {"measure": cfg["measure"]})
    return {"pairs": len(measured), "first": whole["ranking"][:1]}


def run_outcome(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``outcome``: outcome.json, outcome.md, probe.json and draws.parquet.

    Inputs: forecast, and for its pair number N ``after:N`` and ``before:N``, evaluations of the
    trained model and of its student. The gain is the change in the mean over benchmarks. Values:
    rho_MEASURE, Spearman's correlation over pairs of each measure with the gain (draws: pairs, with
    replacement); rho_MEASURE_within, the same of ranks within each student, over students with
    three pairs or more; p_MEASURE, by permutation of the gains; pairs.
    """
    path = inputs["forecast"] / "forecast.json"
    forecast = read_json(path)
    rows = []
    for number, pair in enumerate(forecast["pairs"]):
        gain = _gain(inputs[f"after:{number}"], inputs[f"before:{number}"])
        rows.append({**pair, "gain": gain})
    values: dict[str, draws.Value] = {}
    for name in MEASURES:
        known = [row for row in rows if row[name] is not None]
        x, y = (np.array([row[key] for row in known], dtype=float) for key in (name, "gain"))
        values[f"rho_{name}"] = correlation(x, y)
        values[f"p_{name}"] = draws.Value(permutation_p(x, y), None, len(known))
        students = [row["student"] for row in known]
        values[f"rho_{name}_within"] = correlation(*within(x, y, students))
    known = [row for row in rows if row[forecast["measure"]] is not None]
    values["pairs"] = draws.Value(float(len(known)), None, len(known))
    about = {"forecast": file_digest(path), "measure": forecast["measure"], "pairs": rows}
    draws.write(out, values, {"forecast": about["forecast"], "measure": about["measure"]})
    tables.write_json(out / "outcome.json", {**about, "values": draws.summary(values)})
    tables.write_text(out / "outcome.md", _markdown(about, draws.summary(values)))
    return {"pairs": len(known), **{n: v.value for n, v in values.items() if n.startswith("rho")}}


def _gain(after: Path, before: Path) -> float:
    """Change of the mean share of right answers, over benchmarks with equal weight."""
    one, other = read_answers(after), read_answers(before)
    if {name: a.problems for name, a in one.items()} != {
        name: a.problems for name, a in other.items()
    }:
        raise UserError("two evaluations have other problems", str(after), "evaluate both alike")

    def mean(found: dict[str, Answers]) -> float:
        return float(np.mean([answers.correct.mean() for answers in found.values()]))

    return mean(one) - mean(other)


def ranks(values: Array) -> Array:
    """Ranks from 1, ties at their mean."""
    from scipy.stats import rankdata

    found: Array = rankdata(values)
    return found


def spearman(x: Array, y: Array) -> float:
    """Spearman's correlation; NaN for fewer than three or where one is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def correlation(x: Array, y: Array) -> draws.Value:
    """Spearman's correlation of [N] pairs, with draws of pairs."""
    value = spearman(x, y)
    if not math.isfinite(value):
        return draws.Value(None, None, len(x))
    drawn = np.random.default_rng(0).integers(len(x), size=(draws.RESAMPLES, len(x)))
    found = np.array([spearman(x[one], y[one]) for one in drawn])
    return draws.Value(value, np.where(np.isfinite(found), found, value), len(x))


def within(x: Array, y: Array, groups: list[str]) -> tuple[Array, Array]:
    """Ranks of both within each group of three or more, as shares of the group's size."""
    of = np.array(groups)
    kept = [of == group for group in dict.fromkeys(groups) if (of == group).sum() >= 3]
    if not kept:
        return np.zeros(0), np.zeros(0)
    sides = [np.concatenate([(ranks(v[k]) - 0.5) / k.sum() for k in kept]) for v in (x, y)]
    return sides[0], sides[1]


def permutation_p(x: Array, y: Array) -> float | None:
    """Two-sided p of Spearman's correlation, by permutation."""
    value = spearman(x, y)
    if not math.isfinite(value):
        return None
    a, b = ranks(x), ranks(y)
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
    found = np.abs(shuffled @ a) / len(a)
    return float((1 + (found >= abs(value) - 1e-12).sum()) / (1 + PERMUTATIONS))


def _markdown(about: dict[str, Any], values: dict[str, dict[str, Any]]) -> str:
    def shown(value: float | None, form: str = "+.3f") -> str:
        return "–" if value is None else f"{value:{form}}".replace("-", "−")

    lines = [
        f"Forecast {about['forecast'][:12]}, by {about['measure']}; gain in points of accuracy.",
        "",
        f"| pair | {' | '.join(MEASURES)} | gain |",
        "| --- |" + " ---: |" * (len(MEASURES) + 1),
    ]
    order = sorted(about["pairs"], key=lambda row: -(row[about["measure"]] or -math.inf))
    for row in order:
        cells = [shown(row[name]) for name in MEASURES]
        lines.append(
            f"| {row['pair']} | {' | '.join(cells)} | {shown(100 * row['gain'], '+.1f')} |"
        )
    lines += ["", "| measure | Spearman | within a student | p |", "| --- | ---: | ---: | ---: |"]
    for name in MEASURES:
        bounded = []
        for key in (f"rho_{name}", f"rho_{name}_within"):
            one = values[key]
            text = shown(one["value"], "+.2f")
            if one["value"] is not None:
                text += f" [{shown(one['low'], '+.2f')}, {shown(one['high'], '+.2f')}]"
            bounded.append(text)
        p = shown(values[f"p_{name}"]["value"], ".4f")
        lines.append(f"| {name} | {' | '.join(bounded)} | {p} |")
    return "\n".join(lines) + "\n"

"""Does the microscope predict what training then does? Ours: the paper trains nothing.

A forecast is written before any outcome is read, as an artifact of its own whose inputs are
alignments alone; what compares it with outcomes records its digest.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from opd.core import tables
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import file_digest, read_json
from opd.core.html import number
from opd.core.markdown import render
from opd.evaluation.reader import read_answers
from opd.microscope.statistics import MEASURES
from opd.stats import draws
from opd.stats.intervals import Array
from opd.stats.significance import correlation, permutation_p


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``forecast``: forecast.json and probe.json.

    cfg: pairs (labels) and students (which student each has), for inputs ``alignment:0``, ...;
    measure (what the forecast goes by). A pair that could not be measured has no numbers there.
    """
    measure = cfg["measure"]
    pairs = []
    for i, (label, student) in enumerate(zip(cfg["pairs"], cfg["students"], strict=True)):
        values = read_json(inputs[f"alignment:{i}"] / "probe.json")["values"]
        numbers = {name: values.get(name, {}).get("value") for name in MEASURES}
        pairs.append({"pair": label, "student": student, **numbers})
    measured = [pair for pair in pairs if pair[measure] is not None]
    ranked = sorted(measured, key=lambda pair: (-pair[measure], pair["pair"]))
    ranking = [pair["pair"] for pair in ranked]
    forecast = {"measure": measure, "pairs": pairs, "ranking": ranking}
    tables.write_json(out / "forecast.json", forecast)
    weights = draws.multiplicities([pair["pair"] for pair in pairs])
    counts = {"pairs": draws.total([pair[measure] is not None for pair in pairs], weights)}
    draws.write(out, counts, {"measure": measure})
    return {"pairs": len(measured), "first": ranking[:1]}


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
    pairs = [
        {**pair, "gain": _gain(inputs[f"after:{i}"], inputs[f"before:{i}"])}
        for i, pair in enumerate(forecast["pairs"])
    ]
    values: dict[str, draws.Value] = {}
    for name in MEASURES:
        known = [pair for pair in pairs if pair[name] is not None]
        x, y = (np.array([pair[key] for pair in known], dtype=float) for key in (name, "gain"))
        values[f"rho_{name}"] = correlation(x, y)
        values[f"p_{name}"] = draws.Value(permutation_p(x, y), None, len(known))
        students = [pair["student"] for pair in known]
        values[f"rho_{name}_within"] = correlation(*within(x, y, students))
    measured = sum(pair[forecast["measure"]] is not None for pair in pairs)
    values["pairs"] = draws.Value(float(measured), None, measured)
    about = {"forecast": file_digest(path), "measure": forecast["measure"]}
    numbers = draws.write(out, values, about)
    outcome = {**about, "pairs": pairs, "values": draws.summary(values)}
    tables.write_json(out / "outcome.json", outcome)
    order = sorted(pairs, key=lambda pair: -(pair[forecast["measure"]] or -math.inf))
    template = package_file(__file__, "outcome.md.jinja")
    report = {**outcome, "pairs": order, "measures": MEASURES, "number": number}
    tables.write_text(out / "outcome.md", render(template, **report))
    return {"pairs": measured, **{n: v for n, v in numbers.items() if n.startswith("rho")}}


def _gain(after: Path, before: Path) -> float:
    """Change of the mean share of right answers, over benchmarks with equal weight."""
    evaluations = read_answers(after), read_answers(before)
    problems = [{name: answers.problems for name, answers in e.items()} for e in evaluations]
    if problems[0] != problems[1]:
        raise UserError("two evaluations have other problems", str(after), "evaluate both alike")
    means = [np.mean([answers.correct.mean() for answers in e.values()]) for e in evaluations]
    return float(means[0]) - float(means[1])


def within(x: Array, y: Array, groups: list[str]) -> tuple[Array, Array]:
    """Ranks of both within each group of three or more, as shares of the group's size."""
    large = [group for group in dict.fromkeys(groups) if groups.count(group) >= 3]
    members = [np.array(groups) == group for group in large]
    x, y = (
        np.concatenate([[], *((rankdata(v[inside]) - 0.5) / inside.sum() for inside in members)])
        for v in (x, y)
    )
    return x, y

"""What figures, tables and claims call things, and how they write numbers."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from opd.core.text import number
from opd.evaluation.reader import Evaluations
from opd.results.quantity import MACRO, POINTS, PROBE, SCORES, Quantity
from opd.stats.draws import RESAMPLES as PROBE_DRAWS
from opd.stats.intervals import RESAMPLES

# Names with a better label than their own words.
LABELS = {
    "kl_nats": "KL(student ‖ teacher) (nats)",
    "extreme_advantage_gap": "p − q at the largest |advantage|",
    "overlap_mass_student": "student mass on overlap",
    "overlap_mass_teacher": "teacher mass on overlap",
    "overlap_token_advantage": "overlap-token advantage (nats)",
    "right_wrong": "right alone → wrong",
    "wrong_right": "wrong alone → right",
}
UNITS = {"nats": "nats", "tokens": "tokens", "min": "min", "gib": "GiB"}


def label_of(name: str) -> str:
    """A metric's name in words, its unit in brackets: kl_nats -> kl (nats)."""
    if name in LABELS:
        return LABELS[name]
    words = name.removesuffix("_nats").split("_") if name.startswith("rho_") else name.split("_")
    if len(words) > 1 and words[-1] in UNITS:
        return f"{' '.join(words[:-1])} ({UNITS[words[-1]]})"
    return " ".join(words)


def benchmark_label(name: str, evaluations: Evaluations) -> str:
    """A benchmark's name, or over how many benchmarks a mean goes."""
    names = evaluations.benchmarks(name)
    if name != MACRO:
        return name
    return names[0] if len(names) == 1 else f"mean of {len(names)} benchmarks"


def axis(kind: str, evaluations: Evaluations | None) -> str:
    """What a score is called on an axis or above a column, with its unit: avg@16 (%)."""
    words = SCORES[kind].axis
    if evaluations is None:
        return words.replace("@{}", "")
    return words.format("/".join(map(str, evaluations.samples())))


def of_draws(cfg: Mapping[str, Any], drawn: str, seeds: Iterable[int]) -> str:
    """How many draws an interval is from, and of what; of seeds where there are several."""
    count = PROBE_DRAWS if drawn == "prompts" else cfg.get("resamples", RESAMPLES)
    more = "seeds and " if max(seeds, default=1) > 1 else ""
    return f"{count:,} bootstrap draws of {more}{drawn}"


def digits(value: float, unit: str, signed: bool = False) -> tuple[str, str]:
    """A value as it is written, and the unit behind it: shares in percent, differences of shares
    in points and with their sign."""
    if unit in ("share", POINTS):
        sign = "+" if signed or unit == POINTS else ""
        text = f"{round(100 * value, 1) + 0.0:{sign}.1f}"  # + 0.0: no minus zero
        return text.replace("-", "−"), "%" if unit == "share" else "points"
    return ("+" if signed and value >= 0 else "") + number(value), unit


def with_unit(value: float, unit: str, signed: bool = False) -> str:
    """A value with its unit: 98.6 %, +1.2 points, 0.345 nats."""
    return " ".join(digits(value, unit, signed)).strip()


def cell(value: float, quantity: Quantity) -> str:
    """A value in a table: scores in percent, tokens as whole numbers."""
    if quantity.kind not in SCORES or not quantity.unit:
        return number(value)
    return f"{value:.0f}" if quantity.unit == "tokens" else digits(value, quantity.unit)[0]


def words_of(quantity: Quantity) -> str:
    """What is measured, for a sentence: student's entropy, accuracy on easy."""
    if quantity.kind in SCORES:
        place = f" on {quantity.name}" if quantity.name != MACRO else ""
        return SCORES[quantity.kind].words + place
    name = quantity.name
    words = name.removesuffix("_nats").split("_")
    if words[-1] in ("student", "teacher"):
        words = [f"{words[-1]}'s", *words[:-1]]
    text = {"grad_norm": "gradient norm", "auroc": "AUROC"}.get(name, " ".join(words))
    if quantity.positions:
        return f"{text} in the {quantity.positions} half of responses"
    if quantity.kind == PROBE and quantity.at:
        return f"{quantity.at} {text.removesuffix(' *')}"
    return text


def plain(value: float | None) -> float | None:
    """A number as a file holds it: ten digits, beyond which the order in which a machine adds up
    may show; None for what JSON does not know."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.10g}")


def ends(interval: Iterable[float]) -> dict[str, float | None]:
    """A value with its interval, as a file holds it."""
    return dict(zip(("value", "low", "high"), map(plain, interval), strict=True))

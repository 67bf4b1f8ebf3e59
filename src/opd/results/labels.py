"""What figures and tables call things, and their numbers as plain values."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from opd.evaluation.reader import MACRO, Evaluations
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


def samples_at(evaluations: Evaluations) -> str:
    """The k of avg@k, or several of them."""
    return "/".join(str(k) for k in evaluations.samples())


def avg_at(evaluations: Evaluations) -> str:
    return f"avg@{samples_at(evaluations)}"


def resampling(cfg: Mapping[str, Any]) -> tuple[int, int]:
    """Draws and seed of the bootstrap."""
    return cfg.get("resamples", RESAMPLES), cfg.get("seed", 0)


def of_draws(count: int, drawn: str, seeds: Iterable[int]) -> str:
    """How many draws an interval is from, and of what; of seeds where there are several."""
    more = "seeds and " if max(seeds, default=1) > 1 else ""
    return f"{count:,} bootstrap draws of {more}{drawn}"


def number(value: float) -> str:
    """Three significant digits, without exponents at usual sizes."""
    if value == 0 or not 1e-4 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("-", "−")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".replace("-", "−")


def plain(value: float | None) -> float | None:
    """A number as a file holds it: no NaN, which JSON does not know, and ten digits, beyond which
    the order in which a machine adds up may show."""
    return None if value is None or math.isnan(value) else float(f"{value:.10g}")

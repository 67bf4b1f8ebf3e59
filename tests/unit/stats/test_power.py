"""How often claims of no difference can be decided at the paper's size, on simulated evaluations:
what the margins in config/claims/rethinking_opd.yaml and docs/claims.md rest on."""

import numpy as np
import pytest

from opd.stats.few_seeds import widened
from opd.stats.intervals import bootstrap, bounds

# Problems, and the mean rate at which they are solved (the paper's Fig. 15); 16 samples of each.
BENCHMARKS = {"aime24": (30, 0.46), "aime25": (30, 0.33), "amc23": (83, 0.79)}
SAMPLES, TRIALS = 16, 200


def apart(seeds: int, sd: float) -> dict[str | None, np.ndarray]:
    """Intervals [TRIALS, 2] of the difference of two models that are alike, of the mean (None) and
    of every benchmark. Rates of problems are Beta(m, 1 - m); training moves the log-odds of a seed
    by a normal deviate."""
    rng = np.random.default_rng(1)
    found: dict[str | None, list[np.ndarray]] = {}
    for trial in range(TRIALS):
        rates = [rng.beta(m, 1 - m, size=(1, n)) for n, m in BENCHMARKS.values()]
        odds = [np.log(rate / (1 - rate)) for rate in (r.clip(1e-6, 1 - 1e-6) for r in rates)]
        sides = []
        for _ in range(2):
            moved = rng.normal(0, sd, size=(seeds, 1))
            solved = [1 / (1 + np.exp(-one - moved)) for one in odds]
            sides.append([rng.binomial(SAMPLES, rate) / SAMPLES for rate in solved])
        cells = [a - b for a, b in zip(*sides, strict=True)]
        for place, name in enumerate([None, *BENCHMARKS]):
            means, draws = bootstrap([cells], 500, trial, place - 1 if place else None)
            interval = bounds(means[0], draws[:, 0])
            if seeds > 1:
                chosen = [cells[place - 1]] if place else cells
                by_seed = np.mean([benchmark.mean(axis=1) for benchmark in chosen], axis=0)
                interval = widened(interval, draws[:, 0], by_seed)
            found.setdefault(name, []).append(np.array(interval[1:]))
    return {name: np.array(one) for name, one in found.items()}


@pytest.mark.parametrize(
    ("seeds", "sd", "half", "of_30", "mean", "sets", "narrow"),
    [
        (1, 0.0, 0.021, 0.042, 0.99, 0.96, 0.10),
        (3, 0.0, 0.022, 0.045, 0.98, 0.95, 0.21),
        (3, 0.2, 0.061, 0.078, 0.26, 0.45, 0.02),
    ],
)
def test_models_that_are_alike(
    seeds: int, sd: float, half: float, of_30: float, mean: float, sets: float, narrow: float
) -> None:
    """Half width of the mean and on 30 problems, and how often two equal models are called alike:
    within 0.05 on the mean, within 0.10 and within 0.05 on every benchmark."""
    found = apart(seeds, sd)
    widths = {name: float(np.diff(one).mean()) / 2 for name, one in found.items()}
    assert widths[None] == pytest.approx(half, abs=0.004)
    assert widths["aime24"] == pytest.approx(of_30, abs=0.006)

    def alike(expected: float, within: float, *names: str | None) -> None:
        """As often as expected, give or take three standard errors of so many trials."""
        seen = np.all([np.abs(found[name]).max(axis=1) <= within for name in names], axis=0)
        error = np.sqrt(expected * (1 - expected) / TRIALS)
        assert seen.mean() == pytest.approx(expected, abs=max(0.01, 3 * error)), within

    alike(mean, 0.05, None)
    alike(sets, 0.1, *BENCHMARKS)
    alike(narrow, 0.05, *BENCHMARKS)

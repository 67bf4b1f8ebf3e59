"""Intervals over few training runs.

A bootstrap of S seeds is too narrow: its variance over seeds is that of a sample divided by S and
not by S - 1, and the few seeds themselves tell that variance roughly. So an interval of what seeds
and problems do is as wide as Student's t of the degrees of freedom that F. E. Satterthwaite
(Biometrics Bulletin 2, 1946) gives to a sum of variances, of which that over seeds has S - 1 and
that over problems has many. Where seeds differ little it is the bootstrap's own; where only seeds
differ it is Student's t over seeds. docs/claims.md has its coverage.
"""

import numpy as np

from opd.stats.intervals import LEVEL, Array, Interval


def widened(drawn: Interval, draws: Array, by_seed: Array) -> Interval:
    """A bootstrap interval of a mean over S seeds, as wide as so few of them ask for.

    ``draws`` [R] are those of seeds and problems that ``drawn`` is from (NaN where a draw has no
    value), ``by_seed`` [S] the value of each seed; both in the value's own unit. The ends keep the
    ratio of their distances from the value; an interval without ends is returned as it is.
    """
    from scipy.special import stdtrit

    half = (drawn.high - drawn.low) / 2
    if np.ptp(by_seed) == 0 or half == 0 or not np.isfinite(half):
        return drawn
    # Draws of a ratio have no variance: a few of them may lie anywhere.
    near = np.clip(draws, drawn.mean - 3 * half, drawn.mean + 3 * half)
    error, freedom = _error(near, by_seed)
    wider = max(1.0, stdtrit(freedom, (1 + LEVEL) / 2) * error / half)
    mean, low, high = drawn
    return Interval(mean, float(mean - wider * (mean - low)), float(mean + wider * (high - mean)))


def p_value(draws: Array, by_seed: Array) -> float:
    """Two-sided p value of a mean over S seeds against 0, by the same t as the interval that is
    ``widened``; arguments as there. 1 where the mean is 0, and 0 where it is another without any
    error."""
    from scipy.special import stdtr

    mean = abs(float(by_seed.mean()))
    error, freedom = _error(draws, by_seed)
    if mean == 0 or error == 0:
        return float(mean == 0)
    return float(2 * stdtr(freedom, -mean / error))


def _error(draws: Array, by_seed: Array) -> tuple[float, float]:
    """Standard error of a mean over seeds, and its degrees of freedom."""
    seeds = len(by_seed)
    of_seeds = by_seed.var(ddof=1) / seeds
    variance = np.nanvar(draws) + of_seeds / seeds
    share = of_seeds / variance if variance else 0.0
    freedom = (seeds - 1) / min(1.0, share) ** 2 if share else np.inf
    return float(np.sqrt(variance)), float(freedom)

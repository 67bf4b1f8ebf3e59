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

    half, seeds = (drawn.high - drawn.low) / 2, len(by_seed)
    of_seeds = by_seed.var(ddof=1) / seeds
    if of_seeds == 0 or half == 0 or not np.isfinite(half):
        return drawn
    # Draws of a ratio have no variance: a few of them may lie anywhere.
    near = np.clip(draws, drawn.mean - 3 * half, drawn.mean + 3 * half)
    variance = np.nanvar(near) + of_seeds / seeds
    freedom = (seeds - 1) * max(1.0, variance / of_seeds) ** 2
    wider = max(1.0, stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance) / half)
    mean, low, high = drawn
    return Interval(mean, float(mean - wider * (mean - low)), float(mean + wider * (high - mean)))

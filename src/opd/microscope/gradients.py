"""What every method asks of a token, and the gradient that follows: all are P (f - mean of f).

At a node with next-token probabilities P the gradient in logit space of every objective that the
paper compares is g_j = P_j (f_j - sum_k P_k f_k) (Eq. 2.11); methods differ in f alone. That this
holds for estimates from single samples, too, the tests show. All f here point in the direction of
*descent*, the way an update moves: a teacher that puts more mass on a token has a larger f there.
(The paper's Fig. 2 prints the loss gradient, of the other sign.)

Names. The paper calls KL(P || Q) of student P and teacher Q "forward KL from student to teacher".
Everybody else calls it reverse, and so it is called here.

Legend: arrays are flat [M] over the children of U nodes, one node after the other; ``starts`` [U]
is where each begins. [0] is one node. Logarithms are natural.
"""

import numpy as np
from numpy.typing import ArrayLike

from opd.stats.intervals import Array

ONE = np.zeros(1, dtype=np.int64)


def totals(values: ArrayLike, starts: Array = ONE) -> Array:
    """Sum over the children of each node, [U]."""
    return np.add.reduceat(np.asarray(values, dtype=np.float64), starts)


def by_child(values: Array, starts: Array, size: int) -> Array:
    """Repeat a value of each node [U] for its children [M]."""
    return np.repeat(values, np.diff(starts, append=size))


def renormalised(p: ArrayLike, starts: Array = ONE) -> Array:
    """Probabilities that sum to one at each node."""
    shares = np.asarray(p, dtype=np.float64)
    return shares / by_child(totals(shares, starts), starts, len(shares))


def gradient(
    p: ArrayLike, f: ArrayLike, starts: Array = ONE, mean: ArrayLike | None = None
) -> Array:
    """P (f - mean): the gradient in logit space, [M] (Eq. 2.11).

    mean [U]: that of f over the whole vocabulary, where the children are only part of it; else the
    sum of P f over the children, and then g sums to zero where P sums to one.
    """
    p, f = np.asarray(p, dtype=np.float64), np.asarray(f, dtype=np.float64)
    middle = totals(p * f, starts) if mean is None else np.asarray(mean, dtype=np.float64)
    return p * (f - by_child(np.atleast_1d(middle), starts, len(p)))


def reverse_kl(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """f of GKD as the paper uses it, the loss KL(P || Q): log Q - log P (Eqs. 2.6 to 2.8)."""
    return np.asarray(log_q, dtype=np.float64) - np.asarray(log_p, dtype=np.float64)


def forward_kl(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """f of the loss KL(Q || P): Q / P, so that g is Q - P where both sum to one."""
    return np.exp(reverse_kl(log_p, log_q))


def dr_grpo(success: ArrayLike) -> Array:
    """f of the ideal gradient and, in expectation, of Dr. GRPO with a binary reward: the chance of
    a correct answer after each token (Eqs. 2.2 to 2.5, B.3 to B.8)."""
    return np.asarray(success, dtype=np.float64)

"""What every method asks of a token, and the gradient that follows: all are P (f - mean of f).

At a node with next-token probabilities P the gradient in logit space of every objective that the
paper compares is g_j = P_j (f_j - sum_k P_k f_k) (Eq. 2.11); methods differ in f alone. All f here
point in the direction of *descent*, the way an update moves: a teacher that puts more mass on a
token has a larger f there. (The paper's Fig. 2 prints the loss gradient, of the other sign.)

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
    found = np.asarray(p, dtype=np.float64)
    return found / by_child(totals(found, starts), starts, len(found))


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


def single_sample(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """Weight of a sampled token in the single-sample estimate: log Q - log P - 1 (Eq. 2.9). As f it
    gives the gradient of ``reverse_kl``: the constant vanishes (B.10 to B.12)."""
    return reverse_kl(log_p, log_q) - 1


def dr_grpo(success: ArrayLike) -> Array:
    """f of the ideal gradient and, in expectation, of Dr. GRPO with a binary reward: the chance of
    a correct answer after each token (Eqs. 2.2 to 2.5, B.3 to B.8)."""
    return np.asarray(success, dtype=np.float64)


def rewards_to_go(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """MiniLLM's reward of each token of one rollout [T]: the sum of log Q - log P from it to the
    end (Eq. 2.10)."""
    return reverse_kl(log_p, log_q)[::-1].cumsum()[::-1]


def minillm(child: ArrayLike, rewards: ArrayLike, children: int) -> Array:
    """f of MiniLLM: the mean reward to go of the rollouts through each child [children].

    child and rewards [N]: which child of the node each rollout takes, and its reward to go there.
    NaN for a child that none takes.
    """
    taken = np.asarray(child)
    counts = np.bincount(taken, minlength=children).astype(np.float64)
    sums = np.bincount(taken, weights=np.asarray(rewards, dtype=np.float64), minlength=children)
    return np.divide(sums, counts, out=np.full(children, np.nan), where=counts > 0)


def of_samples(p: ArrayLike, child: ArrayLike, weights: ArrayLike) -> Array:
    """Mean over rollouts of weight x (one of the token taken - P) at one node [M], as the
    estimators of all these methods are built (Eqs. 2.4, 2.9, 2.10). Where rollouts take tokens as
    often as P says, it is ``gradient`` of the mean weight of each token.

    child and weights [N]: the token that each rollout takes, and an advantage (Dr. GRPO: reward
    less the mean reward), ``single_sample`` or reward to go.
    """
    p, w = np.asarray(p, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    taken = np.bincount(np.asarray(child), weights=w, minlength=len(p)) / len(w)
    return taken - p * w.mean()

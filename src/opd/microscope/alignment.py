"""Where a distillation gradient points, token by token (the paper, sections 2.1 to 2.4).

At a node, the ideal gradient raises the chance of a correct answer; the alignment is its cosine
with the gradient of a method, over the children that were visited often enough. Legend: U nodes, M
children, flat as in ``opd.microscope.gradients``.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opd.core.errors import UserError
from opd.microscope import gradients
from opd.microscope.gradients import by_child, totals
from opd.microscope.path_index import Children
from opd.stats.intervals import Array

Mode = Literal["renormalise", "restrict_only"]
Method = Literal["reverse_kl", "forward_kl"]
METHODS = {"reverse_kl": gradients.reverse_kl, "forward_kl": gradients.forward_kl}
# A teacher that differs by less than this (nats, over a node's children) does not differ: the
# direction would be that of rounding.
EVEN_NATS = 1e-5


class Nodes(NamedTuple):
    """Nodes of a path that can be scored: depth [U], where the children of each begin [U], and
    the children's token, visits and successes [M]."""

    depth: Array
    starts: Array
    token: Array
    visits: Array
    successes: Array

    @property
    def success(self) -> Array:
        """Share of visits that ended in a correct answer [M]."""
        return self.successes / self.visits

    @property
    def node(self) -> Array:
        """Number of the node of each child [M]."""
        return by_child(np.arange(len(self.starts)), self.starts, len(self.token))


class Scores(NamedTuple):
    """Of each node [U]: alignment (NaN where a gradient is zero: there is no direction), success
    range, teacher advantage, and whether the teacher is as the student there (even)."""

    alignment: Array
    range: Array
    advantage: Array
    even: Array


def significant(children: Children, least: int) -> Nodes:
    """Nodes with at least two children of ``least`` visits that differ in success (the paper's step
    13: N_sig, and a success range above zero)."""
    kept = children.visits >= least
    depth, token, visits, successes = (column[kept] for column in children)
    starts = np.flatnonzero(np.diff(depth, prepend=-1))
    if not len(starts):
        none = np.zeros(0, dtype=np.int64)
        return Nodes(none, none, none, none, none)
    success = successes / visits
    wide = np.maximum.reduceat(success, starts) > np.minimum.reduceat(success, starts)
    several = np.diff(starts, append=len(depth)) >= 2
    chosen = np.repeat(several & wide, np.diff(starts, append=len(depth)))
    depth, token, visits, successes = (c[chosen] for c in (depth, token, visits, successes))
    starts = np.flatnonzero(np.diff(depth, prepend=-1))
    return Nodes(depth[starts], starts, token, visits, successes)


def success_range(success: ArrayLike, starts: Array) -> Array:
    """R_u: largest less least success of a node's children, [U]."""
    found = np.asarray(success, dtype=np.float64)
    if not len(starts):
        return np.zeros(0)
    return np.maximum.reduceat(found, starts) - np.minimum.reduceat(found, starts)


def cosine(one: ArrayLike, other: ArrayLike, starts: Array) -> Array:
    """Cosine of two vectors over each node's children [U]; NaN where one of them is zero (Eq.
    2.12)."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if not len(starts):
        return np.zeros(0)
    # Tiny gradients must not underflow when they are squared.
    for_one, for_other = (np.maximum.reduceat(np.abs(x), starts) for x in (a, b))
    defined = (for_one > 0) & (for_other > 0)
    a = a / by_child(np.where(for_one > 0, for_one, 1), starts, len(a))
    b = b / by_child(np.where(for_other > 0, for_other, 1), starts, len(b))
    lengths = np.sqrt(totals(a * a, starts)) * np.sqrt(totals(b * b, starts))
    found = totals(a * b, starts) / np.where(defined, lengths, 1)
    return np.where(defined, np.clip(found, -1, 1), np.nan)


def teacher_advantage(p: ArrayLike, q: ArrayLike, success: ArrayLike, starts: Array) -> Array:
    """Expected success under the teacher less that under the student, both renormalised over the
    children (Eq. 2.1): within plus or minus the success range, [U]."""
    if not len(starts):
        return np.zeros(0)
    p, q = (gradients.renormalised(one, starts) for one in (p, q))
    return totals((q - p) * np.asarray(success, dtype=np.float64), starts)


def align(
    nodes: Nodes,
    log_p: ArrayLike,
    log_q: ArrayLike,
    mode: Mode = "renormalise",
    method: Method = "reverse_kl",
    kl: ArrayLike | None = None,
) -> Scores:
    """Scores of nodes from the log-probabilities of student and teacher for their children [M].

    The paper restricts both gradients to the children that are significant, and does not say
    whether probabilities are renormalised over these. ``renormalise``: they are; both vectors then
    sum to zero, and at a node of two children the score is +1 or -1. ``restrict_only``: they are
    not; the mean of f is that over the vocabulary, for which ``kl`` [U], KL(P || Q) in nats, is
    needed with ``reverse_kl``; that of success is known over the children only. Raises
    ``UserError`` for another mode or method, and without kl where it is needed.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'", "method", f"use one of {', '.join(METHODS)}")
    starts, success = nodes.starts, nodes.success
    log_p, log_q = (np.asarray(one, dtype=np.float64) for one in (log_p, log_q))
    p, q = np.exp(log_p), np.exp(log_q)
    if not len(starts):
        none = np.zeros(0)
        return Scores(none, none, none, none.astype(bool))
    ratio = gradients.reverse_kl(log_p, log_q)
    even = success_range(ratio, starts) < EVEN_NATS
    means: tuple[Array | None, Array | None] = (None, None)
    if mode == "renormalise":
        used = gradients.renormalised(p, starts)
        theirs = gradients.renormalised(q, starts)
        f = METHODS[method](np.log(used), np.log(theirs))
    elif mode == "restrict_only":
        used, f = p, METHODS[method](log_p, log_q)
        if method == "reverse_kl" and kl is None:
            raise UserError("restrict_only needs the divergence", "kl", "give that of every node")
        # Of log Q - log P over the vocabulary it is -KL, of Q / P it is one.
        middle = np.ones(len(starts))
        if method == "reverse_kl":
            middle = -np.asarray(kl, dtype=np.float64)
        means = (totals(gradients.renormalised(p, starts) * success, starts), middle)
        even = np.maximum.reduceat(np.abs(f - by_child(middle, starts, len(f))), starts) < EVEN_NATS
    else:
        raise UserError(f"unknown mode '{mode}'", "mode", "use renormalise or restrict_only")
    ideal = gradients.gradient(used, gradients.dr_grpo(success), starts, means[0])
    taught = gradients.gradient(used, f, starts, means[1])
    found = cosine(ideal, taught, starts)
    if mode == "renormalise":
        # Both are multiples of (1, -1), whatever rounding says.
        two = np.diff(starts, append=len(p)) == 2
        found = np.where(two, np.sign(found), found)
    ranges = success_range(success, starts)
    found = np.where(even | (ranges == 0), np.nan, found)
    return Scores(found, ranges, teacher_advantage(p, q, success, starts), even)

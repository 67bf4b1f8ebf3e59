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
    visited = Children(*(column[children.visits >= least] for column in children))
    starts = np.flatnonzero(np.diff(visited.depth, prepend=-1))
    wide = success_range(visited.successes / visited.visits, starts) > 0
    several = np.diff(starts, append=len(visited.depth)) >= 2
    chosen = by_child(several & wide, starts, len(visited.depth))
    depth, token, visits, successes = (column[chosen] for column in visited)
    starts = np.flatnonzero(np.diff(depth, prepend=-1))
    return Nodes(depth[starts], starts, token, visits, successes)


def success_range(success: ArrayLike, starts: Array) -> Array:
    """R_u: largest less least success of a node's children, [U]."""
    shares = np.asarray(success, dtype=np.float64)
    return np.maximum.reduceat(shares, starts) - np.minimum.reduceat(shares, starts)


def cosine(first: ArrayLike, second: ArrayLike, starts: Array) -> Array:
    """Cosine of two vectors over each node's children [U]; NaN where one of them is zero (Eq.
    2.12)."""
    vectors = [np.asarray(vector, dtype=np.float64) for vector in (first, second)]
    # Tiny gradients must not underflow when they are squared.
    sizes = [np.maximum.reduceat(np.abs(vector), starts) for vector in vectors]
    a, b = (
        vector / by_child(np.where(size > 0, size, 1), starts, len(vector))
        for vector, size in zip(vectors, sizes, strict=True)
    )
    defined = (sizes[0] > 0) & (sizes[1] > 0)
    lengths = np.sqrt(totals(a * a, starts)) * np.sqrt(totals(b * b, starts))
    cosines = totals(a * b, starts) / np.where(defined, lengths, 1)
    return np.where(defined, np.clip(cosines, -1, 1), np.nan)


def teacher_advantage(p: ArrayLike, q: ArrayLike, success: ArrayLike, starts: Array) -> Array:
    """Expected success under the teacher less that under the student, both renormalised over the
    children (Eq. 2.1): within plus or minus the success range, [U]."""
    p, q = (gradients.renormalised(shares, starts) for shares in (p, q))
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
    log_p, log_q = (np.asarray(logs, dtype=np.float64) for logs in (log_p, log_q))
    p, q = np.exp(log_p), np.exp(log_q)
    ratio = gradients.reverse_kl(log_p, log_q)
    even = success_range(ratio, starts) < EVEN_NATS
    means: tuple[Array | None, Array | None] = (None, None)
    if mode == "renormalise":
        used = gradients.renormalised(p, starts)
        f = METHODS[method](np.log(used), np.log(gradients.renormalised(q, starts)))
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
    cosines = cosine(ideal, taught, starts)
    if mode == "renormalise":
        # Both are multiples of (1, -1), whatever rounding says.
        two = np.diff(starts, append=len(p)) == 2
        cosines = np.where(two, np.sign(cosines), cosines)
    ranges = success_range(success, starts)
    cosines = np.where(even | (ranges == 0), np.nan, cosines)
    return Scores(cosines, ranges, teacher_advantage(p, q, success, starts), even)

"""Which tokens get more rollouts: step 6 to 10 of the paper's algorithm (section 2.5, appendix D).

Pure functions of probabilities and counts; ``opd.microscope.tree`` samples what they ask for. The
paper gives tau, N_min and the windows; how many tokens of each ranking are picked in a window it
does not say. From its budgets we infer about 20 each over all teachers, 3 each per teacher.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from opd.microscope.counts import Counts
from opd.microscope.path_index import Children
from opd.stats.intervals import Array


class Candidates(NamedTuple):
    """Tokens that student or teacher find likely enough at the nodes of a path, flat: depth, token,
    probability of either, and KL(student || teacher) at the node (nats)."""

    depth: Array
    token: Array
    p: Array
    q: Array
    kl: Array


class Pick(NamedTuple):
    """A token to sample after: path, depth of its node, and how many rollouts it is to have."""

    path: int
    depth: int
    token: int
    rollouts: int


def windows(length: int, first: int, growth: float) -> Iterator[range]:
    """Depths 0 to length - 1 in windows that grow: with 50 and 2 tokens 1 to 50, 51 to 150, 151 to
    350, ... counted from one."""
    start, size = 0, float(first)
    while start < length:
        stop = min(length, start + max(1, round(size)))
        yield range(start, stop)
        start, size = stop, size * growth


def divergence_weight(candidates: Candidates) -> Array:
    """|P (l - mean l)| with l = log P - log Q: the size of the reverse KL's gradient (ranking a).
    The mean is over the vocabulary, which is KL(P || Q)."""
    log_p, log_q = (np.log(np.maximum(shares, 1e-300)) for shares in (candidates.p, candidates.q))
    return np.abs(candidates.p * (log_p - log_q - candidates.kl))


def difference(candidates: Candidates) -> Array:
    """|Q - P| (ranking b)."""
    return np.abs(candidates.q - candidates.p)


def choose(
    candidates: Candidates,
    length: int,
    top_gradient: int,
    top_difference: int,
    first: int,
    growth: float,
) -> list[tuple[int, int]]:
    """(depth, token) of the candidates that one path's targeted rollouts are for, deepest first: in
    each window the first of either ranking. Ties go to the shallower, then to the smaller token."""
    depth, token = candidates.depth, candidates.token
    picked: set[tuple[int, int]] = set()
    for ranking, most in ((divergence_weight, top_gradient), (difference, top_difference)):
        scores = ranking(candidates)
        order = np.lexsort((token, depth, -scores))
        order = order[scores[order] > 0]
        for window in windows(length, first, growth):
            inside = (depth[order] >= window.start) & (depth[order] < window.stop)
            best = order[inside][:most]
            picked |= {*zip(depth[best].tolist(), token[best].tolist(), strict=True)}
    return sorted(picked, reverse=True)


def top_up(
    chosen: Mapping[int, Sequence[tuple[int, int]]],
    paths: Sequence[Array],
    children: Sequence[Children],
    least: int,
    counts: Counts = "unforced",
) -> list[Pick]:
    """Rollouts that bring every chosen (depth, token) of every path to ``least`` visits, as
    ``counts`` has ``PathIndex.children`` count them: ``children`` have to be counted alike.

    Deepest first: with ``whole`` a rollout visits all that is above it on its path, and what is
    planned below counts above. A prefix that two paths share is asked for once.
    """
    visits = [{(depth, token): n for depth, token, n, _ in taken.rows()} for taken in children]
    picked = {(depth, path, token) for path, some in chosen.items() for depth, token in some}
    planned: list[Pick] = []
    needs: dict[bytes, int] = {}
    for depth, path, token in sorted(picked, key=lambda pick: (-pick[0], *pick[1:])):
        # The prefix that ends with the token, after the first ``depth`` of the path.
        prefix = np.append(paths[path][:depth], token).astype("<i4").tobytes()
        if prefix in needs:
            continue
        already = visits[path].get((depth, token), 0)
        if counts == "whole":
            already += sum(n for longer, n in needs.items() if longer.startswith(prefix))
        needs[prefix] = max(0, least - already)
        if needs[prefix]:
            planned.append(Pick(path, depth, token, needs[prefix]))
    return planned

"""Visits and successes at every node of a few analysed paths, without a tree.

Of all prefixes of thousands of long rollouts only those on a handful of paths are ever scored. So
each rollout is kept as a token array on disk, and of each path it is known how long a prefix it
shares with every rollout and which token that rollout takes next: all counts on the path follow.
Memory is O(rollouts x paths).

Legend: N rollouts, L tokens of a path, M children of a path's nodes. A node is a prefix of the
path, named by its depth 0 to L - 1, the number of response tokens that it holds.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opd.core.errors import UserError
from opd.microscope.counts import Counts
from opd.stats.intervals import Array

TOKEN = np.dtype("<i4")
RECORD = np.dtype(
    [("tokens", "<i4"), ("prefix", "<i4"), ("correct", "u1"), ("finished", "u1")], align=False
)
NO_TOKEN = -1


class Children(NamedTuple):
    """Tokens that rollouts took at the nodes of a path [M], by depth and token: how many rollouts
    took one (visits), and how many of these ended in a correct answer (successes)."""

    depth: Array
    token: Array
    visits: Array
    successes: Array

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        """Depth, token, visits and successes of one child after the other."""
        return zip(*(column.tolist() for column in self), strict=True)


class PathIndex:
    """The rollouts of one question, on disk in ``folder``, and the paths that are analysed.

    ``records`` [N] holds of each rollout: tokens, prefix (tokens it was forced to begin with),
    correct, finished. An index that is opened again has the rollouts, and no path yet. ``selected``
    has the numbers of the rollouts that were made paths.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens, self._records = folder / "tokens.i32", folder / "rollouts.dat"
        written = self._records.exists()
        self.records = np.fromfile(self._records, RECORD) if written else np.zeros(0, RECORD)
        self.paths: list[Array] = []
        self.selected: list[int] = []
        self._followed = np.zeros((0, len(self.records), 2), TOKEN)

    def append(
        self,
        rollouts: Sequence[Sequence[int]],
        correct: ArrayLike,
        finished: ArrayLike = True,
        prefix: ArrayLike = 0,
    ) -> None:
        """Add rollouts (token ids), each with whether its answer is correct, whether it ended by
        itself, and how many tokens it was given. Raises ``UserError`` for one without a token."""
        if not len(rollouts):
            return
        arrays = [np.asarray(rollout, dtype=TOKEN) for rollout in rollouts]
        records = np.zeros(len(rollouts), dtype=RECORD)
        records["tokens"] = [len(rollout) for rollout in rollouts]
        records["correct"], records["finished"], records["prefix"] = correct, finished, prefix
        if not records["tokens"].all():
            row = int(np.flatnonzero(records["tokens"] == 0)[0])
            raise UserError("it has no token", f"rollout {row}", "leave empty rollouts out")
        try:
            for path, data in ((self._tokens, np.concatenate(arrays)), (self._records, records)):
                with path.open("ab") as file:
                    file.write(data.tobytes())
        except OSError as error:
            what = f"it cannot be written ({error.strerror or error})"
            raise UserError(what, str(path), "free space there") from error
        self.records = np.concatenate([self.records, records])
        self._followed = np.concatenate([self._followed, followed(arrays, self.paths)], axis=1)

    def add_paths(self, paths: Sequence[Sequence[int]], selected: Sequence[int] = ()) -> list[int]:
        """Analyse further paths: their numbers. The rollouts on disk are read once for all.

        ``selected`` are the numbers of the rollouts that the paths are, if these were selected by
        what became of them: see ``children``.
        """
        added = [np.asarray(path, dtype=TOKEN) for path in paths]
        self._followed = np.concatenate([self._followed, followed(self._rollouts(), added)])
        self.paths += added
        self.selected += selected
        return list(range(len(self.paths) - len(added), len(self.paths)))

    def _rollouts(self) -> Iterator[Array]:
        if len(self.records):
            with self._tokens.open("rb") as file:
                for length in self.records["tokens"].tolist():
                    yield np.fromfile(file, TOKEN, length)

    def rollout(self, number: int) -> Array:
        """Token ids of one rollout."""
        lengths = self.records["tokens"]
        start = int(lengths[:number].sum(dtype=np.int64))
        count = int(lengths[number])
        return np.fromfile(self._tokens, TOKEN, count, offset=start * TOKEN.itemsize)

    def children(self, path: int, counts: Counts = "unforced") -> Children:
        """Every token that was taken at any node of a path.

        ``whole`` counts a rollout at all nodes that it passes, as the paper does. A rollout that
        was made to begin with a prefix passes the nodes within it by force, and what becomes of it
        is no sample of what the student does after these: a share of successes that counts it there
        is biased, however many rollouts there are. ``unforced`` counts a rollout from the last
        token of its prefix on; and those that are ``selected`` on no path, for what became of them
        is known from the path's kind, and no sample either.
        """
        shared, following = self._followed[path].T
        correct = self.records["correct"].astype(bool)
        tokens = self.paths[path]
        first = np.maximum(self.records["prefix"].astype(np.int64) - 1, 0)
        counted = np.ones(len(first), dtype=bool)
        if counts == "whole":
            first[:] = 0
        else:
            counted[self.selected] = False
        # Along the path: from the first node that counts to the one where it leaves.
        on = counted & (shared > first)
        along = [_covering(first[k], shared[k], len(tokens)) for k in (on, on & correct)]
        # Off it: at the node where a rollout leaves.
        left = counted & (following != NO_TOKEN) & (shared < len(tokens)) & (shared >= first)
        keys = shared[left].astype(np.int64) << 32 | following[left].astype(np.int64)
        off, place, visits = np.unique(keys, return_inverse=True, return_counts=True)
        successes = np.bincount(place[correct[left]], minlength=len(off))
        parts = (
            [np.arange(len(tokens)), tokens, *along],
            [off >> 32, off & 0xFFFFFFFF, visits, successes],
        )
        depth, token, visits, successes = np.concatenate(parts, axis=1, dtype=np.int64)
        order = np.lexsort((token, depth))
        order = order[visits[order] > 0]
        return Children(depth[order], token[order], visits[order], successes[order])


def followed(rollouts: Iterable[Array], paths: Sequence[Array]) -> Array:
    """``_shared`` of each rollout with each path, int32 [paths, N, 2]."""
    rows = [[_shared(rollout, path) for path in paths] for rollout in rollouts]
    return np.array(rows, dtype=TOKEN).reshape(len(rows), len(paths), 2).swapaxes(0, 1)


def _shared(rollout: Array, path: Array) -> tuple[int, int]:
    """How many tokens a rollout shares with a path, and the one it takes after them, NO_TOKEN where
    it ends there."""
    length = min(len(rollout), len(path))
    differs = rollout[:length] != path[:length]
    shared = int(differs.argmax()) if differs.any() else length
    return shared, rollout[shared] if shared < len(rollout) else NO_TOKEN


def _covering(first: Array, stop: Array, length: int) -> Array:
    """How many of these ranges of depths hold each depth, [length]."""
    starts, stops = (np.bincount(e, minlength=length + 1)[: length + 1] for e in (first, stop))
    return np.cumsum(starts - stops)[:length]

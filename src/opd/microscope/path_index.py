"""Visits and successes at every node of a few analysed paths, without a tree.

Of all prefixes of thousands of long rollouts only those on a handful of paths are ever scored. So
each rollout is kept as a token array on disk, and of each path it is known how long a prefix it
shares with every rollout and which token that rollout takes next: all counts on the path follow.
Memory is O(rollouts x paths); a rollout is compared once, when it comes, with the paths that are
known then, and a new path is compared with what is on disk in one pass.

Legend: N rollouts, L tokens of a path, M children of a path's nodes. A node is a prefix of the
path, named by its depth 0 to L - 1, the number of response tokens that it holds.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opd.core.errors import UserError
from opd.stats.intervals import Array

TOKEN = np.dtype("<i4")
RECORD = np.dtype(
    [("tokens", "<i4"), ("prefix", "<i4"), ("correct", "u1"), ("finished", "u1")], align=False
)
# Tokens that are read at a time.
CHUNK_TOKENS = 1 << 21
# Tokens that are compared at first; most rollouts have left a path by then.
FIRST_TOKENS = 32
NO_TOKEN = -1


Counts = Literal["unforced", "whole"]


class Children(NamedTuple):
    """Tokens that rollouts took at the nodes of a path [M], by depth and token: how many rollouts
    took one (visits), and how many of these ended in a correct answer (successes)."""

    depth: Array
    token: Array
    visits: Array
    successes: Array


class PathIndex:
    """The rollouts of one question, on disk in ``folder``, and the paths that are analysed.

    An index that is opened again has the rollouts that were written whole, and no path yet: what a
    killed process left behind of an unfinished one is cut off when the next is appended.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens, self._records = folder / "tokens.i32", folder / "rollouts.dat"
        self.paths: list[Array] = []
        self._shared: list[list[Array]] = []
        self._next: list[list[Array]] = []
        records = _read(self._records, RECORD)
        available = self._tokens.stat().st_size // TOKEN.itemsize if self._tokens.exists() else 0
        ends = np.cumsum(records["tokens"], dtype=np.int64)
        self._parts = [records[: int(np.searchsorted(ends, available, "right"))]]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def records(self) -> Array:
        """Of each rollout: tokens, prefix (tokens it was forced to begin with), correct, finished
        [N]."""
        self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    def append(
        self,
        rollouts: Sequence[Sequence[int]],
        correct: ArrayLike,
        finished: ArrayLike | None = None,
        prefix: ArrayLike | None = None,
    ) -> None:
        """Add rollouts (token ids), each with whether its answer is correct.

        finished: whether it ended by itself, else True; prefix: how many tokens it was given, else
        0. Raises ``UserError`` for a rollout without a token.
        """
        if not len(rollouts):
            return
        records = np.zeros(len(rollouts), dtype=RECORD)
        records["tokens"] = [len(rollout) for rollout in rollouts]
        if not records["tokens"].all():
            row = int(np.flatnonzero(records["tokens"] == 0)[0])
            raise UserError("it has no token", f"rollout {row}", "leave empty rollouts out")
        records["correct"] = np.asarray(correct, dtype=bool)
        records["finished"] = True if finished is None else np.asarray(finished, dtype=bool)
        records["prefix"] = 0 if prefix is None else np.asarray(prefix)
        flat = np.concatenate([np.asarray(rollout, dtype=TOKEN) for rollout in rollouts])
        total = int(sum(part["tokens"].sum(dtype=np.int64) for part in self._parts))
        # Tokens first: a rollout counts once its record is there.
        _append(self._tokens, total * TOKEN.itemsize, flat.tobytes())
        _append(self._records, len(self) * RECORD.itemsize, records.tobytes())
        self._parts.append(records)
        self._compare(range(len(self.paths)), flat, records["tokens"])

    def add_paths(self, paths: Sequence[Sequence[int]]) -> list[int]:
        """Analyse further paths: their numbers. The rollouts on disk are read once for all."""
        added = [np.asarray(path, dtype=TOKEN) for path in paths]
        first = len(self.paths)
        self.paths += added
        self._shared += [[] for _ in added]
        self._next += [[] for _ in added]
        numbers = range(first, len(self.paths))
        for flat, lengths in self._chunks():
            self._compare(numbers, flat, lengths)
        return list(numbers)

    def _compare(self, numbers: Iterable[int], flat: Array, lengths: Array) -> None:
        """Compare paths with further rollouts: their tokens, and how many each has."""
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        for number in numbers:
            shared, following = common_prefixes(flat, starts, lengths, self.paths[number])
            self._shared[number].append(shared)
            self._next[number].append(following)

    def rollout(self, number: int) -> Array:
        """Token ids of one rollout."""
        lengths = self.records["tokens"]
        start = int(lengths[:number].sum(dtype=np.int64))
        count = int(lengths[number])
        return np.fromfile(self._tokens, TOKEN, count, offset=start * TOKEN.itemsize)

    def shared(self, path: int) -> tuple[Array, Array]:
        """How many tokens each rollout shares with a path, and the one it takes after them
        (NO_TOKEN where it ends there): int32 [N] each."""
        for kept in (self._shared, self._next):
            kept[path] = [np.concatenate([np.zeros(0, TOKEN), *kept[path]])]
        return self._shared[path][0], self._next[path][0]

    def children(self, path: int, counts: Counts = "unforced") -> Children:
        """Every token that was taken at any node of a path.

        ``whole`` counts a rollout at all nodes that it passes, as the paper does. A rollout that
        was made to begin with a prefix passes the nodes within it by force, and what becomes of it
        is no sample of what the student does after these: a share of successes that counts it there
        is biased, however many rollouts there are. ``unforced`` counts a rollout from the last
        token of its prefix on.
        """
        shared, following = self.shared(path)
        correct = self.records["correct"].astype(bool)
        tokens = self.paths[path]
        first = np.maximum(self.records["prefix"].astype(np.int64) - 1, 0)
        if counts == "whole":
            first[:] = 0
        # Along the path: from the first node that counts to the one where it leaves.
        on = shared > first
        along = [_covering(first[k], shared[k], len(tokens)) for k in (on, on & correct)]
        depths = np.arange(len(tokens))
        # Off it: at the node where a rollout leaves.
        left = (following != NO_TOKEN) & (shared < len(tokens)) & (shared >= first)
        keys = shared[left].astype(np.int64) << 32 | following[left].astype(np.int64)
        off, place, visits = np.unique(keys, return_inverse=True, return_counts=True)
        successes = np.bincount(place[correct[left]], minlength=len(off))
        columns = (
            np.concatenate([depths, off >> 32]),
            np.concatenate([tokens.astype(np.int64), off & 0xFFFFFFFF]),
            np.concatenate([along[0], visits]),
            np.concatenate([along[1], successes]),
        )
        taken = Children(*(column[columns[2] > 0] for column in columns))
        order = np.lexsort((taken.token, taken.depth))
        return Children(*(column[order].astype(np.int64) for column in taken))

    def _chunks(self) -> Iterator[tuple[Array, Array]]:
        """Tokens of successive rollouts, flat, and how many each has."""
        lengths = self.records["tokens"]
        ends = np.cumsum(lengths, dtype=np.int64)
        row = done = 0
        while row < len(lengths):
            # One rollout at least, however long.
            last = max(row + 1, int(np.searchsorted(ends, done + CHUNK_TOKENS, "right")))
            count = int(ends[last - 1]) - done
            yield (
                np.fromfile(self._tokens, TOKEN, count, offset=done * TOKEN.itemsize),
                lengths[row:last],
            )
            row, done = last, int(ends[last - 1])


def common_prefixes(flat: Array, starts: Array, lengths: Array, path: Array) -> tuple[Array, Array]:
    """How many tokens rollouts share with a path, and the token each takes next: int32 [N].

    flat: tokens of all rollouts; starts and lengths [N]: where each lies in it. NO_TOKEN where a
    rollout ends after what it shares.
    """
    limits = np.minimum(lengths, len(path)).astype(np.int64)
    shared = limits.astype(TOKEN)
    alive, at, width = np.flatnonzero(limits), 0, FIRST_TOKENS
    while len(alive):
        span = min(width, int(limits[alive].max()) - at)
        columns = np.arange(at, at + span)
        inside = columns < limits[alive, None]
        places = np.minimum(starts[alive, None] + columns, len(flat) - 1)
        differs = (flat[places] != path[columns]) & inside
        first = differs.argmax(axis=1)
        left = differs[np.arange(len(alive)), first]
        shared[alive[left]] = at + first[left]
        alive = alive[~left & (limits[alive] > at + span)]
        at, width = at + span, 2 * width
    ends = shared >= lengths
    following = flat[np.where(ends, 0, starts + shared)] if len(flat) else shared
    return shared, np.where(ends, NO_TOKEN, following).astype(TOKEN)


def _covering(first: Array, stop: Array, length: int) -> Array:
    """How many of these ranges of depths hold each depth, [length]."""
    starts, stops = (np.bincount(e, minlength=length + 1)[: length + 1] for e in (first, stop))
    return np.cumsum(starts - stops)[:length]


def _read(path: Path, kind: np.dtype) -> Array:
    """Whole records of a file; none where it is not there."""
    count = path.stat().st_size // kind.itemsize if path.exists() else 0
    return np.fromfile(path, kind, count) if count else np.zeros(0, kind)


def _append(path: Path, at: int, data: bytes) -> None:
    """Write after the first ``at`` bytes, whatever came after them. Raises ``UserError`` where
    there is no room."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(file, at)
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written : written + (1 << 26)], at + written)
    except OSError as error:
        os.ftruncate(file, at)
        raise UserError(
            f"it cannot be written ({error.strerror or error})", str(path), "free space there"
        ) from error
    finally:
        os.close(file)

"""How the first paper's code cuts a step into micro-batches, and what each token then counts."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.training import micro_batches


def test_two_micro_batches_by_hand() -> None:
    """One rank, 26 tokens, room for 13: the longest with the shortest. Then each response token
    counts 2 sequences of 4, over the response tokens of its micro-batch."""
    lengths = [8, 7, 6, 5]
    assert sorted(map(sorted, micro_batches.cut(lengths, 13, 1))) == [[0, 3], [1, 2]]
    weights = micro_batches.token_weights([1, 1, 1, 1], [7, 6, 5, 4], 13, 1)
    assert weights == pytest.approx([1 / 22, 1 / 22, 1 / 22, 1 / 22])
    weights = micro_batches.token_weights([1, 5, 1, 1], [7, 2, 5, 4], 13, 1)
    assert weights == pytest.approx([1 / 22, 1 / 14, 1 / 14, 1 / 22])


def test_ranks_cut_alike() -> None:
    """Two ranks with two sequences each; where one needs a second micro-batch, both have two."""
    assert len(micro_batches.cut([10, 10, 10, 10], 20, 2)) == 2
    assert len(micro_batches.cut([10, 10, 10, 11], 20, 2)) == 4
    # No more than there are sequences.
    assert sorted(micro_batches.cut([10, 10], 10, 2)) == [[0], [1]]


def test_the_cuts_of_the_authors_code() -> None:
    """What get_seqlen_balanced_partitions of thunlp/OPD at 0a44395 gives in the places where
    _balance_batch and rearrange_micro_batches call it."""
    lengths = [20, 24, 11, 51, 30, 35, 14, 10, 9, 6, 30, 40, 23, 56, 53, 8]
    cuts = [[3, 12], [7, 14, 15], [1, 2, 10], [4, 5, 9], [6, 13], [0, 8, 11]]
    assert sorted(map(sorted, micro_batches.cut(lengths, 90, 2))) == sorted(cuts)
    # Equal lengths: ties are decided as there.
    cuts = [[0, 2], [4, 7], [1, 3], [5, 6]]
    ties = micro_batches.cut([7, 7, 7, 7, 3, 3, 9, 9], 14, 2)
    assert sorted(map(sorted, ties)) == sorted(cuts)


def naive_groups(weights: Sequence[int], groups: int, equal: bool) -> list[list[int]]:
    """Largest differencing on lists that are sorted anew each time, without a heap.

    Groups are compared by their sum, then by how many they have, then by whom; of two groupings the
    one whose groups differ more goes first, then the one with the larger largest group.
    """

    def size(group: list[int]) -> tuple[int, int, list[int]]:
        return sum(weights[i] for i in group), len(group), group

    def spread(grouping: list[list[int]]) -> int:
        return size(grouping[0])[0] - size(grouping[-1])[0]

    def largest_first(grouping: list[list[int]]) -> list[list[int]]:
        return sorted(grouping, key=size, reverse=True)

    ascending = sorted(range(len(weights)), key=lambda i: (weights[i], i))
    width = groups if equal else 1
    begun = [ascending[i : i + width] for i in range(0, len(weights), width)]
    left = [
        largest_first([[i] for i in some] + [[] for _ in range(groups - width)]) for some in begun
    ]
    while len(left) > 1:
        left.sort(key=lambda grouping: (spread(grouping), size(grouping[0])), reverse=True)
        first, second, *left = left
        met = [a + b for a, b in zip(first, reversed(second), strict=True)]
        left.append(largest_first(met))
    return left[0]


def naive_weights(
    prompts: Sequence[int], responses: Sequence[int], budget: int, ranks: int
) -> list[float]:
    """The rule in words: deal to ranks, cut on each rank, token means weighted by sequences."""
    lengths = [p + r for p, r in zip(prompts, responses, strict=True)]
    work = [6 * 4096 * n + n**2 for n in lengths]
    each = len(lengths) // ranks
    of_rank = []
    for part in naive_groups(work, ranks, equal=True):
        ordered = sorted(part, key=lambda i: (work[i], i))
        of_rank.append(ordered[0::2] + list(reversed(ordered[1::2])))
    needed = [min(each, -(-sum(lengths[i] for i in part) // budget)) for part in of_rank]
    weights = [0.0] * len(lengths)
    for part in of_rank:
        for group in naive_groups([work[i] for i in part], max(needed), equal=False):
            micro_batch = [part[place] for place in group]
            tokens = sum(responses[i] for i in micro_batch)
            for i in micro_batch:
                # The mean over its tokens, times its share of the rank's sequences, over ranks.
                weights[i] = 1 / tokens * len(micro_batch) / each / ranks
    return weights


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    """Prompts, responses, budget and ranks: short lengths, so that many are equal."""
    ranks, each = draw(st.sampled_from([*product((1, 2, 3, 8), (1, 2, 5))]))
    longest = draw(st.sampled_from([2, 9, 500]))
    lengths = st.lists(st.integers(1, longest), min_size=ranks * each, max_size=ranks * each)
    return draw(lengths), draw(lengths), 2 * longest * draw(st.integers(1, 3)), ranks


@given(steps())
def test_weights_are_those_of_the_rule(step: tuple[list[int], list[int], int, int]) -> None:
    weights = micro_batches.token_weights(*step)
    assert weights == pytest.approx(naive_weights(*step))
    # A mean of losses that are all 1 is 1.
    assert sum(w * n for w, n in zip(weights, step[1], strict=True)) == pytest.approx(1)


@given(steps())
def test_a_cut_is_a_cut(step: tuple[list[int], list[int], int, int]) -> None:
    """Every sequence is in one micro-batch, none of which is empty; as many of each on each rank;
    the fewest for which the fullest rank has room on average."""
    prompts, responses, budget, ranks = step
    lengths = [p + r for p, r in zip(prompts, responses, strict=True)]
    cuts = micro_batches.cut(lengths, budget, ranks)
    assert sorted(i for cut in cuts for i in cut) == list(range(len(lengths)))
    assert all(cuts) and len(cuts) % ranks == 0
    count, each = len(cuts) // ranks, len(lengths) // ranks
    rank_tokens = []
    for rank in range(ranks):
        own = [i for cut in cuts[rank * count : (rank + 1) * count] for i in cut]
        assert len(own) == each
        rank_tokens.append(sum(lengths[i] for i in own))
    assert count == each or max(rank_tokens) <= count * budget
    assert count == 1 or max(rank_tokens) > (count - 1) * budget


def test_room_for_all_is_the_token_mean() -> None:
    """One rank and one micro-batch; and equal lengths, however they are cut."""
    assert micro_batches.token_weights([3, 1, 2], [4, 2, 1], 99, 1) == pytest.approx([1 / 7] * 3)
    assert micro_batches.token_weights([3] * 8, [5] * 8, 16, 2) == pytest.approx([1 / 40] * 8)


def test_responses_without_a_token_count_nothing() -> None:
    weights = micro_batches.token_weights([3, 3], [0, 0], 3, 2)
    assert weights == [0.5, 0.5]

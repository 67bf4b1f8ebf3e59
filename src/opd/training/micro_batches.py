"""How Rethinking OPD's code cuts a step into micro-batches, and what each token then counts. Apart
from how a step is cut here, and without torch."""

import heapq
from collections.abc import Sequence


def token_weights(
    prompts: Sequence[int], responses: Sequence[int], budget: int, ranks: int
) -> list[float]:
    """What a response token of each sequence counts in a step's loss as Rethinking OPD's code adds
    it up: the token mean of each of its micro-batches, weighted by their share of the sequences.

    ``prompts`` and ``responses`` are tokens of each sequence, in the order of the step; the weights
    of all response tokens add up to 1. Source: thunlp/OPD at 0a44395,
    verl/verl/workers/actor/dp_actor.py, lines 816-817 and 926-931 (a rank's micro-batches), whose
    gradients FSDP averages over ranks.
    """
    lengths = [sum(tokens) for tokens in zip(prompts, responses, strict=True)]
    weights = [0.0] * len(lengths)
    for part in cut(lengths, budget, ranks):
        tokens = sum(responses[i] for i in part)
        for i in part:
            weights[i] = len(part) / (len(lengths) * max(1, tokens))
    return weights


def cut(lengths: Sequence[int], budget: int, ranks: int) -> list[list[int]]:
    """A step's sequences (indices of ``lengths``, tokens of prompt and response) in the
    micro-batches of Rethinking OPD's code, of all ranks.

    Each of the data-parallel ``ranks`` gets as many sequences as the others, and about as much
    work. Each then cuts its own into equally many micro-batches of about the same work: so many
    that on no rank they have more than ``budget`` tokens on average. Source: thunlp/OPD at 0a44395,
    verl/verl/trainer/ppo/ray_trainer.py, lines 930-961, and verl/verl/utils/seqlen_balancing.py,
    lines 27-138 and 298-314.
    """
    work = [24576 * n + n * n for n in lengths]  # of a dense model 4096 wide, up to a factor
    dealt = []
    for part in balanced(work, ranks, equal=True):
        part.sort(key=lambda i: (work[i], i))
        dealt.append(part[::2] + part[1::2][::-1])  # decides between sequences of equal work
    tokens = (sum(lengths[i] for i in part) for part in dealt)
    count = min(len(dealt[0]), max(-(-n // budget) for n in tokens))
    return [
        [part[i] for i in micro_batch]
        for part in dealt
        for micro_batch in balanced([work[i] for i in part], count)
    ]


Group = tuple[int, int, tuple[int, ...]]  # sum of weights, members, their indices: all negated


def balanced(weights: Sequence[int], groups: int, equal: bool = False) -> list[list[int]]:
    """Indices of positive ``weights`` in groups of about the same sum; with ``equal`` of the same
    size, too, which must then divide them.

    The largest differencing method of Karmarkar and Karp: one begins with many partial groupings
    and merges the two whose groups differ most, the largest group of one with the smallest of the
    other, until one is left. Ties are decided as in verl's ``karmarkar_karp``.
    """
    order = sorted(range(len(weights)), key=lambda i: (weights[i], i))
    size = groups if equal else 1
    heap: list[tuple[int, list[Group]]] = []
    for start in range(0, len(order), size):
        begun: list[Group] = [(-weights[i], -1, (-i,)) for i in order[start : start + size]]
        heapq.heappush(heap, _grouping(begun + [(0, 0, ())] * (groups - len(begun))))
    while len(heap) > 1:
        _, widest = heapq.heappop(heap)
        _, second = heapq.heappop(heap)
        pairs = zip(widest, reversed(second), strict=True)
        merged = [(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs]
        heapq.heappush(heap, _grouping(merged))
    return [sorted(-i for i in indices) for _, _, indices in heap[0][1]]


def _grouping(groups: list[Group]) -> tuple[int, list[Group]]:
    """Groups from the largest to the smallest, behind how little their sums differ."""
    groups = sorted(groups)
    return groups[0][0] - groups[-1][0], groups

"""Measurements on the states that a student visits: pure functions of logits, ids and masks.

Legend: B sequences, T response positions, N positions that count, V vocabulary, K size of the top-k
sets, M metrics. p is the student's and q the teacher's next-token distribution; pbar and qbar are
renormalised over a set that the metric names. A metric is kept as its sum and its count at every
position, so that parts of a batch, devices and bins of positions add up exactly.

Sources: Rethinking OPD, Eqs. 6 to 10 and Figs. 13, 19 and 23; where its code measures something
else than it prints, that has a name of its own, ending in ``_code``. The Many Faces of OPD, A2.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opd.losses.head import CHUNK_ELEMENTS, Head, head_logits
from opd.losses.token import LOG_FLOOR_NATS, is_in, top_ids


class Sums(NamedTuple):
    """The sum of a metric's values and how many there are, at every position [N]."""

    total: Tensor
    n: Tensor


@torch.no_grad()
def state_metrics(
    student_logits: Tensor, teacher_logits: Tensor, sampled_ids: Tensor, repeated: Tensor, k: int
) -> dict[str, Sums]:
    """All measurements of N states, each as ``Sums`` over positions, [N].

    Logits are [N, V]; sampled_ids [N]; repeated [N] from ``repeats``. S and Q are the top k sets of
    student and teacher, ties to the lower id; log-probabilities below LOG_FLOOR_NATS count as that.
    Names:

    - overlap_ratio (Eq. 6): ``|S and Q| / k``. Counted from either side it is the same number.
    - overlap_token_advantage (Eq. 7): mean over S and Q of pbar (log qbar - log pbar), both
      renormalised there; then mean over positions where S and Q meet.
    - overlap_token_advantage_code: mean over all (position, token of S and Q) pairs of the training
      advantage w (log q - log p), w = p renormalised over S, raw log-probabilities.
    - entropy_gap_nats (Eq. 8): abs(H(q) - H(p)); entropy_student_nats, entropy_teacher_nats: over
      the whole vocabulary.
    - overlap_mass_student, _teacher (Eqs. 9 and 10): p and q on S and Q, raw, over all positions;
      with ``_code`` over the positions where S and Q meet.
    - top_mass_student, top_mass_teacher: p on S, q on Q.
    - extreme_advantage_gap (Fig. 19): p - q at the token of S and Q with the largest absolute
      advantage of Eq. 7; ``max_`` and ``min_advantage_*_code``: p and q at the tokens with the
      largest and the smallest training advantage, which is what the code logs.
    - teacher_rank: 1 + how many tokens the teacher prefers to the sampled one; teacher_rank_in_top:
      the same, k + 1 where the sampled token is not in Q (Many Faces).
    - log_ratio_repeated_nats, log_ratio_other_nats: log q - log p of sampled tokens that repeat a
      3-gram of their response, and of the others (Many Faces, A2).
    - kl_nats: KL(p || q) over the vocabulary (Eq. 4).
    """
    logp = torch.log_softmax(student_logits.float(), -1).clamp(min=LOG_FLOOR_NATS)
    logq = torch.log_softmax(teacher_logits.float(), -1).clamp(min=LOG_FLOOR_NATS)
    p, q = logp.exp(), logq.exp()
    ones = torch.ones_like(logp[:, 0])
    entropy_p, entropy_q = -(p * logp).sum(-1), -(q * logq).sum(-1)
    ids_p, ids_q = top_ids(logp, k), top_ids(logq, k)
    shared = is_in(ids_p, ids_q)
    size = shared.sum(-1)
    meet = (size > 0).float()
    top_p, top_q = logp.gather(-1, ids_p), logq.gather(-1, ids_p)
    nowhere = torch.finfo(top_p.dtype).min
    bar_p = torch.log_softmax(top_p.masked_fill(~shared, nowhere), -1)
    bar_q = torch.log_softmax(top_q.masked_fill(~shared, nowhere), -1)
    advantage = (bar_p.exp() * (bar_q - bar_p)).masked_fill(~shared, 0)
    training_advantage = (torch.softmax(top_p, -1) * (top_q - top_p)).masked_fill(~shared, 0)
    mass_p = top_p.exp().masked_fill(~shared, 0).sum(-1)
    mass_q = top_q.exp().masked_fill(~shared, 0).sum(-1)

    def at(scores: Tensor) -> tuple[Tensor, Tensor]:
        """p and q of the shared token with the highest score."""
        best = scores.masked_fill(~shared, -torch.inf).argmax(-1, keepdim=True)
        at_p, at_q = (x.gather(-1, best).squeeze(-1).exp() * meet for x in (top_p, top_q))
        return at_p, at_q

    extreme_p, extreme_q = at(advantage.abs())
    max_p, max_q = at(training_advantage)
    min_p, min_q = at(-training_advantage)
    sampled_q = logq.gather(-1, sampled_ids.unsqueeze(-1))
    ratio = (sampled_q - logp.gather(-1, sampled_ids.unsqueeze(-1))).squeeze(-1)
    rank = 1 + (logq > sampled_q).sum(-1)
    again = repeated.float()
    return {
        "overlap_ratio": Sums(size / ids_p.shape[-1], ones),
        "overlap_token_advantage": Sums(advantage.sum(-1) / size.clamp(min=1), meet),
        "overlap_token_advantage_code": Sums(training_advantage.sum(-1), size.float()),
        "entropy_gap_nats": Sums((entropy_q - entropy_p).abs(), ones),
        "entropy_student_nats": Sums(entropy_p, ones),
        "entropy_teacher_nats": Sums(entropy_q, ones),
        "overlap_mass_student": Sums(mass_p, ones),
        "overlap_mass_teacher": Sums(mass_q, ones),
        "overlap_mass_student_code": Sums(mass_p, meet),
        "overlap_mass_teacher_code": Sums(mass_q, meet),
        "top_mass_student": Sums(top_p.exp().sum(-1), ones),
        "top_mass_teacher": Sums(logq.gather(-1, ids_q).exp().sum(-1), ones),
        "extreme_advantage_gap": Sums(extreme_p - extreme_q, meet),
        "max_advantage_student_code": Sums(max_p, meet),
        "max_advantage_teacher_code": Sums(max_q, meet),
        "min_advantage_student_code": Sums(min_p, meet),
        "min_advantage_teacher_code": Sums(min_q, meet),
        "teacher_rank": Sums(rank.float(), ones),
        "teacher_rank_in_top": Sums(
            torch.where(is_in(sampled_ids.unsqueeze(-1), ids_q).squeeze(-1), rank, k + 1).float(),
            ones,
        ),
        "log_ratio_repeated_nats": Sums(ratio * again, again),
        "log_ratio_other_nats": Sums(ratio * (1 - again), 1 - again),
        "kl_nats": Sums((p * (logp - logq)).sum(-1), ones),
    }


@torch.no_grad()
def in_parts(
    hidden: tuple[Tensor, Tensor],
    heads: tuple[Head, Head],
    temperatures: tuple[float, float],
    sampled_ids: Tensor,
    repeated: Tensor,
    k: int,
) -> Iterator[tuple[slice, dict[str, Sums]]]:
    """``state_metrics`` of N states from the hidden states [N, H] of student and teacher, part by
    part with its place: logits of all of them are never held at once."""
    size = max(1, CHUNK_ELEMENTS // heads[0].weight.shape[0])
    for start in range(0, len(sampled_ids), size):
        part = slice(start, start + size)
        logits_p, logits_q = (
            head_logits(states[part], head, temperature)
            for states, head, temperature in zip(hidden, heads, temperatures, strict=True)
        )
        yield part, state_metrics(logits_p, logits_q, sampled_ids[part], repeated[part], k)


# The names of all measurements of states and of responses, in their order.
_ID = torch.tensor([0])
STATE = tuple(state_metrics(torch.ones(1, 2), torch.ones(1, 2), _ID, _ID, 1))
RESPONSE = ("response_tokens", "truncation_ratio", "repetition_ratio")


def repeats(ids: Tensor, mask: Tensor) -> Tensor:
    """Which response tokens end a 3-gram that occurred before in the same response, [B, T] bool;
    ids and mask are [B, T], the mask's ones in front."""
    repeated = torch.zeros(ids.shape, dtype=torch.bool)
    lengths = (mask != 0).sum(-1).tolist()
    for row, (tokens, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
        seen = set()
        for t in range(2, length):
            gram = (tokens[t - 2], tokens[t - 1], tokens[t])
            repeated[row, t] = gram in seen
            seen.add(gram)
    return repeated.to(ids.device)


def response_metrics(
    mask: Tensor, last_ids: Tensor, eos_ids: Tensor, repeated: Tensor
) -> dict[str, Sums]:
    """Measurements of B responses: tokens; share cut off before an end token; share of tokens that
    repeat a 3-gram among those that end one (Many Faces, A2, whose code divides by all tokens:
    docs/training.md), over all responses.

    mask [B, T] (ones on response tokens), last_ids [B] the last token of each response, eos_ids [E]
    the tokens that end one, repeated [B, T] from ``repeats``.
    """
    tokens = (mask != 0).sum(-1)
    ones = torch.ones_like(tokens)
    cut = ~torch.isin(last_ids, eos_ids)
    return {
        "response_tokens": Sums(tokens, ones),
        "truncation_ratio": Sums(cut, ones),
        "repetition_ratio": Sums(repeated.sum(-1), (tokens - 2).clamp(min=0)),
    }


def binned(sums: Mapping[str, Sums], positions: Tensor, width: int, bins: int) -> Tensor:
    """Totals and counts by bin of positions, [2, M, bins] in float64, metrics in their order; bin i
    holds the positions [N] from i * width to (i + 1) * width - 1."""
    entries = torch.stack([torch.stack([s.total.double(), s.n.double()]) for s in sums.values()])
    out = torch.zeros(len(sums), 2, bins, dtype=torch.float64, device=positions.device)
    return out.index_add_(2, positions // width, entries).transpose(0, 1)


def means(names: Sequence[str], tally: Tensor, width: int) -> list[tuple[str, int | None, float]]:
    """(name, first position of the bin, mean) of a tally [2, M, bins], None for all positions. What
    was counted nowhere is left out."""
    rows: list[tuple[str, int | None, float]] = []
    total, count = tally.tolist()
    for name, totals, counts in zip(names, total, count, strict=True):
        if sum(counts):
            rows.append((name, None, sum(totals) / sum(counts)))
        if len(counts) > 1:
            rows += [
                (name, i * width, t / c)
                for i, (t, c) in enumerate(zip(totals, counts, strict=True))
                if c
            ]
    return rows


def entropy_gap_of_means_nats(entropy_student_nats: float, entropy_teacher_nats: float) -> float:
    """abs(mean H(q) - mean H(p)), at most the mean of the gaps: what can be had from the two means
    that the authors' code logs."""
    return abs(entropy_teacher_nats - entropy_student_nats)

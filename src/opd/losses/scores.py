"""Losses and measurements from what was kept of a teacher: its likeliest tokens at each position of
given responses, in place of its states. ``opd.losses.sufficient`` says for which losses that is
enough; for them value and gradient are those of ``opd.losses.token.token_loss`` on all logits.

Legend: as in ``opd.losses.token``; N positions that count, k tokens that are held of each.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from opd.losses import metrics
from opd.losses.fused import Teacher, at_counted, candidates_loss
from opd.losses.head import CHUNK_ELEMENTS, Head, gathered, head_logits
from opd.losses.metrics import Sums
from opd.losses.spec import LossSpec
from opd.losses.sufficient import objection
from opd.losses.terms import States, TokenLoss
from opd.losses.token import Candidates, candidates


class Scores(NamedTuple):
    """A teacher at temperature 1 on responses, in nats. Ids are below the student's V and differ
    within a position; what stands at positions that do not count is never looked at."""

    ids: Tensor  # [B, T, k] the teacher's likeliest tokens at each position, likeliest first
    log_probs: Tensor  # [B, T, k] their log-probabilities
    sampled: Tensor  # [B, T] log-probability of the response's own token
    # [B, T, k] the tokens that a named student finds likeliest, likeliest first, and their
    # log-probabilities under the teacher; [B, T, 0] where none was named
    student_ids: Tensor
    student_log_probs: Tensor


def of_teacher_alone(ids: Tensor, log_probs: Tensor, sampled: Tensor) -> Scores:
    """Scores for which no student was named."""
    return Scores(ids, log_probs, sampled, ids[..., :0], log_probs[..., :0])


def scores_loss(spec: LossSpec, temperature: float) -> TokenLoss:
    """The loss ``spec`` from the scores of a teacher, in nats (``scored_token_loss``)."""

    def loss(student: States, teacher: Scores, ids: Tensor, mask: Tensor, _: Tensor) -> Tensor:
        return scored_token_loss(student, teacher, ids, mask, spec, temperature)

    return loss


def scored_token_loss(
    student: States,
    teacher: Scores,
    sampled_ids: Tensor,
    mask: Tensor,
    spec: LossSpec,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """``token_loss`` of the student's logits divided by ``temperature``, [B, T], 0 where ``mask``
    is. The gradient reaches the student alone; logits are taken in chunks (``fused_token_loss``).

    Raises ``UserError`` for a loss that needs more than the scores hold. The mass of a tail is one
    less that of the candidates, so a tail below the precision of float32 (1e-7) counts as none.
    """
    if error := objection(spec, teacher.ids.shape[-1], teacher.student_ids.shape[-1] > 0):
        raise error
    counts = mask != 0
    ids = sampled_ids[counts]
    if spec.support == "sampled":
        held, log_probs = ids.unsqueeze(-1), teacher.sampled[counts].unsqueeze(-1)
    else:
        held, log_probs = teacher.ids, teacher.log_probs
        if spec.support == "student":
            held, log_probs = teacher.student_ids, teacher.student_log_probs
        held, log_probs = held[counts][:, : spec.k], log_probs[counts][:, : spec.k]

    def loss(hidden: Tensor, head: Head) -> Tensor:
        known = _held(held.long(), log_probs.float(), ids, spec)
        return candidates_loss(hidden, head, known, spec, temperature, chunk_elements)

    return at_counted(*student, counts, loss)


def _held(held: Tensor, log_probs: Tensor, sampled_ids: Tensor, spec: LossSpec) -> Teacher:
    """A teacher of which the log-probabilities of some tokens are held, [N, k]."""

    def teacher(part: slice, logits_p: Tensor) -> tuple[Candidates, Tensor, Tensor]:
        logq = torch.full_like(logits_p, -torch.inf)
        # A token that the teacher rules out is still before those that are not held.
        lowest = torch.finfo(logq.dtype).min
        logq.scatter_(-1, held[part], log_probs[part].clamp(min=lowest))
        if spec.support == "student":  # as it was named, whatever the one that is trained prefers
            ids = held[part]
            support = Candidates(ids, torch.ones_like(ids, dtype=torch.bool), None)
        else:
            support = candidates(logits_p, logq, sampled_ids[part], spec)
        z_q = logq.gather(-1, support.ids)
        rest_q = torch.zeros_like(z_q[:, 0])
        if spec.tail:
            rest_q = _outside(z_q)  # -inf is what is no candidate
        return support, z_q, rest_q

    return teacher


def _outside(log_probs: Tensor) -> Tensor:
    """The log of what log-probabilities [N, C] leave of 1, [N]; -inf where they leave nothing."""
    return (-torch.expm1(log_probs.logsumexp(-1))).clamp(min=0).log()


# Nats between the last of the top k and what comes behind it, where the two are nearly the same.
_APART = 1e-5
# What needs a teacher's log-probability of every token.
_NEEDS_ALL = {"entropy_gap_nats", "entropy_teacher_nats", "teacher_rank", "kl_nats"}


@torch.no_grad()
def in_parts(
    student: States,
    teacher: Scores,
    temperature: float,
    sampled_ids: Tensor,
    repeated: Tensor,
    k: int,
) -> Iterator[tuple[slice, dict[str, Sums]]]:
    """As ``metrics.in_parts`` of N states [N, H], from the scores of a teacher, [N, k] and [N], of
    at least the k that is asked for. What they do not tell exactly is counted nowhere."""
    head = gathered(student.head)
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    for start in range(0, len(sampled_ids), size):
        part = slice(start, start + size)
        logits = head_logits(student.hidden[part], head, temperature)
        ids, log_probs = teacher.ids[part, :k], teacher.log_probs[part, :k]
        own = of_teacher_alone(ids, log_probs, teacher.sampled[part])
        logq = _completed(own, sampled_ids[part], logits.shape[-1])
        sums = metrics.state_metrics(logits, logq, sampled_ids[part], repeated[part], k)
        nothing = torch.zeros_like(logits[:, 0])
        yield (
            part,
            {
                name: Sums(nothing, nothing) if name in _NEEDS_ALL else values
                for name, values in sums.items()
            },
        )


def _completed(teacher: Scores, sampled_ids: Tensor, vocabulary: int) -> Tensor:
    """Log-probabilities [N, V] that are the teacher's at its top k tokens, [N, k], and at the
    sampled one; all others have an equal part of the rest. None of them comes before the top k,
    whatever these were rounded to."""
    ids, sampled = teacher.ids.long(), sampled_ids.unsqueeze(-1)
    inside = (ids == sampled).any(-1)
    log_probs, of_sampled = teacher.log_probs.float(), teacher.sampled.float()
    also = of_sampled.masked_fill(inside, -torch.inf).unsqueeze(-1)
    others = vocabulary - ids.shape[-1] - (~inside).long()
    rest = _outside(torch.cat([log_probs, also], -1)) - others.clamp(min=1).log()
    below = log_probs[:, -1] - _APART
    rest, of_sampled = (
        torch.minimum(rest, below),
        torch.where(inside, of_sampled, of_sampled.minimum(below)),
    )
    logq = rest.unsqueeze(-1).repeat(1, vocabulary).scatter_(-1, ids, log_probs)
    return logq.scatter_(-1, sampled, of_sampled.unsqueeze(-1))

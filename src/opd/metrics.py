"""Measurements on the states a student visits: pure functions of logits and masks.

Legend: B sequences, T response positions, V vocabulary, K size of the top-k sets. p is the
student's and q the teacher's next-token distribution. Means are returned as ``Mean`` (total and
count), so that the parts of a batch can be added up exactly. Source of the definitions: Rethinking
OPD, Eqs. 6 to 10, and its code where that differs.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean that can be merged: sum of the values and how many there were."""

    total: float
    n: float

    def __add__(self, other: object) -> "Mean":
        assert isinstance(other, Mean)
        return Mean(self.total + other.total, self.n + other.n)

    @property
    def value(self) -> float:
        """total / n, NaN where nothing was counted."""
        return self.total / self.n if self.n else float("nan")


def _mean(values: Tensor, mask: Tensor) -> Mean:
    kept = mask != 0
    return Mean(float(values.masked_fill(~kept, 0).sum(dtype=torch.float64)), float(kept.sum()))


def _overlap(logp: Tensor, logq: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The student's top k tokens [B, T, K], and which of them are in the teacher's top k."""
    k = min(k, logp.shape[-1])
    student, teacher = logp.topk(k, -1).indices, logq.topk(k, -1).indices
    return student, (student.unsqueeze(-1) == teacher.unsqueeze(-2)).any(-1)


@torch.no_grad()
def state_metrics(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, k: int
) -> dict[str, Mean]:
    """All measurements per state over the positions where ``mask`` is not zero.

    Logits are [B, T, V], mask is [B, T]; nothing is differentiated. Names:

    - overlap_ratio (Eq. 6): share of the student's top k that is in the teacher's top k.
    - overlap_token_advantage (Eq. 7): pbar (log qbar - log pbar), both renormalised over the
      intersection; mean over its tokens, then over positions with a non-empty intersection.
    - overlap_token_advantage_code: w (log q - log p) with w = p renormalised over the student's
      top k and raw log-probabilities; mean over all (position, token) pairs.
    - entropy_gap_nats (Eq. 8): mean over states of abs(H(q) - H(p)).
    - overlap_mass_student, overlap_mass_teacher (Eqs. 9, 10): raw probability on the intersection.
    - entropy_student_nats, entropy_teacher_nats: full-vocabulary entropies.
    - kl_nats: KL(p || q) over the vocabulary (Eq. 4).
    """
    logp = torch.log_softmax(student_logits.float(), -1)
    logq = torch.log_softmax(teacher_logits.float(), -1)
    p, q = logp.exp(), logq.exp()
    entropy_p, entropy_q = -(p * logp).sum(-1), -(q * logq).sum(-1)
    top, shared = _overlap(logp, logq, k)
    top_logp, top_logq = logp.gather(-1, top), logq.gather(-1, top)
    size = shared.sum(-1)
    nowhere = torch.finfo(top_logp.dtype).min
    logpbar = torch.log_softmax(top_logp.masked_fill(~shared, nowhere), -1)
    logqbar = torch.log_softmax(top_logq.masked_fill(~shared, nowhere), -1)
    advantage = (logpbar.exp() * (logqbar - logpbar)).masked_fill(~shared, 0).sum(-1)
    advantage_code = torch.softmax(top_logp, -1) * (top_logq - top_logp)
    valid = mask != 0
    return {
        "overlap_ratio": _mean(size / top.shape[-1], valid),
        "overlap_token_advantage": _mean(advantage / size.clamp(min=1), valid & (size > 0)),
        "overlap_token_advantage_code": _mean(advantage_code, valid.unsqueeze(-1) & shared),
        "entropy_gap_nats": _mean((entropy_q - entropy_p).abs(), valid),
        "overlap_mass_student": _mean(p.gather(-1, top).masked_fill(~shared, 0).sum(-1), valid),
        "overlap_mass_teacher": _mean(q.gather(-1, top).masked_fill(~shared, 0).sum(-1), valid),
        "entropy_student_nats": _mean(entropy_p, valid),
        "entropy_teacher_nats": _mean(entropy_q, valid),
        "kl_nats": _mean((p * (logp - logq)).sum(-1), valid),
    }


def entropy_gap_of_means_nats(entropy_student: Mean, entropy_teacher: Mean) -> float:
    """abs(mean H(q) - mean H(p)): what can be had from the two means that the authors' code logs.

    At most the mean of the per-state gaps.
    """
    return abs(entropy_teacher.value - entropy_student.value)


def response_metrics(mask: Tensor, last_ids: Tensor, eos_ids: Tensor) -> dict[str, Mean]:
    """Mean response length in tokens, and the share of responses cut off before an end token.

    mask is [B, T] (ones on response tokens), last_ids [B] the last token of each response,
    eos_ids [E] the tokens that end one.
    """
    everything = torch.ones(mask.shape[0], device=mask.device)
    return {
        "response_tokens": _mean((mask != 0).sum(-1).float(), everything),
        "truncation_ratio": _mean((~torch.isin(last_ids, eos_ids)).float(), everything),
    }

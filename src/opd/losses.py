"""Losses of on-policy distillation: pure functions of student and teacher logits.

Legend: B sequences, T response positions, V vocabulary, K candidate tokens of the support.
p is the student's and q the teacher's next-token distribution, both given the student's prefix.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from opd.errors import Bad


@dataclass(frozen=True)
class LossSpec:
    """Which candidate tokens a position's loss looks at.

    support: ``student`` (the student's top k), ``sampled`` (only the token that was sampled) or
    ``vocabulary`` (all). ``k`` belongs to ``student`` only.
    """

    support: Literal["student", "sampled", "vocabulary"]
    k: int | None = None

    def __post_init__(self) -> None:
        if self.support not in ("student", "sampled", "vocabulary"):
            raise Bad(
                f"unknown support '{self.support}'",
                "loss.support",
                "use student, sampled or vocabulary",
            )
        if self.support == "student" and (self.k is None or self.k < 1):
            raise Bad(f"k is {self.k}", "loss.k", "a student support needs k of at least 1")
        if self.support != "student" and self.k is not None:
            raise Bad(
                f"k is {self.k}, but support '{self.support}' takes none", "loss.k", "remove k"
            )


def token_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    sampled_ids: Tensor,
    mask: Tensor,
    spec: LossSpec,
) -> Tensor:
    """Loss of every response position in nats, [B, T], zero where ``mask`` is.

    Logits are [B, T, V], sampled_ids and mask [B, T]. For ``student`` and ``sampled`` this is the
    surrogate that the authors' code trains (Rethinking OPD, section 3.3 of its restatement, not
    Eq. 5): sum over candidates v of w(v) (log p(v) - log q(v)) rho(v), where
    rho = exp(log p - stop_gradient(log p)) is 1 in value and carries the gradient, the log-ratio
    is detached and raw (full-vocabulary log-probabilities), and w is the detached student
    probability renormalised over the candidates. For ``vocabulary`` it is the reverse KL
    divergence (Eq. 4), differentiated directly.
    """
    logp = torch.log_softmax(student_logits.float(), -1)
    logq = torch.log_softmax(teacher_logits.float(), -1).detach()
    if spec.support == "vocabulary":
        loss = (logp.exp() * (logp - logq)).sum(-1)
    else:
        if spec.support == "student":
            assert spec.k is not None
            candidates = logp.detach().topk(min(spec.k, logp.shape[-1]), -1).indices
        else:
            candidates = sampled_ids.unsqueeze(-1)
        logp, logq = logp.gather(-1, candidates), logq.gather(-1, candidates)
        weight = torch.softmax(logp.detach(), -1)
        ratio = logp.detach() - logq
        loss = (weight * ratio * torch.exp(logp - logp.detach())).sum(-1)
    return loss.masked_fill(mask == 0, 0.0)

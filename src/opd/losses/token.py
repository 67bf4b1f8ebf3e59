"""The losses of on-policy distillation: pure functions of student and teacher logits.

Legend: B sequences, T response positions, N positions that count (mask not zero), V vocabulary,
C candidate tokens of a position, K size of the top-k sets. p is the student's and q the teacher's
next-token distribution, both given the student's prefix; pbar and qbar are the same renormalised
over the candidates, z the candidates' logits; sg stops the gradient. All losses are in nats.

Sources: Rethinking OPD (its Eqs. 3 to 5, and what its code trains, which differs); The Many Faces
of OPD (its Eqs. 2 to 17 and App. A.3).
"""

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from opd.losses.spec import Aggregation, LossSpec

# A token that a model rules out (log-probability -inf) counts as one of this log-probability, so
# that a loss stays finite and still pushes away from it.
LOG_FLOOR_NATS = -100.0
# The same of logits, so that a log-softmax of them is finite; the logit of what is no candidate.
_LOGIT_FLOOR = -1e4
_NOWHERE = -1e30


def token_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    sampled_ids: Tensor,
    mask: Tensor,
    spec: LossSpec,
) -> Tensor:
    """Loss of every response position in nats, [B, T], zero where ``mask`` is: the reference.

    Logits are [B, T, V] of any float type (those below float32 are widened), sampled_ids and mask
    [B, T]; the gradient reaches the student's logits only. With r = log p - log q over the
    candidates S of a position, the main points of the space are

    - ``full``: sum over V of p r (Rethinking OPD, Eq. 4; Many Faces, Eq. 2).
    - ``sampled``: sg(r(y)) rho(y) (Rethinking OPD, Eq. 3; Many Faces, Eqs. 4 and 5).
    - ``rethinking_code``: sum over S of sg(pbar r) rho, with raw r, whose gradient is that of Eq. 5
      plus m grad log Z; m = sum of pbar r, Z = the mass of S (restatement, section 3.3).
    - ``rethinking_eq5``, ``renormalised_topk``: KL(pbar || qbar) (Eq. 5; Many Faces, Eqs. 14-16).
    - ``biased_topk``: sum over S of p r (Many Faces, Eqs. 6 to 9); ``stop_gradient_topk``: the same
      with r detached (Eq. 12).

    Ties at the border of a top-k set go to the lower id; k above V means V; positions whose support
    is empty have loss and gradient 0; positions that are masked are never looked at, whatever is
    in them; a log-probability below LOG_FLOOR_NATS counts as that.
    """
    counts = mask != 0
    logits_p = _wide(student_logits[counts])
    logits_q = _wide(teacher_logits.detach()[counts]) / spec.teacher_temperature
    ids = sampled_ids[counts]
    if spec.support == "vocabulary":
        everywhere = torch.ones_like(logits_p, dtype=torch.bool)
        support = Candidates(torch.empty_like(ids), everywhere, None)
        z_p, z_q = logits_p, logits_q
    else:
        support = candidates(logits_p.detach(), logits_q, ids, spec)
        z_p, z_q = logits_p.gather(-1, support.ids), logits_q.gather(-1, support.ids)
    rest_p, rest_q = rest_of(logits_p, support, spec), rest_of(logits_q, support, spec)
    loss = candidate_loss(z_p, rest_p, z_q, rest_q, support, spec)
    return torch.zeros(mask.shape, dtype=loss.dtype, device=loss.device).masked_scatter(
        counts, loss
    )


def aggregate(
    loss: Tensor,
    mask: Tensor,
    how: Aggregation,
    tokens: Tensor | float,
    parts: int,
    weights: Tensor | None = None,
) -> Tensor:
    """One number from the losses [B, T] of a micro-batch, to be added over the ``parts`` equal
    micro-batches of a step and averaged over processes. It does not depend on how a step is cut
    into them.

    ``token_mean``: over all tokens of the step, ``tokens`` a process. ``sequence_mean``: over
    tokens within a sequence, then over sequences (Many Faces). ``micro_batch_mean``: the sum of
    each loss times the weight of its sequence's tokens, ``weights`` [B]: times the number of
    processes those of ``opd.training.micro_batches.token_weights`` (Rethinking OPD, its code).
    """
    assert how in get_args(Aggregation), how
    if how == "token_mean":
        return loss.sum() / tokens
    if how == "sequence_mean":
        return (loss.sum(-1) / (mask != 0).sum(-1).clamp(min=1)).mean() / parts
    assert weights is not None
    return (loss.sum(-1) * weights).sum()


class Candidates(NamedTuple):
    """The candidate tokens of N positions: their ids [N, C]; which of them count, valid [N, C]; and
    for which of them q is the teacher's own, known [N, C] (None: for all)."""

    ids: Tensor
    valid: Tensor
    known: Tensor | None


def top_ids(scores: Tensor, k: int) -> Tensor:
    """Ids of the k highest scores, [..., V] -> [..., min(k, V)]; ties go to the lower id."""
    k = min(k, scores.shape[-1])
    values, ids = scores.topk(k, -1)
    tied = scores == values[..., -1:]
    crowded = tied.sum(-1) > (values == values[..., -1:]).sum(-1)
    if crowded.any():
        order = scores[crowded].sort(dim=-1, descending=True, stable=True).indices
        ids[crowded] = order[..., :k]
    return ids


def is_in(ids: Tensor, members: Tensor) -> Tensor:
    """Which of ids [..., C] occur in members [..., D] of the same position."""
    return (ids.unsqueeze(-1) == members.unsqueeze(-2)).any(-1)


def candidates(
    student_logits: Tensor, teacher_logits: Tensor | None, sampled_ids: Tensor, spec: LossSpec
) -> Candidates:
    """The support of each position from logits [N, V]. The teacher's are needed only for supports
    that depend on its top k."""
    if spec.support == "sampled":
        ids = sampled_ids.unsqueeze(-1)
        return Candidates(ids, torch.ones_like(ids, dtype=torch.bool), None)
    assert spec.k is not None
    if spec.support == "teacher":
        assert teacher_logits is not None
        ids = top_ids(teacher_logits, spec.k)
        return Candidates(ids, torch.ones_like(ids, dtype=torch.bool), None)
    top_p = top_ids(student_logits, spec.k)
    everywhere = torch.ones_like(top_p, dtype=torch.bool)
    if spec.support == "student":
        return Candidates(top_p, everywhere, None)
    assert teacher_logits is not None
    top_q = top_ids(teacher_logits, spec.k)
    shared = is_in(top_p, top_q)
    if spec.support == "intersection":
        return Candidates(top_p, shared, None)
    if spec.support == "student_filled":
        return Candidates(top_p, everywhere, shared)
    valid_p = ~shared if spec.support == "symmetric_difference" else everywhere
    valid = torch.cat([valid_p, ~is_in(top_q, top_p)], -1)
    return Candidates(torch.cat([top_p, top_q], -1), valid, None)


def candidate_loss(
    z_p: Tensor, rest_p: Tensor, z_q: Tensor, rest_q: Tensor, support: Candidates, spec: LossSpec
) -> Tensor:
    """The loss of each position, [N], from what it needs of the logits: those of the candidates
    (z_p, z_q: [N, C]) and one number a position (rest_p, rest_q: [N], from ``rest_of``)."""
    valid = support.valid
    if spec.tail:
        z_p = torch.cat([z_p, rest_p.unsqueeze(-1)], -1)
        z_q = torch.cat([z_q, rest_q.unsqueeze(-1)], -1)
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], -1)
    bar_p, bar_q = _renormalised(z_p, valid), _renormalised(z_q, valid)
    raw_p, raw_q = (bar_p, bar_q) if spec.tail else (_raw(z_p, rest_p), _raw(z_q, rest_q))
    logp, logq = (raw_p, raw_q) if spec.ratio_scope == "vocabulary" else (bar_p, bar_q)
    if support.known is not None:
        logq = torch.where(support.known, logq, logp.detach())
    if spec.gradient == "policy":
        if spec.weight == "uniform":
            weight = 1 / valid.sum(-1, keepdim=True).clamp(min=1)
        else:
            p, q = (bar_p, bar_q) if spec.weight_scope == "support" else (raw_p, raw_q)
            weight = (p if spec.weight == "student" else q).detach().exp()
        terms = weight * (logp.detach() - logq) * torch.exp(logp - logp.detach())
    elif spec.support == "sampled":
        advantage = logq - logp
        if spec.estimator == "k1":
            terms = -advantage
        elif spec.estimator == "k2":
            terms = advantage**2 / 2
        else:
            terms = torch.expm1(advantage) - advantage
    elif spec.divergence == "reverse_kl":
        terms = logp.exp() * (logp - logq)
    elif spec.divergence == "forward_kl":
        terms = logq.exp() * (logq - logp)
    else:
        beta = torch.tensor(spec.beta, dtype=logp.dtype, device=logp.device)
        log_m = torch.logaddexp(logq + beta.log(), logp + (1 - beta).log())
        terms = beta * logq.exp() * (logq - log_m) + (1 - beta) * logp.exp() * (logp - log_m)
    return terms.masked_fill(~valid, 0.0).sum(-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _raw(z: Tensor, normaliser: Tensor) -> Tensor:
    return (z - normaliser.unsqueeze(-1)).clamp(min=LOG_FLOOR_NATS)


def _renormalised(z: Tensor, valid: Tensor) -> Tensor:
    z = z.clamp(min=_LOGIT_FLOOR).masked_fill(~valid, _NOWHERE)
    return torch.log_softmax(z, -1).clamp(min=LOG_FLOOR_NATS)


def rest_of(logits: Tensor, support: Candidates, spec: LossSpec) -> Tensor:
    """The log-normaliser of logits [N, V], [N]; with a tail the logsumexp of all but the
    candidates' logits."""
    if not spec.tail:
        return logits.logsumexp(-1)
    outside = logits.gather(-1, support.ids).masked_fill(support.valid, -torch.inf)
    rest = logits.scatter(-1, support.ids, outside).clamp(min=_LOGIT_FLOOR)
    return rest.logsumexp(-1)

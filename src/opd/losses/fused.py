"""The losses of on-policy distillation: pure functions of student and teacher logits.

Legend: B sequences, T response positions, N positions that count (mask not zero), V vocabulary,
C candidate tokens of a position, K size of the top-k sets. p is the student's and q the teacher's
next-token distribution, both given the student's prefix; pbar and qbar are the same renormalised
over the candidates; sg stops the gradient. All losses are in nats.

Sources: Rethinking OPD (its Eqs. 3 to 5, and what its code trains, which differs); The Many Faces
of OPD (its Eqs. 2 to 17 and App. A.3).
"""

from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from opd.core.errors import Bad
from opd.losses.spec import Aggregation, LossSpec

# A token that a model rules out (log-probability -inf) counts as one of this log-probability, so
# that a loss stays finite and still pushes away from it.
LOG_FLOOR_NATS = -100.0
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
    kept = mask != 0
    student = _wide(student_logits[kept])
    teacher = _wide(teacher_logits.detach()[kept]) / spec.teacher_temperature
    ids = sampled_ids[kept]
    if spec.support == "vocabulary":
        found = Candidates(torch.empty_like(ids), torch.ones_like(student, dtype=torch.bool), None)
        z_p, z_q = student, teacher
    else:
        found = candidates(student.detach(), teacher, ids, spec)
        z_p, z_q = student.gather(-1, found.ids), teacher.gather(-1, found.ids)
    loss = candidate_loss(
        z_p, _rest(student, found, spec), z_q, _rest(teacher, found, spec), found, spec
    )
    return torch.zeros(mask.shape, dtype=loss.dtype, device=loss.device).masked_scatter(kept, loss)


def aggregate(loss: Tensor, mask: Tensor, how: str, tokens: Tensor | float, parts: int) -> Tensor:
    """One number from the losses [B, T] of a micro-batch, to be added over the ``parts`` equal
    micro-batches of a step and averaged over processes.

    ``token_mean``: over all tokens of the step, ``tokens`` a process. ``sequence_mean``: over
    tokens within a sequence, then over sequences (Many Faces). ``micro_batch_mean``: over the
    tokens of a micro-batch, then over micro-batches by their sequences (Rethinking OPD, its code;
    restatement, section 3.3).
    """
    kept = mask != 0
    if how == "token_mean":
        return loss.sum() / tokens
    if how == "sequence_mean":
        return (loss.sum(-1) / kept.sum(-1).clamp(min=1)).mean() / parts
    if how == "micro_batch_mean":
        return loss.sum() / kept.sum().clamp(min=1) / parts
    known = ", ".join(get_args(Aggregation))
    raise Bad(f"unknown aggregation '{how}'", "aggregation", f"use one of {known}")


class Candidates(NamedTuple):
    """ids [N, C]; valid [N, C]: which slots count; known [N, C]: which q is the teacher's (all)."""

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


def is_in(ids: Tensor, other: Tensor) -> Tensor:
    """Which of ids [..., C] occur in other [..., D] of the same position."""
    return (ids.unsqueeze(-1) == other.unsqueeze(-2)).any(-1)


def candidates(
    student_logits: Tensor, teacher_logits: Tensor | None, sampled_ids: Tensor, spec: LossSpec
) -> Candidates:
    """The support of each position from logits [N, V]; the teacher's may be absent for the supports
    that need only the student's."""
    if spec.support == "sampled":
        ids = sampled_ids.unsqueeze(-1)
        return Candidates(ids, torch.ones_like(ids, dtype=torch.bool), None)
    assert spec.k is not None
    if spec.support == "teacher":
        assert teacher_logits is not None
        ids = top_ids(teacher_logits, spec.k)
        return Candidates(ids, torch.ones_like(ids, dtype=torch.bool), None)
    student = top_ids(student_logits, spec.k)
    everywhere = torch.ones_like(student, dtype=torch.bool)
    if spec.support == "student":
        return Candidates(student, everywhere, None)
    assert teacher_logits is not None
    teacher = top_ids(teacher_logits, spec.k)
    shared = is_in(student, teacher)
    if spec.support == "intersection":
        return Candidates(student, shared, None)
    if spec.support == "student_filled":
        return Candidates(student, everywhere, shared)
    ours = ~shared if spec.support == "symmetric_difference" else everywhere
    valid = torch.cat([ours, ~is_in(teacher, student)], -1)
    return Candidates(torch.cat([student, teacher], -1), valid, None)


def candidate_loss(
    z_p: Tensor, rest_p: Tensor, z_q: Tensor, rest_q: Tensor, found: Candidates, spec: LossSpec
) -> Tensor:
    """The loss of each position, [N], from what it needs of the logits: those of the candidates
    (z_p, z_q: [N, C]) and one number a position (rest_p, rest_q: [N]), the log-normaliser, or with
    a tail the logsumexp of all other logits."""
    valid = found.valid
    if spec.tail:
        z_p = torch.cat([z_p, rest_p.unsqueeze(-1)], -1)
        z_q = torch.cat([z_q, rest_q.unsqueeze(-1)], -1)
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], -1)
    bar_p, bar_q = _renormalised(z_p, valid), _renormalised(z_q, valid)
    raw_p, raw_q = (bar_p, bar_q) if spec.tail else (_raw(z_p, rest_p), _raw(z_q, rest_q))
    logp, logq = (raw_p, raw_q) if spec.ratio_scope == "vocabulary" else (bar_p, bar_q)
    if found.known is not None:
        logq = torch.where(found.known, logq, logp.detach())
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


def _rest(logits: Tensor, found: Candidates, spec: LossSpec) -> Tensor:
    if not spec.tail:
        return logits.logsumexp(-1)
    inside = logits.gather(-1, found.ids).masked_fill(found.valid, -torch.inf)
    rest = logits.scatter(-1, found.ids, inside).clamp(min=_LOGIT_FLOOR)
    return rest.logsumexp(-1)


class Head(NamedTuple):
    """The last layer of a model: hidden states [N, H] -> logits [N, V], as TRL's kernels take it.

    logits = softcap tanh(scale (hidden @ weight.T + bias) / softcap); weight [V, H], bias [V].
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


# Elements of one [positions, V] tensor of logits: 233 MB in float32. Products are fastest where the
# positions are a multiple of 128, as these are for the vocabulary of Qwen3.
CHUNK_ELEMENTS = 384 * 151_936


def fused_token_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    sampled_ids: Tensor,
    mask: Tensor,
    spec: LossSpec,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """``token_loss`` of the heads' logits, [B, T], without the logits of a whole sequence.

    Hidden states are [B, T, H] (the two models' widths may differ), the student's logits are
    divided by ``temperature``. Positions are taken in chunks of ``chunk_elements`` logits, which
    the backward pass computes again. Logits and gradients accumulate in float32. What an objective
    does not need is not done: losses that are renormalised over the support have a backward pass
    through the rows of the candidates alone, and where the teacher's normaliser cancels and its top
    k are not asked for, its head is read at the candidates alone. The whole vocabulary goes through
    TRL's chunked kernel, which knows no floor: there a log-probability of -inf is one.
    """
    kept = mask != 0
    h_p, h_q = _narrow(student_hidden[kept]), _narrow(teacher_hidden.detach()[kept])
    student_head, teacher_head = _gathered(student_head), _gathered(teacher_head)
    if not len(h_p):
        # Connected to everything that expects a gradient.
        loss = h_p.sum(-1).float()
        return (
            torch.zeros(mask.shape, device=loss.device) + loss.sum() + 0 * student_head.weight.sum()
        )
    with torch.autocast(h_p.device.type, enabled=False):
        if spec.support == "vocabulary":
            loss = _vocabulary_loss(h_p, student_head, h_q, teacher_head, spec, temperature)
        else:
            loss = _CandidateLoss.apply(
                h_p,
                student_head.weight,
                student_head.bias,
                h_q,
                student_head,
                teacher_head,
                sampled_ids[kept],
                spec,
                temperature,
                chunk_elements,
            )
    return torch.zeros(mask.shape, dtype=loss.dtype, device=loss.device).masked_scatter(kept, loss)


def head_logits(hidden: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """Logits [N, V] in float32 of hidden states [N, H]; the product is taken in their type (or the
    one of autocast) and not rounded to it."""
    hidden = _narrow(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = _matmul(hidden, head.weight.to(hidden.dtype).t())
        if head.bias is not None:
            logits += head.bias.float()
        return _transform(logits, head, temperature)


def _gathered(head: Head) -> Head:
    """A head whose sharded weights (FSDP2) are whole, so that they are gathered once and not once
    a chunk."""
    weight: Any = head.weight
    bias: Any = head.bias
    if not hasattr(weight, "full_tensor"):
        return head
    return head._replace(
        weight=weight.full_tensor(), bias=bias.full_tensor() if bias is not None else None
    )


def _narrow(hidden: Tensor) -> Tensor:
    """Hidden states in the type that autocast computes in, if it is on. What follows turns it off:
    a product of float32 would be rounded too, and a backward pass may run outside of it."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, from factors of any type."""
    if a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b for a total in float32, without rounding the product to the factors' type."""
    if a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def _transform(logits: Tensor, head: Head, temperature: float) -> Tensor:
    """Scale, soft cap and temperature, in place."""
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits.div_(temperature) if temperature != 1.0 else logits


def _slope(logits: Tensor, head: Head, temperature: float) -> Tensor | float:
    """d logits / d (hidden @ weight.T + bias), from the logits themselves."""
    slope: Tensor | float = head.scale / temperature
    if head.softcap is not None:
        slope = slope * (1 - (logits * (temperature / head.softcap)) ** 2)
    return slope


def _rows(hidden: Tensor, head: Head, ids: Tensor, temperature: float) -> Tensor:
    """Logits [N, C] of the tokens ``ids`` [N, C] only."""
    rows = head.weight[ids].to(hidden.dtype)
    logits = torch.bmm(rows.float(), hidden.float().unsqueeze(-1)).squeeze(-1)
    if head.bias is not None:
        logits += head.bias[ids].float()
    return _transform(logits, head, temperature)


def _vocabulary_loss(
    h_p: Tensor, head_p: Head, h_q: Tensor, head_q: Head, spec: LossSpec, temperature: float
) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    if head_q.softcap is not None and spec.teacher_temperature != temperature:
        raise Bad(
            "a teacher with capped logits takes the student's temperature",
            "loss.teacher_temperature",
            f"use {temperature} or a top-k support",
        )
    # The kernel has one temperature: the teacher's own goes into its scale.
    scale = head_q.scale * temperature / spec.teacher_temperature
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": spec.beta}[spec.divergence]
    loss, _ = ChunkedDivergenceFunction.apply(
        h_p,
        head_p.weight,
        head_p.bias,
        h_q,
        head_q.weight.detach(),
        head_q.bias.detach() if head_q.bias is not None else None,
        beta,
        temperature,
        head_p.scale,
        head_p.softcap,
        scale,
        head_q.softcap,
    )
    return loss


class _CandidateLoss(torch.autograd.Function):
    """The loss on candidate tokens.

    A position's loss is a function of its candidates' logits z and of one number, the logsumexp R
    of the whole vocabulary (or with a tail of all but the candidates). So the forward pass keeps
    dloss/dz [N, C] and dloss/dR [N], and the gradient of all logits is the first at the candidates
    plus the second times softmax: only that needs the vocabulary again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        h_q: Tensor,
        head_p: Head,
        head_q: Head,
        sampled_ids: Tensor,
        spec: LossSpec,
        temperature: float,
        chunk_elements: int,
    ) -> Tensor:
        head_p, head_q = _cast(head_p, hidden.dtype), _cast(head_q, h_q.dtype)
        raw = spec.tail or spec.ratio_scope == "vocabulary"
        raw_q = raw or (spec.weight, spec.weight_scope) == ("teacher", "vocabulary")
        whole_q = raw_q or spec.support != "student"
        rows = max(1, chunk_elements // weight.shape[0])
        parts = []
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            z_p = head_logits(hidden[part], head_p, temperature)
            z_q = head_logits(h_q[part], head_q, spec.teacher_temperature) if whole_q else None
            found = candidates(z_p, z_q, sampled_ids[part], spec)
            if z_q is None:
                inside_q = _rows(h_q[part], head_q, found.ids, spec.teacher_temperature)
                rest_q = torch.zeros_like(inside_q[:, 0])
            else:
                inside_q, rest_q = z_q.gather(-1, found.ids), _rest(z_q, found, spec)
            with torch.enable_grad():
                inside = z_p.gather(-1, found.ids).requires_grad_()
                rest = _rest(z_p, found, spec).requires_grad_()
                loss = candidate_loss(inside, rest, inside_q, rest_q, found, spec)
                d_inside, d_rest = torch.autograd.grad(
                    loss.sum(), (inside, rest), allow_unused=True, materialize_grads=True
                )
            slope = _slope(inside.detach(), head_p, temperature)
            if not raw:
                d_inside = d_inside * slope
            parts.append((loss.detach(), found.ids, found.valid, d_inside, rest.detach(), d_rest))
            del z_p, z_q
        loss, *kept = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, *kept)
        ctx.settings = head_p[1:], spec.tail, raw, temperature, rows
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, valid, d_inside, rest, d_rest = ctx.saved_tensors
        transform, tail, raw, temperature, rows = ctx.settings
        narrow = weight.to(hidden.dtype)
        head = Head(narrow, *transform)
        grad_hidden, grad_weight, grad_bias = (
            torch.zeros(x.shape, dtype=torch.float32, device=x.device) if needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        d_inside = d_inside * upstream.unsqueeze(-1)
        d_rest = d_rest * upstream
        if not raw:
            rows = max(1, CHUNK_ELEMENTS // (4 * ids.shape[1] * hidden.shape[1]))
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            h = hidden[part]
            if not raw:
                g = d_inside[part]
                if grad_hidden is not None:
                    w = narrow[ids[part]].float()
                    grad_hidden[part] = torch.bmm(g.unsqueeze(1), w).squeeze(1)
                if grad_weight is not None:
                    outer = g.unsqueeze(-1) * h.float().unsqueeze(1)
                    grad_weight.index_add_(0, ids[part].flatten(), outer.flatten(0, 1))
                if grad_bias is not None:
                    grad_bias.index_add_(0, ids[part].flatten(), g.flatten())
                continue
            z = head_logits(hidden[part], head, temperature)
            slope = _slope(z, head, temperature)
            g = z.sub_(rest[part].unsqueeze(-1)).exp_().mul_(d_rest[part].unsqueeze(-1))
            if tail:
                inside = g.gather(-1, ids[part]).masked_fill_(valid[part], 0.0)
                g.scatter_(-1, ids[part], inside)
            g.scatter_add_(-1, ids[part], d_inside[part])
            g = g.mul_(slope)
            if grad_bias is not None:
                grad_bias += g.sum(0)
            g = g.to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = _matmul(g, narrow)
            if grad_weight is not None:
                _add_matmul(grad_weight, g.t(), h)
        grads = (
            g.to(x.dtype) if g is not None else None
            for g, x in zip(
                (grad_hidden, grad_weight, grad_bias), (hidden, weight, bias), strict=True
            )
        )
        return (*grads, *(None,) * 7)


def _cast(head: Head, dtype: torch.dtype) -> Head:
    """A head without gradient, in the type of the hidden states: once, and not in every chunk."""
    bias = head.bias.detach() if head.bias is not None else None
    return head._replace(weight=head.weight.detach().to(dtype), bias=bias)

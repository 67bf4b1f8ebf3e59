"""The same losses from hidden states, without the logits of a whole sequence in memory.

Legend: as in ``opd.losses.token``; H width of the hidden states h.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opd.core.errors import UserError
from opd.losses.head import (
    CHUNK_ELEMENTS,
    Head,
    add_matmul,
    gathered,
    head_logits,
    logit_slope,
    matmul,
    narrow,
    rows_of,
)
from opd.losses.spec import LossSpec
from opd.losses.token import Candidates, candidate_loss, candidates, rest_of

# What is known of the teacher at some of the positions (a slice of N), at which the student has
# these logits [n, V]: the candidates, and their z_q and rest_q of ``candidate_loss``.
Teacher = Callable[[slice, Tensor], tuple[Candidates, Tensor, Tensor]]


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
    counts = mask != 0
    h_q, teacher_head = narrow(teacher_hidden.detach()[counts]), gathered(teacher_head)

    def loss(h_p: Tensor, head: Head) -> Tensor:
        if spec.support == "vocabulary":
            return _vocabulary_loss(h_p, head, h_q, teacher_head, spec, temperature)
        teacher = _read_by(h_q, teacher_head, sampled_ids[counts], spec)
        return candidates_loss(h_p, head, teacher, spec, temperature, chunk_elements)

    return at_counted(student_hidden, student_head, counts, loss)


def at_counted(
    hidden: Tensor, head: Head, counts: Tensor, loss: Callable[[Tensor, Head], Tensor]
) -> Tensor:
    """A loss [N] of the positions that count (bool, [B, T]), from their states [N, H] and the head,
    as [B, T], 0 elsewhere; with a gradient, if of 0, where no position counts."""
    states, head = narrow(hidden[counts]), gathered(head)
    if not len(states):
        # Connected to everything that expects a gradient.
        nothing = states.sum() + 0 * head.weight.sum()
        return torch.zeros(counts.shape, device=states.device) + nothing.float()
    with torch.autocast(states.device.type, enabled=False):
        losses = loss(states, head)
    zeros = torch.zeros(counts.shape, dtype=losses.dtype, device=losses.device)
    return zeros.masked_scatter(counts, losses)


def candidates_loss(
    hidden: Tensor,
    head: Head,
    teacher: Teacher,
    spec: LossSpec,
    temperature: float,
    chunk_elements: int,
) -> Tensor:
    """The loss of a spec with candidates, [N], of states [N, H] whose logits are divided by
    ``temperature``, from what is known of a teacher."""
    loss: Tensor = _CandidateLoss.apply(
        hidden, head.weight, head.bias, head, teacher, spec, temperature, chunk_elements
    )
    return loss


def _read_by(h_q: Tensor, head_q: Head, sampled_ids: Tensor, spec: LossSpec) -> Teacher:
    """A teacher from its states [N, H] and head."""
    head_q = _cast(head_q, h_q.dtype)
    # The logits of all tokens are for its normaliser and for its top k.
    raw = spec.tail or spec.ratio_scope == "vocabulary"
    weighted_by_q = (spec.weight, spec.weight_scope) == ("teacher", "vocabulary")
    reads_all = raw or weighted_by_q or spec.support != "student"

    def teacher(part: slice, logits_p: Tensor) -> tuple[Candidates, Tensor, Tensor]:
        if reads_all:
            logits_q = head_logits(h_q[part], head_q, spec.teacher_temperature)
            support = candidates(logits_p, logits_q, sampled_ids[part], spec)
            return support, logits_q.gather(-1, support.ids), rest_of(logits_q, support, spec)
        support = candidates(logits_p, None, sampled_ids[part], spec)
        z_q = rows_of(h_q[part], head_q, support.ids, spec.teacher_temperature)
        return support, z_q, torch.zeros_like(z_q[:, 0])

    return teacher


def _vocabulary_loss(
    h_p: Tensor, head_p: Head, h_q: Tensor, head_q: Head, spec: LossSpec, temperature: float
) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    if head_q.softcap is not None and spec.teacher_temperature != temperature:
        raise UserError(
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

    A position's loss is a function of its candidates' logits z_p and of one number rest_p, the
    logsumexp of the whole vocabulary (or with a tail of all but the candidates). So the forward
    pass keeps dloss/dz_p [N, C] and dloss/drest_p [N], and the gradient of all logits is the first
    at the candidates plus the second times softmax: only that needs the vocabulary again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_p: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        teacher: Teacher,
        spec: LossSpec,
        temperature: float,
        chunk_elements: int,
    ) -> Tensor:
        head = _cast(head, h_p.dtype)
        # A loss that is renormalised over the support does not depend on rest_p.
        raw = spec.tail or spec.ratio_scope == "vocabulary"
        chunk = max(1, chunk_elements // weight.shape[0])
        parts = []
        for start in range(0, h_p.shape[0], chunk):
            part = slice(start, start + chunk)
            logits_p = head_logits(h_p[part], head, temperature)
            support, z_q, rest_q = teacher(part, logits_p)
            with torch.enable_grad():
                z_p = logits_p.gather(-1, support.ids).requires_grad_()
                rest_p = rest_of(logits_p, support, spec).requires_grad_()
                loss = candidate_loss(z_p, rest_p, z_q, rest_q, support, spec)
                d_z, d_rest = torch.autograd.grad(
                    loss.sum(), (z_p, rest_p), allow_unused=True, materialize_grads=True
                )
            if not raw:  # else the backward pass has the slope of all logits
                d_z = d_z * logit_slope(z_p.detach(), head, temperature)
            parts.append((loss.detach(), support.ids, support.valid, d_z, rest_p.detach(), d_rest))
            del logits_p  # before the next chunk's are made
        loss, *saved = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        ctx.save_for_backward(h_p, weight, bias, *saved)
        ctx.settings = head[1:], spec.tail, raw, temperature, chunk
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, valid, d_z, rest, d_rest = ctx.saved_tensors
        transform, tail, raw, temperature, chunk = ctx.settings
        cast_weight = weight.to(hidden.dtype)
        head = Head(cast_weight, *transform)
        leaves = hidden, weight, bias
        grad_hidden, grad_weight, grad_bias = (
            torch.zeros(leaf.shape, dtype=torch.float32, device=leaf.device) if needed else None
            for leaf, needed in zip(leaves, ctx.needs_input_grad[:3], strict=True)
        )
        d_z = d_z * upstream.unsqueeze(-1)
        d_rest = d_rest * upstream
        if not raw:
            # Only the candidates' rows of the head have a gradient: [positions, C, H] at a time.
            chunk = max(1, CHUNK_ELEMENTS // (4 * ids.shape[1] * hidden.shape[1]))
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            h, d_logits = hidden[part], d_z[part]
            if not raw:
                if grad_hidden is not None:
                    rows = cast_weight[ids[part]].float()
                    grad_hidden[part] = torch.bmm(d_logits.unsqueeze(1), rows).squeeze(1)
                if grad_weight is not None:
                    outer = d_logits.unsqueeze(-1) * h.float().unsqueeze(1)
                    grad_weight.index_add_(0, ids[part].flatten(), outer.flatten(0, 1))
                if grad_bias is not None:
                    grad_bias.index_add_(0, ids[part].flatten(), d_logits.flatten())
                continue
            logits = head_logits(h, head, temperature)
            slope = logit_slope(logits, head, temperature)
            softmax = logits.sub_(rest[part].unsqueeze(-1)).exp_()  # of all tokens in rest
            d_logits = softmax.mul_(d_rest[part].unsqueeze(-1))
            if tail:  # candidates have no part in the rest
                outside = d_logits.gather(-1, ids[part]).masked_fill_(valid[part], 0.0)
                d_logits.scatter_(-1, ids[part], outside)
            d_logits.scatter_add_(-1, ids[part], d_z[part])
            d_logits = d_logits.mul_(slope)
            if grad_bias is not None:
                grad_bias += d_logits.sum(0)
            d_logits = d_logits.to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = matmul(d_logits, cast_weight)
            if grad_weight is not None:
                add_matmul(grad_weight, d_logits.t(), h)
        grads = (
            grad.to(leaf.dtype) if grad is not None else None
            for grad, leaf in zip((grad_hidden, grad_weight, grad_bias), leaves, strict=True)
        )
        return (*grads, *(None,) * 5)


def _cast(head: Head, dtype: torch.dtype) -> Head:
    """A head without gradient, in the type of the hidden states: once, and not in every chunk."""
    bias = head.bias.detach() if head.bias is not None else None
    return head._replace(weight=head.weight.detach().to(dtype), bias=bias)

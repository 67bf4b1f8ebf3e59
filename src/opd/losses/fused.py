"""The same losses from hidden states, without the logits of a whole sequence in memory.

Legend: as in ``opd.losses.token``, and H hidden.
"""

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
from opd.losses.token import candidate_loss, candidates, rest_of


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
    h_p, h_q = narrow(student_hidden[kept]), narrow(teacher_hidden.detach()[kept])
    student_head, teacher_head = gathered(student_head), gathered(teacher_head)
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
                inside_q = rows_of(h_q[part], head_q, found.ids, spec.teacher_temperature)
                rest_q = torch.zeros_like(inside_q[:, 0])
            else:
                inside_q, rest_q = z_q.gather(-1, found.ids), rest_of(z_q, found, spec)
            with torch.enable_grad():
                inside = z_p.gather(-1, found.ids).requires_grad_()
                rest = rest_of(z_p, found, spec).requires_grad_()
                loss = candidate_loss(inside, rest, inside_q, rest_q, found, spec)
                d_inside, d_rest = torch.autograd.grad(
                    loss.sum(), (inside, rest), allow_unused=True, materialize_grads=True
                )
            slope = logit_slope(inside.detach(), head_p, temperature)
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
            slope = logit_slope(z, head, temperature)
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
                grad_hidden[part] = matmul(g, narrow)
            if grad_weight is not None:
                add_matmul(grad_weight, g.t(), h)
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

"""What a term of a sum of objectives is of each token: a function of the states of the student and
of the term's own model, of what was sampled, and of rewards.

Legend: B sequences, T response positions, N positions that count (mask not zero), H width of hidden
states, V vocabulary, S responses, G responses to one prompt. p is the student's next-token
distribution, y the sampled token, sg stops the gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opd.losses.fused import fused_token_loss
from opd.losses.head import Head, gathered, narrow
from opd.losses.spec import LossSpec

# Tokens of the vocabulary that TRL's kernel takes at a time.
VOCABULARY_CHUNK = 8192


class States(NamedTuple):
    """A model on responses: last hidden states [B, T, H], which predict the tokens, and head."""

    hidden: Tensor
    head: Head


# (student, own model, sampled ids [B, T], mask [B, T], advantages [B]) -> loss [B, T], 0 where the
# mask is. The gradient reaches the student alone. What stands for the own model is ``States``, or
# the ``opd.losses.scores.Scores`` that were kept of it.
TokenLoss = Callable[[States, Any, Tensor, Tensor, Tensor], Tensor]


def teacher_loss(spec: LossSpec, temperature: float) -> TokenLoss:
    """The loss ``spec`` from a teacher or a reference, in nats (``fused_token_loss``)."""

    def loss(student: States, teacher: States, ids: Tensor, mask: Tensor, _: Tensor) -> Tensor:
        return fused_token_loss(*student, *teacher, ids, mask, spec, temperature)

    return loss


def reward_loss(temperature: float) -> TokenLoss:
    """The policy gradient of the sampled tokens (``policy_gradient``), from hidden states, without
    the logits of a sequence in memory."""

    def loss(student: States, _: States, ids: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        counts = mask != 0
        hidden, head = narrow(student.hidden[counts]), gathered(student.head)
        with torch.autocast(hidden.device.type, enabled=False):
            logp, *_others = ChunkedLogProbFunction.apply(
                hidden,
                head.weight,
                head.bias,
                ids[counts],
                temperature,
                min(VOCABULARY_CHUNK, len(head.weight)),
                head.softcap,
                head.scale,
                (),
            )
        losses = policy_gradient(logp, advantages.unsqueeze(-1).expand(mask.shape)[counts])
        return losses.new_zeros(mask.shape).masked_scatter(counts, losses)

    return loss


def policy_gradient(logp: Tensor, advantages: Tensor) -> Tensor:
    """-A rho with rho = p / sg(p), [N], from log p(y) and the advantage A of each token: its
    gradient is -A grad log p(y). The loss of GRPO (DeepSeekMath, 2402.03300) without its KL, where
    rollouts get one update, so that no ratio is clipped."""
    return -advantages * torch.exp(logp - logp.detach())


def group_advantages(rewards: Tensor, group: int) -> Tensor:
    """(r - mean) / (std + 1e-4) of each group of G = ``group`` responses that stand together, [S];
    std with G - 1. As the stage ``grpo`` has it."""
    groups = rewards.view(-1, group)
    deviation = groups - groups.mean(1, keepdim=True)
    return (deviation / (groups.std(1, keepdim=True) + 1e-4)).flatten()

"""Weights of tokens that another model has sampled than the one that is trained.

Legend: N positions, H width of hidden states. p is the student's next-token distribution, m that of
the model that sampled, y the sampled token; both at the temperatures at which they are read.
"""

import torch
from torch import Tensor

from opd.losses.head import CHUNK_ELEMENTS, Head, gathered, head_logits


@torch.no_grad()
def sampled_logprobs(hidden: Tensor, head: Head, ids: Tensor, temperature: float) -> Tensor:
    """log p(y) in nats, [N] in float32, from the hidden states [N, H] that predict the sampled
    tokens ``ids`` [N]; the logits of all positions are never held at once."""
    head = gathered(head)
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    parts = [torch.zeros(0, device=hidden.device)]
    for start in range(0, len(ids), size):
        logits = head_logits(hidden[start : start + size], head, temperature)
        chosen = logits.gather(-1, ids[start : start + size].unsqueeze(-1)).squeeze(-1)
        parts.append(chosen - logits.logsumexp(-1))
    return torch.cat(parts)


def importance_weights(logprobs: Tensor, behaviour: Tensor, clip: Tensor) -> Tensor:
    """min(p(y) / m(y), c) from log p(y), log m(y) and c, [N] each.

    With weight p / m the mean over tokens that m has sampled is the mean over those that p would
    sample after the same beginning: the beginnings stay those of m. The cap bounds the variance at
    the price of a bias (truncated importance sampling; Ionides, 2008).
    """
    return torch.minimum((logprobs - behaviour).exp(), clip)

"""The last layer of a model: logits from hidden states in float32, and their slope."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


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


def head_logits(hidden: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """Logits [N, V] in float32 of hidden states [N, H]; the product is taken in their type (or the
    one of autocast) and not rounded to it."""
    hidden = narrow(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = matmul(hidden, head.weight.to(hidden.dtype).t())
        if head.bias is not None:
            logits += head.bias.float()
        return transform(logits, head, temperature)


def gathered(head: Head) -> Head:
    """A head whose sharded weights (FSDP2) are whole, so that they are gathered once and not once
    a chunk."""
    weight: Any = head.weight
    bias: Any = head.bias
    if not hasattr(weight, "full_tensor"):
        return head
    return head._replace(
        weight=weight.full_tensor(), bias=bias.full_tensor() if bias is not None else None
    )


def narrow(hidden: Tensor) -> Tensor:
    """Hidden states in the type that autocast computes in, if it is on. What follows turns it off:
    a product of float32 would be rounded too, and a backward pass may run outside of it."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, from factors of any type."""
    if a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b for a total in float32, without rounding the product to the factors' type."""
    if a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def transform(logits: Tensor, head: Head, temperature: float) -> Tensor:
    """Scale, soft cap and temperature, in place."""
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits.div_(temperature) if temperature != 1.0 else logits


def logit_slope(logits: Tensor, head: Head, temperature: float) -> Tensor | float:
    """d logits / d (hidden @ weight.T + bias), from the logits themselves."""
    slope: Tensor | float = head.scale / temperature
    if head.softcap is not None:
        slope = slope * (1 - (logits * (temperature / head.softcap)) ** 2)
    return slope


def rows_of(hidden: Tensor, head: Head, ids: Tensor, temperature: float) -> Tensor:
    """Logits [N, C] of the tokens ``ids`` [N, C] only."""
    rows = head.weight[ids].to(hidden.dtype)
    logits = torch.bmm(rows.float(), hidden.float().unsqueeze(-1)).squeeze(-1)
    if head.bias is not None:
        logits += head.bias[ids].float()
    return transform(logits, head, temperature)

"""What becomes of the padding of a micro-batch before it goes through a model.

TRL pads prompts (on the left) and responses (on the right) to the longest of all rollouts of a
step, and then cuts the step into micro-batches.

Legend: B sequences of L tokens with padding, N tokens without; H width of the hidden states.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opd.core.errors import UserError

# Mask -> all of a batch that has its columns, in TRL's names and those of ``distill``.
_COLUMNS = {
    "prompt_mask": ("prompt_ids",),
    "teacher_prompt_mask": ("teacher_prompt_ids",),
    "completion_mask": (
        "completion_ids",
        "old_per_token_logps",
        "sampling_per_token_logps",
        "importance_sampling_ratio",
    ),
}


def trimmed(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch without the columns that are padding in each of its sequences.

    Positions are counted from the first token that is no padding (``opd.training.positions``), so
    loss and gradient stay what they were but for rounding.
    """
    parts = dict(batch)
    for mask, others in _COLUMNS.items():
        if mask in batch:
            used = (batch[mask] != 0).any(0)
            for name in (mask, *others):
                if parts.get(name) is not None:
                    parts[name] = parts[name][:, used]
    return parts


def packed_hidden(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states [B, L, H] of sequences [B, L], computed as one row of the N tokens that
    are no padding; 0 where there is padding.

    The positions of the row begin at 0 with every sequence. From that transformers tells the
    sequences apart: flash attention takes each by itself, the others get a block-diagonal mask.
    """
    kept = mask != 0
    positions = (kept.cumsum(1) - 1)[kept]
    row = backbone(input_ids=ids[kept][None], position_ids=positions[None], use_cache=False)
    hidden = row.last_hidden_state[0]
    padded = hidden.new_zeros(*mask.shape, hidden.shape[-1])
    padded[kept] = hidden
    return padded


def require_boundaries(model: Any) -> None:
    """Raise ``UserError`` where a packed sequence sees the one before it.

    Where attention stops at the boundary, masked weights are exactly zero, and so is the gradient
    of the second sequence's logits by the first one's embeddings.
    """
    ids = torch.arange(8, device=model.device).repeat(2)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    # As the trainer calls it: with a cache, transformers takes both for one sequence.
    logits = model(inputs_embeds=embedded, position_ids=ids, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits[:, 8:].float().square().sum(), embedded)
    if gradient[:, :8].any():
        raise UserError(
            f"the attention of {type(model).__name__} "
            f"({model.config._attn_implementation}) looks across packed sequences",
            "packing",
            "leave it out for this model",
        )

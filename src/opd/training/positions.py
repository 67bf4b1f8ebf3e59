"""Positions of tokens in sequences that are padded on the left, as prompts are.

Legend: B sequences of L tokens with padding; H width of the hidden states.
"""

from typing import Any

from torch import Tensor


def positions_of(mask: Tensor) -> Tensor:
    """The positions [B, L] of the tokens of sequences, from 0 at the first that is no padding; 0
    where there is padding before it."""
    return ((mask != 0).cumsum(1) - 1).clamp(min=0)


def padded_hidden(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states [B, L, H] of sequences [B, L] with padding."""
    named = {"attention_mask": mask, "position_ids": positions_of(mask)}
    hidden: Tensor = backbone(input_ids=ids, **named, use_cache=False).last_hidden_state
    return hidden


def count_positions(backbone: Any) -> None:
    """Have a model that is given no positions count them as ``positions_of`` does. Left to itself
    it counts padding, which learned positions, those of GPT-2, take for tokens."""

    def before(_: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = named.get("attention_mask")
        if mask is None or mask.dim() != 2 or named.get("position_ids") is not None:
            return args, named
        return args, {**named, "position_ids": positions_of(mask)}

    backbone.register_forward_pre_hook(before, with_kwargs=True)

"""What a model makes of given responses: its last hidden states, from token ids."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# A prompt and the response to it, as token ids.
Asked = tuple[Sequence[int], Sequence[int]]


def padded(rows: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] with padding behind, and a mask with ones on what counts."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return ids.to(device), mask.to(device)


def hidden_states(model: Any, batch: Sequence[Asked], device: str) -> Tensor:
    """Last hidden states [N, H] that predict the tokens of responses to prompts (token ids of
    each), one rollout after the other."""
    ids, mask = padded([[*prompt, *response] for prompt, response in batch], device)
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    of_responses = [
        row[len(prompt) - 1 : len(prompt) - 1 + len(response)]
        for row, (prompt, response) in zip(states, batch, strict=True)
    ]
    return torch.cat(of_responses)


@torch.no_grad()
def by_response(
    model: Any, asked: Sequence[Asked], device: str, size: int
) -> Iterator[tuple[int, Tensor]]:
    """The states [T, H] of each response (``hidden_states``) with its place in ``asked``: ``size``
    at a time, those together that are alike in length, so that there is little padding."""
    lengths = [len(prompt) + len(response) for prompt, response in asked]
    order = sorted(range(len(asked)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        batch = [asked[i] for i in places]
        states = hidden_states(model, batch, device)
        yield from zip(places, states.split([len(own) for _, own in batch]), strict=True)

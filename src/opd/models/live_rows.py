"""Sampling with transformers without the responses of a batch that have ended.

``generate`` reads every row of a batch at each token until the last row ends. Where lengths differ,
most of that is for nothing: of responses of 65 tokens on average, at most 128, half.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

ROWS = ("input_ids", "attention_mask", "position_ids")  # [.., B, tokens]
# Leaving rows out copies the cache of the others, as each token does.
MOST_LEFT = 7 / 8


@contextmanager
def live_rows(model: Any, stops: Collection[int]) -> Iterator[None]:
    """Within it ``model.generate`` reads only rows that have not ended: those without a token of
    ``stops`` so far. Rows that have ended get logits of 0, and ``generate`` pads them as ever; its
    random numbers are the same. A row's logits are those of a smaller batch, equal but for
    rounding. Without a cache, or with layers whose cache cannot select rows, all are read.
    """
    ending = torch.tensor(sorted(stops))
    rows = ended = torch.empty(0)

    def before(_: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal rows, ended
        cache, last = named.get("past_key_values"), named["input_ids"][:, -1]
        if cache is None or not cache.get_seq_length():
            ended = torch.zeros_like(last, dtype=torch.bool)
            rows = torch.arange(len(last), device=last.device)
            return args, named
        ended |= torch.isin(last, ending.to(last.device))
        going = ~ended[rows]
        selects = all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
        if selects and 0 < going.sum() <= MOST_LEFT * len(rows):
            cache.batch_select_indices(going.nonzero().squeeze(1))
            rows = rows[going]
        return args, {**named, **{key: named[key][..., rows, :] for key in ROWS if key in named}}

    def after(_: Any, args: Any, output: Any) -> Any:
        if len(rows) < len(ended):
            logits = output.logits.new_zeros(len(ended), *output.logits.shape[1:])
            output.logits = logits.index_copy(0, rows, output.logits)
        return output

    # What is called by the ``generate`` of a model with an adapter is the model inside.
    called = model.get_base_model() if hasattr(model, "get_base_model") else model
    with ExitStack() as hooks:
        hooks.enter_context(called.register_forward_pre_hook(before, with_kwargs=True))
        hooks.enter_context(called.register_forward_hook(after))
        yield

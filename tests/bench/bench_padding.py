"""What padding costs in training: the positions that go through a model, and the time of a forward
and a backward pass, padded as TRL pads, trimmed, and packed into one row.

See README.md beside this file.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import describe, table
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from opd.training.padding import trimmed
from opd.training.positions import packed_hidden, padded_hidden

# Case -> layers and width of the model, sequences of a step and of a micro-batch, tokens of a
# prompt, mean of the exponential law of response lengths, and where they are cut: as the miniature,
# and as the papers' runs at a fourteenth of their length.
CASES = {
    "miniature": (3, 96, 128, 128, 12, 12, 32),
    "mean 8,000 cut at 7,168": (2, 128, 32, 4, 8, 571, 512),
    "mean 8,000 cut at 15,360": (2, 128, 32, 4, 8, 571, 1097),
    "mean 1,200 cut at 7,168": (2, 128, 32, 4, 8, 86, 512),
}


def batch(sequences: int, prompt: int, mean: float, cut: int) -> dict[str, Tensor]:
    """A step's sequences, padded as TRL pads them; prompts of one to two times ``prompt``."""
    prompts = torch.randint(prompt, 2 * prompt + 1, (sequences, 1))
    responses = torch.empty(sequences, 1).exponential_(1 / mean).ceil().clamp(1, cut).long()
    columns = torch.arange(int(prompts.max())), torch.arange(int(responses.max()))
    masks = (columns[0] >= len(columns[0]) - prompts).long(), (columns[1] < responses).long()
    parts = zip(("prompt", "completion"), masks, strict=True)
    made = {}
    for part, mask in parts:
        made |= {f"{part}_ids": torch.randint(1, 90, mask.shape), f"{part}_mask": mask}
    return made


def joined(part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    ids, mask = (
        torch.cat([part[f"{name}_{kind}"] for name in ("prompt", "completion")], 1)
        for kind in ("ids", "mask")
    )
    return ids, mask


WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "padded": (dict, padded_hidden),
    "trimmed": (trimmed, padded_hidden),
    "packed": (trimmed, packed_hidden),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--attention", default="sdpa")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for case, (layers, width, sequences, size, *lengths) in CASES.items():
        model = Qwen3Model._from_config(
            Qwen3Config(
                vocab_size=90,
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=width // 4,
            ),
            attn_implementation=chosen.attention,
        )
        step = batch(sequences, *lengths)
        parts = [
            {name: tensor[i : i + size] for name, tensor in step.items()}
            for i in range(0, sequences, size)
        ]
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(chosen.rounds + 1):
            for way, (prepared, hidden_of) in WAYS.items():
                start = time.process_time()
                for part in parts:
                    hidden_of(model, *joined(prepared(part))).square().mean().backward()
                seconds[way].append(time.process_time() - start)
        counted = float(joined(step)[1].sum())
        narrow = sum(joined(trimmed(part))[1].numel() for part in parts)
        ratios = [
            statistics.median(
                ours / whole
                for ours, whole in zip(seconds[way][1:], seconds["padded"][1:], strict=True)
            )
            for way in ("trimmed", "packed")
        ]
        shares = (counted / joined(step)[1].numel(), counted / narrow)
        rows.append([case, *(f"{100 * s:.0f}%" for s in shares), *(f"{r:.2f}" for r in ratios)])
    head = ["lengths", "of padded", "of trimmed", "trimmed / padded, time", "packed / padded, time"]
    print(table(head, rows))
    print(describe("cpu"))


if __name__ == "__main__":
    main()

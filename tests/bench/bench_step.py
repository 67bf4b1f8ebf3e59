"""Tokens a second, achieved FLOP/s and peak memory of a whole training step of distillation.

See README.md beside this file.
"""

import argparse
import gc
import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from common import describe, reset_cuda_peak, synchronise, table
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from opd.losses.fused import fused_token_loss
from opd.losses.head import Head
from opd.losses.spec import PRESETS
from opd.losses.token import token_loss
from opd.training.positions import packed_hidden

SPEC = PRESETS["rethinking_code"]


@dataclass(frozen=True)
class Size:
    """A model's shape, a batch, and the side of the square product that the device is rated by."""

    model: dict[str, int]
    sequences: int
    length: int
    product: int


QWEN3_1_7B = Size(
    {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 6144,
    },
    sequences=4,
    length=2048,
    product=8192,
)
SMALL = Size(
    {
        "vocab_size": 1024,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 192,
    },
    sequences=2,
    length=64,
    product=512,
)


class Variant(NamedTuple):
    packed: bool
    checkpointing: bool
    fused: bool

    def cells(self) -> list[str]:
        rows, losses = ("padded", "packed"), ("naive", "fused")
        return [losses[self.fused], "yes" if self.checkpointing else "no", rows[self.packed]]


class Setup(NamedTuple):
    student: Any
    teacher: Any
    optimizer: torch.optim.Optimizer
    ids: Tensor
    mask: Tensor


def build(size: Size, device: str, variant: Variant, attention: str) -> Setup:
    torch.manual_seed(0)
    config = Qwen3Config(**size.model, tie_word_embeddings=True, use_cache=False)
    chosen = {"attn_implementation": attention}
    with torch.device(device):
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **chosen).train()
        teacher = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, **chosen).eval()
        ids = torch.randint(config.vocab_size, (size.sequences, size.length + 1))
        # The first is the longest, the last a quarter of it.
        lengths = torch.linspace(size.length + 1, (size.length + 1) / 4, size.sequences).long()
        mask = (torch.arange(size.length + 1) < lengths[:, None]).long()
    teacher.requires_grad_(False)
    if variant.checkpointing:
        student.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
    return Setup(student, teacher, optimizer, ids, mask)


def hidden(model: Any, setup: Setup, packed: bool) -> Tensor:
    if packed:
        return packed_hidden(model, setup.ids, setup.mask)[:, :-1]
    states: Tensor = model(input_ids=setup.ids, attention_mask=setup.mask).last_hidden_state
    return states[:, :-1]


def step(setup: Setup, device: str, variant: Variant) -> None:
    sampled, mask = setup.ids[:, 1:], setup.mask[:, 1:]
    with torch.no_grad():
        h_q = hidden(setup.teacher.model, setup, variant.packed)
    with torch.autocast(device, torch.bfloat16):
        # With float32 weights the last norm gives float32; the head multiplies in bfloat16.
        h_p = hidden(setup.student.model, setup, variant.packed).to(torch.bfloat16)
    w_p, w_q = setup.student.lm_head.weight, setup.teacher.lm_head.weight
    # Outside autocast, for the backward pass is outside it too and has to compute the same logits.
    if variant.fused:
        losses = fused_token_loss(h_p, Head(w_p), h_q, Head(w_q), sampled, mask, SPEC)
    else:
        losses = token_loss(h_p @ w_p.to(h_p.dtype).T, h_q @ w_q.T, sampled, mask, SPEC)
    loss = losses.sum() / mask.sum()
    loss.backward()
    setup.optimizer.step()
    setup.optimizer.zero_grad()


class Result(NamedTuple):
    tokens_per_s: float
    flops_per_s: float
    peak: int | None  # bytes; of a GPU only


def run(size: Size, device: str, variant: Variant, attention: str, steps: int) -> Result:
    gc.collect()  # the previous variant's models
    if device == "cuda":
        reset_cuda_peak()
    setup = build(size, device, variant, attention)
    step(setup, device, variant)  # warm-up; makes the optimiser's state
    seconds = []
    for _ in range(steps):
        synchronise(device)
        start = time.perf_counter()
        step(setup, device, variant)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    tokens_per_s = int(setup.mask.sum()) / statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return Result(tokens_per_s, tokens_per_s * flops_of_a_token(setup.student), peak)


def flops_of_a_token(model: Any) -> int:
    """6N for the student and 2N for a teacher of the same shape; nothing that is done twice."""
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    weights = {id(p): p.numel() for p in model.parameters()}  # tied ones once
    weights.pop(id(embedding))
    weights[id(head)] = head.numel()
    return 8 * int(sum(weights.values()))


def product_flops_per_s(device: str, side: int) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(12):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[2:])


def cells(
    size: Size, device: str, variant: Variant, attention: str, steps: int, rated: float
) -> list[str]:
    try:
        result = run(size, device, variant, attention, steps)
    except torch.OutOfMemoryError:
        return [*variant.cells(), "out of memory", "", "", ""]
    return [
        *variant.cells(),
        f"{result.tokens_per_s:.0f}",
        f"{result.flops_per_s / 1e12:.3g}",
        f"{result.flops_per_s / rated:.2f}",
        "not measured" if result.peak is None else f"{result.peak / 1e9:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--attention", default="sdpa", help="by transformers' names")
    parser.add_argument("--small", action="store_true", help="a tiny shape, on any device")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        print("not measured: needs a CUDA device (--small tries the script on a CPU)")
        sys.exit(0)
    size = SMALL if args.small else QWEN3_1_7B
    rated = product_flops_per_s(device, size.product)
    rows = []
    for values in itertools.product((False, True), repeat=3):
        rows.append(cells(size, device, Variant(*values), args.attention, args.steps, rated))
        print(*rows[-1], sep=" | ", file=sys.stderr)
    header = "loss", "checkpointing", "rows", "tokens/s", "TFLOP/s", "of product", "peak GB"
    print(table(header, rows))
    print(f"\n{describe(device)}")
    print(
        f"\nbfloat16 product of side {size.product}: {rated / 1e12:.3g} TFLOP/s; "
        f"{size.sequences} sequences of {size.length} tokens to a quarter of that, "
        f"{args.attention}, {args.steps} steps" + (", tiny shape." if args.small else ".")
    )


if __name__ == "__main__":
    main()

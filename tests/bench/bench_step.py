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
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from common import describe, reset_cuda_peak, synchronise, table
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from opd.losses.fused import fused_token_loss
from opd.losses.head import Head
from opd.losses.spec import PRESETS
from opd.losses.token import token_loss

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
    fused: bool
    checkpointing: bool
    liger: bool

    def cells(self) -> list[str]:
        names = "naive", "fused"
        return [names[self.fused], *("yes" if on else "no" for on in self[1:])]


class Setup(NamedTuple):
    student: Any
    teacher: Any
    optimizer: torch.optim.Optimizer
    ids: Tensor


def build(size: Size, device: str, variant: Variant) -> Setup:
    torch.manual_seed(0)
    config = Qwen3Config(**size.model, tie_word_embeddings=True, use_cache=False)
    with torch.device(device):
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        teacher = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        ids = torch.randint(config.vocab_size, (size.sequences, size.length + 1))
    teacher.requires_grad_(False)
    if variant.checkpointing:
        student.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
    return Setup(student, teacher, optimizer, ids)


def step(setup: Setup, device: str, fused: bool) -> None:
    ids, sampled = setup.ids[:, :-1], setup.ids[:, 1:]
    mask = torch.ones_like(sampled)
    with torch.no_grad():
        h_q = setup.teacher.model(input_ids=ids).last_hidden_state
    with torch.autocast(device, torch.bfloat16):
        # With float32 weights the last norm gives float32; the head multiplies in bfloat16.
        h_p = setup.student.model(input_ids=ids).last_hidden_state.to(torch.bfloat16)
    w_p, w_q = setup.student.lm_head.weight, setup.teacher.lm_head.weight
    # Outside autocast, for the backward pass is outside it too and has to compute the same logits.
    if fused:
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


def run(size: Size, device: str, variant: Variant, steps: int) -> Result:
    gc.collect()  # the previous variant's models
    if device == "cuda":
        reset_cuda_peak()
    setup = build(size, device, variant)
    step(setup, device, variant.fused)  # warm-up; makes the optimiser's state
    seconds = []
    for _ in range(steps):
        synchronise(device)
        start = time.perf_counter()
        step(setup, device, variant.fused)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    tokens_per_s = size.sequences * size.length / statistics.median(seconds)
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


def use_liger() -> None:
    """Its norms, MLP and rotary embedding in every Qwen3 that is built after this."""
    liger = import_module("liger_kernel.transformers")
    liger.apply_liger_kernel_to_qwen3(cross_entropy=False, fused_linear_cross_entropy=False)


def cells(size: Size, device: str, variant: Variant, steps: int, rated: float) -> list[str]:
    if variant.liger and (device != "cuda" or find_spec("liger_kernel") is None):
        return [*variant.cells(), "not measured", "needs liger_kernel and CUDA", "", ""]
    if variant.liger:
        use_liger()
    try:
        result = run(size, device, variant, steps)
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
    parser.add_argument("--small", action="store_true", help="a tiny shape, on any device")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        print("not measured: needs a CUDA device (--small tries the script on a CPU)")
        sys.exit(0)
    size = SMALL if args.small else QWEN3_1_7B
    rated = product_flops_per_s(device, size.product)
    rows = []
    # Liger last, for what it changes stays changed.
    for liger, checkpointing, fused in itertools.product((False, True), repeat=3):
        variant = Variant(fused, checkpointing, liger)
        rows.append(cells(size, device, variant, args.steps, rated))
        print(*rows[-1], sep=" | ", file=sys.stderr)
    header = "loss", "checkpointing", "liger", "tokens/s", "TFLOP/s", "of product", "peak GB"
    print(table(header, rows))
    print(f"\n{describe(device)}")
    print(
        f"\nbfloat16 product of side {size.product}: {rated / 1e12:.3g} TFLOP/s; "
        f"{size.sequences} x {size.length} tokens a step, {args.steps} steps"
        + (", tiny shape." if args.small else ".")
    )


if __name__ == "__main__":
    main()

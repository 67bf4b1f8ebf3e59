"""Time and peak memory of the fused loss, against full logits and against TRL's chunked loss.

See README.md beside this file.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from common import describe, reset_cuda_peak, synchronise, table
from torch import Tensor
from trl.kernels import chunked_divergence
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from opd.losses import fused as fused_module
from opd.losses import head
from opd.losses.fused import fused_token_loss
from opd.losses.head import Head
from opd.losses.spec import PRESETS, LossSpec
from opd.losses.token import token_loss

# The shape that the tiles of both chunked losses are made for (Qwen3's vocabulary).
FULL_VOCABULARY, FULL_POSITIONS = 151_936, 8192
MEMORY_AIM = 1 / 8
SLOWER_THAN_TRL_AIM = 1.15
# Of mallopt(3), by malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4


@dataclass(frozen=True)
class Case:
    device: str
    vocabulary: int
    hidden: int
    positions: int
    dtype: str
    scale_tiles: bool


class Inputs(NamedTuple):
    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    sampled_ids: Tensor
    mask: Tensor


class Row(NamedTuple):
    """Of each contender the seconds of all rounds and the peak in bytes; None: out of memory."""

    preset: str
    seconds: dict[str, list[float] | None]
    peak: dict[str, int | None]


def make_inputs(case: Case) -> Inputs:
    """A student and a teacher that mostly agree, so that their top k overlap."""
    generator = torch.Generator(case.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=case.device)

    dtype: torch.dtype = getattr(torch, case.dtype)
    hidden = normal(1, case.positions, case.hidden)
    weight = normal(case.vocabulary, case.hidden) * 2 / math.sqrt(case.hidden)
    teacher_hidden = (hidden + 0.3 * normal(*hidden.shape)).to(dtype)
    ids = torch.randint(
        case.vocabulary, (1, case.positions), generator=generator, device=case.device
    )
    return Inputs(
        hidden.to(dtype).requires_grad_(),
        weight.to(dtype).requires_grad_(),
        teacher_hidden,
        weight.to(dtype, copy=True),
        ids,
        torch.ones_like(ids),
    )


def naive(x: Inputs, spec: LossSpec) -> Tensor:
    student = x.hidden @ x.weight.T
    teacher = x.teacher_hidden @ x.teacher_weight.T
    return token_loss(student, teacher, x.sampled_ids, x.mask, spec).sum() / x.mask.sum()


def trl(x: Inputs, spec: LossSpec) -> Tensor:
    """TRL's loss of the same divergence over the whole vocabulary, whatever the support."""
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": spec.beta}[spec.divergence]
    loss: Tensor = _chunked_divergence_loss(
        x.hidden, x.teacher_hidden, x.weight, x.teacher_weight, x.mask, beta
    )[0]
    return loss


def fused(x: Inputs, spec: LossSpec) -> Tensor:
    loss = fused_token_loss(
        x.hidden,
        Head(x.weight),
        x.teacher_hidden,
        Head(x.teacher_weight),
        x.sampled_ids,
        x.mask,
        spec,
        chunk_elements=head.CHUNK_ELEMENTS,
    )
    return loss.sum() / x.mask.sum()


CONTENDERS: dict[str, Callable[[Inputs, LossSpec], Tensor]] = {
    "naive": naive,
    "trl": trl,
    "fused": fused,
}


def loss_and_backward(contender: str, x: Inputs, spec: LossSpec) -> None:
    torch.autograd.grad(CONTENDERS[contender](x, spec), (x.hidden, x.weight))


def scale_tiles(case: Case) -> None:
    """Shrink the tiles of both chunked losses, so that a small shape has as many of them as the
    full one; a tile that holds everything would show no saving."""
    rows, columns = case.positions / FULL_POSITIONS, case.vocabulary / FULL_VOCABULARY
    head.CHUNK_ELEMENTS = max(1, int(head.CHUNK_ELEMENTS * rows * columns))
    fused_module.CHUNK_ELEMENTS = head.CHUNK_ELEMENTS  # it holds a name of its own
    chunked_divergence.TOKEN_CHUNK_SIZE = max(1, int(chunked_divergence.TOKEN_CHUNK_SIZE * rows))
    chunked_divergence.VOCAB_CHUNK_SIZE = max(1, int(chunked_divergence.VOCAB_CHUNK_SIZE * columns))


def seconds_of_rounds(
    case: Case, x: Inputs, spec: LossSpec, rounds: int
) -> dict[str, list[float] | None]:
    """Contenders take turns, so that what else the machine does falls on all of them."""
    seconds: dict[str, list[float] | None] = {name: [] for name in CONTENDERS}
    for turn in range(rounds + 1):
        for name in CONTENDERS:
            taken = seconds[name]
            if taken is None:
                continue
            synchronise(case.device)
            start = time.perf_counter()
            try:
                loss_and_backward(name, x, spec)
                synchronise(case.device)
            except torch.OutOfMemoryError:
                seconds[name] = None
                continue
            if turn:  # the first is the warm-up
                taken.append(time.perf_counter() - start)
    return seconds


def gradient_bytes(x: Inputs) -> int:
    return x.hidden.nbytes + x.weight.nbytes


def cuda_peak(contender: str, x: Inputs, spec: LossSpec) -> int | None:
    before = reset_cuda_peak()
    try:
        loss_and_backward(contender, x, spec)
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated() - before - gradient_bytes(x)


def cpu_peak(case: Case, contender: str, preset: str) -> int:
    """By the process's largest resident size, so in a process of its own."""
    # Give freed tensors back at once: what is resident before the call is then its inputs.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    if case.scale_tiles:
        scale_tiles(case)
    small = Case(case.device, 512, 16, 8, case.dtype, False)
    loss_and_backward(contender, make_inputs(small), PRESETS[preset])  # loads libraries, threads
    x = make_inputs(case)
    Path("/proc/self/clear_refs").write_text("5")
    before = _largest_resident_bytes()
    loss_and_backward(contender, x, PRESETS[preset])
    return _largest_resident_bytes() - before - gradient_bytes(x)


def _largest_resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measure(case: Case, presets: list[str], rounds: int) -> list[Row]:
    # A process that has imported what is slow to and computed nothing, to be forked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["opd.losses.fused", "trl.trainer.distillation_trainer"])
    if case.device == "cpu":
        # Keep freed tensors, as CUDA's allocator does: page faults would be timed with the losses.
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    if case.scale_tiles:
        scale_tiles(case)
    x = make_inputs(case)
    rows = []
    for preset in presets:
        spec = PRESETS[preset]
        seconds = seconds_of_rounds(case, x, spec, rounds)
        peak: dict[str, int | None]
        if case.device == "cuda":
            peak = {name: cuda_peak(name, x, spec) for name in CONTENDERS}
        else:
            with context.Pool(1, maxtasksperchild=1) as pool:
                peak = {name: pool.apply(cpu_peak, (case, name, preset)) for name in CONTENDERS}
        rows.append(Row(preset, seconds, peak))
        print(*_cells(rows[-1]), sep=" | ", file=sys.stderr)
    return rows


def time_ratio(row: Row, other: str) -> float | None:
    """Median over the rounds of the ratio within a round."""
    ours, theirs = row.seconds["fused"], row.seconds[other]
    if ours is None or theirs is None:
        return None
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_ratio(row: Row, other: str) -> float | None:
    ours, theirs = row.peak["fused"], row.peak[other]
    return None if ours is None or theirs is None else ours / theirs


def time_aim(preset: str) -> float:
    """What the time may be, in TRL's."""
    renormalised = PRESETS[preset].ratio_scope == "support"
    return 1.0 if preset == "full" or renormalised else SLOWER_THAN_TRL_AIM


def missed_aims(row: Row) -> list[str]:
    checks = (
        ("time/TRL", time_ratio(row, "trl"), time_aim(row.preset)),
        ("peak/naive", peak_ratio(row, "naive"), MEMORY_AIM),
        ("peak/TRL", peak_ratio(row, "trl"), 1.0),
    )
    return [
        f"{row.preset}: {what} is {found:.3f}, aim {aim:g}"
        for what, found, aim in checks
        if found is not None and found > aim
    ]


def _cells(row: Row) -> list[str]:
    taken, peak = row.seconds["fused"], row.peak["fused"]
    ratios = [time_ratio(row, "naive"), time_ratio(row, "trl")]
    peak_ratios = [peak_ratio(row, "naive"), peak_ratio(row, "trl")]
    return [
        row.preset,
        "out of memory" if taken is None else f"{statistics.median(taken) * 1000:.1f}",
        *(_ratio(x) for x in ratios),
        "out of memory" if peak is None else f"{peak / 1e6:.1f}",
        *(_ratio(x) for x in peak_ratios),
    ]


def _ratio(x: float | None) -> str:
    return "out of memory" if x is None else f"{x:.3f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"])
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--positions", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument(
        "--scale-tiles",
        action=argparse.BooleanOptionalAction,
        help="shrink the tiles of both chunked losses with the shape (default: on a CPU)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers of the run")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = args.device == "cuda"
    defaults = {
        "vocabulary": FULL_VOCABULARY if on_gpu else 8192,
        "hidden": 2048 if on_gpu else 256,
        "positions": FULL_POSITIONS if on_gpu else 1024,
        "dtype": "bfloat16" if on_gpu else "float32",
        "rounds": 10 if on_gpu else 5,
        "scale_tiles": not on_gpu,
    }
    for key, value in defaults.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    return args


def main() -> None:
    args = arguments()
    case = Case(
        args.device, args.vocabulary, args.hidden, args.positions, args.dtype, args.scale_tiles
    )
    rows = measure(case, args.presets, args.rounds)
    header = "preset", "time ms", "time/naive", "time/TRL", "peak MB", "peak/naive", "peak/TRL"
    print(table(header, [_cells(row) for row in rows]))
    shape = ", ".join(f"{key} {value}" for key, value in asdict(case).items())
    print(f"\n{describe(case.device)}\n\n{shape}, rounds {args.rounds}.")
    missed = [line for row in rows for line in missed_aims(row)]
    print("\nMissed aims: " + ("; ".join(missed) if missed else "none") + ".")
    if args.json is not None:
        report = {
            "run": describe(case.device),
            "case": asdict(case),
            "rows": [row._asdict() for row in rows],
            "missed": missed,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

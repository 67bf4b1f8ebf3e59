"""What the benchmarks share: how a run is described, tables, and the device's clock and memory."""

import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch


def describe(device: str) -> str:
    """Machine, command and date of this run, for the line below a table."""
    return f"{_machine(device)}. `python {' '.join(sys.argv)}`, {date.today().isoformat()}."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def reset_cuda_peak() -> int:
    """Forget the peak so far and return the bytes that are allocated now."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _machine(device: str) -> str:
    cores = len(os.sched_getaffinity(0))
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return f"{name}, {cores} CPU cores, torch {torch.__version__}"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"

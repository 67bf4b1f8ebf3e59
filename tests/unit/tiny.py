"""Tiny models, prompts and settings for the training stages."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd import tables

WORLD = {
    "seed": 3,
    "rl_times": 0.4,
    "other_times": 0.12,
    "exact_duplicates": 0.05,
    "near_duplicates": 0.1,
}
SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 16, "seed": 0}
COMMON = {"steps": 3, "lr": 1e-3, "seed": 5, "threads": 1}
ROLLOUTS = {"prompts_per_step": 4, "temperature": 1.0, "max_new_tokens": 6, "max_prompt_tokens": 16}
SFT = {**COMMON, "batch_size": 4, "schedule": "cosine", "warmup": 0.5, "max_tokens": 64}
GRPO = {**COMMON, **ROLLOUTS, "group_size": 2, "grader": "world"}
OPD = {
    **COMMON,
    **ROLLOUTS,
    "rollouts_per_prompt": 2,
    "loss": {"k": 4},
    "aggregation": "token_mean",
    "metrics_k": 4,
    "metrics_every": 1,
    "position_bin": 4,
}
Inputs = dict[str, Path]
Stage = Callable[[dict[str, Any], Inputs, Path, Path], dict[str, Any]]


def stage(name: str) -> Stage:
    """The function of a training stage."""
    module = {"sft": "sft", "grpo": "grpo", "opd": "distill"}[name]
    return importlib.import_module(f"opd.training.{module}").run


def run(name: str, cfg: dict[str, Any], inputs: Inputs, out: Path) -> dict[str, Any]:
    """Run a training stage into ``out``; a second run finds the scratch folder beside it."""
    scratch = out.with_name(f"{out.name}-scratch")
    for folder in (out, scratch):
        folder.mkdir(exist_ok=True)
    return stage(name)(cfg, inputs, out, scratch)


def course(out: Path, name: str) -> list[float]:
    """A metric over the steps of a run."""
    rows = tables.read(out / "metrics.parquet", tables.METRICS).to_pylist()
    return [r["value"] for r in rows if r["name"] == name and r["position"] is None]


def files(out: Path) -> dict[str, bytes]:
    """What a stage has written, by name."""
    return {p.name: p.read_bytes() for p in out.iterdir()}


def started(
    cfg: dict[str, Any], inputs: Inputs, folder: Path, name: str = "opd"
) -> "subprocess.Popen[str]":
    """The stage in a process of its own, through the command line."""
    named = {"sft": ["data"], "grpo": ["prompts"], "opd": ["teacher", "prompts"]}[name]
    cfg = {**cfg, "inputs": ["student", *named]}
    paths = [str(inputs[name]) for name in cfg["inputs"]]
    output, store = folder / "artifact" / "digest.json", folder / "store"
    command = [sys.executable, "-m", "opd", name, "--cfg", json.dumps(cfg), "--input", *paths]
    return subprocess.Popen(
        [*command, "--output", str(output), "--store", str(store)],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(folder: Path, step: int) -> None:
    """Until the journal of the run below ``folder`` has reached a step."""
    deadline = time.time() + 120
    while time.time() < deadline:
        lines = [
            line
            for path in folder.glob("store/.scratch/*/metrics.jsonl")
            for line in path.read_text().rpartition("\n")[0].splitlines()  # whole lines
        ]
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.005)
    raise AssertionError("the run never got there")

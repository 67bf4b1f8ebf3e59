"""What of TRL, transformers and vLLM is taken that they do not promise to keep. What fails here
says which of our modules an upgrade would break, before a run does."""

import importlib
import inspect
import os
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from opd.recipes.config import VllmSetting

TRAINER = "trl.trainer.distillation_trainer.DistillationTrainer"
GRPO = "trl.trainer.grpo_trainer.GRPOTrainer"
# What is taken, the arguments that it is given, and where.
TAKEN = [
    (f"{TRAINER}._generate_and_score_completions", ["inputs"], "training.distill"),
    (f"{TRAINER}._generate_single_turn", ["prompt_ids"], "tests"),
    (
        f"{TRAINER}._compute_loss",
        ["unwrapped_student", "inputs", "num_items_in_batch"],
        "training.distill",
    ),
    (f"{GRPO}._compute_loss", ["model", "inputs"], "training.grpo"),
    ("transformers.Trainer._save_checkpoint", ["model", "trial"], "training.distill, grpo"),
    (
        "transformers.Trainer._load_from_checkpoint",
        ["resume_from_checkpoint", "model"],
        "training.distill, grpo",
    ),
    (
        "trl.kernels.chunked_divergence.ChunkedDivergenceFunction.forward",
        [],
        "losses.fused",
    ),
    ("trl.trainer.sft_trainer.DataCollatorForLanguageModeling", [], "training.sft"),
    ("trl.generation.vllm_generation.VLLMGeneration", [], "rehearsal.on_cpu"),
    ("trl.models.utils._ForwardRedirection.__call__", [], "training.distill"),
]
OF_VLLM = ["vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm"]


def named(path: str) -> object:
    """What a dotted path names, whatever part of it is the module."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize(("path", "arguments", "user"), TAKEN, ids=[path for path, *_ in TAKEN])
def test_what_is_taken_is_there(path: str, arguments: list[str], user: str) -> None:
    try:
        function = named(path)
    except (ModuleNotFoundError, AttributeError) as error:
        pytest.fail(f"{user} takes {path}, which is gone ({error})")
    known = inspect.signature(function).parameters  # type: ignore[arg-type]
    missing = [name for name in arguments if name not in known]
    assert not missing, f"{user} gives {path} {missing}; it takes {[*known]}"


def test_what_a_rehearsal_replaces_in_vllm_is_there() -> None:
    """Looked up in the environment that has vLLM."""
    python = os.environ.get("OPD_VLLM", "")
    if not Path(python).is_file():
        pytest.skip("OPD_VLLM names no Python with vLLM")
    for path in OF_VLLM:
        module, name = path.split(":")
        code = f"import {module} as module; module.{name}"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, f"rehearsal.on_cpu takes {path}: {done.stderr[-300:]}"


def test_settings_of_vllm_are_those_that_trl_takes():
    from trl import DistillationConfig, GRPOConfig

    taken, more = (
        {f.name.removeprefix("vllm_") for f in fields(c) if f.name.startswith("vllm_")}
        for c in (DistillationConfig, GRPOConfig)
    )
    assert {*get_args(VllmSetting)} == taken == taken & more

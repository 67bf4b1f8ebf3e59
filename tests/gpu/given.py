"""Steps of distillation on rollouts that are the same on every device, in a process of their own:
which device a process computes on is settled when it starts."""

import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import torch
from tiny import Inputs
from transformers import TrainerCallback

# A step's numbers, and the gradient of every weight.
Step = tuple[dict[str, float], dict[str, torch.Tensor]]


def responses(self: Any, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
    """Token ids that depend on the prompt and its place alone."""
    drawn = []
    for place, ids in enumerate(prompt_ids):
        dice = random.Random(f"{place} {list(ids)}")
        drawn.append([dice.randrange(5, 40) for _ in range(dice.randint(1, 24))])
    return drawn


class Gradients(TrainerCallback):
    """The gradients of the first update, before they are clipped to a length."""

    def __init__(self) -> None:
        self.by_name: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        self.by_name = {n: p.grad.float().cpu() for n, p in model.named_parameters()}


def _train(runs: dict[str, dict[str, Any]], inputs: Inputs, folder: Path) -> dict[str, Step]:
    from opd.training import distill

    begin = distill.Trainer.__init__
    gradients = Gradients()

    def begun(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        self.add_callback(gradients)

    distill.Trainer.__init__ = begun  # type: ignore[method-assign]
    distill.Trainer._generate_single_turn = responses
    steps = {}
    for name, cfg in runs.items():
        out, scratch = folder / name, folder / f"{name}-scratch"
        for path in (out, scratch):
            path.mkdir(parents=True)
        steps[name] = distill.run(cfg, inputs, out, scratch)["last"], gradients.by_name
    return steps


def _begin(device: str) -> None:
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def train(
    runs: dict[str, dict[str, Any]], inputs: Inputs, folder: Path, device: str
) -> dict[str, Step]:
    """The numbers and gradients of the last step of runs, name -> settings, on a device."""
    with multiprocessing.get_context("spawn").Pool(1, _begin, (device,)) as pool:
        return pool.apply(_train, (runs, inputs, folder))

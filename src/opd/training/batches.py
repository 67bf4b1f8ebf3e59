"""How the sequences of an optimiser step are dealt out to processes and passes through the model.
Without torch, so that a plan is checked before anything is submitted."""

from collections.abc import Mapping
from typing import Any

from opd.core.errors import UserError


def sequences(stage: str, settings: Mapping[str, Any]) -> int:
    """Sequences of one optimiser step of ``sft``, ``grpo`` or ``distill``, over all processes."""
    if stage == "sft":
        return int(settings["batch_size"])
    if stage == "distill":
        return int(settings["prompts_per_step"] * settings["rollouts_per_prompt"])
    rollouts = settings["prompts_per_step"] * settings["group_size"]
    updates = settings.get("updates_per_batch", 1)
    if rollouts % updates:
        reason = f"{updates} do not divide the rollouts"
        raise UserError(reason, "updates_per_batch", "use a divisor")
    return int(rollouts // updates)


def dealt(
    sequences: int, settings: Mapping[str, Any], where: str = "micro_batch"
) -> tuple[int, int]:
    """Sequences that go through the model at a time in each process (``micro_batch``; all of a
    process's, if not given), and how many times that is done in a step.

    Raises ``UserError`` about ``where`` if the step cannot be dealt out like this.
    """
    processes = settings.get("processes", 1)
    micro = settings.get("micro_batch") or max(1, sequences // processes)
    if sequences % (micro * processes):
        raise UserError(
            f"{micro} does not divide the {sequences} sequences of a step"
            + (f" on {processes} processes" if processes > 1 else ""),
            where,
            "use a divisor",
        )
    return micro, sequences // (micro * processes)

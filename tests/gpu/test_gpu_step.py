"""A training step on given rollouts, on a GPU and on a CPU."""

from typing import Any

import given
import pytest
import torch
from tiny import OPD, Inputs

CFG = {
    **OPD,
    "steps": 1,
    "prompts_per_step": 16,
    "max_new_tokens": 24,
    "micro_batch": 8,
    "max_grad_norm": 1e9,
}


LOSSES: dict[str, dict[str, Any]] = {
    "rethinking_code": {"k": 4},
    "full": {},
    "sampled": {},
    "many_faces_default": {"k": 4},
}
# What may differ from a CPU in float32: loss and metrics, relative, and the gradient by its length.
ERRORS = {"float32": (1e-4, 1e-3), "bfloat16": (0.03, 0.1)}


@pytest.fixture(scope="module")
def steps(
    inputs: Inputs, tmp_path_factory: pytest.TempPathFactory, device: str
) -> dict[str, given.Step]:
    """A step of every loss on a CPU, and in both precisions on the device."""
    folder = tmp_path_factory.mktemp("steps")
    losses = {name: {"preset": name, **settings} for name, settings in LOSSES.items()}
    expected = {f"{name}-cpu": {**CFG, "loss": loss} for name, loss in losses.items()}
    runs = {
        f"{name}-{precision}": {**CFG, "loss": loss, "precision": precision}
        for name, loss in losses.items()
        for precision in ERRORS
    }
    on_cpu = given.train(expected, inputs, folder, "cpu")
    return on_cpu | given.train(runs, inputs, folder, device)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", ERRORS)
def test_a_step_on_given_rollouts(steps: dict[str, given.Step], loss: str, precision: str) -> None:
    """Loss, metrics and the gradient of all weights, against those of a CPU in float32."""
    (expected, slopes), (numbers, computed) = steps[f"{loss}-cpu"], steps[f"{loss}-{precision}"]
    error, of_gradient = ERRORS[precision]
    assert numbers["loss"] == pytest.approx(expected["loss"], rel=error, abs=1e-4)
    for name in ("response_tokens", "repetition_ratio", "truncation_ratio"):
        assert numbers[name] == expected[name], name
    for name in ("kl_nats", "entropy_student_nats", "top_mass_student"):
        assert numbers[name] == pytest.approx(expected[name], rel=error), name
    assert computed.keys() == slopes.keys()
    ours, cpu = (torch.cat([x[n].flatten() for n in sorted(slopes)]) for x in (computed, slopes))
    distance = (ours - cpu).norm() / cpu.norm()
    assert cpu.norm() > 0 and distance < of_gradient, f"{distance:.5f}"

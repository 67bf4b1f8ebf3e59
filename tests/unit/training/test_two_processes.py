"""Two processes over gloo train what one does, and stop and go on together."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import GRPO, OPD, SFT, Inputs, course, files, run, stage, started, wait_for_step

from opd.training import launch

# Completions that depend on the prompt alone: the same rollouts however they are shared out.
RECORDED = """
import random
from opd.training import distill


def completions(self, prompt_ids, images, multimodal_fields):
    made = []
    for ids in prompt_ids:
        dice = random.Random(str(list(ids)))
        made.append([dice.randrange(5, 40) for _ in range(dice.randint(1, 6))])
    return made


def run(*given):
    distill.Trainer._generate_single_turn = completions
    return distill.run(*given)
"""
ROOT = Path(__file__).parents[3]
CUT = {"max_token_len_per_gpu": 24, "data_parallel_size": 4}
STEPS = {**OPD, "steps": 5, "lr": 1e-2, "loss": {"preset": "full"}}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``recorded`` that every process can import, and this process too."""
    (tmp_path / "recorded.py").write_text(RECORDED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def trained(processes: int, cfg: dict[str, Any], inputs: Inputs, out: Path) -> torch.Tensor:
    """All weights in one row, after training on recorded rollouts."""
    scratch = out.with_name(f"{out.name}-scratch")
    for folder in (out, scratch):
        folder.mkdir()
    cfg = {**cfg, "processes": processes}
    if processes == 1:
        stage("distill")(cfg, inputs, out, scratch)
    else:
        numbers = launch.launch("recorded", cfg, inputs, out, scratch)
        assert numbers["last"]["loss"]
    return torch.cat([w.flatten() for _, w in sorted(load_file(out / "model.safetensors").items())])


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "micro_batch_mean"])
def test_two_processes_are_one(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Weights after 5 steps within 1e-4, metrics too."""
    import recorded  # type: ignore[import-not-found]

    from opd.training import distill

    monkeypatch.setattr(distill.Trainer, "_generate_single_turn", recorded.completions)
    cfg = {**STEPS, "aggregation": how, "micro_batch": 4, **CUT}
    one, two = (trained(n, cfg, inputs, tmp_path / str(n)) for n in (1, 2))
    start = load_file(inputs["student"] / "model.safetensors")
    before = torch.cat([w.flatten() for _, w in sorted(start.items())])
    assert (one - before).norm() > 0.05 * before.norm()
    assert (one - two).norm() <= 1e-4 * one.norm()
    for name in ("loss", "kl_nats", "overlap_ratio", "response_tokens", "repetition_ratio"):
        ours, theirs = (course(tmp_path / n, name) for n in "12")
        assert ours == pytest.approx(theirs, rel=1e-3), name


def test_two_processes_measure_the_nll_of_one(inputs: Inputs, tmp_path: Path) -> None:
    """Five traces, two at a time in each process: the second has nothing left in the end."""
    cfg = {**SFT, "held_out": 0.25, "nll_every": 1, "micro_batch": 2}
    for n in (1, 2):
        numbers = run("sft", {**cfg, "processes": n}, inputs, tmp_path / str(n))
        assert numbers["pairs"]["measured"] == 5
    for name in ("loss", "nll_nats", "perplexity"):
        ours, theirs = (course(tmp_path / n, name) for n in "12")
        assert ours == pytest.approx(theirs, rel=1e-4), name


def test_two_processes_stop_and_go_on_together(inputs: Inputs, tmp_path: Path) -> None:
    """Also between updates on one batch of rollouts, of which each process has its part."""
    name, stage_cfg = "grpo", {**GRPO, "steps": 5, "updates_per_batch": 4}
    execution = {"checkpoint_every": 5, "keep_steps": [1, 4]}
    cfg = {**stage_cfg, "processes": 2, "execution": execution}
    stopped = started(cfg, inputs, tmp_path / "stopped", name)
    wait_for_step(tmp_path / "stopped", 8)
    stopped.send_signal(signal.SIGTERM)
    told = time.time()
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 143, errors
    assert time.time() - told < 20
    again, whole = (started(cfg, inputs, tmp_path / at, name) for at in ("stopped", "whole"))
    for process in (again, whole):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert ("going on from step" in errors) == (process is again)
    ours, theirs = (files(tmp_path / n / "artifact" / "payload") for n in ("stopped", "whole"))
    assert ours == theirs
    for step in ("1", "4"):
        kept = [files(*tmp_path.glob(f"{n}/store/*.steps/{step}")) for n in ("stopped", "whole")]
        assert kept[0] == kept[1] and kept[0].keys() == ours.keys() - {"metrics.parquet"}


def test_an_error_in_the_processes_is_one_line(inputs: Inputs, tmp_path: Path) -> None:
    from opd.core.errors import UserError

    cfg = {**OPD, "lr": 1e30, "steps": 6, "processes": 2}
    with pytest.raises(UserError, match=r"lr: .* at step \d; lower the learning rate"):
        run("distill", cfg, inputs, tmp_path / "a")


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2"])
def test_accelerate_knows_every_key_of_the_configs(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(ROOT / "config" / "accelerate" / f"{name}.yaml"))
    options = {action.dest for action in launch_command_parser()._actions}
    assert set(getattr(config, "fsdp_config", None) or {}) <= options


def test_a_config_of_accelerate_for_one_process(inputs: Inputs, tmp_path: Path) -> None:
    path = ROOT / "config" / "accelerate" / "single.yaml"
    run("distill", {**OPD, "execution": {"accelerate": str(path)}}, inputs, tmp_path / "launched")
    run("distill", OPD, inputs, tmp_path / "plain")
    ours, theirs = (files(tmp_path / name) for name in ("launched", "plain"))
    assert ours == theirs

"""Two processes over gloo train what one does, and stop and go on together."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import forked
import psutil
import pytest
import recorded
import torch
from safetensors.torch import load_file
from serving import Served, serving
from tiny import (
    GRPO,
    OPD,
    SFT,
    Inputs,
    Stage,
    course,
    files,
    generated,
    run,
    stage,
    started,
    wait_for_step,
    with_lora,
)

from opd.cli import warm
from opd.training import checksums, distill, launch

ROOT = Path(__file__).parents[3]
CUT = {"max_token_len_per_gpu": 24, "data_parallel_size": 4}
STEPS = {**OPD, "steps": 5, "lr": 1e-2, "loss": {"preset": "full"}}


@pytest.fixture
def same_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has the completions of ``recorded``, as others do."""
    monkeypatch.setattr(distill.DistillationTrainer, "_generate_single_turn", recorded.completions)


def trained(
    processes: int, cfg: dict[str, Any], inputs: Inputs, out: Path, train: Stage = forked.train
) -> torch.Tensor:
    """All weights in one row, after training on recorded rollouts; ``train`` starts several."""
    scratch = out.with_name(f"{out.name}-scratch")
    for folder in (out, scratch):
        folder.mkdir()
    cfg = {**cfg, "processes": processes}
    if processes == 1:
        stage("distill")(cfg, inputs, out, scratch)
    else:
        assert train("recorded", cfg, inputs, out, scratch)["last"]["loss"]
    return torch.cat([w.flatten() for _, w in sorted(load_file(out / "model.safetensors").items())])


@pytest.mark.usefixtures("same_rollouts")
@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "micro_batch_mean"])
def test_two_processes_are_one(inputs: Inputs, tmp_path: Path, how: str) -> None:
    """Weights after 5 steps within 1e-4, metrics too."""
    cfg = {**STEPS, "aggregation": how, "micro_batch": 4, **CUT}
    one, two = (trained(n, cfg, inputs, tmp_path / str(n)) for n in (1, 2))
    start = load_file(inputs["student"] / "model.safetensors")
    before = torch.cat([w.flatten() for _, w in sorted(start.items())])
    assert (one - before).norm() > 0.05 * before.norm()
    assert (one - two).norm() <= 1e-4 * one.norm()
    for name in ("loss", "kl_nats", "overlap_ratio", "response_tokens", "repetition_ratio"):
        ours, theirs = (course(tmp_path / n, name) for n in "12")
        assert ours == pytest.approx(theirs, rel=1e-3), name


@pytest.mark.usefixtures("same_rollouts")
def test_each_process_asks_a_server_about_its_own_rollouts(inputs: Inputs, tmp_path: Path) -> None:
    teacher = Served(inputs["teacher"], "t")
    with serving(teacher) as url:
        place = {"servers": {"teacher": {"url": url, "names": ["t"]}}}
        cfg = {**STEPS, "loss": {"preset": "teacher", "k": 4}, "micro_batch": 4, "steps": 2}
        cfg |= {"server": True, "execution": place}
        weights, asked = [], []
        for processes in (1, 2):
            weights.append(trained(processes, cfg, inputs, tmp_path / str(processes)))
            tokens = [r["prompt"] for r in teacher.requests if isinstance(r["prompt"], list)]
            asked.append(sorted(tokens))
            teacher.requests.clear()
    assert asked[0] == asked[1] and len(asked[0]) == 2 * 8
    assert (weights[0] - weights[1]).norm() <= 1e-4 * weights[0].norm()


@pytest.mark.usefixtures("same_rollouts")
def test_a_sum_of_terms_in_two_processes_is_that_of_one(inputs: Inputs, tmp_path: Path) -> None:
    """Quantiles, scaled weights and advantages are those of all processes: with micro-batches of
    one, groups of two responses lie in one process, and those of eight in both."""
    sum_of = [
        {
            "teacher": "teacher:0",
            "loss": {"preset": "full"},
            "weight": 1.0,
            "tokens": {"entropy": {"above_quantile": 0.5}, "drift": 0.5},
        },
        {"reward": {"grader": "world"}, "weight": 1.0},
        {"reference": "student", "loss": {"preset": "k3"}, "weight": 0.1},
    ]
    cfg = {key: value for key, value in STEPS.items() if key != "loss"}
    cfg |= {"terms": sum_of, "steps": 2, "micro_batch": 1, "prompts_per_step": 1}
    cfg |= {"rollouts_per_prompt": 8}
    models = {"student": inputs["student"], "teacher:0": inputs["teacher"]}
    given = {**models, "prompts": inputs["prompts"]}
    one, two = (trained(n, cfg, given, tmp_path / str(n)) for n in (1, 2))
    start = load_file(inputs["student"] / "model.safetensors")
    before = torch.cat([w.flatten() for _, w in sorted(start.items())])
    assert (one - two).norm() <= 1e-3 * (one - before).norm()
    for name in ("loss", "term_0_token_share", "term_0_loss", "term_1_reward", "term_2_loss"):
        ours, theirs = (course(tmp_path / n, name) for n in "12")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6), name


@pytest.mark.usefixtures("same_rollouts")
def test_rollouts_of_a_generation_in_two_processes_are_those_of_one(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Each has as many of every source, and none of a step is in both."""
    made = generated(inputs["teacher"], inputs["prompts"], tmp_path / "made", logprobs=True)
    source = {"generations": "generations:0", "share": 0.5, "importance": {"clip": 2.0}}
    cfg = {**STEPS, "loss": {"preset": "sampled"}, "micro_batch": 2}
    cfg |= {"rollouts": [{"own": 0.5}, source]}
    given = {**inputs, "generations:0": made}
    one, two = (trained(n, cfg, given, tmp_path / str(n)) for n in (1, 2))
    assert (one - two).norm() <= 1e-4 * one.norm()
    names = ("loss", "kl_nats", "offline_kl_nats", "source_1_token_share", "source_1_importance")
    for name in names:
        ours, theirs = (course(tmp_path / n, name) for n in "12")
        assert ours == pytest.approx(theirs, rel=1e-3), name


@pytest.mark.usefixtures("same_rollouts")
@pytest.mark.parametrize(
    ("precision", "tolerance", "train"),
    [("float32", 1e-5, launch.launch), ("bfloat16", 0.05, forked.train)],
    ids=["float32", "bfloat16"],
)
def test_sharded_processes_are_those_with_whole_copies(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    tolerance: float,
    train: Stage,
) -> None:
    """What five steps change, in FSDP2 over gloo and with a whole copy in each process. In bfloat16
    the two compute otherwise (autocast rounds what goes into products, FSDP2 all weights), but in
    both gradients are added up in float32: few of their numbers are ones that bfloat16 holds."""
    folders = (Path(recorded.__file__).parent, Path(launch.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)), prepend=os.pathsep)
    monkeypatch.setattr(launch, "WORKER", "opd.rehearsal.worker")
    cfg = {**STEPS, "lr": 1e-3, "micro_batch": 2, "precision": precision}
    cfg |= {"gradient_checkpointing": True, "prompts_per_step": 8}
    sharded = {"execution": {"accelerate": str(ROOT / "config" / "accelerate" / "fsdp2.yaml")}}
    start = load_file(inputs["student"] / "model.safetensors")
    before = torch.cat([w.flatten() for _, w in sorted(start.items())])
    whole = trained(2, cfg, inputs, tmp_path / "whole") - before
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    parts = trained(2, cfg | sharded, inputs, tmp_path / "parts", train) - before
    assert float((tmp_path / "seen").read_text()) < 0.1
    assert whole.norm() > 0.01 * before.norm()
    difference = ((whole - parts).norm() / whole.norm()).item()
    print(f"{precision}: {difference:.2e} of what changes")
    assert difference <= tolerance
    for name in ("loss", "kl_nats"):
        ours, theirs = (course(tmp_path / n, name) for n in ("whole", "parts"))
        assert ours == pytest.approx(theirs, rel=max(tolerance, 1e-4)), name


@pytest.mark.usefixtures("same_rollouts")
def test_an_adapter_in_shards_is_one_of_whole_copies(inputs: Inputs, tmp_path: Path) -> None:
    """Beside a teacher that is read, the student's own start as a reference: five steps in FSDP2
    over gloo, of which the last two are made from a checkpoint, in two processes and in one."""
    sum_of = [
        {"teacher": "teacher:0", "loss": {"preset": "full"}, "weight": 1.0},
        {"reference": "student", "loss": {"preset": "k3"}, "weight": 0.5},
    ]
    cfg = {key: value for key, value in STEPS.items() if key != "loss"} | {"terms": sum_of}
    cfg = with_lora({**cfg, "micro_batch": 2, "prompts_per_step": 8})
    given = {**inputs, "teacher:0": inputs["teacher"]}
    start = load_file(inputs["student"] / "model.safetensors")
    before = torch.cat([w.flatten() for _, w in sorted(start.items())])
    one, two = (trained(n, cfg, given, tmp_path / str(n)) - before for n in (1, 2))
    execution = {"accelerate": str(ROOT / "config" / "accelerate" / "fsdp2.yaml")}
    sharded = {**cfg, "execution": {**execution, "checkpoint_every": 3}, "processes": 2}
    parts = trained(2, sharded, given, tmp_path / "parts") - before
    assert one.norm() > 0.005 * before.norm()
    assert (two - one).norm() <= 1e-3 * one.norm() and (parts - one).norm() <= 1e-3 * one.norm()
    checkpoints = tmp_path / "parts-scratch"
    state = torch.load(checkpoints / "checkpoint-3" / "pytorch_model_fsdp.bin", weights_only=True)
    others = {name for name in state if ".lora_" not in name}
    # torch leaves out what is frozen, but for the second name of weights that are tied.
    assert len(state) - len(others) == 2 * 7 and others <= {"base_model.model.lm_head.weight"}
    for path in checkpoints.glob("checkpoint-5*"):
        checksums.drop(path)
    again = tmp_path / "again"
    again.mkdir()
    forked.train("recorded", sharded, given, again, checkpoints)
    assert files(again) == files(tmp_path / "parts")


def test_two_processes_measure_the_nll_of_one(inputs: Inputs, tmp_path: Path) -> None:
    """Five traces, two at a time in each process: the second has nothing left in the end."""
    cfg = {**SFT, "held_out": 0.25, "nll_every": 1, "micro_batch": 2}
    alone = run("sft", cfg, inputs, tmp_path / "1")
    out, scratch = tmp_path / "2", tmp_path / "2-scratch"
    for folder in (out, scratch):
        folder.mkdir()
    both = forked.train("opd.training.sft", {**cfg, "processes": 2}, inputs, out, scratch)
    assert alone["pairs"]["measured"] == both["pairs"]["measured"] == 5
    for name in ("loss", "nll_nats", "perplexity"):
        ours, theirs = (course(tmp_path / n, name) for n in "12")
        assert ours == pytest.approx(theirs, rel=1e-4), name


def test_two_processes_stop_and_go_on_together(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm stops a job, whose every process is signalled, more than once and in a slow step;
    also between updates on one batch of rollouts, of which each process has its part."""
    name, stage_cfg = "grpo", {**GRPO, "steps": 5, "updates_per_batch": 4}
    execution = {"checkpoint_every": 5, "keep_steps": [1, 4]}
    cfg = {**stage_cfg, "processes": 2, "execution": execution}
    monkeypatch.delenv(warm.FOLDER, raising=False)  # as on a cluster
    stopped = started(cfg, inputs, tmp_path / "stopped", name)
    wait_for_step(tmp_path / "stopped", 8)
    processes = psutil.Process(stopped.pid).children(recursive=True)
    processes[-1].suspend()  # the step does not end
    try:
        for _ in range(3):
            for process in (stopped, *processes):
                with suppress(psutil.NoSuchProcess):  # torchrun, in the end
                    process.send_signal(signal.SIGTERM)
            time.sleep(1)
        assert stopped.poll() is None
    finally:
        processes[-1].resume()
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 143, errors
    assert "told to stop: as soon as the step under way has ended" in errors
    assert "told to stop: the run goes on from step" in errors
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

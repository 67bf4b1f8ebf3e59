"""Training that is killed, told to stop, or fails: what is left, and how it goes on."""

import errno
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import (
    COMMON,
    GRPO,
    OPD,
    SFT,
    Inputs,
    Killed,
    course,
    files,
    kill_at,
    run,
    started,
    wait_for_step,
    with_lora,
)

from opd.core.errors import UserError
from opd.training import checksums, resume

Whole = Callable[[str], tuple[dict[str, Any], Path]]
STEPS = 7
EVERY = {"steps": STEPS, "execution": {"checkpoint_every": 2}}
EMA = {**OPD, "teacher_update": "ema", "ema_decay": 0.5}
CASES = {
    "sft": ("sft", {**SFT, **EVERY, "steps": 12}),
    "packing": ("sft", {**SFT, **EVERY, "packing": True, "batch_size": 2}),
    "held-out": ("sft", {**SFT, **EVERY, "held_out": 0.3, "nll_every": 3}),
    "grpo": ("grpo", {**GRPO, **EVERY}),
    # Checkpoints fall between updates on one batch of rollouts.
    "updates": ("grpo", {**GRPO, **EVERY, "steps": 5, "updates_per_batch": 4}),
    "updates-micro": (
        "grpo",
        {**GRPO, **EVERY, "steps": 5, "group_size": 4, "updates_per_batch": 4, "micro_batch": 2},
    ),
    "distill": ("distill", {**OPD, **EVERY}),
    "micro-batches": ("distill", {**OPD, **EVERY, "micro_batch": 2}),
    "shuffled": ("distill", {**OPD, **EVERY, "shuffle": True}),
    "shuffled-grpo": ("grpo", {**GRPO, **EVERY, "shuffle": True}),
    "ema": ("distill", {**EMA, **EVERY}),
    "adapter": ("distill", with_lora({**OPD, **EVERY}, dropout=0.2)),
    "adapter-updates": ("grpo", with_lora({**GRPO, **EVERY, "steps": 5, "updates_per_batch": 4})),
    "live": (
        "distill",
        {**OPD, **EVERY, "teacher_update": "live", "information": [{"message": "say {question}"}]},
    ),
}


def keeping(cfg: dict[str, Any], *steps: int) -> dict[str, Any]:
    return {**cfg, "execution": {**cfg["execution"], "keep_steps": list(steps)}}


def kept(out: Path) -> dict[int, dict[str, bytes]]:
    """The files of each step that a run into ``out`` has kept in its scratch folder."""
    folder = out.with_name(f"{out.name}-scratch") / "kept"
    return {int(p.name): files(p) for p in folder.glob("*") if p.is_dir()}


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a run of a case ends with that nobody disturbs: its numbers and its folder."""

    @functools.cache
    def ran(case: str) -> tuple[dict[str, Any], Path]:
        name, cfg = CASES[case]
        out = tmp_path_factory.mktemp("whole") / "out"
        return run(name, cfg, own_teacher(inputs, cfg), out), out

    return ran


def own_teacher(inputs: Inputs, cfg: dict[str, Any]) -> Inputs:
    return {**inputs, "teacher": inputs["student"]} if cfg.get("teacher_update") else inputs


@pytest.mark.parametrize("case", CASES)
def test_killed_before_any_step_a_run_ends_in_the_same_bytes(
    inputs: Inputs, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Weights, metrics and numbers; ten prompts of four a step, so steps cross epochs."""
    name, cfg = CASES[case]
    inputs = own_teacher(inputs, cfg)
    numbers, undisturbed = whole(case)
    out = tmp_path / "killed"
    for step in sorted(random.Random(case).sample(range(1, cfg["steps"]), 2)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(step, patch)
            run(name, cfg, inputs, out)
        assert not list(out.iterdir())
    assert run(name, cfg, inputs, out) == numbers
    assert files(out) == files(undisturbed)


@pytest.mark.parametrize("case", ["updates", "updates-micro", "held-out"])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_told_to_stop_at_any_step_a_run_ends_in_the_same_bytes(
    inputs: Inputs,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    step: int,
) -> None:
    """Also between updates on one batch of rollouts, and before the NLL of a step is measured."""
    name, cfg = CASES[case]
    numbers, undisturbed = whole(case)
    begin = resume.Steps.on_step_begin

    def told(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise SystemExit(resume.STOPPED)
        begin(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(resume.Steps, "on_step_begin", told)
        run(name, cfg, inputs, tmp_path / "a")
    assert checksums.damaged(tmp_path / f"a-scratch/checkpoint-{step}") is None
    assert run(name, cfg, inputs, tmp_path / "a") == numbers
    assert files(tmp_path / "a") == files(undisturbed)


@pytest.mark.parametrize("case", ["sft", "held-out", "updates", "distill", "ema", "adapter"])
def test_kept_steps_change_nothing_and_are_what_a_shorter_run_ends_with(
    inputs: Inputs, tmp_path: Path, case: str
) -> None:
    name, cfg = CASES[case]
    inputs = own_teacher(inputs, cfg)
    # Of settings that do not depend on the length of the run.
    cfg = {**cfg, "schedule": "constant", "warmup": 0.0, "steps": 4}
    numbers = run(name, cfg, inputs, tmp_path / "plain")
    assert run(name, keeping(cfg, 1, 3), inputs, tmp_path / "keeping") == numbers
    assert files(tmp_path / "keeping") == files(tmp_path / "plain")
    found = kept(tmp_path / "keeping")
    assert found.keys() == {1, 3} and kept(tmp_path / "plain") == {}
    for step, ours in found.items():
        run(name, {**cfg, "steps": step}, inputs, tmp_path / str(step))
        theirs = files(tmp_path / str(step))
        del theirs["metrics.parquet"]
        assert ours == theirs


@pytest.mark.parametrize("case", ["sft", "updates", "distill"])
def test_killed_between_kept_steps_a_run_ends_in_the_same_bytes(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Before and after a checkpoint (every 2 updates), at a step just kept, and with another step
    asked for on the way, which the last checkpoint is past."""
    name, cfg = CASES[case]
    numbers = run(name, keeping(cfg, 1, 2, 3, 4), inputs, tmp_path / "whole")
    wanted, out = kept(tmp_path / "whole"), tmp_path / "killed"
    updates = cfg.get("updates_per_batch", 1)

    def killed_at(step: int, *steps: int) -> set[int]:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(step, patch)
            run(name, keeping(cfg, *steps), inputs, out)
        return set(kept(out))

    assert killed_at(1 * updates, 1, 4) == {1}
    assert killed_at(3 * updates, 1, 4) == {1}
    assert killed_at(4 * updates, 1, 2, 4) == {1, 2, 4}
    assert not list(out.iterdir())
    assert run(name, keeping(cfg, 1, 2, 3, 4), inputs, out) == numbers
    assert files(out) == files(tmp_path / "whole")
    assert kept(out) == wanted


def test_what_was_kept_after_the_last_checkpoint_is_made_again(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The run may take another course from there, where sums run in another order."""
    cfg = keeping(CASES["distill"][1], 4, 5)
    run("distill", cfg, inputs, tmp_path / "whole")
    out = tmp_path / "a"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(5, patch)
        run("distill", cfg, inputs, out)
    before = {n: (tmp_path / f"a-scratch/kept/{n}").stat().st_mtime_ns for n in (4, 5)}
    run("distill", cfg, inputs, out)
    assert "going on from step 4" in capsys.readouterr().err
    after = {n: (tmp_path / f"a-scratch/kept/{n}").stat().st_mtime_ns for n in (4, 5)}
    assert after[4] == before[4] and after[5] != before[5]
    assert kept(out) == kept(tmp_path / "whole")


def test_a_step_beyond_the_run_and_one_that_it_did_not_reach(
    inputs: Inputs, tmp_path: Path
) -> None:
    epochs = {**SFT, "epochs": 2, "batch_size": 8, "execution": {}}
    del epochs["steps"]
    with pytest.raises(UserError, match="keep_steps: step 7 is beyond the run's 6 steps"):
        run("sft", keeping(epochs, 1, 7), inputs, tmp_path / "a")
    run("sft", keeping(epochs, 6), inputs, tmp_path / "b")
    assert kept(tmp_path / "b")[6].items() <= files(tmp_path / "b").items()
    guard = {"reference_steps": 2, "patience": 2, "length_ratio": 1e-9, "action": "stop"}
    run("distill", keeping({**OPD, **EVERY, "guard": guard}, 1, 6), inputs, tmp_path / "c")
    assert kept(tmp_path / "c").keys() == {1}


def test_a_checkpoint_is_used_and_one_that_is_not_whole_is_not(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = CASES["distill"][1]
    numbers = run("distill", cfg, inputs, tmp_path / "whole")
    out, scratch = tmp_path / "a", tmp_path / "a-scratch"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(5, patch)
        run("distill", cfg, inputs, out)
    (scratch / "checkpoint-4.0.json").unlink()
    (scratch / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    capsys.readouterr()
    assert run("distill", cfg, inputs, out) == numbers
    assert "going on from step 2" in capsys.readouterr().err
    assert files(out) == files(tmp_path / "whole")
    # The record of a live view holds every step once.
    lines = [json.loads(line) for line in (scratch / resume.JOURNAL).read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]


def flip(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_bit_in_any_file_of_a_checkpoint_is_found(inputs: Inputs, tmp_path: Path) -> None:
    """In its list too; so is a file that was cut, added or removed, and one that is now a link."""
    run("distill", {**EMA, **EVERY}, own_teacher(inputs, EMA), tmp_path / "a")
    checkpoint = tmp_path / "a-scratch/checkpoint-6"
    assert checksums.damaged(checkpoint) is None
    # A second member of a group is to go on from it, whatever safetensors thinks of modes.
    assert len({path.stat().st_mode for path in checkpoint.iterdir()}) == 1
    paths = [*checkpoint.iterdir(), *checksums.lists(checkpoint)]
    assert len(paths) >= 10 and checkpoint / "teacher.pt" in paths
    for path in paths:
        data = path.read_bytes()
        for change in (flip, lambda path: os.truncate(path, 5), Path.unlink):
            change(path)
            assert checksums.damaged(checkpoint) is not None, path
            path.write_bytes(data)
    elsewhere = tmp_path / "elsewhere"
    (checkpoint / "teacher.pt").rename(elsewhere)
    (checkpoint / "teacher.pt").symlink_to(elsewhere)
    assert checksums.damaged(checkpoint) == "teacher.pt"
    elsewhere.replace(checkpoint / "teacher.pt")
    assert checksums.damaged(checkpoint) is None
    (checkpoint / "added").touch()
    assert checksums.damaged(checkpoint) == "added"


@pytest.mark.parametrize(
    ("damage", "steps", "start"),
    [
        (lambda scratch: flip(scratch / "checkpoint-4/model.safetensors"), (), 2),
        (lambda scratch: (scratch / "checkpoint-4/opd-record.json").write_bytes(b""), (), 2),
        # The step is kept again, so the run has to go back to before it.
        (lambda scratch: flip(scratch / "kept/3/model.safetensors"), (3,), 2),
        (lambda scratch: (scratch / resume.FAILED).write_bytes(b"["), (), 4),
    ],
)
def test_what_was_damaged_between_a_kill_and_its_resume_is_left_out(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    steps: tuple[int, ...],
    start: int,
) -> None:
    cfg = keeping(CASES["distill"][1], *steps)
    run("distill", cfg, inputs, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(5, patch)
        run("distill", cfg, inputs, tmp_path / "a")
    damage(tmp_path / "a-scratch")
    capsys.readouterr()
    run("distill", cfg, inputs, tmp_path / "a")
    lines = capsys.readouterr().err.splitlines()
    assert f"going on from step {start}" in lines
    assert sum("does not have the checksum that was written" in line for line in lines) == (
        start < 4
    )
    assert files(tmp_path / "a") == files(tmp_path / "whole")
    assert kept(tmp_path / "a") == kept(tmp_path / "whole")


def test_each_process_lists_what_it_wrote(tmp_path: Path) -> None:
    """By the names that torch, accelerate, DeepSpeed and grpo give; a checkpoint is sound once all
    have written their lists."""
    names = {
        0: ["model-00002-of-00003.safetensors", "rng_state_0.pth", "a/__0_0.distcp", "config.json"],
        1: ["rng_state_1.pth", "optimizer_0/__1_0.distcp", "rollouts-1.pt"],
        2: ["rng_state_2.pth", "global_step5/zero_pp_rank_2_mp_rank_00_optim_states.pt"],
    }
    checkpoint = tmp_path / "checkpoint-5"
    for name in (name for own in names.values() for name in own):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text(name)
    assert checksums.damaged(checkpoint) == ""
    for rank, own in names.items():
        checksums.write(checkpoint, rank, 3)
        listed = json.loads((tmp_path / f"checkpoint-5.{rank}.json").read_text())
        assert sorted(listed) == sorted(own)
        assert (checksums.damaged(checkpoint) is None) == (rank == 2)


def test_a_checkpoint_has_its_list_before_the_next_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one removes all but the last. Steps that write none do not wait."""
    write, go_on = checksums.write, threading.Event()
    monkeypatch.setattr(checksums, "write", lambda *given: go_on.wait(60) and write(*given))
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("x")
    sealing = checksums.Sealing({}, 0, 1)
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=2)
    sealing.on_save(args, state, SimpleNamespace())
    sealing.on_step_end(args, state, SimpleNamespace(should_save=False))
    assert checksums.damaged(checkpoint) == ""
    threading.Timer(0.2, go_on.set).start()
    sealing.on_step_end(args, state, SimpleNamespace(should_save=True))
    assert checksums.damaged(checkpoint) is None
    sealing.thread.shutdown()


def test_parts_that_two_processes_write_side_by_side(tmp_path: Path) -> None:
    """As DeepSpeed lays a checkpoint out: parts by rank in a folder, and what the first process
    writes beside it. One has its list while the other is in the middle of a part."""
    part = "global_step4/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    own = ["global_step4/mp_rank_00_model_states.pt", "latest", "rng_state_0.pth", "config.json"]
    checkpoint = tmp_path / "checkpoint-4"
    (checkpoint / "global_step4").mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    half, go_on = fork.Event(), fork.Event()

    def first() -> None:
        half.wait(60)
        for name in (part.format(0), *own):
            (checkpoint / name).write_bytes(name.encode() * 10_000)
        checksums.write(checkpoint, 0, 2)

    def second() -> None:
        (checkpoint / "rng_state_1.pth").write_bytes(b"1")
        with (checkpoint / part.format(1)).open("wb", buffering=0) as file:
            file.write(b"1" * 100_000)
            half.set()
            go_on.wait(60)
            file.write(b"2" * 100_000)
        checksums.write(checkpoint, 1, 2)

    processes = [fork.Process(target=save) for save in (first, second)]
    for process in processes:
        process.start()
    processes[0].join()
    assert checksums.damaged(checkpoint) == part.format(1)
    go_on.set()
    processes[1].join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(checksums.lists(checkpoint)) == 2 and checksums.damaged(checkpoint) is None
    for name in (part.format(0), part.format(1), *own):
        flip(checkpoint / name)
        assert checksums.damaged(checkpoint) == name
        flip(checkpoint / name)
    (tmp_path / "checkpoint-4.1.json").unlink()
    assert checksums.damaged(checkpoint) == part.format(1)


@pytest.mark.parametrize("case", ["distill", "sft", "held-out"])
def test_killed_after_the_last_step(
    inputs: Inputs, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """With a checkpoint of it: no step is taken any more, but what is measured last still is."""
    from opd.training import common

    name, cfg = CASES[case]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(common.tables, "write", lambda *_: (_ for _ in ()).throw(Killed()))
        run(name, cfg, inputs, tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    monkeypatch.setattr(resume.Steps, "on_step_begin", None)  # no further step is taken
    run(name, cfg, inputs, tmp_path / "a")
    assert files(tmp_path / "a") == files(whole(case)[1])


def payload(folder: Path) -> dict[str, bytes]:
    return files(folder / "artifact" / "payload")


def test_sigkill_and_sigterm(inputs: Inputs, tmp_path: Path) -> None:
    """Killed at a random step, then told to stop, then left alone: the bytes of a run undisturbed,
    which keeps no steps. An edited run beside it starts afresh.
    """
    plain = {**OPD, "steps": 60, "execution": {"checkpoint_every": 5}}
    whole = started(plain, inputs, tmp_path / "whole")
    cfg = keeping(plain, 3, 28, 33)
    run_dir = tmp_path / "killed"
    first = started(cfg, inputs, run_dir)
    wait_for_step(run_dir, random.randint(6, 25))
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL and not (run_dir / "artifact/digest.json").exists()
    second = started(cfg, inputs, run_dir)
    wait_for_step(run_dir, 30)
    second.send_signal(signal.SIGTERM)
    told = time.time()
    _, errors = second.communicate()
    assert second.returncode == 143, errors
    assert time.time() - told < 20
    (scratch,) = run_dir.glob("store/.scratch/*")
    left = [p for p in scratch.glob("checkpoint-*") if p.is_dir() and not checksums.damaged(p)]
    assert max(int(p.name.rpartition("-")[2]) for p in left) >= 29
    assert "going on from step" in errors and "told to stop" in errors
    third, edited = (
        started(cfg, inputs, run_dir),
        started({**cfg, "lr": 2e-3}, inputs, run_dir / "b"),
    )
    for process in (third, edited, whole):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert ("going on from step" in errors) == (process is third)
    assert payload(run_dir) == payload(tmp_path / "whole")
    assert not list(run_dir.glob("store/.scratch/*"))
    assert payload(run_dir / "b") != payload(run_dir)
    again = started(cfg, inputs, tmp_path / "whole")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    ours, theirs = (
        {p.name: files(p) for p in folder.glob("store/*.steps/*") if p.is_dir()}
        for folder in (run_dir, tmp_path / "whole")
    )
    assert ours.keys() == {"3", "28", "33"} and ours == theirs


def test_a_checkpoint_is_written_when_the_last_one_is_old(
    inputs: Inputs, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a minute each; the last step is one of every seven."""
    begin, saved = resume.Steps.on_step_begin, checksums.Sealing.on_save
    clock = SimpleNamespace(minutes=0, monotonic=lambda: 60.0 * clock.minutes)
    steps = []

    def minute(self: Any, *given: Any, **named: Any) -> None:
        clock.minutes += 1
        begin(self, *given, **named)

    def save(self: Any, args: Any, state: Any, *given: Any, **named: Any) -> None:
        steps.append(state.global_step)
        saved(self, args, state, *given, **named)

    monkeypatch.setattr(resume, "time", clock)
    monkeypatch.setattr(resume.Steps, "on_step_begin", minute)
    monkeypatch.setattr(checksums.Sealing, "on_save", save)
    name, cfg = CASES["distill"]
    run(name, {**cfg, "execution": {"checkpoint_minutes": 2.5}}, inputs, tmp_path / "a")
    assert steps == [3, 6, 7]
    assert files(tmp_path / "a") == files(whole("distill")[1])


def test_a_loss_that_is_no_number_fails_again_at_once(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = {**OPD, **EVERY, "lr": 1e30}
    with pytest.raises(UserError, match=r"lr: .* lower the learning rate") as first:
        run("distill", cfg, inputs, tmp_path / "a")
    monkeypatch.setattr(resume.Steps, "on_step_begin", None)
    with pytest.raises(
        UserError, match=r"to try the same once more, remove .*failed\.json"
    ) as again:
        run("distill", cfg, inputs, tmp_path / "a")
    assert again.value.what == first.value.what
    monkeypatch.undo()
    (tmp_path / "a-scratch" / resume.FAILED).unlink()
    with pytest.raises(UserError, match=r"; lower the learning rate \(it is 1e\+30\)$"):
        run("distill", cfg, inputs, tmp_path / "a")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint(
    inputs: Inputs,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    cfg = CASES["distill"][1]
    save = torch.save

    def full(what: Any, where: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(where):
            raise error
        save(what, where, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(
            UserError, match="the disk is full, the last checkpoint is whole; free space"
        ):
            run("distill", cfg, inputs, tmp_path / "a")
    assert checksums.damaged(tmp_path / "a-scratch" / "checkpoint-2") is None
    run("distill", cfg, inputs, tmp_path / "a")
    assert files(tmp_path / "a") == files(whole("distill")[1])


def test_a_model_that_does_not_fit(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd.losses import terms

    def too_much(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(terms, "fused_token_loss", too_much)
    with pytest.raises(
        UserError, match=r"micro_batch: the model does not fit .*2.00 GiB.*; lower it"
    ):
        run("distill", {**OPD, **COMMON}, inputs, tmp_path / "a")
    assert not (tmp_path / "a-scratch" / resume.FAILED).exists()  # a larger device may do


def test_other_errors_keep_their_traceback(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd.losses import terms

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(terms, "fused_token_loss", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("distill", OPD, inputs, tmp_path / "a")


def test_the_handler_is_put_back(inputs: Inputs, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run("distill", OPD, inputs, tmp_path / "a")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_the_guard_has_stopped_stays_stopped(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last checkpoint, which is of the step that the guard stopped at."""
    from opd.training import common

    guard = {"reference_steps": 2, "patience": 2, "length_ratio": 1e-9, "action": "stop"}
    cfg = {**OPD, **EVERY, "guard": guard}
    numbers = run("distill", cfg, inputs, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(common.tables, "write", lambda *_: (_ for _ in ()).throw(Killed()))
        run("distill", cfg, inputs, tmp_path / "a")
    assert run("distill", cfg, inputs, tmp_path / "a") == numbers
    assert files(tmp_path / "a") == files(tmp_path / "whole")


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_run_has_the_same_metrics(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-3: sums run in another order there."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    cfg = {**CASES["distill"][1], "precision": "bfloat16"}
    run("distill", cfg, inputs, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(5, patch)
        run("distill", cfg, inputs, tmp_path / "a")
    run("distill", cfg, inputs, tmp_path / "a")
    for name in ("loss", "kl_nats", "entropy_student_nats", "overlap_ratio"):
        ours, theirs = (course(tmp_path / folder, name) for folder in ("a", "whole"))
        assert ours == pytest.approx(theirs, rel=1e-3), name


@pytest.mark.parametrize(
    ("engine", "groups"),
    [
        ({}, [0, 1, 2, 3]),
        ({"use_vllm": True, "vllm_mode": "server", "vllm_tensor_parallel_size": 2}, [0, 1, 2, 3]),
        ({"use_vllm": True, "vllm_mode": "colocate", "vllm_tensor_parallel_size": 2}, [0, 0, 1, 1]),
    ],
)
def test_processes_that_share_an_engine_sample_the_same(
    engine: dict[str, Any], groups: list[int]
) -> None:
    """Each has a part of every layer: with other tokens they would compute nothing."""
    drawn = []
    for process in range(4):
        accelerator = SimpleNamespace(process_index=process, num_processes=1, device="cpu")
        trainer: Any = SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(**engine))
        steps = resume.Steps(5, trainer, 30)
        steps.on_step_begin(None, SimpleNamespace(global_step=3), None)
        drawn.append(torch.rand(4).tolist())
    equal = [[a == b for b in drawn] for a in drawn]
    assert equal == [[a == b for b in groups] for a in groups]

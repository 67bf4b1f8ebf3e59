"""Training that can be killed: checkpoints, and what becomes of signals and errors.

A run's scratch folder belongs to one identity (settings, inputs, code), so that no run ever goes on
from another one's state. A checkpoint counts where its files are those that were written
(``opd.training.checksums``). All randomness of a step is a function of (seed, step, process), but
for what vLLM draws: a run that goes on from step n does what it would have done.
"""

import errno
import hashlib
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, set_seed

from opd.core.errors import UserError
from opd.core.files import replacing
from opd.training import checksums
from opd.training.record import Record

FAILED = "failed.json"
JOURNAL = "metrics.jsonl"
STOPPED = 143  # what a shell reports of a process that SIGTERM ended


class Steps(TrainerCallback):
    """Seeds every step, has a checkpoint written at the end of a step when the last one is more
    than ``minutes`` old, and ends the run on SIGTERM where nothing is half done.

    The weights are those of the last complete step except between ``on_pre_optimizer_step`` and the
    next ``on_step_begin``; elsewhere the handler may leave at once. Several processes leave
    together, at a step's beginning.
    """

    def __init__(self, seed: int, trainer: Trainer, minutes: float) -> None:
        self.seed, self.trainer, self.minutes = seed, trainer, minutes
        self.saved_at = time.monotonic()
        self.stopping = self.updating = False

    def handle(self, *_: Any) -> None:
        if self.stopping:  # a second signal must not end the writing of the checkpoint
            return
        self.stopping = True
        if not self.updating and self.trainer.accelerator.num_processes == 1:
            raise SystemExit(STOPPED)

    def _in_any_process(self, holds: bool) -> bool:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return holds
        flag = torch.tensor(float(holds), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._in_any_process(self.stopping):
            raise SystemExit(STOPPED)
        self.updating = False
        process = self.trainer.accelerator.process_index
        text = f"{self.seed}/{int(state.global_step)}/{process}"
        set_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updating = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = time.monotonic() - self.saved_at >= 60 * self.minutes
        control.should_save |= self._in_any_process(due)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved_at = time.monotonic()


class Keep(TrainerCallback):
    """Keeps the weights of the steps in ``folders``: ``save(folder)`` is called after the step in
    every process, of which the first one writes."""

    def __init__(self, folders: Mapping[int, Path], save: Callable[[Path], None]) -> None:
        self.folders, self.save = folders, save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = self.folders.get(int(state.global_step))
        if folder is None:
            return
        if state.is_world_process_zero:
            with replacing(folder) as partial:
                self.save(partial)
        else:
            self.save(folder)


def resumable(
    trainer: Trainer,
    record: Record,
    scratch: Path,
    folders: Mapping[int, Path],
    minutes: float = math.inf,
) -> None:
    """``trainer.train()`` from the last sound checkpoint in ``scratch`` before which all steps that
    are to be kept in ``folders`` (by step, see ``Keep``) have been. What is damaged is left out,
    with a line. A checkpoint is written at the trainer's ``save_steps``, and at the end of a step
    when the last one is more than ``minutes`` old.

    SIGTERM leaves a checkpoint of the last step and exits with 143. A loss that is no number leaves
    a marker: the same run fails at once with the same message until the marker is removed. Memory
    and disks that do not suffice are errors that leave the last checkpoint as it is.
    """
    failed = scratch / FAILED
    with suppress(FileNotFoundError, ValueError):  # a damaged one counts as none
        what, where, remedy = json.loads(failed.read_text())
        raise UserError(what, where, f"{remedy}; to try the same once more, remove {failed}")
    steps = Steps(trainer.args.seed, trainer, minutes)
    accelerator = trainer.accelerator
    sealing = checksums.Sealing(folders, accelerator.process_index, accelerator.num_processes)
    trainer.add_callback(steps)
    trainer.add_callback(sealing)
    main = accelerator.is_main_process
    choice = [_last(scratch, folders) if main else None]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(choice)
    last = choice[0]
    start = sealing.saved = 0 if last is None else step_of(last)
    record.journal = scratch / JOURNAL
    if last is not None:
        record.restore(last)
        print(f"going on from step {start}", file=sys.stderr)
    if main:
        # Later steps are made again.
        for step, folder in folders.items():
            if step > start:
                checksums.drop(folder)
        record.rewrite_journal(trainer.args.max_steps)
    handler = signal.signal(signal.SIGTERM, steps.handle)
    try:
        if last is None:
            trainer.train()
        elif start >= trainer.args.max_steps or record.seen.get("stopped"):
            trainer._load_from_checkpoint(str(last))
        else:
            trainer.train(resume_from_checkpoint=str(last))
    except UserError as bad:
        if main:
            failed.write_text(json.dumps([bad.what, bad.where, bad.remedy]))
        raise
    except SystemExit:
        step = int(trainer.state.global_step)
        sealing.wait()
        if step and step != sealing.saved:
            trainer._save_checkpoint(trainer.model, None)
            trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        sealing.wait()
        print(f"told to stop: the run goes on from step {step}", file=sys.stderr)
        raise
    except (OSError, RuntimeError, MemoryError) as error:
        shortage = _shortage(error, scratch)
        if shortage is None:
            raise
        raise shortage from error
    finally:
        signal.signal(signal.SIGTERM, handler)
        sealing.thread.shutdown()
        if record.bar is not None:
            record.bar.close()


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(checkpoint.name.rpartition("-")[2])


def _last(scratch: Path, folders: Mapping[int, Path]) -> Path | None:
    """The last sound checkpoint before the first step that is yet to be kept. Later ones, and what
    is half-written or damaged, are removed."""
    missing = min((step for step, path in folders.items() if not _sound(path)), default=math.inf)
    checkpoints = [path for path in scratch.glob("checkpoint-*") if path.is_dir()]
    for checkpoint in sorted(checkpoints, key=step_of, reverse=True):
        if step_of(checkpoint) >= missing:
            checksums.drop(checkpoint)
        elif _sound(checkpoint):
            return checkpoint
    return None


def _sound(folder: Path) -> bool:
    """Whether the files of a folder are those that a run has written to it; else it is removed,
    with a line where it was finished and damaged since."""
    damaged = checksums.damaged(folder)
    if damaged is None:
        return True
    if damaged and folder.is_dir():
        reason = f"{folder / damaged} does not have the checksum that was written"
        print(f"warning: {reason}: {folder.name} is left out", file=sys.stderr)
    checksums.drop(folder)
    return False


def _shortage(error: BaseException, scratch: Path) -> UserError | None:
    """What to say of an error that a full disk or memory has caused; None for any other."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and torch.save report a full disk as an error of their own.
    with suppress(OSError):
        full = full or shutil.disk_usage(scratch).free < 2**20
    if full or "No space left" in text or "PytorchStreamWriter failed" in text:
        return UserError(
            "the disk is full, the last checkpoint is whole",
            str(scratch),
            "free space, start again",
        )
    memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if memory or "can't allocate memory" in text:
        return UserError(
            f"the model does not fit into memory ({text.splitlines()[0] if text else 'out of it'})",
            "micro_batch",
            "lower it, use gradient_checkpointing or more devices",
        )
    return None

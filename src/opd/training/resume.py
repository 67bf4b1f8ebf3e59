"""Training that can be killed: checkpoints, and what becomes of signals and errors.

A run's scratch folder belongs to one identity (settings, inputs, code), so that no run ever goes on
from another one's state. A checkpoint counts once its marker is there. All randomness of a step is
a function of (seed, step, process), but for what vLLM draws: a run that goes on from step n does
what it would have done.
"""

import errno
import hashlib
import json
import math
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, set_seed

from opd.core.errors import UserError
from opd.core.files import replacing
from opd.training.record import MARKER, Record

FAILED = "failed.json"
JOURNAL = "metrics.jsonl"
STOPPED = 143  # what a shell reports of a process that SIGTERM ended


class Steps(TrainerCallback):
    """Seeds every step, and ends the run on SIGTERM where nothing is half done.

    The weights are those of the last complete step except between ``on_pre_optimizer_step`` and the
    next ``on_step_begin``; elsewhere the handler may leave at once. Several processes leave
    together, at a step's beginning.
    """

    def __init__(self, seed: int, trainer: Trainer) -> None:
        self.seed, self.trainer = seed, trainer
        self.stopping = self.updating = False

    def handle(self, *_: Any) -> None:
        if self.stopping:  # a second signal must not end the writing of the checkpoint
            return
        self.stopping = True
        if not self.updating and self.trainer.accelerator.num_processes == 1:
            raise SystemExit(STOPPED)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        accelerator = self.trainer.accelerator
        stopping = self.stopping
        if accelerator.num_processes > 1:
            flag = torch.tensor(float(stopping), device=accelerator.device)
            stopping = bool(accelerator.reduce(flag, "sum") > 0)
        if stopping:
            raise SystemExit(STOPPED)
        self.updating = False
        text = f"{self.seed}/{int(state.global_step)}/{accelerator.process_index}"
        set_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updating = True


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


def resumable(trainer: Trainer, record: Record, scratch: Path, folders: Mapping[int, Path]) -> None:
    """``trainer.train()`` from the last complete checkpoint in ``scratch`` before which all steps
    that are to be kept in ``folders`` (by step, see ``Keep``) have been.

    SIGTERM leaves a checkpoint of the last step and exits with 143. A loss that is no number leaves
    a marker: the same run fails at once with the same message until the marker is removed. Memory
    and disks that do not suffice are errors that leave the last checkpoint as it is.
    """
    failed = scratch / FAILED
    if failed.is_file():
        what, where, remedy = json.loads(failed.read_text())
        raise UserError(what, where, f"{remedy}; to try the same once more, remove {failed}")
    steps = Steps(trainer.args.seed, trainer)
    trainer.add_callback(steps)
    last = _last(scratch, folders)
    start = 0 if last is None else step_of(last)
    record.journal = scratch / JOURNAL
    if last is not None:
        record.restore(last)
        print(f"going on from step {start}", file=sys.stderr)
    if trainer.accelerator.is_main_process:
        # Later steps are made again.
        for step, folder in folders.items():
            if step > start:
                shutil.rmtree(folder, ignore_errors=True)
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
        if trainer.accelerator.is_main_process:
            failed.write_text(json.dumps([bad.what, bad.where, bad.remedy]))
        raise
    except SystemExit:
        step = int(trainer.state.global_step)
        if step and not (scratch / f"checkpoint-{step}" / MARKER).is_file():
            trainer._save_checkpoint(trainer.model, None)
            trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        print(f"told to stop: the run goes on from step {step}", file=sys.stderr)
        raise
    except (OSError, RuntimeError, MemoryError) as error:
        shortage = _shortage(error, scratch)
        if shortage is None:
            raise
        raise shortage from error
    finally:
        signal.signal(signal.SIGTERM, handler)
        if record.bar is not None:
            record.bar.close()


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(checkpoint.name.rpartition("-")[2])


def _last(scratch: Path, folders: Mapping[int, Path]) -> Path | None:
    """The last complete checkpoint before the first step that is yet to be kept. Later ones and
    half-written ones are removed."""
    complete = []
    missing = min((step for step in folders if not folders[step].is_dir()), default=math.inf)
    for folder in scratch.glob("checkpoint-*"):
        if (folder / MARKER).is_file() and step_of(folder) < missing:
            complete.append(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return max(complete, key=step_of, default=None)


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

"""Training that can be killed: checkpoints, the record of a run so far, and what becomes of signals
and errors.

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
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, set_seed

from opd.core.errors import UserError

MARKER = "opd-complete.json"
FAILED = "failed.json"
JOURNAL = "metrics.jsonl"
STOPPED = 143  # what a shell reports of a process that SIGTERM ended


class Record(TrainerCallback):
    """Keeps what a trainer logs as rows of METRICS, draws the bar, stops where a loss is no number.

    ``names`` maps the trainer's names of what is kept to ours; ``extra`` gives further rows of the
    step just logged, as (name, first position of the bin or None, value). ``watch`` is told every
    value over all positions and answers with the signs of a collapse (empty if there are none);
    they are kept in ``seen`` at their first step, and end the run if ``stops``.
    """

    def __init__(
        self,
        title: str,
        names: Mapping[str, str],
        extra: Callable[[], list[tuple[str, int | None, float]]] = list,
        watch: Callable[[Mapping[str, list[float]]], list[str]] | None = None,
        stops: bool = False,
    ) -> None:
        self.title, self.names = title, {"loss": "loss", "grad_norm": "grad_norm", **names}
        self.extra, self.watch, self.stops = extra, watch, stops
        self.rows: list[dict[str, Any]] = []
        self.seen: dict[str, Any] = {}
        self.journal: Path | None = None
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(
            total=args.max_steps,
            initial=state.global_step,
            desc=self.title,
            file=sys.stderr,
            mininterval=1.0,
            disable=not state.is_world_process_zero,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return
        step = int(state.global_step)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise UserError(
                    f"{name} is {logs[name]} at step {step}",
                    "lr",
                    f"lower the learning rate (it is {args.learning_rate})",
                )
        found: list[tuple[str, int | None, float]] = [
            (ours, None, float(logs[theirs]))
            for theirs, ours in self.names.items()
            if logs.get(theirs) is not None
        ]
        found += self.extra()
        self.rows += [
            {"step": step, "name": name, "position": position, "value": value}
            for name, position, value in found
        ]
        if self.journal is not None and state.is_world_process_zero:
            with self.journal.open("a") as file:
                file.write(json.dumps({"step": step, "of": args.max_steps, **_whole(found)}) + "\n")
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update(step - self.bar.n)
        if self.watch is not None and not self.seen:
            history: dict[str, list[float]] = {}
            for row in self.rows:
                if row["position"] is None:
                    history.setdefault(row["name"], []).append(row["value"])
            signs = self.watch(history)
            if signs:
                self.seen = {"step": step, "signs": signs, "stopped": self.stops}
                tqdm.write(
                    f"warning: step {step} looks like a collapse: {', '.join(signs)}",
                    file=sys.stderr,
                )
                control.should_training_stop = control.should_training_stop or self.stops

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes its part
        if state.is_world_process_zero:
            self.seal(_checkpoint(Path(args.output_dir), int(state.global_step)))

    def seal(self, folder: Path) -> None:
        """Declare a checkpoint whole, with the record so far: last of all that is written to it."""
        partial = folder / f"{MARKER}.partial"
        partial.write_text(json.dumps({"rows": self.rows, "seen": self.seen}))
        partial.replace(folder / MARKER)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def _whole(found: list[tuple[str, int | None, float]]) -> dict[str, float]:
    return {name: value for name, position, value in found if position is None}


class Steps(TrainerCallback):
    """Seeds every step, and ends the run on SIGTERM where nothing is half done.

    The weights are those of the last whole step except between ``on_pre_optimizer_step`` and the
    next ``on_step_begin``; elsewhere the handler may leave at once. Several processes leave
    together, at a step's beginning.
    """

    def __init__(self, seed: int, trainer: Trainer) -> None:
        self.seed, self.trainer = seed, trainer
        self.told = self.updating = False

    def handle(self, *_: Any) -> None:
        if self.told:  # a second signal must not end the writing of the checkpoint
            return
        self.told = True
        if not self.updating and self.trainer.accelerator.num_processes == 1:
            raise SystemExit(STOPPED)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        accelerator = self.trainer.accelerator
        told = self.told
        if accelerator.num_processes > 1:
            flag = torch.tensor(float(told), device=accelerator.device)
            told = bool(accelerator.reduce(flag, "sum") > 0)
        if told:
            raise SystemExit(STOPPED)
        self.updating = False
        text = f"{self.seed}/{int(state.global_step)}/{accelerator.process_index}"
        set_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updating = True


class Keep(TrainerCallback):
    """Keeps the weights of some steps: ``save(folder)`` is called in every process after the step,
    the folder counts once it has the name in ``folders`` (by step)."""

    def __init__(self, folders: Mapping[int, Path], save: Callable[[Path], None]) -> None:
        self.folders, self.save = folders, save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = self.folders.get(int(state.global_step))
        if folder is None:
            return
        partial = folder.with_name(f".{folder.name}.partial")
        if state.is_world_process_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.save(partial)
        if state.is_world_process_zero:
            partial.replace(folder)


def resumable(
    trainer: Trainer, record: Record, scratch: Path, kept: Mapping[int, Path] | None = None
) -> None:
    """``trainer.train()`` from the last whole checkpoint in ``scratch`` up to which everything that
    is to be ``kept`` (folders by step, see ``Keep``) has been.

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
    kept = kept or {}
    last = _last(scratch, kept)
    start = 0 if last is None else _step(last)
    record.journal = scratch / JOURNAL
    if last is not None:
        sealed = json.loads((last / MARKER).read_text())
        record.rows, record.seen = sealed["rows"], sealed["seen"]
        print(f"going on from step {start}", file=sys.stderr)
    if trainer.accelerator.is_main_process:
        # What comes after belongs to the steps that are made again.
        for step, folder in kept.items():
            if step > start:
                shutil.rmtree(folder, ignore_errors=True)
        _rewrite(record.journal, record.rows, trainer.args.max_steps)
    before = signal.signal(signal.SIGTERM, steps.handle)
    try:
        done = start >= trainer.args.max_steps
        if last is not None and (done or record.seen.get("stopped")):
            trainer._load_from_checkpoint(str(last))
        else:
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    except UserError as bad:
        if trainer.accelerator.is_main_process:
            failed.write_text(json.dumps([bad.what, bad.where, bad.remedy]))
        raise
    except SystemExit:
        step = int(trainer.state.global_step)
        if step and not (_checkpoint(scratch, step) / MARKER).is_file():
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
        signal.signal(signal.SIGTERM, before)
        if record.bar is not None:
            record.bar.close()


def _checkpoint(scratch: Path, step: int) -> Path:
    return scratch / f"checkpoint-{step}"


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _last(scratch: Path, kept: Mapping[int, Path]) -> Path | None:
    """The last whole checkpoint before the first step that is yet to be kept; later ones are
    removed, and what a killed process left half-written."""
    whole = []
    missing = min((step for step in kept if not kept[step].is_dir()), default=math.inf)
    for folder in scratch.glob("checkpoint-*"):
        if (folder / MARKER).is_file() and _step(folder) < missing:
            whole.append(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return max(whole, key=_step, default=None)


def _rewrite(journal: Path, rows: list[dict[str, Any]], steps: int) -> None:
    """The journal of what a checkpoint knows: later lines are of steps that will be made again."""
    lines: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["position"] is None:
            line = lines.setdefault(row["step"], {"step": row["step"], "of": steps})
            line[row["name"]] = row["value"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))


def _shortage(error: BaseException, scratch: Path) -> UserError | None:
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

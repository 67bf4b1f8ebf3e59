"""The record of a training run: rows of METRICS, bar, journal, and the signs of a collapse."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from opd.core.errors import UserError
from opd.losses import collapse
from opd.training.trackers import Tracker

RECORD = "opd-record.json"
# A metric's name, the first position of its bin (None: all positions), and its value.
Value = tuple[str, int | None, float]


class Record(TrainerCallback):
    """Keeps what a trainer logs as rows of METRICS, draws the bar, and stops a run whose loss is no
    number.

    ``names`` maps the trainer's names of what is kept to ours; ``extra`` returns further values of
    the step just logged. The first signs of a collapse that a ``guard`` (``opd.losses.collapse``)
    finds are kept in ``seen``, and end the run if its action is ``stop``.
    """

    def __init__(
        self,
        title: str,
        names: Mapping[str, str],
        extra: Callable[[], list[Value]] = list,
        guard: Mapping[str, Any] | None = None,
    ) -> None:
        self.title, self.names = title, {"loss": "loss", "grad_norm": "grad_norm", **names}
        self.extra, self.guard = extra, guard
        self.rows: list[dict[str, Any]] = []
        self.seen: dict[str, Any] = {}
        self.journal: Path | None = None
        # Begins a tracker of the run, if it has one.
        self.track: Callable[[], Tracker] | None = None
        self.tracker: Tracker | None = None
        self.bar: Any = None

    def add(self, step: int, values: list[Value]) -> None:
        """Add the values of a step to the rows, and those of all positions to a tracker."""
        self.rows += [
            {"step": step, "name": name, "position": position, "value": value}
            for name, position, value in values
        ]
        if self.tracker is not None:
            self.tracker.log(step, {name: value for name, at, value in values if at is None})

    def courses(self) -> dict[str, list[float]]:
        """The values of each metric over all positions, step by step."""
        courses: dict[str, list[float]] = {}
        for row in self.rows:
            if row["position"] is None:
                courses.setdefault(row["name"], []).append(row["value"])
        return courses

    def restore(self, checkpoint: Path) -> None:
        """Take back what ``save`` has written."""
        saved = json.loads((checkpoint / RECORD).read_text())
        self.rows, self.seen = saved["rows"], saved["seen"]

    def save(self, checkpoint: Path) -> None:
        """Add the record so far to a checkpoint."""
        text = json.dumps({"rows": self.rows, "seen": self.seen})
        (checkpoint / RECORD).write_text(text)

    def rewrite_journal(self, steps: int) -> None:
        """Write the journal, and what a tracker has, anew from the rows of a run of ``steps``
        steps: what else stood there belongs to steps that are made again."""
        means: dict[int, dict[str, float]] = {}
        for row in self.rows:
            if row["position"] is None:
                means.setdefault(row["step"], {})[row["name"]] = row["value"]
        if self.journal is not None:
            lines = ({"step": step, "of": steps, **values} for step, values in means.items())
            self.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if self.track is not None:
            self.tracker = self.track()
            for step, values in means.items():
                self.tracker.log(step, values)

    def close(self) -> None:
        """End the tracker, with all that it was given."""
        if self.tracker is not None:
            self.tracker.close()

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
        values: list[Value] = [
            (name, None, float(logs[logged]))
            for logged, name in self.names.items()
            if logs.get(logged) is not None
        ]
        values += self.extra()
        self.add(step, values)
        if self.journal is not None and state.is_world_process_zero:
            means = {name: value for name, position, value in values if position is None}
            with self.journal.open("a") as file:
                file.write(json.dumps({"step": step, "of": args.max_steps, **means}) + "\n")
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update(step - self.bar.n)
        if self.guard and not self.seen:
            self._look_for_collapse(step, self.guard, control)

    def _look_for_collapse(self, step: int, guard: Mapping[str, Any], control: Any) -> None:
        signs = collapse.signs(self.courses(), guard)
        if signs:
            stops = guard.get("action") == "stop"
            self.seen = {"step": step, "signs": signs, "stopped": stops}
            tqdm.write(
                f"warning: step {step} looks like a collapse: {', '.join(signs)}", file=sys.stderr
            )
            control.should_training_stop = control.should_training_stop or stops

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes its part
        if state.is_world_process_zero:
            self.save(Path(args.output_dir, f"checkpoint-{int(state.global_step)}"))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

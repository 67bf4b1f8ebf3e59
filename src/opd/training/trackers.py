"""What training logs, step by step, in a tracker as well. All of it lies on this machine, unless
WANDB_MODE says online.

A run that goes on writes its earlier steps again into an empty folder, so no step is there twice.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from opd.core.errors import UserError

Metrics = Mapping[str, float]


class Tracker(NamedTuple):
    """``log(step, metrics)`` adds the metrics of a step, ``close()`` ends the run."""

    log: Callable[[int, Metrics], None]
    close: Callable[[], None]


def require(kind: str) -> None:
    """Raise ``UserError`` for a tracker that is not installed."""
    if importlib.util.find_spec(kind) is None:
        remedy = f"pip install {kind}, or leave report_to out"
        raise UserError(f"{kind} is not installed", "training.report_to", remedy)


def begin(kind: str, folder: Path, run: str) -> Tracker:
    """A tracker that writes into a folder, which is emptied. ``run`` tells it from runs of other
    settings, for services that keep what they were sent."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return _TRACKERS[kind](folder, run)


def _tensorboard(folder: Path, run: str) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def _wandb(folder: Path, run: str) -> Tracker:
    import wandb

    tracked = wandb.init(
        project=folder.parents[2].name,  # results/PROJECT/logs/wandb/RUN
        name=folder.name,
        id=run[:32],
        dir=str(folder),
        mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    # Steps that the service has already are not sent again.
    first = tracked.step
    return Tracker(
        lambda step, metrics: tracked.log(dict(metrics), step=step) if step >= first else None,
        tracked.finish,
    )


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}

"""What other trainers have logged of a training run, as rows of METRICS.

Read from TRL 1.16.0, verl at 1dda039 and the code of Rethinking OPD (thunlp/OPD at 0a44395, which
has verl 0.7.0 in it). A value has our name where it is defined as ours, whatever the settings of
the run. Any other keeps the name that its trainer gave it, behind ``trl/`` or ``verl/``.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import read_bytes, read_json
from opd.data.loaders import json_lines
from opd.losses.schemas import METRICS

Logged = Iterable[tuple[int, Mapping[str, Any]]]  # a step, and values by name

LOSS = {"loss": "loss", "grad_norm": "grad_norm"}
# Of trainers that sample, in trainer_state.json: what ``opd.training.grpo`` records by these names,
# but for rewards of single functions, which are whatever somebody called so. SFTTrainer's entropy
# is one of given responses, so it is not the student's on its own.
TRL = LOSS | {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "groups_without_variance",
    "completions/mean_length": "response_tokens",
    "completions/max_length": "response_tokens_max",
    "completions/clipped_ratio": "truncation_ratio",
    "entropy": "entropy_student_nats",
    "clip_ratio/region_mean": "clip_ratio",
    "clip_ratio/low_mean": "clip_ratio_low",
    "clip_ratio/high_mean": "clip_ratio_high",
    "sampling/importance_sampling_ratio/mean": "importance_weight",
    "sampling/importance_sampling_ratio/max": "importance_weight_max",
    "sampling/sampling_logp_difference/mean": "sampler_difference_nats",
}
# The others are not the same in every run: entropies are averaged as loss_agg_mode says, clip_ratio
# counts responses of the full length though they have ended, and scores are sums of a teacher's
# log-ratios in runs of the authors (verl/trainer/ppo/metric_utils.py). ``val-topk`` is of the
# training batch (the authors' verl/verl/trainer/ppo/ray_trainer.py:1392-2000).
VERL = {
    "actor/grad_norm": "grad_norm",
    "response_length/mean": "response_tokens",
    "response_length/max": "response_tokens_max",
    "actor/distillation/overlap_ratio": "overlap_ratio",
    "val-topk/overlap_ratio": "overlap_ratio",
    "val-topk/student_p_sum_intersection": "overlap_mass_student_code",
    "val-topk/teacher_p_sum_intersection": "overlap_mass_teacher_code",
}
# How the authors name what is over a bin of response positions: its first, and the one after it.
_BIN = re.compile(r"(.+)_chunk_(\d+)_\d+")
# How verl's console logger prints a step (verl/utils/logger/aggregate_logger.py); Ray puts the name
# of the process before it.
_CONSOLE = re.compile(r"\bstep:(\d+) - (.+)")
_NUMPY = re.compile(r"np\.\w+\((.+)\)")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of METRICS from our metrics.parquet, TRL's trainer_state.json, or what verl's loggers
    write: ``file`` (lines of JSON), ``tensorboard`` (a folder or a file of events), ``console``
    (all else, read as text). Raises ``UserError`` where nothing was logged there."""
    if not path.exists():
        raise UserError("no such file", str(path), "give what the training run has logged")
    if path.suffix == ".parquet":
        table: list[dict[str, Any]] = tables.read(path, METRICS).to_pylist()
        return table
    if path.suffix == ".json":
        logged = [*_trainer_state(path)]
        samples = any("completions/mean_length" in metrics for _, metrics in logged)
        rows = _rows(logged, TRL if samples else LOSS, "trl/")
    elif path.is_dir() or "tfevents" in path.name:
        rows = _rows(_events(path), VERL, "verl/")
    elif path.suffix == ".jsonl":
        rows = _rows(_file_logger(path), VERL, "verl/")
    else:
        rows = _rows(_console(path), VERL, "verl/")
    if not rows:
        remedy = "give TRL's trainer_state.json, or what a logger of verl has written"
        raise UserError("it holds no metrics of a training run", str(path), remedy)
    return rows


def _rows(logged: Logged, names: Mapping[str, str], prefix: str) -> list[dict[str, Any]]:
    """Rows by step, name and position. Of what was logged twice, as by a run that was stopped and
    went on from a checkpoint, the later value; what is no finite number is left out."""
    values: dict[tuple[int, str, int | None], float] = {}
    for step, metrics in logged:
        for text, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value):
                binned = _BIN.fullmatch(text)
                name, position = (binned[1], int(binned[2])) if binned else (text, None)
                values[step, names.get(name, prefix + name), position] = float(value)
    ordered = sorted(values, key=lambda key: (key[0], key[1], -1 if key[2] is None else key[2]))
    return [
        {"step": step, "name": name, "position": position, "value": values[step, name, position]}
        for step, name, position in ordered
    ]


def _trainer_state(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    state = read_json(path)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        remedy = "give a trainer_state.json as TRL writes it into checkpoints"
        raise UserError("it has no log_history", str(path), remedy)
    for i, entry in enumerate(history):
        step, metrics = _step(entry, entry, f"{path}: log_history[{i}]")
        if "train_runtime" in metrics:  # sums of the whole run
            continue
        yield step, {name: v for name, v in metrics.items() if name not in ("step", "epoch")}


def _file_logger(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(json_lines(path), start=1):
        yield _step(line, line.get("data"), f"{path}:{number}")


def _step(entry: Any, metrics: Any, where: str) -> tuple[int, dict[str, Any]]:
    """The step of an entry and what was logged of it."""
    step = entry.get("step") if isinstance(entry, dict) else None
    if type(step) is not int or not isinstance(metrics, dict):
        raise UserError("it is no step with its metrics", where, "give the file as it was written")
    return step, dict(metrics)


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError:
        remedy = "pip install tensorboard, or give what verl's file logger wrote"
        raise UserError("tensorboard is not installed, which reads it", str(path), remedy) from None
    events = event_accumulator.EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            yield event.step, {name: event.value}


def _console(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"it cannot be read ({error})", str(path), "give a text file") from error
    for found in filter(None, map(_CONSOLE.search, lines)):
        pairs = (pair.rpartition(":") for pair in found[2].split(" - "))
        yield int(found[1]), {name: _number(text) for name, _, text in pairs}


def _number(text: str) -> float | None:
    """A number as ``pprint`` writes it, also one of numpy; None for any other text."""
    try:
        return float(_NUMPY.sub(r"\1", text.strip()))
    except ValueError:
        return None

"""Metrics of TRL, verl and the authors of Rethinking OPD, in the form in which each writes them.

Forms: trainer_state.json of transformers 5.17 with what TRL 1.16.0 logs; ``FileLogger`` and
``_TensorboardAdapter`` of verl/utils/tracking.py and ``concat_dict_to_str`` of
verl/utils/logger/aggregate_logger.py (verl at 1dda039); names of the authors' metrics from
verl/verl/trainer/ppo/ray_trainer.py (thunlp/OPD at 0a44395).
"""

import json
import pprint
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.losses.metric_names import METRICS as KNOWN
from opd.losses.schemas import METRICS
from opd.provenance import training_logs
from opd.training import grpo

# Two steps of the authors' trainer; the second has what is only of verl.
STEPS: dict[int, dict[str, Any]] = {
    1: {
        "actor/entropy": 0.75,
        "actor/grad_norm": 2.5,
        "response_length/mean": 300.0,
        "response_length/clip_ratio": 0.25,
        "critic/score/mean": -12.5,
        "val-topk/overlap_ratio": 0.5,
        "val-topk/overlap_ratio_chunk_0_1024": 0.625,
        "val-topk/overlap_ratio_chunk_1024_1500": 0.125,
        "val-topk/adv_intersection_chunk_0_1024": -0.25,
        "val-topk/student_p_sum_intersection": 0.875,
    },
    2: {"actor/grad_norm": 1.5, "training/global_step": 2, "val-core/acc/mean@16": 0.125},
}
ROWS = {
    (1, "grad_norm", None): 2.5,
    (1, "overlap_mass_student_code", None): 0.875,
    (1, "overlap_ratio", None): 0.5,
    (1, "overlap_ratio", 0): 0.625,
    (1, "overlap_ratio", 1024): 0.125,
    (1, "response_tokens", None): 300.0,
    (1, "verl/actor/entropy", None): 0.75,
    (1, "verl/critic/score/mean", None): -12.5,
    (1, "verl/response_length/clip_ratio", None): 0.25,
    (1, "verl/val-topk/adv_intersection", 0): -0.25,
    (2, "grad_norm", None): 1.5,
    (2, "verl/training/global_step", None): 2.0,
    (2, "verl/val-core/acc/mean@16", None): 0.125,
}


def read(path: Path) -> dict[tuple[int, str, int | None], float]:
    """What is read, which has to fit the table of metrics."""
    rows = training_logs.read(path)
    tables.write(path.with_name("out.parquet"), rows, METRICS)
    return {(row["step"], row["name"], row["position"]): row["value"] for row in rows}


def file_logger(path: Path, steps: dict[int, dict[str, Any]]) -> Path:
    lines = (json.dumps({"step": step, "data": data}) for step, data in steps.items())
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def console(path: Path, steps: dict[int, dict[str, Any]]) -> Path:
    """As Ray prints what verl prints."""
    lines = [
        " - ".join([f"step:{step}", *(f"{k}:{pprint.pformat(v)}" for k, v in data.items())])
        for step, data in steps.items()
    ]
    begin = "\x1b[36m(TaskRunner pid=7)\x1b[0m "
    path.write_text("Training Progress:  0%\n" + "".join(f"{begin}{line}\n" for line in lines))
    return path


def tensorboard(path: Path, steps: dict[int, dict[str, Any]]) -> Path:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(path)) as writer:
        for step, data in steps.items():
            for key, value in data.items():
                writer.add_scalar(key, value, step)
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [(file_logger, "run.jsonl"), (console, "run.log"), (tensorboard, "events")],
)
def test_each_logger_of_verl_says_the_same(
    tmp_path: Path, write: Callable[..., Path], name: str
) -> None:
    found = read(write(tmp_path / name, STEPS))
    assert found == ROWS
    assert list(found) == list(ROWS)  # by step, name and position


def test_a_run_that_went_on_has_its_later_values(tmp_path: Path) -> None:
    """As the console has both after a restart; what is no number is left out."""
    first = {1: {"actor/grad_norm": np.float64(1.0), "timing_s/gen": float("nan")}}
    path = console(tmp_path / "run.log", first)
    again = console(tmp_path / "again.log", {1: {"actor/grad_norm": np.float64(0.1 + 0.2)}})
    path.write_text(path.read_text() + again.read_text())
    assert read(path) == {(1, "grad_norm", None): 0.1 + 0.2}


def test_without_tensorboard_its_events_are_refused_in_a_line(tmp_path: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing", None)
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    with pytest.raises(UserError, match=r"tensorboard is not installed.*file logger"):
        read(tmp_path / "events.out.tfevents.1.host")


def trainer_state(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"global_step": 2, "log_history": [*entries]}))
    return path


def test_trl_is_read_by_what_its_trainer_logs(tmp_path: Path) -> None:
    path = trainer_state(
        tmp_path / "trainer_state.json",
        {"step": 1, "epoch": 0.5, "loss": 0.25, "grad_norm": 2.0, "learning_rate": 1e-6,
         "completions/mean_length": 8.0, "completions/clipped_ratio": 0.5, "entropy": 1.5,
         "rewards/correct/mean": 0.5, "reward": 0.75, "kl": None},
        {"step": 1, "epoch": 0.5, "eval_loss": 3.0},
        {"step": 2, "epoch": 1.0, "train_runtime": 9.0, "train_loss": 0.25, "total_flos": 1e9},
    )  # fmt: skip
    assert read(path) == {
        (1, "entropy_student_nats", None): 1.5,
        (1, "grad_norm", None): 2.0,
        (1, "loss", None): 0.25,
        (1, "response_tokens", None): 8.0,
        (1, "reward", None): 0.75,
        (1, "trl/eval_loss", None): 3.0,
        (1, "trl/learning_rate", None): 1e-6,
        (1, "trl/rewards/correct/mean", None): 0.5,
        (1, "truncation_ratio", None): 0.5,
    }
    # Of given responses, as SFTTrainer has it: not the entropy of the student on its own.
    given = {"step": 1, "loss": 0.25, "grad_norm": 2.0, "entropy": 1.5}
    assert read(trainer_state(path, given)).keys() == {
        (1, "grad_norm", None), (1, "loss", None), (1, "trl/entropy", None)
    }  # fmt: skip


def test_names_are_those_of_training_here() -> None:
    own = {k: v for k, v in grpo.LOGGED.items() if not k.startswith("rewards/")}
    assert training_logs.LOSS | own == training_logs.TRL
    assert {*training_logs.TRL.values(), *training_logs.VERL.values()} <= {*KNOWN}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("trainer_state.json", "{", "not readable as JSON"),
        ("trainer_state.json", "[]", "it has no log_history"),
        (
            "trainer_state.json",
            '{"log_history": [{"loss": 1}]}',
            r"log_history\[0\]: it is no step",
        ),
        ("trainer_state.json", '{"log_history": []}', "holds no metrics"),
        ("run.jsonl", '{"step": 1, "data": {}}\n{', r"run\.jsonl:2: not JSON"),
        ("run.jsonl", '{"step": "1", "data": {}}', r"run\.jsonl:1: it is no step"),
        ("run.jsonl", "[1]", r"run\.jsonl:1: not a JSON object"),
        ("run.log", "nothing of a step", "holds no metrics"),
        ("metrics.parquet", "PAR1", "not a readable parquet"),
        (None, None, "no such file"),
    ],
)
def test_a_log_that_is_none_is_refused_in_a_line(tmp_path: Path, name, text, words: str) -> None:
    path = tmp_path / (name or "none.jsonl")
    if name:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        training_logs.read(path)

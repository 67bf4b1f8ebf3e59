"""Trackers: what metrics.parquet has of all positions, each step once, also after a kill."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")

from tiny import SFT, Inputs, Killed, files, kill_at, run

from opd.core import tables
from opd.core.errors import UserError
from opd.losses.schemas import METRICS
from opd.training import trackers

STEPS = 4


def tracked(kind: str, folder: Path) -> dict[str, Any]:
    about = {"tracker": kind, "folder": str(folder)}
    return {**SFT, "steps": STEPS, "execution": {"checkpoint_every": 2, "report_to": about}}


def killed_and_resumed(
    kind: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[tuple[int, str], float]]:
    """The folder of the tracker of a run that was killed in its last step and went on from the
    second, and the metrics that it ends with."""
    folder = tmp_path / "results" / "mine" / "logs" / kind / "x-s0"
    cfg = tracked(kind, folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(STEPS - 1, patch)
        run("sft", cfg, inputs, tmp_path / "out")
    run("sft", cfg, inputs, tmp_path / "out")
    rows = tables.read(tmp_path / "out" / "metrics.parquet", METRICS).to_pylist()
    return folder, {(r["step"], r["name"]): r["value"] for r in rows if r["position"] is None}


def test_every_step_is_logged_once_also_after_a_kill(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a run makes is the same with a tracker and without."""
    logged: list[tuple[int, dict[str, float]]] = []
    runs: list[str] = []

    def begin(folder: Path, run: str) -> trackers.Tracker:
        assert not list(folder.iterdir())
        (folder / "events").touch()
        logged.clear()
        runs.append(run)
        return trackers.Tracker(
            lambda step, metrics: logged.append((step, dict(metrics))),
            lambda: runs.append("closed"),
        )

    monkeypatch.setitem(trackers._TRACKERS, "tensorboard", begin)
    monkeypatch.setattr(trackers, "require", lambda kind: None)
    _, metrics = killed_and_resumed("tensorboard", inputs, tmp_path, monkeypatch)
    rows = [(step, name, value) for step, values in logged for name, value in values.items()]
    kept = [(step, name, float(np.float32(value))) for step, name, value in rows]  # in 32 bits
    assert sorted(kept) == sorted((*key, value) for key, value in metrics.items())
    assert {step for step, _, _ in rows} == {*range(STEPS + 1)}
    assert {name for _, name in metrics} >= {"loss", "grad_norm", "nll_nats"}
    assert runs == ["out-scratch", "closed"] * 2
    run("sft", {**SFT, "steps": STEPS}, inputs, tmp_path / "without")
    assert files(tmp_path / "without") == files(tmp_path / "out")


def test_one_that_is_not_installed_is_one_line_before_training(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        trackers.require("wandb")
    remedy = "pip install wandb, or leave report_to out"
    assert str(caught.value) == f"training.report_to: wandb is not installed; {remedy}"
    monkeypatch.undo()
    monkeypatch.setattr(trackers, "require", lambda kind: (_ for _ in ()).throw(caught.value))
    with pytest.raises(UserError, match="not installed"):
        run("sft", tracked("wandb", tmp_path / "t"), inputs, tmp_path / "out")
    assert not (tmp_path / "t").exists() and not list((tmp_path / "out").iterdir())


def test_tensorboard_has_each_step_once(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, metrics = killed_and_resumed("tensorboard", inputs, tmp_path, monkeypatch)
    shown = events.EventAccumulator(str(folder))
    shown.Reload()
    scalars = [
        (scalar.step, name, scalar.value)
        for name in shown.Tags()["scalars"]
        for scalar in shown.Scalars(name)
    ]
    assert len(scalars) == len(metrics)
    for step, name, value in scalars:
        assert value == pytest.approx(metrics[step, name], rel=1e-6)


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a run that wandb keeps offline: LevelDB's log format after 7 bytes."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # a block ends with zeros
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_is_offline_and_has_each_step_once(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder, metrics = killed_and_resumed("wandb", inputs, tmp_path, monkeypatch)
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows: dict[int, dict[str, float]] = {}
    for data in wandb_records(path):
        record = internal.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            assert items["_step"] not in rows
            rows[items["_step"]] = items
    assert {*rows} == {*range(STEPS + 1)}
    for (step, name), value in metrics.items():
        assert rows[step][name] == pytest.approx(value)

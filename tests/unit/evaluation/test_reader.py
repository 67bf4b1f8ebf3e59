"""What is read of an input is what was made: one check for every file of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measurements import evaluation, preflight_probe, run

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import content
from opd.evaluation.reader import Reader
from opd.probes.schemas import ROLLOUTS
from opd.results.estimate import read_probe
from opd.results.figures import run_figure

SUMMARY = {"benchmarks": {"easy": {"samples": 4, "maj": 0.5, "pass": {"4": 1.0}}}}
READS: dict[str, Callable[[Reader], Any]] = {
    "scores.parquet": lambda reader: reader.evaluations(["it"], "here"),
    "summary.json": lambda reader: reader.summary(["it"], ["easy"], "maj"),
    "metrics.parquet": lambda reader: reader.metric(["it"], "kl_nats", "here"),
    "probe.json": lambda reader: reader.json("it", "probe.json", "here"),
    "draws.parquet": lambda reader: read_probe(reader, "it", "auroc"),
}


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """An artifact with a file of every kind."""
    payload = evaluation(tmp_path / "it/payload", {"easy": [2, 1]})
    tables.write_json(payload / "summary.json", SUMMARY)
    for made in (
        run(tmp_path / "run", kl_nats={0: 1.0}),
        preflight_probe(tmp_path / "probe", "unclear", 0.7, [0.6, 0.8]),
    ):
        for file in made.iterdir():
            file.rename(payload / file.name)
    (payload.parent / "digest.json").write_text(json.dumps({"outputs": content(payload)}))
    return payload


def _edit(path: Path) -> None:
    """Other bytes that still read as the same table or text."""
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        table = tables.pq.read_table(path)
        tables.pq.write_table(table, path, compression="gzip")


@pytest.mark.parametrize("file", READS)
def test_a_file_changed_by_hand_is_not_read(payload: Path, file: str) -> None:
    for read in READS.values():
        read(Reader({"it": payload}))
    _edit(payload / file)
    with pytest.raises(UserError, match=f"{file}: modified after it was made.*digest.json"):
        READS[file](Reader({"it": payload}))
    # Also where another file of the same input was read before.
    reader = Reader({"it": payload})
    READS["metrics.parquet" if file == "scores.parquet" else "scores.parquet"](reader)
    with pytest.raises(UserError, match=f"{file}: modified after it was made"):
        READS[file](reader)


def test_a_file_added_by_hand_is_not_read(payload: Path) -> None:
    record = payload.parent / "digest.json"
    outputs = json.loads(record.read_text())["outputs"]
    outputs.pop("summary.json")
    record.write_text(json.dumps({"outputs": outputs}))
    with pytest.raises(UserError, match=r"summary\.json: modified"):
        Reader({"it": payload}).summary(["it"], ["easy"], "maj")


def test_digests_are_of_the_files_that_were_read(payload: Path) -> None:
    reader = Reader({"it": payload})
    assert reader.digests("it") == {}
    read_probe(reader, "it", "auroc")
    reader.evaluations(["it"], "here")
    assert reader.digests("it") == {
        file: hashlib.sha256((payload / file).read_bytes()).hexdigest()[:12]
        for file in ("draws.parquet", "probe.json", "scores.parquet")
    }


def test_rollouts_of_a_figure_are_checked_too(tmp_path: Path, payload: Path) -> None:
    tables.write(payload / "rollouts.parquet", [], ROLLOUTS)
    cfg = {
        "kind": "distribution",
        "probes": {"P": {"label": "p", "runs": ["it"]}},
        "series": [{"probe": "P"}],
    }
    with pytest.raises(UserError, match=r"rollouts\.parquet: modified"):
        run_figure(cfg, {"it": payload}, tmp_path)

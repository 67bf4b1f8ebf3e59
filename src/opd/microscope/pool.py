"""Several teachers together, and correct against incorrect paths (the paper, sections 3 and 4)."""

import math
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.microscope import schemas, statistics
from opd.stats import draws

Row = dict[str, Any]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``pool``: probe.json, draws.parquet, cells.parquet and tests.json of several teachers.

    cfg: names (labels of the teachers, for inputs ``of:0``, ``of:1``, ...). Values:
    ``statistics.values`` of all cells, and for each measure p_welch_NAME, p_paired_NAME and
    p_cluster_NAME of correct against incorrect paths.
    """
    cells = [
        one
        for number, name in enumerate(cfg["names"])
        for one in read_cells(inputs[f"of:{number}"], name)
    ]
    values = statistics.values(cells) if cells else {}
    tests: dict[str, Any] = {}
    for name in statistics.MEASURES if cells else ():
        found = statistics.contrast(cells, name)
        tests[name] = {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in found._asdict().items()
        }
        for test in ("welch", "paired", "cluster"):
            p = getattr(found, f"p_{test}")
            known = p if math.isfinite(p) else None
            values[f"p_{test}_{name}"] = draws.Value(known, None, sum(found.n[:2]))
    values["teachers"] = draws.Value(float(len(cfg["names"])), None, len(cells))
    draws.write(out, values, {"teachers": cfg["names"]})
    tables.write(out / "cells.parquet", map(cell_row, cells), schemas.CELLS)
    tables.write_json(out / "tests.json", tests)
    return {n: v.value for n, v in values.items() if n in (*statistics.MEASURES, "nodes")}


def read_cells(payload: Path, teacher: str) -> list[statistics.Cell]:
    """Cells of an ``alignment`` stage, under this name of the teacher."""
    rows = tables.read(payload / "cells.parquet", schemas.CELLS).to_pylist()
    return [
        statistics.Cell(
            row["prompt_id"],
            teacher,
            row["path"],
            row["correct"],
            dict(row["numbers"]),
            row["nodes"],
            row["undefined"],
            row["variance"],
        )
        for row in rows
    ]


def cell_row(one: statistics.Cell) -> Row:
    return {
        "prompt_id": one.question,
        "teacher": one.teacher,
        "path": one.path,
        "correct": one.correct,
        "nodes": one.nodes,
        "undefined": one.undefined,
        "variance": one.spread,
        "numbers": list(one.numbers.items()),
    }

"""Several teachers together, and correct against incorrect paths (the paper, sections 3 and 4)."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.microscope import schemas, statistics
from opd.microscope.statistics import Cell
from opd.stats import draws


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``pool``: probe.json, draws.parquet, cells.parquet and tests.json of several teachers.

    cfg: names (labels of the teachers, for inputs ``of:0``, ``of:1``, ...). Values:
    ``statistics.values`` of all cells, and for each measure p_welch_NAME, p_paired_NAME and
    p_cluster_NAME of correct against incorrect paths.
    """
    names = cfg["names"]
    cells = [cell for i, name in enumerate(names) for cell in read_cells(inputs[f"of:{i}"], name)]
    payloads = [inputs[f"of:{i}"] for i in range(len(names))]
    values = statistics.values(cells, {id for payload in payloads for id in _left_out(payload)})
    tests: dict[str, Any] = {}
    for name in statistics.MEASURES if cells else ():
        contrast = statistics.contrast(cells, name)
        tests[name] = {key: known(value) for key, value in contrast._asdict().items()}
        for test in ("p_welch", "p_paired", "p_cluster"):
            p = tests[name][test]
            values[f"{test}_{name}"] = draws.Value(p, None, sum(contrast.n[:2]))
    values["teachers"] = draws.Value(float(len(names)), None, len(cells))
    numbers = draws.write(out, values, {"teachers": names})
    write_cells(out, cells)
    tables.write_json(out / "tests.json", tests)
    return main_numbers(numbers)


def known(value: Any) -> Any:
    """A value as JSON has it: None where it is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main_numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a probe that its stage reports: the measures, and how many nodes they are
    of."""
    return {n: v for n, v in numbers.items() if n in (*statistics.MEASURES, "nodes")}


def read_cells(payload: Path, teacher: str) -> list[Cell]:
    """Cells of an ``alignment`` stage, under this name of the teacher."""
    rows = tables.read(payload / "cells.parquet", schemas.CELLS).to_pylist()
    return [Cell(**{**row, "teacher": teacher, "numbers": dict(row["numbers"])}) for row in rows]


def _left_out(payload: Path) -> list[str]:
    """Questions of which an ``alignment`` stage left out a path or all: with those of its cells
    they are all of its tree."""
    ids: list[str] = tables.read(payload / "left_out.parquet", schemas.LEFT_OUT)[
        "prompt_id"
    ].to_pylist()
    return ids


def write_cells(out: Path, cells: Iterable[Cell]) -> None:
    """Write cells.parquet."""
    rows = [{**cell._asdict(), "numbers": [*cell.numbers.items()]} for cell in cells]
    tables.write(out / "cells.parquet", rows, schemas.CELLS)

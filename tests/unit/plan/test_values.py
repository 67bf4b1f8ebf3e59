"""What `opd.plan.values` lists is what the stages of the microscope write."""

import json
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.microscope import pool, schemas, screening, statistics
from opd.microscope.statistics import Cell
from opd.plan.values import VALUES, check_values
from opd.recipes.resolve import read as read_config
from opd.results.quantity import read

pytestmark = pytest.mark.unit
CONFIG = Path(__file__).parents[3] / "config"


def cells() -> list[Cell]:
    """Paths of both kinds, of two questions."""
    rng = np.random.default_rng(0)

    def scores() -> np.ndarray:
        return rng.choice([-1.0, 1.0], 6)

    return [
        statistics.cell(
            question,
            "t",
            path,
            path < 2,
            scores(),
            rng.random(6),
            scores(),
            {name: rng.random(6) for name in statistics.FEATURES},
        )
        for question in ("a", "b")
        for path in range(4)
    ]


def test_values_of_alignments_and_pools(tmp_path: Path) -> None:
    assert {*statistics.values(cells())} == {*VALUES["alignment"]}
    pool.write_cells(tmp_path, cells())
    tables.write(tmp_path / "left_out.parquet", [], schemas.LEFT_OUT)
    (tmp_path / "out").mkdir()
    pool.run({"names": ["t"]}, {"of:0": tmp_path}, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "probe.json").read_text())["values"]
    assert {*found} == {*VALUES["pool"]}


def test_values_of_a_screening() -> None:
    passes = {"baseline": {"a": 1, "b": 7}, "self_1c": {"a": 4}}
    bins = {"a": "hard", "b": "easy"}
    for name in screening.summarise(passes, bins, {"a", "b"}, 8):
        assert any(fnmatchcase(name, form) for form in VALUES["screening"]), name


def test_a_value_that_a_probe_cannot_have_is_refused() -> None:
    config = read_config([CONFIG / "mini.yaml", CONFIG / "mini-unmasking.yaml"])

    def check(**quantity: object) -> None:
        check_values(config, [("claim X", read({"probe": "U1.pooled", **quantity}))])

    check(value="signal_positive", per={"value": "signal"})
    check(value="cosine", less={"probe": "U1.self-1c"})
    with pytest.raises(UserError) as caught:
        check(value="signal_positve")
    said = "claim X: unknown value of the pool U1.pooled 'signal_positve'"
    assert str(caught.value) == f"{said}; did you mean 'signal_positive'?"
    with pytest.raises(UserError, match="value of the pool"):
        check(value="signal", per={"value": "signl"})
    # A test that pools alone have.
    with pytest.raises(UserError, match=r"value of the alignment U1\.self-1c 'p_welch_cosine'"):
        check(value="p_welch_cosine", less={"probe": "U1.self-1c"})
    # Contexts are the config's: this scale's screening has no such, another's may.
    check(probe="U1.screening", value="accuracy_self_sum_1c1w_ratio")

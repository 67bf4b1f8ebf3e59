"""A forecast and its outcome on made-up measurements: ranks by scipy, nothing read too early."""

import json
from pathlib import Path

import pytest
from measurements import evaluation
from scipy import stats

from opd.core.errors import UserError
from opd.core.files import file_digest, read_json
from opd.microscope import forecast
from opd.microscope.statistics import MEASURES

MEASURED = [0.3, 0.1, None, -0.2, 0.05, 0.2]
STUDENTS = ["s", "s", "s", "t", "t", "t"]
LABELS = [f"pair {i}" for i in range(6)]
# Right answers of four, after and before.
AFTER = [[4, 4], [3, 3], [4, 4], [0, 1], [2, 2], [4, 1]]
BEFORE = [2, 2]


def aligned(folder: Path, value: float | None) -> Path:
    folder.mkdir()
    values = {name: {"value": value} for name in MEASURES}
    (folder / "probe.json").write_text(json.dumps({"values": values if value is not None else {}}))
    return folder


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Path]:
    out = tmp_path / "forecast"
    out.mkdir()
    inputs = {f"alignment:{i}": aligned(tmp_path / f"a{i}", v) for i, v in enumerate(MEASURED)}
    cfg = {"measure": "weighted_cosine", "pairs": LABELS, "students": STUDENTS}
    forecast.run(cfg, inputs, out)
    found = {"forecast": out}
    for i, right in enumerate(AFTER):
        found[f"after:{i}"] = evaluation(tmp_path / f"after{i}", {"easy": right})
        found[f"before:{i}"] = evaluation(tmp_path / f"before{i}", {"easy": BEFORE})
    return found


def test_a_forecast_ranks_what_was_measured(made: dict[str, Path]) -> None:
    whole = read_json(made["forecast"] / "forecast.json")
    assert whole["ranking"] == ["pair 0", "pair 5", "pair 1", "pair 4", "pair 3"]
    assert whole["pairs"][2]["weighted_cosine"] is None
    # Nothing of an outcome is in it.
    assert "gain" not in json.dumps(whole)


def test_the_outcome_is_compared_with_what_was_fixed(made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "outcome"
    out.mkdir()
    forecast.run_outcome({}, made, out)
    whole = read_json(out / "outcome.json")
    assert whole["forecast"] == file_digest(made["forecast"] / "forecast.json")
    gains = [(sum(a) - sum(BEFORE)) / 8 for a in AFTER]
    assert [one["gain"] for one in whole["pairs"]] == pytest.approx(gains)
    kept = [i for i, value in enumerate(MEASURED) if value is not None]
    x, y = [MEASURED[i] for i in kept], [gains[i] for i in kept]
    values = read_json(out / "probe.json")["values"]
    assert values["rho_weighted_cosine"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert values["rho_weighted_cosine"]["low"] <= values["rho_weighted_cosine"]["value"]
    assert values["pairs"]["value"] == 5
    # Of the first student two pairs are left, too few to rank; of the second three.
    own = stats.spearmanr(MEASURED[3:], gains[3:]).statistic
    assert values["rho_weighted_cosine_within"]["value"] == pytest.approx(own)
    assert "pair 2 | – | –" in (out / "outcome.md").read_text()


def test_evaluations_of_other_problems_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    made["after:0"] = evaluation(tmp_path / "other", {"easy": [4, 4, 4]})
    out = tmp_path / "outcome"
    out.mkdir()
    with pytest.raises(UserError, match="other problems"):
        forecast.run_outcome({}, made, out)

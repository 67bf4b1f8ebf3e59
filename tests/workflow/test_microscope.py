"""What the third paper adds, once through Snakemake: from demonstrations to a forecast, and what
came of it."""

from typing import Any

import pytest
from project import Project

from opd.core.files import file_digest, read_json

pytestmark = pytest.mark.workflow


def _numbers(project: Project, *folders: str) -> list[dict[str, Any]]:
    """What the stages say of their results."""
    return [read_json(project.result(f"{one}/s0/manifest.json"))["numbers"] for one in folders]


def test_each_stage_reads_the_one_before(finished: Project):
    own, short = _numbers(finished, "demonstrations/own", "demonstrations/own-short")
    found = own["with a correct one"], own["with a wrong one"]
    assert own["questions"] == 16 and 0 < found[0] <= 16
    assert short["summaries"] + short["left out"] == sum(found)
    rates, grown = _numbers(finished, "probes/rates", "probes/grown")
    assert rates["with_own"] == found[0] >= rates["questions"] > 0
    assert grown["questions"] == min(2, rates["questions"])
    assert grown["rollouts"] > 48 * grown["questions"]
    one, pooled = _numbers(finished, "probes/aligned", "probes/pooled")
    assert pooled == one and one["nodes"] > 0


def test_a_forecast_is_of_alignments_alone_and_the_outcome_names_it(finished: Project):
    forecast = read_json(finished.result("probes/foreseen/s0/manifest.json"))
    assert {*forecast["inputs"]} == {f"alignment:{number}" for number in range(3)}
    outcome = read_json(finished.result("probes/seen/s0/payload/outcome.json"))
    made = finished.result("probes/foreseen/s0/payload/forecast.json")
    assert outcome["forecast"] == file_digest(made)

    def score(model: str) -> float:
        folder = finished.result(f"evaluations/held-out/{model}/s0/payload")
        return read_json(folder / "summary.json")["macro"]["avg"]

    trained = {"forward": "base", "forward-other": "cold", "backward": "teacher"}
    gains = [score(after) - score(before) for after, before in trained.items()]
    assert [pair["gain"] for pair in outcome["pairs"]] == pytest.approx(gains)


def test_which_nodes_count_is_no_matter_of_the_tree(copy: Project):
    copy.edit(lambda c: c["probes"]["aligned"]["alignment"].update(min_children_visits=5))
    probes = {f"probes/{name}/s0" for name in ("aligned", "pooled", "foreseen", "seen")}
    assert copy.would_make() - {"all"} == {*probes, "tables/measured", "report"}


def test_other_training_changes_no_forecast(copy: Project):
    copy.edit(lambda c: c["models"]["backward"]["distill"].update(lr=2e-3))
    made = copy.would_make()
    assert {"models/backward/s0", "probes/seen/s0"} <= made
    assert not made & {f"probes/{name}/s0" for name in ("rates", "grown", "aligned", "foreseen")}

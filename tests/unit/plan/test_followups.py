"""What follow-up papers claim, held to the miniature that judges it."""

from pathlib import Path

import pytest

from opd.plan.artifacts import plan
from opd.plan.papers import read_paper, read_papers
from opd.recipes.outputs import experiment_of
from opd.recipes.resolve import read
from opd.results import claim_spec

pytestmark = pytest.mark.unit
CONFIG = Path(__file__).parents[3] / "config"
PAPER = read_paper("followups", CONFIG)


def test_every_claim_can_be_judged_in_the_miniature() -> None:
    config = read([CONFIG / "mini.yaml", CONFIG / "mini-followups.yaml"])
    # Other papers have names in the config, and none of the experiments that it asks for.
    assert [paper.title for paper in read_papers(config, CONFIG)] == [PAPER.title]
    everything = config.model_copy(update={"experiments": "all"})
    assert [paper.name for paper in read_papers(everything, CONFIG)] == config.papers
    assert len(config.papers) == 3
    assert PAPER.names["arms"].keys() <= config.arms.keys()
    shown = {experiment_of(name) for name in PAPER.names["arms"]}
    assert shown == {*config.experiments} == {claim.experiment for claim in PAPER.claims}
    planned = plan(config, {})
    for name in PAPER.names["arms"]:
        arm = config.arms[name]
        trained = planned[f"models/{arm.model.partition('@')[0]}/s0"]
        # What is compared is the objective: steps, rollouts and start are the same.
        beside = planned["models/small-from-small-rl/s0"]
        same = ("steps", "max_new_tokens", "temperature")
        assert [trained.cfg[key] for key in same] == [beside.cfg[key] for key in same]
        assert {"models/small/s0", "prompts/rl"} <= {*trained.inputs}


def test_every_published_row_belongs_to_a_claim() -> None:
    rows = claim_spec.read_targets(CONFIG / "targets" / "followups.csv")
    claimed = {target for claim in PAPER.claims for target in claim.targets()}
    assert claimed == {row["id"] for row in rows}
    assert all("abstract" in row["source"] for row in rows)

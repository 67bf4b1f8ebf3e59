"""The files of the third paper: every published row has its place, and what claims name exists."""

from pathlib import Path

import pytest
import yaml

from opd.core.errors import UserError
from opd.plan import artifacts as plan
from opd.plan import hub_lock
from opd.plan.papers import read_paper
from opd.recipes.resolve import merge, resolve
from opd.results import claim_spec
from opd.results.published import parse
from opd.stages import artifact

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
PAPER = read_paper("unmasking", CONFIG)
ROWS = claim_spec.read_targets(CONFIG / "targets" / "unmasking.csv")


def mini(**more: object) -> dict[str, object]:
    files = ("mini", "mini-unmasking")
    merged: dict[str, object] = {}
    for name in files:
        merged = merge(merged, yaml.safe_load((CONFIG / f"{name}.yaml").read_text()))
    return merge(merged, more)


def test_every_published_row_is_attached_or_set_aside() -> None:
    claimed = {target for claim in PAPER.claims for target in claim.targets()}
    drawn = {target for figure in PAPER.figures.values() for target in figure.targets()}
    given = claim_spec.read_claims(CONFIG / "claims" / "unmasking.yaml")
    aside = [target for one in given["context"] for target in one["targets"]]
    assert len(ROWS) == 514 and [row["id"] for row in ROWS] == [f"U{n:03d}" for n in range(1, 515)]
    assert claimed | drawn | {*aside} == {row["id"] for row in ROWS}
    assert not {*aside} & (claimed | drawn)
    # Only constants of the protocol are set aside, and shares that are 100 % by definition.
    by_id = {row["id"]: row for row in ROWS}
    assert {by_id[id]["experiment_id"] for id in aside} == {"B0_protocol", "B4_oracle_selective"}
    assert all(by_id[id]["value"] == "1" for id in aside if by_id[id]["metric"] == "tokens kept")


def test_attached_rows_are_numbers_in_our_units() -> None:
    """Shares from 0 to 1, as the values are that they are held against."""
    by_id = {row["id"]: row for row in ROWS}
    said = [one for claim in PAPER.claims for one in claim.published]
    said += [one for figure in PAPER.figures.values() for one in figure.said()]
    assert len({one.target for one in said}) >= 495
    for one in said:
        if one.quantity is None:
            assert one.untested
            continue
        number = parse(by_id[one.target]["value"])
        assert number is not None, by_id[one.target]
        if one.quantity.unit == "share":
            assert 0 <= number.low <= 1, by_id[one.target]


def test_claims_are_told_from_those_of_other_papers() -> None:
    assert all(claim.id.startswith("UB-") for claim in PAPER.claims)
    ids = [claim.id for claim in PAPER.claims]
    assert len(ids) == len({*ids}) > 80


def test_the_miniature_measures_before_it_reads_outcomes() -> None:
    """No alignment or forecast depends on a run or an evaluation of the pairs that are compared."""
    config = resolve(mini())
    artifacts = plan.plan(config, hub_lock.read(CONFIG / "hub.lock.yaml"))
    forecast = config.probes["U9.forecast"].forecast
    assert forecast is not None and len(forecast.pairs) >= 10
    trained = {f"models/{pair.model}/s0" for pair in forecast.pairs}
    behind = artifact.closure(["probes/U9.forecast/s0"], artifacts)
    assert not trained & {*behind}
    assert not any(folder.startswith("evaluations/") for folder in behind)
    outcome = artifacts["probes/U9.outcome/s0"]
    assert trained <= {*artifact.closure([outcome.folder], artifacts)}
    for pair in forecast.pairs:
        align = config.probes[pair.alignment].alignment
        assert align is not None
        tree = config.probes[align.tree].tree
        assert tree is not None and tree.student == pair.base
        run = config.models[pair.model].distill
        assert run is not None and run.student == pair.base
        teacher = next(one for one in tree.teachers if one.name == align.teacher)
        assert teacher.model == run.teacher


def test_defaults_are_the_papers() -> None:
    teachers = [{"name": "t", "model": "large"}]
    recipe = {"tree": {"student": "small", "prompts": "rl", "teachers": teachers}}
    raw = mini(probes={"usual": recipe})
    raw["defaults"].pop("tree")  # type: ignore[attr-defined]
    raw["probes"] = {"usual": recipe, "seen": {"alignment": {"tree": "usual", "teacher": "t"}}}
    raw |= {"papers": [], "tables": {}, "experiments": "all", "targets": "all"}
    config = resolve(raw)
    tree, align = config.probes["usual"].tree, config.probes["seen"].alignment
    assert tree is not None and align is not None
    assert (tree.rollouts, tree.tau, tree.min_visits) == (200, 0.02, 100)
    assert (tree.correct_paths, tree.incorrect_paths, tree.temperature) == (2, 2, 1.0)
    assert (tree.first_window, tree.window_growth) == (50, 2.0)
    assert tree.system == "You are a helpful assistant."
    assert align.min_children_visits == 20
    assert (align.mode, align.method) == ("renormalise", "reverse_kl")


def test_an_alignment_names_its_counts_only_where_the_tree_has_several() -> None:
    teachers = [{"name": "t", "model": "large"}]

    def planned(of_tree: str, **of_alignment: str) -> dict[str, object]:
        tree = {"student": "small", "teachers": teachers, "counts": of_tree}
        probes = {"grown": {"tree": tree}, "seen": {"alignment": {"tree": "grown", "teacher": "t"}}}
        probes["seen"]["alignment"] |= of_alignment
        artifacts = plan.plan(resolve(mini(probes=probes)), {})
        return artifacts["probes/seen/s0"].cfg

    for counts in ("whole", "unforced"):
        assert planned(counts, counts=counts) == planned(counts) == planned("both", counts="whole")
    assert planned("both", counts="unforced")["reading"] == "unforced"
    assert not {"reading", "counts"} & planned("both").keys()
    with pytest.raises(UserError, match=r"^probes\.seen\.alignment\.counts: grown has no unforced"):
        planned("whole", counts="unforced")
    for where in ("of_tree", "counts"):
        with pytest.raises(UserError, match=r"counts: 'hole' is not allowed") as caught:
            planned(**{"of_tree": "both", where: "hole"})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"alignment": {"tree": "small-tree", "teacher": "larg"}}, "did you mean 'large'"),
        ({"alignment": {"tree": "U1.pooled", "teacher": "large"}}, "unknown tree 'U1.pooled'"),
        ({"outcome": {"forecast": "U1.pooled", "evaluation": "held-out"}}, "unknown forecast"),
    ],
)
def test_names_that_nothing_has_are_refused(probe: dict[str, object], message: str) -> None:
    config = resolve(mini(probes={"wrong": probe}))
    with pytest.raises(UserError, match=message):
        plan.plan(config, hub_lock.read(CONFIG / "hub.lock.yaml"))


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([{"name": "t"}], "needs model, context or both"),
        ([{"name": "t", "model": "large"}, {"name": "t", "model": "small"}], "two teachers"),
        ([{"name": "t", "model": "larg"}], "did you mean 'large'"),
        ([{"name": "t", "context": {"demonstrations": "ow"}}], "did you mean 'own'"),
    ],
)
def test_teachers_that_make_no_sense_are_refused(
    teachers: list[dict[str, object]], message: str
) -> None:
    tree = {"tree": {"student": "small", "teachers": teachers}}
    with pytest.raises(UserError, match=message):
        resolve(mini(probes={"wrong": tree}))

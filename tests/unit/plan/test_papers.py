"""Names that a paper's files and a config share: a typo is refused before anything runs."""

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd.core.errors import UserError
from opd.losses import metrics
from opd.losses.metric_names import METRICS
from opd.plan.artifacts import plan
from opd.plan.outputs import exhibits
from opd.plan.papers import read_paper
from opd.recipes.resolve import resolve
from opd.results.claim_spec import read_claims
from opd.training.grpo import LOGGED
from opd.training.measure import PREFIXES

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
PAPER = "rethinking_opd"


def edited(folder: Path, part: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The shipped files of the first paper, with a change to its claims or figures."""
    for name in ("claims", "figures", "targets"):
        shutil.copytree(ROOT / "config" / name, folder / name)
    path = folder / part / f"{PAPER}.yaml"
    given = yaml.safe_load(path.read_text())
    change(given)
    path.write_text(yaml.safe_dump(given))
    return folder


def claim(given: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in given["claims"] if one["id"] == name)


def bounded(quantity: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    test = {"at_least": {"of": quantity, "value": 0.5}}
    return lambda given: claim(given, "E01-accuracy").update(test=test)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            bounded({"avg": "E01.compatibel"}),
            "claim E01-accuracy: unknown arm 'E01.compatibel'; did you mean 'E01.compatible'?",
        ),
        (bounded({"avg": "E10"}), "claim E01-accuracy: unknown arm 'E10'"),
        (
            bounded({"probe": "E11.succes", "value": "auroc"}),
            "claim E01-accuracy: unknown probe 'E11.succes'; did you mean 'E11.success'?",
        ),
        (
            bounded({"metric": "overlap_masss_student", "of": "E01.compatible"}),
            "claim E01-accuracy: unknown metric 'overlap_masss_student'; "
            "did you mean 'overlap_mass_student'?",
        ),
        (
            lambda given: claim(given, "E01-teachers")["published"][0].update(
                quantity={"avg": "E01.x"}
            ),
            "claim E01-teachers: unknown arm 'E01.x'",
        ),
        (
            lambda given: claim(given, "E01-accuracy").update(figure="fig99"),
            "claim E01-accuracy: unknown figure 'fig99'",
        ),
        (
            lambda given: claim(given, "E01-accuracy").update(experiment="E14"),
            "claim E01-accuracy: unknown experiment 'E14'; did you mean 'E1",
        ),
        (
            lambda given: given["experiments"].update(E99="What is not there"),
            "experiments: unknown experiment of claims 'E99'; did you mean 'E09'",
        ),
        (
            lambda given: given.update(arms=["E01.student"]),
            "rethinking_opd.yaml.arms: Input should be a valid dictionary; write title, exp",
        ),
        (lambda given: given["arms"].update({"E01.student": None}), "arms.E01.student: "),
        (lambda given: given["arms"].update({"E01 student": "x"}), "arms.E01 student: "),
    ],
)
def test_typos_in_claims(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        read_paper(PAPER, edited(tmp_path, "claims", change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("paper", ["rethinking_opd", "many_faces", "unmasking"])
def test_every_experiment_with_a_claim_has_a_title(paper: str) -> None:
    given = read_claims(ROOT / "config" / "claims" / f"{paper}.yaml")
    assert {claim["experiment"] for claim in given["claims"]} == given["experiments"].keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda given: given["fig17"]["series"][0].update(arm="E01.compatibel"),
            "figure fig17: unknown arm 'E01.compatibel'",
        ),
        (
            lambda given: given["fig02"]["levels"][0].update(arm="E01.teacher"),
            "figure fig02: unknown arm 'E01.teacher'",
        ),
        (
            lambda given: given["fig12"]["panels"][0]["series"][0].update(arm="E09.l7"),
            "figure fig12: unknown arm 'E09.l7'",
        ),
        (
            lambda given: given["fig11b"].update(series=[{"probe": "E10.a"}], published=[]),
            "figure fig11b: unknown probe 'E10.a'",
        ),
        (
            lambda given: given["fig02"]["metrics"][1].update(name="overlap"),
            "figure fig02: unknown metric 'overlap'; did you mean 'overlap_ratio'?",
        ),
        (
            lambda given: given["fig04"]["panels"][2]["quantity"].update(metric="overlap_raito"),
            "figure fig04: unknown metric 'overlap_raito'",
        ),
        (
            lambda given: given["fig02"]["published"][0].update(metric="overlap_rato"),
            "figure fig02: unknown metric 'overlap_rato'",
        ),
        (
            lambda given: given["fig03"]["published"][0].update(metric="aime24"),
            "figure fig03: unknown metric 'aime24'",
        ),
    ],
)
def test_typos_in_figures(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read_paper(PAPER, edited(tmp_path, "figures", change))


def mini(**changes: Any) -> dict[str, Any]:
    given = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    given = copy.deepcopy(given)  # no anchors: what is changed is changed once
    for section, names in changes.items():
        given[section] |= names
    return given


def shown(given: dict[str, Any]) -> None:
    config = resolve(given)
    exhibits(config, plan(config, {}), ROOT / "config")


def test_arms_of_a_config_are_the_papers() -> None:
    arm = {"label": "x", "model": "small"}
    with pytest.raises(
        UserError, match=re.escape("arms: unknown arm 'E04.succes'; did you mean 'E04.s")
    ):
        shown(mini(arms={"E04.succes": arm}))
    # Named by no claim and no figure, but known.
    assert "E05.union" in mini()["arms"]
    shown(mini())
    given = mini(arms={"E04.succes": arm}) | {"papers": [], "targets": ["headline"]}
    shown(given)  # nobody reads them


def told(**evaluation: Any) -> dict[str, Any]:
    """The miniature with an arm that is evaluated otherwise than the others."""
    given = mini()
    given["arms"]["E04.success"]["evaluation"] = "told"
    usual = given["protocols"]["four-samples"]
    given["protocols"]["told"] = {**usual, "template": "so: {question}"}
    benchmarks = given["evaluations"]["held-out"]["benchmarks"]
    given["evaluations"]["told"] = {"benchmarks": benchmarks, "protocol": "told", **evaluation}
    return given


def test_an_arm_may_be_evaluated_under_another_protocol() -> None:
    """With its base and teacher, beside the same model as another arm, evaluated as usual."""
    config = resolve(told() | {"experiments": "all"})
    made = exhibits(config, plan(config, {}), ROOT / "config")["claims"]
    folders = dict(zip(made.cfg["inputs"], made.inputs, strict=True))
    models = {"evaluations": "small-from-small-rl", "base": "small", "teacher": "small-rl"}
    for arm, evaluation in {"E04.success": "told", "E12.k16": "held-out"}.items():
        for role in made.cfg["arms"][arm].keys() & models.keys():
            (key,) = made.cfg["arms"][arm][role]
            assert folders[key] == f"evaluations/{evaluation}/{models[role]}/s0"
    assert models.keys() < made.cfg["arms"]["E04.success"].keys()
    assert "evaluations" in made.cfg["arms"]["E12.k16"]


@pytest.mark.parametrize(
    ("protocol", "evaluation"),
    [({"samples": 3}, {}), ({}, {"benchmarks": ["easy"]}), ({}, {"protocol": "greedy"})],
)
def test_an_arms_own_evaluation_asks_the_same_problems_as_often(
    protocol: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    given = told(**evaluation)
    given["protocols"]["told"] |= protocol
    said = "arms.E04.success.evaluation: 'told' has other benchmarks or samples than 'held-out'"
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        shown(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("average", "tables.headline.columns: no column 'average'"),
        ("recovary:medium", "no column 'recovary:medium'; did you mean 'recovery'?"),
        ("avg:midium", "unknown benchmark 'midium'; did you mean 'medium'?"),
        ({"column": "last", "label": "x"}, "column 'last' names no metric; write last:METRIC"),
        ("course:kl", "tables.headline.columns: unknown metric 'kl'"),
    ],
)
def test_columns_of_a_config_are_held_to_what_a_table_can_show(column: Any, said: str) -> None:
    given = mini()
    given["tables"]["headline"]["columns"] = ["avg:macro", column]
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        shown(given)
    assert "\n" not in str(caught.value)


def test_columns_of_a_config_are_held_to_what_each_row_s_run_logs() -> None:
    """A run of one teacher in the short form logs nothing of terms, whatever other runs do."""
    given = mini()
    given["models"]["summed"] = copy.deepcopy(given["models"]["small-from-small-rl"])
    run = given["models"]["summed"]["distill"]
    run["terms"] = [{"teacher": run.pop("teacher")}]
    row = {"label": "summed", "model": "summed", "base": "small"}
    table = {"title": "x", "evaluation": "held-out", "columns": ["course:term_0_token_share"]}
    given["tables"]["x"] = {**table, "rows": [row, {"label": "start", "model": "small"}]}
    shown(given)
    given["tables"]["x"]["rows"].append({**row, "label": "short", "model": "small-from-small-rl"})
    said = "tables.x.rows, 'short': unknown metric of small-from-small-rl 'term_0_token_share'"
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        shown(given)
    assert "\n" not in str(caught.value)


def test_benchmarks_of_a_configs_figures_are_those_of_its_evaluation() -> None:
    bars = {"title": "x", "kind": "bars", "evaluation": "held-out"}
    bars |= {"series": [{"label": "x", "model": "small"}], "benchmarks": ["macro", "easyy"]}
    with pytest.raises(
        UserError, match=re.escape("figures.x.benchmarks: unknown benchmark 'easyy'")
    ):
        shown(mini(figures={"x": bars}))


def test_probes_that_look_like_a_papers_are_held_to_it() -> None:
    probe = mini()["probes"]["E11.success"]
    shown(mini(probes={"outlook.other": probe, "mine": probe}))
    with pytest.raises(
        UserError, match=re.escape("probes: unknown probe 'E11.succes'; did you mean")
    ):
        shown(mini(probes={"E11.succes": probe}))


@pytest.mark.parametrize("name", ["mini", "pilot", "paper"])
def test_the_first_papers_names_say_what_they_are(name: str) -> None:
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    papers = {p: read_claims(ROOT / "config" / "claims" / f"{p}.yaml") for p in config["papers"]}
    assert config["arms"].keys() <= {arm for one in papers.values() for arm in one["arms"]}
    given = papers[PAPER]
    texts = [*given["arms"].values(), *given["probes"].values()]
    assert all(len(text) > 10 for text in texts) and len(set(texts)) == len(texts)
    assert {"E05.union", "E05.teacher"} <= given["arms"].keys()
    assert set(given["probes"]) == {"E10", "E11.success", "E11.failure"}


def test_metrics_are_those_that_training_logs() -> None:
    """``opd.losses.metrics`` imports torch, so that names stand a second time."""
    of_states = [*metrics.STATE, "entropy_gap_of_means_nats"]
    measured = {f"{prefix}{name}" for prefix in PREFIXES.values() for name in of_states}
    measured |= {*metrics.RESPONSE}
    assert measured <= {*METRICS}
    assert len(set(METRICS)) == len(METRICS)
    # What else is logged, as the trainers' sources name it.
    folder = ROOT / "src" / "opd" / "training"
    sources = "".join((folder / f"{name}.py").read_text() for name in ("distill", "grpo", "sft"))
    sources += (folder / "record.py").read_text()
    for name in {*METRICS} - measured:
        assert f'"{name}"' in sources, name
    assert {*LOGGED.values()} <= {*METRICS}


def test_checking_names_needs_neither_numpy_nor_torch() -> None:
    code = "import sys, opd.plan.outputs; sys.exit(bool({'numpy', 'torch'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The files of the third paper: every published row has its place, claims hold of its numbers and
can fail, and the plan is what the claims declare."""

import functools
import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from measurements import probe
from paper_switches import switch_arguments, switches

from opd.core.errors import UserError
from opd.evaluation.reader import Reader
from opd.plan import artifacts as plan
from opd.plan import hub_lock, outputs, show
from opd.plan.papers import read_paper
from opd.recipes.config import Config
from opd.recipes.resolve import merge, read, resolve
from opd.results import claim_spec, claims
from opd.results.estimate import Measurements
from opd.results.published import parse
from opd.results.quantity import Quantity
from opd.stages import artifact
from opd.stages.artifact import Artifact
from opd.stages.registry import STAGES

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
PAPER = read_paper("unmasking", CONFIG)
READINGS = (ROOT / "docs" / "readings-unmasking.md").read_text()
SWITCHES = switches(READINGS)
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
    # Only constants of the protocol are set aside, shares that are 100 % by definition, and what is
    # said of a question that is not named.
    aside.remove("U254")
    by_id = {row["id"]: row for row in ROWS}
    assert {by_id[id]["experiment_id"] for id in aside} == {"B0_protocol", "B4_oracle_selective"}
    assert all(by_id[id]["value"] == "1" for id in aside if by_id[id]["metric"] == "tokens kept")


def test_attached_rows_are_numbers_in_our_units() -> None:
    """Shares from 0 to 1, as the values are that they are held against."""
    by_id = {row["id"]: row for row in ROWS}
    said = [one for claim in PAPER.claims for one in claim.published]
    said += [one for figure in PAPER.figures.values() for one in figure.said()]
    assert len({one.target for one in said}) == 491
    for one in said:
        if one.quantity is None:
            assert one.untested
            continue
        number = parse(by_id[one.target]["value"])
        assert number is not None, by_id[one.target]
        if one.quantity.unit == "share":
            assert 0 <= number.low <= 1, by_id[one.target]


@functools.cache
def shipped(*settings: str, overlay: str | None = None) -> Config:
    """config/unmasking.yaml with what stands behind --config, and an overlay."""
    files = [f"{name}.yaml" for name in ("unmasking", overlay) if name]
    return read([CONFIG / name for name in files], settings)


def planned(config: Config) -> dict[str, Artifact]:
    """All that claims and figures are made from."""
    artifacts = plan.plan(config, {})
    shown = outputs.exhibits(config, artifacts, CONFIG)
    every = {**artifacts, **shown}
    wanted = outputs.targets(config, shown)
    return {folder: every[folder] for folder in artifact.closure(wanted, every) if folder in every}


def test_claims_are_told_from_those_of_other_papers() -> None:
    assert all(claim.id.startswith("UB-") for claim in PAPER.claims)
    ids = [claim.id for claim in PAPER.claims]
    assert len(ids) == len({*ids}) > 80


def identities(artifacts: dict[str, Artifact]) -> dict[str, str]:
    """What each artifact is made with, inputs of inputs included."""
    found: dict[str, str] = {}
    for folder in artifact.closure(artifacts, artifacts):
        if made := artifacts.get(folder):
            found[folder] = json.dumps([made.cfg, [found.get(one, one) for one in made.inputs]])
    return found


def test_every_reading_says_how_to_switch() -> None:
    rows = [line for line in READINGS.splitlines() if line.count("|") == 6]
    rows = [row for row in rows if not row.startswith(("| what", "| ---"))]
    assert len(SWITCHES) > 15
    assert len(SWITCHES) + sum(row.endswith("[none] |") for row in rows) == len(rows)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_reading_changes_what_is_run(switch: str) -> None:
    option, arguments = switch_arguments(switch)
    if option == "--configfile":
        config = read([ROOT / file for file in arguments])
    else:
        config = shipped(*arguments)
    assert identities(planned(config)) != identities(planned(shipped()))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_reading_can_be_costed(
    switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    option, arguments = switch_arguments(switch)
    files = arguments if option == "--configfile" else ["config/unmasking.yaml"]
    settings = [] if option == "--configfile" else arguments
    lines = [*show.lines([ROOT / file for file in files], [], settings=settings)]
    assert re.fullmatch(r"unmasking[a-z-]*: (\d+) of \1 jobs to run, on 1 x (H100|cpu)", lines[0])
    assert not [line for line in lines if line.startswith("not counted")]


def test_what_is_written_of_aime_is_what_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [CONFIG / f"{name}.yaml" for name in ("unmasking", "unmasking-aime")]
    (total,) = (line for line in show.lines(files, []) if line.startswith("in all"))
    low, high = re.findall(r"[\d,]+", total)[:2]
    written = " ".join((ROOT / "docs" / "microscope.md").read_text().split())
    assert f"{low} to {high} GPU-hours on H100 for all four" in written


def test_what_the_paper_gives_is_what_is_planned() -> None:
    given = re.findall(r"^\| `(\w+)\.(\w+)` \| .* \| (.+) \|$", READINGS, re.MULTILINE)
    assert len(given) > 10
    artifacts = planned(shipped())
    for stage, key, value in given:
        here = {made.cfg[key] for made in artifacts.values() if made.stage == stage}
        assert here == {yaml.safe_load(value)}, (stage, key)


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


# How the words of config/claims/unmasking.yaml say what a teacher is told: correct and wrong
# demonstrations, and whose. {} is the student.
TOLD = {
    "a correct response of its own in context": (1, 0, "{}"),
    "a correct and a wrong response of its own": (1, 1, "{}"),
    "a summary of a correct response": (1, 0, "{}, short"),
    "summaries of a correct and a wrong response": (1, 1, "{}, short"),
    "a correct response of Qwen3-32B": (1, 0, "Qwen3-32B"),
}


def made_of(artifacts: dict[str, Artifact], folder: str) -> str:
    """What an artifact is in the words of the claims: a model, or whose demonstrations."""
    made = artifacts[folder]
    if made.stage == "fetch":
        return str(made.cfg["hub"]).removeprefix("Qwen/")
    if made.stage == "summarise":
        assert made_of(artifacts, made.named["model"]) == "Qwen3-32B"
        return f"{made_of(artifacts, made.named['demonstrations'])}, short"
    assert made.stage == "demonstrate"
    return made_of(artifacts, made.named["model"])


def asked(artifacts: dict[str, Artifact], made: Artifact) -> str:
    """What a stage asks, in the words of the claims."""
    prompts = artifacts[made.named["prompts"]].cfg
    source = prompts["source"]
    if source["hub"] == "math-ai/aime25":
        assert source["difficulty"] == "id"
        low, high = (prompts["difficulty"][end] for end in ("at_least", "at_most"))
        assert low == high
        return f"AIME 2025, question {low:g}"
    return {"google/boolq": "BoolQ", "cais/mmlu": "MMLU"}[source["hub"]]


@pytest.mark.parametrize(
    ("overlay", "experiments", "counts", "least"),
    [(None, "U1 U2 U3 U4", "both", 20), ("unmasking-aime", "U5 U6 U7 U8", "whole", 40)],
)
def test_the_plan_is_what_the_claims_declare(
    overlay: str | None, experiments: str, counts: str, least: int
) -> None:
    config = shipped(overlay=overlay)
    artifacts = plan.plan(config, {})

    def of_experiments(names: Iterable[str]) -> set[str]:
        return {name for name in names if name.partition(".")[0] in experiments.split()}

    declared = PAPER.names["probes"]
    wanted = {name: declared[name] for name in of_experiments(declared)}
    assert of_experiments(config.probes) == {*wanted}
    aligned: dict[str, list[tuple[str, str]]] = {}
    for name, words in wanted.items():
        made = artifacts[f"probes/{name}/s0"]
        student, about = words.split(" on ", 1)
        if made.stage == "screening":
            assert made_of(artifacts, made.named["student"]) == student
            assert about == f"{asked(artifacts, made)}, pass rates with and without demonstrations"
            assert (made.cfg["samples"], made.cfg["temperature"]) == (32, 1.0)
        if made.stage != "alignment":
            continue
        about, _, teacher = about.partition(", taught by ")
        assert made_of(artifacts, made.named["student"]) == student
        assert asked(artifacts, made) == about
        assert (made.cfg["min_children_visits"], made.cfg["mode"]) == (least, "renormalise")
        assert "reading" not in made.cfg  # whole, the first of its tree
        told = made.cfg["teacher"]
        number = told["correct"], told["wrong"]
        if told["own"]:
            demonstrations = made_of(artifacts, made.named[f"demos:{told['name']}"])
            expected = TOLD[teacher.removeprefix("itself with ")]
            assert (*number, demonstrations) == (*expected[:2], expected[2].format(student))
        else:
            assert made_of(artifacts, made.named[f"teacher:{told['name']}"]) == teacher
            assert number == (0, 0)
        aligned.setdefault(made.named["tree"], []).append((name, teacher))
    # One tree for each student and question set, shared by its teachers.
    settings = {words.split(", taught")[0] for words in wanted.values() if ", taught" in words}
    assert len(aligned) == len(settings) == 4
    for folder, teachers in aligned.items():
        tree = artifacts[folder].cfg
        assert {name.partition(".")[2] for name, _ in teachers} == {
            teacher["name"] for teacher in tree["teachers"]
        }
        assert (tree["rollouts"], tree["tau"], tree["min_visits"]) == (200, 0.02, 100)
        assert (tree["correct_paths"], tree["incorrect_paths"]) == (2, 2)
        assert tree["counts"] == counts
    # The second reading has the same teachers of the same trees, and samples nothing.
    needed = planned(config)
    again = {(made.named["tree"], made.cfg["teacher"]["name"]) for made in second(needed)}
    first = {(folder, name.partition(".")[2]) for folder, n in aligned.items() for name, _ in n}
    assert again == (first if counts == "both" else set())
    sampled = {made.stage for made in needed.values() if STAGES[made.stage].samples}
    assert sampled == {"demonstrate", "summarise", "screening", "tree"}


def second(artifacts: dict[str, Artifact]) -> list[Artifact]:
    return [made for made in artifacts.values() if made.cfg.get("reading") == "unforced"]


def test_pools_are_of_what_they_say() -> None:
    artifacts = planned(shipped())
    for name, words in PAPER.names["probes"].items():
        made = artifacts.get(f"probes/{name}/s0")
        if made is None or made.stage != "pool":
            continue
        parts = [artifacts[folder] for folder in made.inputs]
        assert len({part.named["tree"] for part in parts}) == 1
        student, about = words.split(" on ", 1)
        assert made_of(artifacts, parts[0].named["student"]) == student
        told = [part.cfg["teacher"] for part in parts]
        assert about.startswith(asked(artifacts, parts[0]))
        if ", all eight teachers" in words:
            assert len({teacher["name"] for teacher in told}) == 8
            assert ("(ours)" in words) == all(part in second(artifacts) for part in parts)
        elif "three larger teachers" in words:
            assert [teacher["own"] for teacher in told] == [False] * 3
        else:
            assert "itself with a correct response alone" in words and len(told) == 3
            assert all((t["own"], t["correct"], t["wrong"]) == (True, 1, 0) for t in told)


@functools.cache
def published() -> dict[Quantity, float]:
    """The paper's numbers for the values of probes, and means of them for groups of teachers."""
    numbers: dict[Quantity, float] = {}
    by_id = {row["id"]: row["value"] for row in ROWS}
    said = [one for claim in PAPER.claims for one in claim.published]
    said += [one for figure in PAPER.figures.values() for one in figure.said()]
    for one in said:
        printed = parse(by_id[one.target])
        if one.quantity and printed:
            numbers.setdefault(one.quantity, (printed.low + printed.high) / 2)
    # Changes from the printed accuracies: two settings print others.
    for quantity, accuracy in [*numbers.items()]:
        context = quantity.name.removeprefix("accuracy_").removesuffix("_ratio")
        before = Quantity("probe", quantity.of, "accuracy_baseline_ratio")
        if quantity.name == f"accuracy_{context}_ratio" and before in numbers:
            change = Quantity("probe", quantity.of, f"change_{context}")
            numbers.setdefault(change, accuracy - numbers[before])
    # The paper compares contexts by their accuracies, whatever questions these are of.
    screenings = {quantity.of for quantity in numbers if quantity.of.endswith(".screening")}
    pairs = ("self_1c", "self_1c1w"), ("self_1c1w", "self_sum_1c1w")
    for probe_name, contexts in product(screenings, pairs):
        before, after = (
            Quantity("probe", probe_name, f"accuracy_{context}_ratio") for context in contexts
        )
        if before in numbers and after in numbers:
            paired = Quantity("probe", probe_name, f"change_{contexts[1]}_from_{contexts[0]}")
            numbers[paired] = numbers[after] - numbers[before]
    of = {name: shipped().probes[name].pool for name in shipped().probes}
    for name, group in of.items():
        for value in ("cosine", "weighted_cosine", "positive_ratio"):
            parts = [Quantity("probe", part, value) for part in group.of] if group else []
            if parts and all(part in numbers for part in parts):
                mean = sum(numbers[part] for part in parts) / len(parts)
                numbers.setdefault(Quantity("probe", name, value), mean)
    return numbers


def measured(folder: Path, numbers: dict[Quantity, float], noise: float) -> Measurements:
    """Probes that have these values, give or take the noise."""
    by_probe: dict[str, dict[str, float]] = {}
    for quantity, number in numbers.items():
        by_probe.setdefault(quantity.of, {})[quantity.name] = number
    rng, inputs = np.random.default_rng(0), {}
    for name, values in by_probe.items():
        drawn = {value: rng.normal(n, noise, 400).tolist() for value, n in values.items()}
        inputs[name] = probe(folder / name, {**values}, drawn)
    cfg = {"probes": {name: {"label": name, "runs": [name]} for name in inputs}, "resamples": 400}
    return Measurements(cfg, Reader(inputs))


def verdict(id: str, values: Measurements) -> str:
    """What becomes of a claim."""
    (claim,) = (claim for claim in PAPER.claims if claim.id == id)
    verdicts = [check.verdict for check in claims.checks(claim.test, values)]
    return max(verdicts, key=claims.VERDICTS.index)


def test_claims_hold_of_the_papers_own_numbers(tmp_path: Path) -> None:
    """But for those about numbers that it does not print."""
    values = measured(tmp_path, published(), 1e-5)
    found = {claim.id: verdict(claim.id, values) for claim in PAPER.claims}
    unprinted = {f"UB-U{n}-positive" for n in (2, 3, 4)}
    unprinted |= {f"UB-U{n}-incorrect-unforced" for n in (1, 2, 3, 4)}
    unprinted |= {"UB-U6-wrong-helps", "UB-U7-incorrect", "UB-U7-summary-best"}
    unprinted |= {claim.id for claim in PAPER.claims if claim.experiment == "U9"}
    assert {id for id, one in found.items() if one == "not run"} == unprinted
    assert {one for id, one in found.items() if id not in unprinted} == {"reproduced"}


@pytest.mark.parametrize(
    ("id", "numbers", "noise", "expected"),
    [
        # The signal grows by 0.04, and by less than twice.
        ("oracle", {"pooled": {"signal": 0.05, "signal_positive": 0.09}}, 1e-4, "not reproduced"),
        ("oracle", {"pooled": {"signal": 0.007, "signal_positive": 0.07}}, 5e-4, "reproduced"),
        # Of random scores: nothing to multiply.
        ("oracle", {"pooled": {"signal": 0.001, "signal_positive": 0.07}}, 1e-3, "inconclusive"),
        ("near-zero", {"pooled": {"cosine": 0.09}}, 0.01, "not reproduced"),
        ("near-zero", {"pooled": {"cosine": 0.0}}, 0.01, "inconclusive"),
        (
            "oracle-threshold",
            {"pooled": {"kept_positive_ratio": 0.52, "kept_above_ratio": 0.3}},
            0.01,
            "not reproduced",
        ),
        (
            "own-twice-external",
            {"own-right": {"cosine": 0.045}, "external": {"cosine": 0.035}},
            1e-3,
            "not reproduced",
        ),
        # With intervals as wide as the paper's, 0.022 to either side.
        (
            "own-twice-external",
            {"own-right": {"cosine": 0.045}, "external": {"cosine": 0.017}},
            0.011,
            "inconclusive",
        ),
        # Hard questions gain 0.55, more than the half that was asked for, and medium ones 0.6.
        (
            "hard",
            {
                "screening": {
                    "accuracy_baseline_hard_ratio": 0.1,
                    "accuracy_self_1c_hard_ratio": 0.65,
                    "accuracy_baseline_medium_ratio": 0.35,
                    "accuracy_self_1c_medium_ratio": 0.95,
                    "accuracy_baseline_easy_ratio": 0.9,
                    "accuracy_self_1c_easy_ratio": 1.0,
                }
            },
            1e-3,
            "not reproduced",
        ),
        (
            "summaries",
            {
                "screening": {
                    "change_self_1c": 0.2,
                    "change_self_sum_1c": 0.05,
                    "change_self_sum_1c1w_from_self_1c1w": 0.2,
                }
            },
            1e-3,
            "not reproduced",
        ),
    ],
)
def test_claims_can_fail(
    tmp_path: Path, id: str, numbers: dict[str, dict[str, float]], noise: float, expected: str
) -> None:
    given = {
        Quantity("probe", f"U1.{name}", value): number
        for name, values in numbers.items()
        for value, number in values.items()
    }
    assert verdict(f"UB-U1-{id}", measured(tmp_path, given, noise)) == expected


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

"""The second paper: its rows, its claims on hand-made results, and config/many-faces.yaml."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from measurements import evaluation, probe, run
from paper_switches import switch_arguments, switches, tables

from opd.core.files import digest
from opd.data import privileged
from opd.plan import outputs
from opd.plan.artifacts import plan
from opd.plan.papers import Paper, read_paper
from opd.probes import prefix
from opd.recipes.config import Config
from opd.recipes.losses import Context
from opd.recipes.resolve import merge, read, resolve
from opd.results import claims
from opd.results.claim_spec import needs, read_claims
from opd.stages.artifact import Artifact, closure
from opd.stats import draws

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
PAPER = "many_faces"
PAGE = (ROOT / "docs" / "many-faces.md").read_text()


def rows() -> list[dict[str, str]]:
    with (CONFIG / "targets" / f"{PAPER}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_belongs_to_a_claim_or_a_figure_or_is_set_aside_with_a_reason() -> None:
    paper = read_paper(PAPER, CONFIG)
    ids = [row["id"] for row in rows()]
    assert ids == [f"M{n:03d}" for n in range(1, 144)]
    shown = {t for figure in paper.figures.values() for t in figure.targets()}
    claimed = {t for claim in paper.claims for t in claim.targets()}
    aside = {
        target for one in read_claims(paper.files["claims"])["context"] for target in one["targets"]
    }
    assert claimed | shown | aside == set(ids) and not aside & (claimed | shown)
    # What is no setting and no definition is measured, but for a count of words in one text.
    measured = {row["id"] for row in rows() if row["experiment_id"] not in ("HP", "REPO")}
    protocol = {"M040", "M041", "M042", "M043"}
    assert measured - claimed == {"M017"} | protocol


def judged(tmp_path: Path, cfg: dict[str, Any], inputs: dict[str, Path]) -> dict[str, Any]:
    """claims.json of the paper's own claims."""
    given = {"scale": "t", "comparable": True, "seeds": [0], "arms": {}, "probes": {}}
    files = {f"claims:{PAPER}": CONFIG / "claims" / f"{PAPER}.yaml"}
    files |= {f"targets:{PAPER}": CONFIG / "targets" / f"{PAPER}.csv"}
    out = tmp_path / "claims"
    out.mkdir()
    claims.run({**given, "figures": {}, "marked": {}, **cfg}, {**inputs, **files}, out)
    found: dict[str, Any] = json.loads((out / "claims.json").read_text())
    return found


def payload(folder: Path, values: dict[str, draws.Value]) -> Path:
    folder.mkdir(parents=True)
    draws.write(folder, values, {})
    return folder


def test_the_papers_prefix_test_beside_its_rows(tmp_path: Path) -> None:
    """Its 198 questions, as it counts them: every claim holds, every number agrees; all other rows
    are listed as not measured, words or context."""
    alone = np.arange(198) < 123
    after = (np.arange(198) < 83) | ((np.arange(198) >= 123) & (np.arange(198) < 131))
    found = prefix.summarise(
        [f"q{i}" for i in range(198)],
        {
            "alone": [("7" if i >= 3 else None, bool(right)) for i, right in enumerate(alone)],
            "prefix": [("7" if i >= 42 else None, bool(right)) for i, right in enumerate(after)],
        },
    )
    made = payload(tmp_path / "a6", found)
    cfg = {"probes": {"A6": {"label": "the teacher", "runs": ["probe:A6:s0"]}}}
    assert found["lost"].value > 0.1
    assert found["right_wrong"].value > found["wrong_right"].value
    report = judged(tmp_path, cfg, {"probe:A6:s0": made})
    verdicts = {one["id"]: one["verdict"] for one in report["claims"]}
    ours = {one["id"] for one in report["claims"] if one["ours"]}
    # The mass that a collapse takes off the top tokens is ours, and a direction of the signal.
    others = {"A2-mass", "A2b-mass", "A8-mass", "A12-identity"}
    assert ours == others | {name for name in verdicts if name.startswith("MF-")}
    assert sum(report["counts"].values()) == len(verdicts) - len(ours)
    assert {name: v for name, v in verdicts.items() if name.startswith("A6")} == {
        "A6-drop": "reproduced",
        "A6-transitions": "reproduced",
        "A6-format": "reproduced",
    }
    assert {v for name, v in verdicts.items() if not name.startswith("A6")} == {"not run"}
    status = {row["id"]: row["status"] for row in report["targets"]}
    assert len(status) == 143
    assert {status[f"M{n:03d}"] for n in range(1, 9)} == {"agrees"}
    rest = {status[f"M{n:03d}"] for n in range(9, 144)}
    assert rest == {"not measured", "words only", "context"}


@pytest.mark.parametrize(
    ("tokens", "right", "verdict"),
    [
        (60, [4, 3, 4, 2], "reproduced"),  # shorter, and as good
        (95, [4, 3, 4, 2], "not reproduced"),  # as long
        (60, [1, 0, 0, 0], "not reproduced"),  # shorter, and worse
    ],
)
def test_compression_is_a_shorter_response_of_the_same_accuracy(
    tmp_path: Path, tokens: int, right: list[int], verdict: str
) -> None:
    before, after = [4, 3, 4, 2] * 60, right * 60
    inputs = {
        "e:base": evaluation(tmp_path / "base", {"easy": before}, tokens=100),
        "e:after": evaluation(tmp_path / "after", {"easy": after}, tokens=tokens),
        "e:grpo": evaluation(tmp_path / "grpo", {"easy": after}, tokens=80),
    }
    arm = {"label": "a", "evaluations": ["e:after"], "base": ["e:base"]}
    arms = {"A4.opsd": arm, "A4.grpo": {**arm, "label": "b", "evaluations": ["e:grpo"]}}
    report = judged(tmp_path, {"arms": arms}, inputs)
    found = {one["id"]: one["verdict"] for one in report["claims"]}
    assert found["A4-shorter"] == verdict
    assert found["A4-efficient"] == ("reproduced" if tokens < 80 else "not reproduced")


@pytest.mark.parametrize(
    ("claim", "values", "verdict"),
    [
        # The difference itself, which is below zero, and not its size alone.
        *(
            (
                "A12-early",
                {
                    "A12.none": {
                        "size_early_all_nats": 0.5,
                        "size_late_all_nats": 0.2,
                        "log_ratio_early_all_nats": early,
                        "log_ratio_late_all_nats": late,
                    }
                },
                said,
            )
            for early, late, said in ((-0.3, -0.1, "reproduced"), (-0.1, -0.3, "not reproduced"))
        ),
        # What it is told, and who it is.
        *(
            (claim, {f"A12.{name}": {"size_all_nats": size} for name, size in sizes.items()}, said)
            for claim, sizes, said in (
                ("A12-information", {"none": 0.5, "answer": 0.53, "full": 0.46}, "reproduced"),
                ("A12-information", {"none": 0.5, "answer": 0.53, "full": 0.6}, "not reproduced"),
                ("A12-identity", {"none": 0.5, "other": 0.4}, "reproduced"),
                ("A12-identity", {"none": 0.5, "other": 0.46}, "not reproduced"),
                ("A12-identity", {"none": 0.5, "other": 0.6}, "not reproduced"),
            )
        ),
        # A student is as good as its teacher that is told the rules, or hardly better.
        *(
            (
                "A5-judged-capped",
                {"A5.teacher": {"passed_at_least": 0.7}, "A5.opsd": {"passed_at_most": passed}},
                said,
            )
            for passed, said in (
                (0.5, "reproduced"),
                (0.72, "reproduced"),
                (0.74, "not reproduced"),
            )
        ),
        *(
            ("A15-tags", {"A15.before": {"passed": 0.1}, "A15.after": {"passed": after}}, said)
            for after, said in ((0.2, "reproduced"), (0.1, "not reproduced"))
        ),
    ],
)
def test_claims_of_probes_say_what_they_test(
    tmp_path: Path, claim: str, values: dict[str, dict[str, float]], verdict: str
) -> None:
    inputs = {f"probe:{name}:s0": probe(tmp_path / name, v, {}) for name, v in values.items()}
    probes = {name: {"label": name, "runs": [f"probe:{name}:s0"]} for name in values}
    report = judged(tmp_path, {"probes": probes}, inputs)
    assert {c["id"]: c["verdict"] for c in report["claims"]}[claim] == verdict


@pytest.mark.parametrize(
    ("teacher", "student", "verdict"),
    [(3, 3, "reproduced"), (3, 1, "reproduced"), (1, 3, "not reproduced")],
)
def test_a_student_of_a_rule_is_capped_by_its_teacher(
    tmp_path: Path, teacher: int, student: int, verdict: str
) -> None:
    """Of each problem so many of four samples are right."""
    rights = {"A5.teacher": teacher, "A5.opsd": student}
    inputs = {f"e:{n}": evaluation(tmp_path / n, {"easy": [k] * 200}) for n, k in rights.items()}
    arms = {name: {"label": name, "evaluations": [f"e:{name}"]} for name in rights}
    report = judged(tmp_path, {"arms": arms}, inputs)
    assert {c["id"]: c["verdict"] for c in report["claims"]}["A5-capped"] == verdict


@pytest.mark.parametrize(
    ("tokens", "boxes", "verdict"),
    [(40.0, 0.3, "reproduced"), (60.0, 0.3, "not reproduced"), (40.0, 0.0, "not reproduced")],
)
def test_skipping_is_a_box_alone_and_half_the_length(
    tmp_path: Path, tokens: float, boxes: float, verdict: str
) -> None:
    course = {1: 100.0} | dict.fromkeys(range(2, 21), tokens)
    inputs = {"r": run(tmp_path / "r", response_tokens=course)}
    for name, passed in {"A16.before": 0.0, "A16.after": boxes}.items():
        inputs[name] = probe(tmp_path / name, {"passed": passed}, {})
    cfg = {
        "arms": {"A16.answer": {"label": "told the answer", "run": ["r"]}},
        "probes": {name: {"label": name, "runs": [name]} for name in ("A16.before", "A16.after")},
    }
    report = judged(tmp_path, cfg, inputs)
    assert {c["id"]: c["verdict"] for c in report["claims"]}["A16-skips"] == verdict


def load(*names: str) -> Config:
    raw: dict[str, Any] = {}
    for name in names:
        raw = merge(raw, yaml.safe_load((CONFIG / f"{name}.yaml").read_text()))
    return resolve(raw)


@pytest.fixture(scope="module")
def config() -> Config:
    return load("many-faces")


@pytest.fixture(scope="module")
def planned(config: Config) -> dict[str, Artifact]:
    return plan(config, {})


def test_table_1_is_in_the_settings_of_every_run(config, planned):
    """And so in its manifest, which holds what the stage was given."""
    table1 = {
        "prompts_per_step": 64,
        "rollouts_per_prompt": 1,
        "max_new_tokens": 4096,
        "temperature": 1.0,
        "top_p": 0.95,
        "lr": 2e-6,
        "schedule": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
    }
    runs = {
        f: one.cfg for f, one in planned.items() if one.stage == "distill" and "safety" not in f
    }
    taught = {arm.model for arm in config.arms.values() if config.models[arm.model].distill}
    assert {*runs} == {f"models/{name}/s0" for name in taught}
    for cfg in runs.values():
        assert {key: cfg[key] for key in table1} == table1
        assert cfg["steps"] == 1000 and "seed" in cfg and "code" in cfg
    # What is told, by arm: Fig. 3 and Fig. 10.
    told = {
        arm: planned[f"models/{config.arms[arm].model}/s0"].cfg.get("information")
        for arm in ("A1.answer", "A1.full", "A7.none", "A7.answer", "A7.full")
    }
    assert told["A7.none"] is None
    assert told["A1.answer"] == told["A7.answer"] and "{answer}" in str(told["A1.answer"])
    assert told["A1.full"] == told["A7.full"] and "{solution}" in str(told["A1.full"])
    grpo = planned["models/q1.7b-grpo/s0"].cfg
    given = {"prompts_per_step": 32, "group_size": 8, "max_new_tokens": 8192, "steps": 200}
    assert {key: grpo[key] for key in given} == given
    assert {key: grpo[key] for key in ("lr", "top_p", "warmup")} == {
        "lr": 2e-6,
        "top_p": 0.95,
        "warmup": 0.1,
    }
    # As its code averages tokens, which the first paper's does otherwise.
    by_rollout = {f for f, made in planned.items() if made.stage == "grpo"}
    assert len(by_rollout) == 3
    for key, value in {"aggregation": "sequence_mean", "clip": 0.2, "clip_high": 0.28}.items():
        assert {planned[f].cfg[key] for f in by_rollout} == {value}


def test_settings_that_its_scripts_alone_state(planned):
    """run-qwen3-1.7B-sft-openthoughts_math.sh for what App. A.23 does not say; the teacher that was
    told solutions by run-qwen3-1.7B-opsd_grpo-openthoughts_privileged_grpo.sh, whose checkpoint
    "step99" is the one after 100 batches, with the learning rate still rising."""
    sft = planned["models/q1.7b-sft/s0"].cfg
    scripted = {"batch_size": 128, "warmup": 0.1, "weight_decay": 0.1, "adam_beta2": 0.98}
    printed = {"epochs": 2, "lr": 1e-5, "schedule": "cosine"}
    assert {key: sft[key] for key in scripted | printed} == scripted | printed
    told = planned["models/q1.7b-pi-grpo/s0"].cfg
    wanted = {"prompts_per_step": 16, "group_size": 8, "updates_per_batch": 8, "steps": 100}
    wanted |= {"lr": 1e-6, "schedule": "constant", "warmup": 1.0, "max_new_tokens": 8192}
    assert {key: told[key] for key in wanted} == wanted
    assert "top_p" not in told


def run_of(config: Config, planned: dict[str, Artifact], arm: str) -> Artifact:
    return planned[f"models/{config.arms[arm].model}/s0"]


def test_losses_of_the_comparisons(config, planned):
    """The unnormalised loss is that of the authors' code; as it is printed it stands beside."""
    losses = {
        arm: run_of(config, planned, arm).cfg["loss"]
        for arm in config.arms
        if arm.partition(".")[0] in ("A2", "A2b", "A8", "A9")
    }
    assert losses == {
        "A2.biased": {"preset": "student_filled", "k": 20},
        "A2.printed": {"preset": "biased_topk", "k": 20},
        "A2b.k5": {"preset": "student_filled", "k": 5},
        "A2b.k20": {"preset": "student_filled", "k": 20},
        "A2b.printed": {"preset": "biased_topk", "k": 5},
        "A8.biased": {"preset": "student_filled", "k": 5},
        "A8.printed": {"preset": "biased_topk", "k": 5},
        "A8.stop_gradient": {"preset": "stop_gradient_topk", "k": 5},
        "A8.renormalised": {"preset": "renormalised_topk", "k": 5},
        "A9.biased": {"preset": "student_filled", "k": 1},
        "A9.printed": {"preset": "biased_topk", "k": 1},
        "A9.stop_gradient": {"preset": "stop_gradient_topk", "k": 1},
        "A9.sampled": {"preset": "sampled"},
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A2.biased", "A2.printed"),
        ("A2b.k5", "A2b.k20"),
        ("A8.biased", "A8.printed"),
        ("A8.biased", "A8.stop_gradient"),
        ("A8.biased", "A8.renormalised"),
        ("A9.biased", "A9.printed"),
        ("A9.biased", "A9.stop_gradient"),
        ("A9.biased", "A9.sampled"),
    ],
)
def test_arms_that_a_claim_compares_differ_in_their_loss_alone(config, planned, one, other):
    ours, theirs = (run_of(config, planned, arm) for arm in (one, other))
    assert ours.inputs == theirs.inputs and ours.cfg["loss"] != theirs.cfg["loss"]
    apart = {"loss", "metrics_k"} if one == "A2b.k5" else {"loss"}
    assert {key for key in ours.cfg if ours.cfg[key] != theirs.cfg[key]} == apart


def test_a_run_is_measured_at_the_k_of_its_loss(planned):
    """As every script has it (--opd-token-stats-topk is --opd-topk); that of the sampled token says
    1 (run-qwen3-1.7B-1.7bgrpoteacher-opd_noanswer_dapo_rebustness.sh:20,24). Else the mass that a
    loss drives off its top 5 would still be among the 20 that are measured."""
    runs = [made.cfg for made in planned.values() if made.stage == "distill"]
    ks = {cfg["loss"].get("k") for cfg in runs}
    assert ks == {1, 5, 20, None}
    for cfg in runs:
        k = {"sampled": 1, "full": 20}.get(cfg["loss"]["preset"], cfg["loss"].get("k"))
        assert cfg["metrics_k"] == k


def test_all_that_samples_while_it_trains_shuffles(planned):
    on_policy = [made.cfg for made in planned.values() if made.stage in ("distill", "grpo")]
    assert all(cfg["shuffle"] is True for cfg in on_policy)


def test_a_reinforced_model_is_handed_on_as_a_teacher(planned):
    """Its checkpoint is the second input; the one that was told solutions while it was reinforced
    is told them again when it teaches."""
    for name in ("k5-student_filled", "k1-stop_gradient_topk", "sampled", "from-grpo"):
        assert planned[f"models/{name}/s0"].inputs[1] == "models/q1.7b-grpo/s0"
    teacher, student = planned["models/q1.7b-pi-grpo/s0"], planned["models/self-adapted/s0"]
    assert student.inputs[1] == teacher.folder
    assert teacher.cfg["information"] == student.cfg["information"]
    assert planned["models/self-full/s0"].inputs[:2] == ("models/q1.7b", "models/q1.7b")


def test_fine_tuning_and_distillation_share_no_question(config, planned):
    """In A11, as App. A.23 has it. Every other run on OpenThoughts takes all of it, as the scripts
    do: none gives filter_openthoughts_math.py its --max-samples."""
    rest = planned["prompts/openthoughts-rest"]
    assert rest.inputs == ("prompts/openthoughts", "prompts/openthoughts-sft")
    assert rest.cfg["apart_from"] == "question"
    traces = planned["sft_data/openthoughts-traces/s0"]
    assert traces.cfg["correct"] == "only" and "boxed" in traces.cfg["rules"]
    assert planned["models/q1.7b-sft/s0"].inputs == ("models/q1.7b-base", traces.folder)
    assert planned["models/sft-from-4b/s0"].inputs[0] == "models/q1.7b-sft/s0"
    on = {
        arm: run_of(config, planned, arm).inputs[-1]
        for arm, given in config.arms.items()
        if config.models[given.model].distill
    }
    apart = {"A11.with", "A11.without"}
    assert {on[arm] for arm in apart} == {"prompts/openthoughts-rest"}
    others = {prompts for arm, prompts in on.items() if arm not in apart}
    assert others == {"prompts/openthoughts", "prompts/dapo"}
    assert planned["models/q1.7b-pi-grpo/s0"].inputs[1] == "prompts/openthoughts"


def test_who_thinks(config, planned):
    """The runs of A4; and the teacher of A15, whose student does not."""
    a4 = {config.arms[f"A4.{name}"].model for name in ("opsd", "grpo")} | {"q8b-thinking"}
    for folder, one in planned.items():
        if one.stage in ("distill", "grpo", "sft", "evaluate") and "judge" not in folder:
            model = folder.split("/")[-2].partition("@")[0]
            assert one.cfg["chat_template_kwargs"] == {"enable_thinking": model in a4}
            teacher = one.cfg.get("teacher_chat_template_kwargs")
            is_a15 = one.stage == "distill" and model == config.arms["A15.thinks"].model
            assert teacher == ({"enable_thinking": True} if is_a15 else None)
            assert one.cfg.get("thinking_may_differ") == (True if is_a15 else None)


def test_the_teacher_of_the_safety_rules_is_judged_as_it_is_asked(planned):
    told = planned["prompts/wildguard-test-told"].cfg["template"]
    assert told.replace("{question}", "{prompt}") == privileged.CONTEXTS["safety"]["message"]
    assert planned["models/safety-opsd/s0"].cfg["information"] == [privileged.CONTEXTS["safety"]]
    probes = [planned[f"probes/A5.{name}/s0"] for name in ("teacher", "student", "opsd")]
    assert len({(probe.cfg["rules"], probe.inputs[1]) for probe in probes}) == 1
    assert {probe.cfg["rules"] in told for probe in probes} == {True}
    assert planned["generations/safety-teacher/s0"].inputs == (
        "models/q1.7b",
        "prompts/wildguard-test-told",
    )


def test_rankings_under_a_short_limit_and_early(config, planned):
    """A17: three tables of the same runs, of which one differs in its limit, one in the step."""
    end, short, early = (config.tables[name] for name in ("end", "short", "early"))
    models = [row.model for row in end.rows]
    assert [row.model for row in short.rows] == models
    assert [row.model for row in early.rows] == [models[0], *(f"{m}@100" for m in models[1:])]
    assert [row.label for row in early.rows] == [row.label for row in end.rows]
    protocols = [
        planned[f"evaluations/{table.evaluation}/{models[1]}/s0"].cfg["protocol"]
        for table in (end, short, early)
    ]
    assert protocols[0] == protocols[2] == {**protocols[1], "max_new_tokens": 16384}
    assert protocols[1]["max_new_tokens"] == 3072


def complete(paper: Paper, config: Config) -> list[str]:
    """Claims of which a config has every arm and probe."""

    def here(role: str, name: str) -> bool:
        return name in (config.probes if role == "probe" else config.arms)

    return [claim.id for claim in paper.claims if all(here(*need) for need in needs(claim))]


# What cannot be run at the published size, and why: see the head of config/many-faces.yaml.
ABSENT = {"A3", "A14"}
NO_REWARD = {"A5-faster", "A5-rule", "A5-capped", "A5-judged-grpo"}


def test_what_is_not_here_is_said_in_the_file(config):
    paper = read_paper(PAPER, CONFIG)
    ran = {*complete(paper, config), *complete(paper, load("many-faces", "many-faces-science"))}
    missing = [claim for claim in paper.claims if claim.id not in ran]
    assert {claim.id for claim in missing if claim.experiment not in {*ABSENT, "MF"}} == NO_REWARD
    assert {claim.experiment for claim in missing} - {"A5", "MF"} == ABSENT
    assert all(claim.ours for claim in missing if claim.experiment == "MF")
    head = (CONFIG / "many-faces.yaml").read_text().partition("name:")[0]
    assert all(f"{name} (" in head for name in ABSENT) and "GRPO on a safety reward" in head
    # Every arm and probe of the file is one of a claim that has all it needs, or drawn; but for a
    # base, and for a run of which what it writes is counted.
    asked = {n for claim in paper.claims if claim.id in ran for _, n in needs(claim)}
    drawn = {series.of for figure in paper.figures.values() for series in figure.drawn()}
    assert {*config.arms, *config.probes} - (asked | drawn) == {"A1.student", "A15.thinks"}


def evaluated(config: Config, paper: Paper) -> set[str]:
    """The evaluations that arms, drawn curves and tables ask for, read off the files."""
    wanted = set()
    roles = {"evaluations": "model", "base": "base", "teacher": "teacher"}
    for role, name in {need for claim in paper.claims for need in needs(claim)}:
        if name in config.arms and role in roles:
            wanted.add((config.evaluation, getattr(config.arms[name], roles[role])))
    for figure in paper.figures.values():
        wanted |= {
            (config.evaluation, config.arms[level.of].model)
            for level in figure.levels
            if level.of in config.arms
        }
        for arm in (config.arms[s.of] for s in figure.drawn() if s.of in config.arms):
            if figure.kind == "curves" and any(m.name.startswith("avg:") for m in figure.metrics):
                run = config.models[arm.model].trained
                assert run is not None and run.steps is not None
                steps = [step for step in run.keep_steps if 0 < step < run.steps]
                wanted |= {(config.evaluation, f"{arm.model}@{step}") for step in steps}
                wanted |= {(config.evaluation, arm.model), (config.evaluation, run.student)}
            for quantity in figure.quantities(arm.model):
                models = [getattr(arm, roles[role]) for role in quantity.inputs if role in roles]
                wanted |= {(config.evaluation, model) for model in models if model}
    for table in config.tables.values():
        named = {m for row in table.rows for m in (row.model, row.base, row.teacher) if m}
        wanted |= {(table.evaluation, model) for model in named}
    return {f"evaluations/{evaluation}/{model}/s0" for evaluation, model in wanted if model}


@pytest.mark.parametrize("science", [False, True])
def test_the_plan_is_what_arms_probes_and_tables_ask_for(config, science):
    """Every training run is an arm's, or makes a student or teacher of one; every evaluation is
    asked for by a claim, a curve or a table; nothing else is made, and no recipe is idle."""
    paper = read_paper(PAPER, CONFIG)
    if science:
        config = load("many-faces", "many-faces-science")
        arms = {n: arm for n, arm in config.arms.items() if n.startswith("A13.")}
        config = config.model_copy(update={"arms": arms, "probes": {}, "tables": {}})
    made, planned = shown(config), plan(config, {})
    trained = {f"models/{name}/s0" for name, model in config.models.items() if model.trained}
    named = {arm.model for arm in config.arms.values()}
    if not science:
        named |= {generation.model for generation in config.generations.values()}
    behind = closure({f"models/{name}/s0" for name in named} & trained, planned)
    runs = {folder for folder in made if folder in trained}
    assert runs == {folder for folder in behind if folder in trained}
    assert science or runs == trained
    assert {f for f in made if f.startswith("evaluations/")} == evaluated(config, paper)
    assert {f for f in made if f.startswith("probes/")} == {
        f"probes/{name}/s0" for name in config.probes
    }


def test_science_is_trained_and_tested_on_sets_of_its_own():
    config = load("many-faces", "many-faces-science")
    planned = plan(config, {})
    run = planned[f"models/{config.arms['A13.opd'].model}/s0"]
    assert run.inputs == ("models/q1.7b", "models/q8b", "prompts/science")
    source = planned["prompts/science"].cfg["source"]
    assert (source["hub"], source["config"]) == ("open-r1/Mixture-of-Thoughts", "science")
    made = shown(config)
    assert {f for f in made if f.startswith("figures/")} == {f"figures/{PAPER}/mf19"}
    tasks = {
        one["task"]
        for f in made
        if f.startswith("evaluations/science/")
        for one in planned[f].cfg["benchmarks"]
    }
    assert tasks == {"opd_gpqa_diamond", "opd_mmlu_pro"}


def identities(config: Config) -> dict[str, str]:
    """What everything that is shown is made with, inputs of inputs included."""
    made = plan(config, {})
    made |= outputs.exhibits(config, made, CONFIG)
    found: dict[str, str] = {}
    for folder in closure(outputs.targets(config, made), made):
        inputs = [found.get(one, one) for one in made[folder].inputs]
        found[folder] = digest([made[folder].cfg, inputs])
    return found


@pytest.fixture(scope="module")
def unswitched(config: Config) -> dict[str, str]:
    return identities(config)


def test_every_row_says_how_to_switch() -> None:
    rows = [row for table in tables(PAGE) for row in table.splitlines()]
    assert len(tables(PAGE)) == PAGE.count("| to switch |") and len(switches(PAGE)) > 20
    assert len(switches(PAGE)) + sum(row.endswith("[none] |") for row in rows) == len(rows)


@pytest.mark.parametrize("switch", switches(PAGE))
def test_a_switch_to_another_reading_plans_and_changes_what_is_shown(switch, config, unswitched):
    option, arguments = switch_arguments(switch)
    files = ["config/many-faces.yaml"]
    if option == "--configfile":
        files, arguments = arguments, []
    switched = read([ROOT / file for file in files], arguments)
    changed = {f: one for f, one in identities(switched).items() if unswitched.get(f) != one}
    assert {made.partition("/")[0] for made in changed} - {"report", "claims"}


def shown(config: Config) -> set[str]:
    made = plan(config, {})
    made |= outputs.exhibits(config, made, CONFIG)
    return set(closure(outputs.targets(config, made), made))


def test_the_miniature_has_the_headline_and_all_of_it_the_rest():
    mini, whole = shown(load("mini")), shown(load("mini", "mini-all"))
    headline = {"models/told-rule/s0", "models/told-instance/s0", "probes/A6/s0"}
    assert headline < mini
    rest = {"models/told-contexts/s0", "models/told-from-rl-full/s0", "probes/A12.full/s2"}
    assert headline | rest < whole and not rest & mini
    figures = {f"figures/{PAPER}/{name}" for name in ("mf08", "what_is_told")}
    assert figures == {f for f in mini if f.startswith(f"figures/{PAPER}/")}
    more = ("03", "04", "07", "10", "11", "12", "13", "14", "15", "16", "17", "18")
    assert {f"figures/{PAPER}/mf{n}" for n in more} < whole
    config = load("mini", "mini-all")
    experiments = {name.partition(".")[0] for name in config.arms}
    assert {"A1", "A2", "A5", "A7", "A8", "A9", "A10", "A11", "MF"} < experiments
    # The unnormalised loss as the code has it, and as it is printed.
    for arm, preset in {"biased": "student_filled", "printed": "biased_topk"}.items():
        for experiment in ("A2", "A8", "A9"):
            run = config.models[config.arms[f"{experiment}.{arm}"].model].distill
            assert run is not None and run.loss.preset == preset
    # The teacher of the rule is asked as it is while it teaches.
    teacher = plan(config, {})["evaluations/told-the-rule/told/s0"].cfg
    told = config.models["told-rule"].distill
    assert told is not None and isinstance(told.information, Context)
    assert teacher["protocol"]["template"] == told.information.message
    assert config.arms["A5.teacher"].evaluation == "told-the-rule"


def test_the_pilot_has_the_prefix_test_and_a_model_that_teaches_itself(monkeypatch):
    raw = yaml.safe_load((CONFIG / "pilot.yaml").read_text())
    config = resolve(raw)
    assert config.arms["A4.opsd"].model == "from-prompted"
    recipe = config.models["from-prompted"].distill
    assert recipe is not None and recipe.student == recipe.teacher == "smollm2"
    assert config.probes["A6"].prefix is not None

"""The second paper: its rows, its claims on hand-made results, and config/many-faces.yaml."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from measurements import evaluation

from opd.plan import outputs
from opd.plan.artifacts import plan
from opd.plan.papers import read_paper
from opd.probes import prefix
from opd.recipes.config import Config
from opd.recipes.resolve import merge, resolve
from opd.results import claims
from opd.results.claim_spec import needs, read_claims
from opd.stages.artifact import Artifact, closure
from opd.stats import draws

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
PAPER = "many_faces"


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
    # What is no setting and no definition is measured, but for two that are said of single texts.
    measured = {row["id"] for row in rows() if row["experiment_id"] not in ("HP", "REPO")}
    protocol = {"M040", "M041", "M042", "M043"}
    assert measured - claimed == {"M017", "M062"} | protocol


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
    assert ours == {name for name in verdicts if name.startswith("MF-")}
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


def test_only_the_thinking_run_thinks(planned):
    for folder, one in planned.items():
        if one.stage in ("distill", "grpo", "sft", "evaluate"):
            thinks = "concise" in folder or "q8b-thinking" in folder
            if "judge" not in folder:
                assert one.cfg["chat_template_kwargs"] == {"enable_thinking": thinks}
            assert "teacher_chat_template_kwargs" not in one.cfg


def test_what_is_not_here_is_said_in_the_file(config):
    paper = read_paper(PAPER, CONFIG)
    here = {name.partition(".")[0] for name in (*config.arms, *config.probes)}
    wanted = {claim.experiment for claim in paper.claims}
    assert wanted - here == {"A3", "A13", "A14", "MF"}
    assert "A3" in (CONFIG / "many-faces.yaml").read_text().partition("name:")[0]
    # What is sampled and judged here is asked for by a claim that has all it needs.
    complete = [
        c for c in paper.claims if {n for _, n in needs(c)} <= {*config.arms, *config.probes}
    ]
    read = {name for claim in complete for _, name in needs(claim)}
    assert {*config.probes} - read == {"A12.other"}


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
    experiments = {name.partition(".")[0] for name in load("mini", "mini-all").arms}
    assert {"A1", "A2", "A5", "A7", "A8", "A9", "A10", "A11", "MF"} < experiments


def test_the_pilot_has_the_prefix_test_and_a_model_that_teaches_itself(monkeypatch):
    raw = yaml.safe_load((CONFIG / "pilot.yaml").read_text())
    config = resolve(raw)
    assert config.arms["A4.opsd"].model == "from-prompted"
    recipe = config.models["from-prompted"].distill
    assert recipe is not None and recipe.student == recipe.teacher == "smollm2"
    assert config.probes["A6"].prefix is not None

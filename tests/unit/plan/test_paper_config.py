"""config/paper.yaml against the paper: models, runs, sharing, lengths, what an edit can touch."""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from paper_switches import READINGS, SWITCHES, TABLES, switch_arguments
from snakemake.cli import parse_config
from snakemake.utils import update_config

from opd.core import tables
from opd.core.errors import UserError
from opd.data import prompts
from opd.data.schemas import PROMPTS
from opd.plan import calibrate, cost, hub_lock, outputs, show
from opd.plan.artifacts import plan
from opd.plan.cost import Facts
from opd.recipes.config import Config
from opd.recipes.resolve import resolve, typed
from opd.stages.artifact import Artifact, closure

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]

# Section 5 of the specification: hub id, commit as far as known.
HUB = {
    "models/Qwen/Qwen3-1.7B-Base": "ea980cb0a6c2",
    "models/Qwen/Qwen3-1.7B": "70d244cc86cc",
    "models/Qwen/Qwen3-4B": "1cfa9a720891",
    "models/Qwen/Qwen3-4B-Base": "906bfd4b4dc7",
    "models/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "ad9f0ae0864d",
    "models/deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": "916b56a44061",
    "models/deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": "1df8507178af",
    "models/Skywork/Skywork-OR1-Math-7B": "fcef970f1d10",
    "models/hbx/JustRL-DeepSeek-1.5B": "0637e4096c78",
    "models/lllyx/Qwen3-4B-Base-GRPO": "1f3b2966edfb",
    "models/lllyx/Qwen3-1.7B-SFT": "f0065babe744",
    "models/Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500": None,
    "models/sentence-transformers/all-mpnet-base-v2": None,
    "datasets/BytedTsinghua-SIA/DAPO-Math-17k": None,
    "datasets/open-r1/DAPO-Math-17k-Processed": None,
    "datasets/zwhe99/DeepMath-103K": None,
    "datasets/open-thoughts/OpenThoughts3-1.2M": None,
    "datasets/HuggingFaceH4/aime_2024": None,
    "datasets/math-ai/aime25": None,
    "datasets/AI-MO/aimo-validation-amc": None,
    "datasets/math-ai/amc23": None,
}
LOCK = {name: (known or "").ljust(40, "0") for name, known in HUB.items()}

R1, R1_7B, R1_14B = (f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}B" for size in ("1.5", "7", "14"))
JUSTRL, SKYWORK = "hbx/JustRL-DeepSeek-1.5B", "Skywork/Skywork-OR1-Math-7B"
BASE, NT, NT4 = "Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"
GRPO, SFT = "lllyx/Qwen3-4B-Base-GRPO", "lllyx/Qwen3-1.7B-SFT"
RLM = "Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500"

# Arm -> student, teacher, steps, longest response, k, support (sections 1.2 to 1.14).
RUNS: dict[str, tuple[str, str, int, int, int | None, str]] = {
    "E01.compatible": (BASE, GRPO, 279, 7168, 16, "rethinking_code"),
    "E01.incompatible": (BASE, NT4, 279, 7168, 16, "rethinking_code"),
    "E02.same": (R1, R1_7B, 279, 7168, 16, "rethinking_code"),
    "E02.new": (R1, SKYWORK, 279, 7168, 16, "rethinking_code"),
    "E02.same2": (NT, NT4, 279, 7168, 16, "rethinking_code"),
    "E02.new2": (NT, RLM, 279, 7168, 16, "rethinking_code"),
    "E03.small": (JUSTRL, R1, 600, 7168, 16, "rethinking_code"),
    "E03.large": (JUSTRL, R1_7B, 600, 7168, 16, "rethinking_code"),
    "E04.success": (R1, JUSTRL, 279, 7168, 16, "rethinking_code"),
    "E04.success-200": (R1, JUSTRL, 279, 7168, 16, "rethinking_code"),
    "E04.failure": (R1, R1_7B, 279, 7168, 16, "rethinking_code"),
    "E05.student": (R1, JUSTRL, 279, 7168, 16, "rethinking_code"),
    "E05.intersection": (R1, JUSTRL, 279, 7168, 16, "intersection"),
    "E05.symmetric_difference": (R1, JUSTRL, 279, 7168, 16, "symmetric_difference"),
    "E06.base": (BASE, NT4, 468, 7168, 16, "rethinking_code"),
    "E06.cold": (SFT, NT4, 468, 7168, 16, "rethinking_code"),
    "E07.original": (R1, JUSTRL, 279, 7168, 16, "rethinking_code"),
    "E07.aligned": (R1, JUSTRL, 279, 7168, 16, "rethinking_code"),
    "E08.matched": (BASE, GRPO, 220, 7168, 16, "rethinking_code"),
    "E08.other": (BASE, GRPO, 220, 7168, 16, "rethinking_code"),
    "E09.l1": (R1, JUSTRL, 279, 512, 16, "rethinking_code"),
    "E09.l2": (R1, JUSTRL, 279, 1024, 16, "rethinking_code"),
    "E09.l3": (R1, JUSTRL, 279, 3072, 16, "rethinking_code"),
    "E09.l4": (R1, JUSTRL, 279, 7168, 16, "rethinking_code"),
    "E09.l5": (R1, JUSTRL, 279, 10240, 16, "rethinking_code"),
    "E09.l6": (R1, JUSTRL, 279, 15360, 16, "rethinking_code"),
    "E12.sampled": (R1, JUSTRL, 279, 7168, None, "sampled"),
    "E12.k1": (R1, JUSTRL, 279, 7168, 1, "rethinking_code"),
    "E12.k4": (R1, JUSTRL, 279, 7168, 4, "rethinking_code"),
    "E12.k16": (R1, JUSTRL, 279, 7168, 16, "rethinking_code"),
    "E12.k64": (R1, JUSTRL, 279, 7168, 64, "rethinking_code"),
    "E13.success": (R1_7B, SKYWORK, 279, 7168, 16, "rethinking_code"),
    "E13.failure": (R1_7B, R1_14B, 279, 7168, 16, "rethinking_code"),
}
# Arms that are models as they are.
PLAIN = {
    "E01.student": BASE,
    "E01.compatible-teacher": GRPO,
    "E01.incompatible-teacher": NT4,
    "E02.student": R1,
    "E02.same-teacher": R1_7B,
    "E02.new-teacher": SKYWORK,
    "E02.student2": NT,
    "E02.same2-teacher": NT4,
    "E02.new2-teacher": RLM,
    "E03.student": JUSTRL,
    "E03.small-teacher": R1,
    "E03.large-teacher": R1_7B,
    "E04.student": R1,
    "E04.success-teacher": JUSTRL,
    "E04.failure-teacher": R1_7B,
    "E06.base-student": BASE,
    "E06.cold-student": SFT,
    "E06.teacher": NT4,
    "E13.student": R1_7B,
    "E13.success-teacher": SKYWORK,
    "E13.failure-teacher": R1_14B,
    "T1.grpo": GRPO,
    "T1.base": "Qwen/Qwen3-4B-Base",
    "T3.sft": SFT,
    "T3.base": BASE,
}


def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())


def changed(*arguments: str) -> dict[str, Any]:
    """The config with what stands behind ``--config``, as Snakemake and the workflow read it."""
    given = raw()
    update_config(given, typed(parse_config(arguments)))
    return given


@pytest.fixture(scope="module")
def config() -> Config:
    return resolve(raw())


@pytest.fixture(scope="module")
def planned(config: Config) -> dict[str, Artifact]:
    return plan(config, LOCK)


def needed(config: Config, planned: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """All that the paper's figures and claims are made from, and figures of the config's own."""
    shown = outputs.exhibits(config, planned, ROOT / "config")
    made = {**planned, **shown}
    return {folder: made[folder] for folder in closure(shown, made)}


def hub_id(planned: Mapping[str, Artifact], folder: str) -> str:
    return str(planned[folder].cfg["hub"])


def run_of(config: Config, arm: str) -> str:
    return f"models/{config.arms[arm].model.partition('@')[0]}/s0"


def made_by(artifacts: Mapping[str, Artifact], stage: str) -> list[str]:
    return [folder for folder, made in artifacts.items() if made.stage == stage]


def test_the_report_is_headed_by_scale_and_paper(config, planned):
    report = outputs.exhibits(config, planned, ROOT / "config")["report"].cfg
    assert report["title"] == "On-policy distillation: paper"
    paper = "Rethinking On-Policy Distillation (arXiv 2604.13016)"
    titles = [one["title"] for one in report["sections"]]
    assert titles in ([paper], [paper, "Other figures"])
    assert all(name.startswith("rethinking_opd/") for name in report["sections"][0]["figures"])


def test_27_distillation_runs_serve_all_figures(config, planned):
    wanted = needed(config, planned)
    assert len(made_by(wanted, "distill")) == 27
    assert not made_by(wanted, "grpo") and not made_by(wanted, "sft")
    rollouts = {"generations/long-rollouts/s0", "generations/judged-rollouts/s0"}
    assert set(made_by(wanted, "generate")) == rollouts
    figures = [*range(2, 11), "11a", "11b", *range(12, 24)]  # 1 is made of parts of others
    names = {f"figures/rethinking_opd/fig{n:0>2}" for n in figures}
    assert set(made_by(wanted, "figure")) == names


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a YAML value, behind the key that it stands under."""
    if isinstance(value, Mapping):
        for inner_key, inner in value.items():
            yield from texts(inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def test_the_plan_is_what_claims_and_figures_ask_of_arms_and_probes(config, planned):
    """Worked out from the files: all that they name is run once, and nothing else."""
    drawn, claimed = (
        yaml.safe_load((ROOT / "config" / part / "rethinking_opd.yaml").read_text())
        for part in ("figures", "claims")
    )
    evaluated = set()
    for key, text in [*texts(drawn), *texts(claimed["claims"])]:
        if text in config.arms:
            arm = config.arms[text]
            evaluated |= {arm.model}
            # A change is one from the base; a recovery is a share of the gap to the teacher.
            evaluated |= {arm.base} if key in ("change", "recovery") else set()
            evaluated |= {arm.teacher} if key == "recovery" else set()
    runs = {model.partition("@")[0] for model in evaluated}
    runs = {run for run in runs if config.models[run].distill}
    for figure in drawn.values():
        over_steps = figure["kind"] == "curves" and any(
            metric["name"].startswith("avg:") for metric in figure["metrics"]
        )
        for series in figure["series"] if over_steps else []:
            run = config.arms[series["arm"]].model
            evaluated |= {f"{run}@{step}" for step in config.models[run].distill.keep_steps}
    wanted = needed(config, planned)
    expected = {
        "distill": {f"models/{run}/s0" for run in runs},
        "keep": {f"models/{model}/s0" for model in evaluated if "@" in model},
        "evaluate": {f"evaluations/{config.evaluation}/{model}/s0" for model in evaluated},
        "figure": {f"figures/rethinking_opd/{name}" for name in drawn},
        "pair": {f"probes/{name}/s0" for name, probe in config.probes.items() if probe.pair},
        "continuation": {
            f"probes/{name}/s0" for name, probe in config.probes.items() if probe.continuation
        },
        "claims": {"claims"},
        "report": {"report"},
    }
    assert {stage: {*made_by(wanted, stage)} for stage in expected} == expected


def test_teacher_and_cold_start_are_trained_where_released_ones_are_not_taken():
    config = resolve(changed("use_released=false"))
    wanted = needed(config, plan(config, LOCK))
    assert len(made_by(wanted, "distill")) == 27
    ((grpo,), (sft,)) = made_by(wanted, "grpo"), made_by(wanted, "sft")
    given = wanted[grpo].cfg
    table1 = {
        "epochs": 1,
        "prompts_per_step": 64,
        "group_size": 8,
        "lr": 1e-6,
        "max_new_tokens": 7168,
    }
    assert {key: given[key] for key in table1} == table1
    assert wanted[grpo].inputs == ("models/q4b-base", "prompts/dapo-en")
    given = wanted[sft].cfg
    table3 = {"epochs": 1, "batch_size": 64, "lr": 1e-5, "warmup": 0.05, "max_tokens": 14336}
    assert {key: given[key] for key in table3} == table3
    assert hub_id(wanted, wanted[sft].inputs[0]) == BASE
    (rollouts,) = (f for f in made_by(wanted, "generate") if "openthoughts" in f)
    assert wanted[rollouts].cfg["max_new_tokens"] == 12288
    assert wanted[rollouts].cfg["attempts"] == 3
    assert hub_id(wanted, wanted[rollouts].inputs[0]) == NT4


@pytest.mark.parametrize("arm", RUNS)
def test_a_run_is_the_published_one(config, planned, arm):
    student, teacher, steps, tokens, k, support = RUNS[arm]
    run = planned[run_of(config, arm)]
    assert run.stage == "distill"
    # Order of inputs: student, teacher, prompts.
    assert [hub_id(planned, folder) for folder in run.inputs[:2]] == [student, teacher]
    assert run.cfg["steps"] == steps
    assert run.cfg["max_new_tokens"] == tokens
    assert run.cfg["loss"] == {"preset": support} | ({"k": k} if k else {})
    table2 = {
        "prompts_per_step": 64,
        "rollouts_per_prompt": 4,
        "lr": 1e-6,
        "schedule": "constant",
        "temperature": 1.0,
        "max_prompt_tokens": 1024,
        "max_grad_norm": 1.0,
        "precision": "bfloat16",
    }
    assert {key: run.cfg[key] for key in table2} == table2
    recipe = config.arms[arm]
    assert hub_id(planned, f"models/{recipe.base}") == student
    assert hub_id(planned, f"models/{recipe.teacher}") == teacher
    thinking = {"enable_thinking": False} if "Qwen3" in student else {}
    assert run.cfg["chat_template_kwargs"] == thinking
    # Else student and teacher would see different prompts.
    assert "teacher_chat_template_kwargs" not in run.cfg


def test_every_arm_is_there(config, planned):
    assert {*RUNS, *PLAIN} == {*config.arms}
    for arm, model in PLAIN.items():
        assert hub_id(planned, f"models/{config.arms[arm].model}") == model


def test_runs_that_are_shared(config):
    by_run: dict[str, set[str]] = {}
    for arm in RUNS:
        by_run.setdefault(run_of(config, arm), set()).add(arm)
    shared = [arms for arms in by_run.values() if len(arms) > 1]
    assert sorted(map(sorted, shared)) == [
        ["E02.same", "E04.failure"],
        ["E04.success", "E04.success-200", "E05.student", "E07.original", "E09.l4", "E12.k16"],
    ]
    assert len(by_run) == 27


def test_response_lengths_are_compared_at_step_200(config, planned):
    arms = [config.arms[f"E09.l{i}"].model for i in range(1, 7)]
    assert all(model.endswith("@200") for model in arms)
    shown = outputs.exhibits(config, planned, ROOT / "config")
    accuracy = shown["figures/rethinking_opd/fig11a"].inputs
    assert {f"evaluations/math/{model}/s0" for model in arms} < set(accuracy)
    # What was logged, and curves over steps, are those of the whole run.
    runs = {f"models/{model.partition('@')[0]}/s0" for model in arms}
    assert runs < set(shown["figures/rethinking_opd/fig12"].inputs)
    assert not [f for f in shown["figures/rethinking_opd/fig12"].inputs if "@" in f]


def test_runs_whose_accuracy_is_drawn_over_steps_are_kept_every_20_steps(config, planned):
    curves = ("E01", "E03", "E04", "E05", "E06", "E07", "E08", "E13")  # Figs 2, 5 to 10, 17, 20
    drawn = {run_of(config, arm): arm for arm in RUNS if arm.startswith(curves)}
    for folder in {run_of(config, arm) for arm in RUNS}:
        run = folder.split("/")[1]
        kept = {f for f in planned if f.startswith(f"models/{run}@")}
        if folder in drawn:
            steps = range(20, RUNS[drawn[folder]][2], 20)
        else:
            steps = range(200, 201) if run.startswith("length-") else range(0)
        assert kept == {f"models/{run}@{step}/s0" for step in steps}


def test_prompts_of_each_run(config, planned):
    def prompts(arm: str) -> str:
        return planned[run_of(config, arm)].inputs[2]

    def source(folder: str) -> dict[str, Any]:
        """Settings of the set that a set is made from in the end."""
        while planned[folder].stage == "dedup" or planned[folder].cfg["source"].get("from"):
            folder = planned[folder].inputs[0]
        return planned[folder].cfg["source"]

    original = [arm for arm in RUNS if arm[:3] not in ("E06", "E08") and arm != "E07.aligned"]
    for arm in original:
        made = planned[prompts(arm)].cfg
        # As the dataset asks: in DAPO's own template.
        assert made["source"]["hub"] == "BytedTsinghua-SIA/DAPO-Math-17k"
        assert "template" not in made and not made["strip"]
    for arm in ("E07.aligned", "E08.matched", "E08.other", "E06.base", "E06.cold"):
        assert planned[prompts(arm)].cfg["template"] == "boxed"
    assert source(prompts("E07.aligned"))["hub"] == "BytedTsinghua-SIA/DAPO-Math-17k"
    english = source(prompts("E08.matched"))
    assert (english["hub"], english["config"]) == ("open-r1/DAPO-Math-17k-Processed", "en")
    assert source(prompts("E08.other"))["hub"] == "zwhe99/DeepMath-103K"
    assert planned[prompts("E08.other")].cfg["sample"]["n"] == 14116
    (dedup,) = made_by(planned, "dedup")
    assert planned[dedup].cfg["threshold"] == 0.6
    assert source(planned[dedup].inputs[1]) == english
    assert prompts("E06.base") == prompts("E06.cold")
    assert source(prompts("E06.base"))["hub"] == "open-thoughts/OpenThoughts3-1.2M"
    assert planned[prompts("E06.base")].cfg["sample"]["n"] == 30000
    assert planned[prompts("E06.base")].cfg["apart_from"] == "question"


TENTH = 10


def openthoughts(file: Path) -> None:
    """A file with the columns of OpenThoughts3's mathematics and a tenth of its 53,125 questions,
    each asked 16 times. The rows of one are scattered, as nothing says that they stand together."""
    questions = 53_125 // TENTH
    rows = 16 * questions
    texts = pa.array([f"What is {i}?" for i in range(questions)] + ["It is so."])
    asked = np.full(2 * rows, questions)  # human and model take turns
    asked[::2] = np.arange(rows) % questions
    roles = pa.array(["human", "gpt"]).take(pa.array(np.tile([0, 1], rows)))
    turns = pa.StructArray.from_arrays([roles, texts.take(pa.array(asked))], ["from", "value"])
    columns = {
        "domain": pa.array(["math"] * rows),
        "conversations": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * rows + 1, 2)), turns),
    }
    pq.write_table(pa.table(columns), file, row_group_size=20_000)


def test_sft_leaves_enough_questions_to_distill_on(planned, tmp_path):
    """The two sets of the config, made at a tenth of their size."""
    openthoughts(tmp_path / "thoughts.parquet")
    source = {"path": str(tmp_path / "thoughts.parquet")}
    source["layout"] = "open-thoughts/OpenThoughts3-1.2M"
    sft, distilled = tmp_path / "sft", tmp_path / "distilled"
    numbers = {}
    for name, out in (("openthoughts-sft", sft), ("openthoughts", distilled)):
        out.mkdir()
        recipe = planned[f"prompts/{name}"]
        inputs = {"apart_from": sft} if recipe.inputs else {}
        sample = {
            key: of // TENTH if key in ("n", "questions") and of else of
            for key, of in recipe.cfg["sample"].items()
        }
        cfg = {**recipe.cfg, "source": source, "sample": sample}
        numbers[name] = prompts.run(cfg, inputs, out)
    rows = {
        out: tables.read(out / "prompts.parquet", PROMPTS)["question"].to_pylist()
        for out in (sft, distilled)
    }
    assert len(rows[sft]) == 20_000 and len({*rows[sft]}) == 1_250
    assert len(rows[distilled]) == len({*rows[distilled]}) == 3_000
    assert not {*rows[sft]} & {*rows[distilled]}
    # What the paper's "about 30K" are taken from.
    steps = {step["step"]: step["rows"] for step in numbers["openthoughts"]["steps"]}
    assert steps["after distinct"] == 4_062


def test_evaluation_is_that_of_the_paper(config, planned):
    made = planned[f"evaluations/{config.evaluation}/justrl/s0"].cfg
    protocol = {"samples": 16, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 31744}
    assert {key: made["protocol"][key] for key in protocol} == protocol
    tasks = {b["name"]: b["task"] for b in made["benchmarks"]}
    assert tasks == {"aime24": "opd_aime24", "aime25": "opd_aime25", "amc23": "opd_amc23_83"}
    assert config.comparable and config.papers == ["rethinking_opd"] and config.seeds == [0]


def test_probes(config, planned):
    e10 = planned["probes/E10/s0"]
    assert e10.cfg["prefixes"] == [1024, 4096, 8192, 16384] and e10.cfg["longer_than"] == 16384
    rollouts = planned["generations/long-rollouts/s0"]
    assert hub_id(planned, rollouts.inputs[0]) == R1
    assert planned[rollouts.inputs[1]].cfg["sample"]["n"] == 2000
    teachers = {"E10": JUSTRL, "E11.success": JUSTRL, "E11.failure": R1_7B}
    for probe, teacher in teachers.items():
        made = planned[f"probes/{probe}/s0"]
        named = dict(zip(made.cfg["inputs"], made.inputs, strict=True))
        assert hub_id(planned, named["teacher"]) == teacher
        assert hub_id(planned, named["student"]) == R1
    judged = planned["generations/judged-rollouts/s0"]
    n = planned[judged.inputs[1]].cfg["sample"]["n"] * judged.cfg["samples"]
    assert abs(n - 4279) < 4  # the paper's 2,828 right and 1,451 wrong ones
    assert set(config.probes) == set(teachers)


def test_hub_objects_are_those_of_the_paper(planned):
    found = {}
    for use_released in ("true", "false"):
        for recipe in hub_lock.hub_objects(
            resolve(changed(f"use_released={use_released}"))
        ).values():
            found[hub_lock.key(recipe)] = recipe.revision
    assert found == HUB


def test_a_plan_needs_no_lock_and_says_what_is_not_locked(config):
    assert len(made_by(plan(config, {}), "distill")) == 27
    assert len(hub_lock.unlocked(config, {})) == len(hub_lock.hub_objects(config))
    assert hub_lock.unlocked(config, LOCK) == []
    some = {name: commit for name, commit in LOCK.items() if "R1-Distill" not in name}
    assert hub_lock.unlocked(config, some) == [
        "models.r1-1.5b.hub",
        "models.r1-7b.hub",
        "models.r1-14b.hub",
    ]
    with pytest.raises(UserError, match=r"models\.justrl\.hub.*locked at ffff"):
        hub_lock.unlocked(config, {f"models/{JUSTRL}": "f" * 40})


def test_another_k_changes_what_is_downstream_of_that_run_alone(config):
    edited = resolve(changed("models={k-4: {distill: {loss: {k: 8}}}}"))
    before, after = (identities(needed(c, plan(c, LOCK))) for c in (config, edited))
    assert set(after) == set(before)
    differ = {f for f in before if before[f] != after[f]}
    # Figs 15 and 16, and what shows all.
    expected = {"models/k-4/s0", "evaluations/math/k-4/s0", "claims"}
    expected |= {f"figures/rethinking_opd/{name}" for name in ("fig15", "fig16")}
    assert differ - {"report"} == expected


def test_settings_of_the_command_line_get_the_types_of_yaml():
    given = {
        "a": {"k": "8", "lr": "1.0e-6", "on": "false", "off": "null", "text": "{question}?"},
        "b": ["1", "x"],
        "c": "2024-01-01",
        "d": "",
        "e": 3,
        "f": "[1",
    }
    assert typed(given) == {
        "a": {"k": 8, "lr": 1e-6, "on": False, "off": None, "text": "{question}?"},
        "b": [1, "x"],
        "c": "2024-01-01",
        "d": "",
        "e": 3,
        "f": "[1",
    }


# Readings


def identities(planned: Mapping[str, Artifact]) -> dict[str, str]:
    """What each artifact is made with, inputs of inputs included."""
    found: dict[str, str] = {}
    for folder in closure(planned, planned):
        made = planned[folder]
        found[folder] = json.dumps([made.cfg, [found.get(one, one) for one in made.inputs]])
    return found


def test_every_row_says_how_to_switch():
    rows = [row for table in TABLES for row in table.splitlines()]
    assert len(TABLES) == READINGS.count("| to switch |") and len(SWITCHES) > 30
    assert len(SWITCHES) + sum(row.endswith("[none] |") for row in rows) == len(rows)


@functools.cache
def unswitched(use_released: str) -> tuple[dict[str, str], dict[str, Any]]:
    config = resolve(changed(f"use_released={use_released}"))
    return identities(needed(config, plan(config, {}))), config.arms


def data_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPD_DATA_DIR with the names of the released files."""
    for file in ("dapo-math-17k", "deepmath-deduped", "OpenThoughts3_opd"):
        (folder / f"{file}.parquet").touch()
    (folder / "benchmarks").mkdir()
    for file in ("AIME24", "AIME25", "AMC23", "AMC23-83"):
        (folder / "benchmarks" / f"{file}.parquet").touch()
    monkeypatch.setenv("OPD_DATA_DIR", str(folder))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_what_is_run_or_shown(switch, tmp_path, monkeypatch):
    option, arguments = switch_arguments(switch)
    released = "true"
    if option == "--configfile":
        data_files(tmp_path, monkeypatch)
        given: dict[str, Any] = {}
        for file in arguments:
            update_config(given, yaml.safe_load((ROOT / file).read_text()))
    else:
        given = changed(*arguments)
        if "use_released=false" in arguments and len(arguments) > 1:
            released = "false"  # what the switch changes beyond that
    config = resolve(given)
    assert (identities(needed(config, plan(config, {}))), config.arms) != unswitched(released)


@functools.cache
def cost_of(settings: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What `opd plan` says of the config, with these settings and config files on top."""
    paths = [ROOT / file for file in ("config/paper.yaml", *more)]
    return tuple(show.lines(paths, [], settings=settings))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_can_be_costed(switch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option, arguments = switch_arguments(switch)
    if option == "--configfile":
        data_files(tmp_path, monkeypatch)
        lines = cost_of(more=tuple(arguments[1:]))
    else:
        lines = cost_of(tuple(arguments))
    jobs = re.fullmatch(r"paper: (\d+) of \1 jobs to run, on 8 x H100", lines[0])
    assert jobs is not None and int(jobs[1]) > 300
    assert not [line for line in lines if line.startswith("not counted")]


@pytest.mark.parametrize(
    ("settings", "more", "less"),
    [
        (["seeds=[0, 1, 2]"], 2.9, 3.0),
        # 21 runs of 27 have 200 steps in place of 279.
        (["defaults={distill: {steps: 200, keep_steps: [100]}}"], 0.6, 0.9),
        (["use_released=false"], 1.05, 1.5),
        (["protocols={paper: {grader: math_verify}}"], 1, 1),
    ],
)
def test_what_a_switch_costs(settings, more, less, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def hours(*arguments: str) -> float:
        (line,) = (line for line in cost_of(arguments) if line.startswith("in all"))
        return float(line.partition("likely ")[2].strip(")").replace(",", ""))

    assert more <= hours(*settings) / hours() <= less


def test_what_is_written_of_the_disk_is_what_is_planned(config, planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = " ".join((ROOT / "docs" / "cost.md").read_text().split())
    lines = cost_of()
    (total,) = _disk(lines, r"disk: ([\d,]+ GiB) to stay")
    (low, high) = next(re.findall(r"[\d,]+", line)[:2] for line in lines if line[:6] == "in all")
    ((passing, most),) = _disk(lines, r"kept steps: up to ([\d,]+ GiB) .* at most ([\d,]+) GiB")
    assert f"{low} to {high} GPU-hours" in written and written.count(total) == 2
    assert f"{total} of disk, {most} on the way" in written and f"28 GiB: {passing}" in written
    # Every kept step is counted with its run, and not again as a model of its own.
    facts = Facts(planned, calibrate.tables(ROOT / "config" / "calibration.yaml"))
    wanted = needed(config, planned)
    runs, kept = made_by(wanted, "distill"), made_by(wanted, "keep")
    assert not any(cost.disk(facts, folder) for folder in kept)
    ends = sum(4 * cost.parameters(facts, folder) for folder in runs)
    steps = sum(4 * cost.parameters(facts, folder) for folder in kept)
    assert sum(cost.disk(facts, folder) for folder in runs) == pytest.approx(ends + steps)
    # All of them go, so none but the ends stay.
    asked = outputs.targets(config, wanted)
    gone = facts._replace(released=outputs.released(config, wanted, asked))
    assert sum(cost.disk(gone, folder) for folder in runs) == pytest.approx(ends)
    assert sum(cost.passing(gone, folder) for folder in runs) == pytest.approx(steps)
    for words in (
        f"the {len(kept)} steps that the runs keep on the way, so that accuracy can be drawn over "
        f"steps, are {steps / 2**30:,.0f} GiB",
        f"the {len(runs)} runs end with is {ends / 2**30:,.0f} GiB",
    ):
        assert words in written
    (always,) = re.findall(r"--config '(defaults=[^']+always[^']+)'", written)
    (left,) = _disk(cost_of((always,)), r"disk: ([\d,]+ GiB) to stay")
    assert f"says {left}" in written
    (fewer,) = re.findall(r"--config '(models=\{r1-7b-from-skywork: [^']+)'", written)
    (left,) = _disk(cost_of((fewer,)), r"kept steps: .* at most ([\d,]+ GiB) at a time")
    assert f"leave at most {left} at a time" in written


def _disk(lines: list[str], pattern: str) -> list[Any]:
    return [match for line in lines for match in re.findall(f"^{pattern}", line)]


def test_released_files_take_the_place_of_datasets():
    given = raw()
    update_config(given, yaml.safe_load((ROOT / "config" / "paper-files.yaml").read_text()))
    config = resolve(given)
    left = {hub_lock.key(recipe) for recipe in hub_lock.hub_objects(config).values()}
    # What is read only to be sampled from, which the released samples make needless.
    assert {name for name in left if name.startswith("datasets/")} == {
        "datasets/zwhe99/DeepMath-103K",
        "datasets/open-thoughts/OpenThoughts3-1.2M",
    }
    for name in ("dapo", "dapo-questions", "deepmath", "openthoughts"):
        assert config.prompts[name].path is not None

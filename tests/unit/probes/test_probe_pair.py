"""The stage ``pair`` against a naive reference: one rollout at a time, position by position."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from probing import (
    Inputs,
    logits,
    make,
    padded,
    rendered,
    rows_of,
    with_swapped_tokens,
    with_template,
    write_rollouts,
)
from scipy.special import log_softmax

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import PROMPTS
from opd.losses.schemas import METRICS
from opd.models import init
from opd.probes import pair, rollouts
from opd.probes.schemas import ROLLOUTS
from opd.stages import run as runner
from opd.stages.registry import code_digest
from opd.stats import draws
from opd.stats.draws import read_draws

K, BIN = 4, 4
CFG: dict[str, Any] = {"metrics_k": K, "position_bin": BIN, "temperature": 0.8, "seed": 0}
EOS = 1
# Token ids of rollouts of different length, one of them the end token alone, two cut off.
TOKEN_IDS = [
    [8, 9, 8, 9, 8, 9, 30, EOS],
    [EOS],
    [12, 13, 14, 15, 16, 17, 18, 19, 20, 21],
    [7, 7, 7, 7, 7],
    [40, 41, EOS],
    [22, EOS],
    [33, 34, 35, 36, 37, 38, EOS],
    [9, 10, 11, 12, EOS],
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Four prompts with two rollouts each, every other one of them correct; and one that a rule has
    rejected."""
    root = tmp_path_factory.mktemp("pair")
    made = make(root, 4)
    prompts = rows_of(made["prompts"])
    rollouts = []
    for i, ids in enumerate(TOKEN_IDS):
        row = prompts[i // 2]
        right = i % 2 == 0
        rollouts.append(
            {
                "prompt_id": row["id"],
                "sample": i % 2,
                "prompt": row["prompt"],
                "response": f"#{row['answer']}" if right else "#",
                "token_ids": ids,
                "finish": "stop" if ids[-1] == EOS else "length",
            }
        )
    rejected = {**rollouts[0], "sample": 2, "token_ids": [9] * 50, "rejected": "boxed"}
    made["generations"] = write_rollouts(root / "generations", [*rollouts, rejected])
    return made


def run(cfg: dict[str, Any], inputs: Inputs, out: Path) -> dict[str, Any]:
    """Values by name; the stage's files are in ``out``."""
    out.mkdir()
    pair.run(cfg, inputs, out)
    found: dict[str, Any] = json.loads((out / "probe.json").read_text())["values"]
    return found


def naive(inputs: Inputs, temperatures: tuple[float, float]) -> list[list[dict[str, float]]]:
    """What the definitions say of every position of every rollout."""
    prompts = rows_of(inputs["prompts"])
    found = []
    for i, ids in enumerate(TOKEN_IDS):
        prompt = rendered(inputs["student"], prompts[i // 2]["prompt"])
        both = [
            log_softmax(logits(inputs[name], [*prompt, *ids])[len(prompt) - 1 : -1] / t, axis=-1)
            for name, t in zip(("student", "teacher"), temperatures, strict=True)
        ]
        states = []
        for t, token in enumerate(ids):
            lp, lq = both[0][t], both[1][t]
            p, q = np.exp(lp), np.exp(lq)
            shared = sorted(set(np.argsort(-lp)[:K]) & set(np.argsort(-lq)[:K]))
            state = {
                "overlap_ratio": len(shared) / K,
                "overlap_mass_student": p[shared].sum(),
                "overlap_mass_teacher": q[shared].sum(),
                "entropy_student_nats": -(p * lp).sum(),
                "entropy_teacher_nats": -(q * lq).sum(),
                "entropy_gap_nats": abs((p * lp).sum() - (q * lq).sum()),
                "kl_nats": (p * (lp - lq)).sum(),
                "reward": lq[token] - lp[token],
            }
            if shared:
                bar_p, bar_q = p[shared] / p[shared].sum(), q[shared] / q[shared].sum()
                terms = bar_p * (np.log(bar_q) - np.log(bar_p))
                state["overlap_token_advantage"] = terms.mean()
            states.append(state)
        found.append(states)
    return found


def mean(states: list[dict[str, float]], name: str) -> float:
    return float(np.mean([state[name] for state in states if name in state]))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_number_is_that_of_its_definition(
    inputs: Inputs, tmp_path: Path, temperature: float
) -> None:
    """Over all positions and by bins of them, whatever stands beside a rollout in its batch."""
    cfg = {**CFG, "teacher_temperature": temperature, "micro_batch": 3, "grader": "world"}
    values = run(cfg, inputs, tmp_path / "a")
    reference = naive(inputs, (0.8, temperature))
    states = [state for rollout in reference for state in rollout]
    rows = tables.read(tmp_path / "a" / "metrics.parquet", METRICS).to_pylist()
    written = {(row["name"], row["position"]): row["value"] for row in rows}
    assert {row["step"] for row in rows} == {0} and len(written) == len(rows)
    for name in reference[0][0].keys() - {"reward"} | {"overlap_token_advantage"}:
        assert values[name]["value"] == pytest.approx(mean(states, name), rel=1e-4, abs=1e-6)
        assert written[name, None] == pytest.approx(values[name]["value"])
        for first in range(0, 10, BIN):
            part = [s for rollout in reference for s in rollout[first : first + BIN]]
            if any(name in s for s in part):
                assert written[name, first] == pytest.approx(mean(part, name), rel=1e-4, abs=1e-6)
    assert values["overlap_ratio"]["n"] == len(states) == 41
    rewards = [mean(rollout, "reward") for rollout in reference]
    rollouts = tables.read(tmp_path / "a" / "rollouts.parquet", ROLLOUTS).to_pylist()
    assert [row["reward_nats"] for row in rollouts] == pytest.approx(rewards, rel=1e-4)
    assert [row["tokens"] for row in rollouts] == [len(ids) for ids in TOKEN_IDS]
    assert [row["correct"] for row in rollouts] == [True, False] * 4
    assert values["reward_correct_nats"]["value"] == pytest.approx(np.mean(rewards[::2]), rel=1e-4)
    assert values["reward_incorrect_nats"]["value"] == pytest.approx(
        np.mean(rewards[1::2]), rel=1e-4
    )
    won = np.mean([a > b for a in rewards[::2] for b in rewards[1::2]])
    assert 0 < won < 1 and values["auroc"]["value"] == pytest.approx(won)
    assert (values["n_correct"]["value"], values["n_incorrect"]["value"]) == (4, 4)
    # Of [12, 13, ...] and [7, 7, 7, 7, 7] no end; 3-grams repeat in the first and the fourth.
    assert values["truncation_ratio"]["value"] == 2 / 8
    assert values["response_tokens"]["value"] == 41 / 8
    assert values["repetition_ratio"]["value"] == pytest.approx((2 + 2) / (6 + 8 + 3 + 1 + 5 + 3))


def test_the_teacher_is_read_at_the_students_temperature(inputs: Inputs, tmp_path: Path) -> None:
    """A student that is its own teacher is as far from it as nothing, unless another temperature is
    named for the teacher."""
    own = {**inputs, "teacher": inputs["student"]}
    same = run(CFG, own, tmp_path / "same")
    assert same["kl_nats"]["value"] == pytest.approx(0, abs=1e-6)
    assert same["reward_nats"]["value"] == pytest.approx(0, abs=1e-6)
    named = run({**CFG, "teacher_temperature": 1.0}, own, tmp_path / "named")
    assert named["kl_nats"]["value"] > 0.01


def test_definitions_of_the_entropy_gap_side_by_side(inputs: Inputs, tmp_path: Path) -> None:
    values = run(CFG, inputs, tmp_path / "a")
    reference = naive(inputs, (0.8, 0.8))
    states = [state for rollout in reference for state in rollout]

    def gap(of: list[dict[str, float]]) -> float:
        return abs(mean(of, "entropy_teacher_nats") - mean(of, "entropy_student_nats"))

    of_rollouts = float(np.mean([gap(rollout) for rollout in reference]))
    assert values["entropy_gap_of_means_nats"]["value"] == pytest.approx(gap(states), rel=1e-4)
    assert values["entropy_gap_of_rollouts_nats"]["value"] == pytest.approx(of_rollouts, rel=1e-4)
    per_state = values["entropy_gap_nats"]["value"]
    assert gap(states) < of_rollouts < per_state
    rows = tables.read(tmp_path / "a" / "metrics.parquet", METRICS).to_pylist()
    first = [s for rollout in reference for s in rollout[:BIN]]
    found = {row["position"]: row["value"] for row in rows if "of_means" in row["name"]}
    assert found[None] == pytest.approx(gap(states), rel=1e-4)
    assert found[0] == pytest.approx(gap(first), rel=1e-4)


def test_without_a_grader_nothing_is_said_of_right_and_wrong(
    inputs: Inputs, tmp_path: Path
) -> None:
    values = run(CFG, inputs, tmp_path / "a")
    assert not {"auroc", "n_correct", "reward_correct_nats"} & values.keys()
    rows = tables.read(tmp_path / "a" / "rollouts.parquet", ROLLOUTS)
    assert rows["correct"].null_count == len(TOKEN_IDS)


def test_a_kind_that_is_missing_has_no_auroc(inputs: Inputs, tmp_path: Path) -> None:
    prompts = rows_of(inputs["prompts"])
    rollouts = [
        {
            "prompt_id": row["id"],
            "prompt": row["prompt"],
            "response": "#",
            "token_ids": [9, 10, EOS],
        }
        for row in prompts
    ]
    own = {**inputs, "generations": write_rollouts(tmp_path / "g", rollouts)}
    values = run({**CFG, "grader": "world"}, own, tmp_path / "a")
    assert values["auroc"] == {"value": None, "low": None, "high": None, "n": 4}
    assert values["reward_correct_nats"]["value"] is None
    assert values["n_correct"]["value"] == 0 and values["n_incorrect"]["value"] == 4
    names = read_draws(tmp_path / "a" / "draws.parquet")
    assert "auroc" not in names and "reward_incorrect_nats" in names


def test_two_teachers_are_compared_on_the_same_draws(inputs: Inputs, tmp_path: Path) -> None:
    """What does not depend on the teacher has the same draws; a teacher who is the student gives no
    reward at all."""
    cfg = {**CFG, "temperature": 1.0, "grader": "world"}
    drawn = {}
    for name, teacher in (("theirs", inputs["teacher"]), ("own", inputs["student"])):
        run(cfg, {**inputs, "teacher": teacher}, tmp_path / name)
        drawn[name] = read_draws(tmp_path / name / "draws.parquet")
    for name in ("entropy_student_nats", "n_correct", "response_tokens"):
        assert np.array_equal(drawn["theirs"][name], drawn["own"][name])
        assert len(drawn["own"][name]) == draws.RESAMPLES
    assert drawn["theirs"]["response_tokens"].std() > 0
    assert drawn["own"]["reward_nats"] == pytest.approx(0) == drawn["own"]["kl_nats"]
    assert np.all(drawn["own"]["auroc"] == 0.5)
    assert drawn["own"]["overlap_ratio"] == pytest.approx(1)


@pytest.mark.parametrize("wider", ["student", "teacher"])
def test_padded_heads_of_different_width(inputs: Inputs, tmp_path: Path, wider: str) -> None:
    """The rows beyond the shared ids change nothing."""
    plain = run(CFG, inputs, tmp_path / "plain")
    path = padded(inputs[wider], tmp_path / "padded", 80)
    assert run(CFG, {**inputs, wider: path}, tmp_path / "a") == plain


def test_the_teacher_reads_the_students_prompt_with_its_own_options(
    inputs: Inputs, tmp_path: Path
) -> None:
    """In the student's template, and with the student's options unless it has some."""
    template = "{{ 'x' if think else '' }}" + init.CHAT_TEMPLATE
    student = with_template(inputs["student"], tmp_path / "student", template)
    rows = rollouts.read_rollouts(inputs["generations"])
    same = rollouts.tokens({"chat_template_kwargs": {"think": True}}, rows, student)
    x = rendered(student, "x")[1]
    for one, row in zip(same, rows, strict=True):
        assert one.prompt == one.teacher_prompt == [x, *rendered(student, row["prompt"])]
        assert one.response == row["token_ids"]
    own = {"chat_template_kwargs": {"think": True}, "teacher_chat_template_kwargs": {}}
    (other, *_) = rollouts.tokens(own, rows, student)
    assert other.prompt == same[0].prompt == [x, *other.teacher_prompt]
    plain = run(CFG, inputs, tmp_path / "plain")
    with_x = run({**CFG, "teacher_chat_template_kwargs": {"think": True}},
                 {**inputs, "student": student}, tmp_path / "x")  # fmt: skip
    assert with_x["entropy_student_nats"] == plain["entropy_student_nats"]
    assert with_x["entropy_teacher_nats"] != plain["entropy_teacher_nats"]


def test_as_a_stage(inputs: Inputs, tmp_path: Path) -> None:
    """Through the store, with the files that the settings name."""
    cfg = {**CFG, "grader": "world", "inputs": list(inputs), "code": code_digest("pair")}
    where = (tmp_path / "made" / "digest.json", {}, tmp_path / "store")
    assert runner.run_stage("pair", cfg, list(inputs.values()), *where)
    assert not runner.run_stage("pair", cfg, list(inputs.values()), *where)
    made = {path.name for path in (tmp_path / "made" / "payload").iterdir()}
    assert made == {"probe.json", "draws.parquet", "metrics.parquet", "rollouts.parquet"}
    numbers = json.loads((tmp_path / "made" / "manifest.json").read_text())["numbers"]
    assert numbers["rollouts"] == 8 and 0 < numbers["auroc"] < 1


def test_what_does_not_fit_is_one_line(inputs: Inputs, tmp_path: Path) -> None:
    other = with_swapped_tokens(inputs["teacher"], tmp_path / "other", "4", "7")
    with pytest.raises(
        UserError, match=r"different tokenizers: token 9 is '4' for the student and '7'"
    ):
        run(CFG, {**inputs, "teacher": other}, tmp_path / "a")
    rows = rows_of(inputs["prompts"])
    few = tmp_path / "few"
    few.mkdir()
    tables.write(few / "prompts.parquet", rows[1:], PROMPTS)
    with pytest.raises(UserError, match=f"prompts: there is no prompt '{rows[0]['id']}'"):
        run({**CFG, "grader": "world"}, {**inputs, "prompts": few}, tmp_path / "b")
    none = write_rollouts(tmp_path / "none", [])
    with pytest.raises(UserError, match=r"none/generations\.parquet: there is no rollout in it"):
        run(CFG, {**inputs, "generations": none}, tmp_path / "c")
    beyond = [{"prompt_id": "a", "prompt": "1+1=", "token_ids": [60, EOS]}]
    own = {**inputs, "student": padded(inputs["student"], tmp_path / "wide", 80)}
    own["generations"] = write_rollouts(tmp_path / "beyond", beyond)
    with pytest.raises(UserError, match="token 60 is beyond the 54 that both models have"):
        run(CFG, own, tmp_path / "d")
    assert not any(list((tmp_path / name).iterdir()) for name in "abcd")

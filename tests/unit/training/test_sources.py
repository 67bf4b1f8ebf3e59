"""Distillation from rollouts that are not the student's own: what it equals, what is measured of
whom, what it refuses."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probing import logits, rendered, rows_of, with_swapped_tokens, with_template
from tiny import OPD, Inputs, Killed, course, files, generated, kill_at, run

from opd.core import tables
from opd.core.errors import UserError
from opd.losses.importance import importance_weights
from opd.models.schemas import GENERATIONS, LOGPROBS
from opd.training import shares

# The student's tokenizer: <pad>, <eos>, <unk>, <user>, <assistant>, digits from 5 on.
EOS, DIGIT = 1, 5
HALF: list[dict[str, Any]] = [{"own": 0.5}, {"generations": "generations:0", "share": 0.5}]
ALL: list[dict[str, Any]] = [{"generations": "generations:0", "share": 1.0}]


@pytest.fixture(scope="module")
def given(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Two responses of the teacher to each prompt, with their log-probabilities."""
    out = tmp_path_factory.mktemp("given") / "made"
    made = generated(inputs["teacher"], inputs["prompts"], out, logprobs=True)
    return {**inputs, "generations:0": made}


def responses(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables.read(
        folder / "generations.parquet", GENERATIONS
    ).to_pylist()
    return rows


def written(out: Path, rows: list[dict[str, Any]]) -> Path:
    out.mkdir()
    tables.write(out / "generations.parquet", rows, GENERATIONS)
    return out


def sampled_as(monkeypatch: pytest.MonkeyPatch, responses: Any) -> list[int]:
    """Have the student answer with ``responses`` (prompt, number of the call) in place of what it
    samples. Returns the numbers of prompts that it is asked, call by call."""
    from opd.training import distill

    asked: list[int] = []

    def sample(self: Any, prompts: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return [responses(prompt) for prompt in prompts]

    monkeypatch.setattr(distill.DistillationTrainer, "_generate_single_turn", sample)
    return asked


def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(prompt: list[int]) -> list[int]:
        raise AssertionError("the student samples")

    sampled_as(monkeypatch, never)


# How many of a step are of each source


def test_every_block_of_neighbours_holds_the_sources_in_their_proportion() -> None:
    numbers = shares.counts([0.5, 0.25, 0.25], 16)
    assert numbers == [8, 4, 4]
    drawn = shares.order(numbers, steps=40, seed=1)
    assert len(drawn) == 40 * 16
    for start in range(0, len(drawn), 4):
        assert sorted(drawn[start : start + 4]) == [0, 0, 1, 2]
    assert drawn == shares.order(numbers, steps=40, seed=1)
    assert drawn[:160] == shares.order(numbers, steps=10, seed=1)
    assert drawn != shares.order(numbers, steps=40, seed=2)
    # All twelve orders of a block are drawn: 160 of them miss one with a chance of 1e-5.
    blocks = {tuple(drawn[start : start + 4]) for start in range(0, len(drawn), 4)}
    assert len(blocks) == 12


def test_shares_that_no_step_can_have() -> None:
    with pytest.raises(UserError, match=r"a share of 0.3 of the 8 .* no whole number; .* as 0.25"):
        shares.counts([0.3, 0.7], 8)
    with pytest.raises(UserError, match=r"a share of 0.01 of the 8 .* as 0.125"):
        shares.counts([0.01, 0.99], 8)
    with pytest.raises(UserError, match=r"sum to 0.75; let them sum to 1"):
        shares.counts([0.5, 0.25], 8)
    assert shares.counts([1 / 3, 2 / 3], 3) == [1, 2]
    shares.require_equal_parts([6, 2], 2)
    with pytest.raises(UserError, match=r"the 6 and 2 rollouts .* equally to 4 processes"):
        shares.require_equal_parts([6, 2], 4)


# What it equals


def test_offline_is_on_policy_on_the_same_rollouts(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, where the student would sample what the generation holds; its third step takes
    the prompts of the first again. What is measured has other names."""
    by_prompt: dict[tuple[int, ...], list[list[int]]] = {}
    for row in responses(given["generations:0"]):
        prompt = tuple(rendered(given["student"], row["prompt"]))
        by_prompt.setdefault(prompt, []).append(row["token_ids"])
    used: Counter[tuple[int, ...]] = Counter()

    def recorded(prompt: list[int]) -> list[int]:
        used[tuple(prompt)] += 1
        own = by_prompt[tuple(prompt)]
        return own[(used[tuple(prompt)] - 1) % len(own)]

    with monkeypatch.context() as patch:
        assert sampled_as(patch, recorded) == []
        run("distill", {**OPD, "micro_batch": 4}, given, tmp_path / "own")
    assert sum(used.values()) == 24 and max(used.values()) == 4
    no_sampling(monkeypatch)
    numbers = run("distill", {**OPD, "micro_batch": 4, "rollouts": ALL}, given, tmp_path / "all")
    ours, theirs = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("all", "own"))
    assert ours == theirs != (given["student"] / "model.safetensors").read_bytes()
    for name in ("loss", "grad_norm"):
        assert course(tmp_path / "all", name) == course(tmp_path / "own", name)
    for name in ("kl_nats", "overlap_ratio", "entropy_gap_of_means_nats"):
        assert course(tmp_path / "all", f"offline_{name}") == course(tmp_path / "own", name)
    assert "kl_nats" not in numbers["first"] and "response_tokens" not in numbers["first"]
    assert course(tmp_path / "all", "source_0_share") == [1.0] * 3


def test_a_step_has_its_shares_and_metrics_of_the_student_are_of_its_own(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student answers two tokens, the first of them its own: no response of the generation is
    as short, so that every number tells whose it is."""
    rows = responses(given["generations:0"])
    for i, row in enumerate(rows):  # of one prompt none is left, of another one
        row["rejected"] = "boxed" if len(row["token_ids"]) < 3 or i in (2, 4, 5) else None
    answered = {row["prompt_id"] for row in rows if row["rejected"] is None}
    kept = [row for row in rows_of(given["prompts"]) if row["id"] in answered]
    assert 4 <= len(kept) < 10
    made = written(tmp_path / "made", rows)
    asked = sampled_as(monkeypatch, lambda prompt: [DIGIT, DIGIT + 1])
    cfg = {**OPD, "rollouts": HALF, "shuffle": True, "position_bin": 8}
    run("distill", {**cfg, "micro_batch": 2}, {**given, "generations:0": made}, tmp_path / "a")
    assert asked == [4, 4, 4]
    assert course(tmp_path / "a", "response_tokens") == [2.0] * 3
    assert course(tmp_path / "a", "truncation_ratio") == [1.0] * 3
    for name in ("source_0_share", "source_1_share"):
        assert course(tmp_path / "a", name) == [0.5] * 3
    shares_of_tokens = course(tmp_path / "a", "source_0_token_share")
    assert all(8 / (8 + 4 * 6) <= share <= 8 / (8 + 4 * 3) for share in shares_of_tokens)
    # The mean KL of the student's own states, by hand: of its first step, at both tokens.
    drawn = shares.order([4, 4], 3, OPD["seed"])[:8]
    from opd.training.order import shuffled

    taken = [kept[i] for i in shuffled(len(kept), 12, OPD["seed"])[:4]]
    own = [taken[slot // 2] for slot, source in enumerate(drawn) if source == 0]
    nats = []
    for row in own:
        prompt = rendered(given["student"], row["prompt"])
        logp, logq = (
            torch.log_softmax(torch.from_numpy(logits(given[who], [*prompt, DIGIT])[-2:]), -1)
            for who in ("student", "teacher")
        )
        nats += (logp.exp() * (logp - logq)).sum(-1).tolist()
    assert course(tmp_path / "a", "kl_nats")[0] == pytest.approx(np.mean(nats), rel=1e-4)
    assert course(tmp_path / "a", "offline_kl_nats")[0] != pytest.approx(np.mean(nats), rel=1e-2)


def test_responses_to_a_prompt_are_taken_in_turn(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten prompts of two responses, two steps of four of them with one rollout each, and again."""
    from opd.training import distill

    seen: list[tuple[int, ...]] = []
    tokens = distill.Trainer._generate_single_turn

    def spy(self: Any, prompts: Any, *rest: Any, **named: Any) -> Any:
        filled = tokens(self, prompts, *rest, **named)
        seen.extend(map(tuple, filled))
        return filled

    monkeypatch.setattr(distill.Trainer, "_generate_single_turn", spy)
    cfg = {**OPD, "rollouts": ALL, "rollouts_per_prompt": 1, "steps": 4}
    run("distill", cfg, given, tmp_path / "a")
    rows = [tuple(row["token_ids"]) for row in responses(given["generations:0"])]
    assert seen == rows[0:16:2] + rows[1:16:2]


def test_rollouts_of_two_sources_that_are_killed_go_on(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = {"execution": {"checkpoint_every": 1}}
    cfg = {**OPD, **execution, "rollouts": HALF, "shuffle": True, "micro_batch": 4}
    run("distill", cfg, given, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(2, patch)
        run("distill", cfg, given, tmp_path / "killed")
    run("distill", cfg, given, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_reward_is_measured_on_the_students_own(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generation is right everywhere, the student nowhere."""
    answers = {row["id"]: row["answer"] for row in rows_of(given["prompts"])}
    tokens = {c: i for i, c in enumerate("0123456789+-*=;#", DIGIT)}
    rows = [
        row | {"response": f"#{answers[row['prompt_id']]}", "finish": "stop"}
        for row in responses(given["generations:0"])
    ]
    rows = [row | {"token_ids": [*(tokens[c] for c in row["response"]), EOS]} for row in rows]
    made = written(tmp_path / "made", rows)
    sampled_as(monkeypatch, lambda prompt: [DIGIT, EOS])
    reward = {"reward": {"grader": "world"}, "weight": 1.0}
    cfg = {key: value for key, value in OPD.items() if key != "loss"}
    cfg |= {"terms": [{"teacher": "teacher", "loss": {"k": 4}, "weight": 1.0}, reward], "steps": 1}
    run("distill", {**cfg, "rollouts": HALF}, {**given, "generations:0": made}, tmp_path / "a")
    assert course(tmp_path / "a", "term_1_reward") == [0.0]
    # Half of a group is right, so that its advantages are of that size, and so are losses.
    assert course(tmp_path / "a", "term_1_loss")[0] != 0
    offline = {**cfg, "rollouts": ALL}
    numbers = run("distill", offline, {**given, "generations:0": made}, tmp_path / "b")
    assert "term_1_reward" not in numbers["first"]


# Importance weights


def test_importance_weights_are_capped_ratios() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5]).log_softmax(-1)
    behaviour = torch.tensor([0.25, 0.25, 0.5]).log()
    weights = importance_weights(logprobs, behaviour, torch.tensor([1.5, 1.5, 1.05]))
    ratios = logprobs.exp() / torch.tensor([0.25, 0.25, 0.5])
    assert ratios[0] > ratios[2] > 1.05
    torch.testing.assert_close(weights, torch.tensor([ratios[0], ratios[1], 1.05]))
    # Uncapped, the mean over what is sampled with m is that over p.
    values = torch.tensor([3.0, -1.0, 7.0])
    free = importance_weights(logprobs, behaviour, torch.full((3,), torch.inf))
    assert float((behaviour.exp() * free * values).sum()) == pytest.approx(
        float((logprobs.exp() * values).sum())
    )


def test_a_stale_source_is_weighed_by_what_the_student_makes_of_it(
    given: Inputs, tmp_path: Path
) -> None:
    """The loss of a step, by hand: over all tokens, min(p / m, c) log p / q of what was sampled."""
    source = {**ALL[0], "importance": {"clip": 1.25}}
    cfg = {**OPD, "loss": {"preset": "sampled"}, "rollouts": [source], "steps": 1}
    run("distill", {**cfg, "micro_batch": 2}, given, tmp_path / "a")
    losses, weights = [], []
    for row in responses(given["generations:0"])[:8]:
        tokens = [*rendered(given["student"], row["prompt"]), *row["token_ids"]]
        at = np.arange(len(row["token_ids"]))
        logp, logq = (
            torch.log_softmax(torch.from_numpy(logits(given[who], tokens)), -1).numpy()[
                len(tokens) - len(at) - 1 : -1
            ][at, row["token_ids"]]
            for who in ("student", "teacher")
        )
        # The teacher has sampled it.
        own = np.minimum(np.exp(logp - logq), 1.25)
        weights += own.tolist()
        losses += (own * (logp - logq)).tolist()
    assert 1.25 in weights and min(weights) < 1
    assert course(tmp_path / "a", "loss")[0] == pytest.approx(np.mean(losses), rel=1e-4)
    measured = course(tmp_path / "a", "source_0_importance")[0]
    assert measured == pytest.approx(np.mean(weights), rel=1e-4)


def test_what_the_student_has_just_sampled_has_weight_one(
    given: Inputs, inputs: Inputs, tmp_path: Path
) -> None:
    """Until it has moved away from it."""
    made = generated(inputs["student"], inputs["prompts"], tmp_path / "made", logprobs=True)
    source = {**ALL[0], "importance": {"clip": 2.0}}
    cfg = {**OPD, "loss": {"preset": "sampled"}, "rollouts": [source], "lr": 1e-2}
    run("distill", cfg, {**given, "generations:0": made}, tmp_path / "a")
    first, _, last = course(tmp_path / "a", "source_0_importance")
    assert first == pytest.approx(1, abs=1e-5) and last != pytest.approx(1, abs=1e-3)


# What is refused before anything is trained


def refusal(cfg: dict[str, Any], given: Inputs, out: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("distill", {**OPD, **cfg}, given, out)
    assert not list(out.iterdir())


def test_a_generation_of_other_prompts(given: Inputs, tmp_path: Path) -> None:
    rows = responses(given["generations:0"])
    fewer = written(tmp_path / "fewer", rows[4:])
    id = rows[0]["prompt_id"]
    refusal(
        {"rollouts": HALF},
        {**given, "generations:0": fewer},
        tmp_path / "a",
        rf"rollouts.1.generations: the generation was not asked the prompt '{id}' of the run; name",
    )
    other = [row | {"prompt": "2*2="} if row["prompt_id"] == id else row for row in rows]
    asked = {**given, "generations:0": written(tmp_path / "other", other)}
    refusal({"rollouts": ALL}, asked, tmp_path / "b", r"was not asked the prompt")


def test_prompts_without_a_response_are_left_out_and_told(
    given: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = responses(given["generations:0"])
    ids = list(dict.fromkeys(row["prompt_id"] for row in rows))
    gone = {ids[0], ids[3]}
    rejected = [row | {"rejected": "boxed" if row["prompt_id"] in gone else None} for row in rows]
    made = written(tmp_path / "made", rejected)
    cfg = {"rollouts": ALL, "rollouts_per_prompt": 1, "steps": 2}
    run("distill", {**OPD, **cfg}, {**given, "generations:0": made}, tmp_path / "a")
    assert "note: 2 of 10 prompts have no response that no rule rejected" in capsys.readouterr().err
    none = written(tmp_path / "none", [row | {"rejected": "boxed"} for row in rows])
    asked = {**given, "generations:0": none}
    refusal(cfg, asked, tmp_path / "b", r"there is no response in it; loosen the rules")
    few = [row | {"rejected": None if row["prompt_id"] in gone else "boxed"} for row in rows]
    asked = {**given, "generations:0": written(tmp_path / "few", few)}
    refusal(cfg, asked, tmp_path / "c", r"prompts: 2 prompts cannot fill a step of 4")


def test_a_generation_of_another_tokenizer(given: Inputs, tmp_path: Path) -> None:
    """One that has two of the digits in each other's place."""
    model = with_swapped_tokens(given["teacher"], tmp_path / "model", "1", "2")
    made = generated(model, given["prompts"], tmp_path / "made", samples=4)
    texts = "".join(row["response"] for row in responses(made))
    assert "1" in texts or "2" in texts
    asked = {**given, "generations:0": made}
    message = r"rollouts.0: .*the student's tokenizer reads another text .*; take a generation of"
    refusal({"rollouts": ALL}, asked, tmp_path / "a", message)


def test_a_token_that_the_student_does_not_learn(given: Inputs, tmp_path: Path) -> None:
    rows = responses(given["generations:0"])
    rows[-1] = rows[-1] | {"token_ids": [54], "finish": "length"}
    asked = {**given, "generations:0": written(tmp_path / "made", rows)}
    message = r"rollouts.0: \S*generations.parquet: token 54 is beyond the 54 that the student"
    refusal({"rollouts": ALL}, asked, tmp_path / "a", message)


def test_responses_that_end_where_the_student_goes_on(given: Inputs, tmp_path: Path) -> None:
    rows = responses(given["generations:0"])
    rows[0] = rows[0] | {"token_ids": [DIGIT, 3], "response": "0", "finish": "stop"}
    asked = {**given, "generations:0": written(tmp_path / "made", rows)}
    message = r"responses end with <user>, at which the student does not stop; say end_tokens"
    refusal({"rollouts": ALL}, asked, tmp_path / "a", message)


def test_responses_longer_than_the_run_allows(given: Inputs, tmp_path: Path) -> None:
    cfg = {"rollouts": ALL, "max_new_tokens": 5}
    message = r"rollouts.0: .*a response has 6 tokens, max_new_tokens is 5; raise"
    refusal(cfg, given, tmp_path / "a", message)


def test_importance_weights_without_what_they_need(given: Inputs, tmp_path: Path) -> None:
    rows = responses(given["generations:0"])
    asked = {**given, "generations:0": written(tmp_path / "made", rows)}
    cfg = {"rollouts": [{**ALL[0], "importance": {"clip": 2.0}}], "loss": {"preset": "sampled"}}
    refusal(cfg, asked, tmp_path / "a", r"rollouts.0: \S*logprobs.parquet: no such file")
    short = tables.read(given["generations:0"] / "logprobs.parquet", LOGPROBS).to_pylist()
    short[3] = short[3] | {"logprobs": short[3]["logprobs"][:-1]}
    tables.write(asked["generations:0"] / "logprobs.parquet", short, LOGPROBS)
    refusal(cfg, asked, tmp_path / "b", r"not a log-probability of each token")


def test_the_students_own_template_asks(given: Inputs, tmp_path: Path) -> None:
    """The generation was sampled in another: its responses are read after the student's prompt."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<user>so: {{ m.content }}"
        "{% else %}<assistant>{{ m.content }}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    changed = {
        who: with_template(given[who], tmp_path / who, template) for who in ("student", "teacher")
    }
    cfg = {**OPD, "rollouts": ALL, "steps": 1, "max_prompt_tokens": 32, "loss": {"preset": "full"}}
    run("distill", cfg, {**given, **changed}, tmp_path / "a")
    nats = []
    for row in responses(given["generations:0"])[:8]:
        n = len(row["token_ids"])
        tokens = [*rendered(given["student"], f"so: {row['prompt']}"), *row["token_ids"]]
        logp, logq = (
            torch.log_softmax(torch.from_numpy(logits(given[who], tokens)[-n - 1 : -1]), -1)
            for who in ("student", "teacher")
        )
        nats += (logp.exp() * (logp - logq)).sum(-1).tolist()
    assert course(tmp_path / "a", "loss")[0] == pytest.approx(np.mean(nats), rel=1e-4)

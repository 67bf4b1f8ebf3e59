"""GRPO: rewards, advantages, gradients and clipping against hand-made references."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import GRPO, WORLD, Inputs, course, files, run
from transformers import AutoModelForCausalLM

from opd.core.errors import UserError
from opd.data import world
from opd.grading import graders
from opd.training import grpo, resume


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with a reward that random weights meet now and then: a digit comes first."""
    first_is_digit = lambda text, truth: (text[:1], text[:1].isdigit())  # noqa: E731
    monkeypatch.setitem(graders.GRADERS, "digit", first_is_digit)
    return {**GRPO, "grader": "digit", "group_size": 8}


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """(arguments and result) of every call of a method of the trainer."""
    calls: list[tuple[Any, ...]] = []
    method = getattr(grpo.Trainer, name)

    def spied(self: Any, *args: Any) -> Any:
        result = method(self, *args)
        calls.append((self, *args, result))
        return result

    monkeypatch.setattr(grpo.Trainer, name, spied)
    return calls


def test_advantages_are_standardised_in_their_group(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: dict[str, Any]
) -> None:
    calls = spy(monkeypatch, "_generate_and_score_completions")
    run("grpo", digits, inputs, tmp_path / "a")
    rewards_by_step = []
    for trainer, rows, batch in calls:
        assert len({row["prompt"][0]["content"] for row in rows[:8]}) == 1  # a group
        texts = trainer.processing_class.batch_decode(
            batch["completion_ids"], skip_special_tokens=True
        )
        rewards = np.array([float(text[:1].isdigit()) for text in texts]).reshape(4, 8)
        spread = rewards.std(1, ddof=1, keepdims=True)
        expected = (rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-4)
        assert batch["advantages"].numpy() == pytest.approx(expected.ravel(), abs=1e-5)
        rewards_by_step.append(rewards)
    assert any(rewards.std() > 0 for rewards in rewards_by_step)
    assert course(tmp_path / "a", "reward") == pytest.approx([r.mean() for r in rewards_by_step])
    assert course(tmp_path / "a", "correct") == course(tmp_path / "a", "reward")
    flat = [float((r.std(1) == 0).mean()) for r in rewards_by_step]
    assert course(tmp_path / "a", "groups_without_variance") == pytest.approx(flat)


def test_gradient_of_one_token_responses(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: dict[str, Any]
) -> None:
    """There the loss is -mean A log p, so its gradient by the logits is A (p - onehot) / n."""
    calls = spy(monkeypatch, "_generate_and_score_completions")
    gradients: dict[str, torch.Tensor] = {}
    before = resume.Steps.on_pre_optimizer_step

    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        named = self.trainer.model.named_parameters()
        gradients.update({name: p.grad.clone() for name, p in named})
        before(self, *args, **kwargs)

    monkeypatch.setattr(resume.Steps, "on_pre_optimizer_step", look)
    cfg = {**digits, "steps": 1, "max_new_tokens": 1, "max_grad_norm": 1e9, "micro_batch": 16}
    run("grpo", cfg, inputs, tmp_path / "a")
    ((_, _, batch),) = calls
    advantages, token = batch["advantages"], batch["completion_ids"][:, 0]
    assert advantages.abs().max() > 0
    model = AutoModelForCausalLM.from_pretrained(inputs["student"])
    total = torch.zeros(())
    for row in range(32):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row] != 0]
        logits = model(prompt[None]).logits[0, -1]
        by_logits = logits.detach().softmax(-1)
        by_logits[token[row]] -= 1
        total = total + (logits * by_logits * advantages[row] / 32).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        assert gradients[name] == pytest.approx(parameter.grad, rel=1e-3, abs=1e-6), name


def test_several_updates_clip_by_their_two_bounds(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: dict[str, Any]
) -> None:
    """Each update's loss from its rollouts: no KL, the token mean by the batch's mean tokens of an
    update; every rollout is used once."""
    rollouts = spy(monkeypatch, "_generate_and_score_completions")
    losses: list[tuple[float, float]] = []
    parts: list[torch.Tensor] = []
    ratios: list[float] = []
    compute = grpo.Trainer._compute_loss

    def naive(self: Any, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = compute(self, model, batch)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        n = batch["completion_ids"].shape[1]
        with torch.no_grad():
            logp = model(input_ids=ids, attention_mask=mask).logits[:, -n - 1 : -1].log_softmax(-1)
        logp = logp.gather(2, batch["completion_ids"][..., None])[..., 0]
        summed = 0.0
        for row, column in (batch["completion_mask"] != 0).nonzero().tolist():
            gap = logp[row, column] - batch["old_per_token_logps"][row, column]
            ratio, a = float(gap.exp()), float(batch["advantages"][row])
            summed -= min(ratio * a, min(max(ratio, 0.8), 1.28) * a)
            ratios.append(ratio)
        losses.append((float(loss.detach()), summed / (float(batch["num_items_in_batch"]) / 4)))
        parts.append(batch["completion_ids"])
        return loss

    monkeypatch.setattr(grpo.Trainer, "_compute_loss", naive)
    cfg = {**digits, "steps": 2, "updates_per_batch": 4, "clip_high": 0.28, "lr": 3e-2}
    run("grpo", cfg, inputs, tmp_path / "a")
    assert len(rollouts) == 2 and len(losses) == 8
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert min(ratios) < 0.8 and max(ratios) > 1.28
    for i, (_, _, batch) in enumerate(rollouts):
        used = torch.cat(parts[4 * i : 4 * i + 4]).tolist()
        assert sorted(used) == sorted(batch["completion_ids"].tolist())
    assert len(course(tmp_path / "a", "loss")) == 8
    assert len(course(tmp_path / "a", "reward")) == 2  # where there were new rollouts
    clipped = course(tmp_path / "a", "clip_ratio")
    assert clipped[0] == clipped[4] == 0 and max(clipped) > 0
    low, high = (course(tmp_path / "a", f"clip_ratio_{side}") for side in ("low", "high"))
    assert clipped == pytest.approx([x + y for x, y in zip(low, high, strict=True)])


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", None])
def test_how_losses_of_tokens_become_that_of_an_update(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: dict[str, Any],
    aggregation: str | None,
) -> None:
    """The gradient of two updates on one batch, each of four passes through the model with four
    responses of unequal lengths, against one that is summed up response by response."""
    passes: list[dict[str, torch.Tensor]] = []
    compute = grpo.Trainer._compute_loss

    def seen(self: Any, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        passes.append(batch)
        return compute(self, model, batch)

    updates: list[tuple[float, float]] = []
    lengths: set[int] = set()
    before = resume.Steps.on_pre_optimizer_step

    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        given = torch.cat([p.grad.flatten() for p in self.trainer.model.parameters()])
        model = AutoModelForCausalLM.from_pretrained(inputs["student"])
        model.load_state_dict(self.trainer.model.state_dict())
        naive = []
        for weigh in ("sequence_mean", "token_mean"):
            model.zero_grad()
            total = torch.zeros(())
            for batch in passes:
                for row, advantage in enumerate(batch["advantages"].tolist()):
                    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row] != 0]
                    counts = batch["completion_mask"][row] != 0
                    response = batch["completion_ids"][row][counts]
                    logits = model(torch.cat([prompt, response])[None]).logits[0, :-1]
                    logp = logits[-len(response) :].log_softmax(-1)
                    ratio = logp.gather(1, response[:, None])[:, 0]
                    ratio = (ratio - batch["old_per_token_logps"][row][counts]).exp()
                    loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                    lengths.add(len(response))
                    # 16 of the 32 responses of the batch, or half of its tokens.
                    share = 16 * len(response)
                    if weigh == "token_mean":
                        share = float(batch["num_items_in_batch"]) / 2
                    total = total + loss.sum() / share
            total.backward()
            naive.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        distances = [float((given - one).norm() / one.norm()) for one in naive]
        updates.append((distances[0], distances[1]))
        assert len(passes) == 4
        passes.clear()
        before(self, *args, **kwargs)

    monkeypatch.setattr(grpo.Trainer, "_compute_loss", seen)
    monkeypatch.setattr(resume.Steps, "on_pre_optimizer_step", look)
    cfg = {**digits, "steps": 1, "updates_per_batch": 2, "micro_batch": 4, "lr": 3e-2}
    if aggregation:
        cfg["aggregation"] = aggregation
    run("grpo", {**cfg, "max_grad_norm": 1e9}, inputs, tmp_path / "a")
    assert len(updates) == 2 and len(lengths) > 2
    for by_sequence, by_token in updates:
        right, wrong = by_sequence, by_token
        if aggregation != "sequence_mean":
            right, wrong = wrong, right
        assert right < 1e-3 and wrong > 0.02, (right, wrong)


def test_one_update_takes_what_it_took_before_there_could_be_several(
    inputs: Inputs, tmp_path: Path, digits: dict[str, Any]
) -> None:
    run("grpo", digits, inputs, tmp_path / "a")
    given = {**digits, "updates_per_batch": 1, "clip": 0.2, "clip_high": 0.2, "top_p": 1.0}
    run("grpo", {**given, "importance_cap": 2.0}, inputs, tmp_path / "b")
    # transformers samples from the trained model: there is nothing to weight.
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_reward_rises(inputs: Inputs, tmp_path: Path, digits: dict[str, Any]) -> None:
    cfg = {**digits, "steps": 60, "lr": 1e-2, "max_new_tokens": 4}
    run("grpo", cfg, inputs, tmp_path / "a")
    reward = course(tmp_path / "a", "reward")
    assert np.mean(reward[:3]) < 0.4 < 0.9 < np.mean(reward[-3:])
    assert course(tmp_path / "a", "groups_without_variance")[-1] > 0.5


def test_epochs_are_whole_batches_of_prompts(
    inputs: Inputs, tmp_path: Path, digits: dict[str, Any]
) -> None:
    """Ten prompts, four a batch: two batches an epoch."""
    cfg = {**digits, "epochs": 3, "lr": 1e-9}
    del cfg["steps"]
    run("grpo", cfg, inputs, tmp_path / "a")
    assert len(course(tmp_path / "a", "reward")) == 6


@given(
    tokens=st.integers(1, 30000),
    limit=st.integers(2, 20480),
    cache=st.integers(1, 20480),
)
def test_length_penalty_is_dapos_soft_punishment(tokens: int, limit: int, cache: int) -> None:
    """Against the three cases as DAPO prints them."""
    cache = min(cache, limit)
    if tokens <= limit - cache:
        expected = 0.0
    elif tokens <= limit:
        expected = ((limit - cache) - tokens) / cache
    else:
        expected = -1.0
    assert -grpo.length_penalty(tokens, limit, free=limit - cache) == pytest.approx(expected)


def test_length_penalty_as_a_price_per_token() -> None:
    for tokens in (1, 10, 100):
        assert grpo.length_penalty(tokens, 100, weight=0.5) == pytest.approx(0.005 * tokens)


def test_a_length_penalty_shortens_responses(inputs: Inputs, tmp_path: Path) -> None:
    """Where no answer is right, brevity is the whole reward."""
    cfg = {**GRPO, "group_size": 8, "steps": 25, "lr": 1e-2, "max_new_tokens": 16}
    run("grpo", {**cfg, "length_penalty": {"weight": 0.5, "free": 2}}, inputs, tmp_path / "a")
    tokens, correct, brevity, reward = (
        course(tmp_path / "a", name) for name in ("response_tokens", "correct", "brevity", "reward")
    )
    assert reward == pytest.approx([c + b for c, b in zip(correct, brevity, strict=True)], abs=1e-6)
    # 16 tokens cost 0.5, two nothing: no less than at the mean length, as the price is convex.
    price = [0.5 * max(0.0, (mean - 2) / 14) for mean in tokens]
    assert all(-b >= p - 1e-6 for b, p in zip(brevity, price, strict=True)) and max(price) > 0.2
    assert np.mean(tokens[-3:]) < 0.5 * np.mean(tokens[:3])


def test_importance_weights_as_trl_takes_them() -> None:
    from trl import GRPOConfig

    assert grpo.importance_weights(None) == {"vllm_importance_sampling_correction": False}
    config = GRPOConfig("x", use_cpu=True, bf16=False, **grpo.importance_weights(2.0))
    assert config.vllm_importance_sampling_mode == "token_truncate"
    assert config.vllm_importance_sampling_clip_max == 2.0
    assert config.vllm_importance_sampling_clip_min is None


def test_what_another_engine_sampled_is_weighted_up_to_the_cap(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: dict[str, Any]
) -> None:
    """vLLM's place is taken by the model itself, said to have given every token a probability of
    exp(-4): the loss is -sum A min(p / exp(-4), cap) / tokens."""
    generate = grpo.Trainer._generate_single_turn

    def engine(self: Any, *args: Any) -> tuple[Any, Any]:
        ids, _ = generate(self, *args)
        self.use_vllm = True
        return ids, [[-4.0] * len(one) for one in ids]

    monkeypatch.setattr(grpo.Trainer, "_generate_single_turn", engine)
    calls = spy(monkeypatch, "_generate_and_score_completions")
    cfg = {**digits, "steps": 1, "importance_cap": 1.5}
    run("grpo", cfg, inputs, tmp_path / "a")
    batch = calls[0][2]
    model = AutoModelForCausalLM.from_pretrained(inputs["student"])
    total, weights = 0.0, []
    for row in range(32):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row] != 0]
        response = batch["completion_ids"][row][batch["completion_mask"][row] != 0]
        with torch.no_grad():
            logp = model(torch.cat([prompt, response])[None]).logits[0].log_softmax(-1)
        for i, token in enumerate(response.tolist()):
            p = float(logp[len(prompt) + i - 1, token].exp())
            weights.append(min(p / np.exp(-4), 1.5))
            total -= weights[-1] * float(batch["advantages"][row])
    assert min(weights) < 1 < max(weights) == 1.5
    assert course(tmp_path / "a", "loss") == pytest.approx([total / len(weights)], abs=1e-4)
    assert course(tmp_path / "a", "importance_weight") == pytest.approx([np.mean(weights)])
    assert course(tmp_path / "a", "importance_weight_max") == [1.5]


def test_what_the_model_is_asked_with_privileged_information(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "_generate_and_score_completions")
    cfg = {**GRPO, "steps": 1, "max_prompt_tokens": 32}
    template = "{question} so {answer}"
    run("grpo", {**cfg, "information": [{"message": template}]}, inputs, tmp_path / "a")
    rows = world.make_prompts(WORLD, "rl", 10)
    assert [one["prompt"][0]["content"] for one in calls[0][1]] == [
        f"{row['question']} so {row['answer']}" for row in rows[:4] for _ in range(2)
    ]
    assert [one["answer"] for one in calls[0][1][::2]] == [row["answer"] for row in rows[:4]]
    with pytest.raises(UserError, match=r"row 0 \(rl-00000\): the prompt has \d+ tokens"):
        long = {**GRPO, "information": [{"message": "{question}" * 9}]}
        run("grpo", long, inputs, tmp_path / "b")


def test_top_p_one_token_is_greedy(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With next to no mass left, every response of a group is the same."""
    calls = spy(monkeypatch, "_generate_and_score_completions")
    run("grpo", {**GRPO, "steps": 1, "top_p": 1e-6}, inputs, tmp_path / "a")
    ids = calls[0][2]["completion_ids"]
    assert torch.equal(ids[::2], ids[1::2])

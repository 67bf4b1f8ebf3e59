"""What tokens count: naive counts, closed forms, and what holds of all weights."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd.losses.head import Head
from opd.losses.spec import PRESETS
from opd.losses.terms import States
from opd.losses.token import token_loss
from opd.losses.weights import drift, in_quantiles, state_scores, token_weights

N = 40


def scores(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("entropy", "teacher_entropy", "divergence", "overlap", "drift")
    made = {name: torch.rand(N, generator=generator) for name in names}
    made["advantage"] = torch.randn(N, generator=generator)
    made["position"] = torch.arange(N).remainder(10).float()
    made["length"] = torch.full((N,), 10.0)
    made["correct"] = (torch.arange(N) < 10).float()
    return made


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_quantiles_are_counts(values: list[int], share: float) -> None:
    """The lowest ceil(N x), at least one, with all that equal the last of them; the highest
    likewise; both sides together."""
    score = torch.tensor(values, dtype=torch.float32)

    def lowest(values: list[int], share: float) -> list[bool]:
        wanted = max(1, math.ceil(round(len(values) * share, 6)))
        border = sorted(values)[wanted - 1]
        return [value <= border for value in values]

    below = in_quantiles(score, {"below_quantile": share}).tolist()
    assert below == lowest(values, share)
    above = in_quantiles(score, {"above_quantile": share}).tolist()
    assert above == lowest([-value for value in values], 1 - share)
    low, high = sorted((share, 1 - share))
    outside = in_quantiles(score, {"outside_quantiles": [low, high]}).tolist()
    sides = zip(lowest(values, low), lowest([-v for v in values], 1 - high), strict=True)
    assert outside == [a or b for a, b in sides]


def test_a_fifth_of_ten_is_two() -> None:
    """Though 10 (1 - 0.8) is 1.9999999999999996."""
    kept = in_quantiles(torch.arange(10.0), {"above_quantile": 0.8})
    assert kept.tolist() == [False] * 8 + [True] * 2


@pytest.mark.parametrize(
    ("tokens", "counting"),
    [
        ({"prefix": 3}, 12),
        ({"entropy": {"above_quantile": 0.75}}, 10),
        ({"teacher_entropy": {"below_quantile": 0.5}}, 20),
        ({"divergence": {"outside_quantiles": [0.1, 0.9]}}, 8),
        ({"overlap": {"above_quantile": 0.5}}, 20),
        ({"advantage": {"below_quantile": 0.1}}, 4),
        ({"correct": {"keep": "right"}}, 10),
        ({"correct": {"keep": "wrong"}}, 30),
        ({"correct": {"keep": "right"}, "prefix": 3}, 3),
        ({"linear": [1.0, 0.1]}, N),
        ({"drift": 0.5}, N),
        ({"drift": 0.5, "linear": [1.0, 0.5], "prefix": 5}, 20),
    ],
)
def test_weights_sum_to_the_tokens_that_count(tokens: dict[str, Any], counting: int) -> None:
    """And go with the tokens, in whatever order a step has them."""
    weights = token_weights(tokens, scores())
    assert int((weights != 0).sum()) == counting
    assert weights.min() >= 0 and weights.sum().item() == pytest.approx(counting, rel=1e-5)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    moved = token_weights(tokens, {name: score[order] for name, score in scores().items()})
    torch.testing.assert_close(moved, weights[order])


@pytest.mark.parametrize("tokens", [{"linear": [2.0, 2.0]}, {"drift": 0.0}, {"clip_nats": 99.0}])
def test_weights_that_are_alike_are_one(tokens: dict[str, Any]) -> None:
    assert torch.equal(token_weights(tokens, scores()), torch.ones(N))


def test_weights_by_hand() -> None:
    made = {name: score[:4] for name, score in scores().items()} | {"length": torch.full((4,), 4.0)}
    linear = token_weights({"linear": [1.0, 0.0]}, made)
    torch.testing.assert_close(linear, torch.tensor([3.0, 2.0, 1.0, 0.0]) * (4 / 6))
    made["drift"] = torch.tensor([0.0, 0.25, 0.5, 1.0])
    weights = torch.tensor([1.5, 1.375, 1.25, 1.0])
    torch.testing.assert_close(token_weights({"drift": 0.5}, made), weights * 4 / weights.sum())


def test_nothing_counts() -> None:
    empty = {name: score[:0] for name, score in scores().items()}
    assert token_weights({"entropy": {"above_quantile": 0.5}, "drift": 1.0}, empty).shape == (0,)
    wrong = scores() | {"correct": torch.zeros(N)}
    assert not token_weights({"correct": {"keep": "right"}}, wrong).any()


def test_drift_is_what_lies_before_a_token() -> None:
    """Token by token, over what the mask has."""
    advantage = torch.tensor([[1.0, -3.0, 4.0, 7.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    expected = torch.tensor([[0, 1 / 8, 4 / 8, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(drift(advantage, mask), expected)


def test_a_clipped_log_ratio() -> None:
    """The sampled loss with A clipped to [-c, c], and its gradient."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 6, 9, generator=generator, dtype=torch.float64) * 2
    student.requires_grad_()
    ids = torch.randint(0, 9, (4, 6), generator=generator)
    loss = token_loss(student, teacher, ids, torch.ones(4, 6), PRESETS["sampled"])
    logp, logq = (
        x.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1) for x in (student, teacher)
    )
    advantage = (logq - logp).detach()
    assert (advantage.abs() > 1.5).any() and (advantage.abs() < 1.5).any()
    weights = token_weights({"clip_nats": 1.5}, {"advantage": advantage.flatten()}).view(4, 6)
    clipped = advantage.clamp(-1.5, 1.5)
    torch.testing.assert_close(weights * loss, -clipped)
    ours, expected = (
        torch.autograd.grad(x.sum(), student, retain_graph=True)[0]
        for x in (weights * loss, -clipped * logp)
    )
    torch.testing.assert_close(ours, expected)


def test_scores_of_states_are_those_of_their_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    ids = torch.randint(0, 11, (2, 3), generator=generator)
    hidden, weight = torch.randn(2, 2, 3, 5, generator=generator), torch.randn(2, 11, 5)
    student, teacher = (States(h, Head(w)) for h, w in zip(hidden, weight, strict=True))
    found = state_scores(student, teacher, (0.7, 1.3), ids, mask, 4)
    logits = [s.hidden.double() @ s.head.weight.double().T for s in (student, teacher)]
    logp, logq = (logits[0] / 0.7).log_softmax(-1), (logits[1] / 1.3).log_softmax(-1)
    tops = [{*row.tolist()} for row in logp.view(6, 11).topk(4).indices]
    theirs = [{*row.tolist()} for row in logq.view(6, 11).topk(4).indices]
    shared = [len(a & b) / 4 for a, b in zip(tops, theirs, strict=True)]
    ratio = (logq - logp).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    expected = {
        "entropy": -(logp.exp() * logp).sum(-1),
        "teacher_entropy": -(logq.exp() * logq).sum(-1),
        "divergence": (logp.exp() * (logp - logq)).sum(-1),
        "overlap": torch.tensor(shared, dtype=torch.float64).view(2, 3),
        "advantage": ratio,
        "drift": drift(ratio, mask),
    }
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        torch.testing.assert_close(found[name].double(), score * mask, rtol=1e-4, atol=1e-5)

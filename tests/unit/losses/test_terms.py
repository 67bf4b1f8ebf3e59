"""The losses of terms, against plain definitions on logits in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opd.losses.head import Head
from opd.losses.spec import PRESETS
from opd.losses.terms import States, group_advantages, policy_gradient, reward_loss, teacher_loss
from opd.losses.token import token_loss

B, T, V, H = 2, 5, 23, 8
MASK = torch.arange(T).expand(B, T) < torch.tensor([[T], [3]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IDS = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(9))
ADVANTAGES = torch.tensor([1.5, -0.5])


def test_the_gradient_of_a_reward_is_that_of_the_log_probability() -> None:
    """-A grad log p(y) by central differences, though its value is -A alone."""
    z, eps = random(V), 1e-6

    def logp(z: Tensor) -> Tensor:
        return z.log_softmax(-1)[3]

    leaf = z.clone().requires_grad_()
    loss = policy_gradient(logp(leaf), torch.tensor(-0.7, dtype=torch.float64))
    (ours,) = torch.autograd.grad(loss, leaf)
    steps = torch.eye(V, dtype=torch.float64) * eps
    numeric = torch.stack([0.7 * (logp(z + s) - logp(z - s)) / (2 * eps) for s in steps])
    assert loss.item() == pytest.approx(0.7)
    torch.testing.assert_close(ours, numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_reward_from_hidden_states(softcap: float | None, temperature: float) -> None:
    """Value and gradient of the policy gradient on the logits of a head with all it may have."""
    leaves = [random(B, T, H), random(V, H, seed=1), random(V, seed=2)]
    ours = [x.float().requires_grad_() for x in leaves]
    head = Head(ours[1], ours[2], scale=0.6, softcap=softcap)
    student = States(ours[0], head)
    loss = reward_loss(temperature)(student, student, IDS, MASK, ADVANTAGES)
    plain = [x.clone().requires_grad_() for x in leaves]
    logits = 0.6 * (plain[0] @ plain[1].T + plain[2])
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logp = (logits / temperature).log_softmax(-1).gather(-1, IDS.unsqueeze(-1)).squeeze(-1)
    expected = -(ADVANTAGES.double().unsqueeze(1) * MASK) * logp
    assert torch.equal(loss, -(ADVANTAGES.unsqueeze(1) * MASK))
    uneven = torch.linspace(0.5, 2, B * T).view(B, T)
    gradients = zip(
        torch.autograd.grad((loss * uneven).sum(), ours),
        torch.autograd.grad((expected * uneven.double()).sum(), plain),
        strict=True,
    )
    for gradient, wanted in gradients:
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


def test_where_no_token_counts_every_weight_still_has_a_gradient() -> None:
    leaves = [random(B, T, H).float().requires_grad_(), random(V, H).float().requires_grad_()]
    student = States(leaves[0], Head(leaves[1]))
    loss = reward_loss(1.0)(student, student, IDS, torch.zeros(B, T), ADVANTAGES)
    assert not loss.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss.sum(), leaves))


def test_advantages_within_a_group() -> None:
    """Three of four right: mean 3/4, variance (3/16 x 3/4 + 9/16 x 1/4) x 4/3 = 1/4. All alike: 0,
    whatever the other group has."""
    rewards = torch.tensor([1.0, 0, 1, 1, 0, 0, 0, 0])
    expected = torch.tensor([0.25, -0.75, 0.25, 0.25, 0, 0, 0, 0]) / (0.5 + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, 4), expected)


@pytest.mark.parametrize("factor", [0.5, 1.25, 2.0])
@pytest.mark.parametrize("name", ["full", "sampled", "rethinking_code"])
def test_extrapolated_rewards_are_a_sum_with_a_reference(factor: float, name: str) -> None:
    """G-OPD's objective: E[lambda (log q - log r)] - KL(p || r), minimised, is lambda times the
    loss from the teacher q and 1 - lambda times that from the reference r; its gradient over the
    vocabulary is the one of KL(p || q^lambda r^(1 - lambda) / Z)."""
    spec = PRESETS[name]
    spec = replace(spec, k=4) if spec.k else spec
    z, teacher, reference = random(B, T, V), random(B, T, V, seed=1), random(B, T, V, seed=2)
    ours, closed = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = factor * token_loss(ours, teacher, IDS, MASK, spec)
    loss = loss + (1 - factor) * token_loss(ours, reference, IDS, MASK, spec)
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    p, q, r = (x.log_softmax(-1) for x in (closed, teacher, reference))
    implicit = factor * (q - r) - (p - r)  # the reward of each token, less the KL's part
    if name == "full":
        expected = -(p.exp() * implicit).sum(-1) * MASK
        mixed = (factor * q + (1 - factor) * r).log_softmax(-1)
        divergence = (p.exp() * (p - mixed)).sum(-1) * MASK
        (wanted,) = torch.autograd.grad(divergence.sum(), closed)
    else:
        candidates = z.topk(4).indices if spec.k else IDS.unsqueeze(-1)
        own = implicit.detach().gather(-1, candidates)
        weight = p.detach().gather(-1, candidates).softmax(-1)
        expected = -(weight * own).sum(-1) * MASK
        surrogate = -(weight * own * p.gather(-1, candidates)).sum(-1) * MASK
        (wanted,) = torch.autograd.grad(surrogate.sum(), closed)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, wanted)


def test_the_term_of_a_teacher_is_the_loss_on_its_logits() -> None:
    hidden, weight = random(2, B, T, H).float(), random(2, V, H, seed=1).float()
    student, teacher = (States(h, Head(w)) for h, w in zip(hidden, weight, strict=True))
    logits = [(s.hidden @ s.head.weight.T).double() for s in (student, teacher)]
    spec = replace(PRESETS["rethinking_code"], k=4)
    ours = teacher_loss(spec, 0.7)(student, teacher, IDS, MASK, ADVANTAGES)
    expected = token_loss(logits[0] / 0.7, logits[1], IDS, MASK, spec)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)

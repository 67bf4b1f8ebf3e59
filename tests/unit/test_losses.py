"""The loss: what its value and gradient are, against plain definitions and the identities of the
paper's restatement (section 3.3)."""

import pytest
import torch
from torch import Tensor

from opd.errors import Bad
from opd.losses import LossSpec, token_loss

B, T, V = 2, 3, 7
VOCABULARY = LossSpec("vocabulary")


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(B, T, V, dtype=torch.float64).float().requires_grad_(),
        torch.randn(B, T, V),
    )


IDS, ONES = torch.tensor([[0, 3, 6], [1, 1, 2]]), torch.ones(B, T)


def gradient(student: Tensor, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), student)[0]


def test_vocabulary_is_the_reverse_kl(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    p, q = student.softmax(-1), teacher.softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1)
    torch.testing.assert_close(token_loss(student, teacher, IDS, ONES, VOCABULARY), expected)
    assert (expected > 0).all()


def test_student_support_with_all_tokens_has_the_vocabulary_gradient(
    logits: tuple[Tensor, Tensor],
) -> None:
    student, teacher = logits
    whole = token_loss(student, teacher, IDS, ONES, VOCABULARY)
    top = token_loss(student, teacher, IDS, ONES, LossSpec("student", V))
    torch.testing.assert_close(top, whole)
    torch.testing.assert_close(gradient(student, top), gradient(student, whole))
    more = token_loss(student, teacher, IDS, ONES, LossSpec("student", 10 * V))
    torch.testing.assert_close(more, whole)


@pytest.mark.parametrize("k", [1, 3])
def test_student_support_is_the_truncated_vocabulary_gradient(
    logits: tuple[Tensor, Tensor], k: int
) -> None:
    """g = (1 / Z) sum over the support of log(p/q) grad p, Z the mass of the support."""
    student, teacher = logits
    p = student.softmax(-1)
    support = p.detach().topk(k, -1).indices
    inside = p.gather(-1, support)
    ratio = (p.log() - teacher.log_softmax(-1)).gather(-1, support).detach()
    truncated = (ratio * inside / inside.detach().sum(-1, keepdim=True)).sum(-1)
    loss = token_loss(student, teacher, IDS, ONES, LossSpec("student", k))
    torch.testing.assert_close(gradient(student, loss), gradient(student, truncated))


def test_student_support_is_eq_5_plus_the_baseline_it_lacks(logits: tuple[Tensor, Tensor]) -> None:
    """g_code = grad KL(pbar || qbar) + m grad log Z."""
    student, teacher = logits
    k = 3
    support = student.detach().topk(k, -1).indices
    logp = student.log_softmax(-1).gather(-1, support)
    logq = teacher.log_softmax(-1).gather(-1, support)
    logpbar, logqbar = logp.log_softmax(-1), logq.log_softmax(-1)
    eq_5 = (logpbar.exp() * (logpbar - logqbar)).sum(-1)
    mean = (logpbar.exp() * (logp - logq)).sum(-1).detach()
    expected = eq_5 + mean * logp.logsumexp(-1)
    loss = token_loss(student, teacher, IDS, ONES, LossSpec("student", k))
    torch.testing.assert_close(gradient(student, loss), gradient(student, expected))


def test_top_1_is_not_zero(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    loss = token_loss(student, teacher, IDS, ONES, LossSpec("student", 1))
    assert (gradient(student, loss).abs().sum(-1) > 0).all()


def test_sampled_is_a_policy_gradient(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    logp = student.log_softmax(-1).gather(-1, IDS.unsqueeze(-1)).squeeze(-1)
    logq = teacher.log_softmax(-1).gather(-1, IDS.unsqueeze(-1)).squeeze(-1)
    loss = token_loss(student, teacher, IDS, ONES, LossSpec("sampled"))
    torch.testing.assert_close(loss, logp - logq)
    advantage = (logq - logp).detach()
    torch.testing.assert_close(gradient(student, loss), gradient(student, -advantage * logp))


def test_sampled_in_expectation_is_the_vocabulary_gradient(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    p = student.softmax(-1).detach()
    spec = LossSpec("sampled")
    expected = sum(
        p[..., v] * token_loss(student, teacher, torch.full((B, T), v), ONES, spec)
        for v in range(V)
    )
    assert isinstance(expected, Tensor)
    whole = token_loss(student, teacher, IDS, ONES, VOCABULARY)
    torch.testing.assert_close(gradient(student, expected), gradient(student, whole))


@pytest.mark.parametrize("spec", [VOCABULARY, LossSpec("student", 2), LossSpec("sampled")])
def test_masked_positions_have_no_loss_nor_gradient(
    logits: tuple[Tensor, Tensor], spec: LossSpec
) -> None:
    student, teacher = logits
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = token_loss(student, teacher, IDS, mask, spec)
    assert loss.shape == (B, T) and (loss[mask == 0] == 0).all()
    assert (gradient(student, loss)[mask == 0] == 0).all()


@pytest.mark.parametrize("spec", [VOCABULARY, LossSpec("student", 2), LossSpec("sampled")])
def test_equal_models_have_no_loss(logits: tuple[Tensor, Tensor], spec: LossSpec) -> None:
    student, _ = logits
    loss = token_loss(student, student.detach(), IDS, ONES, spec)
    torch.testing.assert_close(loss, torch.zeros(B, T))
    assert gradient(student, loss).abs().max() < 1e-6


def test_a_specification_that_makes_no_sense() -> None:
    for support, k, message in [
        ("student", None, "loss.k: k is None"),
        ("student", 0, "loss.k: k is 0"),
        ("sampled", 4, "takes none; remove k"),
        ("teacher", 4, "unknown support 'teacher'"),
    ]:
        with pytest.raises(Bad, match=message):
            LossSpec(support, k)  # type: ignore[arg-type]

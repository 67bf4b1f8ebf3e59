"""Measurements against values worked out by hand and against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from opd import metrics
from opd.metrics import Mean

ONE = torch.ones(1, 1)


def logits(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log().view(1, 1, -1)


def test_by_hand() -> None:
    """p's top 2 is {0, 1}, q's is {1, 2}: they share token 1."""
    p, q = logits(0.6, 0.3, 0.1), logits(0.1, 0.3, 0.6)
    found = {name: m.value for name, m in metrics.state_metrics(p, q, ONE, 2).items()}
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    expected = {
        "overlap_ratio": 0.5,
        "overlap_token_advantage": 0.0,  # one token alone is 1 in both once renormalised
        "overlap_token_advantage_code": 0.0,  # p and q agree on it
        "entropy_gap_nats": 0.0,
        "overlap_mass_student": 0.3,
        "overlap_mass_teacher": 0.3,
        "entropy_student_nats": entropy,
        "entropy_teacher_nats": entropy,
        "kl_nats": 0.5 * math.log(6),
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_two_overlap_token_advantages_differ_as_the_paper_and_its_code_do() -> None:
    """Both top 2 are {0, 1}."""
    p, q = logits(0.6, 0.3, 0.1), logits(0.35, 0.45, 0.2)
    found = metrics.state_metrics(p, q, ONE, 2)
    pbar, qbar = (2 / 3, 1 / 3), (7 / 16, 9 / 16)
    eq_7 = sum(a * math.log(b / a) for a, b in zip(pbar, qbar, strict=True)) / 2
    code = (2 / 3 * math.log(0.35 / 0.6) + 1 / 3 * math.log(0.45 / 0.3)) / 2
    assert found["overlap_token_advantage"].value == pytest.approx(eq_7)
    assert found["overlap_token_advantage_code"].value == pytest.approx(code)
    assert eq_7 != pytest.approx(code)


def test_no_overlap_at_all() -> None:
    found = metrics.state_metrics(logits(0.7, 0.2, 0.1), logits(0.1, 0.2, 0.7), ONE, 1)
    assert found["overlap_ratio"].value == found["overlap_mass_student"].value == 0
    assert found["overlap_token_advantage"].n == found["overlap_token_advantage_code"].n == 0
    assert math.isnan(found["overlap_token_advantage"].value)


def test_entropy_gap_per_state_is_not_that_of_the_means() -> None:
    p = torch.cat([logits(0.5, 0.5), logits(0.9, 0.1)], 1)
    q = torch.cat([logits(0.9, 0.1), logits(0.5, 0.5)], 1)
    found = metrics.state_metrics(p, q, torch.ones(1, 2), 1)
    gap = metrics.entropy_gap_of_means_nats(
        found["entropy_student_nats"], found["entropy_teacher_nats"]
    )
    assert gap == pytest.approx(0, abs=1e-6) and found["entropy_gap_nats"].value > 0.3


def test_equal_models() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 4, 9)
    found = metrics.state_metrics(student, student, torch.ones(2, 4), 3)
    assert found["overlap_ratio"].value == 1
    for name in ("overlap_token_advantage", "entropy_gap_nats", "kl_nats"):
        assert found[name].value == pytest.approx(0, abs=1e-6)


def test_masked_positions_do_not_count_and_parts_add_up() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5, 9), torch.randn(4, 5, 9)
    mask = torch.arange(5).expand(4, 5) < torch.tensor([[5], [1], [3], [2]])
    whole = metrics.state_metrics(student, teacher, mask, 3)
    assert whole["kl_nats"].n == 11
    spoilt = student.clone()
    spoilt[~mask] = 100.0
    parts = [
        metrics.state_metrics(spoilt[i:j], teacher[i:j], mask[i:j], 3) for i, j in ((0, 1), (1, 4))
    ]
    for name, mean in whole.items():
        assert (parts[0][name] + parts[1][name]).value == pytest.approx(mean.value, rel=1e-6)


def test_k_beyond_the_vocabulary() -> None:
    found = metrics.state_metrics(logits(0.6, 0.4), logits(0.1, 0.9), ONE, 50)
    assert found["overlap_ratio"].value == 1
    assert found["overlap_mass_student"].value == pytest.approx(1)


def test_responses() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = metrics.response_metrics(mask, torch.tensor([5, 1]), torch.tensor([1, 2]))
    assert found["response_tokens"].value == 2 and found["truncation_ratio"].value == 0.5


def test_mean() -> None:
    assert Mean(2.0, 1.0) + Mean(4.0, 2.0) == Mean(6.0, 3.0)
    assert math.isnan(Mean(0.0, 0.0).value)

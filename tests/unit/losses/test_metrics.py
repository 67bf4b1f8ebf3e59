"""Measurements against values worked out by hand and against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from opd.losses import metrics

K = 3


def logits(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def measure(
    p: Tensor, q: Tensor, k: int = K, ids: Tensor | None = None, repeated: Tensor | None = None
) -> dict[str, float]:
    """Means over all positions, by name."""
    n = len(p)
    ids = torch.zeros(n, dtype=torch.long) if ids is None else ids
    repeated = torch.zeros(n, dtype=torch.bool) if repeated is None else repeated
    tally = metrics.binned(
        metrics.state_metrics(p, q, ids, repeated, k), torch.arange(n), max(n, 1), 1
    )
    return {name: value for name, _, value in metrics.means(metrics.STATE, tally, n)}


def test_by_hand() -> None:
    """p's top 2 is {0, 1}, q's is {1, 2}: they share token 1. Token 0 was sampled."""
    p, q = logits(0.6, 0.3, 0.1), logits(0.1, 0.3, 0.6)
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    expected = {
        "overlap_ratio": 0.5,
        "overlap_token_advantage": 0.0,  # one token alone is 1 in both once renormalised
        "overlap_token_advantage_code": 0.0,  # p and q agree on it
        "entropy_gap_nats": 0.0,
        "entropy_student_nats": entropy,
        "entropy_teacher_nats": entropy,
        "overlap_mass_student": 0.3,
        "overlap_mass_teacher": 0.3,
        "overlap_mass_student_code": 0.3,
        "overlap_mass_teacher_code": 0.3,
        "top_mass_student": 0.9,
        "top_mass_teacher": 0.9,
        "extreme_advantage_gap": 0.0,
        "max_advantage_student_code": 0.3,
        "max_advantage_teacher_code": 0.3,
        "min_advantage_student_code": 0.3,
        "min_advantage_teacher_code": 0.3,
        "teacher_rank": 3.0,
        "teacher_rank_in_top": 3.0,
        "log_ratio_other_nats": math.log(0.1 / 0.6),
        "kl_nats": 0.5 * math.log(6),
    }
    assert measure(p, q, 2) == pytest.approx(expected, abs=1e-6)


def test_the_two_overlap_token_advantages_differ_as_the_paper_and_its_code_do() -> None:
    """Both top 2 are {0, 1}."""
    p, q = logits(0.6, 0.3, 0.1), logits(0.35, 0.45, 0.2)
    found = measure(p, q, 2)
    pbar, qbar = (2 / 3, 1 / 3), (7 / 16, 9 / 16)
    eq_7 = sum(a * math.log(b / a) for a, b in zip(pbar, qbar, strict=True)) / 2
    code = (2 / 3 * math.log(0.35 / 0.6) + 1 / 3 * math.log(0.45 / 0.3)) / 2
    assert found["overlap_token_advantage"] == pytest.approx(eq_7)
    assert found["overlap_token_advantage_code"] == pytest.approx(code)
    assert eq_7 != pytest.approx(code)
    # The largest absolute advantage of Eq. 7 is that of token 0, as is the smallest of the code.
    assert found["extreme_advantage_gap"] == pytest.approx(0.6 - 0.35)
    assert found["max_advantage_student_code"] == pytest.approx(0.3)
    assert found["max_advantage_teacher_code"] == pytest.approx(0.45)
    assert found["min_advantage_student_code"] == pytest.approx(0.6)
    assert found["min_advantage_teacher_code"] == pytest.approx(0.35)


def test_averaging_over_positions_and_over_tokens() -> None:
    """Two positions that share two tokens and one: the paper averages positions, its code pairs;
    and a third that shares none counts for neither, nor for the masses of the code."""
    p = torch.cat([logits(0.6, 0.3, 0.08, 0.02), logits(0.6, 0.3, 0.08, 0.02)])
    q = torch.cat([logits(0.3, 0.6, 0.08, 0.02), logits(0.6, 0.02, 0.3, 0.08)])
    apart = logits(0.02, 0.08, 0.3, 0.6)
    found = measure(torch.cat([p, p[:1]]), torch.cat([q, apart]), 2)
    a = (2 / 3) * math.log(0.5) + (1 / 3) * math.log(2.0)  # both tokens; renormalised is the same
    assert found["overlap_ratio"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["overlap_token_advantage"] == pytest.approx((a / 2 + 0) / 2)
    assert found["overlap_token_advantage_code"] == pytest.approx(a / 3)
    assert found["overlap_mass_student"] == pytest.approx((0.9 + 0.6 + 0) / 3)
    assert found["overlap_mass_student_code"] == pytest.approx((0.9 + 0.6) / 2)


def test_no_overlap_at_all() -> None:
    found = measure(logits(0.7, 0.2, 0.1), logits(0.1, 0.2, 0.7), 1)
    assert found["overlap_ratio"] == found["overlap_mass_student"] == 0
    missing = {"overlap_token_advantage", "overlap_mass_teacher_code", "extreme_advantage_gap"}
    assert not missing & set(found)  # nothing to average is no row, not a zero


def test_entropy_gap_per_state_is_not_that_of_the_means() -> None:
    p = torch.cat([logits(0.5, 0.5), logits(0.9, 0.1)])
    q = torch.cat([logits(0.9, 0.1), logits(0.5, 0.5)])
    found = measure(p, q, 1)
    gap = metrics.entropy_gap_of_means_nats(
        found["entropy_student_nats"], found["entropy_teacher_nats"]
    )
    assert gap == pytest.approx(0, abs=1e-6) and found["entropy_gap_nats"] > 0.3


def test_tokens_that_are_ruled_out() -> None:
    """A probability of zero adds nothing to an entropy, and 100 nats to a divergence."""
    found = measure(logits(0.5, 0.5, 0.0), logits(1.0, 0.0, 0.0), 2)
    assert found["entropy_student_nats"] == pytest.approx(math.log(2))
    assert found["entropy_teacher_nats"] == pytest.approx(0, abs=1e-6)
    assert found["kl_nats"] == pytest.approx(0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 100))


def test_equal_models() -> None:
    student = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    found = measure(student, student)
    assert found["overlap_ratio"] == 1
    for name in ("overlap_token_advantage", "entropy_gap_nats", "kl_nats", "extreme_advantage_gap"):
        assert found[name] == pytest.approx(0, abs=1e-6)


def test_against_plain_loops() -> None:
    """Every metric over sets, at random positions, against Python's own arithmetic."""
    generator = torch.Generator().manual_seed(1)
    n, v, k = 40, 9, 4
    student, teacher = (2 * torch.randn(2, n, v, generator=generator)).double()
    ids = torch.randint(0, v, (n,), generator=generator)
    repeated = torch.rand(n, generator=generator) < 0.4
    found = measure(student.float(), teacher.float(), k, ids, repeated)
    values: dict[str, list[float]] = {}
    for t in range(n):
        p, q = student[t].softmax(-1).tolist(), teacher[t].softmax(-1).tolist()
        ours = sorted(range(v), key=lambda i: -p[i])[:k]
        theirs = sorted(range(v), key=lambda i: -q[i])[:k]
        both = [i for i in ours if i in theirs]
        y = int(ids[t])
        rank = 1 + sum(x > q[y] for x in q)

        def add(name: str, *found: float) -> None:
            values.setdefault(name, []).extend(found)

        add("overlap_ratio", len(both) / k)
        add("top_mass_student", sum(p[i] for i in ours))
        add("top_mass_teacher", sum(q[i] for i in theirs))
        add("overlap_mass_teacher", sum(q[i] for i in both))
        add("teacher_rank", rank)
        add("teacher_rank_in_top", rank if y in theirs else k + 1)
        ratio = math.log(q[y] / p[y])
        add("log_ratio_repeated_nats" if repeated[t] else "log_ratio_other_nats", ratio)
        if both:
            zp, zq = sum(p[i] for i in both), sum(q[i] for i in both)
            eq_7 = {i: p[i] / zp * math.log(q[i] / zq * zp / p[i]) for i in both}
            z = sum(p[i] for i in ours)
            code = {i: p[i] / z * math.log(q[i] / p[i]) for i in both}
            add("overlap_token_advantage", sum(eq_7.values()) / len(both))
            add("overlap_token_advantage_code", *code.values())
            top = max(both, key=lambda i: abs(eq_7[i]))
            add("extreme_advantage_gap", p[top] - q[top])
            add("max_advantage_teacher_code", q[max(both, key=lambda i: code[i])])
            add("min_advantage_student_code", p[min(both, key=lambda i: code[i])])
    for name, several in values.items():
        assert found[name] == pytest.approx(sum(several) / len(several), rel=1e-5), name


def test_bins_of_positions_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 11, 9, generator=generator)
    positions = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 6])
    ids, none = torch.zeros(11, dtype=torch.long), torch.zeros(11, dtype=torch.bool)

    def tally(part: slice) -> Tensor:
        sums = metrics.state_metrics(student[part], teacher[part], ids[part], none[part], K)
        return metrics.binned(sums, positions[part], 2, 4)

    whole = metrics.means(metrics.STATE, tally(slice(None)), 2)
    parts = metrics.means(metrics.STATE, tally(slice(0, 4)) + tally(slice(4, 11)), 2)
    assert [row[:2] for row in whole] == [row[:2] for row in parts]
    assert [row[2] for row in whole] == pytest.approx([row[2] for row in parts])
    kl = {position: value for name, position, value in whole if name == "kl_nats"}
    assert set(kl) == {None, 0, 2, 4, 6}
    each = (student.softmax(-1) * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum(-1)
    assert kl[None] == pytest.approx(float(each.mean()), rel=1e-5)
    assert kl[2] == pytest.approx(float(each[[2, 3, 7, 8]].mean()), rel=1e-5)
    assert kl[6] == pytest.approx(float(each[10]), rel=1e-5)


def test_k_beyond_the_vocabulary() -> None:
    found = measure(logits(0.6, 0.4), logits(0.1, 0.9), 50)
    assert found["overlap_ratio"] == 1
    assert found["overlap_mass_student"] == pytest.approx(1)


def test_responses() -> None:
    """Tokens whose trailing 3-gram was there before, by hand: abcabc repeats abc once, aaaa aaa
    once; the response of two tokens has no 3-gram at all."""
    ids = torch.tensor([[1, 2, 3, 1, 2, 3, 9], [4, 4, 4, 4, 0, 0, 0], [5, 5, 5, 5, 5, 5, 5]])
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1, 1] + [0] * 5])
    repeated = metrics.repeats(ids, mask)
    assert repeated.nonzero().tolist() == [[0, 5], [1, 3]]
    last = torch.tensor([9, 4, 5])
    found = metrics.response_metrics(mask, last, torch.tensor([9, 5]), repeated)
    tally = metrics.binned(found, torch.zeros(3, dtype=torch.long), 1, 1)
    assert {name: value for name, _, value in metrics.means(metrics.RESPONSE, tally, 1)} == {
        "response_tokens": pytest.approx(13 / 3),
        "truncation_ratio": pytest.approx(1 / 3),
        "repetition_ratio": pytest.approx(2 / (5 + 2)),
    }

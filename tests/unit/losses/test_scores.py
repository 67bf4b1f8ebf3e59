"""Losses and measurements from a teacher's scores against those from all of its logits."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opd.core.errors import UserError
from opd.losses import metrics
from opd.losses.head import Head
from opd.losses.scores import Scores, in_parts, of_teacher_alone, scored_token_loss, scores_loss
from opd.losses.spec import PRESETS, LossSpec, loss_spec
from opd.losses.sufficient import objection
from opd.losses.terms import States
from opd.losses.token import token_loss

pytestmark = pytest.mark.unit

B, T, V, H, HELD, K = 2, 6, 41, 10, 8, 5
MASK = torch.arange(T).expand(B, T) < torch.tensor([[T], [4]])
UPSTREAM = torch.linspace(0.5, 2, B * T, dtype=torch.float64).view(B, T)
TAIL = LossSpec("teacher", K, "direct", tail=True)
SPECS = {
    name: replace(spec, k=K) if spec.k else spec
    for name, spec in PRESETS.items()
    if spec.support in ("sampled", "teacher", "intersection", "student_filled")
} | {
    "tail_augmented": TAIL,
    "tail, forward": replace(TAIL, divergence="forward_kl"),
    "tail, jsd": replace(TAIL, divergence="jsd", beta=0.3),
    "tail of the intersection": replace(TAIL, support="intersection"),
    "weighted by the teacher": LossSpec("teacher", K, weight="teacher", ratio_scope="support"),
    "raw teacher weights": LossSpec("teacher", K, weight="teacher", weight_scope="vocabulary"),
    "raw, direct": LossSpec("teacher", K, "direct"),
    "renormalised, direct": LossSpec("teacher", K, "direct", ratio_scope="support"),
    "all that is held": LossSpec("teacher", HELD, weight="uniform"),
}
# What scores suffice for that have the top k of a named student, too.
OF_STUDENT = {
    f"{name} of a student": replace(spec, k=K)
    for name, spec in PRESETS.items()
    if spec.support == "student"
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IDS = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(9))
TEACHER = 2 * random(B, T, V, seed=3)


def held(logits: Tensor, k: int = HELD) -> Scores:
    """The k likeliest tokens by sorting, and those of ``student``, with garbage where nothing
    counts."""
    named = logits_of(student(torch.float64)[0]).sort(-1, descending=True).indices[..., :HELD]
    log_probs = logits - logits.exp().sum(-1, keepdim=True).log()
    ordered = log_probs.sort(-1, descending=True)
    nowhere = MASK.unsqueeze(-1) == 0
    return Scores(
        ordered.indices[..., :k].masked_fill(nowhere, 0).int(),
        ordered.values[..., :k].masked_fill(nowhere, torch.nan),
        log_probs.gather(-1, IDS.unsqueeze(-1)).squeeze(-1).masked_fill(~MASK, torch.nan),
        named.masked_fill(nowhere, 0).int(),
        log_probs.gather(-1, named).masked_fill(nowhere, torch.nan),
    )


def student(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], States]:
    leaves = [random(B, T, H), random(V, H, seed=1), random(V, seed=2)]
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    return leaves, States(leaves[0], Head(leaves[1], leaves[2], scale=0.7))


def logits_of(leaves: list[Tensor]) -> Tensor:
    return 0.7 * (leaves[0] @ leaves[1].T + leaves[2])


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("name", [*SPECS, *OF_STUDENT])
def test_a_loss_from_scores_is_the_one_from_all_logits(name: str, rows: int) -> None:
    spec = (SPECS | OF_STUDENT)[name]
    ours, states = student()
    loss = scored_token_loss(states, held(TEACHER), IDS, MASK, spec, 1.3, rows * V)
    plain, _ = student(torch.float64)
    expected = token_loss(logits_of(plain) / 1.3, TEACHER, IDS, MASK, spec)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = zip(
        torch.autograd.grad((loss * UPSTREAM).sum(), ours),
        torch.autograd.grad((expected * UPSTREAM).sum(), plain),
        strict=True,
    )
    for gradient, wanted in gradients:
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


def _tail(logp: Tensor, logq: Tensor) -> Tensor:
    top = logq.sort(-1, descending=True).indices[..., :K]
    p, q = logp.exp().gather(-1, top), logq.exp().gather(-1, top)
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
    return (p * (p / q).log()).sum(-1)


def _renormalised(logp: Tensor, logq: Tensor) -> Tensor:
    top = logq.sort(-1, descending=True).indices[..., :K]
    p, q = logp.exp().gather(-1, top), logq.exp().gather(-1, top)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    return (p * (p / q).log()).sum(-1)


def _k3(logp: Tensor, logq: Tensor) -> Tensor:
    ratio = (logq - logp).gather(-1, IDS.unsqueeze(-1)).squeeze(-1)
    return ratio.exp() - 1 - ratio


CLOSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tail_augmented": _tail,
    "renormalised, direct": _renormalised,
    "k3": _k3,
}


@pytest.mark.parametrize("name", CLOSED)
def test_gradients_are_those_of_the_closed_form(name: str) -> None:
    """By central differences of the formula in float64, in all directions of the states."""
    ours, states = student()
    loss = scored_token_loss(states, held(TEACHER), IDS, MASK, SPECS[name])
    (gradient,) = torch.autograd.grad((loss * UPSTREAM).sum(), ours[:1])
    plain, logq = [leaf.detach().double() for leaf in ours], TEACHER.log_softmax(-1)

    def value(hidden: Tensor) -> Tensor:
        logp = logits_of([hidden, *plain[1:]]).log_softmax(-1)
        return CLOSED[name](logp, logq) * UPSTREAM * MASK

    torch.testing.assert_close(loss.double() * UPSTREAM, value(plain[0]), rtol=1e-5, atol=1e-5)
    eps = 1e-5
    steps = torch.eye(H, dtype=torch.float64) * eps
    numeric = [(value(plain[0] + s) - value(plain[0] - s)) / (2 * eps) for s in steps]
    torch.testing.assert_close(gradient.double(), torch.stack(numeric, -1), rtol=1e-4, atol=1e-5)


def test_the_support_of_a_named_student_stays_when_the_trained_one_prefers_other_tokens() -> None:
    """The reverse KL on it, summed by hand, of a student with its states turned round."""
    scores = held(TEACHER)
    leaves, states = student()
    turned = [-leaves[0], *leaves[1:]]
    spec = LossSpec("student", K, "direct")
    loss = scored_token_loss(states._replace(hidden=turned[0]), scores, IDS, MASK, spec)
    logp, logq = logits_of(turned).double().log_softmax(-1), TEACHER.log_softmax(-1)
    ids = scores.student_ids[..., :K].long()
    assert not (ids.sort(-1).values == logp.topk(K).indices.sort(-1).values).all(-1)[MASK].any()
    ratio = (logp - logq).gather(-1, ids)
    expected = (logp.gather(-1, ids).exp() * ratio).sum(-1) * MASK
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_default_of_many_faces_needs_no_more_than_a_teachers_top_k() -> None:
    ours, states = student()
    spec = replace(PRESETS["many_faces_default"], k=HELD)
    loss = scores_loss(spec, 1.0)(states, held(TEACHER), IDS, MASK, torch.zeros(B))
    expected = token_loss(logits_of(ours), TEACHER, IDS, MASK, spec).float()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert loss.count_nonzero() > B


def test_ties_that_rounding_makes_are_in_the_order_of_the_teacher() -> None:
    """The token behind the top k has been rounded to the last of them, or above it."""
    scores, (_, states) = held(TEACHER), student()
    tied = scores.log_probs.clone()
    tied[..., K] = tied[..., K - 1]
    for name in ("teacher", "tail of the intersection", "biased_topk"):
        losses = [
            scored_token_loss(states, scores._replace(log_probs=log_probs), IDS, MASK, SPECS[name])
            for log_probs in (scores.log_probs, tied)
        ]
        assert torch.equal(*losses), name
    never, behind = torch.zeros(int(MASK.sum()), dtype=torch.bool), scores.ids[..., K][MASK].long()
    above = (scores.log_probs[..., K - 1] + 1e-3)[MASK]
    given = of_teacher_alone(scores.ids[MASK], tied[MASK], above)
    of_states = States(states.hidden[MASK], states.head)
    ((_, sums),) = in_parts(of_states, given, 1.0, behind, never, K)
    logits = logits_of(student()[0])[MASK]
    expected = metrics.state_metrics(logits, TEACHER[MASK], behind, never, K)
    for name in ("overlap_ratio", "top_mass_teacher", "teacher_rank_in_top"):
        wanted = expected[name].total.float()
        torch.testing.assert_close(sums[name].total, wanted, rtol=0, atol=2e-4)


def test_all_tokens_leave_no_tail_and_a_token_that_is_ruled_out_stays_a_candidate() -> None:
    """As the reference has it, whose tail of no tokens has the log-probability of the floor."""
    teacher = TEACHER.clone()
    teacher[..., 7] = -torch.inf
    _, states = student()
    plain, _ = student(torch.float64)
    for spec in (replace(TAIL, k=V), LossSpec("teacher", V, "direct")):
        loss = scored_token_loss(states, held(teacher, V), IDS, MASK, spec)
        expected = token_loss(logits_of(plain), teacher, IDS, MASK, spec)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)


def test_where_no_token_counts_every_weight_still_has_a_gradient() -> None:
    leaves, states = student()
    loss = scored_token_loss(states, held(TEACHER), IDS, torch.zeros(B, T), TAIL)
    assert not loss.any()
    assert not any(g.any() for g in torch.autograd.grad(loss.sum(), leaves[:2]))


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        *[({"preset": name}, "loss.support") for name in ("rethinking_code", "union", "full")],
        ({"preset": "tail_augmented"}, "loss.support"),
        ({"preset": "symmetric_difference", "k": 2}, "loss.support"),
        ({"preset": "teacher", "k": HELD + 1}, "loss.k"),
        ({"preset": "teacher", "k": HELD, "teacher_temperature": 0.7}, "loss.teacher_temperature"),
        ({"preset": "k2", "teacher_temperature": 2}, "loss.teacher_temperature"),
    ],
)
def test_a_loss_that_needs_more_is_refused(settings: dict[str, object], where: str) -> None:
    spec = loss_spec(settings)
    error = objection(spec, HELD)
    assert error is not None and error.where == where and "\n" not in str(error)
    alone = of_teacher_alone(*held(TEACHER)[:3])
    with pytest.raises(UserError, match=r"scores"):
        scored_token_loss(student()[1], alone, IDS, MASK, spec)


def test_every_other_preset_suffices() -> None:
    assert not any(objection(spec, HELD) for spec in SPECS.values())
    for spec in OF_STUDENT.values():
        assert objection(spec, HELD) and not objection(spec, HELD, student=True)
        assert objection(replace(spec, k=HELD + 1), HELD, student=True)


def test_what_is_measured_is_what_all_logits_give_or_absent() -> None:
    counts, repeated = MASK, torch.arange(B * T).view(B, T) % 3 == 0
    leaves, states = student()
    of_states = States(states.hidden[counts], states.head)
    scores = Scores(*(x[counts] for x in held(TEACHER)))
    (part, sums), *others = in_parts(of_states, scores, 1.0, IDS[counts], repeated[counts], K)
    expected = metrics.state_metrics(
        logits_of(leaves)[counts], TEACHER[counts], IDS[counts], repeated[counts], K
    )
    absent = {name for name, (_, n) in sums.items() if not n.any()}
    assert not others and part.start == 0 and [*sums] == [*metrics.STATE]
    assert absent == {"entropy_gap_nats", "entropy_teacher_nats", "teacher_rank", "kl_nats"}
    for name in {*expected} - absent:
        torch.testing.assert_close(sums[name].total.float(), expected[name].total.float())
        assert torch.equal(sums[name].n, expected[name].n), name

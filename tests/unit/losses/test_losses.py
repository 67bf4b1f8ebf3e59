"""The losses: values and gradients against plain definitions, closed forms, finite differences and
the identities of the papers' restatements."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd.core.errors import UserError
from opd.losses.spec import PRESETS, Aggregation, LossSpec, loss_spec
from opd.losses.token import LOG_FLOOR_NATS, aggregate, token_loss, top_ids

B, T, V, K = 2, 3, 11, 4
IDS, ONES = torch.tensor([[0, 3, 6], [1, 1, 2]]), torch.ones(B, T)


def at_k(name: str, k: int = K) -> LossSpec:
    """A preset with a k that suits a small vocabulary."""
    spec = PRESETS[name]
    return replace(spec, k=k) if spec.k is not None else spec


def random_logits(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    return random_logits(0, B, T, V)


def gradient(student: Tensor, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), student, retain_graph=True)[0]


def loss_of(student: Tensor, teacher: Tensor, spec: LossSpec) -> Tensor:
    return token_loss(student, teacher, IDS, ONES, spec)


def policy_value(
    student: Tensor, frozen: Tensor, teacher: Tensor, ids: Tensor, spec: LossSpec
) -> Tensor:
    """sum of c log p over the support, with the coefficients c = w (log p - log q) of the logits
    ``frozen``: what a policy gradient differentiates, written without rho."""
    logp, logq = frozen.log_softmax(-1), (teacher / spec.teacher_temperature).log_softmax(-1)
    inside = {
        "sampled": lambda s, t: {int(ids)},
        "student": lambda s, t: s,
        "teacher": lambda s, t: t,
        "intersection": lambda s, t: s & t,
        "union": lambda s, t: s | t,
        "symmetric_difference": lambda s, t: s ^ t,
    }[spec.support]
    k = spec.k or 1
    chosen = sorted(inside({*frozen.topk(k).indices.tolist()}, {*teacher.topk(k).indices.tolist()}))
    if not chosen:
        return student.sum() * 0
    barp, barq = logp[chosen].log_softmax(-1), logq[chosen].log_softmax(-1)
    raw = spec.weight_scope == "vocabulary"
    weight = {
        "student": logp[chosen] if raw else barp,
        "teacher": logq[chosen] if raw else barq,
        "uniform": torch.full_like(barp, -math.log(len(chosen))),
    }[spec.weight].exp()
    live = student.log_softmax(-1)[chosen]
    if spec.ratio_scope == "support":
        return (weight * (barp - barq) * live.log_softmax(-1)).sum()
    return (weight * (logp[chosen] - logq[chosen]) * live).sum()


POLICY = [name for name, spec in PRESETS.items() if spec.gradient == "policy"]
DIRECT = [name for name, spec in PRESETS.items() if spec.gradient == "direct"]


def numeric_gradient(function: Any, x: Tensor) -> Tensor:
    """Central differences."""
    x, eps = x.detach().clone(), 1e-6
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        for sign in (1, -1):
            x.view(-1)[i] += sign * eps
            out.view(-1)[i] += sign * float(function(x)) / (2 * eps)
            x.view(-1)[i] -= sign * eps
    return out


@pytest.mark.parametrize("name", DIRECT)
def test_direct_gradients_are_those_of_the_value(name: str) -> None:
    """By central differences in float64. What a filled support detaches is held fixed."""
    spec = at_k(name)
    for seed in range(5):
        student, teacher = random_logits(seed, 1, 1, V)
        ids, one = torch.tensor([[seed]]), torch.ones(1, 1)
        ours = gradient(student, token_loss(student, teacher, ids, one, spec))
        top = student.detach().flatten().topk(K).indices
        shared = torch.isin(top, teacher.flatten().topk(K).indices)
        logp, logq = (x.detach().flatten().log_softmax(-1)[top] for x in (student, teacher))
        fixed = torch.where(shared, logq, logp)

        def value(
            z: Tensor,
            teacher: Tensor = teacher,
            ids: Tensor = ids,
            top: Tensor = top,
            fixed: Tensor = fixed,
        ) -> Tensor:
            if spec.support != "student_filled":
                return token_loss(z, teacher, ids, torch.ones(1, 1), spec)
            live = z.flatten().log_softmax(-1)[top]
            return (live.exp() * (live - fixed)).sum()

        torch.testing.assert_close(ours, numeric_gradient(value, student), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "spec",
    [
        *(at_k(name) for name in POLICY),
        LossSpec("student", K, weight="teacher"),
        LossSpec("student", K, weight="teacher", weight_scope="vocabulary"),
        LossSpec("union", K, weight="uniform"),
        LossSpec("union", K, ratio_scope="support"),
        LossSpec("teacher", K, teacher_temperature=2.0),
    ],
)
def test_policy_gradients_are_those_of_frozen_coefficients(spec: LossSpec) -> None:
    """By central differences of sum of c log p with c frozen, from sets made with plain Python."""
    for seed in range(5):
        student, teacher = random_logits(seed, 1, 1, V)
        ids, one = torch.tensor([[seed]]), torch.ones(1, 1)
        loss = token_loss(student, teacher, ids, one, spec)
        ours = gradient(student, loss).flatten()
        start = student.detach().flatten()

        def value(
            z: Tensor, start: Tensor = start, teacher: Tensor = teacher, ids: Tensor = ids
        ) -> Tensor:
            return policy_value(z, start, teacher.flatten(), ids, spec)

        torch.testing.assert_close(ours, numeric_gradient(value, start), rtol=1e-5, atol=1e-8)


def test_values_of_the_main_points(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    p, q = logp.exp(), logq.exp()
    top = student.topk(K, -1).indices
    mass_p, mass_q = (x.gather(-1, top).sum(-1, keepdim=True) for x in (p, q))
    sp, slp, slq = (x.gather(-1, top) for x in (p, logp, logq))
    m = (p + q) / 2
    a = (logq - logp).gather(-1, IDS.unsqueeze(-1)).squeeze(-1)
    expected = {
        "full": (p * (logp - logq)).sum(-1),
        "forward_kl": (q * (logq - logp)).sum(-1),
        "jsd": ((p * (logp - m.log())).sum(-1) + (q * (logq - m.log())).sum(-1)) / 2,
        "rethinking_code": (sp / mass_p * (slp - slq)).sum(-1),
        "rethinking_eq5": (sp / mass_p * (slp - slq - (mass_p / mass_q).log())).sum(-1),
        "tail_augmented": (sp * (slp - slq)).sum(-1)
        + ((1 - mass_p) * ((1 - mass_p) / (1 - mass_q)).log()).squeeze(-1),
        "sampled": -a,
        "k1": -a,
        "k2": a**2 / 2,
        "k3": a.exp() - 1 - a,
        "plain_log_ratio": -a,
    }
    for name, value in expected.items():
        torch.testing.assert_close(loss_of(student, teacher, at_k(name)), value, msg=name)
    uneven = 0.2 * q + 0.8 * p
    value = 0.2 * (q * (logq - uneven.log())).sum(-1) + 0.8 * (p * (logp - uneven.log())).sum(-1)
    found = loss_of(student, teacher, replace(at_k("jsd"), beta=0.2))
    torch.testing.assert_close(found, value)
    for name in ("biased_topk", "stop_gradient_topk"):
        spec = replace(at_k(name), support="student")
        value = (sp * (slp - slq)).sum(-1)
        torch.testing.assert_close(loss_of(student, teacher, spec), value)


def closed_form(name: str, z: Tensor, zq: Tensor, support: Tensor) -> Tensor:
    """The logit gradients of one position as the restatement of Many Faces lists them (2.8)."""
    p, q = z.softmax(-1), zq.softmax(-1)
    r = p.log() - q.log()
    one = torch.zeros_like(p)
    one[support.long()] = 1
    if name == "full":
        return p * (r - (p * r).sum())
    if name == "biased_topk":
        return p * ((r + 1) * one - (one * p * (r + 1)).sum())
    if name == "stop_gradient_topk":
        return p * (r * one - (one * p * r).sum())
    pbar, qbar = p * one / (p * one).sum(), q * one / (q * one).sum()
    c = torch.where(one > 0, pbar.log() - qbar.log(), 0.0)
    return pbar * (c - (pbar * c).sum())


@pytest.mark.parametrize(
    "name",
    ["full", "biased_topk", "stop_gradient_topk", "renormalised_topk", "many_faces_default"],
)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 9), spread=st.floats(0.1, 4))
@settings(max_examples=40, deadline=None)
def test_closed_forms_of_the_logit_gradients(name: str, seed: int, k: int, spread: float) -> None:
    student, teacher = random_logits(seed, 1, 1, V)
    student = (student.detach() * spread).requires_grad_()
    ours = {*student.flatten().topk(k).indices.tolist()}
    support = sorted(ours & {*teacher.flatten().topk(k).indices.tolist()})
    found = gradient(
        student, token_loss(student, teacher, IDS[:1, :1], torch.ones(1, 1), at_k(name, k))
    )
    shape = "renormalised_topk" if name == "many_faces_default" else name
    if support or name == "full":
        expected = closed_form(
            shape, student.detach().flatten(), teacher.flatten(), torch.tensor(support)
        )
    else:
        expected = torch.zeros(V, dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected, atol=1e-12, rtol=1e-9)


@given(seed=st.integers(0, 2**31), k=st.integers(1, V))
@settings(max_examples=40, deadline=None)
def test_code_gradient_is_eq_5_plus_the_baseline_it_lacks(seed: int, k: int) -> None:
    """g_code = grad KL(pbar || qbar) + m grad log Z, and (1 / Z) sum over S of log(p/q) grad p."""
    student, teacher = random_logits(seed, B, T, V)
    code = gradient(student, loss_of(student, teacher, at_k("rethinking_code", k)))
    eq_5 = gradient(student, loss_of(student, teacher, at_k("rethinking_eq5", k)))
    p, logp, logq = student.softmax(-1), student.log_softmax(-1), teacher.log_softmax(-1)
    top = student.topk(k, -1).indices
    z = p.gather(-1, top).sum(-1)
    ratio = (logp - logq).gather(-1, top).detach()
    m = (p.gather(-1, top) * ratio).sum(-1).detach() / z.detach()
    torch.testing.assert_close(code, eq_5 + gradient(student, m * z.log()))
    truncated = gradient(student, (ratio * p.gather(-1, top)).sum(-1) / z.detach())
    torch.testing.assert_close(code, truncated)


@pytest.mark.parametrize(
    "name",
    [
        "rethinking_code",
        "rethinking_eq5",
        "union",
        "teacher",
        "intersection",
        "renormalised_topk",
        "stop_gradient_topk",
        "biased_topk",
        "student_filled",
        "tail_augmented",
    ],
)
@pytest.mark.parametrize("k", [V, 10 * V])
def test_a_support_of_the_whole_vocabulary_is_full(
    logits: tuple[Tensor, Tensor], name: str, k: int
) -> None:
    student, teacher = logits
    whole, top = (
        loss_of(student, teacher, PRESETS["full"]),
        loss_of(student, teacher, at_k(name, k)),
    )
    torch.testing.assert_close(top, whole)
    torch.testing.assert_close(gradient(student, top), gradient(student, whole))


def test_top_1_of_eq_5_is_nothing_and_of_the_code_is_not(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    eq_5 = loss_of(student, teacher, at_k("rethinking_eq5", 1))
    assert eq_5.abs().max() == 0 and gradient(student, eq_5).abs().max() < 1e-15
    code = gradient(student, loss_of(student, teacher, at_k("rethinking_code", 1)))
    assert (code.abs().sum(-1) > 1e-3).all()


def expected_gradient(student: Tensor, teacher: Tensor, spec: LossSpec) -> Tensor:
    """Mean over all tokens of the gradient of a sampled loss, weighted by p."""
    p = student.softmax(-1).detach()
    whole = sum(
        p[..., v] * token_loss(student, teacher, torch.full((B, T), v), ONES, spec)
        for v in range(V)
    )
    assert isinstance(whole, Tensor)
    return gradient(student, whole)


def test_sampled_estimators_in_expectation(logits: tuple[Tensor, Tensor]) -> None:
    """k1 (as a policy gradient) and k2 point down the reverse KL, k3 down the forward KL, and the
    plain log-ratio nowhere."""
    student, teacher = logits
    reverse = gradient(student, loss_of(student, teacher, PRESETS["full"]))
    forward = gradient(student, loss_of(student, teacher, PRESETS["forward_kl"]))
    for name, expected in (
        ("sampled", reverse),
        ("k1", reverse),
        ("k2", reverse),
        ("k3", forward),
        ("plain_log_ratio", torch.zeros_like(reverse)),
    ):
        found = expected_gradient(student, teacher, PRESETS[name])
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("name", PRESETS)
def test_at_the_teacher_only_the_biased_losses_move(name: str) -> None:
    """Where student and teacher agree: +p (1 - m) on the support and -p m off it for the biased
    one (restatement 2.8), nothing for the others."""
    student, _ = random_logits(3, B, T, V)
    found = gradient(student, loss_of(student, student.detach(), at_k(name)))
    p = student.softmax(-1).detach()
    one = torch.zeros_like(p).scatter(-1, p.topk(K, -1).indices, 1.0)
    mass = (p * one).sum(-1, keepdim=True)
    if name in ("biased_topk", "student_filled"):
        torch.testing.assert_close(found, p * (one - mass))
        assert found.abs().max() > 0.01
    elif name == "plain_log_ratio":
        torch.testing.assert_close(found, torch.nn.functional.one_hot(IDS, V) - p)
    else:
        assert found.abs().max() < 1e-12


def test_a_token_is_promoted_only_where_the_teacher_gives_it_e_times_as_much() -> None:
    """Many Faces 2.4: with the biased loss the weight of grad log p of a supported token is
    p (r + 1). Read off the logits' gradient: off the support it is -p times the sum of weights."""
    student = torch.zeros(1, 1, 40, dtype=torch.float64)
    student[..., :4] = 0.1  # the student's top 4
    teacher = student.clone()
    teacher[..., :3] += torch.tensor([2.5, 0.8, -1.0])
    student.requires_grad_()
    spec = replace(PRESETS["biased_topk"], support="student", k=4)
    ids, one = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
    g = gradient(student, token_loss(student, teacher, ids, one, spec)).flatten()
    p, q = (z.detach().flatten().softmax(-1) for z in (student, teacher))
    total = -(g[4:] / p[4:])
    torch.testing.assert_close(total, total[0].expand_as(total))
    promoted = ((g + p * total[0]) < 0)[:4]
    assert promoted.tolist() == [True, False, False, False]
    # The second is likelier under the teacher, and is pushed down all the same.
    assert torch.equal(promoted, (q > math.e * p)[:4]) and q[1] > p[1]


def test_descent_on_the_biased_loss_collapses_and_on_the_fixes_does_not() -> None:
    """Many Faces 2.8: from teacher = student, only the biased loss moves mass to the tail."""
    teacher = torch.randn(1, 1, 200, generator=torch.Generator().manual_seed(1)).double() * 2.5
    ids, one = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
    top = teacher.topk(20, -1).indices
    mass = {}
    for name in ("biased_topk", "stop_gradient_topk", "renormalised_topk"):
        student = teacher.clone().requires_grad_()
        for _ in range(300):
            step = gradient(student, token_loss(student, teacher, ids, one, at_k(name, 20)))
            student = (student - 2 * step).detach().requires_grad_()
        mass[name] = float(student.softmax(-1).gather(-1, top).sum().detach())
    start = float(teacher.softmax(-1).gather(-1, top).sum())
    assert mass["biased_topk"] < start - 0.2
    for name in ("stop_gradient_topk", "renormalised_topk"):
        assert mass[name] == pytest.approx(start, abs=1e-9)


@pytest.mark.parametrize(("name", "mean"), [("full", "geometric"), ("forward_kl", "arithmetic")])
def test_what_several_privileged_contexts_teach(name: str, mean: str) -> None:
    """Many Faces 2.7: the optimum over contexts is their normalised geometric mean under the
    reverse KL and their arithmetic mean under the forward KL."""
    teachers = torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(2)).double() * 1.5
    q = teachers.softmax(-1)
    target = q.log().mean(0).softmax(-1) if mean == "geometric" else q.mean(0)
    student = torch.zeros(1, 6, dtype=torch.float64)
    ids, one = torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1)
    for _ in range(3000):
        student.requires_grad_()
        loss = token_loss(student.expand(3, 1, 6), teachers, ids, one, PRESETS[name]).mean()
        student = (student - torch.autograd.grad(loss, student)[0]).detach()
    torch.testing.assert_close(student.softmax(-1), target, atol=1e-6, rtol=1e-6)
    other = q.mean(0) if mean == "geometric" else q.log().mean(0).softmax(-1)
    assert (student.softmax(-1) - other).abs().max() > 0.01


@pytest.mark.parametrize("name", PRESETS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_vocabulary_does_not_matter(name: str, seed: int) -> None:
    student, teacher = random_logits(seed, B, T, V)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(seed))
    where = order.argsort()
    loss = loss_of(student, teacher, at_k(name))
    moved = student.detach()[..., order].requires_grad_()
    permuted = token_loss(moved, teacher[..., order], where[IDS], ONES, at_k(name))
    torch.testing.assert_close(permuted, loss)
    torch.testing.assert_close(gradient(moved, permuted), gradient(student, loss)[..., order])


@pytest.mark.parametrize("name", PRESETS)
def test_masked_positions_are_never_looked_at(name: str) -> None:
    student, teacher = random_logits(0, B, T, V)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    spoilt, spoilt_teacher = student.detach().clone(), teacher.clone()
    spoilt[mask == 0], spoilt_teacher[mask == 0] = torch.nan, torch.inf
    spoilt.requires_grad_()
    loss = token_loss(spoilt, spoilt_teacher, IDS, mask, at_k(name))
    assert loss.shape == (B, T) and (loss[mask == 0] == 0).all()
    found = gradient(spoilt, loss)
    assert (found[mask == 0] == 0).all()
    alone = gradient(student, token_loss(student, teacher, IDS, mask, at_k(name)))
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("name", PRESETS)
def test_shifted_logits_and_narrow_types(name: str) -> None:
    student, teacher = random_logits(0, B, T, V)
    loss = loss_of(student, teacher, at_k(name))
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss_of(student + 5, teacher - 3, at_k(name)), loss)
    assert not gradient(student, loss).isnan().any()
    half = loss_of(student.bfloat16(), teacher.bfloat16(), at_k(name))
    assert half.dtype == torch.float32
    exact = loss_of(student.bfloat16().double(), teacher.bfloat16().double(), at_k(name))
    torch.testing.assert_close(half, exact.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_tokens_that_the_teacher_rules_out(name: str) -> None:
    """A log-probability of -inf counts as LOG_FLOOR_NATS: finite, and pushed down."""
    student, teacher = random_logits(0, 1, 1, V)
    best = int(student.argmax())
    teacher[..., best] = -torch.inf
    ids = torch.tensor([[best]])
    loss = token_loss(student, teacher, ids, torch.ones(1, 1), at_k(name))
    found = gradient(student, loss).flatten()
    assert loss.isfinite().all() and found.isfinite().all()
    if name == "full":
        p, q = student.detach().softmax(-1).flatten(), teacher.softmax(-1).flatten()
        rest = [v for v in range(V) if v != best]
        by_hand = p[best] * (p[best].log() - LOG_FLOOR_NATS)
        by_hand += (p[rest] * (p[rest].log() - q[rest].log())).sum()
        torch.testing.assert_close(loss.squeeze(), by_hand)
    if name in ("full", "sampled", "rethinking_code", "rethinking_eq5", "forward_kl"):
        assert found[best] > 0  # descent lowers it


def test_an_empty_intersection_is_nothing() -> None:
    student = torch.tensor([[[4.0, 3, 0, 0, 0, 0]]], requires_grad=True)
    teacher = torch.tensor([[[0.0, 0, 0, 0, 3, 4]]])
    ids, one = torch.tensor([[0]]), torch.ones(1, 1)
    for name in ("intersection", "biased_topk", "renormalised_topk", "many_faces_default"):
        loss = token_loss(student, teacher, ids, one, at_k(name, 2))
        assert loss.item() == 0 and (gradient(student, loss) == 0).all(), name
    same = token_loss(student, student.detach(), ids, one, at_k("symmetric_difference", 2))
    assert same.item() == 0


def test_ties_go_to_the_lower_id() -> None:
    scores = torch.tensor([[1.0, 2, 2, 2, 0], [3, 3, 3, 3, 3], [5, 4, 3, 2, 1]])
    found = top_ids(scores, 2)
    assert [sorted(row) for row in found.tolist()] == [[1, 2], [0, 1], [0, 1]]
    assert top_ids(scores, 9).shape == (3, 5)
    assert sorted(top_ids(torch.zeros(1, 100_000), 16)[0].tolist()) == list(range(16))


def test_a_preset_with_other_settings() -> None:
    assert loss_spec({}) == PRESETS["rethinking_code"]
    assert loss_spec({"preset": "biased_topk", "k": 5}) == LossSpec("intersection", 5, "direct")
    assert loss_spec({"support": "sampled"}) == PRESETS["sampled"]
    assert loss_spec({"preset": "jsd", "divergence": "forward_kl"}) == PRESETS["forward_kl"]
    for given_settings, message in (
        ({"support": "vocabulary"}, "loss.gradient: the whole vocabulary is"),
        ({"support": "sampled", "k": 2}, "loss.k: support 'sampled' takes no k"),
        ({"k": None}, "loss.k: support 'student' needs a k"),
        ({"preset": "sampled", "k": 4}, "loss.k: support 'sampled' takes no k"),
        ({"preset": "jsd", "beta": None}, "loss.beta: beta is None"),
        ({"preset": "full", "beta": 0.5}, "loss.beta: beta is 0.5"),
        ({"divergence": "forward_kl"}, "loss.divergence: a policy gradient is that of"),
        ({"preset": "full", "gradient": "policy"}, "loss.gradient: the whole vocabulary"),
        ({"preset": "full", "weight": "teacher"}, "loss.weight: a divergence has its own"),
        ({"tail": True}, "loss.tail: a tail goes with"),
        ({"estimator": "k3"}, "loss.estimator: estimators are of one"),
        ({"preset": "sampled", "ratio_scope": "support"}, "loss.ratio_scope: .* renormalise"),
        ({"weight": "uniform", "weight_scope": "vocabulary"}, "loss.weight_scope: uniform"),
    ):
        with pytest.raises(UserError, match=message):
            loss_spec(given_settings)


def test_aggregation_by_hand() -> None:
    """Sequences of 4, 2, 1 and 1 tokens, however they are cut for the memory that there is."""
    # Of the authors' micro-batches: the first two sequences, and the last two.
    weights = torch.tensor([2 / 4 / 6, 2 / 4 / 6, 2 / 4 / 2, 2 / 4 / 2])
    loss = torch.tensor([[1.0, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0], [8, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])

    def total(how: Aggregation, size: int) -> float:
        parts = 4 // size
        return sum(
            float(
                aggregate(
                    loss[i : i + size],
                    mask[i : i + size],
                    how,
                    8.0,
                    parts,
                    weights[i : i + size] if how == "micro_batch_mean" else None,
                )
            )
            for i in range(0, 4, size)
        )

    for size in (1, 2, 4):
        assert total("token_mean", size) == pytest.approx(36 / 8)
        assert total("sequence_mean", size) == pytest.approx((2.5 + 5.5 + 7 + 8) / 4)
        # Token means of the two, weighted by their sequences.
        assert total("micro_batch_mean", size) == pytest.approx((21 / 6) * 0.5 + (15 / 2) * 0.5)

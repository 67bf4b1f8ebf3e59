"""The fused losses against the reference on the heads' logits: values, gradients, memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opd.core.errors import UserError
from opd.losses import head
from opd.losses.fused import fused_token_loss
from opd.losses.head import Head
from opd.losses.spec import BIASED, PRESETS, LossSpec
from opd.losses.token import token_loss

B, T, V, H_P, H_Q = 2, 7, 53, 12, 20
MASK = torch.arange(T).expand(B, T) < torch.tensor([[T], [4]])
SPECS = {
    **{n: replace(s, k=5) if s.k is not None else s for n, s in PRESETS.items()},
    "weighted by the teacher": LossSpec("student", 5, weight="teacher", ratio_scope="support"),
    "raw teacher weights": LossSpec(
        "student", 5, weight="teacher", weight_scope="vocabulary", ratio_scope="support"
    ),
    "jsd, nearer the student": replace(PRESETS["jsd"], beta=0.2),
    "uniform": LossSpec("union", 5, weight="uniform"),
    "warm teacher": LossSpec("teacher", 5, teacher_temperature=1.7),
    "warm teacher, full": replace(PRESETS["full"], teacher_temperature=1.7),
    "tail of the intersection": LossSpec("intersection", 5, "direct", tail=True),
}
HEADS: dict[str, dict[str, float | None]] = {
    "plain": {},
    "scaled": {"scale": 0.6},
    "capped": {"scale": 1.3, "softcap": 3.0},
}


class Case:
    """Hidden states and heads that require gradients where a student's do."""

    def __init__(self, bias: bool, heads: dict[str, float | None], dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        self.hidden, self.weight = (
            random(B, T, H_P).requires_grad_(),
            random(V, H_P).requires_grad_(),
        )
        self.bias = random(V).requires_grad_() if bias else None
        self.head = Head(self.weight, self.bias, **heads)  # type: ignore[arg-type]
        self.teacher_hidden = random(B, T, H_Q)
        self.teacher = Head(random(V, H_Q), random(V) if bias else None, **heads)  # type: ignore[arg-type]
        self.ids = torch.randint(0, V, (B, T), generator=generator)

    def leaves(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]


def plain_logits(hidden: Tensor, head: Head) -> Tensor:
    """What a model with such a head computes, in float64."""
    logits = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        logits = logits + head.bias.double()
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def both(case: Case, spec: LossSpec, temperature: float, rows: int) -> list[list[Tensor]]:
    """[loss, gradients...] of the reference and of the fused loss, for uneven upstream weights."""
    upstream = torch.linspace(0.5, 2, B * T).view(B, T)
    losses = [
        token_loss(
            plain_logits(case.hidden, case.head) / temperature,
            plain_logits(case.teacher_hidden, case.teacher),
            case.ids,
            MASK,
            spec,
        ),
        fused_token_loss(
            case.hidden,
            case.head,
            case.teacher_hidden,
            case.teacher,
            case.ids,
            MASK,
            spec,
            temperature,
            rows * V,
        ),
    ]
    return [
        [loss.detach().double()]
        + [g.double() for g in torch.autograd.grad((loss * upstream).sum(), case.leaves())]
        for loss in losses
    ]


def check(case: Case, spec: LossSpec, temperature: float = 1.0, rows: int = 3) -> None:
    (value, *gradients), (fused_value, *fused_gradients) = both(case, spec, temperature, rows)
    torch.testing.assert_close(fused_value, value, atol=1e-5, rtol=1e-5)
    for fused, reference in zip(fused_gradients, gradients, strict=True):
        torch.testing.assert_close(fused, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "heads"),
    [(n, h) for n in SPECS for h in HEADS if (n, h) != ("warm teacher, full", "capped")],
)
def test_fused_is_the_reference(name: str, heads: str) -> None:
    for bias in (False, True):
        check(Case(bias, HEADS[heads], torch.float32), SPECS[name])


@pytest.mark.parametrize("name", SPECS)
def test_the_size_of_the_chunks_does_not_matter(name: str) -> None:
    case = Case(True, {}, torch.float32)
    for rows in (1, 4, 1000):
        check(case, SPECS[name], rows=rows)


@pytest.mark.parametrize("name", SPECS)
def test_the_student_at_the_temperature_of_its_rollouts(name: str) -> None:
    check(Case(True, {"scale": 0.5}, torch.float32), SPECS[name], temperature=0.7)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("name", PRESETS)
def test_a_student_that_is_its_own_teacher(name: str, temperature: float) -> None:
    """At one temperature for both the loss is 0, and the gradient too but for three presets: +p
    (1 - m) on the support and -p m off it for the biased one (restatement 2.8), y - p for the plain
    log-ratio, p being the softmax at the temperature."""
    for heads in HEADS.values():
        case = Case(True, heads, torch.float32)
        spec = replace(SPECS[name], teacher_temperature=temperature)
        loss = fused_token_loss(
            case.hidden, case.head, case.hidden, case.head, case.ids, MASK, spec, temperature
        )
        assert loss.abs().max() < 1e-5
        (found,) = torch.autograd.grad(loss.sum(), [case.hidden])
        logits = plain_logits(case.hidden, case.head).detach()
        p = (logits / temperature).softmax(-1)
        support = torch.zeros_like(p).scatter(-1, p.topk(5, -1).indices, 1.0)
        sampled = torch.nn.functional.one_hot(case.ids, V).double()
        by_logits = {
            "biased_topk": p * (support - (p * support).sum(-1, keepdim=True)),
            "student_filled": p * (support - (p * support).sum(-1, keepdim=True)),
            "plain_log_ratio": sampled - p,
        }.get(name, torch.zeros_like(p))
        slope = torch.ones_like(p) * case.head.scale / temperature
        if case.head.softcap is not None:
            slope *= 1 - (logits / case.head.softcap) ** 2
        expected = (by_logits * slope) @ case.weight.detach().double() * MASK.unsqueeze(-1)
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)
        assert (expected.abs().max() > 0.01) == (name in BIASED)


@pytest.mark.parametrize("name", SPECS)
def test_in_bfloat16(name: str) -> None:
    """Against the same numbers in float32: cosine at least 0.999, relative error at most 3e-2."""
    case = Case(False, {}, torch.bfloat16)
    (_, *reference), (_, *fused) = both(case, SPECS[name], 1.0, 3)
    for ours, theirs in zip(fused, reference, strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert cosine > 0.999
        assert (ours - theirs).norm() <= 3e-2 * theirs.norm()


@pytest.mark.parametrize("name", SPECS)
def test_under_autocast_it_is_that_of_narrow_hidden_states(name: str) -> None:
    """As trainers do it: forward under autocast, backward outside; weights stay float32."""
    case, narrow = Case(False, {}, torch.float32), Case(False, {}, torch.float32)
    narrow.hidden = narrow.hidden.detach().bfloat16().requires_grad_()
    narrow.teacher_hidden = narrow.teacher_hidden.bfloat16()
    found = []
    for autocast, one in ((True, case), (False, narrow)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = fused_token_loss(
                one.hidden, one.head, one.teacher_hidden, one.teacher, one.ids, MASK, SPECS[name]
            )
        assert loss.dtype == torch.float32
        found.append([loss.detach(), *torch.autograd.grad(loss.sum(), one.leaves())])
    (value, hidden, weight), (narrow_value, narrow_hidden, narrow_weight) = found
    assert hidden.dtype == weight.dtype == narrow_weight.dtype == torch.float32
    assert torch.equal(value, narrow_value) and torch.equal(weight, narrow_weight)
    assert torch.equal(hidden, narrow_hidden.float())


@pytest.mark.parametrize("name", SPECS)
def test_nothing_to_look_at(name: str) -> None:
    case = Case(True, {}, torch.float32)
    nothing = torch.zeros(B, T)
    hidden = torch.full_like(case.hidden, torch.nan).requires_grad_()
    loss = fused_token_loss(
        hidden, case.head, case.teacher_hidden, case.teacher, case.ids, nothing, SPECS[name]
    )
    assert (loss == 0).all()
    found = torch.autograd.grad(loss.sum(), [hidden, case.weight])
    assert all((g == 0).all() for g in found)


def test_tied_weights_get_both_gradients() -> None:
    """A head that is also the embedding."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(V, H_P, generator=generator, requires_grad=True)
    teacher = Head(torch.randn(V, H_Q, generator=generator))
    h_q = torch.randn(1, T, H_Q, generator=generator)
    ids, mask = torch.randint(0, V, (1, T), generator=generator), torch.ones(1, T)
    spec = SPECS["rethinking_eq5"]

    def found(loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(loss_of(table[ids]).sum(), table)[0]

    fused = found(lambda h: fused_token_loss(h, Head(table), h_q, teacher, ids, mask, spec))
    plain = found(lambda h: token_loss(h @ table.T, h_q @ teacher.weight.T, ids, mask, spec))
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-4)


def test_what_the_kernel_cannot_do() -> None:
    case = Case(False, HEADS["capped"], torch.float32)
    with pytest.raises(UserError, match=r"loss.teacher_temperature: .*capped.*; use 1.0 or"):
        check(case, SPECS["warm teacher, full"])


def test_only_chunks_of_logits_are_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a loss does not need is not projected: student, teacher, student again."""
    sizes: list[tuple[int, int]] = []
    project = head.matmul

    def spy(a: Tensor, b: Tensor) -> Tensor:
        sizes.append((a.shape[0], b.shape[1]))
        return project(a, b)

    monkeypatch.setattr(head, "matmul", spy)
    case = Case(False, {}, torch.float32)
    n = int(MASK.sum())
    wide = {"rethinking_code": 3, "rethinking_eq5": 1, "renormalised_topk": 2, "sampled": 3}
    for name, projections in wide.items():
        sizes.clear()
        both(case, SPECS[name], 1.0, 4)
        chunks = -(-n // 4)
        assert max(rows for rows, columns in sizes if columns == V) <= 4
        assert sum(columns == V for _, columns in sizes) == projections * chunks, name

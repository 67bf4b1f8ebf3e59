"""The fused losses and the metrics in bfloat16, as a training step on a GPU computes them, against
full logits in float64 on a CPU."""

import pytest
import torch

from opd.losses import head, metrics
from opd.losses.fused import fused_token_loss
from opd.losses.head import Head
from opd.losses.spec import PRESETS
from opd.losses.token import token_loss

POSITIONS, VOCABULARY, HIDDEN = 96, 4096, 64


class Case:
    """Hidden states and heads [N, H], [V, H], numbers that bfloat16 holds; they mostly agree."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).bfloat16()

        self.hidden = normal(1, POSITIONS, HIDDEN)
        self.weight = normal(VOCABULARY, HIDDEN) / 4
        self.teacher_hidden = (self.hidden + 0.3 * normal(1, POSITIONS, HIDDEN)).bfloat16()
        self.ids = torch.randint(VOCABULARY, (1, POSITIONS), generator=generator)
        self.mask = torch.ones_like(self.ids)


@pytest.mark.parametrize("preset", PRESETS)
def test_fused_loss_in_bfloat16(preset: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean loss within 1 %, the gradient within 3 % of its length: products of bfloat16 numbers
    added up in float32 differ from exact ones by less."""
    case, spec = Case(), PRESETS[preset]
    exact = [x.double().requires_grad_() for x in (case.hidden, case.weight)]
    logits = exact[0] @ exact[1].T
    teacher = case.teacher_hidden.double() @ case.weight.double().T
    mean = token_loss(logits, teacher, case.ids, case.mask, spec).mean()
    gradients = torch.autograd.grad(mean, exact)

    narrow = [x.to(device, copy=True).requires_grad_() for x in (case.hidden, case.weight)]
    others = (x.to(device) for x in (case.teacher_hidden, case.weight, case.ids, case.mask))
    teacher_hidden, teacher_weight, ids, mask = others
    loss = fused_token_loss(
        narrow[0],
        Head(narrow[1]),
        teacher_hidden,
        Head(teacher_weight),
        ids,
        mask,
        spec,
        chunk_elements=head.CHUNK_ELEMENTS // 512,  # several chunks
    ).mean()
    assert loss.item() == pytest.approx(mean.item(), rel=0.01, abs=1e-3)
    for computed, expected in zip(torch.autograd.grad(loss, narrow), gradients, strict=True):
        error = (computed.double().cpu() - expected).norm() / expected.norm()
        assert error < 0.03, f"{error:.4f}"


def test_metrics(device: str) -> None:
    """Of the same logits, on the device and in float64 on a CPU; sets of the top k are the same."""
    case = Case()
    student = case.hidden[0].float() @ case.weight.float().T
    teacher = case.teacher_hidden[0].float() @ case.weight.float().T
    repeated = metrics.repeats(case.ids, case.mask)[0]
    arguments = (student, teacher, case.ids[0], repeated)
    expected = metrics.state_metrics(
        *(x.double() if x.is_floating_point() else x for x in arguments), 16
    )
    computed = metrics.state_metrics(*(x.to(device) for x in arguments), 16)
    for name, sums in computed.items():
        assert torch.equal(sums.n.cpu().double(), expected[name].n.double()), name
        torch.testing.assert_close(
            sums.total.cpu().double(), expected[name].total.double(), rtol=1e-3, atol=1e-5, msg=name
        )

"""What the tokens of a term count: masks and weights by name, pure functions of a step's tokens.

Legend: N tokens of a step that the term is over, of all processes and micro-batches together, so
that no weight depends on how a step is cut. B sequences, T response positions. p is the student's
and q the teacher's next-token distribution, y the sampled token.

Sources. Prefix: 2602.15260. Drift: IW-OPD (2606.22600), as TRL 1.x has it. Entropy and divergence:
TIP (2604.14084), which finds the signal at high student entropy, and at low student entropy with
high divergence; Entropy-Aware OPD (2603.07079) goes by entropy, too. Right or wrong rollouts: SCOPE
(2604.10688). Their weights are their own where they are more than a selection.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opd.losses.head import gathered
from opd.losses.metrics import in_parts
from opd.losses.terms import States

Scores = Mapping[str, Tensor]


def token_weights(tokens: Mapping[str, Any], scores: Scores) -> Tensor:
    """What each token counts, [N], 0 where it does not, from the ``tokens`` of a term.

    ``scores``, each [N], by name: position, length (tokens of the response), correct (1 or 0), and
    those of ``state_scores``. A token counts where all masks have it. Weights are multiplied, and
    scaled so that they sum to the tokens that count; caps come after that and are not scaled.
    """
    (some, *_) = scores.values()
    counts = torch.ones_like(some, dtype=torch.bool)
    weights, caps = torch.ones_like(some), torch.ones_like(some)
    for name, settings in tokens.items():
        if name in MASKS:
            counts = counts & MASKS[name](scores, settings)
        elif name in CAPS:
            caps = caps * CAPS[name](scores, settings)
        else:
            weights = weights * WEIGHTS[name](scores, settings)
    weights = weights * counts
    scale = counts.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return weights * scale * caps


def in_quantiles(score: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Which scores [N] are among the highest, the lowest, or either, [N] bool.

    ``above_quantile: x`` has the highest N (1 - x), ``below_quantile: x`` the lowest N x (rounded
    up, at least one, and all that equal the last of them); ``outside_quantiles: [x, y]`` what is
    below x or above y.
    """
    if "outside_quantiles" in settings:
        low, high = settings["outside_quantiles"]
        below = in_quantiles(score, {"below_quantile": low})
        return below | in_quantiles(score, {"above_quantile": high})
    if "above_quantile" in settings:
        return in_quantiles(-score, {"below_quantile": 1 - settings["above_quantile"]})
    wanted = math.ceil(round(settings["below_quantile"] * len(score), 6))
    if not len(score):
        return torch.zeros_like(score, dtype=torch.bool)
    return score <= score.sort().values[max(1, wanted) - 1]


def _quantiles(name: str) -> Callable[[Scores, Mapping[str, Any]], Tensor]:
    return lambda scores, settings: in_quantiles(scores[name], settings)


def _correct(scores: Scores, settings: Mapping[str, Any]) -> Tensor:
    return scores["correct"] == float(settings["keep"] == "right")


def linear(scores: Scores, ends: Sequence[float]) -> Tensor:
    """From one weight at a response's first token to another at its last."""
    first, last = ends
    done = scores["position"] / (scores["length"] - 1).clamp(min=1)
    return first + (last - first) * done


def drift_weights(scores: Scores, gamma: float) -> Tensor:
    """1 + gamma (1 - the share of its response's |A| that lies before a token) (``drift``)."""
    return 1 + gamma * (1 - scores["drift"])


def clip_weights(scores: Scores, nats: float) -> Tensor:
    """min(1, c / |A|), A = log q(y) - log p(y), c in ``nats``: of the loss ``sampled``, whose value
    is -A, they make the one with A clipped to [-c, c]."""
    return nats / scores["advantage"].abs().clamp(min=nats)


# Of a token's states, the name in ``opd.losses.metrics.state_metrics``; with no token marked as
# repeated, ``log_ratio_other_nats`` is the log-ratio A of all of them.
STATE_METRICS = {
    "entropy": "entropy_student_nats",
    "teacher_entropy": "entropy_teacher_nats",
    "divergence": "kl_nats",
    "overlap": "overlap_ratio",
    "advantage": "log_ratio_other_nats",
}
# Name -> which tokens count; what they count; what they count at most.
MASKS: dict[str, Callable[[Scores, Any], Tensor]] = {
    **{name: _quantiles(name) for name in STATE_METRICS},
    "prefix": lambda scores, tokens: scores["position"] < tokens,
    "correct": _correct,
}
WEIGHTS: dict[str, Callable[[Scores, Any], Tensor]] = {"linear": linear, "drift": drift_weights}
CAPS: dict[str, Callable[[Scores, Any], Tensor]] = {"clip_nats": clip_weights}


@torch.no_grad()
def state_scores(
    student: States,
    teacher: States,
    temperatures: tuple[float, float],
    ids: Tensor,
    mask: Tensor,
    k: int,
) -> dict[str, Tensor]:
    """Of each token, [B, T], 0 where the ``mask`` is: entropy H(p), teacher_entropy H(q),
    divergence KL(p || q), advantage A = log q(y) - log p(y), in nats; overlap of both top k sets (a
    share); and ``drift``. ``temperatures`` divide the logits of student and teacher."""
    counts = mask != 0
    scores = {name: torch.zeros(mask.shape, device=mask.device) for name in STATE_METRICS}
    hidden = student.hidden[counts], teacher.hidden[counts]
    heads = gathered(student.head), gathered(teacher.head)
    sampled = ids[counts]
    never = torch.zeros_like(sampled, dtype=torch.bool)
    parts = [sums for _, sums in in_parts(hidden, heads, temperatures, sampled, never, k)]
    for name, metric in STATE_METRICS.items() if parts else ():
        values = torch.cat([sums[metric].total for sums in parts])
        scores[name] = scores[name].masked_scatter(counts, values.float())
    return {**scores, "drift": drift(scores["advantage"], mask)}


def drift(advantage: Tensor, mask: Tensor) -> Tensor:
    """Of each token the share of its response's sum of |A| that lies before it, [B, T], from A =
    log q(y) - log p(y), [B, T]. As in IW-OPD (2606.22600; TRL's ``_compute_iw_opd_loss``)."""
    size = advantage.abs() * (mask != 0)
    before = size.cumsum(1) - size
    return before / size.sum(1, keepdim=True).clamp(min=1e-8) * (mask != 0)

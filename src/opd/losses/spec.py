"""The space of objectives: which tokens a position's loss looks at, how they are weighted, and what
is differentiated. Without torch, so that a config can be checked where there is none. The formulas
and their sources stand in ``opd.losses.token``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from opd.core.errors import UserError

Support = Literal[
    "sampled",
    "student",
    "teacher",
    "intersection",
    "union",
    "symmetric_difference",
    "student_filled",
    "vocabulary",
]
Weight = Literal["student", "teacher", "uniform"]
Scope = Literal["support", "vocabulary"]
Gradient = Literal["policy", "direct"]
Divergence = Literal["reverse_kl", "forward_kl", "jsd"]
Estimator = Literal["k1", "k2", "k3"]
# How the losses of positions become that of a step: see ``opd.losses.token.aggregate``.
Aggregation = Literal["token_mean", "sequence_mean", "micro_batch_mean"]


@dataclass(frozen=True)
class LossSpec:
    """A point in the space of the papers' objectives. The ``loss:`` of a recipe has these fields,
    and holds each to its type; what contradicts another is refused here.

    - support: the candidate tokens of a position. ``sampled``: the token that was sampled;
      ``student``, ``teacher``: the top k of one; ``intersection``, ``union``,
      ``symmetric_difference``: of both top k sets; ``student_filled``: the student's top k, where
      a token outside the teacher's top k gets the student's own log-probability as q;
      ``vocabulary``: all tokens.
    - k: size of the top-k sets; of every support but ``sampled`` and ``vocabulary``.
    - gradient: ``policy`` detaches weight and log-ratio and differentiates log p (pbar where the
      ratio is renormalised), loss = sum of sg(w (log p - log q)) rho, rho = p / sg(p);
      ``direct`` differentiates the divergence itself.
    - weight, weight_scope: of ``policy``: w = p, q or uniform, renormalised over the support or
      raw.
    - ratio_scope: whether log p - log q is raw (``vocabulary``) or renormalised (``support``).
    - divergence, beta: of ``direct``; ``jsd`` is beta KL(q || m) + (1 - beta) KL(p || m) with
      m = beta q + (1 - beta) p, so beta belongs to ``jsd`` alone.
    - tail: of ``direct``: the mass outside the candidates is one more candidate.
    - estimator: of ``sampled`` with ``direct``, where A = log q - log p of the sampled token: k1 =
      -A (its gradient has no teacher in it), k2 = A^2 / 2, k3 = exp(A) - 1 - A.
    - teacher_temperature: divides the teacher's logits; training reads the teacher at the
      temperature of the student's rollouts where a recipe does not name another.
    """

    support: Support
    k: Annotated[int, Field(ge=1)] | None = None
    gradient: Gradient = "policy"
    weight: Weight = "student"
    weight_scope: Scope = "support"
    ratio_scope: Scope = "vocabulary"
    divergence: Divergence = "reverse_kl"
    beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    tail: bool = False
    estimator: Estimator = "k1"
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0

    def __post_init__(self) -> None:
        is_top_k = self.support not in ("sampled", "vocabulary")
        if is_top_k and self.k is None:
            _refuse(f"support '{self.support}' needs a k", "k", "give it")
        if not is_top_k and self.k is not None:
            _refuse(f"support '{self.support}' takes no k", "k", "remove it")
        if self.support == "vocabulary" and self.gradient == "policy":
            _refuse("the whole vocabulary is differentiated directly", "gradient", "use direct")
        if self.ratio_scope == "support" and not is_top_k:
            _refuse(f"support '{self.support}' has nothing to renormalise", "ratio_scope", "remove")
        if self.support == "student_filled" and self.ratio_scope == "support":
            _refuse("a filled support is not renormalised", "ratio_scope", "use vocabulary")
        if self.gradient == "direct":
            if (self.weight, self.weight_scope) != ("student", "support"):
                _refuse("a divergence has its own weights", "weight", "use gradient: policy")
        elif self.divergence != "reverse_kl":
            _refuse("a policy gradient is that of the reverse KL", "divergence", "use direct")
        if self.weight_scope == "vocabulary":
            if self.weight == "uniform":
                _refuse("uniform weights are over the support", "weight_scope", "use support")
            if self.support == "sampled":
                _refuse("one sampled token has weight 1", "weight_scope", "remove it")
        if self.support == "sampled" and self.divergence != "reverse_kl":
            _refuse("one token gives no divergence", "divergence", "use estimator")
        if self.estimator != "k1" and (self.support, self.gradient) != ("sampled", "direct"):
            _refuse("estimators are of one sampled token", "estimator", "use sampled and direct")
        if (self.beta is not None) != (self.divergence == "jsd"):
            _refuse(f"beta is {self.beta}", "beta", "give it with divergence: jsd, and only there")
        if self.tail and (
            self.gradient != "direct"
            or self.ratio_scope != "vocabulary"
            or self.support not in ("student", "teacher", "intersection")
        ):
            _refuse(
                "a tail goes with a raw divergence on a top-k set",
                "tail",
                "use gradient: direct and support student, teacher or intersection",
            )


def _refuse(problem: str, key: str, remedy: str) -> None:
    raise UserError(problem, f"loss.{key}", remedy)


_CODE = LossSpec("student", 16)
PRESETS: dict[str, LossSpec] = {
    # Rethinking OPD: what its code trains, what it prints, and its Eqs. 3 and 4.
    "rethinking_code": _CODE,
    "rethinking_eq5": LossSpec("student", 16, "direct", ratio_scope="support"),
    "sampled": LossSpec("sampled"),
    "full": LossSpec("vocabulary", gradient="direct"),
    # Its support ablation (Fig. 7); the code does not renormalise the symmetric difference.
    "teacher": replace(_CODE, support="teacher"),
    "intersection": replace(_CODE, support="intersection"),
    "union": replace(_CODE, support="union"),
    "symmetric_difference": replace(
        _CODE, support="symmetric_difference", weight_scope="vocabulary"
    ),
    # The Many Faces of OPD: Eqs. 6 to 9, 12, 14 to 16, on the support of Eq. 17; the default of
    # its runs; the support of its code; App. A.3.
    "biased_topk": LossSpec("intersection", 20, "direct"),
    "stop_gradient_topk": LossSpec("intersection", 20, weight_scope="vocabulary"),
    "renormalised_topk": LossSpec("intersection", 20, "direct", ratio_scope="support"),
    "many_faces_default": LossSpec("intersection", 20, ratio_scope="support"),
    "student_filled": LossSpec("student_filled", 20, "direct"),
    "tail_augmented": LossSpec("student", 20, "direct", tail=True),
    "forward_kl": LossSpec("vocabulary", gradient="direct", divergence="forward_kl"),
    "jsd": LossSpec("vocabulary", gradient="direct", divergence="jsd", beta=0.5),
    "k1": LossSpec("sampled"),
    "k2": LossSpec("sampled", gradient="direct", estimator="k2"),
    "k3": LossSpec("sampled", gradient="direct", estimator="k3"),
    # A control that must fail: the log-ratio itself, whose gradient has no teacher in it.
    "plain_log_ratio": LossSpec("sampled", gradient="direct"),
}
# The presets that have a gradient where the student equals its teacher (Many Faces, Eqs. 8 and 9,
# and the control); all others leave such a student as it is.
BIASED = ("biased_topk", "student_filled", "plain_log_ratio")


def loss_spec(settings: Mapping[str, Any]) -> LossSpec:
    """The loss that a recipe's ``loss:`` describes: a ``preset`` with other settings written over
    it. Raises ``UserError`` for settings that contradict each other."""
    settings = dict(settings)
    preset = PRESETS[settings.pop("preset", "rethinking_code")]
    # A preset's k and beta belong to its own support and divergence, not to another one.
    if settings.get("support", preset.support) in ("sampled", "vocabulary"):
        settings.setdefault("k", None)
    if settings.get("divergence", preset.divergence) != "jsd":
        settings.setdefault("beta", None)
    return replace(preset, **settings)

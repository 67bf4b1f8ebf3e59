"""Recipes of models: fetched, with random weights, trained, or kept at a step of a training."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.schema import OneOf, Strict, load_yaml
from opd.losses.spec import Aggregation, LossSpec, loss_spec
from opd.losses.sufficient import objection
from opd.recipes.base import (
    MICRO_BATCH,
    Count,
    Grader,
    HubObject,
    ModelRef,
    NonNegative,
    Number,
    Plain,
    Positive,
    PromptsRef,
    ScoresRef,
    SftDataRef,
    Share,
    TopP,
    or_text,
)
from opd.recipes.losses import (
    SERVER,
    CheckedLoss,
    Contexts,
    Information,
    Loss,
    Term,
    contexts,
)
from opd.recipes.sources import RolloutSource
from opd.training import shares

# Kind of training, or protocols -> name -> published settings.
METRICS_K = 16
PRESETS = load_yaml(package_file(__file__, "presets.yaml").read_text(encoding="utf-8"))
PRESET = Field(default=None, exclude=True, description="published settings (recipes/presets.yaml)")


class Init(Strict):
    """Random weights of the Qwen3 architecture over the miniature world's characters."""

    hidden: Count = 96
    layers: Count = 3
    heads: Count = 4
    kv_heads: Count = 2
    intermediate: Count = 256


class Hub(HubObject):
    """Weights from the hub."""


class Released(Hub):
    """Published weights that a model can be taken from instead of being trained."""

    id: str = Field(alias="hub", description="id of the weights on the hub")


class Lora(Strict):
    """Low-rank adaptation (Hu et al. 2021): W + alpha / r x B A is computed with in place of W, and
    B and A, of rank r, are trained."""

    r: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="of what goes into A, in training"
    )
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        default="all-linear",
        description="which matrices have one, by the ends of their modules' names; all-linear: all "
        "but embeddings and head, which never have one",
    )


class Adapter(Strict):
    """What is trained in place of all weights (see ``opd.training.adapter``)."""

    lora: Lora


class Trained(Strict):
    """A training run; ``keep_steps`` are kept as models of their own, named MODEL@STEP, ``keep``
    says for how long."""

    student: ModelRef
    steps: Count | None = None
    keep_steps: list[Number] = Field(
        default=[],
        exclude=True,
        description="steps whose weights are kept as MODEL@STEP; 0 is the student",
    )
    keep: Literal["always", "until_evaluated"] = Field(
        default="always",
        exclude=True,
        description="whether the weights of keep_steps go once all that the config reads them for "
        "is made",
    )
    adapter: Adapter | None = Field(
        default=None, description="trained in place of all weights, and merged into them in the end"
    )
    micro_batch: Count | None = MICRO_BATCH
    warmup: Share | None = None
    weight_decay: NonNegative | None = None
    adam_beta2: Share | None = None

    @model_validator(mode="before")
    @classmethod
    def _published(cls, recipe: Any) -> Any:
        """Adds the settings of the preset, of which only the length may be given otherwise."""
        presets = PRESETS[cls.__name__.lower()]
        name = recipe.get("preset") if isinstance(recipe, dict) else None
        if not isinstance(name, str) or name not in presets:
            return recipe
        preset = dict(presets[name])
        if recipe.get("steps") is not None:
            preset.pop("epochs", None)
        for key, value in preset.items():
            if recipe.get(key, value) != value:
                raise ValueError(
                    f"{key} is {recipe[key]} here or in defaults, preset '{name}' has {value}: "
                    "leave one of the two out"
                )
        return {**preset, **recipe}

    @model_validator(mode="after")
    def _keeps_steps_of_the_run(self) -> "Trained":
        beyond = [step for step in self.keep_steps if self.steps and step > self.steps]
        if beyond:
            raise ValueError(f"keep_steps: {beyond[0]} is beyond the run's {self.steps} steps")
        return self


class Run(Trained):
    """A training run of ``steps`` or ``epochs``."""

    epochs: Count | None = Field(default=None, description="instead of steps")

    @model_validator(mode="after")
    def _has_a_length(self) -> "Run":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of steps, epochs")
        return self


class OnPolicy(Trained):
    """A training run on the model's own rollouts."""

    prompts_per_step: Count = 64
    lr: Positive = 1e-6
    temperature: Positive = 1.0
    top_p: TopP | None = None
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = 7168
    shuffle: bool | None = Field(
        default=None,
        description="the prompts of every epoch in another order; as they stand if not",
    )


class Sft(Run):
    """Supervised fine-tuning (see ``opd.training.sft``)."""

    preset: Literal[*PRESETS["sft"]] | None = PRESET  # type: ignore[valid-type]
    data: SftDataRef
    batch_size: Count = 64
    lr: Positive = 1e-5
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: Share = 0.05
    max_tokens: Count = Field(default=14336, description="of prompt and response together")
    overlong: Literal["error", "drop", "cut"] | None = Field(
        default=None, description="what becomes of longer pairs; an error if not given"
    )
    empty_think: Literal["response", "prompt", "none"] | None = Field(
        default=None,
        description="where the empty think block goes: response (trained on), prompt (not trained "
        "on), none; where the chat template puts it if not given",
    )
    packing: bool | None = Field(
        default=None, description="several pairs in one sequence of max_tokens"
    )
    liger: bool | None = Field(default=None, description="Liger's kernels, on a GPU")
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="share of the pairs that is not trained on, only measured"
    )
    nll_traces: Count | None = Field(
        default=None, description="pairs whose mean NLL is measured, 256 if not given"
    )
    nll_every: Count | None = Field(
        default=None, description="steps between these measurements; first and last if not given"
    )


class LengthPenalty(Strict):
    """``weight`` is taken off the reward at max_new_tokens, less in proportion below, nothing up to
    ``free`` tokens (see ``opd.training.grpo.length_penalty``)."""

    weight: Positive = 1.0
    free: Number = 0


class Grpo(OnPolicy, Run):
    """Reinforcement learning with verifiable rewards (see ``opd.training.grpo``). A step is one
    batch of rollouts."""

    preset: Literal[*PRESETS["grpo"]] | None = PRESET  # type: ignore[valid-type]
    prompts: PromptsRef
    grader: Grader = "rule"
    group_size: Annotated[int, Field(ge=2)] = 8
    updates_per_batch: Count | None = Field(
        default=None, description="optimiser steps on one batch of rollouts, each on a part of it"
    )
    schedule: Literal["constant", "cosine", "linear"] | None = None
    aggregation: Literal["token_mean", "sequence_mean"] | None = Field(
        default=None,
        description="the mean over all tokens of an update, if not given; or over the tokens of a "
        "rollout, then over rollouts",
    )
    clip: Positive | None = Field(default=None, description="0.2 if not given")
    clip_high: Positive | None = Field(default=None, description="the upper clip, if another")
    importance_cap: Positive | None = Field(
        default=None,
        description="cap of the token-level weights for what vLLM samples; no weights if not given",
    )
    information: Information | None = Field(
        default=None, description="privileged information in what the model is asked"
    )
    length_penalty: LengthPenalty | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Grpo":
        rollouts = self.prompts_per_step * self.group_size
        if rollouts % (self.updates_per_batch or 1):
            raise ValueError(
                f"updates_per_batch: {self.updates_per_batch} does not divide {rollouts} rollouts"
            )
        if any({*context} - {"message"} for context in contexts(self.information)):
            raise ValueError("information: here it is a message alone")
        if self.length_penalty and self.length_penalty.free >= self.max_new_tokens:
            raise ValueError("length_penalty.free must be below max_new_tokens")
        return self


class Guard(Strict):
    """What counts as a collapse (``opd.losses.collapse``), and whether it ends the run or is
    noted."""

    action: Literal["flag", "stop"] = "flag"
    reference_steps: Count = Field(
        default=10, description="the first steps, whose median is what later ones are compared with"
    )
    patience: Count = Field(default=5, description="steps in a row that have to show it")
    length_ratio: Positive | None = Field(
        default=3.0, description="response length as a multiple of that median; null: not watched"
    )
    repetition: Share | None = Field(default=0.75, description="share of repeated 3-grams")
    entropy_rise_nats: Positive | None = Field(
        default=1.0, description="the student's entropy above that median"
    )
    top_mass_drop: Share | None = Field(
        default=0.2, description="mass on the student's top k below that median"
    )


# Of Rethinking OPD's runs: thunlp/OPD at 0a44395, on_policy_distillation.sh, lines 163 and 239.
TOKEN_BUDGET, RANKS = 32768, 8


def _losses(loss: Loss, terms: Sequence[Term] | None) -> list[LossSpec]:
    """The losses of a sum's terms, or the one of a run without."""
    losses = [term.loss or loss for term in terms if not term.reward] if terms else [loss]
    return [loss_spec(each.model_dump(exclude_none=True)) for each in losses]


def _largest_k(settings: Mapping[str, Any]) -> int:
    """The largest k of the losses of a run, as far as its ``settings`` are valid."""
    losses = _losses(settings["loss"], settings.get("terms")) if "loss" in settings else []
    return max((loss.k for loss in losses if loss.k), default=METRICS_K)


class Distill(OnPolicy):
    """On-policy distillation (see ``opd.training.distill``)."""

    preset: Literal[*PRESETS["distill"]] | None = PRESET  # type: ignore[valid-type]
    teacher: ModelRef | None = Field(default=None, description="short for one term of weight 1")
    scores: ScoresRef | None = Field(
        default=None,
        description="instead of teacher: the teacher of these scores, which is not loaded; all "
        "rollouts are of their generation",
    )
    server: Literal[True] | None = SERVER
    terms: Annotated[list[Term], Field(min_length=1)] | None = Field(
        default=None, description="instead of teacher: the terms of the sum that a step minimises"
    )
    prompts: PromptsRef | Annotated[list[PromptsRef], Field(min_length=2)] = Field(
        description="one set, or several, which are mixed in random order (shuffle: true)"
    )
    loss: CheckedLoss = Field(default=Loss(), description="also of terms that have none")
    aggregation: Aggregation = "token_mean"
    max_token_len_per_gpu: Count | None = Field(
        default=None,
        description="of micro_batch_mean: tokens that a micro-batch has room for, prompts "
        f"included; {TOKEN_BUDGET} if not given",
    )
    data_parallel_size: Count | None = Field(
        default=None,
        description="of micro_batch_mean: ranks that a step's sequences are dealt to before they "
        f"are cut, whatever trains here; {RANKS} if not given",
    )
    metrics_k: Count = Field(
        default_factory=_largest_k,
        description="top tokens that overlap, masses and ranks are of; those of the loss (of the "
        f"terms' losses the most), or {METRICS_K} where it has no k, if not given",
    )
    metrics_every: Count = Field(default=1, description="steps between measurements")
    position_bin: Count = Field(default=512, description="tokens in a bin of response positions")
    guard: Guard = Guard()
    packing: bool | None = Field(
        default=None,
        description="a micro-batch goes through the models as one row without padding",
    )
    steps: Count
    rollouts_per_prompt: Count = 4
    rollouts: Annotated[list[RolloutSource], Field(min_length=1)] | None = Field(
        default=None,
        description="where the rollouts of a step come from, by shares of their number; the "
        "student samples all of them if not given",
    )
    schedule: Literal["constant", "cosine"] = "constant"
    information: Contexts | None = Field(
        default=None,
        description="what the teacher is told beyond the student's prompt; of several contexts the "
        "rollouts of a prompt take each in turn",
    )
    thinking_may_differ: bool | None = Field(
        default=None, description="train although one side is asked to think and the other is not"
    )
    end_tokens: Literal["student", "both", "all"] | None = Field(
        default=None,
        description="what ends a response, where student and teacher or the chat template differ: "
        "the student's own tokens; the teacher's, too; what ends a turn in the template, too",
    )
    max_teacher_prompt_tokens: Count | None = None
    teacher_update: Literal["frozen", "ema", "live"] | None = Field(
        default=None, description="frozen; or the student itself, as it is or as a moving average"
    )
    ema_decay: Share | None = None
    max_grad_norm: Positive = 1.0

    @model_validator(mode="after")
    def _teacher_or_terms(self) -> "Distill":
        if sum(given is not None for given in (self.teacher, self.terms, self.scores)) != 1:
            raise ValueError("needs exactly one of teacher, terms, scores")
        for key in ("information", "teacher_update", "ema_decay") if self.scores else ():
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} goes with teacher and not with scores, which stay as they are"
                )
        if self.terms:
            for key, instead in (
                ("information", "say it in a term"),
                ("teacher_update", "teachers of terms are frozen"),
                ("ema_decay", "teachers of terms are frozen"),
            ):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} goes with teacher and not with terms: {instead}")
            if not any(term.teacher or term.scores for term in self.terms):
                raise ValueError("terms: one of them needs a teacher; without any this is grpo")
            if not any(term.weighs for term in self.terms):
                raise ValueError("terms: all weights are 0")
            if any(term.reward for term in self.terms) and self.rollouts_per_prompt < 2:
                raise ValueError("a reward needs rollouts_per_prompt of 2 or more to compare")
        return self

    @property
    def summed(self) -> Sequence["Term | Distill"]:
        """Its terms; the run itself, if it has the short form of one."""
        return self.terms or [self]

    @model_validator(mode="after")
    def _served_with_what_it_gives(self) -> "Distill":
        """A server gives scores (``opd.losses.sufficient``), of as many tokens as are asked for."""
        if self.server:
            if not self.teacher:
                raise ValueError("server goes with teacher")
            if self.teacher_update not in (None, "frozen"):
                raise ValueError("teacher_update: a teacher behind a server is frozen")
        for i, term in enumerate(self.summed):
            if term.server:
                where = f"terms.{i}: " if self.terms else ""
                loss = (term.loss or self.loss).model_dump(exclude_none=True)
                spec = loss_spec({"teacher_temperature": self.temperature, **loss})
                if error := objection(spec, spec.k or 0):
                    raise ValueError(f"{where}{error}")
        return self

    @property
    def samples(self) -> bool:
        """Whether the student samples any rollouts itself."""
        return self.rollouts is None or any(source.own for source in self.rollouts)

    @model_validator(mode="after")
    def _sources_that_share(self) -> "Distill":
        """Leaves out the one source that is meant where none is named."""
        sources = self.rollouts or []
        names = [source.generations for source in sources]
        if len({*names}) < len(names):
            raise ValueError("rollouts: a source stands there twice")
        try:
            shares.counts(
                [source.part for source in sources] or [1.0],
                self.prompts_per_step * self.rollouts_per_prompt,
            )
        except UserError as error:
            raise ValueError(str(error)) from None
        if [source.own for source in sources] == [1.0]:
            self.rollouts = None
        losses = _losses(self.loss, self.terms)
        if any(source.importance for source in sources) and not all(
            loss.support == "sampled" for loss in losses
        ):
            raise ValueError(
                "importance weighs losses of the sampled token alone (sampled, k2, k3, a reward): "
                "others take the mean over tokens themselves"
            )
        return self

    @model_validator(mode="after")
    def _sets_that_mix(self) -> "Distill":
        if isinstance(self.prompts, list):
            if not self.shuffle:
                raise ValueError(
                    "prompts: several sets come one after the other: say shuffle: true"
                )
            if len({*self.prompts}) < len(self.prompts):
                raise ValueError("prompts: a set stands there twice")
        return self

    @model_validator(mode="after")
    def _teacher_that_moves(self) -> "Distill":
        if self.teacher_update in ("ema", "live") and self.teacher != self.student:
            raise ValueError(f"teacher_update: {self.teacher_update} needs teacher: {self.student}")
        if (self.ema_decay is not None) != (self.teacher_update == "ema"):
            raise ValueError("ema_decay goes with teacher_update: ema")
        return self

    @model_validator(mode="after")
    def _cut_that_fits(self) -> "Distill":
        """Writes out how micro_batch_mean cuts, so that it belongs to what makes the result."""
        if self.aggregation != "micro_batch_mean":
            for key in ("max_token_len_per_gpu", "data_parallel_size"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} goes with aggregation: micro_batch_mean")
            return self
        self.max_token_len_per_gpu = self.max_token_len_per_gpu or TOKEN_BUDGET
        self.data_parallel_size = self.data_parallel_size or RANKS
        longest = self.max_prompt_tokens + self.max_new_tokens
        if longest > self.max_token_len_per_gpu:
            raise ValueError(
                f"max_token_len_per_gpu: {self.max_token_len_per_gpu} has no room for a prompt and "
                f"a response of {longest} tokens"
            )
        sequences = self.prompts_per_step * self.rollouts_per_prompt
        if sequences % self.data_parallel_size:
            raise ValueError(
                f"data_parallel_size: {self.data_parallel_size} does not divide the {sequences} "
                "sequences of a step"
            )
        return self


class Model(OneOf):
    """A model is fetched (hub, path), has random weights (init), or is trained. In a file also the
    text that names one to fetch (``opd.models.source``)."""

    model_config = ConfigDict(json_schema_extra=or_text)
    KINDS: ClassVar[tuple[str, ...]] = ("init", "hub", "path", "sft", "grpo", "distill")

    init: Init | None = None
    hub: Hub | None = None
    path: str | None = None
    sft: Sft | None = None
    grpo: Grpo | None = None
    distill: Distill | None = None
    chat_template: dict[str, Plain] = Field(
        default={}, description="chat template options, as enable_thinking: false"
    )
    released: Released | None = Field(
        default=None, description="weights that use_released takes instead of training the model"
    )

    @model_validator(mode="after")
    def _released_instead_of_training(self) -> "Model":
        if self.released and not self.trained:
            raise ValueError("released goes beside sft, grpo or distill")
        return self

    @property
    def trained(self) -> Sft | Grpo | Distill | None:
        return self.sft or self.grpo or self.distill

    @property
    def hub_key(self) -> str:
        """The key of the recipe that names the weights on the hub."""
        return "released" if isinstance(self.hub, Released) else "hub"


class Keep(Strict):
    model: ModelRef
    step: Count


class Kept(Model):
    """A model as it was after a step of its training: ``resolve`` adds one for each step kept."""

    KINDS = ("keep",)

    keep: Keep

"""The shape of a config: the one place that knows it.

A config names recipes: prompt sets, SFT data (``pairs``), models, generations, evaluations, tables
and figures. ``resolve`` checks them; ``opd.plan`` works out the artifacts that they describe.
Stages never import this module: they get resolved settings.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from opd import presets
from opd.benchmarks import OURS
from opd.errors import Bad
from opd.layouts import LAYOUTS
from opd.loss_spec import (
    PRESETS,
    Aggregation,
    Divergence,
    Estimator,
    Gradient,
    Scope,
    Support,
    Weight,
    loss_spec,
)
from opd.strict import Strict
from opd.templates import PLACE, TEMPLATES, named

Grader = Literal["world", "rule", "math_verify"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Plain = str | int | float | bool | None
_NAMES = ", ".join(TEMPLATES)


@dataclass(frozen=True)
class Ref:
    """Marks a field that names a recipe of another section (or several), or something built in."""

    section: str
    builtin: tuple[str, ...] = ()


# A model, or one at a step of its training.
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(@(0|[1-9][0-9]*))?$")]
ModelRef = Annotated[ModelName, Ref("models")]
PromptsRef = Annotated[Name, Ref("prompts")]
PairsRef = Annotated[Name, Ref("pairs")]
GenerationsRef = Annotated[Name, Ref("generations")]
EvaluationRef = Annotated[Name, Ref("evaluations")]


class OneOf(Strict):
    """A recipe with exactly one verb among ``verbs``."""

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        raise NotImplementedError

    @model_validator(mode="after")
    def _exactly_one(self) -> "OneOf":
        given = [verb for verb in self.verbs() if getattr(self, verb) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of {', '.join(self.verbs())} "
                f"(it has {' and '.join(given) or 'none'})"
            )
        return self

    @property
    def verb(self) -> str:
        return next(verb for verb in self.verbs() if getattr(self, verb) is not None)


# Prompt sets


class WorldPrompts(Strict):
    split: str
    n: Count


class Columns(Strict):
    """Which columns hold what; by default those of the layout (``opd.layouts``)."""

    layout: Literal[*LAYOUTS] | None = Field(  # type: ignore[valid-type]
        default=None, description="as this dataset has it; found out if not given"
    )
    question: str | None = Field(
        default=None, description="a column, dotted or not, or a form with {column} in it"
    )
    answer: str | None = None
    difficulty: str | None = None
    row_id: str | None = Field(default=None, description="column with an id for each row")


class FilePrompts(Columns):
    """A parquet, json-lines or csv file; a relative name is looked up below OPD_DATA_DIR."""

    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class HubPrompts(Columns):
    """A dataset of the hub; layout, configs and file of those in ``opd.layouts`` are known."""

    id: str
    revision: str | None = None
    config: str | list[str] | None = Field(default=None, description="several are read in turn")
    file: str | None = Field(default=None, description="one file of the repository")
    split: str = "train"


class Dedup(Strict):
    """What is left of a prompt set without what is in another, or, against itself, without what
    is in its own earlier rows."""

    prompts: PromptsRef
    against: PromptsRef
    encoder: Annotated[ModelName, Ref("models", builtin=("hashed",))]
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.6


class Sample(Strict):
    n: Count
    seed: int = 0


class Difficulty(Strict):
    """MATH's levels, DeepMath's difficulty: whatever number the source gives."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "Difficulty":
        if self.at_least is None and self.at_most is None:
            raise ValueError("needs at_least or at_most")
        return self


class Apart(Strict):
    """Nothing that another set has: no row of it, or no question of it."""

    prompts: PromptsRef
    by: Literal["row", "question"] = "question"


def _check_template(template: str | None) -> None:
    if template is not None and PLACE not in named(template):
        raise ValueError(f"template must be {_NAMES}, or text that contains {{question}}")


class PromptSet(OneOf):
    """Where prompts come from, and what is done to them, in the order of these keys."""

    world: WorldPrompts | None = None
    path: FilePrompts | None = None
    hub: HubPrompts | None = None
    use: Annotated[Name | None, Ref("prompts")] = Field(default=None, description="another set")
    dedup: Dedup | None = None
    strip: list[str] = Field(
        default=[],
        description=f"what comes off: {_NAMES} or text, with {{question}} or at one end",
    )
    drop_empty: bool = False
    language: Literal["en", "zh"] | None = Field(
        default=None, description="zh: with any Chinese character"
    )
    difficulty: Difficulty | None = None
    max_chars: Count | None = Field(default=None, description="longer questions are left out")
    apart_from: Apart | None = None
    distinct: Literal["question", "prompt"] | None = Field(
        default=None,
        description="of several equal ones the first stays; prompt: as the source asks it",
    )
    sample: Sample | None = None
    template: str | None = Field(
        default=None, description=f"what goes on: {_NAMES} or text with {{question}}"
    )

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        return ("world", "path", "hub", "use", "dedup")

    @model_validator(mode="after")
    def _template_has_a_place(self) -> "PromptSet":
        _check_template(self.template)
        if self.dedup and self.model_fields_set - {"dedup"}:
            raise ValueError("a dedup recipe takes nothing else; put a 'use' recipe after it")
        return self


class Contamination(Strict):
    """A report on which problems of benchmarks a prompt set holds."""

    prompts: PromptsRef
    benchmarks: Annotated[list[Name], Ref("prompts")] = Field(min_length=1)
    encoder: Annotated[ModelName, Ref("models", builtin=("hashed",))]
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.6

    @model_validator(mode="after")
    def _others(self) -> "Contamination":
        if self.prompts in self.benchmarks:
            raise ValueError(f"{self.prompts} is compared with itself: use dedup within the set")
        return self


# Models


class Init(Strict):
    """Random weights of the Qwen3 architecture over the miniature world's characters."""

    hidden: Count = 96
    layers: Count = 3
    heads: Count = 4
    kv_heads: Count = 2
    intermediate: Count = 256


class Hub(Strict):
    """Weights from the hub. ``index`` names the same weights in the Python package index."""

    id: str
    revision: str | None = Field(
        default=None, description="as far as known; `opd lock` finds the 40 digits"
    )
    index: Literal["smollm2", "mpnet", "minilm"] | None = None


class Released(Hub):
    """Published weights that a model can be taken from instead of being trained."""

    id: str = Field(alias="hub", description="id of the weights on the hub")


MICRO_BATCH = Field(
    default=None, description="sequences that go through the model at a time; all if not given"
)


def _known_fields(template: str) -> str:
    """Refuses {name} of anything but question and answer; \\boxed{x} is no such field."""
    for field in re.findall(r"(?<![A-Za-z}])\{([A-Za-z_]+)\}", template):
        if field not in ("question", "answer"):
            raise ValueError(f"unknown field {{{field}}}; there are {{question}} and {{answer}}")
    return template


# What a model is asked where that is not the prompt of the prompt set.
Asked = Annotated[str, Field(pattern=r"\{question\}"), AfterValidator(_known_fields)]


class Trained(Strict):
    """A training run; ``keep_steps`` are kept as models of their own, named MODEL@STEP."""

    steps: Count | None = None
    keep_steps: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        exclude=True,
        description="steps whose weights are kept as MODEL@STEP; 0 is the student",
    )

    @model_validator(mode="after")
    def _keeps_steps_of_the_run(self) -> "Trained":
        beyond = [step for step in self.keep_steps if self.steps and step > self.steps]
        if beyond:
            raise ValueError(f"keep_steps: {beyond[0]} is beyond the run's {self.steps} steps")
        return self


class Run(Trained):
    """A training run of ``steps`` or ``epochs``, with published settings where it names some."""

    epochs: Count | None = Field(default=None, description="instead of steps")
    weight_decay: NonNegative | None = None
    adam_beta2: Share | None = None

    @model_validator(mode="after")
    def _has_a_length(self) -> "Run":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of steps, epochs")
        return self


def _published(recipe: Any, known: Mapping[str, Mapping[str, Any]]) -> Any:
    """A recipe with its preset's settings, of which only the length may be given otherwise."""
    name = recipe.get("preset") if isinstance(recipe, dict) else None
    if not isinstance(name, str) or name not in known:
        return recipe
    preset = dict(known[name])
    if recipe.get("steps") is not None:
        preset.pop("epochs", None)
    for key, value in preset.items():
        if recipe.get(key, value) != value:
            raise ValueError(
                f"{key} is {recipe[key]} here or in defaults, preset '{name}' has {value}: "
                "leave one of the two out"
            )
    return {**preset, **recipe}


class Sft(Run):
    """Supervised fine-tuning (see ``opd.training.sft``)."""

    preset: Literal[*presets.SFT] | None = Field(  # type: ignore[valid-type]
        default=None, exclude=True, description="published settings (opd.presets)"
    )
    student: ModelRef
    data: PairsRef
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
    micro_batch: Count | None = MICRO_BATCH

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, recipe: Any) -> Any:
        return _published(recipe, presets.SFT)


class LengthPenalty(Strict):
    """``weight`` is taken off the reward at max_new_tokens, less in proportion below, nothing up to
    ``free`` tokens (see ``opd.training.grpo.length_penalty``)."""

    weight: Positive = 1.0
    free: Annotated[int, Field(ge=0)] = 0


class Grpo(Run):
    """Reinforcement learning with verifiable rewards (see ``opd.training.grpo``). A step is one
    batch of rollouts."""

    preset: Literal[*presets.GRPO] | None = Field(  # type: ignore[valid-type]
        default=None, exclude=True, description="published settings (opd.presets)"
    )
    student: ModelRef
    prompts: PromptsRef
    grader: Grader = "rule"
    prompts_per_step: Count = 64
    group_size: Annotated[int, Field(ge=2)] = 8
    updates_per_batch: Count | None = Field(
        default=None, description="optimiser steps on one batch of rollouts, each on a part of it"
    )
    micro_batch: Count | None = MICRO_BATCH
    lr: Positive = 1e-6
    schedule: Literal["constant", "cosine", "linear"] | None = None
    warmup: Share | None = None
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = 7168
    clip: Positive | None = Field(default=None, description="0.2 if not given")
    clip_high: Positive | None = Field(default=None, description="the upper clip, if another")
    importance_cap: Positive | None = Field(
        default=None,
        description="cap of the token-level weights for what vLLM samples; no weights if not given",
    )
    prompt_template: Asked | None = Field(
        default=None,
        description="what the model is asked, with {question} and {answer}, if not the prompt",
    )
    length_penalty: LengthPenalty | None = None

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, recipe: Any) -> Any:
        return _published(recipe, presets.GRPO)

    @model_validator(mode="after")
    def _makes_sense(self) -> "Grpo":
        rollouts = self.prompts_per_step * self.group_size
        if rollouts % (self.updates_per_batch or 1):
            raise ValueError(
                f"updates_per_batch: {self.updates_per_batch} does not divide {rollouts} rollouts"
            )
        if self.length_penalty and self.length_penalty.free >= self.max_new_tokens:
            raise ValueError("length_penalty.free must be below max_new_tokens")
        return self


class Loss(Strict):
    """A preset of ``opd.loss_spec``, with other settings written over it."""

    preset: Literal[*PRESETS] = "rethinking_code"  # type: ignore[valid-type]
    support: Support | None = None
    k: Count | None = Field(default=None, description="size of the top-k sets")
    gradient: Gradient | None = None
    weight: Weight | None = None
    weight_scope: Scope | None = None
    ratio_scope: Scope | None = None
    divergence: Divergence | None = None
    beta: Share | None = None
    tail: bool | None = None
    estimator: Estimator | None = None
    teacher_temperature: Positive | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Loss":
        try:
            loss_spec(self.model_dump(exclude_none=True))
        except Bad as bad:
            raise ValueError(str(bad)) from None
        return self


class Guard(Strict):
    """What counts as a collapse (``opd.collapse``), and whether it ends the run or is noted."""

    action: Literal["flag", "stop"] = "flag"
    reference_steps: Count = 10
    patience: Count = 5
    length_ratio: Positive | None = 3.0
    repetition: Share | None = 0.75
    entropy_rise_nats: Positive | None = 1.0
    top_mass_drop: Share | None = 0.2


class Opd(Trained):
    student: ModelRef
    teacher: ModelRef
    prompts: PromptsRef
    loss: Loss = Loss()
    aggregation: Aggregation = "token_mean"
    metrics_k: Count = 16
    metrics_every: Count = Field(default=1, description="steps between measurements")
    position_bin: Count = Field(default=512, description="tokens in a bin of response positions")
    guard: Guard = Guard()
    steps: Count
    prompts_per_step: Count = 64
    rollouts_per_prompt: Count = 4
    micro_batch: Count | None = MICRO_BATCH
    lr: Positive = 1e-6
    schedule: Literal["constant", "cosine"] = "constant"
    temperature: Positive = 1.0
    teacher_template: Asked | None = Field(
        default=None,
        description="what the teacher is asked, with {question} and {answer}, if not what the "
        "student is asked",
    )
    max_teacher_prompt_tokens: Count | None = None
    teacher_update: Literal["frozen", "ema", "live"] | None = Field(
        default=None, description="frozen; or the student itself, as it is or as a moving average"
    )
    ema_decay: Share | None = None
    max_grad_norm: Positive = 1.0
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = 7168

    @model_validator(mode="after")
    def _teacher_that_moves(self) -> "Opd":
        if self.teacher_update in ("ema", "live") and self.teacher != self.student:
            raise ValueError(f"teacher_update: {self.teacher_update} needs teacher: {self.student}")
        if (self.ema_decay is not None) != (self.teacher_update == "ema"):
            raise ValueError("ema_decay goes with teacher_update: ema")
        return self


class Model(OneOf):
    """A model is fetched (hub, path), has random weights (init), or is trained."""

    init: Init | None = None
    hub: Hub | None = None
    path: str | None = None
    sft: Sft | None = None
    grpo: Grpo | None = None
    opd: Opd | None = None
    chat_template: dict[str, Plain] = Field(
        default={}, description="chat template options, as enable_thinking: false"
    )
    released: Released | None = Field(
        default=None, description="weights that use_released takes instead of training the model"
    )

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        return ("init", "hub", "path", "sft", "grpo", "opd")

    @model_validator(mode="after")
    def _released_instead_of_training(self) -> "Model":
        if self.released and not self.trained:
            raise ValueError("released goes beside sft, grpo or opd")
        return self

    @property
    def trained(self) -> Sft | Grpo | Opd | None:
        return self.sft or self.grpo or self.opd

    @property
    def hub_key(self) -> str:
        """The key of the recipe that names the weights on the hub."""
        return "released" if isinstance(self.hub, Released) else "hub"


class Keep(Strict):
    model: ModelRef
    step: Count


class Kept(Model):
    """A model as it was after a step of its training: ``resolve`` adds one for each step kept."""

    keep: Keep

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        return ("keep",)


# Generations, SFT data, evaluations


def _check_greedy(temperature: float, samples: int) -> None:
    if temperature == 0 and samples > 1:
        raise ValueError("at temperature 0 all samples of a prompt are the same: ask for one")


TextRule = Literal[
    "nonempty",
    "finished",
    "boxed",
    "repeated_line",
    "repeated_window",
    "repeated_block",
]


class Generation(Strict):
    """A model answering a prompt set."""

    model: ModelRef
    prompts: PromptsRef
    samples: Count = 1
    temperature: NonNegative = 1.0
    top_p: Share = 1.0
    top_k: Count | None = None
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = 7168
    batch_size: Count = 64
    rules: list[TextRule] | None = Field(
        default=None, description="what they reject is marked, and sampled again"
    )
    attempts: Count | None = Field(
        default=None, description="most samples of a response that the rules reject; 1 if not given"
    )

    @model_validator(mode="after")
    def _attempts_need_rules(self) -> "Generation":
        if (self.attempts or 1) > 1 and not self.rules:
            raise ValueError("attempts need rules: without them nothing is sampled again")
        _check_greedy(self.temperature, max(self.samples, self.attempts or 1))
        return self


class WorldCorpus(Strict):
    """Worked examples of the miniature world, mixed over rules and styles."""

    n: Count
    precedence: Share = 0.4
    style: Literal["infix", "prefix"] = "infix"
    templates: list[str] = ["{question}"]
    seed: int = 0


Rule = TextRule | Literal["answered"]


class Filter(Strict):
    """Which generations become SFT data (rules: Rethinking OPD, its rollout script)."""

    generations: GenerationsRef
    prompts: Annotated[Name | None, Ref("prompts")] = Field(
        default=None, description="the questions as the pairs ask them; as answered if not given"
    )
    rules: list[Rule] = ["boxed", "repeated_line", "repeated_window", "repeated_block"]
    correct: Literal["only", "first"] | None = None
    grader: Grader = "rule"
    per_prompt: Count | None = 1
    n: Count | None = None


class Pairs(OneOf):
    """SFT data: worked examples of the miniature world, or filtered generations."""

    world: WorldCorpus | None = None
    filter: Filter | None = None

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        return ("world", "filter")


class TaskData(Strict):
    """A dataset of the hub, in the columns that an lm-eval task reads."""

    id: str
    revision: str | None = None
    config: str | None = None


class Benchmark(Strict):
    """A task of lm-eval: ours (``opd_aime24``, ...), another of its own, or one below ``include``.

    Ours read a prompt set, lm-eval's a dataset of the hub, those below ``include`` either of them
    or files of that folder.
    """

    task: str
    prompts: Annotated[Name | None, Ref("prompts")] = None
    hub: TaskData | None = None
    include: str | None = Field(default=None, description="a folder with task files")
    num_fewshot: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _has_its_data(self) -> "Benchmark":
        ours = self.task.startswith(OURS)
        if ours and not self.prompts:
            raise ValueError("a task of ours reads a prompt set: name it with prompts")
        if self.prompts and not (ours or self.include):
            raise ValueError("a task of lm-eval reads its own columns: name a dataset with hub")
        if not (self.prompts or self.hub or self.include):
            raise ValueError("needs hub, the dataset it reads, so that its commit is locked")
        return self


class Protocol(Strict):
    """How benchmarks are answered and graded: what a score means."""

    samples: Count = 16
    temperature: NonNegative = 0.7
    top_p: Share = 0.95
    top_k: Count | None = None
    max_new_tokens: Count = 31744
    grader: Literal["rule", "math_verify"] = Field(
        default="rule", description="which of the two counts, where a benchmark has both"
    )
    template: str | None = Field(
        default=None,
        description=f"{_NAMES} or text with {{question}}, in place of our benchmarks' own",
    )
    chat_template: dict[str, Plain] = Field(default={}, description="over the model's own")

    @model_validator(mode="after")
    def _makes_sense(self) -> "Protocol":
        _check_template(self.template)
        _check_greedy(self.temperature, self.samples)
        return self


# The first paper's (section 3.1), the second's (Table 1), and one greedy sample.
PROTOCOLS = {
    "paper": Protocol(),
    "many_faces": Protocol(
        samples=1,
        temperature=0.6,
        max_new_tokens=16384,
        chat_template={"enable_thinking": False},
    ),
    "greedy": Protocol(samples=1, temperature=0.0, top_p=1.0),
}


class Evaluation(Strict):
    """Benchmarks under a protocol."""

    benchmarks: Annotated[list[Name], Ref("benchmarks")] = Field(min_length=1)
    protocol: Annotated[Name, Ref("protocols", builtin=tuple(PROTOCOLS))] = "paper"
    max_prompt_tokens: Count = 1024
    batch_size: Count = 64


# Probes


class Scored(Strict):
    """What probes of a student's rollouts have in common; the student is the generations' model."""

    generations: GenerationsRef
    teacher: ModelRef
    grader: Grader | None = None


class PairProbe(Scored):
    """Overlap, masses, entropies and rewards of rollouts under student and teacher."""

    metrics_k: Count = 16
    position_bin: Count = Field(default=512, description="tokens in a bin of response positions")
    micro_batch: Count | None = MICRO_BATCH


class ContinuationProbe(Scored):
    """The teacher goes on after prefixes of the student's rollouts (Rethinking OPD, Fig. 11b)."""

    grader: Grader = "rule"
    prefixes: list[Count] = Field(min_length=1, description="tokens")
    longer_than: Count | None = Field(
        default=None,
        description="tokens of the rollouts that are kept; the longest prefix's if not given",
    )
    baseline: Literal["rollout", "resampled"] = Field(
        default="rollout",
        description="what the teacher is compared with: the rollout as it went on, or the student "
        "continuing the same prefix anew",
    )
    samples: Count = 1
    temperature: NonNegative = 1.0
    top_p: Share = 1.0
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = Field(default=31744, description="of prefix and continuation together")
    batch_size: Count = 64


class IndicatorsProbe(Strict):
    """What `opd preflight` says of a pair, from a few dozen rollouts."""

    student: ModelRef
    teacher: ModelRef
    prompts: PromptsRef
    n: Count = Field(default=48, description="prompts")
    samples: Count = 4
    grader: Grader = "rule"
    metrics_k: Count = 16
    temperature: Positive = 1.0
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = 7168
    batch_size: Count = 64


class Probe(OneOf):
    """A measurement of models without training."""

    label: str | None = None
    pair: PairProbe | None = None
    continuation: ContinuationProbe | None = None
    indicators: IndicatorsProbe | None = None

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        return ("pair", "continuation", "indicators")


# Tables and figures


class Arm(Strict):
    """Which model of this config stands for one of a paper's runs (see ``papers``)."""

    label: str
    model: ModelRef
    base: Annotated[ModelName | None, Ref("models")] = None
    teacher: Annotated[ModelName | None, Ref("models")] = None


class Shown(Strict):
    title: str
    caption: str = ""


class Row(Strict):
    label: str
    model: ModelRef
    base: Annotated[ModelName | None, Ref("models")] = None
    teacher: Annotated[ModelName | None, Ref("models")] = None
    probe: Annotated[Name | None, Ref("probes")] = None


class Column(Strict):
    column: str
    label: str


class Table(Shown):
    """Models in rows; columns as ``opd.report_tables`` names them (``avg``, ``change``, ...)."""

    evaluation: EvaluationRef
    rows: list[Row] = Field(min_length=1)
    columns: list[str | Column] = Field(min_length=1)


class Metric(Strict):
    name: str
    label: str | None = None
    log: bool = False


class Series(Strict):
    label: str
    model: ModelRef
    group: str | None = None


class Panel(Strict):
    title: str
    series: list[Series] = Field(min_length=1)


class Figure(Shown):
    """``curves``: metrics over training steps; ``grid``: the same in panels; ``bars``: scores."""

    kind: Literal["curves", "grid", "bars"]
    series: list[Series] = []
    panels: list[Panel] = []
    metrics: list[Metric] = []
    evaluation: Annotated[Name | None, Ref("evaluations")] = None
    benchmarks: list[str] = ["macro"]

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "Figure":
        needs = {
            "curves": ("series", "metrics"),
            "grid": ("panels", "metrics"),
            "bars": ("series", "evaluation"),
        }
        for key in needs[self.kind]:
            if not getattr(self, key):
                raise ValueError(f"a figure of kind '{self.kind}' needs {key}")
        return self


class Interpreters(Strict):
    """Paths of the interpreters of each class; empty means the one that runs Snakemake."""

    light: str = ""
    gpu: str = ""
    vllm: str = ""


class Engine(Strict):
    """What samples generations and evaluations, where it changes the result."""

    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="of weights and computation; float32 if not given"
    )
    batch_invariant: bool | None = Field(
        default=None,
        description="vLLM on a GPU: responses do not depend on what else is in flight (slower)",
    )


class Training(Strict):
    """How models are trained: what changes the result, then what does not."""

    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="what is computed in; trained weights stay float32"
    )
    gradient_checkpointing: bool | None = None
    processes: Count | None = Field(default=None, description="of one stage, through accelerate")
    checkpoint_every: Count = Field(default=50, description="steps")
    accelerate: str | None = Field(default=None, description="an accelerate config file")
    report_to: str | None = Field(default=None, description="as transformers: wandb, trackio, ...")
    vllm: dict[str, Plain] | None = Field(
        default=None,
        description="TRL's vllm_* settings: rollouts in training go through vLLM where given",
    )


class World(Strict):
    """The miniature world (``opd.world``)."""

    seed: int = 0
    rl_times: Share = Field(description="share of * among the operators of the 'rl' questions")
    other_times: Share = Field(description="the same of the 'other' questions")
    exact_duplicates: Share = 0.1
    near_duplicates: Share = 0.1


class Config(Strict):
    """A scale: everything that one results folder holds."""

    name: Name
    seeds: list[int] = Field(default=[0], min_length=1)
    threads: Count = Field(default=1, description="torch threads a stage uses on a CPU")
    source: Literal["hub", "index"] = Field(
        default="hub", description="where weights come from: the hub, or the Python package index"
    )
    backend: Literal["transformers", "vllm"] = Field(
        default="transformers", description="what samples rollouts and answers to benchmarks"
    )
    engine: Engine = Engine()
    interpreters: Interpreters = Interpreters()
    training: Training = Training()
    world: World | None = None
    defaults: dict[str, dict[str, Any]] = {}
    prompts: dict[Name, PromptSet] = {}
    contamination: dict[Name, Contamination] = {}
    pairs: dict[Name, Pairs] = {}
    models: dict[Name, Model] = {}
    generations: dict[Name, Generation] = {}
    benchmarks: dict[Name, Benchmark] = {}
    protocols: dict[Name, Protocol] = {}
    evaluations: dict[Name, Evaluation] = {}
    probes: dict[Name, Probe] = {}
    papers: list[Name] = Field(
        default=[], description="whose claims and figures are shown: config/claims/PAPER.yaml, ..."
    )
    arms: dict[Name, Arm] = Field(
        default={}, description="what the runs of the papers are here; the others are not run"
    )
    experiments: list[Name] | Literal["all"] = Field(
        default="all", description="of which arms and probes claims and figures of papers are made"
    )
    evaluation: EvaluationRef | None = Field(
        default=None, description="the evaluation that claims and figures of papers show"
    )
    comparable: bool = Field(
        default=False, description="whether published numbers compare with those of this config"
    )
    tables: dict[Name, Table] = {}
    figures: dict[Name, Figure] = {}
    use_released: bool | list[Name] = Field(
        default=False,
        description="take released weights instead of training: wherever there are some, or for "
        "these models",
    )
    targets: list[str] | Literal["all"] = Field(
        default="all",
        description="figures, tables, contamination reports, PAPER (its figures), claims, report",
    )

    @model_validator(mode="after")
    def _batch_invariant_is_vllm(self) -> "Config":
        if self.engine.batch_invariant and self.backend != "vllm":
            raise ValueError("engine.batch_invariant needs backend: vllm")
        return self

    @model_validator(mode="after")
    def _papers_are_evaluated(self) -> "Config":
        if self.papers and self.evaluation is None:
            raise ValueError("papers need evaluation: the one that their claims are about")
        return self


# The recipe sections that hold something a `defaults:` block can fill in.
DEFAULTS: dict[str, type[Strict]] = {
    "init": Init,
    "sft": Sft,
    "grpo": Grpo,
    "opd": Opd,
    "generations": Generation,
    "evaluations": Evaluation,
    "filter": Filter,
    "dedup": Dedup,
    "contamination": Contamination,
    "pair": PairProbe,
    "continuation": ContinuationProbe,
    "indicators": IndicatorsProbe,
}


def schema() -> dict[str, Any]:
    """JSON schema of a config, generated from the models above."""
    return Config.model_json_schema()


def resolve(raw: Mapping[str, Any]) -> Config:
    """Check a config, with defaults written in, sweeps written out and every name looked up.

    ``models`` then also holds each kept step, under MODEL@STEP; every other @STEP is gone (step 0
    is the student, the last one the model), and so is what released weights take the place of.
    Raises ``Bad`` with the key, the value and what is allowed.
    """
    config = _parse(_expand(raw))
    _settle_models(config)
    _check_references(config)
    if config.evaluation and config.evaluation not in config.evaluations:
        raise unknown(config.evaluation, config.evaluations, "evaluation", "evaluation")
    return config


def typed(given: Any) -> Any:
    """What Snakemake's ``--config`` gives, with numbers, true, false and null as YAML reads them:
    it hands over everything below the first level as text."""
    if isinstance(given, Mapping):
        return {key: typed(value) for key, value in given.items()}
    if isinstance(given, list):
        return [typed(value) for value in given]
    if not isinstance(given, str) or not given:
        return given
    try:
        value = yaml.safe_load(given)
    except yaml.YAMLError:
        return given
    return value if value is None or isinstance(value, bool | int | float) else given


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A config with another on top, as Snakemake lays them: mappings key by key."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _expand(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``defaults`` into each recipe and each ``sweep`` out as recipes of its own."""
    config = json.loads(json.dumps(raw))
    defaults = config.get("defaults", {})
    if not isinstance(defaults, dict):
        raise Bad(f"expected a mapping, got {defaults!r}", "defaults", "write VERB: {...}")
    for verb, values in defaults.items():
        if verb not in DEFAULTS:
            raise unknown(verb, DEFAULTS, f"defaults.{verb}", "key")
        for key in values if isinstance(values, dict) else ():
            if key not in DEFAULTS[verb].model_fields:
                raise unknown(key, DEFAULTS[verb].model_fields, f"defaults.{verb}.{key}", "key")
    sections = ("prompts", "contamination", "pairs", "models", "generations", "evaluations")
    for section in (*sections, "probes"):
        recipes = config.get(section)
        if not isinstance(recipes, dict):
            continue
        expanded: dict[str, Any] = {}
        for name, recipe in recipes.items():
            if not isinstance(recipe, dict):
                expanded[name] = recipe
                continue
            recipe = merge(defaults.get(section, {}), recipe)
            for verb in set(recipe) & set(defaults):
                if isinstance(recipe[verb], dict):
                    recipe[verb] = merge(defaults[verb], recipe[verb])
            expanded |= _sweep(f"{section}.{name}", name, recipe)
        config[section] = expanded
    return config


def _sweep(where: str, name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """``sweep: {opd.loss.k: [1, 4]}`` -> recipes ``name-1`` and ``name-4``."""
    sweep = recipe.pop("sweep", None)
    if sweep is None:
        return {name: recipe}
    if not isinstance(sweep, dict) or [type(v) for v in sweep.values()] != [list]:
        raise Bad(f"got {sweep!r}", f"{where}.sweep", "write one KEY: [VALUE, ...]")
    ((key, values),) = sweep.items()
    expanded = {}
    for value in values:
        copy = json.loads(json.dumps(recipe))
        target = copy
        *path, last = key.split(".")
        for part in path:
            target = target.setdefault(part, {})
        target[last] = value
        expanded[f"{name}-{value}"] = copy
    return expanded


def unknown(name: str, known: Iterable[str], where: str, kind: str) -> Bad:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known) or 'none'}"
    return Bad(f"unknown {kind} '{name}'", where, hint)


def _parse(raw: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling is what helps.
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        first, *others = errors
        where = ".".join(str(part) for part in first["loc"] if part != "[key]") or "config"
        more = f" ({len(others)} more like this)" if others else ""
        if first["type"] == "extra_forbidden":
            known = _fields_at(first["loc"][:-1])
            raise unknown(str(first["loc"][-1]), known, where, "key") from None
        given = first["input"]
        shown = "" if isinstance(given, Mapping) else f"{given!r} is not allowed: "
        message = first["msg"].removeprefix("Value error, ")
        raise Bad(f"{shown}{message}", where, f"mend this key of the config{more}") from None


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that the config allows at a place, by walking its JSON schema."""
    whole = schema()
    node: dict[str, Any] = whole
    for part in location:
        node = _deref(node, whole)
        if "properties" in node and part in node["properties"]:
            node = node["properties"][part]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
        elif "patternProperties" in node:
            node = next(iter(node["patternProperties"].values()))
        else:
            node = node.get("items", {})
    return list(_deref(node, whole).get("properties", {}))


def _deref(node: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", []):
        if "$ref" in option:
            node = option
    while "$ref" in node:
        node = whole["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def references(recipe: BaseModel, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, section, name) of every recipe that a recipe names."""
    for key, info in type(recipe).model_fields.items():
        value, where = getattr(recipe, key), f"{path}{key}"
        for ref in (m for m in info.metadata if isinstance(m, Ref)):
            for name in value if isinstance(value, list) else [value]:
                if name is not None and name not in ref.builtin:
                    yield where, ref.section, name
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, BaseModel):
                inner = f"{where}.{i}." if isinstance(value, list) else f"{where}."
                yield from references(item, inner)


def _settle_models(config: Config) -> None:
    """Write out what models leave to others: chat templates, released weights, kept steps."""
    models = config.models
    for name, options in {name: _chat_template(models, name) for name in models}.items():
        models[name].chat_template = options
    released = {name: model for name, model in models.items() if model.released}
    if isinstance(config.use_released, list):
        for name in config.use_released:
            if name not in models:
                raise unknown(name, models, "use_released", "model")
            if name not in released:
                has = ", ".join(released) or "none"
                remedy = f"leave it out, or name some under models.{name}.released (there: {has})"
                raise Bad(f"model '{name}' has no released weights", "use_released", remedy)
        released = {name: released[name] for name in config.use_released}
    for name, model in released.items() if config.use_released else ():
        models[name] = Model(hub=model.released, chat_template=model.chat_template)
    _rename_models(config, "", lambda name, where: _without_step(models, name, where))
    for name, model in list(models.items()):
        if model.trained:
            for step in sorted({*model.trained.keep_steps} - {0, model.trained.steps}):
                keep = Keep(model=name, step=step)
                models[f"{name}@{step}"] = Kept(keep=keep, chat_template=model.chat_template)


def _chat_template(
    models: Mapping[str, Model], name: str, seen: tuple[str, ...] = ()
) -> dict[str, Plain]:
    """A model's chat template options: its own, or those of the model it was trained from."""
    of, _, step = name.partition("@")
    model = models.get(of)
    if model is None or name in seen:  # an error of its own, found where references are checked
        return {}
    if model.trained and (step == "0" or not model.chat_template):
        return _chat_template(models, model.trained.student, (*seen, name))
    return model.chat_template


def _rename_models(recipe: BaseModel, path: str, rename: Callable[[str, str], str]) -> None:
    """Put ``rename(name, where)`` for every model's name in a recipe and in those within it."""
    for key, info in type(recipe).model_fields.items():
        value, where = getattr(recipe, key), f"{path}{key}"
        if any(isinstance(m, Ref) and m.section == "models" for m in info.metadata):
            if isinstance(value, list):
                setattr(recipe, key, [rename(name, where) for name in value])
            elif value is not None:
                setattr(recipe, key, rename(value, where))
            continue
        if isinstance(value, BaseModel):
            _rename_models(value, f"{where}.", rename)
        elif isinstance(value, dict | list):
            for part, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, BaseModel):
                    _rename_models(item, f"{where}.{part}.", rename)


def _without_step(
    models: Mapping[str, Model], name: str, where: str, seen: tuple[str, ...] = ()
) -> str:
    """The model that a name means: of a step that is another model's name, that name."""
    of, at, digits = name.partition("@")
    if not at:
        return name
    if of not in models:
        raise unknown(of, models, where, "models recipe")
    if name in seen:
        loop = " -> ".join([*seen[seen.index(name) :], name])
        raise Bad(f"refers to itself: {loop}", where, "break the loop")
    trained, step = models[of].trained, int(digits)
    if trained is None:
        raise Bad(f"'{name}': {of} is not trained here", where, "name it without a step")
    if step == 0:
        return _without_step(models, trained.student, where, (*seen, name))
    if step == trained.steps:
        return of
    if step not in trained.keep_steps:
        kept = sorted({0, *trained.keep_steps, *([trained.steps] if trained.steps else [])})
        raise Bad(
            f"'{name}': step {step} of {of} is not kept, only {', '.join(map(str, kept))} are",
            where,
            f"add it to keep_steps of models.{of}.{models[of].verb}",
        )
    return name


def _check_references(config: Config) -> None:
    """Every name refers to a recipe that exists, and none to itself through others."""
    sections = (
        *("prompts", "contamination", "pairs", "models", "generations", "benchmarks"),
        *("protocols", "evaluations", "probes", "arms", "tables", "figures"),
    )
    graph = {
        (section, name): list(references(recipe))
        for section in sections
        for name, recipe in getattr(config, section).items()
    }
    for (section, name), refs in graph.items():
        for key, other, target in refs:
            if (other, target) not in graph:
                known = [n for s, n in graph if s == other]
                where = f"{section}.{name}.{key}"
                raise unknown(target, known, where, f"{other} recipe")
    done: set[tuple[str, str]] = set()

    def visit(node: tuple[str, str], path: list[tuple[str, str]]) -> None:
        if node in path:
            loop = " -> ".join(f"{s}.{n}" for s, n in [*path[path.index(node) :], node])
            raise Bad(f"refers to itself: {loop}", ".".join(node), "break the loop")
        if node not in done:
            for _, other, target in graph[node]:
                visit((other, target), [*path, node])
            done.add(node)

    for node in graph:
        visit(node, [])

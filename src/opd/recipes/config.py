"""A config: sections of recipes, and how everything is run."""

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from opd.core.schema import Strict
from opd.recipes.base import Count, EvaluationRef, ModelName, Name, Plain, Share
from opd.recipes.data import Contamination, Generation, PromptSet, SftData
from opd.recipes.evaluation import Benchmark, Evaluation, Protocol
from opd.recipes.models import Model
from opd.recipes.outputs import Arm, Figure, Table
from opd.recipes.probes import Demonstrations, Probe
from opd.recipes.sources import Scores


class Interpreters(Strict):
    """Paths of the interpreters of each class; empty means the one that runs Snakemake, for vllm
    that of gpu."""

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


Address = Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]


# TRL's settings that begin with vllm_ and go with distill and grpo: first where and how vLLM runs,
# which is no part of what it samples.
VllmPlace = Literal[
    "server_base_url",
    "server_host",
    "server_port",
    "server_timeout",
    "group_port",
    "gpu_memory_utilization",
    "enable_sleep_mode",
]
VllmSetting = Literal[
    VllmPlace,
    "mode",
    "model_impl",
    "structured_outputs_regex",
    "max_model_length",
    "tensor_parallel_size",
]


class Training(Strict):
    """How models are trained: what changes the result, then what does not."""

    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="what is computed in; trained weights stay float32"
    )
    attention: (
        Literal[
            "eager",
            "sdpa",
            "flex_attention",
            "flash_attention_2",
            "flash_attention_3",
            "flash_attention_4",
        ]
        | None
    ) = Field(
        default=None,
        description="how student and teacher compute attention, by transformers' names; its own "
        "choice if not given (sdpa)",
    )
    gradient_checkpointing: bool | None = None
    processes: Count | None = Field(default=None, description="of one stage, through accelerate")
    checkpoint_every: Count = Field(default=50, description="steps")
    checkpoint_minutes: float = Field(
        default=30,
        gt=0,
        description="a checkpoint is also written at the end of a step when the last one is older",
    )
    accelerate: str | None = Field(default=None, description="an accelerate config file")
    report_to: Literal["tensorboard", "wandb"] | None = Field(
        default=None, description="a tracker that shows metrics of training while it goes on"
    )
    vllm: dict[VllmSetting, Plain] | None = Field(
        default=None,
        description="TRL's vllm_* settings: rollouts in training go through vLLM where given",
    )

    servers: dict[ModelName, Address] | None = Field(
        default=None,
        description="where the teachers of terms with server: true are served, by their names: "
        "http://HOST:PORT",
    )

    @model_validator(mode="after")
    def _attention_has_its_type(self) -> "Training":
        if (self.attention or "").startswith("flash_") and self.precision != "bfloat16":
            raise ValueError(f"attention: {self.attention} needs precision: bfloat16")
        size = self.own_engine.get("tensor_parallel_size") or 1
        if isinstance(size, int) and (self.processes or 1) % size:
            raise ValueError(
                f"vllm.tensor_parallel_size ({size}) does not divide processes "
                f"({self.processes or 1})"
            )
        return self

    @property
    def own_engine(self) -> dict[VllmSetting, Plain]:
        """Settings of the vLLM in the trainer's processes; none where a server samples, which has
        its own."""
        settings = self.vllm or {}
        return {} if settings.get("mode") == "server" else settings


class World(Strict):
    """The miniature world (``opd.data.world``)."""

    grammar: Literal["words"] | None = Field(
        default=None, description="what responses consist of; single characters if not given"
    )
    seed: int = 0
    rl_times: Share = Field(description="share of * among the operators of the 'rl' questions")
    other_times: Share = Field(description="the same of the 'other' questions")
    exact_duplicates: Share = 0.1
    near_duplicates: Share = 0.1


class Config(Strict):
    """A scale: everything that one results folder holds. Keys that begin with ``x-`` are where a
    file has its anchors, and are ignored but for ``x-parts`` and ``x-needs``: by these a shipped
    file says what it is laid over."""

    model_config = ConfigDict(json_schema_extra={"patternProperties": {"^x-": {}}})

    name: Name
    seeds: list[int] = Field(default=[0], min_length=1)
    threads: Count = Field(default=1, description="torch threads a stage uses on a CPU")
    backend: Literal["transformers", "vllm"] = Field(
        default="transformers", description="what samples rollouts and answers to benchmarks"
    )
    engine: Engine = Engine()
    interpreters: Interpreters = Interpreters()
    stall_minutes: float = Field(
        default=120,
        ge=0,
        description="a stage that writes nothing for so long, no log either, hangs: it is ended "
        "(0: never)",
    )
    warm_starts: bool = Field(
        default=True,
        description="stages on the machine that runs the workflow begin as forks of a process that "
        "has imported what they need (Linux)",
    )
    training: Training = Training()
    world: World | None = None
    defaults: dict[str, dict[str, Any]] = {}
    prompts: dict[Name, PromptSet] = {}
    contamination: dict[Name, Contamination] = {}
    sft_data: dict[Name, SftData] = {}
    models: dict[Name, Model] = {}
    generations: dict[Name, Generation] = {}
    scores: dict[Name, Scores] = {}
    benchmarks: dict[Name, Benchmark] = {}
    protocols: dict[Name, Protocol] = {}
    evaluations: dict[Name, Evaluation] = {}
    demonstrations: dict[Name, Demonstrations] = {}
    probes: dict[Name, Probe] = {}
    papers: list[Name] = Field(
        default=[], description="whose claims and figures are shown: config/claims/PAPER.yaml, ..."
    )
    arms: dict[Name, Arm] = Field(
        default={}, description="what the runs of the papers are here; the others are not run"
    )
    experiments: list[Name] | Literal["all"] = Field(
        default="all",
        description="of which arms and probes claims and figures of papers are made; a paper that "
        "has none of them is left out",
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
    def _has_what_it_needs(self) -> "Config":
        if self.engine.batch_invariant and self.backend != "vllm":
            raise ValueError("engine.batch_invariant needs backend: vllm")
        if twice := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise ValueError(f"seeds: {twice[0]} stands there twice, which is one run and no two")
        room = self.training.own_engine.get("max_model_length")
        for name, model in self.models.items():
            run = model.distill or model.grpo
            if run is None or (model.distill and not model.distill.samples):
                continue
            longest = run.max_prompt_tokens + run.max_new_tokens
            if isinstance(room, int) and longest > room:
                raise ValueError(
                    f"models.{name}: vLLM would cut responses short, as training.vllm."
                    f"max_model_length ({room}) is less than max_prompt_tokens + max_new_tokens "
                    f"({longest})"
                )
        if self.papers and self.evaluation is None:
            raise ValueError("papers need evaluation: the one that their claims are about")
        return self


# What a `defaults:` block can fill in: whole sections, and kinds but for those that only name a
# source.
DEFAULTS: dict[str, type[Strict]] = {
    "generations": Generation,
    "scores": Scores,
    "evaluations": Evaluation,
    "contamination": Contamination,
    **{
        kind: get_args(section.model_fields[kind].annotation)[0]
        for section in (Model, SftData, PromptSet, Probe, Demonstrations)
        for kind in section.kinds()
        if kind not in ("hub", "path", "use", "world")
    },
}

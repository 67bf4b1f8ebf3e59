"""What jobs ask of a cluster: resource classes, and what a site makes of them.

The classes are light, cpu, and gpuN for N devices. Their rows stand in workflow/resources.yaml; a
site has its own names and sizes in slurm/site.yaml. Nothing here changes what a stage makes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from opd.core.errors import UserError
from opd.core.schema import Strict, read_yaml, valid
from opd.recipes.base import Count, unknown
from opd.recipes.config import Config, Interpreters
from opd.stages.registry import STAGES, Work

CLASS = "light|cpu|gpu[1-9][0-9]*"
Class = Annotated[str, Field(pattern=f"^({CLASS})$")]
Memory = Annotated[int, Field(ge=500)]
REMEDY = "slurm/site.example.yaml has every key"
# Before a job's limit, when its training is told to stop: the step under way may take minutes, and
# then a checkpoint is written.
SIGNAL_SECONDS = 600


class Ask(Strict):
    """What a job asks for. ``max_*`` are what no attempt asks beyond."""

    # Every job holds two Snakemake processes beside its own.
    cpus_per_task: Count | None = None
    mem_mb: Memory | None = None
    runtime: Count | None = Field(default=None, description="minutes")
    max_mem_mb: Memory | None = None
    max_runtime: Count | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    slurm_extra: str | None = Field(default=None, description="other options of sbatch")


class RuleAsk(Ask):
    """The same for a single rule, which may be put into another class."""

    class_: Class | None = Field(default=None, alias="class")


class Site(Strict):
    """A cluster: slurm/site.yaml."""

    account: str | None = None
    gpu_model: str | None = Field(default=None, description="asked for as --gpus=MODEL:N")
    gres: str | None = Field(default=None, description="asked for as --gres=GRES:N, not --gpus")
    interpreters: Interpreters = Interpreters()
    setup: str = Field(default="", description="shell lines before every stage")
    classes: dict[Annotated[str, Field(pattern=f"^(gpu|{CLASS})$")], Ask] = Field(default={})
    # Rules have the names of their stages.
    rules: dict[str, RuleAsk] = Field(default={})


def interpreters(site: Site, config: Config) -> dict[str, str]:
    """The Python of each class of stages, empty for the one that runs Snakemake: a site's comes
    before the config's, and vllm's is that of gpu unless it has its own."""
    paths = {
        kind: getattr(site.interpreters, kind) or getattr(config.interpreters, kind)
        for kind in Interpreters.model_fields
    }
    return {**paths, "vllm": paths["vllm"] or paths["gpu"]}


def read_site(named: str | None, default: Path) -> Site:
    """The site file that is ``named`` (by OPD_SITE), else the default one if it exists. Without
    one, or where "" is named, all is left to the cluster's defaults. Raises ``UserError`` for a
    named file that is missing, and for a key or value that is wrong."""
    if named == "" or (named is None and not default.is_file()):
        return Site()
    path = Path(named) if named else default
    settings = read_yaml(path, REMEDY)
    site = valid(Site, settings, str(path), REMEDY)
    for rule in site.rules:
        if rule not in STAGES:
            raise unknown(rule, STAGES, f"{path}.rules.{rule}", "rule")
    if site.gpu_model and site.gres:
        raise UserError("gpu_model and gres exclude each other", str(path), "give one of the two")
    return site


def read_classes(path: Path) -> dict[str, Ask]:
    """The rows of workflow/resources.yaml."""
    rows = read_yaml(path, REMEDY)
    return {name: valid(Ask, row, f"{path}: {name}", REMEDY) for name, row in rows.items()}


def without_gpu(config: Config) -> bool:
    """Whether a config is for machines without a GPU: nothing in it is computed in bfloat16."""
    return "bfloat16" not in (config.engine.dtype, config.training.precision)


def class_of(work: Work, config: Config) -> str:
    """The class of a rule's jobs under a config."""
    if work in ("light", "cpu"):
        return work
    return "cpu" if without_gpu(config) else f"gpu{_devices(work, config)}"


def _devices(work: Work, config: Config) -> int:
    several = work == "devices" or (work == "sampling" and config.backend == "vllm")
    return (config.training.processes or 1) if several else 1


def resources(stage: str, config: Config, rows: Mapping[str, Ask], site: Site) -> dict[str, Any]:
    """Snakemake's resources of a stage's rule, by name; memory (MB) and time (minutes) are
    functions of the attempt. CPUs are ``cpus_per_task``, as Snakemake cuts ``threads`` down to the
    cores of the machine on which it is started."""
    own, work = site.rules.get(stage, RuleAsk()), STAGES[stage].work
    name = own.class_ or class_of(work, config)
    gpus = int(name.removeprefix("gpu")) if name.startswith("gpu") else 0
    ask: dict[str, Any] = {"account": site.account}
    # From the general to the particular. The row of one GPU comes first, times the GPUs.
    for row in ("gpu", name) if gpus else (name,):
        for layer in (rows.get(row), site.classes.get(row)):
            ask |= layer.model_dump(exclude_none=True) if layer else {}
        if row == "gpu":
            ask |= {key: ask[key] * gpus for key in ("cpus_per_task", "mem_mb")}
    if name == "cpu":
        at_once = config.threads * _devices(work, config)
        ask["cpus_per_task"] = max(ask["cpus_per_task"], at_once)
    ask |= own.model_dump(exclude_none=True, exclude={"class_"})

    named: dict[str, Any] = {
        "nodes": 1,
        "cpus_per_task": ask["cpus_per_task"],
        "mem_mb": _growing(ask["mem_mb"], ask.get("max_mem_mb")),
        "runtime": _growing(ask["runtime"], ask.get("max_runtime")),
        "slurm_account": ask["account"],
        "slurm_partition": ask.get("partition"),
        **{key: ask.get(key) for key in ("qos", "constraint", "slurm_extra")},
    }
    if STAGES[stage].trains and "--signal" not in ask.get("slurm_extra", ""):
        named["slurm_extra"] = _signalled(named["runtime"], ask.get("slurm_extra", ""))
    if gpus and site.gres:
        named["gres"] = f"{site.gres}:{gpus}"
    elif gpus:
        named |= {"gpu": gpus, "gpu_model": site.gpu_model}
    return {key: value for key, value in named.items() if value is not None}


def _signalled(runtime: Callable[[Any, int], int], extra: str) -> Callable[[Any, int], str]:
    """Options of sbatch with ``--signal``: SIGTERM to all processes of the stage, but not to the
    job's own shell. In a short job it comes in the last tenth."""
    return lambda wildcards, attempt: (
        f"--signal=TERM@{min(SIGNAL_SECONDS, 6 * runtime(None, attempt))} {extra}".rstrip()
    )


def _growing(first: int, most: int | None) -> Callable[[Any, int], int]:
    return lambda wildcards, attempt: min(first * attempt, most or first * attempt)

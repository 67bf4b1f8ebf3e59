"""From a config to the artifacts that it describes, each with the exact settings and inputs of its
stage. The Snakemake rules read nothing else.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import digest
from opd.evaluation import tasks
from opd.models.source import is_path, local
from opd.plan.base import (
    artifact,
    at,
    engine,
    inputs_of,
    scored_teacher,
    settings_of,
    sources,
    tell_teacher,
    terms,
    world,
)
from opd.plan.hub_lock import locked
from opd.plan.probes import SAMPLING, demonstrations, probes
from opd.recipes.config import Config
from opd.recipes.evaluation import PROTOCOLS
from opd.recipes.models import Distill, Kept, Model
from opd.stages.artifact import Artifact
from opd.training import batches, shares
from opd.training.terms import terms_of

# Settings of vLLM that say where and how it runs, not what it samples.
VLLM_PLACE = {
    "server_base_url",
    "server_host",
    "server_port",
    "server_timeout",
    "group_port",
    "gpu_memory_utilization",
    "enable_sleep_mode",
}


def plan(config: Config, lock: Mapping[str, str]) -> dict[str, Artifact]:
    """All that a config describes but for what is shown (``opd.plan.outputs``), by folder. ``lock``
    gives the commit (40 hex digits) of hub objects. Raises ``UserError`` for an input file that is
    missing, and for a lock that contradicts the revision in a recipe."""
    artifacts = [*_prompts(config, lock), *_contamination(config), *_datasets(config, lock)]
    for seed in config.seeds:
        artifacts += [
            *_sft_data(config, seed),
            *_models(config, seed, lock),
            *_generations(config, seed),
            *_scores(config, seed),
            *_evaluations(config, seed),
            *demonstrations(config, seed),
            *probes(config, seed),
        ]
    return {made.folder: made for made in artifacts}


def _prompts(config: Config, lock: Mapping[str, str]) -> Iterator[Artifact]:
    for name, recipe in config.prompts.items():
        inputs: dict[str, str] = {}
        if recipe.dedup:
            near = recipe.dedup
            neighbours = _neighbours(config, near.encoder, near.prompts, near.against)
            yield from neighbours
            inputs["prompts"] = f"prompts/{near.prompts}"
            if near.against != near.prompts:
                inputs["against"] = f"prompts/{near.against}"
            inputs["neighbours"] = neighbours[-1].folder
            yield artifact("dedup", f"prompts/{name}", settings_of(near), inputs)
            continue
        if recipe.fit:
            inputs["prompts"] = f"prompts/{recipe.fit.prompts}"
            options = {model: config.models[model].chat_template for model in recipe.fit.models}
            for model in options:
                inputs[f"model:{model}"] = at(config, "models", model, config.seeds[0])
            settings = {**settings_of(recipe.fit), "chat_templates": options}
            tell_teacher(config, settings, teacher=None)
            yield artifact("fit", f"prompts/{name}", settings, inputs)
            continue
        settings = recipe.model_dump(mode="json", exclude={*recipe.kinds()}, exclude_none=True)
        if recipe.world:
            settings["source"] = {"world": recipe.world.model_dump()}
            settings["world"] = world(config, f"prompts.{name}.world")
        elif recipe.hub:
            source = recipe.hub.model_dump(exclude_none=True)
            source["revision"] = locked(recipe.hub, lock, f"prompts.{name}.hub")
            settings["source"] = {"hub": source.pop("id"), **source}
        elif recipe.path:
            source = recipe.path.model_dump(exclude_none=True)
            inputs["path"] = data_path(source.pop("file"), f"prompts.{name}.path.file")
            settings["source"] = {"path": _named(recipe.path.file, inputs["path"]), **source}
        elif recipe.use:
            inputs["prompts"] = f"prompts/{recipe.use}"
            settings["source"] = {"from": True}
        if recipe.apart_from:
            inputs["apart_from"] = f"prompts/{recipe.apart_from.prompts}"
            settings["apart_from"] = recipe.apart_from.by
        yield artifact("prompts", f"prompts/{name}", settings, inputs)


def _contamination(config: Config) -> Iterator[Artifact]:
    for name, recipe in config.contamination.items():
        inputs = {"prompts": f"prompts/{recipe.prompts}"}
        for benchmark in recipe.benchmarks:
            neighbours = _neighbours(config, recipe.encoder, benchmark, recipe.prompts)
            yield from neighbours
            inputs[f"benchmark:{benchmark}"] = f"prompts/{benchmark}"
            inputs[f"neighbours:{benchmark}"] = neighbours[-1].folder
        yield artifact("contamination", f"contamination/{name}", settings_of(recipe), inputs)


def _neighbours(config: Config, encoder: str, prompts: str, against: str) -> list[Artifact]:
    """The embeddings of both prompt sets, and last the neighbours of the first in the second."""
    execution = {"execution": {"threads": config.threads}}
    embeddings = {}
    for name in (prompts, against):
        inputs = {"prompts": f"prompts/{name}"}
        if encoder in config.models:
            inputs["encoder"] = at(config, "models", encoder, config.seeds[0])
        settings = {"encoder": "model" if "encoder" in inputs else "hashed", **execution}
        embeddings[name] = artifact("embed", f"embeddings/{encoder}/{name}", settings, inputs)
    # A set that is held against itself is there once.
    sides = zip(("prompts", "against"), embeddings.values(), strict=False)
    inputs = {side: embedded.folder for side, embedded in sides}
    folder = f"neighbours/{encoder}/{prompts}/{against}"
    return [*embeddings.values(), artifact("neighbours", folder, execution, inputs)]


def _datasets(config: Config, lock: Mapping[str, str]) -> Iterator[Artifact]:
    """What lm-eval's own tasks read."""
    for name, benchmark in config.benchmarks.items():
        if benchmark.hub:
            settings = benchmark.hub.model_dump(include={"config"}, exclude_none=True)
            settings["hub"] = benchmark.hub.id
            settings["revision"] = locked(benchmark.hub, lock, f"benchmarks.{name}.hub")
            yield artifact("dataset", f"datasets/{name}", settings, {})


def _sft_data(config: Config, seed: int) -> Iterator[Artifact]:
    """Worked examples of the miniature world, and what is filtered from generations."""
    for name, recipe in config.sft_data.items():
        folder = at(config, "sft_data", name, seed)
        if recipe.world:
            settings = settings_of(recipe.world)
            settings["world"] = world(config, f"sft_data.{name}.world")
            yield artifact("corpus", folder, settings, {})
        elif recipe.filter:
            inputs = inputs_of(config, recipe.filter, seed)
            answered = config.generations[recipe.filter.generations].prompts
            inputs.setdefault("prompts", f"prompts/{answered}")
            yield artifact("filter", folder, settings_of(recipe.filter), inputs)


def _models(config: Config, seed: int, lock: Mapping[str, str]) -> Iterator[Artifact]:
    for name, model in config.models.items():
        folder = at(config, "models", name, seed)
        if model.trained:
            settings = _training(config, name, model, seed)
            inputs = inputs_of(config, model.trained, seed)
            if model.distill:
                _add_distilled(config, name, model, seed, settings, inputs)
            yield artifact(model.kind, folder, settings, inputs, seed)
        elif isinstance(model, Kept):
            inputs = inputs_of(config, model.keep, seed)
            yield artifact("keep", folder, {"step": model.keep.step}, inputs)
        elif model.init:
            settings = settings_of(model.init)
            settings["world"] = world(config, f"models.{name}.init")
            yield artifact("init", folder, settings, {}, seed)
        elif model.path:
            files = data_path(model.path, f"models.{name}.path")
            yield artifact("fetch", folder, {"path": model.path}, {"files": files})
        elif model.hub:
            revision = locked(model.hub, lock, f"models.{name}.{model.hub_key}")
            yield artifact("fetch", folder, {"hub": model.hub.id, "revision": revision}, {})


def _add_distilled(
    config: Config,
    name: str,
    model: Model,
    seed: int,
    settings: dict[str, Any],
    inputs: dict[str, str],
) -> None:
    """Add to the settings and inputs of a distillation several prompt sets, the terms of a sum, the
    teacher of scores, and the sources of its rollouts. Raises ``UserError`` as ``sources`` and
    ``scored_teacher`` of ``opd.plan.base`` do, and for sources that cannot be dealt out to
    processes."""
    assert model.distill is not None
    where = f"models.{name}.distill"
    if isinstance(model.distill.prompts, list):
        del inputs["prompts"]
        inputs |= {f"prompts:{name}": f"prompts/{name}" for name in model.distill.prompts}
    if model.distill.terms:
        options = model.chat_template
        settings["terms"], models = terms(config, model.distill, seed, options, where)
        inputs |= models
        del settings["loss"]
    if scores := model.distill.scores:
        teacher = scored_teacher(config, model.distill, scores, model.distill.loss, where)
        settings["scores"], inputs["teacher"] = "scores", at(config, "models", teacher, seed)
        tell_teacher(config, settings, teacher)
    if addresses := _served(config, model.distill, settings, where):
        settings["execution"]["servers"] = addresses
    if model.distill.rollouts:
        where = f"{where}.rollouts"
        settings["rollouts"], generations = sources(config, model.distill, seed, where)
        inputs |= generations
        shares.require_equal_parts(shares.of_step(settings), settings.get("processes", 1), where)


def _served(
    config: Config, distill: Distill, settings: Mapping[str, Any], where: str
) -> dict[str, dict[str, Any]]:
    """Where the teachers of a run are that are behind a server: by the stage's input, the address
    (url) and what the server may call the model (names). Raises ``UserError``, about ``where``, for
    one without an address."""
    places: dict[str, dict[str, Any]] = {}
    addresses = config.training.servers or {}
    for term, own in zip(distill.summed, terms_of(settings), strict=True):
        if not (term.server and term.teacher):
            continue
        if term.teacher not in addresses:
            raise UserError(
                f"there is no address of the server of '{term.teacher}'",
                f"{where}.server",
                f"say training: {{servers: {{{term.teacher}: http://HOST:PORT}}}}",
            )
        model, names = config.models[term.teacher], [term.teacher]
        if model.hub:
            names.append(model.hub.id)
        elif model.path:
            names.append(data_path(model.path, f"models.{term.teacher}.path"))
        places[own["teacher"]] = {"url": addresses[term.teacher], "names": names}
    return places


def _training(config: Config, name: str, model: Model, seed: int) -> dict[str, Any]:
    """The settings of a training run: what makes the result, and under ``execution`` what does not.
    Raises ``UserError`` for a step that cannot be dealt out to processes."""
    assert model.trained is not None
    execution = config.training.model_dump(mode="json", exclude_none=True, exclude={"servers"})
    made_by = ("precision", "attention", "gradient_checkpointing", "processes")
    settings = settings_of(model.trained)
    settings |= {key: execution.pop(key) for key in made_by if key in execution}
    if model.distill and not model.distill.samples:
        execution.pop("vllm", None)
    if (vllm := execution.get("vllm")) is not None:
        settings["vllm"] = {key: vllm.pop(key) for key in vllm.keys() - VLLM_PLACE}
    if tracker := execution.get("report_to"):
        # Logs are no part of what a run makes, and no audit looks at them.
        folder = f"results/{config.name}/logs/{tracker}/{name}-s{seed}"
        execution["report_to"] = {"tracker": tracker, "folder": folder}
    keep_steps = {*model.trained.keep_steps} - {0, model.trained.steps}
    if keep_steps:
        execution["keep_steps"] = sorted(keep_steps)
    if settings.get("end_tokens") == "student":  # as without it: it only lets the run begin
        execution["end_tokens"] = settings.pop("end_tokens")
    settings["execution"] = execution
    settings["threads"] = config.threads
    settings["chat_template_kwargs"] = model.chat_template
    sequences = batches.sequences(model.kind, settings)
    batches.dealt(sequences, settings, f"models.{name}.{model.kind}.micro_batch")
    tell_teacher(config, settings, model.distill.teacher if model.distill else None)
    return settings


def _generations(config: Config, seed: int) -> Iterator[Artifact]:
    for name, recipe in config.generations.items():
        settings = {**settings_of(recipe), **engine(config, recipe.model)}
        folder = at(config, "generations", name, seed)
        yield artifact("generate", folder, settings, inputs_of(config, recipe, seed), seed)


def _scores(config: Config, seed: int) -> Iterator[Artifact]:
    for name, recipe in config.scores.items():
        student = config.generations[recipe.generations].model
        settings = {**settings_of(recipe), **engine(config, student)}
        for key in SAMPLING:
            settings.pop(key, None)
        tell_teacher(config, settings, recipe.teacher)
        inputs = inputs_of(config, recipe, seed)
        inputs["student"] = at(config, "models", student, seed)
        yield artifact("score", at(config, "scores", name, seed), settings, inputs)


def _evaluations(config: Config, seed: int) -> Iterator[Artifact]:
    for name, recipe in config.evaluations.items():
        protocol = config.protocols.get(recipe.protocol) or PROTOCOLS[recipe.protocol]
        benchmarks = [_benchmark(config, benchmark) for benchmark in recipe.benchmarks]
        for model in config.models:
            settings = {
                "protocol": protocol.settings(),
                "max_prompt_tokens": recipe.max_prompt_tokens,
                "batch_size": recipe.batch_size,
                "benchmarks": [benchmark for benchmark, _ in benchmarks],
                **engine(config, model),
            }
            settings["chat_template_kwargs"] |= protocol.chat_template
            inputs = {"model": at(config, "models", model, seed)}
            for _, data in benchmarks:
                inputs |= data
            folder = at(config, "evaluations", f"{name}/{model}", seed)
            yield artifact("evaluate", folder, settings, inputs, seed)


def _benchmark(config: Config, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A benchmark's settings and inputs. The text of our own task files belongs to the settings."""
    benchmark = config.benchmarks[name]
    settings = benchmark.model_dump(include={"task", "num_fewshot", "repeated"}, exclude_none=True)
    settings["name"] = name
    if benchmark.task.startswith(tasks.OURS):
        settings["file"] = _task_text(benchmark.task, f"benchmarks.{name}.task")
    inputs = {}
    if benchmark.prompts:
        inputs[f"prompts:{name}"] = f"prompts/{benchmark.prompts}"
    if benchmark.hub:
        inputs[f"data:{name}"] = f"datasets/{name}"
    if benchmark.include:
        inputs[f"include:{name}"] = data_path(benchmark.include, f"benchmarks.{name}.include")
    return settings, inputs


def _task_text(task: str, where: str) -> str:
    """sha256 (hex) of one of our task files and of what it includes."""
    path: Path | None = tasks.find(task, where)
    texts: list[str] = []
    while path:
        texts.append(path.read_text(encoding="utf-8"))
        include = re.search(r"^include: (\S+)$", texts[-1], re.MULTILINE)
        path = path.parent / include[1] if include else None
    return digest(texts)


def data_files(config: Config) -> dict[str, str]:
    """The input files and folders of a config, as it gives their paths, by the keys that do."""
    paths = {
        **{f"prompts.{n}.path.file": p.path.file for n, p in config.prompts.items() if p.path},
        **{f"models.{n}.path": m.path for n, m in config.models.items()},
        **{f"benchmarks.{n}.include": b.include for n, b in config.benchmarks.items()},
    }
    return {where: path for where, path in paths.items() if path}


def data_path(path: str, where: str) -> str:
    """An input file or folder: where its path says by itself (``opd.models.source.is_path``), or
    below the folder that OPD_DATA_DIR names, or OPD_MODEL_DIR for models. Of an artifact
    (results/NAME/...) it is the payload. Raises ``UserError`` where there is none."""
    variable = "OPD_MODEL_DIR" if where.startswith("models.") else "OPD_DATA_DIR"
    root = os.environ.get(variable)
    if not is_path(path) and not root:
        what = f"the relative path '{path}' needs the environment variable {variable}"
        raise UserError(what, where, "set it to the folder that holds the files")
    full = local(path, root or "")
    if not (full.is_file() or full.is_dir()):
        what = "neither a file nor a folder" if full.exists() else "no such file"
        raise UserError(f"{what}: {full}", where, f"mend the path or {variable}")
    return str(full)


def _named(path: str, full: str) -> str:
    """The name of an input file in ids and samples, wherever the data lie."""
    if is_path(path) and not path.startswith("/"):
        return Path(path).as_posix()
    root = Path(os.environ.get("OPD_DATA_DIR", "/dev/null")).absolute()
    return full.removeprefix(f"{root}/")

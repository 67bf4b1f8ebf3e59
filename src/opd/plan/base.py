"""What all parts of a plan build on: folders of artifacts, settings and inputs of their stages."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from opd.core.errors import UserError
from opd.core.files import canonical
from opd.data import privileged
from opd.recipes.base import references
from opd.recipes.config import Config
from opd.recipes.models import Distill
from opd.stages.artifact import Artifact
from opd.stages.registry import code_digest, derive_seed

# Kinds of recipes whose artifacts do not depend on the seed, as no prompt set does.
UNSEEDED = {"sft_data": ("world",), "models": ("hub", "path")}


def artifact(
    stage: str,
    folder: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    seed: int | None = None,
) -> Artifact:
    """The artifact of a stage with these settings and inputs (name -> folder or plain file)."""
    cfg = {**settings, "inputs": list(inputs), "code": code_digest(stage)}
    if seed is not None:
        cfg["seed"] = derive_seed(seed, stage)
    return Artifact(stage, folder, json.loads(canonical(cfg)), (*inputs.values(),))


def at(config: Config, section: str, name: str, seed: int) -> str:
    """Folder of a recipe's artifact; of an evaluation, the name is EVALUATION/MODEL. What does not
    depend on the seed is shared by all seeds."""
    kinds = UNSEEDED.get(section)
    shared = getattr(config, section)[name].kind in kinds if kinds else section == "prompts"
    return f"{section}/{name}" if shared else f"{section}/{name}/s{seed}"


def inputs_of(config: Config, recipe: BaseModel, seed: int) -> dict[str, str]:
    """The folders of the recipes that a recipe names, by its keys; not of those that its parts
    name."""
    own = [reference for reference in references(recipe) if "." not in reference[0]]
    return {key: at(config, section, name, seed) for key, section, name in own}


def settings_of(recipe: BaseModel) -> dict[str, Any]:
    """A recipe's settings without the names of other recipes: those are inputs.

    A setting that is not given is left out, so that a new optional one changes no identity.
    """
    named = {key.partition(".")[0] for key, _, _ in references(recipe)}
    return recipe.model_dump(mode="json", exclude=named, exclude_none=True)


def engine(config: Config, model: str) -> dict[str, Any]:
    """Settings of what samples or reads with a model."""
    return {
        "threads": config.threads,
        "backend": config.backend,
        **config.engine.model_dump(exclude_none=True),
        "chat_template_kwargs": dict(config.models[model].chat_template),
    }


def tell_teacher(config: Config, settings: dict[str, Any], teacher: str | None) -> None:
    """Write out what a teacher is told, if anything, and the options of its chat template where
    they are not the student's."""
    if contexts := privileged.contexts(settings.pop("information", None)):
        settings["information"] = contexts
    if teacher:
        options = config.models[teacher].chat_template
        if options != settings["chat_template_kwargs"]:
            settings["teacher_chat_template_kwargs"] = options


def terms(
    config: Config, distill: Distill, seed: int, options: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The settings of the terms of a sum, and the stage's inputs for their models: student, for the
    student's start, or teacher:0, teacher:1, ... as they are first named. ``options`` are those of
    the student's chat template."""
    names = {distill.student: "student"}
    settings = []
    for term in distill.terms or ():
        own = {"chat_template_kwargs": options, **settings_of(term)}
        for kind in ("teacher", "reference"):
            if model := getattr(term, kind):
                own[kind] = names.setdefault(model, f"teacher:{len(names) - 1}")
                own.setdefault("loss", distill.loss.model_dump(mode="json", exclude_none=True))
                tell_teacher(config, own, model)
        del own["chat_template_kwargs"]
        settings.append(own)
    inputs = {name: at(config, "models", model, seed) for model, name in names.items()}
    return settings, inputs


def sources(
    config: Config, distill: Distill, seed: int, where: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The settings of the sources of a run's rollouts, and the stage's inputs for them:
    generations:0, generations:1, ... as they are named. Raises ``UserError``, about ``where``, for
    importance weights of a generation that does not record what they need."""
    settings: list[dict[str, Any]] = []
    inputs: dict[str, str] = {}
    for i, source in enumerate(distill.rollouts or ()):
        if source.generations is None:
            settings.append({"own": source.own})
            continue
        name = f"generations:{len(inputs)}"
        inputs[name] = at(config, "generations", source.generations, seed)
        settings.append({"generations": name, "share": source.part})
        if source.importance:
            if not config.generations[source.generations].logprobs:
                raise UserError(
                    f"'{source.generations}' does not record the log-probabilities of its tokens",
                    f"{where}.{i}.importance",
                    f"say logprobs: true in generations.{source.generations}, or leave it out",
                )
            settings[-1]["importance"] = source.importance.model_dump()
    return settings, inputs


def world(config: Config, where: str) -> dict[str, Any]:
    """Settings of the miniature world. Raises ``UserError`` where a config has none."""
    if config.world is None:
        raise UserError("the config has no world", where, "add a 'world:' section")
    return config.world.model_dump(mode="json", exclude_none=True)

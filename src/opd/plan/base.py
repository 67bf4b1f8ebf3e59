"""What all parts of a plan build on: folders of artifacts, settings and inputs of their stages."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from opd.core.errors import UserError
from opd.core.files import canonical
from opd.data import privileged
from opd.losses.spec import loss_spec
from opd.losses.sufficient import objection
from opd.recipes.base import references
from opd.recipes.config import Config
from opd.recipes.losses import Loss
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
    config: Config, distill: Distill, seed: int, options: Mapping[str, Any], where: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The settings of the terms of a sum, and the stage's inputs for their models: student, for the
    student's start, or teacher:0, teacher:1, ... as they are first named; and for scores, scores:0,
    ... ``options`` are those of the student's chat template. Raises ``UserError``, about ``where``,
    as ``scored_teacher`` does."""
    names, scored = {distill.student: "student"}, dict[str, str]()
    settings = []
    for i, term in enumerate(distill.terms or ()):
        own = {"chat_template_kwargs": options, **settings_of(term)}
        models = {"teacher": term.teacher, "reference": term.reference}
        if term.scores:
            loss = term.loss or distill.loss
            models["teacher"] = scored_teacher(
                config, distill, term.scores, loss, f"{where}.terms.{i}"
            )
            own["scores"] = scored.setdefault(term.scores, f"scores:{len(scored)}")
        for kind, model in models.items():
            if model:
                own[kind] = names.setdefault(model, f"teacher:{len(names) - 1}")
                own.setdefault("loss", distill.loss.model_dump(mode="json", exclude_none=True))
                tell_teacher(config, own, model)
        del own["chat_template_kwargs"]
        settings.append(own)
    inputs = {name: at(config, "models", model, seed) for model, name in names.items()}
    return settings, inputs | {n: at(config, "scores", s, seed) for s, n in scored.items()}


def scored_teacher(config: Config, distill: Distill, scores: str, loss: Loss, where: str) -> str:
    """The teacher of scores that a run is trained from. Raises ``UserError``, about ``where``, for
    rollouts that are not all of the generation that was scored, and for a loss or a metric that
    needs more than the scores hold."""
    recipe = config.scores[scores]
    if [source.generations for source in distill.rollouts or ()] != [recipe.generations]:
        raise UserError(
            f"'{scores}' has scores of the responses of '{recipe.generations}' alone",
            f"{where}.scores",
            f"say rollouts: [{{generations: {recipe.generations}}}], or name the teacher",
        )
    settings = loss.model_dump(exclude_none=True)
    spec = loss_spec({"teacher_temperature": distill.temperature, **settings})
    if error := objection(spec, recipe.k, recipe.named_student is not None):
        raise UserError(error.what, f"{where}: {error.where}", error.remedy)
    if distill.metrics_k > recipe.k:
        raise UserError(
            f"metrics_k is {distill.metrics_k}, and the scores hold {recipe.k} tokens a position",
            f"{where}: metrics_k",
            f"use at most {recipe.k}, or a larger k in scores.{scores}",
        )
    return recipe.teacher


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

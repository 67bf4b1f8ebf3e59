"""What all parts of a plan build on: folders of artifacts, settings and inputs of their stages."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from opd.core.files import canonical
from opd.recipes.base import references
from opd.recipes.config import Config
from opd.stages.artifact import Artifact
from opd.stages.registry import code_digest, derive_seed


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
    """Folder of a recipe's artifact. What does not depend on the seed is shared by all seeds."""
    seeded = {
        "prompts": lambda: False,
        "sft_data": lambda: config.sft_data[name].filter is not None,
        "models": lambda: config.models[name].kind not in ("hub", "path"),
        "generations": lambda: True,
        "demonstrations": lambda: True,
        "probes": lambda: True,
    }[section]()
    return f"{section}/{name}/s{seed}" if seeded else f"{section}/{name}"


def inputs_of(config: Config, recipe: BaseModel, seed: int) -> dict[str, str]:
    """The folders of the recipes that a recipe names, by the keys that name them."""
    return {key: at(config, section, name, seed) for key, section, name in references(recipe)}


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


def evaluation_at(evaluation: str, model: str, seed: int) -> str:
    """Folder of a model's evaluation."""
    return f"evaluations/{evaluation}/{model}/s{seed}"

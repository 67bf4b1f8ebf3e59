"""What would be refused of the models of a plan once their stages run, where their folders are at
hand: those of ``path``, and what has been fetched. What is not at hand is left to the stages."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from opd.core.errors import UserError
from opd.stages.artifact import Artifact

ROLES = ("student", "teacher", "model", "judge")


def refused(
    artifacts: Mapping[str, Artifact], folders: Iterable[str], results: Path
) -> list[UserError]:
    """What training says of each pair (``opd.models.pairing``), and where prompt and response may
    be longer than a model can read; once for all seeds. Nothing where transformers is missing."""
    if importlib.util.find_spec("transformers") is None:
        return []
    errors: dict[str, UserError] = {}
    for folder in folders:
        artifact = artifacts[folder]
        models = {
            role: path
            for role, name in artifact.named.items()
            if role in ROLES and (path := _at_hand(artifacts, name, results))
        }
        for error in _of_stage(artifact, models) if models else []:
            where = f"{folder.rsplit('/s', 1)[0]}: {error.where}"
            errors.setdefault(f"{where} {error.what}", UserError(error.what, where, error.remedy))
    return list(errors.values())


def _at_hand(artifacts: Mapping[str, Artifact], name: str, results: Path) -> Path | None:
    """The folder that a model's weights and tokenizer come from, if it is there already."""
    artifact = artifacts.get(name)
    if artifact is None:
        return None
    named = artifact.named
    if artifact.stage == "fetch":
        path = Path(named["files"]) if "files" in named else results / name / "payload"
        return path if (path / "config.json").is_file() else None
    source = named.get("student") or named.get("model")
    return _at_hand(artifacts, source, results) if source else None


def _of_stage(artifact: Artifact, models: Mapping[str, Path]) -> list[UserError]:
    from opd.models import pairing
    from opd.models.checkpoints import read_config, require_room

    cfg, errors = artifact.cfg, []
    try:
        if artifact.stage == "distill" and len(models) == 2:
            compared = pairing.compare(cfg, models["student"], models["teacher"])
            errors += pairing.objections(cfg, compared)
        length = cfg.get("protocol", cfg).get("max_new_tokens")
        if length and "max_prompt_tokens" in cfg:
            for path in models.values():
                tokens = cfg["max_prompt_tokens"] + length
                require_room(read_config(path), tokens, "max_prompt_tokens and max_new_tokens")
    except UserError as error:
        errors.append(error)
    return errors

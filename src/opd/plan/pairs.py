"""What would be refused of the models of a plan once their stages run, as far as tokenizers, chat
templates and settings tell: those of ``path``, those that have been fetched, and, where the hub is
asked, those that it has. No weights are read or fetched for it.

``python -m opd.plan.pairs PLAN FOLDER ...`` asks the hub, prints a line for each thing that is
refused of the artifacts in these folders, and then ends with 1: what a run does before it fetches.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from opd.core.errors import LeftOut, UserError
from opd.core.files import canonical
from opd.core.security import redacted, visible_line
from opd.plan.cost import origin
from opd.stages import fresh
from opd.stages.artifact import Artifact
from opd.stages.identity import identity
from opd.training import terms

ROLES = ("student", "teacher", "model", "judge")
# Roles of which a run may have several: teacher:0, and the models that sampled generations:0.
SAMPLED = "generations:"
SEVERAL = ("teacher:", SAMPLED)
Compare = Callable[[Path, Path, str], dict[str, Any]]


def refused(
    artifacts: Mapping[str, Artifact], folders: Iterable[str], results: Path, online: bool = False
) -> list[UserError]:
    """What the stages would say of each pair (``opd.models.pairing``), and where prompt and
    response may be longer than a model can read; once for all seeds. ``online``: models that are
    not at hand are looked at on the hub, and what keeps it from showing one is refused, too.
    Nothing where transformers is missing."""
    if importlib.util.find_spec("transformers") is None:
        return []

    @cache  # many runs have the same pair
    def compare(student: Path, teacher: Path, options: str) -> dict[str, Any]:
        from opd.models import pairing  # takes seconds

        return pairing.compare(json.loads(options), student, teacher)

    uses = {folder: _sources(artifacts, folder) for folder in folders}
    errors: dict[str, UserError] = {}
    models: dict[str, Path | None] = {}
    for source in {source: None for sources in uses.values() for source in sources.values()}:
        try:
            models[source] = _at_hand(artifacts[source], results, online)
        except UserError as bad:
            errors[source] = UserError(bad.what, f"{source}: {bad.where}", bad.remedy)
    for folder, sources in uses.items():
        paths = {role: path for role, source in sources.items() if (path := models.get(source))}
        artifact = artifacts[folder]
        for error in _of_stage(artifact, paths, compare) if paths else []:
            where = f"{_named(artifact)}: {error.where}"
            errors.setdefault(f"{where} {error.what}", UserError(error.what, where, error.remedy))
    return list(errors.values())


def _named(artifact: Artifact) -> str:
    """An artifact without its seed, and the student and teacher that it is about."""
    named = artifact.named
    pair = [f"{role} {named[role].split('/')[1]}" for role in ROLES[:2] if role in named]
    return artifact.folder.rsplit("/s", 1)[0] + (f" ({', '.join(pair)})" if len(pair) == 2 else "")


def _sources(artifacts: Mapping[str, Artifact], folder: str) -> dict[str, str]:
    """Role -> folder of the fetched model that a stage's model is, or was trained from."""
    models = {
        role: origin(artifacts, name)
        for role, name in artifacts[folder].named.items()
        if role in ROLES or role.startswith(SEVERAL)
    }
    return {role: made.folder for role, made in models.items() if made and made.stage == "fetch"}


def _at_hand(artifact: Artifact, results: Path, online: bool) -> Path | None:
    """The folder of a fetched model's tokenizer and settings, if it is there or may be had."""
    stored = results.parent / ".store" / identity(artifact.stage, artifact.cfg, {})
    given = [Path(files) for name, files in artifact.named.items() if name == "files"]
    for path in given or (results / artifact.folder / "payload", stored):
        if (path / "config.json").is_file():
            return path
    revision = artifact.cfg.get("revision", "")
    if not online or not re.fullmatch("[0-9a-f]{40}", revision):
        return None
    from opd.models import fetch

    return fetch.without_weights(artifact.cfg["hub"], revision)


def _of_stage(artifact: Artifact, models: Mapping[str, Path], compare: Compare) -> list[UserError]:
    from opd.models import pairing
    from opd.models.checkpoints import read_config, require_room

    cfg, errors = artifact.cfg, []
    try:
        for name, asked in _asked(cfg):
            if not {"student", name} <= models.keys():
                continue
            keys = ("chat_template_kwargs", "teacher_chat_template_kwargs")
            options = canonical({key: asked[key] for key in keys if key in asked})
            compared = compare(models["student"], models[name], options)
            if artifact.stage == "distill":
                errors += pairing.objections(asked, compared)
            # The one reports them, the other leaves them to training.
            elif artifact.stage not in ("indicators", "score"):
                errors += pairing.objections_to_thinking(asked, compared)
        length = cfg.get("protocol", cfg).get("max_new_tokens")
        if length and "max_prompt_tokens" in cfg:
            for path in (path for role, path in models.items() if not role.startswith(SAMPLED)):
                tokens = cfg["max_prompt_tokens"] + length
                require_room(read_config(path), tokens, "max_prompt_tokens and max_new_tokens")
        errors += _of_generations(models)
    except UserError as error:
        errors.append(error)
    return errors


def _of_generations(models: Mapping[str, Path]) -> Iterator[UserError]:
    """What training would say of generations whose model has other tokens than the student."""
    from opd.models import pairing
    from opd.models.checkpoints import load_tokenizer

    for role, path in models.items() if "student" in models else ():
        if role.startswith(SAMPLED):
            try:
                pairing.never_compared(load_tokenizer(models["student"]), load_tokenizer(path))
            except LeftOut:
                reason = "the student has another tokenizer than the model that sampled it"
                remedy = "take a generation of a model with the student's tokenizer"
                yield UserError(reason, role, remedy)


def _asked(cfg: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The models that a student is paired with, each with the settings of the pair: the teacher, or
    those of the terms of a sum."""
    named = [(terms.model_of(term), {**cfg, **term}) for term in cfg.get("terms", ())]
    return [(name, asked) for name, asked in named if name] if named else [("teacher", cfg)]


def main(plan: Path, folders: Iterable[str]) -> int:
    """The exit status for these folders of a plan.json, after a line for each thing refused."""
    entries = fresh.read_plan(plan)[0] or {}
    artifacts = {
        folder: Artifact(entry.stage, folder, entry.cfg or {}, (*entry.inputs,))
        for folder, entry in entries.items()
        if entry
    }
    errors = refused(artifacts, folders, plan.parent, online=True)
    for error in errors:
        print(visible_line(redacted(f"error: {error}")), file=sys.stderr)
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

"""The lock of hub objects: the commit that each model and dataset of a config stands at."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from opd.core.errors import UserError
from opd.core.files import replacing
from opd.core.schema import read_yaml
from opd.recipes.base import HubObject
from opd.recipes.config import Config
from opd.recipes.models import Hub

HEADER = "# Commits of hub objects, read from the hub by `opd lock`. Do not edit.\n"
REMEDY = "take it from version control, or remove it and run `opd lock` online"


def key(recipe: HubObject) -> str:
    """``models/ID`` or ``datasets/ID``."""
    return f"{'models' if isinstance(recipe, Hub) else 'datasets'}/{recipe.id}"


def read(path: Path) -> dict[str, str]:
    """The lock, empty where there is no file. Raises ``UserError`` for a damaged one."""
    commits = read_yaml(path, REMEDY) if path.exists() else {}
    for name, revision in commits.items():
        if not re.fullmatch("[0-9a-f]{40}", str(revision)):
            raise UserError(f"{name} has no commit of 40 hex digits", str(path), REMEDY)
    return commits


def hub_objects(config: Config) -> dict[str, HubObject]:
    """The recipes of a config's hub objects, by the keys that name them."""
    return {
        **{f"models.{n}.{m.hub_key}": m.hub for n, m in config.models.items() if m.hub},
        **{f"prompts.{n}.hub": p.hub for n, p in config.prompts.items() if p.hub},
        **{f"benchmarks.{n}.hub": b.hub for n, b in config.benchmarks.items() if b.hub},
    }


def commit(kind: str, name: str, revision: str | None) -> str:
    """The commit (40 hex digits) that a revision of a hub object stands at; asks the hub."""
    import huggingface_hub

    api, repo_type = huggingface_hub.HfApi(), kind.removesuffix("s")
    return str(api.repo_info(name, repo_type=repo_type, revision=revision).sha)


def lock(
    config: Config, path: Path, ask: Callable[[str, str, str | None], str] = commit
) -> dict[str, str]:
    """Ask the hub at which commit each object of a config stands, and add that to the lock. Raises
    ``UserError`` where the hub does not answer; nothing is written then."""
    locked = read(path)
    for where, recipe in hub_objects(config).items():
        kind, _, name = key(recipe).partition("/")
        try:
            locked[key(recipe)] = ask(kind, name, recipe.revision)
        except Exception as error:
            raise UserError(
                f"the hub has no answer for {name} at {recipe.revision or 'its newest commit'} "
                f"({type(error).__name__})",
                where,
                "check name and revision, log in if it is gated, and see that the hub answers",
            ) from error
    with replacing(path) as temporary:
        temporary.write_text(HEADER + yaml.safe_dump(locked))  # with sorted keys
    return locked


def locked(recipe: HubObject, lock: Mapping[str, str], where: str) -> str:
    """The revision to fetch: the locked commit, else what the recipe says (which the fetching stage
    refuses unless it is a full commit). Raises ``UserError`` where lock and recipe disagree."""
    known, commit = recipe.revision or "", lock.get(key(recipe), "")
    digits = set(known) <= set("0123456789abcdef")
    if commit and digits and not commit.startswith(known):
        raise UserError(
            f"{recipe.id} is locked at {commit}, but its recipe says {known}",
            where,
            "mend the recipe, or lock it again with `opd lock`",
        )
    return commit or known


def unlocked(config: Config, lock: Mapping[str, str]) -> list[str]:
    """The keys of a config's hub objects that cannot be fetched, since no full commit is known.
    Raises ``UserError`` where lock and recipe disagree."""
    commits = {where: locked(recipe, lock, where) for where, recipe in hub_objects(config).items()}
    return [where for where in commits if not re.fullmatch("[0-9a-f]{40}", commits[where])]

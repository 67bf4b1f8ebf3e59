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
LOG_IN = "accept the conditions on its page, then `hf auth login` or HF_TOKEN"
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


def ask(
    kind: str, name: str, revision: str | None, seconds: float | None = None
) -> tuple[str, str]:
    """The commit (40 hex digits) that a revision of a hub object stands at, and whether this user
    may have it: ``open``, or, of a gated one, ``granted`` or ``refused``. Raises whatever keeps the
    hub from answering, within ``seconds``."""
    import huggingface_hub

    api, repo_type = huggingface_hub.HfApi(), kind.removesuffix("s")
    info = api.repo_info(name, repo_type=repo_type, revision=revision, timeout=seconds)
    if not info.gated:
        return str(info.sha), "open"
    try:
        api.auth_check(name, repo_type=repo_type)
    except huggingface_hub.errors.GatedRepoError:
        return str(info.sha), "refused"
    return str(info.sha), "granted"


def lock(
    config: Config, path: Path, ask: Callable[[str, str, str | None], tuple[str, str]] = ask
) -> tuple[dict[str, str], list[UserError]]:
    """Ask the hub at which commit each object of a config stands, and add that to the lock. Returns
    the lock, and what is in the way: each object of which the hub tells no commit (nothing is
    written then, and the lock is empty) or that is gated and not open to this user. Raises
    ``UserError`` where there is no folder for the lock."""
    if not path.parent.is_dir():
        remedy = "run at the top of the repository, or name another file with --lock"
        raise UserError(f"no such folder: {path.parent}", str(path), remedy)
    locked, absent, gated = read(path), [], []
    for where, recipe in hub_objects(config).items():
        kind, _, name = key(recipe).partition("/")
        try:
            locked[key(recipe)], access = ask(kind, name, recipe.revision)
        except Exception as error:
            what = (
                f"the hub has no answer for {name} at {recipe.revision or 'its newest commit'} "
                f"({type(error).__name__})"
            )
            remedy = "check name and revision, log in if it is gated, and see that the hub answers"
            absent.append(UserError(what, where, remedy))
        else:
            if access == "refused":
                gated.append(UserError(f"{name} is gated, and not open to you", where, LOG_IN))
    if absent:
        return {}, absent + gated
    with replacing(path) as temporary:
        temporary.write_text(HEADER + yaml.safe_dump(locked), encoding="utf-8")  # with sorted keys
    return locked, gated


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

"""Objects of the hub that a plan fetches: locked, fetched already, open to this user."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from opd.doctor.base import Finding, State, some
from opd.plan import hub_lock
from opd.recipes.config import Config

# What is known to ask for consent, where the hub cannot be asked.
GATED = {
    "models/thunlp/JustRL-DeepSeek-1.5B",
    "datasets/allenai/wildguardmix",
    "datasets/Idavidrein/gpqa",
}
SECONDS = 5
DONE = ("there", "store")


def folder(where: str) -> str:
    """The artifact that is made from the object which a config names there (``lock``)."""
    section, _, rest = where.partition(".")
    section = {"benchmarks": "datasets"}.get(section, section)
    return f"{section}/{rest.rpartition('.')[0]}"


def access(key: str) -> str:
    """What the hub says of an object (models/ID, datasets/ID) to this user: ``open``, ``absent``,
    ``granted`` or ``refused`` (it is gated). Raises whatever keeps the hub from answering."""
    from huggingface_hub.errors import RepositoryNotFoundError

    kind, _, name = key.partition("/")
    try:
        return hub_lock.ask(kind, name, None, SECONDS)[1]
    except RepositoryNotFoundError:
        return "absent"


def examine(
    config: Config, locked: Mapping[str, str], states: Mapping[str, str], configs: str
) -> Iterator[Finding]:
    """Findings about the hub's objects among these artifacts; ``configs`` are the files to lock."""
    objects = {
        where: hub_lock.key(recipe)
        for where, recipe in hub_lock.hub_objects(config).items()
        if folder(where) in states
    }
    if not objects:
        yield Finding("hub", "ok", "nothing comes from it")
        return
    to_fetch = {where: objects[where] for where in objects if states[folder(where)] not in DONE}
    unlocked = [where for where in hub_lock.unlocked(config, locked) if where in to_fetch]
    if unlocked:
        what = f"no commit is known of {some(unlocked)}"
        yield Finding("hub lock", "missing", what, f"once, online: opd lock --configfile {configs}")
    else:
        yield Finding("hub lock", "ok", "every object to fetch has its commit")
    fetched = f"{len(objects) - len(to_fetch)} of {len(objects)} objects are fetched"
    if not to_fetch:
        yield Finding("hub", "ok", fetched)
        return
    where_named = {key: where for where, key in to_fetch.items()}
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    answers = None if offline else _answers(list(where_named))
    if answers is not None:
        yield Finding("hub", "ok", f"{fetched}, the hub answers for the others")
    elif offline:
        yield Finding("hub", "missing", f"{fetched}, HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    else:
        remedy = (
            "run where it answers (HTTPS_PROXY, HF_ENDPOINT), or bring results/.store and what was "
            "fetched from another machine"
        )
        yield Finding("hub", "missing", f"{fetched}, and the hub does not answer", remedy)
    yield from _gates(where_named, answers)


def _answers(keys: list[str]) -> dict[str, str] | None:
    """What the hub says of each object, by key; None where it does not answer."""
    try:
        first = access(keys[0])
        with ThreadPoolExecutor(8) as pool:
            return dict(zip(keys, [first, *pool.map(access, keys[1:])], strict=True))
    except Exception:  # of the network, of its certificates, of the hub: no answer is no answer
        return None


def _gates(where_named: Mapping[str, str], answers: Mapping[str, str] | None) -> Iterator[Finding]:
    """Whether objects (key -> where the config names them) are open to this user."""
    from huggingface_hub import get_token

    subject, has_token = "hub access", bool(get_token())
    about_token = "a token is set" if has_token else "no token is set"
    if answers is None:
        known = sorted(where_named.keys() & GATED)
        if known:
            state: State = "warning" if has_token else "missing"
            what = f"gated: {some(known)}; {about_token}"
            yield Finding(subject, state, what, hub_lock.LOG_IN)
        else:
            what = f"unknown which of {len(where_named)} are gated; {about_token}"
            yield Finding(subject, "warning", what, "ask again where the hub answers")
        return
    for key, where in where_named.items():
        if answers[key] == "absent":
            what = f"not on the hub, or private: {where} ({key}); {about_token}"
            yield Finding(subject, "missing", what, "mend the id, or log in: hf auth login")
        elif answers[key] == "refused":
            what = f"gated, and not open to you: {where} ({key}); {about_token}"
            yield Finding(subject, "missing", what, hub_lock.LOG_IN)
    if {*answers.values()} <= {"open", "granted"}:
        granted = [key for key in where_named if answers[key] == "granted"]
        gates = f"gated, and open to you: {some(granted)}" if granted else "nothing is gated"
        yield Finding(subject, "ok", f"{gates}; {about_token}")

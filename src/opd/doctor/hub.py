"""Objects of the hub that a plan fetches: locked, fetched already, open to this user."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from opd.doctor.finding import Finding, State, some
from opd.plan import hub_lock
from opd.recipes.config import Config

# What is known to ask for consent, where the hub cannot be asked.
GATED = frozenset(
    {
        "models/thunlp/JustRL-DeepSeek-1.5B",
        "datasets/allenai/wildguardmix",
        "datasets/Idavidrein/gpqa",
    }
)
SECONDS = 5
DONE = ("there", "store")


def folder(where: str) -> str:
    """The artifact that is made from the object which a config names there (``lock``)."""
    section, _, rest = where.partition(".")
    section = {"benchmarks": "datasets"}.get(section, section)
    return f"{section}/{rest.rpartition('.')[0]}"


def token() -> bool:
    """Whether the hub would be asked with a token. The token itself is looked at nowhere."""
    import huggingface_hub

    return bool(huggingface_hub.get_token())


def access(kind: str, name: str) -> str:
    """What the hub says of an object of a kind (models, datasets) to this user: ``open``,
    ``granted`` or ``refused`` (gated, with or without consent), ``absent``.

    Raises whatever keeps the hub from answering.
    """
    import huggingface_hub
    from huggingface_hub import errors

    api, repo_type = huggingface_hub.HfApi(), kind.removesuffix("s")
    try:
        info = api.repo_info(name, repo_type=repo_type, timeout=SECONDS)
        if not info.gated:
            return "open"
        api.auth_check(name, repo_type=repo_type)
    except errors.GatedRepoError:
        return "refused"
    except errors.RepositoryNotFoundError:
        return "absent"
    return "granted"


def examine(
    config: Config,
    locked: Mapping[str, str],
    states: Mapping[str, str],
    configs: str,
    ask: Callable[[str, str], str] = access,
    has_token: Callable[[], bool] = token,
) -> Iterator[Finding]:
    """Findings about the hub's objects among the artifacts in ``states`` (``planned.states``);
    ``locked`` is the lock, ``configs`` the files to lock."""
    objects = {w: o for w, o in hub_lock.hub_objects(config).items() if folder(w) in states}
    if not objects:
        yield Finding("hub", "ok", "nothing comes from it")
        return
    to_fetch = {w: o for w, o in objects.items() if states[folder(w)] not in DONE}
    fetched = f"{len(objects) - len(to_fetch)} of {len(objects)} objects are fetched"
    open_ended = [w for w in hub_lock.unlocked(config, locked) if w in to_fetch]
    if open_ended:
        what = f"no commit is known of {some(open_ended)}"
        yield Finding("hub lock", "missing", what, f"once, online: opd lock {configs}")
    else:
        yield Finding("hub lock", "ok", "every object to fetch has its commit")
    if not to_fetch:
        yield Finding("hub", "ok", fetched)
        return
    where = {hub_lock.key(o): w for w, o in to_fetch.items()}
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    answers = None if offline else _answers(list(where), ask)
    if answers is not None:
        yield Finding("hub", "ok", f"{fetched}, the hub answers for the others")
    elif offline:
        what = f"{fetched}, and HF_HUB_OFFLINE is set"
        yield Finding("hub", "missing", what, "unset HF_HUB_OFFLINE")
    else:
        remedy = (
            "run where it answers (HTTPS_PROXY, HF_ENDPOINT), or bring results/.store and what was "
            "fetched from another machine"
        )
        yield Finding("hub", "missing", f"{fetched}, and the hub does not answer", remedy)
    yield from _gates(where, answers, has_token())


def _answers(keys: list[str], ask: Callable[[str, str], str]) -> dict[str, str] | None:
    """What ``ask`` says of each object, by key; None where the hub does not answer."""

    def answer(key: str) -> str:
        kind, _, name = key.partition("/")
        return ask(kind, name)

    try:
        first = answer(keys[0])
        with ThreadPoolExecutor(8) as pool:
            return dict(zip(keys, [first, *pool.map(answer, keys[1:])], strict=True))
    except Exception:  # of the network, of its certificates, of the hub: no answer is no answer
        return None


def _gates(
    where: Mapping[str, str], answers: Mapping[str, str] | None, has_token: bool
) -> Iterator[Finding]:
    """Whether objects (key -> where the config names them) are open to this user."""
    token = "a token is set" if has_token else "no token is set"
    log_in = "accept the conditions on its page, then `hf auth login` or HF_TOKEN"
    if answers is None:
        known = sorted(where.keys() & GATED)
        if known:
            state: State = "warning" if has_token else "missing"
            yield Finding("hub access", state, f"gated: {some(known)}; {token}", log_in)
        else:
            what = f"unknown which of {len(where)} are gated; {token}"
            yield Finding("hub access", "warning", what, "ask again where the hub answers")
        return
    refused = [key for key in where if answers[key] == "refused"]
    granted = [key for key in where if answers[key] == "granted"]
    absent = [f"{where[key]} ({key})" for key in where if answers[key] == "absent"]
    if absent:
        what = f"not on the hub, or private: {some(absent)}; {token}"
        yield Finding("hub access", "missing", what, "mend the id, or log in: hf auth login")
    if refused:
        what = f"gated, and not open to you: {some(refused)}; {token}"
        yield Finding("hub access", "missing", what, log_in)
    elif granted:
        yield Finding("hub access", "ok", f"gated, and open to you: {some(granted)}")
    elif not absent:
        yield Finding("hub access", "ok", f"nothing is gated; {token}")

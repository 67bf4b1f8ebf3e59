"""Objects of the hub that a plan fetches: locked, fetched already, open to this user."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from opd.doctor.finding import Finding, some
from opd.plan import hub_lock
from opd.plan.hub_lock import HubObject
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
    objects = {w: one for w, one in hub_lock.hub_objects(config).items() if folder(w) in states}
    if not objects:
        yield Finding("hub", "ok", "nothing comes from it")
        return
    to_fetch = {w: one for w, one in objects.items() if states[folder(w)] not in DONE}
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
    said = _asked(to_fetch.values(), ask)
    if said is None:
        reason = "HF_HUB_OFFLINE is set" if _offline() else "the hub does not answer"
        remedy = (
            "unset HF_HUB_OFFLINE"
            if _offline()
            else "run where it answers (HTTPS_PROXY, HF_ENDPOINT), or bring results/.store and "
            "what was fetched from another machine"
        )
        yield Finding("hub", "missing", f"{fetched}, and {reason}", remedy)
    else:
        yield Finding("hub", "ok", f"{fetched}, the hub answers for the others")
    yield from _gates(to_fetch, said, has_token())


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _asked(objects: Iterable[HubObject], ask: Callable[[str, str], str]) -> dict[str, str] | None:
    """What ``ask`` says of each object, by key; None where the hub does not answer."""
    keys = list(dict.fromkeys(hub_lock.key(one) for one in objects))
    if _offline():
        return None

    def one(key: str) -> str:
        kind, _, name = key.partition("/")
        return ask(kind, name)

    try:
        first = one(keys[0])
        with ThreadPoolExecutor(8) as pool:
            return dict(zip(keys, [first, *pool.map(one, keys[1:])], strict=True))
    except Exception:  # of the network, of its certificates, of the hub: no answer is no answer
        return None


def _gates(
    to_fetch: Mapping[str, HubObject], said: Mapping[str, str] | None, has_token: bool
) -> Iterator[Finding]:
    where = {hub_lock.key(one): name for name, one in to_fetch.items()}
    with_token = "a token is set" if has_token else "no token is set"
    log_in = "accept the conditions on its page, then `hf auth login` or HF_TOKEN"
    if said is None:
        known = sorted(where.keys() & GATED)
        if known:
            state, what = "warning" if has_token else "missing", f"gated: {some(known)}; "
            yield Finding("hub access", state, what + with_token, log_in)  # type: ignore[arg-type]
        else:
            what = f"unknown which of {len(where)} are gated; {with_token}"
            yield Finding("hub access", "warning", what, "ask again where the hub answers")
        return
    absent = [f"{where[key]} ({key})" for key in where if said[key] == "absent"]
    if absent:
        what = f"not on the hub, or private: {some(absent)}; {with_token}"
        yield Finding("hub access", "missing", what, "mend the id, or log in: hf auth login")
    refused = [key for key in where if said[key] == "refused"]
    granted = [key for key in where if said[key] == "granted"]
    if refused:
        what = f"gated, and not open to you: {some(refused)}; {with_token}"
        yield Finding("hub access", "missing", what, log_in)
    elif granted:
        yield Finding("hub access", "ok", f"gated, and open to you: {some(granted)}")
    elif not absent:
        yield Finding("hub access", "ok", f"nothing is gated; {with_token}")

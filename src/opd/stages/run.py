"""Provenance: what made an artifact, and the store that lets a finished stage be used again.

Every artifact is a folder with three things: ``digest.json`` (identity and content digests only,
so an upstream rerun with the same result changes nothing for what depends on it),
``manifest.json`` (the audit trail: settings, inputs, versions, host, time; never an input) and
``payload``, a link into the store. The store is keyed by identity: a digest of the stage's
settings (which hold a digest of its code) and of the content of its inputs. What was adopted
(``opd.provenance.adopt``) has an identity of its own kind: nothing here has made it.
"""

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import content, remove
from opd.core.security import refuse_code
from opd.stages import gpu, lock, registry, verify
from opd.stages.check import stands_for
from opd.stages.identity import identity
from opd.stages.keep import complete, steps_of
from opd.stages.manifest import made_from, publish, stamp, versions
from opd.stages.records import Contents, Manifest, load, read, write, write_json
from opd.stages.registry import STAGES, code_digest, modules


def resolve_input(path: Path, look: bool = False) -> tuple[Path, dict[str, str], str]:
    """A declared input -> (payload folder or plain file, content digests, identity or '')."""
    if not path.exists():
        raise UserError("no such input", str(path), "run the stage that makes it")
    if path.name != "digest.json":
        return path, content(path), ""
    made = verify.artifact(path, look)
    refuse_code(made[0])
    return made


def _kept(stage: str, cfg: Mapping[str, Any]) -> list[int]:
    """The steps whose weights a training run is asked to keep."""
    return list(cfg.get("execution", {}).get("keep_steps", ())) if STAGES[stage].resumes else []


def _store_steps(asked: Sequence[int], made: Path, steps: Path) -> None:
    """Move the steps that a run has kept into the store; one that it did not reach is empty."""
    kept = {}
    for step in asked:
        (made / str(step)).mkdir(parents=True, exist_ok=True)
        kept[step] = content(made / str(step))
    # Digests first: a kill between two moves would cost a training run.
    for step, outputs in kept.items():
        folder, record = steps / str(step), steps / f"{step}.json"
        record.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        steps.mkdir(exist_ok=True)
        (made / str(step)).replace(folder)
        write(record, Contents(outputs=outputs), steps.name)


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "cpu"


def _compute(
    stage: str,
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
    asked = {*_kept(stage, cfg), *(int(p.name) for p in steps.glob("*") if p.is_dir())}
    module, _, function = STAGES[stage].run.partition(":")
    # In the scratch folder, so that the next attempt finds and clears what a killed one has left.
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    started = time.time()
    try:
        run = getattr(importlib.import_module(module), function)
        paths = {name: value[0] for name, value in resolved.items()}
        with gpu.telemetry(stage) as drawn:
            if STAGES[stage].resumes:
                write_json(running, {"scratch": str(scratch.absolute())}, key)
                execution = {**cfg.get("execution", {}), "keep_steps": sorted(asked)}
                numbers = run({**cfg, "execution": execution}, paths, work, scratch)
            elif STAGES[stage].caches:
                numbers = run(dict(cfg), paths, work, store / ".cache")
            else:
                numbers = run(dict(cfg), paths, work)
        stamps = verify.stamps(work)
        outputs = content(work)
        if not outputs:
            raise UserError(
                "the stage wrote nothing", f"opd stage {stage}", "this is a bug, report it"
            )
        if STAGES[stage].network != "never":
            _same_as_before(stage, cfg, outputs, record)
        if complete(entry, record, Manifest) and read(record, Contents).outputs == outputs:
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
    made = Manifest(
        stage=stage,
        identity=key,
        cfg=dict(cfg),
        inputs=made_from(resolved, inputs),
        outputs=outputs,
        numbers=numbers or {},
        modules=_modules(stage, cfg),
        versions=versions(),
        host=platform.node(),
        device=_device(),
        gpu=drawn or None,
        started=stamp(started),
        seconds=round(time.time() - started, 2),
    )
    write(record, made, key)
    _store_steps(sorted(asked), scratch / "kept", steps)


def _same_as_before(
    stage: str, cfg: Mapping[str, Any], outputs: Mapping[str, str], record: Path
) -> None:
    """Raise ``UserError`` where what the hub has at a revision is not what it had there before.

    Weights are files of the hub. Tables are written here: by other versions they may come out as
    other bytes.
    """
    source = registry.source(stage, cfg)
    if not source.get("hub"):
        return
    before, _ = load(record, Manifest)
    # None the first time, and where it is damaged.
    if before is None or (stage != "fetch" and before.versions != versions()):
        return
    kept = before.outputs
    other = sorted(n for n in {*kept, *outputs} if kept.get(n) != outputs.get(n))
    if other:
        raise UserError(
            f"the hub has another {other[0]} at {source['revision']} than it had before",
            f"hub: {source['hub']}",
            f"nothing was taken; if the new one is right, remove {record} and start again",
        )


def _modules(stage: str, cfg: Mapping[str, Any]) -> dict[str, str]:
    """Those of the code that the settings name; none where it has been edited while a job was
    queued, or where the settings are of other code."""
    return modules(stage) if "code" in cfg and cfg["code"] == code_digest(stage) else {}


def _adopted(folder: Path, stage: str, cfg: Mapping[str, Any]) -> str | None:
    """The identity of what was adopted in this folder for these settings, if anything was."""
    made, _ = load(folder / "manifest.json", Manifest)
    return made.identity if made and stands_for(made, stage, cfg) else None


def run_stage(
    stage: str,
    cfg: Mapping[str, Any],
    inputs: Sequence[Path],
    output: Path,
    copies: Mapping[str, Path],
    store: Path,
) -> bool:
    """Run one stage, or link what the store already has of it.

    ``cfg["inputs"]`` names the ``inputs`` in their order: each is the ``digest.json`` of another
    artifact or a plain file. ``output`` is the artifact's ``digest.json``; ``copies`` maps payload
    files to further places. Work happens in a temporary folder and is renamed when complete, so a
    stage that fails or is killed leaves nothing that could be taken for its output. A training run
    is complete with the steps in execution.keep_steps: see ``opd.stages.keep``.
    Returns whether the stage was computed (False: found complete in the store).
    """
    folder = output.parent
    adopted = _adopted(folder, stage, cfg)
    # What was adopted may be asked for without inputs: it needs none.
    names = [] if adopted and not inputs else list(cfg.get("inputs", []))
    if len(names) != len(inputs):
        raise UserError(
            f"{len(inputs)} inputs for the names {names}",
            f"opd stage {stage}",
            "give one path per name",
        )
    resolved = {
        name: resolve_input(path, STAGES[stage].looks)
        for name, path in zip(names, inputs, strict=True)
    }
    key = adopted or identity(stage, cfg, {name: value[1] for name, value in resolved.items()})
    entry, record, scratch = store / key, store / f"{key}.json", store / ".scratch" / key
    if adopted and not complete(entry, record, Manifest):
        raise UserError(
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
                # A copy that followed links has a folder here.
                for left in (path, *path.parent.glob(f".{path.name}.*.partial")):
                    remove(left)
            steps = steps_of(entry)
            there = complete(entry, record, Manifest) and all(
                adopted or complete(steps / str(step), steps / f"{step}.json")
                for step in _kept(stage, cfg)
            )
            computed = STAGES[stage].looks or not there
            if computed:
                with gpu.lease(stage, cfg), lock.watched(scratch, str(folder)):
                    _compute(stage, cfg, key, resolved, inputs, store, folder, scratch)
            # Room for what follows. The lock stays until all is done.
            for path in scratch.iterdir():
                if path.name != lock.OWNER:
                    remove(path)
            # The entry may have been made for another results folder: the inputs are this one's.
            # The settings are the same but for the code of what was adopted, which did not make it.
            made = read(record, Manifest)
            own = made_from(resolved, inputs) or made.inputs
            cfg_now = dict(cfg) if adopted else made.cfg
            publish(made.model_copy(update={"inputs": own, "cfg": cfg_now}), entry, output, copies)
        except BaseException:
            if not STAGES[stage].resumes:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(scratch, ignore_errors=True)
    return computed

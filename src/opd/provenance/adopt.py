"""``opd adopt PATH --as RECIPE``: a checkpoint or rollouts from elsewhere in a recipe's place.

What was adopted lies in the store under an identity of its own kind: a digest of the settings that
it stands for and of its content, since nothing here knows how it was made. It stays, whatever
becomes of its inputs or of the code, until the recipe is edited or its folder is removed.
"""

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import (
    content,
    digest,
    files_below,
    input_files,
    parse_json,
    read_json,
    remove,
)
from opd.data.schemas import PROMPTS
from opd.losses.schemas import METRICS
from opd.models import fetch
from opd.models.schemas import GENERATIONS
from opd.stages import identity, lock, naming, run
from opd.stages.artifact import Artifact
from opd.stages.records import Manifest, State, load, write
from opd.stages.registry import STAGES

METRICS_FILE = "metrics.parquet"
HEADER_BYTES = 100_000_000  # what safetensors allows


def recipe(name: str, artifacts: Mapping[str, Artifact], results: str) -> Artifact:
    """The model or generation of results/``results`` that a name means (``naming.single``). Raises
    ``UserError`` where there is none, or more than one (one for each seed)."""
    known = [f for f in artifacts if f.startswith(("models/", "generations/"))]
    return artifacts[naming.single(name, known, results, "--as")]


def adopt(source: Path, artifact: Artifact, results: Path, store: Path) -> Path:
    """Put what lies at ``source`` (a checkpoint's folder; or rollouts, parquet or lines of JSON)
    into the place of an artifact below ``results`` (results/NAME), and return its folder. Raises
    ``UserError`` where it is not what such a recipe makes, and where the stage has been run."""
    folder = results / artifact.folder
    before, damage = load(folder / "manifest.json", Manifest)
    if not (before.adopted if before else damage and damage.state == State.MISSING):
        raise UserError("it has been made already", str(folder), "remove this folder first")
    paths = [
        Path(x) if Path(x).is_absolute() else results / x / "digest.json" for x in artifact.inputs
    ]
    inputs = dict(zip(artifact.cfg["inputs"], paths, strict=True))
    # Those of the recipe's inputs that have been made, as they are now.
    used = {name: run.resolve_input(path)[1] for name, path in inputs.items() if path.exists()}
    # As a stage has: the next attempt, or gc, clears what a killed one has left.
    scratch = store / ".scratch" / digest(["adopt", artifact.folder])
    with lock.alone(scratch), ExitStack() as clear:
        clear.callback(remove, scratch)
        work = scratch / "work"
        remove(work)
        work.mkdir()
        if artifact.stage == "generate":
            numbers = _rollouts(source, inputs["prompts"].parent, work)
        else:
            numbers = _checkpoint(source, artifact.stage, work)
        outputs = content(work)
        key = identity.adopted_identity(artifact.stage, artifact.cfg, outputs)
        entry = store / key
        remove(entry)
        work.replace(entry)
    made = Manifest(
        stage=artifact.stage,
        identity=key,
        cfg=artifact.cfg,
        inputs=used,
        outputs=outputs,
        numbers=numbers,
        host=platform.node(),
        device="not known",
        started=run.stamp(time.time()),
        adopted=str(source.absolute()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write(store / f"{key}.json", made)
    run.publish(made, entry, folder / "digest.json")
    return folder


def _checkpoint(source: Path, stage: str, out: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise UserError("no such folder", str(source), "give the folder of a checkpoint")
    fetch.copy_folder(source, out)
    weights = sorted(out.glob("*.safetensors"))
    if not weights or not (out / "config.json").is_file():
        remedy = "save it with safe_serialization: pickled weights are never loaded"
        raise UserError("no config.json with .safetensors weights", str(source), remedy)
    for file in weights:
        _check_safetensors(file, source / file.name)
    index = out / "model.safetensors.index.json"
    listed = read_json(index) if index.is_file() else {"weight_map": {}}
    shards = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(shards, dict):
        raise UserError("it has no weight_map", str(source / index.name), "copy it again")
    missing = sorted(name for name in map(str, shards.values()) if not (out / name).is_file())
    if missing:
        raise UserError(f"{missing[0]} is missing", str(source / index.name), "copy all files")
    config = read_json(out / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError("it names no model_type", str(source / "config.json"), "save it again")
    if stage != "fetch":
        _check_tokenizer(out, source)
    if STAGES[stage].trains:
        # What training logs stands beside its weights; of what is adopted nothing may be known.
        logged = input_files(source).get(METRICS_FILE)
        rows = tables.read(logged, METRICS) if logged else []
        tables.write(out / METRICS_FILE, rows, METRICS)
    return {"bytes": sum(file.stat().st_size for file in files_below(out).values())}


def _check_safetensors(file: Path, source: Path) -> None:
    """Hold a file to the format: the length of its header, the header, tensors up to its end."""
    length = file.stat().st_size
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            fits = 0 < size <= min(length - 8, HEADER_BYTES)
            header = parse_json(opened.read(size)) if fits else {}
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max(tensor["data_offsets"][1] for tensor in tensors)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        end = -1
    if end != length - 8 - size:
        raise UserError("no complete safetensors file", str(source), "copy it again")


def _check_tokenizer(out: Path, source: Path) -> None:
    path = out / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else None
    tokens = (out / "tokenizer.json").is_file() or list(out.glob("*.model"))
    if not isinstance(settings, dict) or not tokens:
        raise UserError("no tokenizer beside the weights", str(source), "save it there, too")
    if "chat_template" not in settings and not (out / "chat_template.jinja").is_file():
        remedy = "give it the one it was made with"
        raise UserError("its tokenizer has no chat template", str(source), remedy)


def _rollouts(source: Path, prompts: Path, out: Path) -> dict[str, Any]:
    """``prompts`` is the artifact that rollouts should be of, where it has been made."""
    name = "generations.parquet"
    file = input_files(source).get(name, source / name) if source.is_dir() else source
    lines = file.suffix in (".jsonl", ".json")
    rows = [*_json_lines(file)] if lines else tables.read(file, GENERATIONS).to_pylist()
    path, target = prompts / "payload" / "prompts.parquet", out / "generations.parquet"
    known = tables.read(path, PROMPTS).to_pylist() if path.is_file() else []
    turns = {row["id"]: row["turns"] for row in known}
    # The probes put a prompt before its rollout as the row has it.
    rows = [{**row, "turns": row.get("turns") or turns.get(row.get("prompt_id"))} for row in rows]
    tables.write(target, rows, GENERATIONS)
    ids = set(tables.read(target, GENERATIONS)["prompt_id"].to_pylist())
    if not ids:
        raise UserError("there are no rollouts", str(file), "give a file that has some")
    if strange := sorted(ids - (turns.keys() if path.is_file() else ids)):
        remedy = "give rollouts of the prompts that the recipe names"
        raise UserError(f"'{strange[0]}' is none of the prompts in {path}", str(file), remedy)
    return {"prompts": len(ids), "generations": len(rows)}


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield parse_json(line)
    except (OSError, ValueError) as error:
        raise UserError(f"not JSON ({error})", f"{file}: line {number}", "mend it") from error

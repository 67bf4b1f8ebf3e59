"""``opd adopt PATH --as RECIPE``: a checkpoint or rollouts from elsewhere in a recipe's place, of
this project or as TRL, verl and the authors of Rethinking OPD write them.

What was adopted lies in the store under an identity of its own kind: a digest of the settings that
it stands for and of its content, since nothing here knows how it was made. It stays, whatever
becomes of its inputs or of the code, until the recipe is edited or its folder is removed.
"""

import platform
import re
import shutil
import time
from collections.abc import Mapping
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
from opd.core.security import refuse_names
from opd.data.schemas import PROMPTS
from opd.losses.schemas import METRICS
from opd.models import fetch
from opd.models.schemas import GENERATIONS
from opd.provenance import rollout_files, training_logs
from opd.stages import identity, lock, naming, run
from opd.stages.artifact import Artifact
from opd.stages.records import Manifest, State, load, write
from opd.stages.registry import STAGES

METRICS_FILE, STATE_FILE = "metrics.parquet", "trainer_state.json"
# Where the files of a model lie in what is named: as they are, or below a step of verl.
PLACES = ("", "huggingface", "actor/huggingface")
# A checkpoint that a trainer leaves below the folder of its run.
CHECKPOINT = re.compile(r"(?:checkpoint-|global_step_)(\d+)")
HEADER_BYTES = 100_000_000  # what safetensors allows


def recipe(name: str, artifacts: Mapping[str, Artifact], results: str) -> Artifact:
    """The model or generation of results/``results`` that a name means (``naming.single``). Raises
    ``UserError`` where there is none, or more than one (one for each seed)."""
    known = [f for f in artifacts if f.startswith(("models/", "generations/"))]
    return artifacts[naming.single(name, known, results, "--as")]


def adopt(
    source: Path, artifact: Artifact, results: Path, store: Path, metrics: Path | None = None
) -> Path:
    """Put what lies at ``source`` (a checkpoint's folder; or rollouts, parquet or lines of JSON)
    into the place of an artifact below ``results`` (results/NAME), and return its folder.
    ``metrics`` is what its training logged (``training_logs.read``), where that does not lie beside
    the checkpoint. Raises ``UserError`` where it is not what such a recipe makes, and where the
    stage has been run."""
    if metrics and not STAGES[artifact.stage].trains:
        reason = f"{artifact.folder} is made by no training, so it has no metrics"
        raise UserError(reason, "--metrics", "leave it out")
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
            payloads = {name: path.parent / "payload" for name, path in inputs.items()}
            numbers = _rollouts(source, artifact.cfg, payloads, work)
        else:
            numbers = _checkpoint(source, artifact.stage, metrics, work)
        outputs = content(work)
        key = identity.adopted_identity(artifact.stage, artifact.cfg, outputs)
        entry, own = store / key, store / ".scratch" / key
        # Until it is linked, what keeps gc from it is the lock of its identity.
        clear.enter_context(lock.alone(own))
        clear.callback(remove, own)
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


def _checkpoint(source: Path, stage: str, metrics: Path | None, out: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise UserError("no such folder", str(source), "give the folder of a checkpoint")
    folder = _model_folder(source)
    # What training logs stands beside its weights; it is read before these are copied.
    numbers = _metrics(source, metrics, out) if STAGES[stage].trains else {}
    _copy(folder, out)
    weights = sorted(out.glob("*.safetensors"))
    if not weights or not (out / "config.json").is_file():
        remedy = "save it with safe_serialization: pickled weights are never loaded"
        raise UserError("no config.json with .safetensors weights", str(folder), remedy)
    for file in weights:
        _check_safetensors(file, folder / file.name)
    index = out / "model.safetensors.index.json"
    listed = read_json(index) if index.is_file() else {"weight_map": {}}
    shards = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(shards, dict):
        raise UserError("it has no weight_map", str(folder / index.name), "copy it again")
    missing = sorted(name for name in map(str, shards.values()) if not (out / name).is_file())
    if missing:
        raise UserError(f"{missing[0]} is missing", str(folder / index.name), "copy all files")
    config = read_json(out / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError("it names no model_type", str(folder / "config.json"), "save it again")
    if stage != "fetch":
        _check_tokenizer(out, folder)
    return {"bytes": sum(file.stat().st_size for file in files_below(out).values()), **numbers}


def _model_folder(source: Path) -> Path:
    """Where the files of a model lie at ``source``. Raises ``UserError`` where a trainer has left
    something else there."""
    named = [source / place for place in PLACES if (source / place / "config.json").is_file()]
    folder = named[0] if named else source
    if list(folder.glob("*.safetensors")) and named:
        return folder
    # verl saves configuration and tokenizer in huggingface/, and weights beside it by process
    # (verl/utils/checkpoint/fsdp_checkpoint_manager.py). These are pickled tensors of the torch
    # that wrote them, and verl's own merger turns off weights_only to read them.
    for place in (folder, folder.parent):
        if list(place.glob("model_world_size_*_rank_*.pt")):
            command = f"python -m verl.model_merger merge --backend fsdp --local_dir {place}"
            remedy = f"run {command} --target_dir MERGED where verl is, and adopt MERGED"
            raise UserError(
                "it has its weights in pickled shards of FSDP alone", str(place), remedy
            )
    if (source / "adapter_config.json").is_file():
        remedy = "save what merge_and_unload of PEFT returns, and adopt that"
        raise UserError("it is an adapter, without the model that it is for", str(source), remedy)
    if steps := _checkpoints(source):
        remedy = f"name one of them, such as {source / steps[-1]}"
        raise UserError("it holds checkpoints of a run, and no model itself", str(source), remedy)
    return folder


def _checkpoints(folder: Path) -> list[str]:
    """The names of the checkpoints below the folder of a run, by step."""
    found = [(match, f.name) for f in folder.iterdir() if (match := CHECKPOINT.fullmatch(f.name))]
    return [name for _, name in sorted((int(match[1]), name) for match, name in found)]


def _copy(folder: Path, out: Path) -> None:
    """Copy a model as ``fetch.copy_folder`` does, without the checkpoints below it."""
    refuse_names(folder)
    left_out = {fetch.UNPACKED, *_checkpoints(folder)}
    for name, file in input_files(folder).items():
        path = Path(name)
        if left_out.isdisjoint(path.parts) and any(map(path.match, fetch.PATTERNS)):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / name)


def _metrics(source: Path, given: Path | None, out: Path) -> dict[str, Any]:
    """Write what training has logged, of which nothing may be known: the file that is given, ours
    beside the weights, or TRL's there, in the last checkpoint below it if it has none itself."""
    files = input_files(source)
    names = [METRICS_FILE, STATE_FILE, *(f"{x}/{STATE_FILE}" for x in _checkpoints(source)[::-1])]
    path = given or next((files[name] for name in names if name in files), None)
    rows = training_logs.read(path) if path else []
    tables.write(out / METRICS_FILE, rows, METRICS)
    return {"metrics_from": str(path.absolute())} if path else {}


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


def _rollouts(
    source: Path, cfg: Mapping[str, Any], inputs: Mapping[str, Path], out: Path
) -> dict[str, Any]:
    """cfg: the settings of the recipe; ``inputs``: its payloads, model and prompts, which rollouts
    should be of, where they have been made."""
    file = _rollout_file(source)
    path, target = inputs["prompts"] / "prompts.parquet", out / "generations.parquet"
    known = tables.read(path, PROMPTS).to_pylist() if path.is_file() else []
    rows = rollout_files.lines_or_table(file)
    numbers: dict[str, Any] = {}
    if rollout_files.of_another(rows, str(file)):
        for name, needed in (("prompts", path), ("model", inputs["model"] / "config.json")):
            if not needed.is_file():
                reason = f"its rows have texts alone, and the recipe's {name} is not there"
                remedy = f"make or adopt {needed.parent.parent} first"
                raise UserError(reason, str(file), remedy)
        rows = rollout_files.generations(rows, known, inputs["model"], cfg, str(file))
        numbers = {"tokens_of_texts": True}
    elif file.suffix == ".parquet":
        rows = tables.read(file, GENERATIONS).to_pylist()
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
    return {"prompts": len(ids), "generations": len(rows), **numbers}


def _rollout_file(source: Path) -> Path:
    """The file of rollouts at ``source``: itself, generations.parquet in it, or the only one there.
    Files of several steps are of as many models."""
    if not source.is_dir():
        return source
    files = input_files(source)
    if "generations.parquet" in files:
        return files["generations.parquet"]
    tables_there = sorted(name for name in files if Path(name).suffix in (".parquet", ".jsonl"))
    if len(tables_there) != 1:
        remedy = f"name one, such as {source / tables_there[-1]}" if tables_there else "name a file"
        raise UserError(f"it holds {len(tables_there)} files of rollouts", str(source), remedy)
    return files[tables_there[0]]

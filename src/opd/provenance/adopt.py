"""``opd adopt PATH --as RECIPE``: a checkpoint or rollouts from elsewhere in a recipe's place.

What was adopted is a managed artifact: in the store, under an identity of its own kind (the
settings that it stands for and its content, since nothing here knows how it was made), marked in
its records. It stays, whatever becomes of its inputs or of the code, until the recipe is edited or
its folder is removed.
"""

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import content, files_below, read_json, remove
from opd.data.schemas import PROMPTS
from opd.losses.schemas import METRICS
from opd.models.fetch import PATTERNS
from opd.models.schemas import GENERATIONS
from opd.recipes.base import unknown
from opd.stages import identity, run
from opd.stages.artifact import Artifact
from opd.stages.records import Manifest, State, Used, load, write
from opd.stages.registry import STAGES

METRICS_FILE = "metrics.parquet"


def recipe(name: str, artifacts: Mapping[str, Artifact]) -> Artifact:
    """The model or generation that a config's artifact is called by: NAME, NAME/sSEED or its
    folder. Raises ``UserError`` where there is none, or more than one (one for each seed)."""
    known = [f for f in artifacts if f.startswith(("models/", "generations/"))]
    named = [f for f in known if f"/{name}/" in f"/{f}/"]
    if not named:
        raise unknown(name, [f.split("/", 1)[1] for f in known], "--as", "model or generation")
    if len(named) > 1:
        raise UserError(f"'{name}' may be {', '.join(named)}", "--as", "give one of these")
    return artifacts[named[0]]


def adopt(source: Path, artifact: Artifact, results: Path, store: Path) -> Path:
    """Put what lies at ``source`` (a checkpoint's folder; or rollouts, parquet or lines of JSON)
    into the place of an artifact below ``results`` (results/NAME), and return its folder.

    Raises ``UserError`` where it is not what such a recipe makes, and where the stage has already
    been run: what was made is not replaced unseen.
    """
    folder = results / artifact.folder
    before, damage = load(folder / "manifest.json", Manifest)
    if not (before.adopted if before else damage and damage.state == State.MISSING):
        raise UserError("it has been made already", str(folder), "remove this folder first")
    store.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".adopt-", dir=store))
    try:
        if artifact.stage == "generate":
            numbers = _rollouts(source, _prompts(artifact, results), work)
        else:
            numbers = _checkpoint(source, artifact.stage, work)
        outputs = content(work)
        key = identity.adopted_identity(artifact.stage, artifact.cfg, outputs)
        entry = store / key
        remove(entry)
        work.chmod(0o755)
        work.replace(entry)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    made = Manifest(
        stage=artifact.stage,
        identity=key,
        cfg=artifact.cfg,
        inputs=_inputs(artifact, results),
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


def _named(artifact: Artifact, results: Path) -> dict[str, Path]:
    """The inputs of a recipe: name -> digest.json, or plain file."""
    paths = [
        Path(path) if Path(path).is_absolute() else results / path / "digest.json"
        for path in artifact.inputs
    ]
    return dict(zip(artifact.cfg["inputs"], paths, strict=True))


def _inputs(artifact: Artifact, results: Path) -> dict[str, Used]:
    """Those of the recipe's inputs that are there, as they are now."""
    there = {name: path for name, path in _named(artifact, results).items() if path.exists()}
    resolved = {name: run.resolve_input(path) for name, path in there.items()}
    return run.used_inputs(resolved, list(there.values()))


def _prompts(artifact: Artifact, results: Path) -> Path | None:
    """The prompts that rollouts should be of, where they have been made."""
    path = _named(artifact, results)["prompts"].parent / "payload" / "prompts.parquet"
    return path if path.is_file() else None


# What is taken, and what is refused


def _checkpoint(source: Path, stage: str, out: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise UserError("no such folder", str(source), "give the folder of a checkpoint")
    for name, file in files_below(source).items():
        if any(file.match(pattern) for pattern in PATTERNS):
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    weights = sorted(out.glob("*.safetensors"))
    if not weights or not (out / "config.json").is_file():
        remedy = "save it with safe_serialization: pickled weights are never loaded"
        raise UserError("no config.json with .safetensors weights", str(source), remedy)
    for file in weights:
        _safetensors(file, source / file.name)
    _shards(out, source)
    config = read_json(out / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(
            "it names no model_type", str(source / "config.json"), "save the model again"
        )
    if stage != "fetch":
        _tokenizer(out, source)
    if STAGES[stage].trains:
        # What training logs stands beside its weights; of what is adopted nothing may be known.
        logged = source / METRICS_FILE
        rows = tables.read(logged, METRICS) if logged.is_file() else []
        tables.write(out / METRICS_FILE, rows, METRICS)
    return {"bytes": sum(file.stat().st_size for file in files_below(out).values())}


def _safetensors(file: Path, source: Path) -> None:
    """Hold a file to the format: the length of its header, the header, tensors up to its end."""
    length = file.stat().st_size
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size)) if 0 < size <= length - 8 else {}
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max(tensor["data_offsets"][1] for tensor in tensors)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        end = -1
    if end != length - 8 - size:
        raise UserError("no complete safetensors file", str(source), "copy it again")


def _shards(out: Path, source: Path) -> None:
    index = out / "model.safetensors.index.json"
    if index.is_file():
        named = {str(name) for name in read_json(index).get("weight_map", {}).values()}
        gone = sorted(name for name in named if not (out / name).is_file())
        if gone:
            raise UserError(
                f"{gone[0]} is missing", str(source / index.name), "copy all of its files"
            )


def _tokenizer(out: Path, source: Path) -> None:
    path = out / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else None
    if settings is None or not ((out / "tokenizer.json").is_file() or list(out.glob("*.model"))):
        raise UserError(
            "no tokenizer beside the weights", str(source), "save the tokenizer there, too"
        )
    if "chat_template" not in settings and not (out / "chat_template.jinja").is_file():
        raise UserError(
            "its tokenizer has no chat template", str(source), "give it the one it was made with"
        )


def _rollouts(source: Path, prompts: Path | None, out: Path) -> dict[str, Any]:
    file = source / "generations.parquet" if source.is_dir() else source
    if file.suffix in (".jsonl", ".json"):
        rows: Any = [*_json_lines(file)]
    else:
        rows = tables.read(file, GENERATIONS)
    target = out / "generations.parquet"
    tables.write(target, rows, GENERATIONS)
    ids = set(tables.read(target, GENERATIONS)["prompt_id"].to_pylist())
    if not ids:
        raise UserError("there are no rollouts", str(file), "give a file that has some")
    if prompts:
        strange = sorted(ids - {*tables.read(prompts, PROMPTS)["id"].to_pylist()})
        if strange:
            remedy = "give rollouts of the prompts that the recipe names"
            raise UserError(
                f"'{strange[0]}' is none of the prompts in {prompts}", str(file), remedy
            )
    return {"prompts": len(ids), "generations": len(rows)}


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise UserError(
            f"it cannot be read ({error.strerror})", str(file), "mend the path"
        ) from error
    for at, line in enumerate(lines):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"not JSON ({error})", f"{file}: line {at + 1}", "mend it"
                ) from error

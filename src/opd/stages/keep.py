"""A model as it was after a step of its training, as an artifact of its own."""

from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import files_below, link_files, made_content
from opd.stages.records import Contents, load


def steps_of(entry: Path) -> Path:
    """Where the kept steps of the training run with this entry of the store lie: STEP/ with the
    weights (empty where the run ended before) and STEP.json with their digests."""
    return entry.with_name(f"{entry.name}.steps")


def complete(folder: Path, record: Path, kind: type[Contents] = Contents) -> bool:
    """Whether a folder has exactly the content that its record (of this kind) says. A record that
    cannot be read says none."""
    made, _ = load(record, kind)
    return made is not None and folder.is_dir() and made_content(folder) == made.outputs


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``keep``: the weights of step cfg.step of the run that made the input ``model``, with
    configuration and tokenizer; hard links where the file system has them. Raises ``UserError``
    where the step was not kept, and where the run ended before it."""
    step, steps = cfg["step"], steps_of(inputs["model"].resolve())
    folder = steps / str(step)
    if not complete(folder, steps / f"{step}.json"):
        raise UserError(
            f"step {step} was not kept, or is damaged",
            str(folder),
            f"name it in keep_steps, remove {inputs['model'].parent}/digest.json, run again",
        )
    if not files_below(folder):
        raise UserError(f"the run ended before step {step}", str(folder), "name an earlier step")
    link_files(folder, out)
    return {"step": step}

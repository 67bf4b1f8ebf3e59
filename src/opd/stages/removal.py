"""The weights of kept steps go once all that reads them is made (``keep: until_evaluated``).

A kept step lies in its run's entry of the store and in that of its artifact, as hard links. In both
each file of weights is replaced by NAME.removed with its sha256 (``opd.stages.check``): records,
configuration and tokenizer stay, and so does what is known of the weights.

``python -m opd.stages.removal FOLDER STORE`` releases the kept step in a folder of the results.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import files_below, link_files, made_content, remove, replacing
from opd.stages import check, lock
from opd.stages.check import LEFT_OUT, REMOVED
from opd.stages.keep import steps_of
from opd.stages.records import Contents, Digest, Manifest, json_text, load, read, write_json

# Beside digest.json: nothing in these results needs the weights of this kept step any longer.
RELEASED = "released.json"


def kept_step(run: Path, step: int) -> Path:
    """The folder of a kept step in the store; ``run`` is its training run's entry, or a link to
    that."""
    return steps_of(run.resolve()) / str(step)


def accounted(folder: Path, record: Path) -> bool:
    """Whether a folder has the content that its record says, but for weights that were removed."""
    made, _ = load(record, Contents)
    if made is None or not folder.is_dir():
        return False
    return not [*check.files(made.outputs, made_content(folder))]


def release(folder: Path, store: Path) -> bool:
    """Note that nothing in its results needs the kept step in ``folder`` (results/NAME/models/...)
    any longer, and remove its weights unless other results that link them do. Returns whether they
    are gone. What was adopted stays. Killed at any point, it does the rest when it runs again."""
    made, origin = read(folder / "digest.json", Digest), read(folder / "manifest.json", Manifest)
    payload = folder / "payload"
    scratch = store / ".scratch" / made.identity
    # Two results that release the same at a time: the second sees what the first has noted.
    with lock.alone(scratch):
        links = folder.parents[3].glob("*/models/*/*/payload")
        users = {link.parent for link in links if link.resolve() == payload.resolve()}
        needed = [user for user in users - {folder} if not _released(user, made.identity)]
        removed = not needed and not made.adopted
        if removed:
            run = store / origin.inputs["model"].identity
            _remove(made, [kept_step(run, origin.cfg["step"]), payload])
        write_json(folder / RELEASED, {"identity": made.identity}, made.identity)
        remove(scratch)
    return removed


def _released(folder: Path, identity: str) -> bool:
    """Whether the results of this kept step have released it, as it is now."""
    record = folder / RELEASED
    return record.is_file() and record.read_text() == json_text({"identity": identity})


def _remove(made: Contents, places: Iterable[Path]) -> None:
    """Replace weights by marks, in every place before the first file goes. Weights that are gone
    without a mark, nobody knows why, get none."""
    there = [place for place in places if place.is_dir()]
    weights = {n: sha for n, sha in made.outputs.items() if n.endswith(check.WEIGHTS)}
    for name, sha256 in weights.items():
        if not any((place / x).exists() for place in there for x in (name, f"{name}{REMOVED}")):
            continue
        for place in there:
            with replacing(place / f"{name}{REMOVED}") as mark:
                mark.write_text(check.mark(sha256))
        for place in there:
            (place / name).unlink(missing_ok=True)


def ask_again(folder: Path, step: Path) -> None:
    """Have the next training run keep a step again that was removed: its artifact is in ``folder``
    of the results, ``step`` is its folder in the store. The marks in the artifact stay until the
    weights are back, so what is given up here is mended by the next ``release``."""
    (folder / RELEASED).unlink(missing_ok=True)
    for mark in step.glob(f"*{REMOVED}"):
        mark.unlink()


def _removed(folder: Path) -> list[str]:
    """The files below a folder that were removed."""
    files = files_below(folder)
    marked = [name.removesuffix(REMOVED) for name in files if name.endswith(REMOVED)]
    return [name for name in marked if name not in files]


def refuse(payload: Path) -> None:
    """Raise ``UserError`` where weights that a stage is to read were removed."""
    if _removed(payload):
        raise UserError(
            "its weights were removed when all that read them was made",
            str(payload),
            "run the same snakemake command again: it trains the run again that has them",
        )


def refuse_left_out(payload: Path) -> None:
    """Raise ``UserError`` where weights or texts that a stage is to read were left out of the crate
    that its results were unpacked from."""
    if left_out := [name for name in files_below(payload) if name.endswith(LEFT_OUT)]:
        raise UserError(
            f"{left_out[0].removesuffix(LEFT_OUT)} was left out of the crate that this is from",
            str(payload),
            "export it with --full, or remove the digest.json beside it to have it made again",
        )


def is_removed(step: Path) -> bool:
    """Whether nothing but removed weights is missing in the folder of a kept step."""
    return bool(_removed(step)) and accounted(step, step.with_name(f"{step.name}.json"))


def link_rest(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """In the place of stage ``keep`` where the weights of the step were removed: what is left of
    it, and the marks."""
    link_files(kept_step(inputs["model"], cfg["step"]), out)
    return {"step": cfg["step"]}


def as_made(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Name -> sha256 of the ``files`` below a folder, and of those that were removed."""
    removed = {name: (folder / f"{name}{REMOVED}").read_text().strip() for name in _removed(folder)}
    return {name: sha for name, sha in files.items() if not name.endswith(REMOVED)} | removed


if __name__ == "__main__":
    try:
        gone = release(Path(sys.argv[1]), Path(sys.argv[2]))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print("removed" if gone else "kept: it was adopted, or other results need it")

"""``opd export``: a results folder, or what lies behind a part of it, as one RO-Crate.

What is packed keeps its place: results/NAME with the digest.json and manifest.json of each
artifact, payloads as plain files, logs, and the workflow that made it all. What that means to a
machine stands in ro-crate-metadata.json (``opd.provenance.crate``).
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import opd
from opd.core.errors import UserError
from opd.core.files import file_digest, replacing
from opd.core.text import size
from opd.plan.state import target_folders
from opd.provenance.crate import File, LeftOut, Stage, metadata, readme
from opd.stages import check, on_disk
from opd.stages.fresh import read_plan
from opd.stages.on_disk import Made
from opd.stages.records import Manifest, read
from opd.stages.registry import STAGES

# Others' work, to be had where it came from; weights and files above this size are left out, too.

WEIGHTS = ".safetensors"
LARGEST_BYTES = 50_000_000
# What belongs to the workflow besides the package, below the folder of the Snakefile.
WORKFLOW = (
    *("Snakefile", "pyproject.toml", "LICENSE", "CITATION.cff"),
    *("workflow", "config", "envs", "slurm"),
)
SHOWN = (".csv", ".html", ".json", ".md", ".png", ".svg")


def export(
    results: Path,
    targets: Sequence[str],
    out: Path,
    full: bool = False,
    agent: str | None = None,
    workflow: Path = Path(),
) -> Iterator[str]:
    """Write a crate of a results folder (results/NAME), or of what ``targets`` (figures, tables,
    pages, folders) were made from; lines to print.

    ``out`` is a zip file, or a folder that does not exist yet. The same results give the same
    bytes. ``full`` packs weights, fetched objects and large files, too. ``agent`` is who ran it all
    ("NAME <URL>"); nobody is named if not given. ``workflow`` is the folder of the Snakefile.
    Raises ``UserError`` where there is nothing to pack, where something is not as it was made, and
    where ``out`` exists.
    """
    if out.exists():
        raise UserError("it is there already", str(out), "remove it, or name another")
    root = results.resolve()
    stages = gather(root, targets, full)
    code = list(sources(workflow))
    beside = [root / name for name in ("config.yaml", "plan.json")]
    extra = [_file(f"{_place(root)}/{path.name}", path) for path in beside if path.is_file()]

    left_out = [file for stage in stages for file in stage.left_out]
    described = metadata(root, stages, code, extra, agent, workflow, complete=not targets)
    texts = {"ro-crate-metadata.json": described, "README.md": readme(root.name, targets, left_out)}
    files = {file.path: file.source for file in [*code, *extra, *_all(stages)]}
    yield from _summary(stages, left_out)
    write(out, files, texts)
    written = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    yield f"written: {out} ({size(sum(path.stat().st_size for path in written))})"


def gather(root: Path, targets: Sequence[str], full: bool) -> list[Stage]:
    """The artifacts of a results folder, or those behind some of it, sorted by folder."""
    folders = [f for f in on_disk.folders(root) if (root / f / "digest.json").is_file()]
    if not folders:
        raise UserError(
            "no finished artifact", str(root), "name results/NAME of a workflow that has run"
        )
    wanted = target_folders(targets, dict.fromkeys(folders)) if targets else folders  # type: ignore[arg-type]
    artifacts = sorted(on_disk.behind(Made(root, f) for f in wanted), key=lambda x: x.folder)
    plan = read_plan(root / "plan.json")[0] or {}
    wrong = []
    for made in artifacts:
        if made.root != root:
            raise UserError(
                "something was made from what lies elsewhere",
                f"{made.folder}, beside {root}",
                "export the results folder that holds all of it",
            )
        findings = check.shown(made, plan.get(made.folder), () if full else (WEIGHTS,))
        wrong += [f"{made.folder}: {finding.text}" for finding in findings][:1]
    if wrong:
        more = f", and {len(wrong) - 1} more artifacts" if len(wrong) > 1 else ""
        raise UserError(
            f"{wrong[0]}{more}",
            str(root),
            "run the workflow again, or export a --target that is complete",
        )
    return [_stage(made, full) for made in artifacts]


def _stage(made: Made, full: bool) -> Stage:
    folder, place = made.path, f"{_place(made.root)}/{made.folder}"
    manifest = read(folder / "manifest.json", Manifest)
    if manifest.stage not in STAGES:
        remedy = "run the workflow again, or export it with that version"
        raise UserError(f"a version with a stage '{manifest.stage}' made it", str(folder), remedy)
    files = [_file(f"{place}/{name}", folder / name) for name in ("digest.json", "manifest.json")]
    left_out = []
    for name, sha256 in sorted(manifest.outputs.items()):
        path, source = f"{place}/payload/{name}", folder / "payload" / name
        bytes_there = source.stat().st_size
        reason = _why_left_out(manifest.stage, name, bytes_there)
        if reason and not full:
            left_out.append(LeftOut(path, sha256, bytes_there, reason))
        else:
            files.append(File(path, source, sha256))
    copies = [
        _file(f"{_place(made.root)}/{copy.relative_to(made.root).as_posix()}", copy)
        for copy in sorted(folder.parent.glob(f"{folder.name}.*"))
        if copy.suffix in SHOWN and copy.stem == folder.name and copy.is_file()
    ]
    for copy in copies:
        if copy.sha256 not in manifest.outputs.values():
            raise UserError(
                "the file is no copy of what the workflow made",
                str(copy.source),
                "remove it and run the workflow again",
            )
    records = [
        _file(f"{_place(made.root)}/{kind}/{made.folder}.{suffix}", record)
        for kind, suffix in (("logs", "log"), ("benchmarks", "tsv"))
        if (record := made.root / kind / f"{made.folder}.{suffix}").is_file()
    ]
    return Stage(made.folder, manifest, made.inputs, files, left_out, copies, records)


def _why_left_out(stage: str, name: str, bytes_there: int) -> str:
    if STAGES[stage].network == "always":
        return "it can be fetched where it came from"
    if name.endswith(WEIGHTS):
        return "weights"
    return f"larger than {size(LARGEST_BYTES)}" if bytes_there > LARGEST_BYTES else ""


def sources(workflow: Path) -> Iterator[File]:
    """The files of the workflow, and of the package that it calls."""
    if not (workflow / "Snakefile").is_file():
        raise UserError(
            "no Snakefile", str(workflow.absolute()), "run this where the workflow lies"
        )
    for name in WORKFLOW:
        path = workflow / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield _file(file.relative_to(workflow).as_posix(), file)
    package = Path(opd.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield _file(f"src/opd/{path.relative_to(package).as_posix()}", path)


def _file(path: str, source: Path) -> File:
    return File(path, source, file_digest(source))


def _place(root: Path) -> str:
    """Where the results lie in the crate: as manifests name them."""
    return f"results/{root.name}"


def _all(stages: Sequence[Stage]) -> list[File]:
    return [f for stage in stages for f in (*stage.files, *stage.copies, *stage.records)]


# Writing


def write(out: Path, files: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    """Write files and texts by their paths, in order and without times, as a zip file (a name that
    ends so) or a folder. ``out`` is complete or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, str(os.getpid())) as partial:
        if out.suffix == ".zip":
            _write_zip(partial, files, texts)
            return
        for name in sorted({*files, *texts}):
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in texts:
                target.write_text(texts[name])
            else:
                shutil.copyfile(files[name], target)


def _write_zip(path: Path, files: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        folders = {f"{f}/" for name in files for f in Path(name).parents if f != Path()}
        for name in sorted({*files, *texts, *folders}):
            entry = zipfile.ZipInfo(name)  # of 1980: without a time of its own
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            if name in folders:
                entry.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10  # also as DOS has it
                archive.writestr(entry, "")
            elif name in texts:
                archive.writestr(entry, texts[name])
            else:
                entry.file_size = files[name].stat().st_size
                with files[name].open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, 2**20)


def _summary(stages: Sequence[Stage], left_out: Sequence[LeftOut]) -> Iterator[str]:
    yield f"{len(stages)} artifacts, {len(_all(stages))} files of theirs"
    if left_out:
        total = size(sum(file.size for file in left_out))
        yield f"left out, but listed: {len(left_out)} files, {total} (--full packs them)"

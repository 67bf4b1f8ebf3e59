"""``opd export``: a results folder, or what lies behind a part of it, as one RO-Crate.

What is packed keeps its place: results/NAME with the records of each artifact, payloads as plain
files, logs, and the workflow. ro-crate-metadata.json describes it (``opd.provenance.crate``).
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import opd
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import file_digest, files_below, is_plain, replacing
from opd.core.html import render
from opd.core.text import size
from opd.plan.state import target_folders
from opd.provenance.crate import TEXTS, File, Packed, metadata
from opd.stages import check, on_disk
from opd.stages.check import LEFT_OUT, REMOVED, WEIGHTS
from opd.stages.fresh import read_plan
from opd.stages.on_disk import Made
from opd.stages.records import Manifest, read
from opd.stages.registry import STAGES

# Others' work, to be had where it came from; weights and files above this size are left out, too.
LARGEST_BYTES = 50_000_000
# What a small crate is without: texts, and vectors of texts. No figure, table or claim reads them.
TEXTUAL = {
    *("generations.parquet", "logprobs.parquet", "responses.parquet"),
    *("pairs.parquet", "embeddings.npy", "hashes.txt"),
}
# What belongs to the workflow besides the package, below the folder of the Snakefile.
WORKFLOW = (
    *("Snakefile", "pyproject.toml", "LICENSE", "CITATION.cff"),
    *("workflow", "config", "envs", "slurm"),
)
# 1980-01-01, which zip files count from: the time of every file of a crate, in seconds.
ZIP_BEGINS = 315_532_800
# Account, paths and setup lines of this site.
SITE = "slurm/site.yaml"
PAGES = package_file(__file__, "pages")


def export(
    results: Path,
    targets: Sequence[str],
    out: Path,
    full: bool = False,
    small: bool = False,
    agent: str | None = None,
    workflow: Path = Path(),
) -> Iterator[str]:
    """Write a crate of a results folder (results/NAME), or of what ``targets`` (figures, tables,
    pages, folders) were made from; lines to print. The same results give the same bytes.

    ``out`` is a .zip or .tar.xz file or a folder, ``agent`` ("NAME <URL>") who ran it all,
    ``workflow`` the folder of the Snakefile; ``full`` packs weights, fetched objects and large
    files, too, ``small`` leaves out what is ``TEXTUAL``. A mark with its digest lies in the place
    of what is left out (``opd.stages.check``). Raises ``UserError`` where nothing is to be packed,
    or not as it was made, and where ``out`` exists."""
    if out.exists():
        raise UserError("it is there already", str(out), "remove it, or name another")
    archives = [end for _, ends, _ in shutil.get_unpack_formats() for end in ends]
    if out.name.endswith(tuple(archives)) and not out.name.endswith((".zip", ".tar.xz")):
        remedy = "give a name that ends in .zip or .tar.xz, or that of a new folder"
        raise UserError("no such archive is written", f"--out {out}", remedy)
    root = Path(os.path.abspath(results))
    artifacts = gather(root, targets, full, small)
    code = list(sources(workflow))
    places = (root / "config.yaml", root / "plan.json")
    beside = [_file(root, path) for path in places if path.is_file()]
    own = [file for artifact in artifacts for file in (*artifact.files, *artifact.logs)]
    packed = [file for file in own if not file.left_out]
    left_out = [file for file in own if file.left_out]

    about = {"name": root.name, "targets": targets, "licences": TEXTS["licences"]}
    readme = render(PAGES, "crate.md.j2", left_out=left_out, **about)
    described = metadata(root, artifacts, code, beside, agent, workflow, complete=not targets)
    yield f"{len(artifacts)} artifacts, {len(packed)} files of theirs"
    if left_out:
        total = size(sum(file.size for file in left_out))
        yield f"left out, but listed: {len(left_out)} files, {total} (--full packs them)"
    with tempfile.TemporaryDirectory() as temporary:
        contents = {file.path: file.source for file in [*code, *beside, *packed]}
        texts = {"ro-crate-metadata.json": described, "README.md": readme}
        texts |= {f"{file.path}{LEFT_OUT}": check.mark(file.sha256) for file in left_out}
        for number, (name, text) in enumerate(texts.items()):
            contents[name] = Path(temporary, str(number))
            contents[name].write_text(text, encoding="utf-8")
        write(out, contents)
    written = sum(path.stat().st_size for path in files_below(out).values())
    yield f"written: {out} ({size(written)})"


def gather(root: Path, targets: Sequence[str], full: bool, small: bool = False) -> list[Packed]:
    """The artifacts of a results folder, or those behind some of it, sorted by folder."""
    folders = [f for f in on_disk.folders(root) if (root / f / "digest.json").is_file()]
    if not folders:
        remedy = "name results/NAME of a workflow that has run"
        raise UserError("no finished artifact", str(root), remedy)
    starts = target_folders(targets, folders, root.name) if targets else folders
    artifacts = sorted(on_disk.behind(Made(root, f) for f in starts), key=lambda x: x.folder)
    plan = read_plan(root / "plan.json")[0] or {}
    wrong = []
    for made in artifacts:
        if made.root != root:
            where = f"{made.folder}, beside {root}"
            remedy = "export the results folder that holds all of it"
            raise UserError("something was made from what lies elsewhere", where, remedy)
        findings = check.shown(made, plan.get(made.folder), () if full else (WEIGHTS,))
        wrong += [f"{made.folder}: {finding.text}" for finding in findings][:1]
    if wrong:
        more = f", and {len(wrong) - 1} more artifacts" if len(wrong) > 1 else ""
        remedy = "run the workflow again, or export a --target that is complete"
        raise UserError(f"{wrong[0]}{more}", str(root), remedy)
    return [_packed(made, full, small) for made in artifacts]


def _packed(made: Made, full: bool, small: bool) -> Packed:
    """What a crate holds of an artifact, whose copies are held to its files."""
    root, folder = made.root, made.path
    manifest = read(folder / "manifest.json", Manifest)
    if manifest.stage not in STAGES:
        remedy = "run the workflow again, or export it with that version"
        raise UserError(f"a version with a stage '{manifest.stage}' made it", str(folder), remedy)
    files = [_file(root, folder / name) for name in ("digest.json", "manifest.json")]
    for name, sha256 in sorted(manifest.outputs.items()):
        source = folder / "payload" / name
        marks = [Path(f"{source}{ending}") for ending in (REMOVED, LEFT_OUT)]
        if not source.exists() and (lying := [mark for mark in marks if mark.is_file()]):
            files += [_file(root, mark) for mark in lying]
            continue
        reason = "" if full else _why_left_out(manifest.stage, source, small)
        files.append(_file(root, source, sha256, reason))
    for name, path in made.copies.items():
        if not path.is_file():
            continue
        files.append(copy := _file(root, path))
        if copy.sha256 != manifest.outputs[name]:
            reason = "the file is no copy of what the workflow made"
            raise UserError(reason, str(path), "remove it and run the workflow again")
    # Earlier versions have a table of Snakemake's beside the log.
    logs = [root / "logs" / f"{made.folder}.log", root / "benchmarks" / f"{made.folder}.tsv"]
    there = [_file(root, path) for path in logs if path.is_file()]
    return Packed(made.folder, manifest, made.inputs, files, there)


def _why_left_out(stage: str, file: Path, small: bool) -> str:
    if STAGES[stage].network == "always":
        return "it can be fetched where it came from"
    if file.suffix == WEIGHTS:
        return "weights"
    if small and file.name in TEXTUAL:
        return "texts"
    return f"larger than {size(LARGEST_BYTES)}" if file.stat().st_size > LARGEST_BYTES else ""


def sources(workflow: Path) -> Iterator[File]:
    """The files of the workflow, and of the package that it calls."""
    if not (workflow / "Snakefile").is_file():
        raise UserError("no Snakefile", str(workflow.absolute()), "run this where it lies")
    private = _ignored(workflow)
    package = Path(opd.__file__).parent
    paths = [path for name in WORKFLOW for path in files_below(workflow / name).values()]
    places = {path.relative_to(workflow).as_posix(): path for path in paths}
    places |= {f"src/opd/{name}": path for name, path in files_below(package).items()}
    for place, path in places.items():
        if place not in private and "__pycache__" not in path.parts:
            real = Path(os.path.realpath(path))
            if not any(real.is_relative_to(os.path.realpath(x)) for x in (workflow, package)):
                raise _link(path)
            yield File(place, path, file_digest(path))


def _link(path: Path) -> UserError:
    remedy = "put a copy in its place, or remove it"
    return UserError("it is a link, or no file, and nothing elsewhere is packed", str(path), remedy)


def _ignored(workflow: Path) -> set[str]:
    """Files of the workflow that git ignores, as of this machine or user; always the site's."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "-z", *WORKFLOW]
    names = []
    with suppress(FileNotFoundError):  # git is not installed
        listed = subprocess.run(command, cwd=workflow, capture_output=True, text=True)
        names = listed.stdout.split("\0")
    # A crate may be unpacked in a folder that a clone ignores as a whole.
    return {SITE} if "Snakefile" in names else {SITE, *names}


def _file(root: Path, source: Path, sha256: str = "", left_out: str = "") -> File:
    """A file of the results, in its place in the crate: as manifests name it."""
    if not (is_plain(source) and on_disk.inside(root, source)):
        raise _link(source)
    place = f"results/{root.name}/{source.relative_to(root).as_posix()}"
    return File(place, source, sha256 or file_digest(source), left_out)


def write(out: Path, contents: Mapping[str, Path]) -> None:
    """Write files by their paths, in order and without times, as a zip or tar.xz file (a name
    that ends so) or a folder. ``out`` is complete or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, str(os.getpid())) as partial:
        if out.suffix == ".zip":
            _write_zip(partial, contents)
            return
        if out.name.endswith(".tar.xz"):
            _write_tar(partial, contents)
            return
        for name, source in contents.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            os.utime(target, (ZIP_BEGINS, ZIP_BEGINS))  # Snakemake goes by which is newer


def _write_zip(path: Path, contents: Mapping[str, Path]) -> None:
    folders = {f"{f}/" for name in contents for f in Path(name).parents if f != Path()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted({*contents, *folders}):
            if name in folders:
                archive.mkdir(name, 0o755)
                continue
            entry = zipfile.ZipInfo(name)  # of 1980: without a time of its own
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            entry.file_size = contents[name].stat().st_size
            with contents[name].open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 2**20)


def _write_tar(path: Path, contents: Mapping[str, Path]) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for name in sorted(contents):
            entry = tarfile.TarInfo(name)
            entry.mtime = ZIP_BEGINS
            entry.size = contents[name].stat().st_size
            with contents[name].open("rb") as source:
                archive.addfile(entry, source)

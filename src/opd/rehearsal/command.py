"""``opd rehearse``: the whole DAG of a config of any size, small, on this machine.

What is trained, sampled, measured, judged and drawn goes through the same rules, stages and
libraries; models and datasets of the hub are stand-ins that a hub of this machine serves.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from opd.core import marked
from opd.core.errors import UserError
from opd.core.files import digest, make_folder, replacing
from opd.core.security import visible
from opd.plan import hub_lock
from opd.plan.artifacts import data_files, data_path
from opd.recipes import resolve
from opd.recipes.models import Hub
from opd.rehearsal import cut, hub, page, stand_ins


def prepare(raw: dict[str, Any], root: Path, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Write a rehearsal (``raw``, as ``cut`` leaves a config) into a folder: ``config.yaml``, the
    stand-ins below ``hub`` and ``data``, and links to this checkout (``root``), in which Snakemake
    then runs.

    Returns the commits of its repositories, and a line for each of which nothing is known: it is
    left out of the hub, so that what needs it fails with one line. Raises ``UserError`` for a
    config that is wrong.
    """
    config = resolve.resolve(raw)
    make_folder(folder)
    lock = hub_lock.read(root / "config" / "hub.lock.yaml")
    commits: dict[str, str] = {}
    notes: list[str] = []
    taught: dict[str, Any] = {}
    for where, recipe in hub_lock.hub_objects(config).items():
        repository = hub_lock.key(recipe)
        commits[repository] = lock.get(repository) or hub.commit(recipe.id, recipe.revision or "")
        _at(raw, where)["revision"] = commits[repository]
        place = folder / "hub" / repository
        try:
            if isinstance(recipe, Hub):
                if not place.is_dir():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(place) as partial:
                        stand_ins.model(recipe.id, partial, taught, seed=len(commits))
            else:
                given = recipe.model_dump(exclude_none=True)
                stand_ins.dataset(recipe.id, given, place)
        except UserError as unknown:
            notes.append(str(unknown))
    for where, path in data_files(config).items():
        source = _at(raw, where, -1)
        source[where.rpartition(".")[2]] = _own(Path(data_path(path, where)), folder)
        if where.endswith(".file"):
            source.pop("sha256", None)  # of the whole file
    for name in ("config", "workflow", "Snakefile"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(root.absolute() / name)
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return commits, notes


def rehearse(
    files: Sequence[Path],
    entries: Sequence[str],
    folder: Path | None,
    processes: int,
    arguments: Sequence[str],
) -> int:
    """Prepare a rehearsal and run it to its report; the exit status of Snakemake. ``arguments`` go
    to that: targets, --profile, and so on. With a profile its jobs run as the site says."""
    root = Path.cwd()
    if not (root / "Snakefile").is_file():
        raise UserError(
            f"no Snakefile in {root}", "opd rehearse", "start it at the repository root"
        )
    config = resolve.merged(files, entries)
    raw = cut.cut(config, processes)
    folder = folder or root / "rehearsals" / config["name"]
    commits, notes = prepare(raw, root, folder)
    with hub.served(folder / "hub", commits) as address:
        command = [
            *(sys.executable, "-m", "snakemake", "--cores", "all", "--rerun-incomplete"),
            *("--keep-going", "--snakefile", str(root / "Snakefile"), "--directory", str(folder)),
            *(*arguments, "--configfile", str(folder / "config.yaml")),
        ]
        for note in notes:
            print(f"note: {visible(note)}", file=sys.stderr)
        as_jobs = any(argument.startswith("--profile") for argument in arguments)
        done = subprocess.run(command, env=environment(folder, address, as_jobs), check=False)
    results = folder / "results" / raw["name"]
    if (results / "plan.json").is_file():
        os.environ[marked.VARIABLE] = "1"
        for line in page.write(results, folder / "rehearsal.html", notes):
            print(line)
    return done.returncode


def environment(folder: Path, address: str, as_jobs: bool = False) -> dict[str, str]:
    """Variables of a rehearsal's processes: the hub is this machine's, and nothing of what was
    fetched from another is used. A site is for jobs of a cluster."""
    hidden = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "OPD_WARM")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return {
        **kept,
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder.absolute() / ".hf"),
        **({} if as_jobs else {"OPD_SITE": ""}),
        marked.VARIABLE: "1",
    }


def _at(raw: dict[str, Any], where: str, end: int | None = None) -> dict[str, Any]:
    """The mapping of a config at a dotted key, without its last parts up to ``end``."""
    section, _, rest = where.partition(".")
    # A recipe's name may hold dots: the longest that is there.
    name = max((n for n in raw[section] if rest == n or rest.startswith(f"{n}.")), key=len)
    value: dict[str, Any] = raw[section][name]
    for part in rest.removeprefix(name).strip(".").split(".")[:end]:
        value = value[part]
    return value


def _own(path: Path, folder: Path) -> str:
    """The path of what stands in for a file or a folder of one's own: the first rows of a file, the
    stand-in of a checkpoint, any other folder itself."""
    key = digest(str(path.absolute()))[:8]  # others may have its name
    if path.is_dir() and (path / "config.json").is_file():
        place = folder / "models" / key / path.name
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as partial:
                stand_ins.own_model(path, partial, seed=int(key, 16))
    elif path.is_file():
        place = folder / "data" / key / path.name
        stand_ins.first_rows(path, place)
    else:
        place = path
    return str(place.absolute())

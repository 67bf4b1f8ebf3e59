"""What Snakemake's command line asks for: targets under any name that an artifact has, configs and
targets that are in each other's place."""

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from opd.core.errors import UserError
from opd.plan.state import target_folders
from opd.stages import on_disk
from opd.stages.artifact import Artifact

# Options whose values are rules or files: Snakemake takes a file by its own path alone.
FILES = {"forcerun": "--forcerun", "until": "--until", "omit_from": "--omit-from"}


def given() -> argparse.Namespace:
    """The command line of the Snakemake that reads the workflow; of any other program, nothing."""
    from snakemake.cli import get_argument_parser

    own = "snakemake" in Path(sys.argv[0]).parts[-2:]
    return get_argument_parser().parse_known_args(sys.argv[1:] if own else [])[0]


def files(artifact: Artifact, results: str) -> list[str]:
    """The files that a rule makes for whoever looks at an artifact; of others, digest.json."""
    folder = f"results/{results}/{artifact.folder}"
    copies = [name for name in sorted(on_disk.COPIED) if name.startswith(f"{artifact.stage}.")]
    return [f"{folder}{Path(name).suffix}" for name in copies] or [f"{folder}/digest.json"]


def aliases(
    asked: argparse.Namespace, rules: Collection[str], artifacts: Mapping[str, Artifact], name: str
) -> dict[str, list[str]]:
    """The targets that are neither rules nor files of artifacts, and the files that they mean;
    ``name`` is the config's. Raises ``UserError`` for what means nothing."""
    meant: dict[str, list[str]] = {}
    for target in asked.targets or ():
        if target in rules:
            continue
        if target.endswith((".yaml", ".yml")):
            remedy = f"snakemake --configfile {target}, with targets before that"
            raise UserError(f"{target} is a config, no target", "snakemake", remedy)
        folders = target_folders([target], artifacts, name, "target")
        if not _is_made(target, folders, artifacts, name):
            meant[target] = [f for folder in folders for f in files(artifacts[folder], name)]
    for key, option in FILES.items():
        for target in getattr(asked, key) or ():
            if target not in rules:
                folders = target_folders([target], artifacts, name, option)
                if not _is_made(target, folders, artifacts, name):
                    paths = " ".join(f"results/{name}/{f}/digest.json" for f in folders)
                    reason = f"{target} is neither a rule nor a file that one makes"
                    raise UserError(reason, option, f"write {paths}")
    return meant


def _is_made(
    target: str, folders: Iterable[str], artifacts: Mapping[str, Artifact], name: str
) -> bool:
    """Whether Snakemake knows a target as the file of one of these artifacts."""
    path = os.path.relpath(target)
    digests = {f"results/{name}/{folder}/digest.json" for folder in folders}
    return path in digests | {f for folder in folders for f in files(artifacts[folder], name)}

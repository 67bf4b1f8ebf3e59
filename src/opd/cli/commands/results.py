"""Commands on results: ``watch``, ``why``, ``diff``, ``audit``, ``adopt``, ``gc``, ``export``."""

import argparse
import json
from pathlib import Path

from opd.cli.commands.options import Add, add_configs
from opd.core.errors import UserError
from opd.core.security import visible


def add(command: Add) -> None:
    watch = command("watch", help="show a training run step by step as it goes")
    watch.add_argument("folder", type=Path, help="results/NAME/models/MODEL/sSEED")
    watch.set_defaults(run=_watch)
    why = command("why", help="what made an artifact, from what, and how to make it again")
    why.add_argument(
        "path", type=Path, help="its folder, a file of it, or results/NAME/MODEL/sSEED"
    )
    why.set_defaults(run=_why)
    diff = command("diff", help="where two artifacts, or two results folders, part ways")
    for name in "ab":
        diff.add_argument(name, type=Path, help="results/NAME, or an artifact")
    diff.set_defaults(run=_diff)
    _add_audit(command)
    _add_adopt(command)
    _add_gc(command)
    _add_export(command)


def _watch(arguments: argparse.Namespace) -> None:
    from opd.provenance.watch import watch

    for line in watch(arguments.folder):
        print(visible(line), flush=True)


def _add_audit(command: Add) -> None:
    parser = command("audit", help="whether results are what was made, complete and current")
    parser.add_argument("path", type=Path, help="results, results/NAME, or an artifact below it")
    add_configs(parser, "what the last run found in plan.json", None)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also written there; - is standard output"
    )
    parser.add_argument(
        "--allow",
        nargs="+",
        choices=("stale", "orphaned", "missing"),
        default=[],
        help="states that end well, too; none if not given",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="other versions, and store entries that nothing links, end badly, too",
    )
    parser.add_argument(
        "--store", type=Path, metavar="DIR", help="where files are whose links lead nowhere"
    )
    parser.set_defaults(run=_audit)


def _audit(arguments: argparse.Namespace) -> int:
    import time

    from opd.provenance import audit
    from opd.stages.on_disk import results_folders

    plan = None
    if arguments.config and not arguments.configfile:
        raise UserError("settings of no config", "--config", "name its files with --configfile")
    if arguments.configfile:
        from opd.plan.state import described

        if len(results_folders(arguments.path.absolute())) > 1:
            remedy = "name results/NAME"
            raise UserError("a config describes one results folder", str(arguments.path), remedy)
        plan = described(arguments.configfile, arguments.config)
    started = time.monotonic()
    found = audit.audit(arguments.path, plan, arguments.store)
    seconds = time.monotonic() - started
    as_json = json.dumps(audit.as_json(found), indent=1)
    if arguments.json and str(arguments.json) != "-":
        arguments.json.write_text(as_json + "\n")
    if arguments.json and str(arguments.json) == "-":
        print(as_json)
    else:
        for line in audit.lines(found, str(arguments.path), seconds):
            print(line)
    return int(audit.fails(found, arguments.allow, arguments.strict))


def _why(arguments: argparse.Namespace) -> None:
    from opd.provenance.why import lines

    for line in lines(arguments.path):
        print(line)


def _diff(arguments: argparse.Namespace) -> int:
    from opd.provenance.diff import compare, lines

    found = compare(arguments.a, arguments.b)
    for line in lines(arguments.a, arguments.b, found):
        print(line)
    return int(found.any)


def _add_adopt(command: Add) -> None:
    parser = command("adopt", help="use a checkpoint or rollouts from elsewhere for a recipe")
    parser.add_argument("path", type=Path, help="a checkpoint's folder, or a file of rollouts")
    parser.add_argument(
        "--as",
        dest="recipe",
        required=True,
        metavar="RECIPE",
        help="a model or generation of the config; NAME/sSEED where there are several seeds",
    )
    add_configs(parser)
    parser.set_defaults(run=_adopt)


def _adopt(arguments: argparse.Namespace) -> None:
    from opd.plan.state import artifacts_of, beside
    from opd.provenance.adopt import adopt, recipe
    from opd.recipes.resolve import read

    config = read(arguments.configfile, arguments.config)
    artifacts = artifacts_of(config, beside(arguments.configfile))
    artifact, results = recipe(arguments.recipe, artifacts), Path("results") / config.name
    folder = adopt(arguments.path, artifact, results, results.parent / ".store")
    print(f"adopted: {folder} is {arguments.path}; remove {folder} to have it made instead")


def _add_gc(command: Add) -> None:
    from opd.provenance.gc import KINDS

    parser = command(
        "gc", help="list what nothing in a folder of results needs, and remove what is named"
    )
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        default=Path("results"),
        help="the folder with .store; %(default)s if not given",
    )
    parser.add_argument(
        "--remove",
        nargs="+",
        choices=KINDS,
        default=[],
        metavar="KIND",
        help="; ".join(f"{kind}: {about}" for kind, about in KINDS.items()),
    )
    parser.set_defaults(run=_gc)


def _gc(arguments: argparse.Namespace) -> None:
    from opd.provenance.gc import lines

    for line in lines(arguments.results, arguments.remove):
        print(line)


def _add_export(command: Add) -> None:
    parser = command(
        "export",
        help="pack results, with what made them, as an RO-Crate",
        usage="opd export RESULTS --out FILE.zip [options]",
    )
    parser.add_argument("results", type=Path, help="results/NAME")
    parser.add_argument(
        "--out", type=Path, required=True, help="a file that ends in .zip, or a new folder"
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        help="a figure, table, page or folder: what is behind it alone; may be repeated; all that "
        "is there if not given",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="with weights, fetched objects and files above 50 MB, which are only listed otherwise",
    )
    parser.add_argument(
        "--agent", metavar="NAME <URL>", help="who ran it; nobody is named if not given"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from opd.provenance.export import export

    for line in export(
        arguments.results, arguments.target, arguments.out, arguments.full, arguments.agent
    ):
        print(visible(line))

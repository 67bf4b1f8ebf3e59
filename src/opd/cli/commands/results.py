"""Commands on results: ``watch``, ``why``, ``diff``, ``audit``, ``adopt``, ``gc``, ``export``."""

import argparse
import json
import time
from pathlib import Path

from opd.cli.commands.options import Add, add_configs, add_option, show
from opd.core.errors import UserError


def add(command: Add) -> None:
    from opd.provenance.gc import KINDS

    watch = command("watch", _watch, "show a training run step by step as it goes")
    watch.add_argument("folder", type=Path, help="results/NAME/models/MODEL/sSEED")

    why = command("why", _why, "what made an artifact, from what, and how to make it again")
    why.add_argument(
        "path", type=Path, help="its folder, a file of it, or results/NAME/MODEL/sSEED"
    )

    diff = command("diff", _diff, "where two artifacts, or two results folders, part ways")
    for name in "ab":
        diff.add_argument(name, type=Path, help="results/NAME, or an artifact")

    _add_audit(command)

    adopt = command("adopt", _adopt, "use a checkpoint or rollouts from elsewhere for a recipe")
    adopt.add_argument("path", type=Path, help="a checkpoint's folder, or a file of rollouts")
    adopt.add_argument(
        "--as",
        dest="recipe",
        required=True,
        metavar="RECIPE",
        help="a model or generation of the config; NAME/sSEED where there are several seeds",
    )
    add_configs(adopt)

    gc = command(
        "gc", _gc, "list what nothing in a folder of results needs, and remove what is named"
    )
    add_option(gc, "results", Path("results"), "the folder with .store", nargs="?", type=Path)
    about = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    gc.add_argument("--remove", nargs="+", choices=KINDS, default=[], metavar="KIND", help=about)

    _add_export(command)


def _watch(arguments: argparse.Namespace) -> None:
    from opd.provenance.watch import watch

    show(watch(arguments.folder))


def _why(arguments: argparse.Namespace) -> None:
    from opd.provenance.why import lines

    show(lines(arguments.path))


def _diff(arguments: argparse.Namespace) -> int:
    from opd.provenance.diff import compare, lines

    differences = compare(arguments.a, arguments.b)
    show(lines(arguments.a, arguments.b, differences))
    return int(differences.any)


def _add_audit(command: Add) -> None:
    parser = command("audit", _audit, "whether results are what was made, complete and current")
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


def _audit(arguments: argparse.Namespace) -> int:
    from opd.provenance import audit
    from opd.stages.on_disk import results_folders

    plan = None
    if arguments.configfile:
        from opd.plan.state import described

        if len(results_folders(arguments.path.absolute())) > 1:
            remedy = "name results/NAME"
            raise UserError("a config describes one results folder", str(arguments.path), remedy)
        plan = described(arguments.configfile, arguments.config)
    elif arguments.config:
        raise UserError("settings of no config", "--config", "name its files with --configfile")
    started = time.monotonic()
    audited = audit.audit(arguments.path, plan, arguments.store)
    seconds = time.monotonic() - started
    as_json = json.dumps(audit.as_json(audited), indent=1)
    if str(arguments.json) == "-":
        print(as_json)
    else:
        if arguments.json:
            arguments.json.write_text(as_json + "\n")
        show(audit.lines(audited, str(arguments.path), seconds))
    return int(audit.fails(audited, arguments.allow, arguments.strict))


def _adopt(arguments: argparse.Namespace) -> None:
    from opd.plan.state import artifacts_of, beside
    from opd.provenance.adopt import adopt, recipe
    from opd.recipes.resolve import read

    config = read(arguments.configfile, arguments.config)
    artifacts = artifacts_of(config, beside(arguments.configfile))
    artifact, results = recipe(arguments.recipe, artifacts), Path("results") / config.name
    folder = adopt(arguments.path, artifact, results, results.parent / ".store")
    print(f"adopted: {folder} is {arguments.path}; remove {folder} to have it made instead")


def _gc(arguments: argparse.Namespace) -> None:
    from opd.provenance.gc import lines

    show(lines(arguments.results, arguments.remove))


def _add_export(command: Add) -> None:
    parser = command(
        "export",
        _export,
        "pack results, with what made them, as an RO-Crate",
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


def _export(arguments: argparse.Namespace) -> None:
    from opd.provenance.export import export

    show(
        export(arguments.results, arguments.target, arguments.out, arguments.full, arguments.agent)
    )

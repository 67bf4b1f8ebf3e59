"""Commands on results: ``watch``, ``why``, ``diff``, ``audit``, ``adopt``, ``gc``, ``export``."""

import argparse
import os
import time
from pathlib import Path

from opd.cli.commands import options
from opd.cli.commands.options import show, show_json
from opd.core.errors import UserError

ARTIFACT = "any path of it that is printed, or the end of its name"


def add(command: options.Add) -> None:
    from opd.provenance.gc import KINDS

    watch = command("watch", _watch, "show a training run step by step as it goes")
    options.add_path(watch, "path", f"its model: {ARTIFACT}")

    why = command("why", _why, "what made an artifact, from what, and how to make it again")
    options.add_path(why, "path", ARTIFACT)
    options.add_json(why)

    diff = command("diff", _diff, "where two artifacts, or two results folders, part ways")
    options.add_path(diff, "a", "results/NAME, or an artifact")
    options.add_path(diff, "b", "results/NAME, or an artifact")
    options.add_json(diff)
    about = "a page with both side by side, also written there"
    options.add_path(diff, "--html", about, metavar="FILE")

    audit = command("audit", _audit, "whether results are what was made, complete and current")
    options.add_path(audit, "path", "results, results/NAME, or an artifact below it")
    options.add_configs(audit, "what the last run found in plan.json", None)
    options.add_json(audit)
    about, states = "states that end well, too; none if not given", ("stale", "orphaned", "missing")
    options.add(audit, "--allow", about, [], nargs="+", choices=states)
    about = "other versions, and store entries that nothing links, end badly, too"
    options.add_flag(audit, "--strict", about)
    options.add_path(audit, "--store", "where files are whose links lead nowhere", metavar="DIR")

    adopt = command("adopt", _adopt, "use a checkpoint or rollouts from elsewhere for a recipe")
    options.add_path(adopt, "path", "a checkpoint's folder, or a file of rollouts")
    about = "a model or generation of the config; NAME/sSEED where there are several seeds"
    options.add(adopt, "--as", about, dest="recipe", required=True, metavar="RECIPE")
    about = "what its training logged, of TRL or verl; what lies beside the checkpoint"
    options.add_path(adopt, "--metrics", f"{about} if not given", metavar="FILE")
    options.add_configs(adopt)

    about = "list what nothing in a folder of results needs, and remove what is named"
    gc = command("gc", _gc, about)
    options.add_path(gc, "results", "the folder with .store", Path("results"), nargs="?")
    about = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    part = gc.add_mutually_exclusive_group()
    options.add(part, "--remove", f"{about}; nothing if not given", [], nargs="+", choices=KINDS)
    options.add_json(part)

    export = command(
        "export",
        _export,
        "pack results, with what made them, as an RO-Crate",
        usage="opd export RESULTS --out FILE [options]",
    )
    options.add_path(export, "results", "results/NAME, or an artifact: what is behind that alone")
    options.add_path(
        export, "--out", "a file that ends in .zip or .tar.xz, or a new folder", required=True
    )
    about = "an artifact: what is behind it alone, may be repeated; all of it"
    options.add(export, "--target", f"{about} if not given", [], action="append")
    about = "with weights, fetched objects and files above 50 MB, which are only listed otherwise"
    packed = export.add_mutually_exclusive_group()
    options.add_flag(packed, "--full", about)
    about = "without texts of responses and SFT data, and embeddings, which are only listed then"
    options.add_flag(packed, "--small", about)
    about = "who ran it; nobody is named if not given"
    options.add(export, "--agent", about, metavar="NAME <URL>")


def _watch(arguments: argparse.Namespace) -> None:
    from opd.provenance.watch import watch
    from opd.stages import naming

    show(watch(Path(os.path.relpath(naming.find(arguments.path).path))))


def _why(arguments: argparse.Namespace) -> None:
    from opd.provenance import why

    made, origin = why.read(arguments.path)
    if arguments.json:
        show_json(why.as_json(made, origin))
    else:
        show(why.lines(made, origin))


def _diff(arguments: argparse.Namespace) -> int:
    from opd.core.tables import write_text
    from opd.provenance.diff import as_json, compare, lines, page

    differences = compare(arguments.a, arguments.b)
    if arguments.html:
        write_text(arguments.html, page(arguments.a, arguments.b, differences))
    if arguments.json:
        show_json(as_json(differences))
    else:
        show(lines(arguments.a, arguments.b, differences))
    return int(differences.any)


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
    if arguments.json:
        show_json(audit.as_json(audited))
    else:
        show(audit.lines(audited, str(arguments.path), seconds))
    return int(audit.fails(audited, arguments.allow, arguments.strict))


def _adopt(arguments: argparse.Namespace) -> None:
    from opd.models.source import local
    from opd.plan.state import artifacts_of, beside
    from opd.provenance.adopt import adopt, recipe
    from opd.recipes.resolve import read

    config = read(arguments.configfile, arguments.config)
    artifacts = artifacts_of(config, beside(arguments.configfile))
    artifact = recipe(arguments.recipe, artifacts, config.name)
    source, results = local(str(arguments.path)), Path("results") / config.name
    store, metrics = results.parent / ".store", arguments.metrics
    folder = adopt(source, artifact, results, store, metrics)
    show([f"adopted: {folder} is {source}; remove {folder} to have it made instead"])


def _gc(arguments: argparse.Namespace) -> None:
    from opd.provenance.gc import as_json, lines

    if arguments.json:
        show_json(as_json(arguments.results))
    else:
        show(lines(arguments.results, arguments.remove))


def _export(arguments: argparse.Namespace) -> None:
    from opd.provenance.export import export
    from opd.stages import naming
    from opd.stages.on_disk import results_folders

    results, targets = arguments.results, arguments.target
    if not results_folders(results.absolute()):
        made = naming.locate(results)
        results, targets = made.root, [*targets, made.folder]
    how = {"full": arguments.full, "small": arguments.small, "agent": arguments.agent}
    show(export(results, targets, arguments.out, **how))

"""``opd stage STAGE``: one stage with explicit files, as the rules of the workflow run it."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from opd.cli.commands.options import Add, json_object
from opd.core.errors import UserError
from opd.core.files import read_json
from opd.stages import registry
from opd.stages.run import run_stage


def add(command: Add) -> None:
    parser = command("stage", help="run one stage, as the workflow does")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    # What is not an option is no abbreviation of one.
    stage_parser = partial(stages.add_parser, allow_abbrev=False)
    for name, traits in registry.STAGES.items():
        _add_stage(stage_parser(name, help=traits.label))


def _add_stage(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--cfg", required=True, help="settings: JSON, or a JSON file")
    stage.add_argument("--input", nargs="*", type=Path, default=[], help="in cfg.inputs' order")
    stage.add_argument("--output", required=True, type=Path, help="FOLDER/digest.json")
    stage.add_argument("--copy", nargs="*", type=_copy, default=[], metavar="FILE=PATH")
    stage.add_argument(
        "--plan", type=Path, help="refuse inputs that are not what this plan.json describes"
    )
    stage.add_argument("--store", type=Path, default=Path("results/.store"))
    stage.set_defaults(run=_run, online=_online)


def _copy(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


def _settings(text: str) -> dict[str, Any]:
    """``--cfg``: a JSON object, or the path of a file (a ``manifest.json`` will do)."""
    if text.lstrip().startswith("{"):
        return json_object(text, "--cfg")
    value = read_json(Path(text))
    value = value.get("cfg", value) if isinstance(value, dict) else value
    if not isinstance(value, dict):
        raise UserError("not a JSON object", "--cfg", "give an object or a file name")
    return value


def _online(arguments: argparse.Namespace) -> bool:
    """Whether the stage asks the hub. Settings may come through a pipe, which is read only once:
    they are looked at where the answer depends on them alone."""
    if registry.STAGES[arguments.stage].network == "by source":
        return registry.online(arguments.stage, _settings(arguments.cfg))
    return registry.online(arguments.stage, {})


def _run(arguments: argparse.Namespace) -> None:
    if arguments.plan:
        from opd.stages.fresh import check

        check(arguments.plan, arguments.input)
    computed = run_stage(
        arguments.stage,
        _settings(arguments.cfg),
        arguments.input,
        arguments.output,
        dict(arguments.copy),
        arguments.store,
    )
    print(f"{'made' if computed else 'found in the store'}: {arguments.output.parent}")

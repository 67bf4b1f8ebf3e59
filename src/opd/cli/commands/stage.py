"""``opd stage STAGE``: one stage with explicit files, as the rules of the workflow run it."""

import argparse
from pathlib import Path
from typing import Any

from opd.cli.commands.options import Add, add_command, json_object
from opd.core.errors import UserError
from opd.core.files import read_json
from opd.core.marked import mark
from opd.stages import registry
from opd.stages.run import run_stage


def add(command: Add) -> None:
    parser = command("stage", _run, "run one stage, as the workflow does", online=_online)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, traits in registry.STAGES.items():
        stage = add_command(stages, name, _run, traits.label, online=_online)
        stage.add_argument("--cfg", required=True, help="settings: JSON, or a JSON file")
        stage.add_argument("--input", nargs="*", type=Path, default=[], help="in cfg.inputs' order")
        stage.add_argument("--output", required=True, type=Path, help="FOLDER/digest.json")
        stage.add_argument("--copy", nargs="*", default=[], metavar="FILE=PATH")
        stage.add_argument(
            "--plan", type=Path, help="refuse inputs that are not what this plan.json describes"
        )
        stage.add_argument("--store", type=Path, default=Path("results/.store"))


def _settings(text: str) -> dict[str, Any]:
    """``--cfg``: a JSON object, or the path of a file (a ``manifest.json`` will do)."""
    if text.lstrip().startswith("{"):
        return json_object(text, "--cfg")
    if not Path(text).exists():
        raise UserError("no such file", f"--cfg {text}", "give settings as JSON, or a file of them")
    value = read_json(Path(text))
    value = value.get("cfg", value) if isinstance(value, dict) else value
    if not isinstance(value, dict):
        raise UserError("not a JSON object", "--cfg", "give an object or a file name")
    return value


def _online(arguments: argparse.Namespace) -> bool:
    """Whether the stage asks the hub. Settings may come through a pipe, which is read only once:
    they are looked at where the answer depends on them alone."""
    by_source = registry.STAGES[arguments.stage].network == "by source"
    return registry.online(arguments.stage, _settings(arguments.cfg) if by_source else {})


def _run(arguments: argparse.Namespace) -> None:
    if arguments.plan:
        from opd.stages.fresh import check

        check(arguments.plan, arguments.input)
    stage, settings, output = arguments.stage, _settings(arguments.cfg), arguments.output
    if mark():
        from opd.rehearsal import on_cpu

        on_cpu.prepare(stage)
    copies = {name: Path(path) for name, _, path in (t.partition("=") for t in arguments.copy)}
    computed = run_stage(stage, settings, arguments.input, output, copies, arguments.store)
    print(f"{'made' if computed else 'found in the store'}: {output.parent}")

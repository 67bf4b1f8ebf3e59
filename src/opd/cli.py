"""``opd VERB``: one verb per stage, with explicit files, so that every stage runs by hand too."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from opd.errors import Bad
from opd.manifest import VERBS, read_json, run_stage


def _settings(text: str) -> dict[str, Any]:
    """``--cfg``: a JSON object, or the path of a file (a ``manifest.json`` will do)."""
    if not text.lstrip().startswith("{"):
        value = read_json(Path(text))
        value = value.get("cfg", value) if isinstance(value, dict) else value
    else:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise Bad(f"not JSON ({error})", "--cfg", "give an object or a file name") from error
    if not isinstance(value, dict):
        raise Bad("not a JSON object", "--cfg", "give an object or a file name")
    return value


def _copy(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="opd", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, target in VERBS.items():
        stage = verbs.add_parser(verb, help=f"run the stage {target}")
        stage.add_argument("--cfg", required=True, help="settings: JSON, or a JSON file")
        stage.add_argument("--input", nargs="*", type=Path, default=[], help="in cfg.inputs' order")
        stage.add_argument("--output", required=True, type=Path, help="FOLDER/digest.json")
        stage.add_argument("--copy", nargs="*", type=_copy, default=[], metavar="FILE=PATH")
        stage.add_argument("--store", type=Path, default=Path("results/.store"))
    schema = verbs.add_parser("schema", help="print the JSON schema of a config")
    schema.set_defaults(verb="schema")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one verb; a ``Bad`` ends with its one line on stderr and exit status 2."""
    arguments = _parser().parse_args(argv)
    # What runs here reads only what was declared; the one verb that fetches does so on purpose.
    if arguments.verb != "fetch":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A stage that is told to stop clears its unfinished work away, as after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.verb == "schema":
            from opd.recipes import schema

            print(json.dumps(schema(), indent=1, sort_keys=True))
            return
        computed = run_stage(
            arguments.verb,
            _settings(arguments.cfg),
            arguments.input,
            arguments.output,
            dict(arguments.copy),
            arguments.store,
        )
    except Bad as bad:
        print(f"error: {bad}", file=sys.stderr)
        sys.exit(2)
    print(f"{'made' if computed else 'found in the store'}: {arguments.output.parent}")

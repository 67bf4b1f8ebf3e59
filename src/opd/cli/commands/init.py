"""``opd init``: a first config for a pair of models."""

import argparse
from pathlib import Path

from opd.cli.commands import options
from opd.models.source import GRAMMAR

SCALES = ("laptop", "one-gpu", "node")


def add(command: options.Add) -> None:
    init = command(
        "init",
        _init,
        "write a config for a student, a teacher and a file of questions",
        online=options.asks_hub,
        usage="opd init --student MODEL --teacher MODEL --questions FILE [options]",
    )
    options.add(init, "--student", GRAMMAR, required=True, metavar="MODEL")
    options.add(init, "--teacher", GRAMMAR, required=True, metavar="MODEL")
    about = "a .jsonl, .json, .csv or .parquet file with a question, and its answer if there is one"
    options.add_path(init, "--questions", about, required=True, metavar="FILE")
    about = f"what it is to end on in minutes: {', '.join(SCALES)}"
    options.add(init, "--scale", about, SCALES[0], choices=SCALES)
    options.add_path(init, "--out", "file to write", Path("config.yaml"), metavar="FILE")


def _init(arguments: argparse.Namespace) -> None:
    from opd.recipes.draft import draft

    student, teacher = arguments.student, arguments.teacher
    options.show(draft(student, teacher, arguments.questions, arguments.scale, arguments.out))

"""What commands have in common: how they are added, options of several, and printing."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import parse_json
from opd.core.security import visible_line
from opd.models.source import hub_id

Parser = argparse.ArgumentParser
Options = argparse._ActionsContainer  # a parser, or a group of its options
# ``add_command`` but for its first argument.
Add = Callable[..., Parser]
# Rates of `opd calibrate`, which `opd plan` reads.
RATES = Path("results/calibration.yaml")
MINI = Path("config/mini.yaml")
CONFIGS = "config files as for snakemake, later ones on top"


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    about: str,
    online: Callable[[argparse.Namespace], bool] = lambda arguments: False,
    usage: str | None = None,
) -> Parser:
    """The parser of a command. ``run`` returns the exit status, ``online`` tells whether the hub is
    asked."""
    # What is not an option is no abbreviation of one: --config is not --configfile.
    parser: Parser = commands.add_parser(
        name,
        help=about,
        usage=usage,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, online=online)
    return parser


def show(lines: Iterable[str]) -> None:
    """Print lines as they come, with control characters spelt out."""
    for line in lines:
        print(visible_line(line), flush=True)


def asks_hub(arguments: argparse.Namespace) -> bool:
    """Whether a command's --student, or one of its --teacher, is a model of the hub."""
    teachers = arguments.teacher if isinstance(arguments.teacher, list) else [arguments.teacher]
    return any(hub_id(model) for model in (arguments.student, *teachers))


def show_json(value: Any) -> None:
    """Print what ``--json`` asks for: one JSON object, in ASCII."""
    print(json.dumps(value, indent=1))


# Values


def json_object(text: str, option: str) -> dict[str, Any]:
    """The value of an option that is a JSON object. Raises ``UserError`` where it is none."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"not JSON ({error})", option, "give a JSON object") from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", option, "write it as {...}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """Type of an option: a whole number from ``least`` up."""

    def read(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            reason = f"{text} is not allowed: a whole number from {least} up"
            raise argparse.ArgumentTypeError(reason)
        return int(text)

    return read


def positive(text: str) -> float:
    """Type of an option: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: a number above 0")
    return value


# Options


def add(parser: Options, name: str, about: str, default: Any = None, **more: Any) -> None:
    """An argument or option; its help names the default, if that is text, a number or a path."""
    if isinstance(default, str | int | float | Path):
        about = f"{about}; %(default)s if not given"
    parser.add_argument(name, help=about, default=default, **more)


def add_path(parser: Options, name: str, about: str, default: Any = None, **more: Any) -> None:
    add(parser, name, about, default, type=Path, **more)


def add_flag(parser: Options, name: str, about: str) -> None:
    parser.add_argument(name, action="store_true", help=about)


def add_json(parser: Options) -> None:
    add_flag(parser, "--json", "print all of it as one JSON object")


def add_counts(parser: Parser, counts: Mapping[str, tuple[int, str]]) -> None:
    """Options for whole numbers; ``counts``: name -> default, and what it is."""
    for name, (default, about) in counts.items():
        add(parser, f"--{name.replace('_', '-')}", about, default, type=whole(1), metavar="N")


def add_config(parser: Parser) -> None:
    """--config, as Snakemake has it."""
    about = "as for snakemake, on top of all files; nothing if not given"
    add(parser, "--config", about, [], nargs="+", action="extend", metavar="KEY=VALUE")


def add_configs(
    parser: Parser, about: str = str(MINI), default: Sequence[Path] | None = (MINI,)
) -> None:
    """--configfile and --config, as Snakemake has them; ``about`` names the default."""
    about = f"{CONFIGS}; {about} if not given"
    add_path(parser, "--configfile", about, default, nargs="+", metavar="FILE")
    add_config(parser)

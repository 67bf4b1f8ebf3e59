"""What options of several commands have in common: types of values, and config files."""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core.errors import UserError

# Adds the parser of a command: name, and what argparse.ArgumentParser takes.
Add = Callable[..., argparse.ArgumentParser]
# Rates of `opd calibrate`, which `opd plan` reads.
RATES = Path("results/calibration.yaml")
MINI = Path("config/mini.yaml")
CONFIGS = "config files as for snakemake, later ones on top"


def json_object(text: str, option: str) -> dict[str, Any]:
    """The value of an option that is a JSON object. Raises ``UserError`` where it is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"not JSON ({error})", option, "give a JSON object") from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", option, "write it as {...}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """Type of an option: a whole number from ``least`` up."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"{text} is not allowed: a whole number from {least} up"
            )
        return value

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


def add_counts(parser: argparse.ArgumentParser, counts: Mapping[str, tuple[int, str]]) -> None:
    """Options for whole numbers; ``counts``: name -> default, and what it is."""
    for name, (value, about) in counts.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=whole(1),
            default=value,
            metavar="N",
            help=f"{about}; %(default)s if not given",
        )


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config, as Snakemake has it."""
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="as for snakemake, on top of all files; nothing if not given",
    )


def add_configs(
    parser: argparse.ArgumentParser,
    about: str = str(MINI),
    default: Sequence[Path] | None = (MINI,),
) -> None:
    """--configfile and --config, as Snakemake has them; ``about`` names the default."""
    parser.add_argument(
        "--configfile",
        nargs="+",
        type=Path,
        default=default if default is None else [*default],
        metavar="FILE",
        help=f"{CONFIGS}; {about} if not given",
    )
    add_config(parser)

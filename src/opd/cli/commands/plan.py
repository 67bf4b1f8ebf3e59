"""Commands about a config: ``schema``, ``plan``, ``calibrate``, ``lock``, ``doctor``."""

import argparse
import json
from pathlib import Path

from opd.cli.commands.options import CONFIGS, RATES, Add, add_config, add_configs, whole
from opd.core.security import visible


def add(command: Add) -> None:
    command("schema", help="print the JSON schema of a config").set_defaults(run=_schema)
    _add_plan(command)
    _add_calibrate(command)
    _add_lock(command)
    _add_doctor(command)


def _schema(arguments: argparse.Namespace) -> None:
    from opd.recipes.config import Config

    print(json.dumps(Config.model_json_schema(), indent=1, sort_keys=True))


def _add_plan(command: Add) -> None:
    parser = command(
        "plan",
        help="what would run, what is there, and what it would cost",
        usage="opd plan [--configfile FILE ...] [--config KEY=VALUE ...] [options]",
    )
    add_configs(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--target",
        action="append",
        default=[],
        help="a figure, table or folder, may be repeated; what the config asks for if not given",
    )
    part.add_argument(
        "--claim",
        help="the cheapest part that decides this claim of a paper; all of them if not given",
    )
    parser.add_argument(
        "--gpus",
        type=whole(1),
        metavar="N",
        help="devices to share the jobs; as many as the widest job has if not given",
    )
    parser.add_argument(
        "--device",
        help="as torch names it, or a part of that; H100, what was measured, or cpu, as the config "
        "computes, if not given",
    )
    parser.add_argument("--jobs", action="store_true", help="list every job")
    parser.add_argument(
        "--calibration",
        type=Path,
        default=RATES,
        metavar="FILE",
        help="rates of `opd calibrate`; %(default)s if not given",
    )
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from opd.plan.show import lines

    for line in lines(
        arguments.configfile,
        arguments.target,
        arguments.claim,
        arguments.gpus,
        arguments.device,
        arguments.jobs,
        arguments.calibration,
        arguments.config,
    ):
        print(visible(line))


def _add_calibrate(command: Add) -> None:
    parser = command("calibrate", help="measure rates for `opd plan` in finished stages")
    parser.add_argument("results", nargs="+", type=Path, help="results/NAME")
    parser.add_argument(
        "--output", type=Path, default=RATES, help="file to write; %(default)s if not given"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        default=Path("config/calibration.yaml"),
        help="what rates are in terms of; %(default)s if not given",
    )
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    from opd.plan import calibrate

    tables = calibrate.tables(arguments.reference)
    done = [calibrate.finished(folder) for folder in arguments.results]
    calibrate.write(arguments.output, calibrate.calibrate(done, tables))


def _add_lock(command: Add) -> None:
    parser = command(
        "lock",
        help="ask the hub for the commits of a config's objects",
        usage="opd lock FILE ... [--config KEY=VALUE ...] [--lock FILE]",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=CONFIGS)
    add_config(parser)
    parser.add_argument(
        "--lock",
        type=Path,
        default=Path("config/hub.lock.yaml"),
        help="file to write; %(default)s if not given",
    )
    parser.set_defaults(run=_lock, online=lambda arguments: True)


def _lock(arguments: argparse.Namespace) -> None:
    from opd.plan.hub_lock import lock
    from opd.recipes.resolve import read

    for name, commit in lock(read(arguments.files, arguments.config), arguments.lock).items():
        print(f"{commit}  {name}")


def _add_doctor(command: Add) -> None:
    parser = command(
        "doctor",
        help="what a run would lack on this machine, before anything is started",
        usage="opd doctor [--configfile FILE ...] [--config KEY=VALUE ...] [--profile NAME]",
    )
    add_configs(parser, "that of the profile, or config/mini.yaml,", ())
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="as for snakemake: looks at the cluster too; this machine alone if not given",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.set_defaults(run=_doctor, online=lambda arguments: True)


def _doctor(arguments: argparse.Namespace) -> int:
    from opd.doctor.base import lines, ready
    from opd.doctor.examine import examine

    findings = examine(arguments.configfile, arguments.config, arguments.profile)
    if arguments.json:
        rows = [finding._asdict() for finding in findings]
        print(json.dumps({"ready": ready(findings), "findings": rows}, indent=1))
    else:
        print("\n".join(lines(findings)))
    return int(not ready(findings))

"""Commands about a config: ``schema``, ``plan``, ``calibrate``, ``lock``, ``doctor``."""

import argparse
import json
from pathlib import Path

from opd.cli.commands.options import (
    CONFIGS,
    RATES,
    Add,
    add_config,
    add_configs,
    add_file,
    show,
    whole,
)


def add(command: Add) -> None:
    command("schema", _schema, "print the JSON schema of a config")
    _add_plan(command)

    calibrate = command("calibrate", _calibrate, "measure rates for `opd plan` in finished stages")
    calibrate.add_argument("results", nargs="+", type=Path, help="results/NAME")
    add_file(calibrate, "--output", RATES, "file to write")
    add_file(calibrate, "--reference", "config/calibration.yaml", "what rates are in terms of")

    lock = command(
        "lock",
        _lock,
        "ask the hub for the commits of a config's objects",
        online=lambda arguments: True,
        usage="opd lock FILE ... [--config KEY=VALUE ...] [--lock FILE]",
    )
    lock.add_argument("files", nargs="+", type=Path, metavar="FILE", help=CONFIGS)
    add_config(lock)
    add_file(lock, "--lock", "config/hub.lock.yaml", "file to write")

    doctor = command(
        "doctor",
        _doctor,
        "what a run would lack on this machine, before anything is started",
        online=lambda arguments: True,
        usage="opd doctor [--configfile FILE ...] [--config KEY=VALUE ...] [--profile NAME]",
    )
    add_configs(doctor, "that of the profile, or config/mini.yaml,", ())
    doctor.add_argument(
        "--profile",
        metavar="NAME",
        help="as for snakemake: looks at the cluster too; this machine alone if not given",
    )
    doctor.add_argument("--json", action="store_true", help="print all of it as JSON")


def _schema(arguments: argparse.Namespace) -> None:
    from opd.recipes.config import schema

    print(json.dumps(schema(), indent=1, sort_keys=True))


def _add_plan(command: Add) -> None:
    parser = command(
        "plan",
        _plan,
        "what would run, what is there, and what it would cost",
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
    add_file(parser, "--calibration", RATES, "rates of `opd calibrate`")


def _plan(arguments: argparse.Namespace) -> None:
    from opd.plan.show import lines

    show(
        lines(
            arguments.configfile,
            arguments.target,
            arguments.claim,
            arguments.gpus,
            arguments.device,
            arguments.jobs,
            arguments.calibration,
            arguments.config,
        )
    )


def _calibrate(arguments: argparse.Namespace) -> None:
    from opd.plan import calibrate

    tables = calibrate.tables(arguments.reference)
    done = [calibrate.finished(folder) for folder in arguments.results]
    calibrate.write(arguments.output, calibrate.calibrate(done, tables))


def _lock(arguments: argparse.Namespace) -> None:
    from opd.plan.hub_lock import lock
    from opd.recipes.resolve import read

    commits = lock(read(arguments.files, arguments.config), arguments.lock)
    show(f"{commit}  {name}" for name, commit in commits.items())


def _doctor(arguments: argparse.Namespace) -> int:
    from opd.doctor import examine as doctor

    findings = doctor.examine(arguments.configfile, arguments.config, arguments.profile)
    ready = doctor.ready(findings)
    if arguments.json:
        rows = [finding._asdict() for finding in findings]
        print(json.dumps({"ready": ready, "findings": rows}, indent=1))
    else:
        show(doctor.lines(findings))
    return int(not ready)

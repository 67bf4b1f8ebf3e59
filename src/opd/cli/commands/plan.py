"""Commands about a config (what it may hold, costs, lacks and locks, its rehearsal) and claims."""

import argparse
import json
import sys
from pathlib import Path

from opd.cli.commands import options
from opd.cli.commands.options import RATES, positive, show, show_json, whole
from opd.core.errors import UserError
from opd.core.security import visible_line

CLAIMS = Path("config/claims")


def add(command: options.Add) -> None:
    command("schema", _schema, "print the JSON schema of a config")

    plan = command(
        "plan",
        _plan,
        "what would run, what is there, and what it would cost",
        usage="opd plan [--configfile FILE ...] [--config KEY=VALUE ...] [options]",
    )
    options.add_configs(plan)
    part = plan.add_mutually_exclusive_group()
    about = "an artifact, may be repeated; what the config asks for if not given"
    options.add(part, "--target", about, [], action="append")
    about = "the cheapest part that decides this claim of a paper; all of them if not given"
    options.add(part, "--claim", about)
    about = "devices to share the jobs; as many as the widest job has if not given"
    options.add(plan, "--gpus", about, type=whole(1), metavar="N")
    about = "GiB of each; what the device has if not given"
    options.add(plan, "--memory", about, type=positive, metavar="GIB")
    options.add(
        plan,
        "--device",
        "as torch names it, or a part of that; H100, what was measured, or cpu, as the config "
        "computes, if not given",
    )
    options.add_flag(plan, "--jobs", "list every job, as --json does")
    options.add_json(plan)
    options.add_path(plan, "--calibration", "rates of `opd calibrate`", RATES, metavar="FILE")

    rehearse = command(
        "rehearse",
        _rehearse,
        "run the whole of a config small, on this machine, with stand-ins for models and data",
        usage="opd rehearse [--configfile FILE ...] [--config KEY=VALUE ...] [options]"
        " [-- SNAKEMAKE'S OPTIONS]",
    )
    options.add_configs(rehearse)
    about = "where it lies; rehearsals/NAME if not given"
    options.add_path(rehearse, "--out", about, metavar="FOLDER")
    about = "training processes that stay, of those that the config has"
    options.add(rehearse, "--processes", about, 1, type=whole(1), metavar="N")
    options.add(rehearse, "arguments", "options and targets of Snakemake", [], nargs="*")

    claims = command("claims", _claims, "of how many random results the test of each claim holds")
    about = f"files of claims; all of {CLAIMS} if not given"
    options.add_path(claims, "files", about, (), nargs="*", metavar="FILE")
    about = "show only what holds of too many, and exit with 1 if there is any"
    options.add_flag(claims, "--check", about)

    calibrate = command("calibrate", _calibrate, "measure rates for `opd plan` in finished stages")
    options.add_path(calibrate, "results", "results/NAME", nargs="+")
    options.add_path(calibrate, "--out", "file to write", RATES, metavar="FILE")
    about, shipped = "what rates are in terms of", Path("config/calibration.yaml")
    options.add_path(calibrate, "--reference", about, shipped, metavar="FILE")

    lock = command(
        "lock",
        _lock,
        "ask the hub for the commits of a config's objects",
        online=lambda arguments: True,
        usage="opd lock --configfile FILE ... [--config KEY=VALUE ...] [--lock FILE]",
    )
    options.add_configs(lock)
    locked = Path("config/hub.lock.yaml")
    options.add_path(lock, "--lock", "file to write", locked, metavar="FILE")

    doctor = command(
        "doctor",
        _doctor,
        "what a run would lack on this machine, before anything is started",
        online=lambda arguments: True,
        usage="opd doctor [--configfile FILE ...] [--config KEY=VALUE ...] [--profile NAME]",
    )
    options.add_configs(doctor, "that of the profile, or config/mini.yaml,", ())
    about = "as for snakemake: looks at the cluster too; this machine alone if not given"
    options.add(doctor, "--profile", about, metavar="NAME")
    options.add_json(doctor)


def _rehearse(arguments: argparse.Namespace) -> int:
    from opd.rehearsal.command import rehearse

    return rehearse(
        arguments.configfile,
        arguments.config,
        arguments.out,
        arguments.processes,
        arguments.arguments,
    )


def _schema(arguments: argparse.Namespace) -> None:
    from opd.recipes.config import Config

    print(json.dumps(Config.model_json_schema(), indent=1, sort_keys=True))


def _plan(arguments: argparse.Namespace) -> None:
    from opd.plan.show import as_json, lines

    part = (arguments.configfile, arguments.target, arguments.claim)
    devices = (arguments.gpus, arguments.memory, arguments.device)
    rates, settings = arguments.calibration, arguments.config
    if arguments.json:
        show_json(as_json(*part, *devices, rates, settings))
    else:
        show(lines(*part, *devices, arguments.jobs, rates, settings))


def _claims(arguments: argparse.Namespace) -> int:
    from opd.results import null

    files = arguments.files or sorted(CLAIMS.glob("*.yaml"))
    if not files:
        remedy = "name files, or start it in the folder that has config/"
        raise UserError("there is no file of claims", str(CLAIMS), remedy)
    count = wrong = 0
    for path in files:
        for claim in null.accepted(path):
            errors = claim.errors(str(path))
            count, wrong = count + 1, wrong + bool(errors)
            if not arguments.check:
                show([f"{claim.share:6.1%} {path}: {claim.claim}"])
            show(errors)
    show([f"{wrong} of {count} claims say what holds of random results, too"])
    return int(wrong > 0)


def _calibrate(arguments: argparse.Namespace) -> None:
    from opd.plan import calibrate

    tables = calibrate.tables(arguments.reference)
    done = [calibrate.finished(folder) for folder in arguments.results]
    calibrate.write(arguments.out, calibrate.calibrate(done, tables))


def _lock(arguments: argparse.Namespace) -> int:
    from opd.plan.hub_lock import lock
    from opd.recipes.resolve import read

    commits, errors = lock(read(arguments.configfile, arguments.config), arguments.lock)
    show(f"{commit}  {name}" for name, commit in commits.items())
    for error in errors:
        print(f"error: {visible_line(str(error))}", file=sys.stderr)
    return 2 * bool(errors)


def _doctor(arguments: argparse.Namespace) -> int:
    from opd.doctor.base import lines, ready
    from opd.doctor.examine import examine

    findings = examine(arguments.configfile, arguments.config, arguments.profile)
    if arguments.json:
        rows = [finding._asdict() for finding in findings]
        show_json({"ready": ready(findings), "findings": rows})
    else:
        show(lines(findings))
    return int(not ready(findings))

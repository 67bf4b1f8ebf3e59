"""``opd VERB``: one verb per stage, with explicit files, so that every stage runs by hand too."""

import argparse
import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from opd.errors import Bad
from opd.files import read_json
from opd.manifest import VERBS, run_stage

RATES = Path("results/calibration.yaml")


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Bad(f"not JSON ({error})", option, "give a JSON object") from error
    if not isinstance(value, dict):
        raise Bad("not a JSON object", option, "write it as {...}")
    return value


def _settings(text: str) -> dict[str, Any]:
    """``--cfg``: a JSON object, or the path of a file (a ``manifest.json`` will do)."""
    if text.lstrip().startswith("{"):
        return _object(text, "--cfg")
    value = read_json(Path(text))
    value = value.get("cfg", value) if isinstance(value, dict) else value
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
        stage.add_argument(
            "--plan", type=Path, help="refuse inputs that are not what this plan.json describes"
        )
        stage.add_argument("--store", type=Path, default=Path("results/.store"))
    verbs.add_parser("schema", help="print the JSON schema of a config")
    before = verbs.add_parser(
        "preflight", help="what a few dozen rollouts say of a student and a teacher, untrained"
    )
    for name, about in (("student", "model folder"), ("teacher", "model folder")):
        before.add_argument(f"--{name}", type=Path, required=True, help=about)
    before.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help="prompts.parquet, or lines of JSON with question, answer and prompt",
    )
    before.add_argument("--n", type=int, default=48, help="prompts, the first of them")
    before.add_argument("--samples", type=int, default=4, help="rollouts of each")
    before.add_argument("--max-new-tokens", type=int, default=7168)
    before.add_argument("--max-prompt-tokens", type=int, default=1024)
    before.add_argument("--temperature", type=float, default=1.0)
    before.add_argument("--grader", help="world, choice, rule or math_verify; nothing if not given")
    before.add_argument("--k", type=int, default=16, help="size of the top k sets")
    before.add_argument("--chat-template", default="{}", metavar="JSON")
    before.add_argument("--backend", default="transformers", help="transformers or vllm")
    before.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    before.add_argument("--seed", type=int, default=0)
    before.add_argument("--out", type=Path, help="folder that keeps all of it")
    watch = verbs.add_parser("watch", help="show a training run step by step as it goes")
    watch.add_argument("folder", type=Path, help="results/NAME/models/MODEL/sSEED")
    plan = verbs.add_parser("plan", help="what would run, what is there, and what it would cost")
    first = [Path("config/mini.yaml")]
    plan.add_argument("--configfile", nargs="+", type=Path, default=first, help="later ones on top")
    part = plan.add_mutually_exclusive_group()
    part.add_argument("--target", action="append", default=[], help="a figure, table or folder")
    part.add_argument("--claim", help="the cheapest part that decides this claim of a paper")
    plan.add_argument("--gpus", type=int, help="as many as the widest job has, if not given")
    plan.add_argument("--device", help="as torch names it, or a part of that")
    plan.add_argument("--jobs", action="store_true", help="list every job")
    plan.add_argument("--calibration", type=Path, default=RATES, help="rates of `opd calibrate`")
    rates = verbs.add_parser("calibrate", help="measure rates for `opd plan` in finished stages")
    rates.add_argument("results", nargs="+", type=Path, help="results/NAME")
    rates.add_argument("--output", type=Path, default=RATES)
    rates.add_argument("--reference", type=Path, default=Path("config/calibration.yaml"))
    lock = verbs.add_parser("lock", help="ask the hub for the commits of a config's objects")
    lock.add_argument("config", nargs="+", type=Path, help="config files, later ones on top")
    lock.add_argument("--lock", type=Path, default=Path("config/hub.lock.yaml"))
    return parser


def _schema(arguments: argparse.Namespace) -> None:
    from opd.recipes import schema

    print(json.dumps(schema(), indent=1, sort_keys=True))


def _watch(arguments: argparse.Namespace) -> None:
    from opd.watch import watch

    for line in watch(arguments.folder):
        print(line, flush=True)


def _preflight(arguments: argparse.Namespace) -> None:
    from opd.probes.preflight import preflight

    given = vars(arguments)
    same = ("n", "samples", "max_new_tokens", "max_prompt_tokens", "temperature", "grader")
    cfg = {name: given[name] for name in (*same, "backend", "dtype", "seed")}
    cfg["metrics_k"] = arguments.k
    cfg["chat_template_kwargs"] = _object(arguments.chat_template, "--chat-template")
    cfg["threads"] = len(os.sched_getaffinity(0))
    folders = (arguments.student, arguments.teacher, arguments.prompts, arguments.out)
    print(preflight(*folders, cfg), end="")


def _plan(arguments: argparse.Namespace) -> None:
    from opd.plan_text import lines

    for line in lines(
        arguments.configfile,
        arguments.target,
        arguments.claim,
        arguments.gpus,
        arguments.device,
        arguments.jobs,
        arguments.calibration,
    ):
        print(line)


def _calibrate(arguments: argparse.Namespace) -> None:
    from opd import calibration

    tables = calibration.tables(arguments.reference)
    done = [calibration.finished(folder) for folder in arguments.results]
    calibration.write(arguments.output, calibration.calibrate(done, tables))


def _lock(arguments: argparse.Namespace) -> None:
    import yaml

    from opd.lock import lock
    from opd.recipes import merge, resolve

    merged: dict[str, Any] = {}
    for config in arguments.config:
        merged = merge(merged, yaml.safe_load(config.read_text()))
    for name, commit in lock(resolve(merged), arguments.lock).items():
        print(f"{commit}  {name}")


def _stage(arguments: argparse.Namespace) -> None:
    if arguments.plan:
        from opd.current import check

        check(arguments.plan, arguments.input)
    computed = run_stage(
        arguments.verb,
        _settings(arguments.cfg),
        arguments.input,
        arguments.output,
        dict(arguments.copy),
        arguments.store,
    )
    print(f"{'made' if computed else 'found in the store'}: {arguments.output.parent}")


# What is no stage. Each imports what it needs: a verb starts without the others' libraries.
OTHERS = {
    "schema": _schema,
    "preflight": _preflight,
    "watch": _watch,
    "plan": _plan,
    "calibrate": _calibrate,
    "lock": _lock,
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb; a ``Bad`` ends with its one line on stderr and exit status 2."""
    arguments = _parser().parse_args(argv)
    # Stages read only what was declared; the few verbs that fetch do so on purpose.
    if arguments.verb not in ("fetch", "dataset", "lock", "prompts"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A stage that is told to stop clears its unfinished work away, as after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        OTHERS.get(arguments.verb, _stage)(arguments)
    except Bad as bad:
        print(f"error: {bad}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as from `opd watch FOLDER | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        full = Bad(f"no room ({error.strerror})", str(arguments.store), "free space, start again")
        print(f"error: {full}", file=sys.stderr)
        sys.exit(2)

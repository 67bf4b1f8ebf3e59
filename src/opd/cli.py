"""``opd VERB``: one verb per stage, with explicit files, so that every stage runs by hand too."""

import argparse
import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
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


def _whole(least: int) -> Callable[[str], int]:
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


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: a number above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="opd", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    # What is not an option is no abbreviation of one: --config is not --configfile.
    add = partial(verbs.add_parser, allow_abbrev=False)
    for verb, target in VERBS.items():
        stage = add(verb, help=f"run the stage {target}")
        stage.add_argument("--cfg", required=True, help="settings: JSON, or a JSON file")
        stage.add_argument("--input", nargs="*", type=Path, default=[], help="in cfg.inputs' order")
        stage.add_argument("--output", required=True, type=Path, help="FOLDER/digest.json")
        stage.add_argument("--copy", nargs="*", type=_copy, default=[], metavar="FILE=PATH")
        stage.add_argument(
            "--plan", type=Path, help="refuse inputs that are not what this plan.json describes"
        )
        stage.add_argument("--store", type=Path, default=Path("results/.store"))
    add("schema", help="print the JSON schema of a config")
    _add_preflight(add)
    _add_align(add)
    watch = add("watch", help="show a training run step by step as it goes")
    watch.add_argument("folder", type=Path, help="results/NAME/models/MODEL/sSEED")
    _add_plan(add)
    rates = add("calibrate", help="measure rates for `opd plan` in finished stages")
    rates.add_argument("results", nargs="+", type=Path, help="results/NAME")
    rates.add_argument(
        "--output", type=Path, default=RATES, help="file to write; %(default)s if not given"
    )
    rates.add_argument(
        "--reference",
        type=Path,
        default=Path("config/calibration.yaml"),
        help="what rates are in terms of; %(default)s if not given",
    )
    lock = add(
        "lock",
        help="ask the hub for the commits of a config's objects",
        usage="opd lock FILE ... [--config KEY=VALUE ...] [--lock FILE]",
    )
    lock.add_argument("files", nargs="+", type=Path, metavar="FILE", help=CONFIGS)
    _add_config(lock)
    lock.add_argument(
        "--lock",
        type=Path,
        default=Path("config/hub.lock.yaml"),
        help="file to write; %(default)s if not given",
    )
    return parser


CONFIGS = "config files as for snakemake, later ones on top"


def _add_config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="as for snakemake, on top of all files; nothing if not given",
    )


def _add_preflight(add: Callable[..., argparse.ArgumentParser]) -> None:
    before = add(
        "preflight",
        help="what a few dozen rollouts say of a student and a teacher, untrained",
        usage="opd preflight --student DIR --teacher DIR --prompts FILE [options]",
    )
    for name in ("student", "teacher"):
        before.add_argument(
            f"--{name}", type=Path, required=True, metavar="DIR", help="model folder"
        )
    before.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="prompts.parquet, or lines of JSON with question, answer and prompt",
    )
    numbers = {
        "n": (48, "prompts, the first of the file"),
        "samples": (4, "rollouts of each prompt"),
        "max-new-tokens": (7168, "longest response in tokens"),
        "max-prompt-tokens": (1024, "longest prompt in tokens"),
        "k": (16, "tokens in the top k sets of student and teacher"),
    }
    for name, (value, about) in numbers.items():
        text = f"{about}; %(default)s if not given"
        before.add_argument(f"--{name}", type=_whole(1), default=value, metavar="N", help=text)
    before.add_argument(
        "--temperature",
        type=_positive,
        default=1.0,
        metavar="T",
        help="that rollouts are sampled at; %(default)s if not given",
    )
    before.add_argument(
        "--grader",
        help="of answers: world, choice, rule or math_verify; nothing is graded if not given",
    )
    before.add_argument(
        "--chat-template",
        default="{}",
        metavar="JSON",
        help='arguments of both chat templates, as {"enable_thinking": false}; %(default)s if not '
        "given",
    )
    choices = {
        "backend": (("transformers", "vllm"), "what samples"),
        "dtype": (("float32", "bfloat16"), "what models are computed in"),
    }
    for name, (values, about) in choices.items():
        text = f"{about}: {' or '.join(values)}; %(default)s if not given"
        before.add_argument(f"--{name}", choices=values, default=values[0], help=text)
    before.add_argument(
        "--seed",
        type=_whole(0),
        default=0,
        metavar="N",
        help="of sampling; %(default)s if not given",
    )
    before.add_argument(
        "--align",
        action="store_true",
        help="measure the alignment, too (`opd align`): many more rollouts, needs a grader",
    )
    before.add_argument(
        "--out", type=Path, metavar="DIR", help="folder that keeps all of it; none if not given"
    )


def _add_align(add: Callable[..., argparse.ArgumentParser]) -> None:
    align = add(
        "align",
        help="whether teachers point a student towards right answers, token by token, untrained",
        usage="opd align --student DIR --teacher DIR [DIR ...] --questions FILE --grader NAME "
        "[options]",
    )
    align.add_argument("--student", type=Path, required=True, metavar="DIR", help="model folder")
    align.add_argument(
        "--teacher", type=Path, nargs="+", default=[], metavar="DIR", help="model folders"
    )
    align.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="FILE",
        help="prompts.parquet, or lines of JSON with question, answer and prompt",
    )
    align.add_argument(
        "--grader",
        required=True,
        help="of answers: letter, boolean, integer, world, choice, rule or math_verify",
    )
    align.add_argument(
        "--demonstrate",
        action="store_true",
        help="the student with a right response in its prompt is a teacher, too",
    )
    numbers = {
        "n": (16, "questions, the first of the file"),
        "rollouts": (64, "rollouts of each question at first; the paper: 200"),
        "min-visits": (40, "rollouts after each token that is looked at closely; the paper: 100"),
        "min-children-visits": (20, "rollouts that a choice must have to count"),
        "max-new-tokens": (2048, "longest response in tokens"),
        "max-prompt-tokens": (1024, "longest prompt in tokens, without a demonstration"),
        "max-teacher-prompt-tokens": (4096, "the same with one"),
        "batch-size": (64, "responses that are sampled at a time"),
    }
    for name, (value, about) in numbers.items():
        text = f"{about}; %(default)s if not given"
        align.add_argument(f"--{name}", type=_whole(1), default=value, metavar="N", help=text)
    align.add_argument("--system", help="a system prompt; none if not given")
    align.add_argument(
        "--chat-template", default="{}", metavar="JSON", help="arguments of the chat template"
    )
    for name, values in {
        "backend": ("transformers", "vllm"),
        "dtype": ("float32", "bfloat16"),
    }.items():
        text = f"{' or '.join(values)}; %(default)s if not given"
        align.add_argument(f"--{name}", choices=values, default=values[0], help=text)
    align.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of sampling")
    align.add_argument(
        "--out", type=Path, metavar="DIR", help="folder that keeps all of it; none if not given"
    )


def _add_plan(add: Callable[..., argparse.ArgumentParser]) -> None:
    plan = add(
        "plan",
        help="what would run, what is there, and what it would cost",
        usage="opd plan [--configfile FILE ...] [--config KEY=VALUE ...] [options]",
    )
    plan.add_argument(
        "--configfile",
        nargs="+",
        type=Path,
        default=[Path("config/mini.yaml")],
        metavar="FILE",
        help=f"{CONFIGS}; config/mini.yaml if not given",
    )
    _add_config(plan)
    part = plan.add_mutually_exclusive_group()
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
    plan.add_argument(
        "--gpus",
        type=_whole(1),
        metavar="N",
        help="devices to share the jobs; as many as the widest job has if not given",
    )
    plan.add_argument(
        "--device",
        help="as torch names it, or a part of that; H100, what was measured, or cpu, as the config "
        "computes, if not given",
    )
    plan.add_argument("--jobs", action="store_true", help="list every job")
    plan.add_argument(
        "--calibration",
        type=Path,
        default=RATES,
        metavar="FILE",
        help="rates of `opd calibrate`; %(default)s if not given",
    )


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
    if arguments.align:
        from opd.microscope.command import align

        if not cfg["grader"]:
            raise Bad("an alignment needs one", "--grader", "name one, or leave --align out")
        more = {"rollouts": 64, "min_visits": 40, "min_children_visits": 20, "demonstrate": False}
        out = arguments.out / "align" if arguments.out else None
        teachers = [arguments.teacher]
        print(f"\n{align(arguments.student, teachers, arguments.prompts, out, cfg | more)}", end="")


def _align(arguments: argparse.Namespace) -> None:
    from opd.microscope.command import align

    given = vars(arguments)
    names = (
        *("n", "rollouts", "min_visits", "min_children_visits", "max_new_tokens", "grader"),
        *("max_prompt_tokens", "max_teacher_prompt_tokens", "batch_size", "system", "seed"),
        *("backend", "dtype", "demonstrate"),
    )
    cfg = {name: given[name] for name in names}
    cfg["chat_template_kwargs"] = _object(arguments.chat_template, "--chat-template")
    cfg["threads"] = len(os.sched_getaffinity(0))
    folders = (arguments.student, arguments.teacher, arguments.questions, arguments.out)
    print(align(*folders, cfg), end="")


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
        arguments.config,
    ):
        print(line)


def _calibrate(arguments: argparse.Namespace) -> None:
    from opd import calibration

    tables = calibration.tables(arguments.reference)
    done = [calibration.finished(folder) for folder in arguments.results]
    calibration.write(arguments.output, calibration.calibrate(done, tables))


def _lock(arguments: argparse.Namespace) -> None:
    from opd.lock import lock
    from opd.recipes import read

    for name, commit in lock(read(arguments.files, arguments.config), arguments.lock).items():
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
    "align": _align,
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

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
from typing import Any, NoReturn

from opd.core.errors import UserError
from opd.core.files import read_json
from opd.core.security import Redacting, redacted, refuse_code, visible
from opd.stages.registry import VERBS
from opd.stages.run import run_stage

RATES = Path("results/calibration.yaml")


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"not JSON ({error})", option, "give a JSON object") from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", option, "write it as {...}")
    return value


def _settings(text: str) -> dict[str, Any]:
    """``--cfg``: a JSON object, or the path of a file (a ``manifest.json`` will do)."""
    if text.lstrip().startswith("{"):
        return _object(text, "--cfg")
    value = read_json(Path(text))
    value = value.get("cfg", value) if isinstance(value, dict) else value
    if not isinstance(value, dict):
        raise UserError("not a JSON object", "--cfg", "give an object or a file name")
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
    _add_doctor(add)
    _add_audit(add)
    _add_adopt(add)
    why = add("why", help="what made an artifact, from what, and how to make it again")
    why.add_argument(
        "path", type=Path, help="its folder, a file of it, or results/NAME/MODEL/sSEED"
    )
    diff = add("diff", help="where two artifacts, or two results folders, part ways")
    for name in "ab":
        diff.add_argument(name, type=Path, help="results/NAME, or an artifact")
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
    _add_gc(add)
    _add_export(add)
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


def _add_gc(add: Callable[..., argparse.ArgumentParser]) -> None:
    from opd.provenance.gc import KINDS

    gc = add("gc", help="list what nothing in a folder of results needs, and remove what is named")
    gc.add_argument(
        "results",
        nargs="?",
        type=Path,
        default=Path("results"),
        help="the folder with .store; %(default)s if not given",
    )
    gc.add_argument(
        "--remove",
        nargs="+",
        choices=KINDS,
        default=[],
        metavar="KIND",
        help="; ".join(f"{kind}: {about}" for kind, about in KINDS.items()),
    )


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


def _add_configs(verb: argparse.ArgumentParser, about: str, default: list[Path] | None) -> None:
    verb.add_argument(
        "--configfile",
        nargs="+",
        type=Path,
        default=default,
        metavar="FILE",
        help=f"{CONFIGS}; {about} if not given",
    )
    _add_config(verb)


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
    _add_configs(plan, "config/mini.yaml", [Path("config/mini.yaml")])
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


def _add_doctor(add: Callable[..., argparse.ArgumentParser]) -> None:
    doctor = add(
        "doctor",
        help="what a run would lack on this machine, before anything is started",
        usage="opd doctor [--configfile FILE ...] [--config KEY=VALUE ...] [--profile NAME]",
    )
    _add_configs(doctor, "that of the profile, or config/mini.yaml,", [])
    doctor.add_argument(
        "--profile",
        metavar="NAME",
        help="as for snakemake: looks at the cluster too; this machine alone if not given",
    )
    doctor.add_argument("--json", action="store_true", help="print all of it as JSON")


def _add_export(add: Callable[..., argparse.ArgumentParser]) -> None:
    export = add(
        "export",
        help="pack results, with what made them, as an RO-Crate",
        usage="opd export RESULTS --out FILE.zip [options]",
    )
    export.add_argument("results", type=Path, help="results/NAME")
    export.add_argument(
        "--out", type=Path, required=True, help="a file that ends in .zip, or a new folder"
    )
    export.add_argument(
        "--target",
        action="append",
        default=[],
        help="a figure, table, page or folder: what is behind it alone; may be repeated; all that "
        "is there if not given",
    )
    export.add_argument(
        "--full",
        action="store_true",
        help="with weights, fetched objects and files above 50 MB, which are only listed otherwise",
    )
    export.add_argument(
        "--agent", metavar="NAME <URL>", help="who ran it; nobody is named if not given"
    )


def _add_adopt(add: Callable[..., argparse.ArgumentParser]) -> None:
    adopt = add("adopt", help="put a checkpoint or rollouts from elsewhere in a recipe's place")
    adopt.add_argument("path", type=Path, help="a checkpoint's folder, or a file of rollouts")
    adopt.add_argument(
        "--as",
        dest="recipe",
        required=True,
        metavar="RECIPE",
        help="a model or generation of the config; NAME/sSEED where there are several seeds",
    )
    _add_configs(adopt, "config/mini.yaml", [Path("config/mini.yaml")])


def _add_audit(add: Callable[..., argparse.ArgumentParser]) -> None:
    audit = add("audit", help="whether results are what was made, complete and current")
    audit.add_argument("path", type=Path, help="results, results/NAME, or an artifact below it")
    _add_configs(audit, "what the last run found in plan.json", None)
    audit.add_argument(
        "--json", type=Path, metavar="FILE", help="also written there; - is standard output"
    )
    audit.add_argument(
        "--allow",
        nargs="+",
        choices=("stale", "orphaned", "missing"),
        default=[],
        help="states that end well, too; none if not given",
    )
    audit.add_argument(
        "--strict",
        action="store_true",
        help="other versions, and store entries that nothing links, end badly, too",
    )
    audit.add_argument(
        "--store", type=Path, metavar="DIR", help="where files are whose links lead nowhere"
    )


def _schema(arguments: argparse.Namespace) -> None:
    from opd.recipes.config import schema

    print(json.dumps(schema(), indent=1, sort_keys=True))


def _watch(arguments: argparse.Namespace) -> None:
    from opd.provenance.watch import watch

    for line in watch(arguments.folder):
        print(visible(line), flush=True)


def _preflight(arguments: argparse.Namespace) -> None:
    from opd.probes.preflight import preflight

    given = vars(arguments)
    same = ("n", "samples", "max_new_tokens", "max_prompt_tokens", "temperature", "grader")
    cfg = {name: given[name] for name in (*same, "backend", "dtype", "seed")}
    cfg["metrics_k"] = arguments.k
    cfg["chat_template_kwargs"] = _object(arguments.chat_template, "--chat-template")
    cfg["threads"] = len(os.sched_getaffinity(0))
    refuse_code(arguments.student)
    refuse_code(arguments.teacher)
    folders = (arguments.student, arguments.teacher, arguments.prompts, arguments.out)
    print(visible(preflight(*folders, cfg)), end="")
    if arguments.align:
        from opd.microscope.command import align

        if not cfg["grader"]:
            raise UserError("an alignment needs one", "--grader", "name one, or leave --align out")
        more = {"rollouts": 64, "min_visits": 40, "min_children_visits": 20, "demonstrate": False}
        out = arguments.out / "align" if arguments.out else None
        teachers = [arguments.teacher]
        said = align(arguments.student, teachers, arguments.prompts, out, cfg | more)
        print(f"\n{visible(said)}", end="")


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
    for model in (arguments.student, *arguments.teacher):
        refuse_code(model)
    print(visible(align(*folders, cfg)), end="")


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


def _audit(arguments: argparse.Namespace) -> int:
    import time

    from opd.provenance import audit
    from opd.stages.on_disk import results_folders

    plan = None
    if arguments.config and not arguments.configfile:
        raise UserError("settings of no config", "--config", "name its files with --configfile")
    if arguments.configfile:
        from opd.plan.state import described

        if len(results_folders(arguments.path.absolute())) > 1:
            remedy = "name results/NAME"
            raise UserError("a config describes one results folder", str(arguments.path), remedy)
        plan = described(arguments.configfile, arguments.config)
    started = time.monotonic()
    result = audit.audit(arguments.path, plan, arguments.store)
    seconds = time.monotonic() - started
    as_json = json.dumps(audit.as_json(result), indent=1)
    if arguments.json and str(arguments.json) != "-":
        arguments.json.write_text(as_json + "\n")
    if arguments.json and str(arguments.json) == "-":
        print(as_json)
    else:
        for line in audit.lines(result, str(arguments.path), seconds):
            print(line)
    return int(audit.fails(result, arguments.allow, arguments.strict))


def _why(arguments: argparse.Namespace) -> None:
    from opd.provenance.why import lines

    for line in lines(arguments.path):
        print(line)


def _diff(arguments: argparse.Namespace) -> int:
    from opd.provenance.diff import compare, lines

    found = compare(arguments.a, arguments.b)
    for line in lines(arguments.a, arguments.b, found):
        print(line)
    return int(found.any)


def _adopt(arguments: argparse.Namespace) -> None:
    from opd.plan.state import artifacts_of, beside
    from opd.provenance.adopt import adopt, recipe
    from opd.recipes.resolve import read

    config = read(arguments.configfile, arguments.config)
    artifacts = artifacts_of(config, beside(arguments.configfile))
    artifact, results = recipe(arguments.recipe, artifacts), Path("results") / config.name
    folder = adopt(arguments.path, artifact, results, results.parent / ".store")
    print(f"adopted: {folder} is {arguments.path}; remove {folder} to have it made instead")


def _calibrate(arguments: argparse.Namespace) -> None:
    from opd.plan import calibrate

    tables = calibrate.tables(arguments.reference)
    done = [calibrate.finished(folder) for folder in arguments.results]
    calibrate.write(arguments.output, calibrate.calibrate(done, tables))


def _export(arguments: argparse.Namespace) -> None:
    from opd.provenance.export import export

    given = arguments
    for line in export(given.results, given.target, given.out, given.full, given.agent):
        print(visible(line))


def _lock(arguments: argparse.Namespace) -> None:
    from opd.plan.hub_lock import lock
    from opd.recipes.resolve import read

    for name, commit in lock(read(arguments.files, arguments.config), arguments.lock).items():
        print(f"{commit}  {name}")


def _fetches(arguments: argparse.Namespace) -> bool:
    """Whether a verb asks the hub: all other stages read only what was declared."""
    if arguments.verb == "prompts":
        return "hub" in _settings(arguments.cfg).get("source", {})
    return arguments.verb in ("fetch", "dataset", "lock", "doctor")


def _doctor(arguments: argparse.Namespace) -> None:
    from opd.doctor import examine as doctor

    found = doctor.examine(arguments.configfile, arguments.config, arguments.profile)
    if arguments.json:
        told = [one._asdict() for one in found]
        print(json.dumps({"ready": doctor.ready(found), "findings": told}, indent=1))
    else:
        print("\n".join(doctor.lines(found)))
    if not doctor.ready(found):
        sys.exit(1)


def _gc(arguments: argparse.Namespace) -> None:
    from opd.provenance.gc import lines

    for line in lines(arguments.results, arguments.remove):
        print(line)


def _stage(arguments: argparse.Namespace) -> None:
    if arguments.plan:
        from opd.stages.fresh import check

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


# What is no stage, with its exit status. Each imports what it needs: a verb starts without the
# others' libraries.
OTHERS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "schema": _schema,
    "preflight": _preflight,
    "align": _align,
    "watch": _watch,
    "plan": _plan,
    "audit": _audit,
    "why": _why,
    "adopt": _adopt,
    "diff": _diff,
    "calibrate": _calibrate,
    "export": _export,
    "lock": _lock,
    "doctor": _doctor,
    "gc": _gc,
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb; a ``UserError`` ends with its one line on stderr and exit status 2."""
    arguments = _parser().parse_args(argv)
    if argv is None:  # a process of its own
        sys.stderr = Redacting(sys.stderr)
        # Libraries may ask whether to run a model's own code: there is nobody who says yes.
        sys.stdin = open(os.devnull)  # noqa: SIM115
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A stage that is told to stop clears its unfinished work away, as after an error.
    signal.signal(signal.SIGTERM, _told)
    try:
        if not _fetches(arguments):
            os.environ["HF_HUB_OFFLINE"] = "1"
        status = OTHERS.get(arguments.verb, _stage)(arguments)
        if status:
            sys.exit(status)
    except UserError as bad:
        _fail(bad)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, start again", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as from `opd watch FOLDER | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        where = getattr(arguments, "store", f"opd {arguments.verb}")
        shortage = _shortage(error, str(where))
        if shortage is None:
            raise
        _fail(shortage)


def _fail(bad: UserError) -> NoReturn:
    print(f"error: {visible(redacted(str(bad)))}", file=sys.stderr)
    sys.exit(2)


def _told(*_: Any) -> NoReturn:
    # A handler may run in the middle of a print.
    os.write(2, b"told to stop: what was finished is kept, start again\n")
    sys.exit(143)


def _shortage(error: Exception, place: str) -> UserError | None:
    """What a user can mend of the errors that libraries raise: disk, rights, memory. ``place`` is
    where, if they do not name a file."""
    number, text = getattr(error, "errno", None), str(error)
    file = getattr(error, "filename", None)
    where = str(file) if file else place
    # What is written in Rust or C++ tells a full disk in words only.
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text:
        reason = os.strerror(number or errno.ENOSPC)
        return UserError(f"no room ({reason})", where, "free space, start again")
    if "No usable temporary directory" in text:
        return UserError(
            "no room for temporary files, or no right", "TMPDIR", "free space, start again"
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(
            f"not allowed ({os.strerror(number)})",
            where,
            "have it made accessible (writable, if it is a result), start again",
        )
    # Of torch only the name is known here: it is not imported for this.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or ("can't allocate memory" in text)
    ):
        first = text.splitlines()[0] if text else "out of it"
        return UserError(
            f"memory does not suffice ({first})",
            where,
            "give the job more memory or the stage less at a time (batch_size, micro_batch)",
        )
    return None

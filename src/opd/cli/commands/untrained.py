"""``opd preflight`` and ``opd align``: what a few rollouts say of models that are not trained."""

import argparse
import os
from pathlib import Path
from typing import Any

from opd.cli.commands import options
from opd.cli.commands.options import whole
from opd.core.errors import UserError
from opd.core.security import refuse_code
from opd.data.templates import TEMPLATES
from opd.grading.graders import GRADERS
from opd.models.source import GRAMMAR, local

ANSWERS = f"of answers: {', '.join(GRADERS)}"
QUESTIONS = "prompts.parquet, or lines of JSON with question, answer and prompt"
CHOICES = {
    "backend": (("transformers", "vllm"), "what samples"),
    "dtype": (("float32", "bfloat16"), "what models are computed in"),
}
# Options that are settings of the stages -> default, and what they are.
IN_MINUTES = "so that it ends in about three minutes if not given"
SIZES = {
    "n": "prompts, the first of the file",
    "samples": "rollouts of each prompt",
    "max_new_tokens": "longest response in tokens",
}
PREFLIGHT = {
    "max_prompt_tokens": (1024, "longest prompt in tokens"),
    "k": (16, "tokens in the top k sets of student and teacher"),
}
ALIGN = {
    "n": (16, "questions, the first of the file"),
    "rollouts": (64, "rollouts of each question at first; the paper: 200"),
    "min_visits": (40, "rollouts after each token that is looked at closely; the paper: 100"),
    "min_children_visits": (20, "rollouts that a choice must have to count"),
    "max_new_tokens": (2048, "longest response in tokens"),
    "max_prompt_tokens": (1024, "longest prompt in tokens, without a demonstration"),
    "max_teacher_prompt_tokens": (4096, "the same with one"),
    "batch_size": (64, "responses that are sampled at a time"),
}


def add(command: options.Add) -> None:
    preflight = command(
        "preflight",
        _preflight,
        "what a few dozen rollouts say of a student and a teacher, untrained",
        online=options.asks_hub,
        usage="opd preflight --student MODEL --teacher MODEL --questions FILE [options]",
    )
    options.add(preflight, "--student", GRAMMAR, required=True, metavar="MODEL")
    options.add(preflight, "--teacher", GRAMMAR, required=True, metavar="MODEL")
    options.add_path(preflight, "--questions", QUESTIONS, required=True, metavar="FILE")
    for name, about in SIZES.items():
        about = f"{about}; {IN_MINUTES}"
        options.add(preflight, f"--{name.replace('_', '-')}", about, type=whole(1), metavar="N")
    options.add_counts(preflight, PREFLIGHT)
    about = (
        f"what asks, {', '.join(TEMPLATES)} or text with {{question}}; the bare prompt if not given"
    )
    options.add(preflight, "--template", about)
    about = "that rollouts are sampled at"
    options.add(preflight, "--temperature", about, 1.0, type=options.positive, metavar="T")
    options.add(preflight, "--grader", f"{ANSWERS}; nothing is graded if not given")
    about = "measure the alignment, too (`opd align`): many more rollouts, needs a grader"
    options.add_flag(preflight, "--align", about)
    _add_common(preflight)

    align = command(
        "align",
        _align,
        "whether teachers point a student towards right answers, token by token, untrained",
        online=options.asks_hub,
        usage="opd align --student MODEL --teacher MODEL [MODEL ...] --questions FILE --grader NAME"
        " [options]",
    )
    options.add(align, "--student", GRAMMAR, required=True, metavar="MODEL")
    options.add(align, "--teacher", "the same, one or more", [], nargs="+", metavar="MODEL")
    options.add_path(align, "--questions", QUESTIONS, required=True, metavar="FILE")
    options.add(align, "--grader", ANSWERS, required=True)
    about = "the student with a right response in its prompt is a teacher, too"
    options.add_flag(align, "--demonstrate", about)
    options.add_counts(align, ALIGN)
    options.add(align, "--system", "a system prompt; none if not given")
    _add_common(align)


def _add_common(parser: argparse.ArgumentParser) -> None:
    about = 'arguments of the chat templates, as {"enable_thinking": false}'
    options.add(parser, "--chat-template", about, "{}", metavar="JSON")
    for name, (choices, about) in CHOICES.items():
        about = f"{about}: {' or '.join(choices)}"
        options.add(parser, f"--{name}", about, choices[0], choices=choices)
    options.add(parser, "--seed", "of sampling", 0, type=options.whole(0), metavar="N")
    options.add_path(
        parser, "--out", "folder that keeps all of it; none if not given", metavar="DIR"
    )


def _model(text: str, option: str) -> Path:
    """The folder of a model, which is refused if it holds code."""
    from opd.models.fetch import at_hand

    folder = at_hand(text, option)
    refuse_code(folder)
    return folder


def _settings(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Settings of the stages: these options, and what both commands have."""
    values = vars(arguments)
    return {
        **{name: values[name] for name in (*names, *CHOICES, "grader", "seed")},
        "chat_template_kwargs": options.json_object(arguments.chat_template, "--chat-template"),
        "threads": len(os.sched_getaffinity(0)),
    }


def _questions(path: Path) -> Path:
    """The file with the rows of a prompt set that is named by its artifact; any other as it is."""
    place = local(str(path))
    return place / "prompts.parquet" if place.is_dir() else path


def _preflight(arguments: argparse.Namespace) -> None:
    if arguments.align and not arguments.grader:
        raise UserError("an alignment needs one", "--grader", "name one, or leave --align out")
    student = _model(arguments.student, "--student")
    teacher = _model(arguments.teacher, "--teacher")
    prompts = _questions(arguments.questions)
    # What is wrong with the names is said before libraries are loaded.
    from opd.probes.preflight import preflight

    cfg = _settings(arguments, *SIZES, *PREFLIGHT, "temperature", "template")
    cfg["metrics_k"] = cfg.pop("k")
    print(preflight(student, teacher, prompts, arguments.out, cfg), end="")
    if arguments.align:
        from opd.microscope.command import align

        given = {name: value for name, value in cfg.items() if value is not None}
        cfg = {name: value for name, (value, _) in ALIGN.items()} | given | {"demonstrate": False}
        out = arguments.out / "align" if arguments.out else None
        print(f"\n{align(student, [teacher], prompts, out, cfg)}", end="")


def _align(arguments: argparse.Namespace) -> None:
    cfg = _settings(arguments, *ALIGN, "system", "demonstrate")
    student = _model(arguments.student, "--student")
    teachers = [_model(teacher, "--teacher") for teacher in arguments.teacher]
    questions = _questions(arguments.questions)
    from opd.microscope.command import align

    print(align(student, teachers, questions, arguments.out, cfg), end="")

"""``opd align``: the microscope on model folders of a user's own."""

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import read_json
from opd.data.schemas import PROMPTS
from opd.grading.graders import grader_named
from opd.microscope import demonstrations, measure, pool, schemas, tree
from opd.probes.preflight import read_questions

# Of what the stages are told, what a user is not asked. As the recipes' defaults.
FIXED: dict[str, Any] = {
    "tau": 0.02,
    "top_gradient": 3,
    "top_difference": 3,
    "first_window": 50,
    "window_growth": 2.0,
    "correct_paths": 2,
    "incorrect_paths": 2,
    "counts": "unforced",
    "mode": "renormalise",
    "method": "reverse_kl",
}
OWN = "itself, with a right response"
_COLUMNS = (
    ("weighted_cosine", "weighted", "+.3f"),
    ("cosine", "mean", "+.3f"),
    ("positive_ratio", "aligned", ".2f"),
    ("teacher_advantage", "advantage", "+.4f"),
)


def align(
    student: Path,
    teachers: Sequence[Path],
    questions: Path,
    out: Path | None,
    cfg: Mapping[str, Any],
) -> str:
    """The report on a student and its teachers (model folders), as Markdown; all of it is kept in
    ``out`` if given, where a run that was stopped goes on.

    questions: as ``opd preflight`` takes prompts, with answers. cfg: those of
    ``opd.models.sampling.settings``, n (questions), rollouts, min_visits, min_children_visits,
    grader, demonstrate (whether the student with a right response of its own in the prompt is a
    teacher, too), optional system. Raises ``UserError`` for what is missing; what cannot be
    measured is in the report with its reason.
    """
    for folder in (student, *teachers):
        if not folder.is_dir():
            raise UserError("no such folder", str(folder), "give the folder of a model")
    if not teachers and not cfg["demonstrate"]:
        raise UserError("there is no teacher", "--teacher", "name one, or add --demonstrate")
    rows = read_questions(questions)[: cfg["n"]]
    if not rows:
        raise UserError("there are no questions", str(questions), "give a file that is not empty")
    grader_named(cfg["grader"])
    for row in rows:
        if not row["answer"]:
            raise UserError(
                "it has no answer", f"{questions}: question '{row['id']}'", "give it one"
            )
    with tempfile.TemporaryDirectory(prefix="opd-align-") as temporary:
        made = Path(temporary) if out is None else out
        made.mkdir(parents=True, exist_ok=True)
        text = _measured({**FIXED, **cfg}, student, teachers, rows, made, out is not None)
        tables.write_text(made / "align.md", text)
        return text


def _measured(
    cfg: dict[str, Any],
    student: Path,
    teachers: Sequence[Path],
    rows: Sequence[dict[str, Any]],
    made: Path,
    kept: bool,
) -> str:
    asked, cache = _empty(made / "questions"), made / ".cache"
    tables.write(asked / "prompts.parquet", rows, PROMPTS)
    inputs = {"student": student, "prompts": asked}
    names = _names(teachers)
    every = [{"name": name, "own": False, "correct": 0, "wrong": 0} for name in names]
    inputs |= {f"teacher:{name}": path for name, path in zip(names, teachers, strict=True)}
    if cfg["demonstrate"]:
        every.append({"name": OWN, "own": True, "correct": 1, "wrong": 0})
        inputs[f"demos:{OWN}"] = _empty(made / "demonstrations")
        wanted = {"correct": 1, "wrong": 0, "trials": 60, "temperature": 0.7}
        demonstrations.run(
            {**cfg, **wanted},
            {"model": student, "prompts": asked},
            inputs[f"demos:{OWN}"],
            cache,
        )
    kwargs = cfg.get("chat_template_kwargs")
    every = [{**one, "chat_template_kwargs": kwargs} for one in every]
    grown = _empty(made / "tree")
    tree.run({**cfg, "teachers": every}, inputs, grown, cache)
    found, payloads = {}, {}
    for number, one in enumerate(every, 1):
        payload = _empty(made / f"teacher-{number}")
        title = f"{student.name} as {one['name']} sees it"
        measure.run({**cfg, "teacher": one, "title": title}, {**inputs, "tree": grown}, payload)
        found[str(one["name"])] = read_json(payload / "probe.json")["values"]
        payloads[str(one["name"])] = payload
    together = _empty(made / "together")
    pool.run(
        {"names": [*payloads]},
        {f"of:{i}": payload for i, payload in enumerate(payloads.values())},
        together,
    )
    report = read_json(grown / "report.json")
    reasons = [
        f"{row['prompt_id']}: {row['reason']}"
        for row in tables.read(grown / "questions.parquet", schemas.QUESTIONS).to_pylist()
        if row["reason"]
    ]
    for one in report["left_out"]:
        reasons.append(f"{one['teacher']}, {one.get('prompt_id', 'all')}: {one['reason']}")
    return _markdown(student, found, report, reasons, payloads if kept else {})


def _names(teachers: Sequence[Path]) -> list[str]:
    """Folder names, with a number where two are alike."""
    names = [path.resolve().name for path in teachers]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _empty(folder: Path) -> Path:
    """A folder without what an earlier run left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _markdown(
    student: Path,
    found: Mapping[str, Mapping[str, Any]],
    report: Mapping[str, Any],
    reasons: Sequence[str],
    pages: Mapping[str, Path],
) -> str:
    lines = [
        "# Alignment",
        "",
        f"- student: {student}",
        f"- {report['questions']} questions, of which {report['analysed']} have right and wrong "
        f"rollouts; {report['rollouts']:,} rollouts. Nothing was trained.",
        "",
        "| teacher | " + " | ".join(title for _, title, _ in _COLUMNS) + " | tokens | questions |",
        "| --- |" + " ---: |" * (len(_COLUMNS) + 2),
    ]

    def rank(name: str) -> float:
        score = _value(found[name], "weighted_cosine")
        return math.inf if score is None else -score

    order = sorted(found, key=rank)
    for name in order:
        values = found[name]
        cells = [_bounded(values, key, form) for key, _, form in _COLUMNS]
        counts = [f"{_value(values, key) or 0:.0f}" for key in ("nodes", "questions")]
        lines.append(f"| {name} | {' | '.join([*cells, *counts])} |")
    lines += [
        "",
        "Alignment is the cosine, token by token, of the teacher's gradient (reverse KL) and the",
        "one that raises the chance of a right answer: +1 towards success, -1 away from it, 0 on",
        "average for a teacher that knows nothing of it. *weighted* by how much the choice at a",
        "token matters (the steadier number), the plain *mean*, the share of tokens *aligned*;",
        "*advantage*: the chance of a right answer after the teacher's choice less that after the",
        "student's. In brackets 95 % intervals over questions. In the paper (Unmasking On-Policy",
        "Distillation) means of good teachers are 0.03 to 0.05, weighted ones about 0.1. Whether",
        "this predicts what training does, the paper does not say.",
    ]
    if reasons:
        lines += ["", "Not measured:", "", *(f"- {reason}" for reason in reasons)]
    if pages:
        lines += ["", "Token by token:", ""]
        lines += [f"- {name}: {folder / 'page.html'}" for name, folder in pages.items()]
    return "\n".join(lines) + "\n"


def _value(values: Mapping[str, Any], name: str) -> float | None:
    found: float | None = values.get(name, {}).get("value")
    return found


def _bounded(values: Mapping[str, Any], name: str, form: str) -> str:
    one = values.get(name)
    if one is None or one["value"] is None:
        return "-"
    return f"{one['value']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"

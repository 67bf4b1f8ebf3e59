"""``opd align``: the microscope on model folders of a user's own."""

import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import read_json
from opd.core.markdown import render
from opd.data.schemas import PROMPTS
from opd.microscope import demonstrations, measure, pool, schemas, tree
from opd.probes.preflight import read_questions, require_folders
from opd.stages.on_disk import below

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
    require_folders(student, *teachers)
    if not teachers and not cfg["demonstrate"]:
        raise UserError("there is no teacher", "--teacher", "name one, or add --demonstrate")
    rows = read_questions(questions, cfg["n"], cfg["grader"])
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
    prompts, cache = _empty(made / "questions"), made / ".cache"
    tables.write(prompts / "prompts.parquet", rows, PROMPTS)
    inputs = {"student": student, "prompts": prompts}
    names = _names(teachers)
    inputs |= {f"teacher:{name}": path for name, path in zip(names, teachers, strict=True)}
    usual = {"correct": 0, "wrong": 0, "chat_template_kwargs": cfg.get("chat_template_kwargs")}
    every = [{**usual, "name": name, "own": False} for name in names]
    if cfg["demonstrate"]:
        every.append({**usual, "name": OWN, "own": True, "correct": 1})
        inputs[f"demos:{OWN}"] = demos = _empty(made / "demonstrations")
        few = {"correct": 1, "wrong": 0, "trials": 60, "temperature": 0.7}
        demonstrations.run({**cfg, **few}, {"model": student, "prompts": prompts}, demos, cache)
    grown = _empty(made / "tree")
    tree.run({**cfg, "teachers": every}, inputs, grown, cache)
    payloads = {}
    for number, teacher in enumerate(every, 1):
        name = str(teacher["name"])
        payloads[name] = _empty(made / f"teacher-{number}")
        settings = {**cfg, "teacher": teacher, "title": f"{called(student)} as {name} sees it"}
        measure.run(settings, {**inputs, "tree": grown}, payloads[name])
    of_teachers = {f"of:{i}": payload for i, payload in enumerate(payloads.values())}
    pool.run({"names": [*payloads]}, of_teachers, _empty(made / "together"))
    report = read_json(grown / "report.json")
    questions = tables.read(grown / "questions.parquet", schemas.QUESTIONS).to_pylist()
    reasons = [f"{row['prompt_id']}: {row['reason']}" for row in questions if row["reason"]]
    reasons += [
        f"{row['teacher']}, {row.get('prompt_id', 'all')}: {row['reason']}"
        for row in report["left_out"]
    ]
    values = {n: read_json(payload / "probe.json")["values"] for n, payload in payloads.items()}
    return render(
        package_file(__file__, "align.md.jinja"),
        student=student,
        report=report,
        teachers=sorted(values.items(), key=_rank),
        reasons=reasons,
        pages={n: payload / "page.html" for n, payload in payloads.items()} if kept else {},
    )


def _rank(teacher: tuple[str, Mapping[str, Any]]) -> float:
    """The best alignment first, what has none last."""
    score = teacher[1].get("weighted_cosine", {}).get("value")
    return math.inf if score is None else -score


def _names(teachers: Sequence[Path]) -> list[str]:
    """What teachers are called, with a number where two are alike."""
    names = [called(path) for path in teachers]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def called(model: Path) -> str:
    """What a model is called by people: ORG/NAME in the hub's cache, MODEL/sSEED below a results
    folder, where the link to its files ends in a digest; else the name of its folder."""
    if cached := re.search("/models--([^/]+)--([^/]+)/snapshots/", f"{model.absolute()}/"):
        return "/".join(cached.groups())
    folder = below(str(model.absolute()))
    if folder.startswith("models/"):
        return folder.removeprefix("models/").removesuffix("/payload")
    return model.resolve().name


def _empty(folder: Path) -> Path:
    """A folder without what an earlier run left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder

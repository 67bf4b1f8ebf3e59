"""Phase 1 of the paper's algorithm (section 2.5, appendix D): rollouts of a student on each
question, a few paths of them, and more rollouts where teachers and student differ.

One set of rollouts serves all teachers. What is sampled is journaled by the sampler and asked for
in an order that depends on nothing else, so a run that was killed goes on where it was.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.errors import LeftOut, UserError
from opd.grading.graders import grade_finished
from opd.microscope import demonstrations, schemas, screening, targeting
from opd.microscope.path_index import Counts, PathIndex
from opd.microscope.scoring import compare
from opd.models.pairing import load_pair
from opd.models.prompts import read_prompts
from opd.models.sampling import Request, Response, Sampler

Row = dict[str, Any]
Teacher = Mapping[str, Any]
# Question -> path -> (depth, token) that get more rollouts.
Picks = dict[str, dict[int, list[tuple[int, int]]]]
# Requests that are sampled together.
BATCH = 4096


@dataclass
class Question:
    """One question: its prompt as the student reads it, its rollouts, its paths, and why it was
    left out, if it was."""

    row: Row
    prompt: list[int]
    index: PathIndex
    numbers: list[int] = field(default_factory=list)  # of the rollouts that are the paths
    reason: str | None = None
    targeted: Counter[bytes] = field(default_factory=Counter)  # rollouts by their prefix

    @property
    def id(self) -> str:
        return str(self.row["id"])


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``tree``: questions.parquet, paths.parquet, children.parquet, report.json, and every
    rollout below ``rollouts/``.

    cfg: those of ``opd.models.sampling.settings``, where max_new_tokens is the length of a whole
    rollout; grader, rollouts (G), correct_paths, incorrect_paths, teachers [{name, own, correct,
    wrong, chat_template_kwargs}], tau, top_gradient, top_difference, min_visits (N_min),
    first_window, window_growth, counts (``unforced`` or ``whole``: see ``PathIndex.children``);
    optional form, system, questions (the first so many). Inputs: student, prompts, optional
    screening (its kept questions are taken), ``teacher:NAME`` unless the teacher's weights are the
    student's own, ``demos:NAME`` where it sees demonstrations.

    A question without correct or without incorrect rollouts is left out with the reason, as is a
    teacher that does not fit the student, and a question for a teacher without its demonstrations;
    the rest goes on.
    """
    sampler = Sampler(inputs["student"], cfg, cache)
    questions = _questions(cfg, inputs, sampler, out / "rollouts")
    initial = [
        (question, Request(question.id, question.prompt, sample))
        for question in questions
        for sample in range(cfg["rollouts"])
    ]
    _add(cfg, sampler, initial)
    for question in questions:
        _choose_paths(question, cfg)
    sampler.stop()  # the models that are read next need the memory
    open_questions = [question for question in questions if question.reason is None]
    chosen, left_out = _chosen(cfg, inputs, open_questions)
    targeted = {}
    for name, picks in chosen.items():
        more = [asked for q in open_questions for asked in _targeted(q, picks, cfg)]
        targeted[name] = len(more)
        _add(cfg, sampler, more)
    sampler.stop()
    rows = _write_tables(out, questions, cfg["counts"])
    report = {
        "questions": len(rows),
        "analysed": len(open_questions),
        "rollouts": sum(row["rollouts"] for row in rows),
        "targeted": targeted,
        "left_out": left_out,
    }
    tables.write_json(out / "report.json", report)
    return {key: report[key] for key in ("questions", "analysed", "rollouts")}


def _questions(
    cfg: Mapping[str, Any], inputs: Mapping[str, Path], sampler: Sampler, folder: Path
) -> list[Question]:
    rows = read_prompts(inputs["prompts"])
    if "screening" in inputs:
        kept = screening.kept_questions(inputs["screening"])
        rows = [row for row in rows if row["id"] in kept]
    rows = rows[: cfg.get("questions")]
    if not rows:
        raise UserError("no question is left", "questions", "screen more of them")
    tokens = demonstrations.encoded(sampler, cfg, rows)
    return [
        Question(row, tokens[row["id"]], PathIndex(folder / f"{number:05d}"))
        for number, row in enumerate(rows)
    ]


def _add(
    cfg: Mapping[str, Any], sampler: Sampler, asked: Sequence[tuple[Question, Request]]
) -> None:
    """Sample, grade, and add to the rollouts of each question."""
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        responses = [
            _within(response, cfg["max_new_tokens"])
            for response in sampler.sample([request for _, request in batch])
        ]
        graded = grade_finished(
            [(response.text, response.finish) for response in responses],
            [question.row["answer"] for question, _ in batch],
            cfg["grader"],
        )
        numbers: dict[str, list[int]] = {}
        for number, (question, _) in enumerate(batch):
            numbers.setdefault(question.id, []).append(number)
        for own in numbers.values():
            batch[own[0]][0].index.append(
                [responses[i].token_ids for i in own],
                [graded[i] for i in own],
                [responses[i].finish == "stop" for i in own],
                [len(batch[i][1].prefix) for i in own],
            )


def _within(response: Response, longest: int) -> Response:
    """A response as it would be with room for so many tokens in all: the sampler gives those after
    a prefix as much room as a whole rollout has."""
    if len(response.token_ids) <= longest:
        return response
    return Response(response.token_ids[:longest], response.text, "length")


def _choose_paths(question: Question, cfg: Mapping[str, Any]) -> None:
    """Draw the paths of a question: correct and incorrect rollouts, evenly (the paper does not say
    how; ours), preferring those that ended by themselves, none twice."""
    records = question.index.records
    right = records["correct"].astype(bool)
    kinds = {"correct": right, "incorrect": ~right}
    lacking = [name for name, kind in kinds.items() if not kind.any()]
    if lacking:
        question.reason = f"none of {len(records)} rollouts is {lacking[0]}"
        return
    for name, kind in kinds.items():
        order = sorted(
            np.flatnonzero(kind).tolist(),
            key=lambda n: (not records["finished"][n], _rank(cfg["seed"], question.id, n)),
        )
        seen: set[bytes] = set()
        for number in order:
            tokens = question.index.rollout(number).tobytes()
            if len(seen) < cfg[f"{name}_paths"] and tokens not in seen:
                seen.add(tokens)
                question.numbers.append(number)
    question.index.add_paths([question.index.rollout(n).tolist() for n in question.numbers])


def _rank(seed: int, id: str, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{id}/{number}".encode()).digest()


def _chosen(
    cfg: Mapping[str, Any], inputs: Mapping[str, Path], questions: Sequence[Question]
) -> tuple[dict[str, Picks], list[Row]]:
    """Teacher -> question -> path -> tokens that it wants rollouts for; and what was left out, with
    the teacher, the question (where it is one) and the reason."""
    chosen: dict[str, Picks] = {}
    left_out: list[Row] = []
    for teacher in cfg["teachers"]:
        name = teacher["name"]
        picks = chosen[name] = {}
        try:
            pair = load_pair(cfg, inputs["student"], inputs.get(f"teacher:{name}"))
        except LeftOut as error:
            # One that cannot be loaded, or read the student's tokens: the others go on.
            left_out.append({"teacher": name, "reason": error.what})
            continue
        prompts = teacher_prompts(cfg, teacher, inputs, [question.row for question in questions])
        for question in questions:
            prompt = prompts[question.id]
            if isinstance(prompt, LeftOut):
                row = {"teacher": name, "prompt_id": question.id, "reason": str(prompt)}
                left_out.append(row)
                continue
            picks[question.id] = {
                path: targeting.choose(
                    compare(
                        pair, question.prompt, prompt, tokens.tolist(), tau=cfg["tau"]
                    ).candidates,
                    len(tokens),
                    cfg["top_gradient"],
                    cfg["top_difference"],
                    cfg["first_window"],
                    cfg["window_growth"],
                )
                for path, tokens in enumerate(question.index.paths)
            }
        del pair
    return chosen, left_out


def teacher_prompts(
    cfg: Mapping[str, Any],
    teacher: Teacher,
    inputs: Mapping[str, Path],
    rows: Sequence[Row],
) -> dict[str, list[int] | LeftOut]:
    """What a teacher reads before a rollout of each question, in token ids of the student's
    tokenizer; or why it cannot be asked: it lacks a demonstration, or the prompt is too long."""
    wanted = teacher["correct"], teacher["wrong"]
    texts = demonstrations.read(inputs[f"demos:{teacher['name']}"]) if any(wanted) else {}
    settings = {**cfg, "chat_template_kwargs": teacher.get("chat_template_kwargs") or {}}
    # More than the student's prompt: as many tokens as the teacher is given.
    settings["max_prompt_tokens"] = cfg.get("max_teacher_prompt_tokens", cfg["max_prompt_tokens"])
    sampler = Sampler(inputs["student"], settings)
    return demonstrations.encoded_with(sampler, cfg, rows, texts, *wanted)


def _targeted(
    question: Question, picks: Picks, cfg: Mapping[str, Any]
) -> Iterator[tuple[Question, Request]]:
    """Requests that bring what a teacher has chosen to min_visits, as counts are now."""
    if question.id not in picks:
        return
    paths, counts = question.index.paths, cfg["counts"]
    children = [question.index.children(path, counts) for path in range(len(paths))]
    for pick in targeting.top_up(picks[question.id], paths, children, cfg["min_visits"], counts):
        prefix = [*paths[pick.path][: pick.depth].tolist(), pick.token]
        if len(prefix) >= cfg["max_new_tokens"]:
            continue
        key = np.array(prefix, dtype="<i4").tobytes()
        name = f"{question.id} after {hashlib.sha256(key).hexdigest()[:16]}"
        for _ in range(pick.rollouts):
            yield question, Request(name, question.prompt, question.targeted[key], prefix)
            question.targeted[key] += 1


def _write_tables(out: Path, questions: Sequence[Question], counts: Counts) -> list[Row]:
    """Write questions.parquet, paths.parquet and children.parquet, and return the rows of the
    first."""
    rows, paths, children = [], [], []
    for question in questions:
        records = question.index.records
        rows.append(
            {
                "prompt_id": question.id,
                "question": question.row["question"],
                "answer": question.row["answer"],
                "rollouts": len(records),
                "correct": int(records["correct"].sum()),
                "targeted": int((records["prefix"] > 0).sum()),
                "reason": question.reason,
            }
        )
        for path, number in enumerate(question.numbers):
            at = {"prompt_id": question.id, "path": path}
            paths.append(
                {
                    **at,
                    "correct": bool(records[number]["correct"]),
                    "finished": bool(records[number]["finished"]),
                    "rollout": number,
                    "token_ids": question.index.paths[path].tolist(),
                }
            )
            taken = question.index.children(path, counts)
            children += [
                {**at, **dict(zip(taken._fields, child, strict=True))}
                for child in zip(*map(np.ndarray.tolist, taken), strict=True)
            ]
    tables.write(out / "questions.parquet", rows, schemas.QUESTIONS)
    tables.write(out / "paths.parquet", paths, schemas.PATHS)
    tables.write(out / "children.parquet", children, schemas.CHILDREN)
    return rows

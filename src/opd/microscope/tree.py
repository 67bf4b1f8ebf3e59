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
from opd.microscope import contexts, demonstrations, schemas, screening, targeting
from opd.microscope.path_index import PathIndex
from opd.microscope.scoring import Pair
from opd.models.sampling import Request, Response, Sampler, journals

Array = np.ndarray
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
    """Stage ``tree``: questions.parquet, paths.parquet, children.parquet, teachers.parquet,
    report.json, and every rollout below ``rollouts/``.

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
    sampler = Sampler(inputs["student"], cfg, journals(inputs["student"], cfg, cache))
    questions = _questions(cfg, inputs, sampler, out / "rollouts")
    initial = [
        (one, Request(one.id, one.prompt, sample))
        for one in questions
        for sample in range(cfg["rollouts"])
    ]
    _add(cfg, sampler, initial)
    for one in questions:
        _choose_paths(one, cfg)
    sampler.stop()  # the models that are read next need the memory
    open_questions = [one for one in questions if one.reason is None]
    chosen, left_out = _chosen(cfg, inputs, open_questions)
    asked = {teacher["name"]: 0 for teacher in cfg["teachers"]}
    for name, picks in chosen.items():
        more = [request for one in open_questions for request in _targeted(one, picks, cfg)]
        asked[name] = len(more)
        _add(cfg, sampler, more)
    sampler.stop()
    return _write(cfg, out, questions, asked, left_out)


def _questions(
    cfg: Mapping[str, Any], inputs: Mapping[str, Path], sampler: Sampler, folder: Path
) -> list[Question]:
    rows = demonstrations.read_prompts(inputs["prompts"])
    if "screening" in inputs:
        kept = screening.kept_questions(inputs["screening"])
        rows = [row for row in rows if row["id"] in kept]
    rows = rows[: cfg.get("questions")]
    if not rows:
        raise UserError("no question is left", "questions", "screen more of them")
    texts = [contexts.asked(cfg.get("form"), row["question"], row["prompt"]) for row in rows]
    rendered = [sampler.render(contexts.chat(text, cfg.get("system"))) for text in texts]
    tokens = sampler.encode(rendered, [row["id"] for row in rows])
    return [
        Question(row, prompt, PathIndex(folder / f"{number:05d}"))
        for number, (row, prompt) in enumerate(zip(rows, tokens, strict=True))
    ]


def _add(
    cfg: Mapping[str, Any], sampler: Sampler, asked: Sequence[tuple[Question, Request]]
) -> None:
    """Sample, grade, and add to the rollouts of each question."""
    longest = cfg["max_new_tokens"]
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        responses = [
            _within(response, longest)
            for response in sampler.sample([request for _, request in part])
        ]
        graded = grade_finished(
            [(r.text, r.finish) for r in responses],
            [one.row["answer"] for one, _ in part],
            cfg["grader"],
        )
        by_question: dict[str, list[int]] = {}
        for row, (one, _) in enumerate(part):
            by_question.setdefault(one.id, []).append(row)
        for rows in by_question.values():
            part[rows[0]][0].index.append(
                [responses[row].token_ids for row in rows],
                [graded[row] for row in rows],
                [responses[row].finish == "stop" for row in rows],
                [len(part[row][1].prefix) for row in rows],
            )


def _within(response: Response, longest: int) -> Response:
    """A response as it would be with room for so many tokens in all: the sampler gives those after
    a prefix as much room as a whole rollout has."""
    if len(response.token_ids) <= longest:
        return response
    return Response(response.token_ids[:longest], response.text, "length")


def _choose_paths(one: Question, cfg: Mapping[str, Any]) -> None:
    """Draw the paths of a question: correct and incorrect rollouts, evenly (the paper does not say
    how; ours), preferring those that ended by themselves, none twice."""
    records = one.index.records
    right = records["correct"].astype(bool)
    for kind, word in ((right, "correct"), (~right, "incorrect")):
        if not kind.any():
            one.reason = f"none of {len(records)} rollouts is {word}"
            return
    drawn: list[int] = []
    for kind, count in ((right, cfg["correct_paths"]), (~right, cfg["incorrect_paths"])):
        order = sorted(
            np.flatnonzero(kind).tolist(),
            key=lambda n: (not records["finished"][n], _rank(cfg["seed"], one.id, n)),
        )
        seen: set[bytes] = set()
        for number in order:
            tokens = one.index.rollout(number).tobytes()
            if len(seen) < count and tokens not in seen:
                seen.add(tokens)
                drawn.append(number)
    one.numbers = drawn
    one.index.add_paths([one.index.rollout(number).tolist() for number in drawn])


def _rank(seed: int, id: str, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{id}/{number}".encode()).digest()


def _chosen(
    cfg: Mapping[str, Any], inputs: Mapping[str, Path], questions: Sequence[Question]
) -> tuple[dict[str, Picks], list[Row]]:
    """Teacher -> question -> path -> tokens that it wants rollouts for; and rows of LEFT_OUT with
    the teacher's name."""
    chosen: dict[str, Picks] = {}
    left_out: list[Row] = []
    for teacher in cfg["teachers"]:
        name = teacher["name"]
        chosen[name] = {}
        try:
            pair = Pair(cfg, inputs["student"], inputs.get(f"teacher:{name}"))
        except LeftOut as bad:
            # One that cannot read the student's tokens: the others go on.
            left_out.append({"teacher": name, "prompt_id": None, "reason": bad.what})
            continue
        prompts = teacher_prompts(cfg, teacher, inputs, [one.row for one in questions])
        for one in questions:
            prompt = prompts[one.id]
            if isinstance(prompt, LeftOut):
                left_out.append({"teacher": name, "prompt_id": one.id, "reason": str(prompt)})
                continue
            chosen[name][one.id] = {}
            for path, tokens in enumerate(one.index.paths):
                found = pair.compare(one.prompt, prompt, tokens.tolist(), tau=cfg["tau"])
                chosen[name][one.id][path] = targeting.choose(
                    found.candidates,
                    len(tokens),
                    cfg["top_gradient"],
                    cfg["top_difference"],
                    cfg["first_window"],
                    cfg["window_growth"],
                )
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
    name = teacher["name"]
    found: Mapping[str, Any] = {}
    if teacher["correct"] or teacher["wrong"]:
        found = demonstrations.read(inputs[f"demos:{name}"])
    settings = {**cfg, "chat_template_kwargs": teacher.get("chat_template_kwargs") or {}}
    # More than the student's prompt: as many tokens as the teacher is given.
    settings["max_prompt_tokens"] = cfg.get("max_teacher_prompt_tokens", cfg["max_prompt_tokens"])
    sampler = Sampler(inputs["student"], settings)
    prompts: dict[str, list[int] | LeftOut] = {}
    for row in rows:
        try:
            text = contexts.asked(cfg.get("form"), row["question"], row["prompt"])
            text = contexts.teacher_asked(
                row["id"], text, found, teacher["correct"], teacher["wrong"]
            )
            rendered = sampler.render(contexts.chat(text, cfg.get("system")))
            (prompts[row["id"]],) = sampler.encode([rendered], [row["id"]])
        except LeftOut as bad:
            prompts[row["id"]] = bad
    return prompts


def _targeted(
    one: Question, picks: Picks, cfg: Mapping[str, Any]
) -> Iterator[tuple[Question, Request]]:
    """Requests that bring what a teacher has chosen to min_visits, as counts are now."""
    if one.id not in picks:
        return
    children = [one.index.children(path, cfg["counts"]) for path in range(len(one.index.paths))]
    found = targeting.top_up(
        picks[one.id], one.index.paths, children, cfg["min_visits"], cfg["counts"]
    )
    for pick in found:
        prefix = [*one.index.paths[pick.path][: pick.depth].tolist(), pick.token]
        if len(prefix) >= cfg["max_new_tokens"]:
            continue
        key = np.array(prefix, dtype="<i4").tobytes()
        name = f"{one.id} after {hashlib.sha256(key).hexdigest()[:16]}"
        for _ in range(pick.rollouts):
            yield one, Request(name, one.prompt, one.targeted[key], prefix)
            one.targeted[key] += 1


def _write(
    cfg: Mapping[str, Any],
    out: Path,
    questions: Sequence[Question],
    asked: Mapping[str, int],
    left_out: Sequence[Row],
) -> dict[str, Any]:
    rows, paths, children = [], [], []
    for one in questions:
        records = one.index.records
        rows.append(
            {
                "prompt_id": one.id,
                "question": one.row["question"],
                "answer": one.row["answer"],
                "rollouts": len(records),
                "correct": int(records["correct"].sum()),
                "targeted": int((records["prefix"] > 0).sum()),
                "reason": one.reason,
            }
        )
        for path, number in enumerate(one.numbers):
            record = records[number]
            paths.append(
                {
                    "prompt_id": one.id,
                    "path": path,
                    "correct": bool(record["correct"]),
                    "finished": bool(record["finished"]),
                    "rollout": number,
                    "token_ids": one.index.paths[path].tolist(),
                }
            )
            found = one.index.children(path, cfg["counts"])
            for depth, token, visits, successes in zip(*map(np.ndarray.tolist, found), strict=True):
                children.append(
                    {
                        "prompt_id": one.id,
                        "path": path,
                        "depth": depth,
                        "token": token,
                        "visits": visits,
                        "successes": successes,
                    }
                )
    tables.write(out / "questions.parquet", rows, schemas.QUESTIONS)
    tables.write(out / "paths.parquet", paths, schemas.PATHS)
    tables.write(out / "children.parquet", children, schemas.CHILDREN)
    whole = {
        "questions": len(rows),
        "analysed": sum(row["reason"] is None for row in rows),
        "rollouts": sum(row["rollouts"] for row in rows),
        "targeted": dict(asked),
        "left_out": [{k: v for k, v in one.items() if v is not None} for one in left_out],
    }
    tables.write_json(out / "report.json", whole)
    return {key: whole[key] for key in ("questions", "analysed", "rollouts")}

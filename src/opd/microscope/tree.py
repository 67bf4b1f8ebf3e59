"""Phase 1 of the paper's algorithm (section 2.5, appendix D): rollouts of a student on each
question, a few paths of them, and more rollouts where teachers and student differ.

One set of rollouts serves all teachers. What is sampled is journaled by the sampler and asked for
in an order that depends on nothing else, so a run that was killed goes on where it was.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.errors import LeftOut, UserError
from opd.microscope import demonstrations, schemas, screening, targeting
from opd.microscope.counts import READINGS, Counts, children_file
from opd.microscope.path_index import Children, PathIndex
from opd.microscope.scoring import compare
from opd.models.pairing import load_pair
from opd.models.prompts import Row, read_prompts
from opd.models.sampling import Request, Sampler

# Question -> path -> (depth, token) that get more rollouts.
Picks = dict[str, dict[int, list[tuple[int, int]]]]
# Requests that are sampled together.
BATCH = 4096


@dataclass(eq=False)
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
    """Stage ``tree``: questions.parquet, paths.parquet, children.parquet (with counts ``both`` also
    children-unforced.parquet), report.json, and every rollout below ``rollouts/``.

    cfg: those of ``opd.models.sampling.settings``, where max_new_tokens is the length of a whole
    rollout; grader, rollouts (G), correct_paths, incorrect_paths, teachers [{name, own, correct,
    wrong, chat_template_kwargs}], tau, top_gradient, top_difference, min_visits (N_min),
    first_window, window_growth, counts (``unforced`` or ``whole``: see ``PathIndex.children``; or
    ``both``); optional form, system, questions (the first so many). Inputs: student, prompts,
    optional screening (its kept questions are taken), ``teacher:NAME`` unless the teacher's weights
    are the student's own, ``demos:NAME`` where it sees demonstrations.

    With ``both`` the tree is grown as with ``whole``, and children.parquet counts it; then what
    ``unforced`` lacks is sampled, and children-unforced.parquet counts all of it.

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
    targeted = dict.fromkeys(chosen, 0)
    for number, counts in enumerate(READINGS[cfg["counts"]]):
        for name, picks in chosen.items():
            requests = [
                request for q in open_questions for request in _targeted(q, picks, cfg, counts)
            ]
            targeted[name] += len(requests)
            _add(cfg, sampler, requests)
        children = [row for question in open_questions for row in _children(question, counts)]
        tables.write(out / children_file(counts if number else None), children, schemas.CHILDREN)
    sampler.stop()
    rows = _write_tables(out, questions)
    numbers = {
        "questions": len(rows),
        "analysed": len(open_questions),
        "rollouts": sum(row["rollouts"] for row in rows),
    }
    tables.write_json(out / "report.json", {**numbers, "targeted": targeted, "left_out": left_out})
    return numbers


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
    cfg: Mapping[str, Any], sampler: Sampler, requests: Sequence[tuple[Question, Request]]
) -> None:
    """Sample, grade, and add to the rollouts of each question."""
    longest = cfg["max_new_tokens"]
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        answers = [question.row["answer"] for question, _ in batch]
        responses = demonstrations.graded(
            sampler, [request for _, request in batch], answers, cfg["grader"]
        )
        rollouts: dict[Question, list[tuple[Any, ...]]] = defaultdict(list)
        for (question, request), (response, correct) in zip(batch, responses, strict=True):
            # The sampler gives what comes after a prefix as much room as a whole rollout has.
            ended = response.finish == "stop" and len(response.token_ids) <= longest
            row = response.token_ids[:longest], correct and ended, ended, len(request.prefix)
            rollouts[question].append(row)
        for question, rows in rollouts.items():
            question.index.append(*zip(*rows, strict=True))


def _choose_paths(question: Question, cfg: Mapping[str, Any]) -> None:
    """Draw the paths of a question: correct and incorrect rollouts, evenly (the paper does not say
    how; ours), preferring those that ended by themselves, none twice."""
    index = question.index
    right = index.records["correct"].astype(bool)
    kinds = {"correct": right, "incorrect": ~right}

    def rank(number: int) -> tuple[bool, bytes]:
        key = f"{cfg['seed']}/{question.id}/{number}"
        return not index.records["finished"][number], hashlib.sha256(key.encode()).digest()

    for name, kind in kinds.items():
        if not kind.any():
            question.reason = f"none of {len(right)} rollouts is {name}"
            return
    for name, kind in kinds.items():
        distinct: dict[bytes, int] = {}
        for number in sorted(np.flatnonzero(kind).tolist(), key=rank):
            distinct.setdefault(index.rollout(number).tobytes(), number)
        question.numbers += [*distinct.values()][: cfg[f"{name}_paths"]]
    paths = [index.rollout(number).tolist() for number in question.numbers]
    index.add_paths(paths, question.numbers)


def _chosen(
    cfg: Mapping[str, Any], inputs: Mapping[str, Path], questions: Sequence[Question]
) -> tuple[dict[str, Picks], list[Row]]:
    """Teacher -> question -> path -> tokens that it wants rollouts for; and what was left out, with
    the teacher, the question (where it is one) and the reason."""
    chosen: dict[str, Picks] = {}
    left_out: list[Row] = []
    limits = [
        cfg[name] for name in ("top_gradient", "top_difference", "first_window", "window_growth")
    ]
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
            of_paths = picks[question.id] = {}
            for path, tokens in enumerate(question.index.paths):
                read = compare(pair, question.prompt, prompt, tokens.tolist(), tau=cfg["tau"])
                of_paths[path] = targeting.choose(read.candidates, len(tokens), *limits)
        del pair
    return chosen, left_out


def teacher_prompts(
    cfg: Mapping[str, Any],
    teacher: Mapping[str, Any],
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
    question: Question, picks: Picks, cfg: Mapping[str, Any], counts: Counts
) -> Iterator[tuple[Question, Request]]:
    """Requests that bring what a teacher has chosen to min_visits, as counts are now."""
    if question.id not in picks:
        return
    paths = question.index.paths
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


def _children(question: Question, counts: Counts) -> Iterator[Row]:
    """Rows of CHILDREN, as counts are now."""
    for path in range(len(question.index.paths)):
        for row in question.index.children(path, counts).rows():
            at = {"prompt_id": question.id, "path": path}
            yield {**at, **dict(zip(Children._fields, row, strict=True))}


def _write_tables(out: Path, questions: Sequence[Question]) -> list[Row]:
    """Write questions.parquet and paths.parquet, and return the rows of the first."""
    rows, paths = [], []
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
            paths.append(
                {
                    "prompt_id": question.id,
                    "path": path,
                    "correct": bool(records[number]["correct"]),
                    "finished": bool(records[number]["finished"]),
                    "rollout": number,
                    "token_ids": question.index.paths[path].tolist(),
                }
            )
    tables.write(out / "questions.parquet", rows, schemas.QUESTIONS)
    tables.write(out / "paths.parquet", paths, schemas.PATHS)
    return rows

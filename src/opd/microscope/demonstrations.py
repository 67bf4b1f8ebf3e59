"""Demonstrations for the contexts of teachers: verified responses of a model, or summaries of them.
(The paper, section 3 and appendix D.)
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import LeftOut
from opd.data import conversations
from opd.grading.graders import after_thinking, grade_finished
from opd.microscope import contexts, schemas
from opd.models.prompts import Row, prompts_of, read_prompts
from opd.models.sampling import Request, Response, Sampler

FIRST_TRIALS = 4


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``demonstrate``: demonstrations.parquet and trials.parquet.

    cfg: those of ``opd.models.sampling.settings``, grader, correct and wrong (how many of each are
    wanted of a question), trials (the most responses that are sampled for that); optional form
    (``mmlu`` or ``boolq``: asked as the paper does), system, thinking (whether the text holds the
    thinking), n (the first questions). Inputs: model, prompts. Each response is graded and filed as
    correct or wrong; one that was cut off is neither. A question that lacks some is in
    trials.parquet with the reason.
    """
    prompts = read_prompts(inputs["prompts"], cfg.get("n"))
    sampler = Sampler(inputs["model"], cfg, cache)
    tokens = encoded(sampler, cfg, prompts)
    answers = {row["id"]: row["answer"] for row in prompts}
    wanted = {True: cfg["correct"], False: cfg["wrong"]}
    rows: list[Row] = []
    counts: Counter[tuple[str, bool]] = Counter()
    taken: Counter[str] = Counter()
    open_ids = [*tokens]
    for trials in rounds(cfg["trials"]):
        requests = [Request(id, tokens[id], trial) for id in open_ids for trial in trials]
        responses = graded(sampler, requests, [answers[r.id] for r in requests], cfg["grader"])
        for request, (response, correct) in zip(requests, responses, strict=True):
            id, place = request.id, counts[request.id, correct]
            taken[id] += 1
            text = response.text if cfg.get("thinking") else after_thinking(response.text)
            if response.finish == "stop" and text and place < wanted[correct]:
                counts[id, correct] += 1
                row = {"prompt_id": id, "correct": correct, "place": place}
                rows.append({**row, "trial": request.sample, "text": text})
        open_ids = [id for id in open_ids if any(counts[id, k] < wanted[k] for k in wanted)]
    by_question = {id: place for place, id in enumerate(tokens)}
    rows.sort(key=lambda row: (by_question[row["prompt_id"]], not row["correct"]))
    reasons: dict[str, str | None] = dict.fromkeys(tokens)
    for id in open_ids:
        lacking = [
            f"{counts[id, kind]} of {wanted[kind]} {word}"
            for kind, word in ((True, "correct"), (False, "wrong"))
            if counts[id, kind] < wanted[kind]
        ]
        reasons[id] = f"{' and '.join(lacking)} responses after {taken[id]} trials"
    _write(out, rows, taken, reasons)
    return {
        "questions": len(tokens),
        "with a correct one": sum(counts[id, True] > 0 for id in tokens),
        "with a wrong one": sum(counts[id, False] > 0 for id in tokens),
        "trials": taken.total(),
    }


def graded(
    sampler: Sampler, requests: Sequence[Request], answers: Sequence[str], grader: str
) -> list[tuple[Response, bool]]:
    """A response to each request, and whether it ends by itself and gives the answer."""
    responses = sampler.sample(requests)
    finished = [(response.text, response.finish) for response in responses]
    return [*zip(responses, grade_finished(finished, answers, grader), strict=True)]


def _write(
    out: Path, rows: Sequence[Row], trials: Mapping[str, int], reasons: Mapping[str, str | None]
) -> None:
    """Write demonstrations.parquet and, by question, trials.parquet."""
    counts = Counter((row["prompt_id"], row["correct"]) for row in rows)
    questions = [
        {
            "prompt_id": id,
            "trials": trials[id],
            "correct": counts[id, True],
            "wrong": counts[id, False],
            "reason": reason,
        }
        for id, reason in reasons.items()
    ]
    tables.write(out / "demonstrations.parquet", rows, schemas.DEMONSTRATIONS)
    tables.write(out / "trials.parquet", questions, schemas.TRIALS)


def rounds(trials: int) -> Iterator[range]:
    """Trials in rounds that double (4, 8, 16, 32: together the paper's 60), so that an easy
    question takes few."""
    start, size = 0, FIRST_TRIALS
    while start < trials:
        stop = min(trials, start + size)
        yield range(start, stop)
        start, size = stop, 2 * size


def run_summaries(
    cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path
) -> dict[str, Any]:
    """Stage ``summarise``: demonstrations.parquet, each text in a model's own few words, and
    trials.parquet.

    cfg: those of ``opd.models.sampling.settings``, template (with {question} and {response}),
    optional system, form. Inputs: model, demonstrations, prompts. A summary that is empty or was
    cut off is left out, with the reason.
    """
    prompts = read_prompts(inputs["prompts"])
    rows = tables.read(
        inputs["demonstrations"] / "demonstrations.parquet", schemas.DEMONSTRATIONS
    ).to_pylist()
    sampler = Sampler(inputs["model"], cfg, cache)
    requests = []
    for row, prompt in zip(rows, prompts_of(rows, prompts), strict=True):
        question = conversations.text(prompt, "question")
        asked = contexts.summary_request(cfg["template"], question, row["text"])
        name = f"{row['prompt_id']}, {'correct' if row['correct'] else 'wrong'} {row['place']}"
        rendered = sampler.render(conversations.chat({"prompt": asked}, system=cfg.get("system")))
        requests.append(Request(name, sampler.encode([rendered], [name])[0]))
    kept: list[Row] = []
    places: Counter[tuple[str, bool]] = Counter()
    reasons: dict[str, str | None] = {prompt["id"]: None for prompt in prompts}
    for row, response in zip(rows, sampler.sample(requests), strict=True):
        text = after_thinking(response.text)
        if text and response.finish == "stop":
            # Places without gaps: the first correct one is the first that has a summary.
            kind = row["prompt_id"], row["correct"]
            kept.append(row | {"place": places[kind], "text": text})
            places[kind] += 1
        else:
            fault = "cut off" if response.finish == "length" else "empty"
            reasons[row["prompt_id"]] = f"a summary is {fault}"
    _write(out, kept, Counter(row["prompt_id"] for row in rows), reasons)
    return {"summaries": len(kept), "left out": len(rows) - len(kept)}


def read(payload: Path) -> dict[str, dict[bool, list[str]]]:
    """Prompt -> correct or not -> texts, in their order."""
    table = tables.read(payload / "demonstrations.parquet", schemas.DEMONSTRATIONS)
    texts: dict[str, dict[bool, list[str]]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["place"]):
        kinds = texts.setdefault(row["prompt_id"], {True: [], False: []})
        kinds[row["correct"]].append(row["text"])
    return texts


def encoded(
    sampler: Sampler, cfg: Mapping[str, Any], prompts: Sequence[Row]
) -> dict[str, list[int]]:
    """Prompt -> what a model reads before its response, in token ids.

    cfg: form and system, how a question is asked. Raises ``UserError`` for a prompt that is too
    long or has not this form.
    """
    ids = [row["id"] for row in prompts]
    texts = []
    for row in prompts:
        asked = contexts.asked(cfg.get("form"), row["question"], row["prompt"])
        texts.append(sampler.render(conversations.chat(row, asked, cfg.get("system"))))
    return dict(zip(ids, sampler.encode(texts, ids), strict=True))


def encoded_with(
    sampler: Sampler,
    cfg: Mapping[str, Any],
    prompts: Sequence[Row],
    texts: contexts.Texts,
    correct: int,
    wrong: int,
) -> dict[str, list[int] | LeftOut]:
    """The same with so many demonstrations of each kind from ``texts`` (see ``read``); or why a
    prompt cannot be asked so: it lacks a demonstration, or gets too long."""
    tokens: dict[str, list[int] | LeftOut] = {}
    for row in prompts:
        id, form = row["id"], cfg.get("form")
        try:
            alone = contexts.asked(form, row["question"], row["prompt"])
            asked = contexts.teacher_asked(id, alone, texts, correct, wrong)
            text = sampler.render(conversations.chat(row, asked, cfg.get("system")))
            (tokens[id],) = sampler.encode([text], [id])
        except LeftOut as error:
            tokens[id] = error
    return tokens

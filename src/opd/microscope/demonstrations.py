"""Demonstrations for the contexts of teachers: verified responses of a model, or summaries of them.
(The paper, section 3 and appendix D.)
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import LeftOut
from opd.grading.graders import after_thinking, grade_finished
from opd.microscope import contexts, schemas
from opd.models.prompts import prompts_of, read_prompts
from opd.models.sampling import Request, Sampler

Row = dict[str, Any]
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
    asked = encoded(sampler, cfg, prompts)
    answers = {row["id"]: row["answer"] for row in prompts}
    wanted = {True: cfg["correct"], False: cfg["wrong"]}
    filed: dict[str, dict[bool, list[Row]]] = {id: {True: [], False: []} for id in asked}
    taken = dict.fromkeys(asked, 0)
    open_ids = [*asked]
    for trials in rounds(cfg["trials"]):
        if not open_ids:
            break
        requests = [Request(id, asked[id], trial) for id in open_ids for trial in trials]
        responses = sampler.sample(requests)
        graded = grade_finished(
            [(r.text, r.finish) for r in responses],
            [answers[r.id] for r in requests],
            cfg["grader"],
        )
        for request, response, correct in zip(requests, responses, graded, strict=True):
            taken[request.id] += 1
            text = response.text if cfg.get("thinking") else after_thinking(response.text)
            kind = filed[request.id][correct]
            if response.finish == "stop" and text and len(kind) < wanted[correct]:
                kind.append({"trial": request.sample, "text": text})
        open_ids = [
            id for id in open_ids if any(len(filed[id][kind]) < wanted[kind] for kind in wanted)
        ]
    rows = [
        {"prompt_id": id, "correct": correct, "place": place, **demonstration}
        for id, kinds in filed.items()
        for correct, demonstrations in kinds.items()
        for place, demonstration in enumerate(demonstrations)
    ]
    counts = {id: {kind: len(kinds[kind]) for kind in kinds} for id, kinds in filed.items()}
    reasons = {id: _lacking(counts[id], wanted, taken[id]) for id in asked}
    _write(out, rows, taken, counts, reasons)
    return {
        "questions": len(asked),
        "with a correct one": sum(count[True] > 0 for count in counts.values()),
        "with a wrong one": sum(count[False] > 0 for count in counts.values()),
        "trials": sum(taken.values()),
    }


def _write(
    out: Path,
    rows: Sequence[Row],
    trials: Mapping[str, int],
    counts: Mapping[str, Mapping[bool, int]],
    reasons: Mapping[str, str | None],
) -> None:
    """Write demonstrations.parquet and, by question, trials.parquet."""
    counted = [
        {
            "prompt_id": id,
            "trials": trials[id],
            "correct": counts[id][True],
            "wrong": counts[id][False],
            "reason": reasons[id],
        }
        for id in reasons
    ]
    tables.write(out / "demonstrations.parquet", rows, schemas.DEMONSTRATIONS)
    tables.write(out / "trials.parquet", counted, schemas.TRIALS)


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
        asked = contexts.summary_request(cfg["template"], prompt["question"], row["text"])
        name = f"{row['prompt_id']}, {'correct' if row['correct'] else 'wrong'} {row['place']}"
        rendered = sampler.render(contexts.chat(asked, cfg.get("system")))
        requests.append(Request(name, sampler.encode([rendered], [name])[0]))
    kept: list[Row] = []
    reasons: dict[str, str | None] = {prompt["id"]: None for prompt in prompts}
    for row, response in zip(rows, sampler.sample(requests), strict=True):
        text = after_thinking(response.text)
        if text and response.finish == "stop":
            kept.append(row | {"text": text})
        else:
            fault = "cut off" if response.finish == "length" else "empty"
            reasons[row["prompt_id"]] = f"a summary is {fault}"
    # Places without gaps: the first correct one is the first that has a summary.
    counts = {id: {True: 0, False: 0} for id in reasons}
    for row in kept:
        of_kind = counts[row["prompt_id"]]
        row["place"] = of_kind[row["correct"]]
        of_kind[row["correct"]] += 1
    _write(out, kept, Counter(row["prompt_id"] for row in rows), counts, reasons)
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
    texts = [_rendered(sampler, cfg, row) for row in prompts]
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
        try:
            text = _rendered(sampler, cfg, row, texts, correct, wrong)
            (tokens[row["id"]],) = sampler.encode([text], [row["id"]])
        except LeftOut as error:
            tokens[row["id"]] = error
    return tokens


def _rendered(sampler: Sampler, cfg: Mapping[str, Any], row: Row, *with_texts: Any) -> str:
    text = contexts.asked(cfg.get("form"), row["question"], row["prompt"])
    if with_texts:
        text = contexts.teacher_asked(row["id"], text, *with_texts)
    return sampler.render(contexts.chat(text, cfg.get("system")))


def _lacking(have: Mapping[bool, int], wanted: Mapping[bool, int], trials: int) -> str | None:
    lacking = [
        f"{have[kind]} of {wanted[kind]} {word}"
        for kind, word in ((True, "correct"), (False, "wrong"))
        if have[kind] < wanted[kind]
    ]
    return f"{' and '.join(lacking)} responses after {trials} trials" if lacking else None

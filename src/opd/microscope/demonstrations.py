"""Demonstrations for the contexts of teachers: verified responses of a model, or summaries of them.
(The paper, section 3 and appendix D.)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import PROMPTS
from opd.grading.graders import after_thinking, grade_finished
from opd.microscope import contexts, schemas
from opd.models.sampling import Request, Sampler, journals

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
    sampler = Sampler(inputs["model"], cfg, journals(inputs["model"], cfg, cache))
    system, form = cfg.get("system"), cfg.get("form")
    texts = [contexts.asked(form, row["question"], row["prompt"]) for row in prompts]
    ids = [row["id"] for row in prompts]
    asked = dict(
        zip(ids, sampler.encode([_text(sampler, t, system) for t in texts], ids), strict=True)
    )
    truth = {row["id"]: row["answer"] for row in prompts}
    wanted = {True: cfg["correct"], False: cfg["wrong"]}
    found: dict[str, dict[bool, list[Row]]] = {id: {True: [], False: []} for id in ids}
    taken = dict.fromkeys(ids, 0)
    open_ids = ids
    for trials in rounds(cfg["trials"]):
        if not open_ids:
            break
        requests = [Request(id, asked[id], trial) for id in open_ids for trial in trials]
        responses = sampler.sample(requests)
        graded = grade_finished(
            [(r.text, r.finish) for r in responses], [truth[r.id] for r in requests], cfg["grader"]
        )
        for request, response, correct in zip(requests, responses, graded, strict=True):
            taken[request.id] += 1
            text: str | None = response.text
            if not cfg.get("thinking"):
                text = after_thinking(response.text)
            kind = found[request.id][correct]
            if response.finish == "stop" and text and len(kind) < wanted[correct]:
                kind.append({"trial": request.sample, "text": text})
        open_ids = [
            id for id in open_ids if any(len(found[id][kind]) < wanted[kind] for kind in wanted)
        ]
    rows = [
        {"prompt_id": id, "correct": kind, "place": place, **one}
        for id, of in found.items()
        for kind, some in of.items()
        for place, one in enumerate(some)
    ]
    counted = [
        {
            "prompt_id": id,
            "trials": taken[id],
            "correct": len(of[True]),
            "wrong": len(of[False]),
            "reason": _lacking({kind: len(of[kind]) for kind in of}, wanted, taken[id]),
        }
        for id, of in found.items()
    ]
    tables.write(out / "demonstrations.parquet", rows, schemas.DEMONSTRATIONS)
    tables.write(out / "trials.parquet", counted, schemas.TRIALS)
    return {
        "questions": len(ids),
        "with a correct one": sum(bool(of[True]) for of in found.values()),
        "with a wrong one": sum(bool(of[False]) for of in found.values()),
        "trials": sum(taken.values()),
    }


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
    prompts = {row["id"]: row for row in read_prompts(inputs["prompts"])}
    rows = tables.read(
        inputs["demonstrations"] / "demonstrations.parquet", schemas.DEMONSTRATIONS
    ).to_pylist()
    sampler = Sampler(inputs["model"], cfg, journals(inputs["model"], cfg, cache))
    requests = []
    for row in rows:
        if row["prompt_id"] not in prompts:
            raise UserError(
                f"there is no prompt '{row['prompt_id']}'", "prompts", "give the set they are of"
            )
        question = prompts[row["prompt_id"]]["question"]
        asked = contexts.summary_request(cfg["template"], question, row["text"])
        name = f"{row['prompt_id']}, {'correct' if row['correct'] else 'wrong'} {row['place']}"
        (tokens,) = sampler.encode([_text(sampler, asked, cfg.get("system"))], [name])
        requests.append(Request(name, tokens))
    kept, reasons = [], dict.fromkeys(prompts, "")
    for row, response in zip(rows, sampler.sample(requests), strict=True):
        text = after_thinking(response.text)
        if text and response.finish == "stop":
            kept.append(row | {"text": text})
        else:
            what = "cut off" if response.finish == "length" else "empty"
            reasons[row["prompt_id"]] = f"a summary is {what}"
    # Places without gaps: the first correct one is the first that has a summary.
    places: dict[tuple[str, bool], int] = {}
    for row in kept:
        key = (row["prompt_id"], row["correct"])
        row["place"] = places.get(key, 0)
        places[key] = row["place"] + 1
    counted = [
        {
            "prompt_id": id,
            "trials": sum(row["prompt_id"] == id for row in rows),
            "correct": places.get((id, True), 0),
            "wrong": places.get((id, False), 0),
            "reason": reasons[id] or None,
        }
        for id in prompts
    ]
    tables.write(out / "demonstrations.parquet", kept, schemas.DEMONSTRATIONS)
    tables.write(out / "trials.parquet", counted, schemas.TRIALS)
    return {"summaries": len(kept), "left out": len(rows) - len(kept)}


def read_prompts(payload: Path, n: int | None = None) -> list[Row]:
    """The first n rows of a prompt set. Raises ``UserError`` for none."""
    path = payload / "prompts.parquet"
    rows: list[Row] = tables.read(path, PROMPTS).to_pylist()[:n]
    if not rows:
        raise UserError("there are no prompts", str(path), "give a prompt set that is not empty")
    return rows


def read(payload: Path) -> dict[str, dict[bool, list[str]]]:
    """Prompt -> correct or not -> texts, in their order."""
    table = tables.read(payload / "demonstrations.parquet", schemas.DEMONSTRATIONS)
    found: dict[str, dict[bool, list[str]]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["place"]):
        found.setdefault(row["prompt_id"], {True: [], False: []})[row["correct"]].append(
            row["text"]
        )
    return found


def _text(sampler: Sampler, asked: str, system: str | None) -> str:
    return sampler.render(contexts.chat(asked, system))


def _lacking(have: Mapping[bool, int], wanted: Mapping[bool, int], trials: int) -> str | None:
    lacking = [
        f"{have[kind]} of {wanted[kind]} {word}"
        for kind, word in ((True, "correct"), (False, "wrong"))
        if have[kind] < wanted[kind]
    ]
    return f"{' and '.join(lacking)} responses after {trials} trials" if lacking else None

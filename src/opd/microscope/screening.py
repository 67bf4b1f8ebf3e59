"""Which questions to analyse: pass rates of the student, alone and with demonstrations in its
prompt (the paper, appendix E.9, Tables 7 to 9)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.errors import UserError
from opd.grading.graders import grade_finished
from opd.microscope import contexts, demonstrations, schemas
from opd.models.sampling import Request, Sampler, journals
from opd.stats import draws

BASELINE = "baseline"
EASY, MEDIUM, HARD, EXTREME = "easy", "medium", "hard", "extremely hard"
BINS = (EASY, MEDIUM, HARD)


def bin_of(rate: float, easy: float = 0.8, medium: float = 0.25) -> str:
    """Difficulty by the baseline's pass rate: easy from 0.8, medium from 0.25, hard above 0."""
    if rate >= easy:
        return EASY
    if rate >= medium:
        return MEDIUM
    return HARD if rate > 0 else EXTREME


def available(sources: Mapping[str, Mapping[str, Mapping[bool, Sequence[str]]]]) -> set[str]:
    """Questions with a correct demonstration from every source; sources: name -> what
    ``demonstrations.read`` gives."""
    found = [{id for id, of in one.items() if of.get(True)} for one in sources.values()]
    return set.intersection(*found) if found else set()


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``screening``: screening.parquet, probe.json and draws.parquet.

    cfg: those of ``opd.models.sampling.settings``, samples (G), grader, contexts [{name, source,
    correct, wrong}], sources [{name, source}] (of each a kept question has a correct
    demonstration); optional form, system, n. Inputs: student, prompts, demos:SOURCE. A question
    that lacks a demonstration for one context is not asked with that. Values: accuracy_NAME_ratio
    over the kept questions, accuracy_NAME_BIN_ratio, change_NAME (against the baseline),
    questions_BIN, questions, with_NAME and with_every_source (questions with a correct
    demonstration).
    """
    prompts = demonstrations.read_prompts(inputs["prompts"], cfg.get("n"))
    sources = {
        name: demonstrations.read(inputs[f"demos:{name}"])
        for name in sorted({one["source"] for one in (*cfg["sources"], *cfg["contexts"])})
    }
    needed = {one["name"]: sources[one["source"]] for one in cfg["sources"]}
    having = available(needed) if needed else {row["id"] for row in prompts}
    sampler = Sampler(inputs["student"], cfg, journals(inputs["student"], cfg, cache))
    rates = {BASELINE: _rates(cfg, sampler, prompts, None, sources)}
    bins = {id: bin_of(passes / cfg["samples"]) for id, passes in rates[BASELINE].items()}
    kept = {id for id in bins if id in having and bins[id] != EXTREME}
    for context in cfg["contexts"]:
        asked = [row for row in prompts if row["id"] in kept]
        rates[context["name"]] = _rates(cfg, sampler, asked, context, sources)
    rows = [
        {
            "prompt_id": id,
            "context": name,
            "samples": cfg["samples"],
            "passes": passes,
            "bin": bins[id],
            "kept": id in kept,
        }
        for name, found in rates.items()
        for id, passes in found.items()
    ]
    tables.write(out / "screening.parquet", rows, schemas.SCREENING)
    values = summarise(rates, bins, kept, cfg["samples"])
    ids = [row["id"] for row in prompts]
    weights = draws.multiplicities(ids)
    for name, found in needed.items():
        with_one = [bool(found.get(id, {}).get(True)) for id in ids]
        values[f"with_{name}"] = draws.total(with_one, weights)
    if needed:
        values["with_every_source"] = draws.total([i in having for i in ids], weights)
    draws.write(out, values, {"prompts": len(prompts), "kept": len(kept)})
    return {name: value.value for name, value in values.items()}


def summarise(
    rates: Mapping[str, Mapping[str, int]],
    bins: Mapping[str, str],
    kept: set[str],
    samples: int,
) -> dict[str, draws.Value]:
    """Values of the probe from passes of each question by context."""
    found: dict[str, draws.Value] = {}
    ids = sorted(kept)
    weights = draws.multiplicities(ids) if ids else np.zeros((draws.RESAMPLES, 0))
    base = rates[BASELINE]
    for name, passes in rates.items():
        both = np.array([id in passes for id in ids], dtype=bool)
        share = np.array([passes.get(id, 0) / samples for id in ids])
        found[f"accuracy_{name}_ratio"] = draws.mean(share * both, both, weights)
        if name != BASELINE:
            without = np.array([base[id] / samples for id in ids])
            change = draws.mean((share - without) * both, both, weights)
            found[f"change_{name}"] = change
        for level in BINS:
            inside = both & np.array([bins[id] == level for id in ids], dtype=bool)
            found[f"accuracy_{name}_{level}_ratio"] = draws.mean(share * inside, inside, weights)
    for level in BINS:
        found[f"questions_{level}"] = draws.total([bins[id] == level for id in ids], weights)
    found["questions"] = draws.total(np.ones(len(ids)), weights)
    return found


def kept_questions(payload: Path) -> set[str]:
    """Ids of the questions that a screening keeps."""
    table = tables.read(payload / "screening.parquet", schemas.SCREENING)
    return {row["prompt_id"] for row in table.to_pylist() if row["kept"]}


def _rates(
    cfg: Mapping[str, Any],
    sampler: Sampler,
    prompts: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any] | None,
    sources: Mapping[str, Any],
) -> dict[str, int]:
    """Passes of each question that can be asked in this context."""
    asked: dict[str, list[int]] = {}
    for row in prompts:
        text = contexts.asked(cfg.get("form"), row["question"], row["prompt"])
        try:
            if context is not None:
                found = sources[context["source"]]
                wanted = context["correct"], context["wrong"]
                text = contexts.teacher_asked(row["id"], text, found, *wanted)
            rendered = sampler.render(contexts.chat(text, cfg.get("system")))
            (asked[row["id"]],) = sampler.encode([rendered], [row["id"]])
        except UserError:
            # Without its demonstrations, or longer than a prompt may be.
            if context is None:
                raise
    name = context["name"] if context else BASELINE
    requests = [
        Request(f"{id}, {name}", tokens, sample)
        for id, tokens in asked.items()
        for sample in range(cfg["samples"])
    ]
    truth = {row["id"]: row["answer"] for row in prompts}
    of = [id for id in asked for _ in range(cfg["samples"])]
    responses = sampler.sample(requests)
    graded = grade_finished(
        [(r.text, r.finish) for r in responses], [truth[id] for id in of], cfg["grader"]
    )
    passes = dict.fromkeys(asked, 0)
    for id, correct in zip(of, graded, strict=True):
        passes[id] += correct
    return passes

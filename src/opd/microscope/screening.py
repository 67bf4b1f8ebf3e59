"""Which questions to analyse: pass rates of the student, alone and with demonstrations in its
prompt (the paper, appendix E.9, Tables 7 to 9)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.errors import LeftOut
from opd.microscope import contexts, demonstrations, schemas
from opd.models.prompts import read_prompts
from opd.models.sampling import Request, Sampler
from opd.stats import draws

BASELINE = "baseline"
EASY, MEDIUM, HARD, EXTREME = "easy", "medium", "hard", "extremely hard"
BINS = (EASY, MEDIUM, HARD)


def bin_of(rate: float) -> str:
    """Difficulty by the baseline's pass rate: easy from 0.8, medium from 0.25, hard above 0."""
    if rate >= 0.25:
        return EASY if rate >= 0.8 else MEDIUM
    return HARD if rate > 0 else EXTREME


def available(sources: Mapping[str, contexts.Texts]) -> set[str]:
    """Questions with a correct demonstration from every source, of which there has to be one;
    sources: name -> what ``demonstrations.read`` gives."""
    return set.intersection(
        *({id for id, kinds in texts.items() if kinds.get(True)} for texts in sources.values())
    )


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``screening``: screening.parquet, probe.json and draws.parquet.

    cfg: those of ``opd.models.sampling.settings``, samples (G), grader, contexts [{name, source,
    correct, wrong}], sources [{name, source}] (of each a kept question has a correct
    demonstration); optional form, system, n. Inputs: student, prompts, demos:SOURCE. A question
    that lacks a demonstration for one context is not asked with that. Values: accuracy_NAME_ratio
    over the kept questions, accuracy_NAME_BIN_ratio, change_NAME (against the baseline),
    change_NAME_from_OTHER (against each context before it, over the questions that were asked in
    both), questions_BIN, questions, with_NAME and with_every_source (questions with a correct
    demonstration).
    """
    prompts = read_prompts(inputs["prompts"], cfg.get("n"))
    ids = [row["id"] for row in prompts]
    texts_of = {
        name.removeprefix("demos:"): demonstrations.read(payload)
        for name, payload in inputs.items()
        if name.startswith("demos:")
    }
    needed = {source["name"]: texts_of[source["source"]] for source in cfg["sources"]}
    having = available(needed) if needed else set(ids)
    sampler = Sampler(inputs["student"], cfg, cache)
    tokens = demonstrations.encoded(sampler, cfg, prompts)
    passes = {BASELINE: _passes(cfg, sampler, prompts, tokens, BASELINE)}
    bins = {id: bin_of(count / cfg["samples"]) for id, count in passes[BASELINE].items()}
    kept = {id for id in ids if id in having and bins[id] != EXTREME}
    open_prompts = [row for row in prompts if row["id"] in kept]
    for context in cfg["contexts"]:
        texts, name = texts_of[context["source"]], context["name"]
        encoded = demonstrations.encoded_with(
            sampler, cfg, open_prompts, texts, context["correct"], context["wrong"]
        )
        tokens = {id: prompt for id, prompt in encoded.items() if not isinstance(prompt, LeftOut)}
        passes[name] = _passes(cfg, sampler, prompts, tokens, name)
    rows = [
        {
            "prompt_id": id,
            "context": name,
            "samples": cfg["samples"],
            "passes": count,
            "bin": bins[id],
            "kept": id in kept,
        }
        for name, counts in passes.items()
        for id, count in counts.items()
    ]
    tables.write(out / "screening.parquet", rows, schemas.SCREENING)
    values = summarise(passes, bins, kept, cfg["samples"])
    weights = draws.multiplicities(ids)
    for name, texts in needed.items():
        of_source = available({name: texts})
        values[f"with_{name}"] = draws.total([id in of_source for id in ids], weights)
    if needed:
        values["with_every_source"] = draws.total([id in having for id in ids], weights)
    return draws.write(out, values, {"prompts": len(prompts), "kept": len(kept)})


def summarise(
    passes: Mapping[str, Mapping[str, int]],
    bins: Mapping[str, str],
    kept: set[str],
    samples: int,
) -> dict[str, draws.Value]:
    """Values of the probe from passes of each question by context."""
    ids = sorted(kept)
    weights = draws.multiplicities(ids) if ids else np.zeros((draws.RESAMPLES, 0))
    of_level = {level: np.array([bins[id] == level for id in ids], dtype=bool) for level in BINS}
    values: dict[str, draws.Value] = {}
    asked_in = {
        name: np.array([id in counts for id in ids], dtype=bool) for name, counts in passes.items()
    }
    shares = {
        name: np.array([counts.get(id, 0) / samples for id in ids])
        for name, counts in passes.items()
    }
    for name, other in combinations([name for name in passes if name != BASELINE], 2):
        both = asked_in[name] & asked_in[other]
        change = (shares[other] - shares[name]) * both
        values[f"change_{other}_from_{name}"] = draws.mean(change, both, weights)
    for name, asked in asked_in.items():
        share = shares[name]
        values[f"accuracy_{name}_ratio"] = draws.mean(share * asked, asked, weights)
        if name != BASELINE:
            values[f"change_{name}"] = draws.mean(
                (share - shares[BASELINE]) * asked, asked, weights
            )
        for level, inside in of_level.items():
            both = asked & inside
            values[f"accuracy_{name}_{level}_ratio"] = draws.mean(share * both, both, weights)
    for level, inside in of_level.items():
        values[f"questions_{level}"] = draws.total(inside, weights)
    values["questions"] = draws.total(np.ones(len(ids)), weights)
    return values


def kept_questions(payload: Path) -> set[str]:
    """Ids of the questions that a screening keeps."""
    table = tables.read(payload / "screening.parquet", schemas.SCREENING)
    return {row["prompt_id"] for row in table.to_pylist() if row["kept"]}


def _passes(
    cfg: Mapping[str, Any],
    sampler: Sampler,
    prompts: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, Sequence[int]],
    context: str,
) -> dict[str, int]:
    """How many samples of each question pass that is asked (id -> token ids) in a context."""
    answers = {row["id"]: row["answer"] for row in prompts}
    ids = [id for id in tokens for _ in range(cfg["samples"])]
    requests = [
        Request(f"{id}, {context}", prompt, sample)
        for id, prompt in tokens.items()
        for sample in range(cfg["samples"])
    ]
    responses = demonstrations.graded(sampler, requests, [answers[id] for id in ids], cfg["grader"])
    passed = Counter(id for id, (_, correct) in zip(ids, responses, strict=True) if correct)
    return {id: passed[id] for id in tokens}

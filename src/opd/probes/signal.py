"""The shape of a teacher's signal: log q - log p of a student's own tokens, by where in a response
they stand and by whether the response is right (The Many Faces of OPD, Figs. 16 to 18 and 20)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.data import privileged
from opd.losses.schemas import METRICS
from opd.models import pairing
from opd.models.checkpoints import load_tokenizer
from opd.models.prompts import prompts_of, read_prompts
from opd.probes import pair
from opd.probes.rollouts import Row, counted, read_rollouts, right, tokens
from opd.stats import draws
from opd.stats.intervals import Array

# What is measured of a token's log ratio.
FORMS: dict[str, Callable[[Array], Array]] = {"log_ratio": np.asarray, "size": np.abs}


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``signal``: probe.json, draws.parquet and metrics.parquet (log ratios at step 0, over
    all positions and by bins of them).

    cfg: those of ``opd.probes.pair.run`` with a grader; optional information (a list of contexts,
    ``opd.data.privileged``; with several, rollouts take them in turn), max_teacher_prompt_tokens.
    Inputs: generations, student, teacher, prompts. Values for all rollouts, those that are correct
    and those that are not (KIND): log_ratio_KIND_nats, the mean of log q - log p over tokens, and
    size_KIND_nats, that of its absolute value; the same over the first and the second half of each
    response (log_ratio_early_KIND_nats, ...); kl_nats, n_correct and n_incorrect.
    """
    rollouts, prompts = read_rollouts(inputs["generations"]), read_prompts(inputs["prompts"])
    read = tokens(cfg, rollouts, inputs["student"])
    if cfg.get("information"):
        informed = _informed(cfg, prompts_of(rollouts, prompts), inputs["student"])
        read = [
            rollout._replace(teacher_prompt=prompt)
            for rollout, prompt in zip(read, informed, strict=True)
        ]
    measured = pair.measure(cfg, read, inputs)
    correct = right(rollouts, prompts, cfg["grader"])
    ids = [row["prompt_id"] for row in rollouts]
    values = summarise(ids, measured.ratios, correct)
    kl = pair.NAMES.index("kl_nats")
    totals, counts = measured.rollouts[:, kl]
    values["kl_nats"] = draws.mean(totals, counts, draws.multiplicities(ids))
    longest = max(len(rollout.response) for rollout in read)
    rows = by_position(measured.ratios, correct, cfg["position_bin"], longest)
    tables.write(out / "metrics.parquet", rows, METRICS)
    return draws.write(out, values, counted(rollouts))


def _informed(cfg: Mapping[str, Any], prompts: Sequence[Row], student: Path) -> list[list[int]]:
    """What the teacher reads before the rollouts to these prompts, contexts in turn."""
    limit = cfg.get("max_teacher_prompt_tokens", cfg["max_prompt_tokens"])
    kwargs = pairing.teacher_kwargs(cfg)
    by_context = privileged.token_ids(
        cfg["information"], prompts, load_tokenizer(student), kwargs, limit
    )
    return [by_context[i % len(by_context)][i] for i in range(len(prompts))]


def _kinds(correct: Array) -> dict[str, Array]:
    return {"all": np.ones_like(correct), "correct": correct, "incorrect": ~correct}


def summarise(
    prompts: Sequence[str], ratios: Sequence[Array], correct: Array
) -> dict[str, draws.Value]:
    """Values of ``run`` but kl_nats, from the log ratios of each rollout's tokens."""
    weights = draws.multiplicities(prompts)
    middles = [-(-len(of_tokens) // 2) for of_tokens in ratios]
    parts = {
        "": ratios,
        "early_": [of_tokens[:m] for of_tokens, m in zip(ratios, middles, strict=True)],
        "late_": [of_tokens[m:] for of_tokens, m in zip(ratios, middles, strict=True)],
    }
    values: dict[str, draws.Value] = {}
    for part, halves in parts.items():
        counts = np.array([len(half) for half in halves])
        sums = {n: np.array([form(half).sum() for half in halves]) for n, form in FORMS.items()}
        for kind, chosen in _kinds(correct).items():
            for name, total in sums.items():
                mean = draws.mean(total * chosen, counts * chosen, weights)
                values[f"{name}_{part}{kind}_nats"] = mean
    values["n_correct"] = draws.total(correct, weights)
    values["n_incorrect"] = draws.total(~correct, weights)
    return values


def by_position(
    ratios: Sequence[Array], correct: Array, width: int, longest: int
) -> list[dict[str, Any]]:
    """Rows of METRICS: log_ratio_KIND_nats and size_KIND_nats over all positions and by bins of
    ``width`` tokens; what was counted nowhere is left out."""
    rows = []
    for kind, chosen in _kinds(correct).items():
        of_kind = [of_tokens for of_tokens, inside in zip(ratios, chosen, strict=True) if inside]
        for name, form in FORMS.items():
            for start in (None, *range(0, longest, width)):
                part = slice(None) if start is None else slice(start, start + width)
                numbers = np.concatenate([[], *(form(of_tokens[part]) for of_tokens in of_kind)])
                if len(numbers):
                    row = {"step": 0, "name": f"{name}_{kind}_nats", "position": start}
                    rows.append({**row, "value": float(numbers.mean())})
    return rows

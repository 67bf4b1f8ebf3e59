"""The shape of a teacher's signal: log q - log p of a student's own tokens, by where in a response
they stand and by whether the response is right (The Many Faces of OPD, Figs. 16 to 18 and 20)."""

from collections.abc import Mapping, Sequence
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


def _which(correct: Array) -> dict[str, Array]:
    return {"all": np.ones_like(correct), "correct": correct, "incorrect": ~correct}


def summarise(
    prompts: Sequence[str], ratios: Sequence[Array], correct: Array
) -> dict[str, draws.Value]:
    """Values of ``run`` but kl_nats, from the log ratios of each rollout's tokens."""
    weights = draws.multiplicities(prompts)
    values: dict[str, draws.Value] = {}
    for part in ("", "early_", "late_"):
        halves = [_half(of_tokens, part) for of_tokens in ratios]
        counts = np.array([len(half) for half in halves])
        sums = {
            "log_ratio": np.array([half.sum() for half in halves]),
            "size": np.array([np.abs(half).sum() for half in halves]),
        }
        for kind, which in _which(correct).items():
            for name, total in sums.items():
                values[f"{name}_{part}{kind}_nats"] = draws.mean(
                    total * which, counts * which, weights
                )
    for kind in ("correct", "incorrect"):
        values[f"n_{kind}"] = draws.total(_which(correct)[kind], weights)
    return values


def _half(ratios: Array, part: str) -> Array:
    middle = -(-len(ratios) // 2)
    return {"": ratios, "early_": ratios[:middle], "late_": ratios[middle:]}[part]


def by_position(
    ratios: Sequence[Array], correct: Array, width: int, longest: int
) -> list[dict[str, Any]]:
    """Rows of METRICS: log_ratio_KIND_nats and size_KIND_nats over all positions and by bins of
    ``width`` tokens; what was counted nowhere is left out."""
    rows = []
    for kind, which in _which(correct).items():
        chosen = [of_tokens for of_tokens, kept in zip(ratios, which, strict=True) if kept]
        for name, form in (("log_ratio", np.asarray), ("size", np.abs)):
            for start in (None, *range(0, longest, width)):
                part = slice(None) if start is None else slice(start, start + width)
                numbers = np.concatenate([[], *(form(of_tokens[part]) for of_tokens in chosen)])
                if len(numbers):
                    rows.append(
                        {
                            "step": 0,
                            "name": f"{name}_{kind}_nats",
                            "position": start,
                            "value": float(numbers.mean()),
                        }
                    )
    return rows

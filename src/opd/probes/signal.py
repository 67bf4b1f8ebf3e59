"""The shape of a teacher's signal: log q - log p of a student's own tokens, by where in a response
they stand and by whether the response is right (The Many Faces of OPD, Figs. 16 to 18 and 20)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.data import privileged
from opd.data.schemas import PROMPTS
from opd.losses.schemas import METRICS
from opd.models import pairing
from opd.models.checkpoints import load_tokenizer
from opd.probes import pair
from opd.probes.rollouts import Row, answers, prompts_of, read_rollouts, right, tokens
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
    rollouts = read_rollouts(inputs["generations"])
    read = tokens(cfg, rollouts, inputs["student"])
    if cfg.get("information"):
        told = _told(cfg, rollouts, inputs)
        read = [one._replace(teacher_prompt=ids) for one, ids in zip(read, told, strict=True)]
    measured = pair.measure(cfg, read, inputs)
    correct = right(rollouts, answers(inputs["prompts"]), cfg["grader"])
    lengths = [len(one.response) for one in read]
    values = summarise([row["prompt_id"] for row in rollouts], measured.ratios, correct)
    weights = draws.multiplicities([row["prompt_id"] for row in rollouts])
    kl = pair.NAMES.index("kl_nats")
    values["kl_nats"] = draws.mean(measured.rollouts[0, kl], measured.rollouts[1, kl], weights)
    draws.write(out, values, {"rollouts": len(rollouts), "prompts": prompts_of(rollouts)})
    rows = by_position(measured.ratios, correct, cfg["position_bin"], max(lengths))
    tables.write(out / "metrics.parquet", rows, METRICS)
    return {name: value.value for name, value in values.items()}


def _told(
    cfg: Mapping[str, Any], rollouts: Sequence[Row], inputs: Mapping[str, Path]
) -> list[list[int]]:
    """What the teacher reads before each rollout, contexts in turn."""
    path = inputs["prompts"] / "prompts.parquet"
    known = {row["id"]: row for row in tables.read(path, PROMPTS).to_pylist()}
    tokenizer = load_tokenizer(inputs["student"])
    limit = cfg.get("max_teacher_prompt_tokens", cfg["max_prompt_tokens"])
    rows = [known[row["prompt_id"]] for row in rollouts]
    kwargs = pairing.teacher_kwargs(cfg)
    by_context = privileged.token_ids(cfg["information"], rows, tokenizer, kwargs, limit)
    return [by_context[i % len(by_context)][i] for i in range(len(rollouts))]


def _which(correct: Array) -> dict[str, Array]:
    return {"all": np.ones_like(correct), "correct": correct, "incorrect": ~correct}


def summarise(
    prompts: Sequence[str], ratios: Sequence[Array], correct: Array
) -> dict[str, draws.Value]:
    """Values of ``run`` but kl_nats, from the log ratios of each rollout's tokens."""
    weights = draws.multiplicities(prompts)
    values: dict[str, draws.Value] = {}
    for part in ("", "early_", "late_"):
        taken = [_half(one, part) for one in ratios]
        counts = np.array([len(one) for one in taken])
        sums = {
            "log_ratio": np.array([one.sum() for one in taken]),
            "size": np.array([np.abs(one).sum() for one in taken]),
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
        mine = [one for one, kept in zip(ratios, which, strict=True) if kept]
        for name, form in (("log_ratio", np.asarray), ("size", np.abs)):
            for start in (None, *range(0, longest, width)):
                part = slice(None) if start is None else slice(start, start + width)
                found = np.concatenate([form(one[part]) for one in mine]) if mine else np.array([])
                if len(found):
                    rows.append(
                        {
                            "step": 0,
                            "name": f"{name}_{kind}_nats",
                            "position": start,
                            "value": float(found.mean()),
                        }
                    )
    return rows

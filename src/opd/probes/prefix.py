"""A teacher alone, and going on after a truncated response of its student: what student prefixes
cost it (The Many Faces of OPD, App. A.22, its Fig. 8).

The paper does not say where responses were cut. Here that is after a share of the tokens which is
drawn evenly from a range, by the prompt's id and the seed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from opd.core import tables
from opd.core.errors import UserError
from opd.grading.graders import Graded
from opd.models import pairing
from opd.models.checkpoints import load_tokenizer
from opd.models.prompts import prompts_of, read_prompts
from opd.models.sampling import Request, Sampler, request_seed
from opd.models.transformers_engine import cut
from opd.probes.rollouts import Row, continued, counted, read_rollouts, tokens
from opd.probes.schemas import CONTINUATIONS
from opd.stats import draws

ALONE, PREFIX = "alone", "prefix"
SHARES = (0.1, 0.9)


def cut_at(tokens: int, id: str, sample: int, seed: int, shares: Sequence[float] = SHARES) -> int:
    """How many of a response's tokens are kept: an even draw from ``shares`` of them, rounded down,
    at least one and never all. A function of prompt id, sample and seed alone."""
    drawn = request_seed(seed, f"cut {id}", sample) / 2**63
    low, high = shares
    return max(min(1, tokens - 1), min(tokens - 1, int((low + (high - low) * drawn) * tokens)))


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Exact two-sided p of McNemar's test: how often a fair coin is as uneven or more; 1 where
    nothing changed."""
    changed = right_to_wrong + wrong_to_right
    return float(binomtest(right_to_wrong, changed).pvalue) if changed else 1.0


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``prefix``: probe.json, draws.parquet and continuations.parquet (the teacher alone has
    prefix 0).

    cfg: grader, those of ``opd.models.sampling.settings`` (max_new_tokens are counted after the
    prefix); optional shares ([least, most] of the student's response that is kept),
    teacher_chat_template_kwargs. Inputs: generations (one rollout of each prompt), teacher,
    student, prompts. Every rollout of the student that no rule rejected is a question asked twice.
    Values: accuracy_alone, accuracy_prefix and their difference (``lost``: alone less prefix),
    format_alone and format_prefix (share in which the grader finds an answer), right_right,
    right_wrong, wrong_right, wrong_wrong (questions, alone first), net (right_wrong less
    wrong_right), mcnemar_p, prefix_tokens (mean), n. What is sampled is kept in ``cache``.
    """
    shares = tuple(cfg.get("shares", SHARES))
    if not 0 <= shares[0] <= shares[1] <= 1:
        raise UserError(f"got {list(shares)}", "shares", "give [least, most], between 0 and 1")
    rollouts = read_rollouts(inputs["generations"])
    id, times = Counter(row["prompt_id"] for row in rollouts).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"prompt '{id}' has {times} rollouts",
            "generations",
            "take some with samples: 1: McNemar's test is of one pair a question",
        )
    pairing.never_compared(*(load_tokenizer(inputs[n]) for n in ("student", "teacher")))
    prompts = prompts_of(rollouts, read_prompts(inputs["prompts"]))
    settings = {**cfg, "chat_template_kwargs": pairing.teacher_kwargs(cfg)}
    sampler = Sampler(inputs["teacher"], settings, cache)
    asked: list[tuple[Row, Request]] = []
    read = tokens(cfg, rollouts, inputs["student"])
    for arm in (ALONE, PREFIX):
        for row, rollout in zip(rollouts, read, strict=True):
            id, sample, length = row["prompt_id"], row["sample"], len(rollout.response)
            kept = cut_at(length, id, sample, cfg["seed"], shares) if arm == PREFIX else 0
            # The student's turn may end with a token that would end the teacher's earlier.
            begun, _ = cut(rollout.response[:kept], sampler.stops)
            known = {"id": id, "sample": sample, "prefix": kept, "by": "teacher", "continuation": 0}
            request = Request(f"{id}, {arm}", rollout.teacher_prompt, sample, begun)
            asked.append((known, request))
    rows, graded = continued(sampler, asked, prompts, cfg["grader"])
    by_arm = {ALONE: graded[: len(rollouts)], PREFIX: graded[len(rollouts) :]}
    values = summarise([row["prompt_id"] for row in rollouts], by_arm)
    lengths = sum(row["prefix"] for row in rows)
    values["prefix_tokens"] = draws.Value(lengths / len(rollouts), None, len(rollouts))
    tables.write(out / "continuations.parquet", rows, CONTINUATIONS)
    return draws.write(out, values, counted(rollouts))


def summarise(
    prompts: Sequence[str], graded: Mapping[str, Sequence[Graded]]
) -> dict[str, draws.Value]:
    """Values of ``run`` but prefix_tokens, from how responses alone and after a prefix are graded
    [N]; prompts [N] are ids."""
    weights = draws.multiplicities(prompts)
    right = {arm: np.array([correct for _, correct in both]) for arm, both in graded.items()}
    values = {f"accuracy_{arm}": draws.share(right[arm], prompts, weights) for arm in graded}
    values["lost"] = draws.difference(values["accuracy_alone"], values["accuracy_prefix"])
    for arm, both in graded.items():
        answered = [extracted is not None for extracted, _ in both]
        values[f"format_{arm}"] = draws.share(answered, prompts, weights)
    outcomes = {arm: {"right": right[arm], "wrong": ~right[arm]} for arm in graded}
    for before, alone in outcomes[ALONE].items():
        for after, prefixed in outcomes[PREFIX].items():
            values[f"{before}_{after}"] = draws.total(alone & prefixed, weights)
    values["net"] = draws.difference(values["right_wrong"], values["wrong_right"])
    changed = (int(values[name].value or 0) for name in ("right_wrong", "wrong_right"))
    values["mcnemar_p"] = draws.Value(mcnemar(*changed), None, len(prompts))
    values["n"] = draws.total(np.ones(len(prompts)), weights)
    return values

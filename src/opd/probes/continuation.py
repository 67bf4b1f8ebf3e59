"""A teacher goes on from the first tokens of its student's rollouts: what it can still do there.

Rethinking OPD, section 6.1 (Fig. 11b): the accuracy of the teacher's continuations less the
student's, on the same rollouts, by the length of what was the student's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.errors import UserError
from opd.models import pairing
from opd.models.checkpoints import load_tokenizer
from opd.models.prompts import read_prompts
from opd.models.sampling import Request, Sampler
from opd.models.transformers_engine import cut
from opd.probes.rollouts import Row, continued, counted, read_rollouts, right, tokens
from opd.probes.schemas import CONTINUATIONS
from opd.stats import draws

TEACHER, STUDENT = "teacher", "student"


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``continuation``: probe.json, draws.parquet and continuations.parquet.

    cfg: prefixes (tokens), grader, those of ``opd.models.sampling.settings``, of which
    max_new_tokens count prefix and continuation together; optional longer_than (tokens: only
    rollouts with more count; the largest prefix if not given), samples (continuations of each
    rollout), baseline (``rollout``: the student's own rest of it, or ``resampled``: the student
    goes on, too), teacher_chat_template_kwargs. Inputs: generations, teacher, student, prompts.
    What is sampled is kept in ``cache``. Values: teacher_L and student_L (share right),
    advantage_L, for each prefix L, and n (rollouts). Raises ``UserError`` where no rollout is long
    enough.
    """
    longer = cfg.get("longer_than") or max(cfg["prefixes"])
    path = inputs["generations"] / "generations.parquet"
    rollouts = read_rollouts(inputs["generations"])
    long = [row for row in rollouts if len(row["token_ids"]) > longer]
    if not long:
        raise UserError(f"no rollout has more than {longer} tokens", str(path), "lower longer_than")
    values, rows = advantages(cfg, long, inputs, cache)
    tables.write(out / "continuations.parquet", rows, CONTINUATIONS)
    return draws.write(out, values, counted(long))


def advantages(
    cfg: Mapping[str, Any], rollouts: Sequence[Row], inputs: Mapping[str, Path], cache: Path
) -> tuple[dict[str, draws.Value], list[Row]]:
    """Values of the probe and rows of CONTINUATIONS for rollouts (rows of GENERATIONS).

    cfg: see ``run``. Raises ``UserError`` for unknown settings, where the tokenizers differ, and
    for a prefix that leaves no room to go on.
    """
    baseline, most = cfg.get("baseline", "rollout"), cfg["max_new_tokens"]
    if baseline not in ("rollout", "resampled"):
        raise UserError(f"unknown baseline '{baseline}'", "baseline", "use rollout or resampled")
    if max(cfg["prefixes"]) >= most:
        raise UserError(
            f"a prefix of {max(cfg['prefixes'])} tokens leaves none to go on with",
            "max_new_tokens",
            f"raise it above that (it is {most})",
        )
    pairing.never_compared(*(load_tokenizer(inputs[by]) for by in (STUDENT, TEACHER)))
    prompts, ids = read_prompts(inputs["prompts"]), [row["prompt_id"] for row in rollouts]
    own = right(rollouts, prompts, cfg["grader"]).astype(np.float64)
    weights = draws.multiplicities(ids)
    read = tokens(cfg, rollouts, inputs[STUDENT])
    values: dict[str, draws.Value] = {}
    rows: list[Row] = []
    for prefix in cfg["prefixes"]:
        shares = {STUDENT: own}
        for by in (TEACHER, STUDENT) if baseline == "resampled" else (TEACHER,):
            settings = {**cfg, "max_new_tokens": most - prefix}
            if by == TEACHER:
                settings["chat_template_kwargs"] = pairing.teacher_kwargs(cfg)
            sampler = Sampler(inputs[by], settings, cache)
            asked: list[tuple[Row, Request]] = []
            for row, rollout in zip(rollouts, read, strict=True):
                prompt = rollout.teacher_prompt if by == TEACHER else rollout.prompt
                # A token that ends the turn of this model only ends it here.
                begun, _ = cut(rollout.response[:prefix], sampler.stops)
                # A name of its own: the student would else repeat its rollout where seeds agree.
                name = f"{row['prompt_id']}, rollout {row['sample']}"
                known = {
                    "id": row["prompt_id"],
                    "sample": row["sample"],
                    "prefix": prefix,
                    "by": by,
                }
                for sample in range(cfg.get("samples", 1)):
                    request = Request(name, prompt, sample, begun)
                    asked.append(({**known, "continuation": sample}, request))
            made, graded = continued(sampler, asked, prompts, cfg["grader"])
            verdicts = np.array([correct for _, correct in graded], dtype=np.float64)
            shares[by] = verdicts.reshape(len(rollouts), -1).mean(axis=1)
            rows += made
        share_of = {by: draws.share(shares[by], ids, weights) for by in (TEACHER, STUDENT)}
        values[f"advantage_{prefix}"] = draws.difference(share_of[TEACHER], share_of[STUDENT])
        values |= {f"{by}_{prefix}": value for by, value in share_of.items()}
    values["n"] = draws.total(np.ones(len(rollouts)), weights)
    return values, rows

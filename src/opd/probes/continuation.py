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
from opd.grading.graders import grade_all
from opd.models import pairing
from opd.models.checkpoints import load_tokenizer
from opd.models.sampling import Request, Sampler
from opd.models.transformers_engine import cut
from opd.probes.rollouts import Rollout, Row, answers, prompts_of, read_rollouts, right, tokens
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
    found = [row for row in read_rollouts(inputs["generations"]) if len(row["token_ids"]) > longer]
    if not found:
        raise UserError(f"no rollout has more than {longer} tokens", str(path), "lower longer_than")
    values, rows = advantages(cfg, found, inputs, cache)
    draws.write(out, values, {"rollouts": len(found), "prompts": prompts_of(found)})
    tables.write(out / "continuations.parquet", rows, CONTINUATIONS)
    return {name: value.value for name, value in values.items()}


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
    student, teacher = (load_tokenizer(inputs[name]) for name in (STUDENT, TEACHER))
    pairing.require_same_tokenizer(student, teacher)
    known, prompts = answers(inputs["prompts"]), [row["prompt_id"] for row in rollouts]
    own = right(rollouts, known, cfg["grader"])
    weights = draws.multiplicities(prompts)
    read = tokens(cfg, rollouts, inputs[STUDENT])
    values: dict[str, draws.Value] = {}
    rows: list[Row] = []
    for prefix in cfg["prefixes"]:
        shares = {STUDENT: own.astype(np.float64)}
        for by in (TEACHER, STUDENT) if baseline == "resampled" else (TEACHER,):
            made = _continued(cfg, by, prefix, rollouts, read, inputs[by], cache)
            texts = [(row["response"], known[row["id"]]) for row in made]
            for row, (_, correct) in zip(made, grade_all(texts, cfg["grader"])[0], strict=True):
                row["correct"] = correct
            verdicts = np.array([row["correct"] for row in made], dtype=np.float64)
            shares[by] = verdicts.reshape(len(rollouts), -1).mean(axis=1)
            rows += made
        found = {by: draws.share(shares[by], prompts, weights) for by in (TEACHER, STUDENT)}
        values[f"advantage_{prefix}"] = draws.difference(found[TEACHER], found[STUDENT])
        values |= {f"{by}_{prefix}": value for by, value in found.items()}
    values["n"] = draws.total(np.ones(len(rollouts)), weights)
    return values, rows


def _continued(
    cfg: Mapping[str, Any],
    by: str,
    prefix: int,
    rollouts: Sequence[Row],
    read: Sequence[Rollout],
    model: Path,
    cache: Path,
) -> list[Row]:
    """Rows of CONTINUATIONS, but for ``correct``, of one model and prefix: each rollout's samples
    one after the other."""
    kwargs = pairing.teacher_kwargs(cfg) if by == TEACHER else cfg.get("chat_template_kwargs")
    settings = {
        **cfg,
        "max_new_tokens": cfg["max_new_tokens"] - prefix,
        "chat_template_kwargs": kwargs or {},
    }
    sampler = Sampler(model, settings, cache)
    samples = cfg.get("samples", 1)
    asked = [
        (
            {"id": row["prompt_id"], "sample": row["sample"], "prefix": prefix, "by": by},
            # A name of its own: the student would else repeat its rollout where the seeds agree.
            Request(
                f"{row['prompt_id']}, rollout {row['sample']}",
                ids.teacher_prompt if by == TEACHER else ids.prompt,
                sample,
                # A token that ends the turn of this model only ends it here.
                cut(ids.response[:prefix], sampler.stops)[0],
            ),
        )
        for row, ids in zip(rollouts, read, strict=True)
        for sample in range(samples)
    ]
    responses = sampler.sample([request for _, request in asked])
    sampler.stop()
    return [
        {
            **about,
            "continuation": request.sample,
            "response": response.text,
            "tokens": len(response.token_ids),
            "finish": response.finish,
        }
        for (about, request), response in zip(asked, responses, strict=True)
    ]

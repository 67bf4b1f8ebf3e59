"""Evaluation of a model on benchmarks: avg@k with intervals, pass@k, format, truncation, length."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd import sampling, tables
from opd.errors import Bad
from opd.grading import grade_all
from opd.intervals import interval

PREFIX = "benchmark:"


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``evaluate``: scores.parquet (every problem x sample) and summary.json.

    cfg: protocol (samples, temperature, top_p, top_k, max_new_tokens), max_prompt_tokens, grader,
    benchmarks (names), backend, batch_size, dtype, chat_template_kwargs, seed, threads.
    Inputs: model, and a prompt set ``benchmark:NAME`` for each benchmark.
    """
    benchmarks = cfg.get("benchmarks") or [
        name.removeprefix(PREFIX) for name in sorted(inputs) if name.startswith(PREFIX)
    ]
    problems = []
    for name in benchmarks:
        table = tables.read(inputs[PREFIX + name] / "prompts.parquet", tables.PROMPTS)
        problems += [(name, row) for row in table.to_pylist()]
    # All benchmarks in one call: an engine starts once.
    protocol = {**cfg, **cfg["protocol"]}
    samples = protocol["samples"]
    sampler = sampling.Sampler(inputs["model"], protocol, scratch)
    ids = [f"{name}/{row['id']}" for name, row in problems]
    prompts = sampler.tokenize([row["prompt"] for _, row in problems], ids)
    responses = sampler.sample(
        [
            sampling.Request(id, prompt, i)
            for id, prompt in zip(ids, prompts, strict=True)
            for i in range(samples)
        ]
    )
    asked = [(*problem, i) for problem in problems for i in range(samples)]
    graded, timeouts = grade_all(
        [(r.text, row["answer"]) for r, (_, row, _) in zip(responses, asked, strict=True)],
        cfg["grader"],
    )
    rows = [
        {
            "benchmark": name,
            "problem": row["id"],
            "sample": i,
            "answer": row["answer"],
            "response": response.text,
            "extracted": extracted,
            "correct": correct,
            "tokens": len(response.token_ids),
            "finish": response.finish,
        }
        for response, (name, row, i), (extracted, correct) in zip(
            responses, asked, graded, strict=True
        )
    ]
    summary = summarise(rows, benchmarks, samples, cfg["seed"])
    summary["grader_timeouts"] = timeouts
    tables.write(out / "scores.parquet", rows, tables.SCORES)
    (out / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    numbers = {name: values["avg"] for name, values in summary["benchmarks"].items()}
    return numbers | {"macro": summary["macro"]["avg"], "grader_timeouts": timeouts}


def summarise(
    rows: list[dict[str, Any]], benchmarks: list[str], samples: int, seed: int
) -> dict[str, Any]:
    """Numbers per benchmark and their macro mean, from rows of the schema SCORES.

    avg is the mean over problems of the share of right samples; low and high bound its 95 %
    interval (bootstrap over problems). Raises ``Bad`` unless every problem of every benchmark has
    exactly the samples 0..samples-1.
    """
    found: dict[str, Any] = {}
    matrices = []
    for name in benchmarks:
        mine = [row for row in rows if row["benchmark"] == name]
        correct = correct_matrix(mine, name, samples)
        matrices.append(correct[None])
        ks = [2**i for i in range(samples.bit_length()) if 2**i < samples] + [samples]
        found[name] = {
            "problems": len(correct),
            "samples": samples,
            **_bounds([correct[None]], seed),
            "pass": {str(k): pass_at_k(correct, k) for k in ks},
            "format_rate": float(np.mean([row["extracted"] is not None for row in mine])),
            "truncation_rate": float(np.mean([row["finish"] == "length" for row in mine])),
            "mean_tokens": float(np.mean([row["tokens"] for row in mine])),
        }
    return {"benchmarks": found, "macro": _bounds(matrices, seed)}


def _bounds(scores: list[NDArray[np.float64]], seed: int) -> dict[str, float]:
    found = interval(scores, seed=seed)
    return {"avg": found.mean, "low": found.low, "high": found.high}


def correct_matrix(rows: list[dict[str, Any]], name: str, samples: int) -> NDArray[np.float64]:
    """1 where a sample is right: float64 [problems, samples]; ``Bad`` if one lacks or is double."""
    verdicts: dict[str, dict[int, bool]] = {}
    for row in rows:
        verdicts.setdefault(row["problem"], {})[row["sample"]] = row["correct"]
    wanted = list(range(samples))
    for problem, given in verdicts.items():
        if sorted(given) != wanted:
            raise Bad(
                f"samples {sorted(given)} of problem '{problem}', not 0 to {samples - 1}",
                f"benchmark {name}",
                "run the evaluation again",
            )
    if not verdicts or len(rows) != len(verdicts) * samples:
        raise Bad(
            f"{len(rows)} scores for {len(verdicts)} problems x {samples} samples",
            f"benchmark {name}",
            "run the evaluation again",
        )
    return np.array([[given[i] for i in wanted] for given in verdicts.values()], dtype=np.float64)


def pass_at_k(correct: NDArray[np.float64], k: int) -> float:
    """Mean over problems of the chance that one of k of the n samples is right, without replacement
    (the unbiased estimate of Chen et al. 2021): 1 - C(n - c, k) / C(n, k). correct [P, n]."""
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} of {n} samples")
    rights = correct.sum(axis=1).astype(int).tolist()
    return float(np.mean([1 - math.comb(n - c, k) / math.comb(n, k) for c in rights]))


def gap_recovery(after: float, before: float, teacher: float) -> float:
    """(after - before) / (teacher - before): the share of the teacher's lead that was gained
    (Rethinking OPD, section 3.2). NaN where the teacher has no lead to recover."""
    return (after - before) / (teacher - before) if teacher != before else math.nan

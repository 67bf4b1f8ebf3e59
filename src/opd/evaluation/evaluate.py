"""Evaluation of a model on benchmarks: avg@k with intervals, pass@k, maj@k, format, truncation,
length."""

import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.core import tables
from opd.core.errors import UserError
from opd.data import templates
from opd.evaluation.schemas import RESPONSES, SCORES, samples_by_problem
from opd.evaluation.tasks import OURS
from opd.grading.equivalence import normalise
from opd.grading.graders import (
    GRADERS,
    PAPERS,
    RELAXED,
    THINK,
    Choices,
    Graded,
    Verdicts,
    grade_all,
)
from opd.stats.intervals import interval, sampling_error, standard_error

Row = dict[str, Any]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``evaluate``: scores.parquet and responses.parquet (every problem x sample),
    summary.json and disagreements.csv (answers on which ``rule`` and ``math_verify`` differ, most
    frequent first).

    cfg: benchmarks (what ``harness.load`` takes), protocol (samples, temperature, top_p, top_k,
    max_new_tokens, grader, ``Choices``, cut_off, template), max_prompt_tokens, backend, batch_size,
    dtype, chat_template_kwargs, seed, threads. Inputs: model, and for a benchmark ``prompts:NAME``
    (a prompt set), ``data:NAME`` (a folder with a parquet file per split) or ``include:NAME`` (a
    folder with task files). What is sampled is kept in ``cache``.
    """
    from opd.evaluation import harness
    from opd.models import sampling

    protocol = cfg["protocol"]
    lm = harness.SamplerLM(inputs["model"], cache, **sampling.settings({**cfg, **protocol}))
    with tempfile.TemporaryDirectory() as work:
        tasks = {
            benchmark["name"]: _task(benchmark, protocol, inputs, work)
            for benchmark in cfg["benchmarks"]
        }
        repeated = {benchmark["name"]: benchmark.get("repeated") for benchmark in cfg["benchmarks"]}
        answered = harness.answer(tasks, lm, repeated)
    graders = {
        name: tuple((task.config.metadata or {}).get("graders", ())) for name, task in tasks.items()
    }
    cut_off_is_wrong = protocol.get("cut_off") == "wrong"
    choices = Choices(**{name: protocol[name] for name in protocol.keys() & {*Choices._fields}})
    rows, timeouts, changed = score(
        answered, graders, protocol["grader"], cut_off_is_wrong, choices
    )
    summary = summarise(rows, list(answered), cfg["seed"])
    for name, counts in changed.items():
        summary["benchmarks"][name]["choices"] = counts
    summary["grader_timeouts"] = timeouts
    tables.write(out / "scores.parquet", rows, SCORES)
    tables.write(out / "responses.parquet", rows, RESPONSES)
    write_disagreements(out / "disagreements.csv", rows, graders)
    tables.write_json(out / "summary.json", summary)
    numbers = {name: values["avg"] for name, values in summary["benchmarks"].items()}
    return numbers | {"macro": summary["macro"]["avg"], "grader_timeouts": timeouts}


def _task(
    benchmark: Mapping[str, Any], protocol: Mapping[str, Any], inputs: Mapping[str, Path], work: str
) -> Any:
    """The lm-eval task of a benchmark over its inputs; for ours with the protocol's template."""
    from opd.evaluation import harness

    name = benchmark["name"]
    settings = dict(benchmark)
    if f"include:{name}" in inputs:
        settings["include"] = str(inputs[f"include:{name}"])
    if "template" in protocol and benchmark["task"].startswith(OURS):
        before, after = templates.named(protocol["template"]).split(templates.PLACE, 1)
        settings["prompt"] = (
            f"{{% raw %}}{before}{{% endraw %}}{{{{question}}}}{{% raw %}}{after}{{% endraw %}}"
        )
    data = {}
    if f"prompts:{name}" in inputs:
        data = {"test": inputs[f"prompts:{name}"] / "prompts.parquet"}
    elif f"data:{name}" in inputs:
        data = {file.stem: file for file in sorted(inputs[f"data:{name}"].glob("*.parquet"))}
    return harness.load(settings, data, protocol["samples"], Path(work))


def score(
    answered: Mapping[str, Sequence[Any]],
    graders: Mapping[str, Sequence[str]],
    grader: str,
    cut_off_is_wrong: bool = False,
    choices: Choices = PAPERS,
) -> tuple[list[Row], int, dict[str, dict[str, int]]]:
    """Rows of the schemas SCORES and RESPONSES, how many comparisons hit a limit, and of each
    benchmark whose grader reads a box how many verdicts each choice of the protocol would change by
    being another.

    ``answered`` holds ``harness.ScoredResponse`` by benchmark. A benchmark with graders is graded
    by each; its main metric is ``grader``, or where that is not one of its graders, the first.
    Others bring their scores along; the first one counts. ``cut_off_is_wrong`` gives responses
    that reached the limit no score by any grader.
    """
    rows, timeouts = [], 0
    settled: Verdicts = {}
    changed: dict[str, dict[str, int]] = {}
    for name, responses in answered.items():
        pairs = [
            (THINK * response.thinking + response.response, response.answer)
            for response in responses
        ]
        graded: dict[str, list[Graded]] = {}
        for kind in graders[name]:
            graded[kind], limits = grade_all(pairs, kind, settled, choices)
            timeouts += limits
        counts = [not (cut_off_is_wrong and response.finish == "length") for response in responses]
        counted = grader if grader in graded else next(iter(graded), "")
        if graded and GRADERS[counted].boxed:
            changed[name] = {}
            for choice, others in choices.each_other().items():
                regraded, _ = grade_all(pairs, counted, settled, others)
                verdicts = zip(counts, graded[counted], regraded, strict=True)
                changed[name][choice] = sum(c and a[1] != b[1] for c, a, b in verdicts)
        for i, response in enumerate(responses):
            scores = {kind: float(own[i][1]) for kind, own in graded.items()} or response.scores
            if not scores:
                raise UserError(
                    "its metrics are no numbers of single samples",
                    f"benchmark {name}",
                    "use a task with such a metric, as acc or exact_match",
                )
            main = counted or next(iter(scores))
            if not counts[i]:
                scores = dict.fromkeys(scores, 0.0)
            row = response._asdict()
            del row["thinking"]
            rows.append(
                {
                    **row,
                    "benchmark": name,
                    "extracted": graded[main][i][0] if graded else response.extracted,
                    "correct": scores[main],
                    "scores": sorted(scores.items()),
                }
            )
    return rows, timeouts, changed


def _disputed(row: Row) -> dict[str, bool]:
    """The verdicts of a response's graders, but for the relaxed one; empty where they agree."""
    verdicts = {kind: bool(value) for kind, value in row["scores"] if kind != RELAXED}
    return verdicts if len(set(verdicts.values())) > 1 else {}


def write_disagreements(
    path: Path, rows: Sequence[Row], graders: Mapping[str, Sequence[str]]
) -> None:
    """The answers on which the graders of a benchmark differ, the most frequent first, as csv."""
    kinds = dict.fromkeys(kind for several in graders.values() for kind in several)
    columns = ["benchmark", "extracted", "answer", *(k for k in kinds if k != RELAXED), "count"]
    lines: list[Row] = []
    for benchmark in (name for name, several in graders.items() if several):
        differing = Counter(
            (row["extracted"], row["answer"], tuple(_disputed(row).items()))
            for row in rows
            if row["benchmark"] == benchmark and _disputed(row)
        )
        for (extracted, answer, verdicts), count in differing.most_common():
            line = {"benchmark": benchmark, "extracted": extracted, "answer": answer}
            lines.append({**line, **dict(verdicts), "count": count})
    cells = [[line.get(column) for column in columns] for line in lines]
    tables.write_csv(path, [columns, *cells])


def summarise(rows: list[Row], benchmarks: list[str], seed: int) -> Row:
    """Numbers per benchmark and their macro mean, from rows of the schema SCORES.

    avg is the mean over problems of the mean score of the samples (avg@k), se its standard error
    and low and high its 95 % interval over problems; se_samples is the part of it that other
    samples of the same problems would show (``opd.stats.intervals``). Raises ``UserError`` unless
    every problem of a benchmark has the same samples 0..k-1.
    """
    numbers: Row = {}
    matrices = []
    for name in benchmarks:
        own = [row for row in rows if row["benchmark"] == name]
        problems, samples = ([row[column] for row in own] for column in ("problem", "sample"))
        places = samples_by_problem(problems, samples, f"benchmark {name}")
        correct = np.array([row["correct"] for row in own])[[*places.values()]]
        k = correct.shape[1]
        matrices.append(correct[None])
        ks = [2**i for i in range(k.bit_length()) if 2**i < k] + [k]
        binary = bool(np.isin(correct, (0, 1)).all())
        metrics = dict.fromkeys(metric for row in own for metric, _ in row["scores"])
        numbers[name] = {
            "problems": len(correct),
            "samples": k,
            **_bounds([correct[None]], seed),
            "pass": {str(n): pass_at_k(correct, n) for n in ks} if binary else {},
            "maj": majority(own),
            "format_rate": float(np.mean([row["extracted"] is not None for row in own])),
            "truncation_rate": float(np.mean([row["finish"] == "length" for row in own])),
            "mean_tokens": float(np.mean([row["tokens"] for row in own])),
            "metrics": {m: float(np.mean([dict(r["scores"])[m] for r in own])) for m in metrics},
        }
        if set(metrics) <= set(GRADERS):
            numbers[name]["disagreements"] = sum(bool(_disputed(row)) for row in own)
    return {"benchmarks": numbers, "macro": _bounds(matrices, seed)}


def _bounds(scores: list[NDArray[np.float64]], seed: int) -> dict[str, float | None]:
    mean, low, high = interval(scores, seed=seed)
    return {
        "avg": mean,
        "se": standard_error(scores),
        "low": low,
        "high": high,
        "se_samples": sampling_error(scores),
    }


def pass_at_k(correct: NDArray[np.float64], k: int) -> float:
    """Mean over problems of the chance that one of k of the n samples is right, without replacement
    (the unbiased estimate of Chen et al. 2021): 1 - C(n - c, k) / C(n, k). correct [P, n]."""
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} of {n} samples")
    rights = correct.sum(axis=1).astype(int).tolist()
    return float(np.mean([1 - math.comb(n - c, k) / math.comb(n, k) for c in rights]))


def majority(rows: Sequence[Row]) -> float:
    """Mean over problems of the score of the answer that most of its samples give (maj@k; Wang et
    al. 2023, self-consistency). Answers are the same if they are after normalisation; samples
    without one do not vote; of equally frequent answers each counts its share."""
    votes: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores_of = votes.setdefault(row["problem"], {})
        if row["extracted"] is not None:
            scores_of.setdefault(normalise(row["extracted"]), []).append(row["correct"])
    won = []
    for scores_of in votes.values():
        most = max(map(len, scores_of.values()), default=0)
        first = [float(np.mean(scores)) for scores in scores_of.values() if len(scores) == most]
        won.append(float(np.mean(first)) if first else 0.0)
    return float(np.mean(won))

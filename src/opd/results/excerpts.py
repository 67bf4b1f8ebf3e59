"""Tables of words: responses before and after a training run, and what a probe expects of a pair.

They have the two files of any table (``opd.results.tables``).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from opd.core import tables
from opd.core.code import package_file
from opd.core.html import render
from opd.core.markdown import line
from opd.data.schemas import PROMPTS
from opd.evaluation.reader import Reader
from opd.evaluation.schemas import RESPONSES, SCORES
from opd.probes.outlook import advice, indicator_rows

PAGES = package_file(__file__, "pages/tables")
PROBLEMS = 5
# Characters of a response that are shown: how it begins and, as the answer is there, how it ends.
BEGINNING, END = 150, 250

NO_CHARACTER = "\ufffd"  # what stands for bytes that are no text

_CORRECT = pa.schema([SCORES.field("correct")])
_QUESTIONS = pa.schema(PROMPTS.field(name) for name in ("id", "question"))
Key = tuple[str, str]  # benchmark, problem


def responses(cfg: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the first responses of two models to ``PROBLEMS`` problems of every row, which are
    taken at even distances from all of them; ✓ and ✗ stand for right and wrong.

    cfg: ``title``, ``caption``, ``rows`` [{label, evaluations, base}], each a list of names of
    inputs of which the first counts. The inputs ``prompts:BENCHMARK`` have the questions, where a
    benchmark has any. Returns how many problems are shown.
    """
    reader = Reader(inputs)
    questions = {
        (name.removeprefix("prompts:"), row["id"]): row["question"]
        for name in inputs
        if name.startswith("prompts:")
        for row in tables.read(reader.file(name, "prompts.parquet", name), _QUESTIONS).to_pylist()
    }
    rows = [["", "question", "answer", "before", "after"]]
    for row in cfg["rows"]:
        before, after = (
            _first_samples(reader, row[side][0], row["label"]) for side in ("base", "evaluations")
        )
        keys = sorted(before.keys() & after.keys())
        count = min(PROBLEMS, len(keys))
        for benchmark, problem in [keys[i * len(keys) // count] for i in range(count)]:
            shown = [side[benchmark, problem] for side in (before, after)]
            question = questions.get((benchmark, problem), problem)
            rows.append([row["label"], question, shown[0]["answer"], *map(_verdict, shown)])
    seed = "" if len(cfg["rows"][0]["base"]) == 1 else " of the first seed"
    note = (
        f"At even distances from all problems, the first sample of each{seed}; of long responses "
        "the beginning and the end. All of them: responses.parquet of the evaluations."
    )
    _write(out, cfg, rows, note)
    return {"problems": len(rows) - 1}


def outlook(cfg: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the indicators that a probe measured before training, and below them the outlook with
    its reason and what to try next.

    cfg: ``title``, ``caption``, ``rows`` [{label, probe}], the names of inputs of which the first
    of the first row counts. Returns the outlook.
    """
    row = cfg["rows"][0]
    report = Reader(inputs).json(row["probe"][0], "preflight.json", row["label"])
    next_steps = " ".join(advice(report))
    tokens = report["values"]["response_tokens"]["value"]
    sentences = [
        f"Outlook: {report['outlook']}. {report['because']}",
        f"What to try next: {next_steps}" if next_steps else "",
        f"Measured on {report['rollouts']} responses of the student, of {tokens:.0f} tokens on"
        f" average, to {report['prompts']} prompts.",
    ]
    note = " ".join(filter(None, sentences))
    _write(out, cfg, indicator_rows(report), note)
    return {"outlook": report["outlook"]}


def _first_samples(reader: Reader, name: str, where: str) -> dict[Key, dict[str, Any]]:
    responses = tables.read(reader.file(name, "responses.parquet", where), RESPONSES)
    correct = tables.read(reader.file(name, "scores.parquet", where), _CORRECT)["correct"]
    rows = responses.append_column("correct", correct).filter(pc.field("sample") == 0).to_pylist()
    return {(row["benchmark"], row["problem"]): row for row in rows}


def _verdict(row: Mapping[str, Any]) -> str:
    text = " ".join(row["response"].split())
    if text.count(NO_CHARACTER) > len(text) / 2:
        text = f"(no text: most of its {len(text)} characters are bytes of none)"
    if len(text) > BEGINNING + END:
        text = f"{text[:BEGINNING]} … {text[-END:]}"
    return f"{'✓' if row['correct'] > 0 else '✗'} {text}"


def _write(out: Path, cfg: Mapping[str, Any], rows: Sequence[Sequence[str]], note: str) -> None:
    tables.write_csv(out / "table.csv", rows)
    heading, *others = rows
    lines = [heading, ["---"] * len(heading), *others]
    page = render(PAGES, "excerpts.md.j2", cfg=cfg, lines=map(line, lines), note=note)
    tables.write_text(out / "table.md", page)

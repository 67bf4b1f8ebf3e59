"""Prompt sets: loading, cleaning, selection, sampling and templates (schema ``tables.PROMPTS``).

A source is the miniature world, a file, a dataset of the hub, or another prompt set. Affixes that
the source adds around the bare question are taken off (``strip``), and a template may put others
on, so that the same questions can be asked in several ways.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd import tables
from opd.errors import Bad

PLACE = "{question}"
Row = dict[str, Any]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``prompts``: write prompts.parquet.

    cfg: source (one of world, path, hub, from), world, strip, drop_empty, levels, max_chars (longer
    questions are left out), sample, template. They apply in this order. Raises ``Bad`` for a
    missing file or column, an affix that matches nothing, an empty row (unless ``drop_empty``) and
    an empty result.
    """
    name, rows = load(cfg, inputs)
    read = len(rows)
    rows, stripped = strip_rows(rows, cfg.get("strip") or [], name)
    rows, dropped = _without_empty(rows, bool(cfg.get("drop_empty")), name)
    levels = cfg.get("levels")
    if levels:
        if all(row["difficulty"] is None for row in rows):
            raise Bad(f"levels {levels} asked for, but {name} has none", "levels", "remove the key")
        rows = [row for row in rows if row["difficulty"] in levels]
    selected = len(rows)
    if cfg.get("max_chars"):
        rows = [row for row in rows if len(row["question"]) <= cfg["max_chars"]]
    if not rows:
        raise Bad(
            f"no prompt of {name} is left ({read} read, {selected} of the levels wanted)",
            "levels, max_chars",
            "select more of them",
        )
    left = len(rows)
    if cfg.get("sample"):
        n, seed = cfg["sample"]["n"], cfg["sample"].get("seed", cfg.get("seed", 0))
        rows = sample(rows, n, seed)
    template = cfg.get("template")
    if template is not None:
        rows = [row | {"prompt": apply_template(template, row["question"])} for row in rows]
    tables.write(out / "prompts.parquet", rows, tables.PROMPTS)
    return {
        "prompts": len(rows),
        "rows_read": read,
        "dropped_empty": dropped,
        "dropped_long": selected - left,
        "stripped": stripped,
        "longest_prompt_chars": max(len(row["prompt"]) for row in rows),
    }


def apply_template(template: str, question: str) -> str:
    """Put a question into a template. Only ``{question}`` is replaced; other braces stand."""
    if PLACE not in template:
        raise Bad(f"the template has no {PLACE}: {template!r}", "template", f"add {PLACE} to it")
    return template.replace(PLACE, question)


def strip_question(text: str, affixes: Sequence[str]) -> tuple[str, list[bool]]:
    """Take affixes and outer white space off a question.

    An affix with ``{question}`` is a template: its prefix and its suffix come off together, and
    only if both are there. Any other comes off wherever the text ends or starts with it. Returns
    the bare question and which of the affixes were found.
    """
    text = text.strip()
    found = []
    for affix in affixes:
        before = text
        if PLACE in affix:
            prefix, suffix = (part.strip() for part in affix.split(PLACE, 1))
            fits = len(text) >= len(prefix) + len(suffix)
            if fits and text.startswith(prefix) and text.endswith(suffix):
                text = text[len(prefix) : len(text) - len(suffix)].strip()
        else:
            affix = affix.strip()
            text = text.removesuffix(affix).removeprefix(affix).strip()
        found.append(text != before)
    return text, found


def strip_rows(
    rows: Iterable[Row], affixes: Sequence[str], name: str
) -> tuple[list[Row], dict[str, int]]:
    """Strip every row's question; also returns how many rows had each affix.

    Raises ``Bad`` for an affix that no row has: text that stays on every question drags all
    similarities along unnoticed (Rethinking OPD's released DAPO file has a double brace where its
    deduplication script expects a single one).
    """
    counts = dict.fromkeys(affixes, 0)
    stripped = []
    for row in rows:
        question, found = strip_question(row["question"], affixes)
        stripped.append(row | {"question": question})
        for affix, hit in zip(affixes, found, strict=True):
            counts[affix] += hit
    for i, affix in enumerate(affixes):
        if stripped and not counts[affix]:
            raise Bad(
                f"no row of {name} has {affix!r}; its first question reads "
                f"'{_shorten(stripped[0]['question'])}'",
                f"strip.{i}",
                "copy the text from the file, or remove the entry",
            )
    return stripped, counts


def sample(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """n rows without replacement, in their old order.

    For one seed, a smaller sample is a subset of a larger one. Raises ``Bad`` where n are not left.
    """
    if n > len(rows):
        raise Bad(f"{n} prompts wanted, {len(rows)} are there", "sample.n", "ask for fewer")
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [rows[i] for i in sorted(chosen)]


def load(cfg: dict[str, Any], inputs: dict[str, Path]) -> tuple[str, list[Row]]:
    """Read the source: a name for messages and ids, and rows of the schema PROMPTS."""
    source = cfg["source"]
    if source.get("world"):
        from opd.world import make_prompts

        wanted = source["world"]
        rows = make_prompts(cfg["world"], wanted["split"], wanted["n"])
        return f"world:{wanted['split']}", [dict(row) for row in rows]
    if source.get("from"):
        path = inputs["prompts"] / "prompts.parquet"
        return str(path), tables.read(path, tables.PROMPTS).to_pylist()
    if source.get("hub"):
        name = f"{source['hub']}@{source['revision']}:{source.get('split', 'train')}"
        raw = _read_hub(source)
    elif source.get("path"):
        name = source["path"]
        raw = read_file(inputs.get("path") or resolve(name))
    else:
        raise Bad(f"no source in {source}", "source", "give one of world, path, hub, from")
    return name, to_rows(raw, name, source)


def resolve(path: str) -> Path:
    """An existing input file: absolute, or relative to the folder that OPD_DATA_DIR names."""
    full = Path(path)
    if not full.is_absolute():
        root = os.environ.get("OPD_DATA_DIR")
        if not root:
            raise Bad(
                f"'{path}' is relative to OPD_DATA_DIR, which is not set",
                "source.path",
                "set the environment variable OPD_DATA_DIR to the folder with the data files",
            )
        full = Path(root) / path
    if not full.is_file():
        raise Bad(f"no such file: {full}", "source.path", "mend the path or OPD_DATA_DIR")
    return full


def read_file(path: Path) -> list[Row]:
    """Rows of a .parquet, .jsonl or .csv file, each with the columns of the file."""
    if not path.is_file():
        raise Bad(f"no such file: {path}", "source.path", "mend the path or OPD_DATA_DIR")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows: list[Row] = pq.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise Bad(f"not a parquet file ({error})", str(path), "fetch it again") from error
        return rows
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        rows = []
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise Bad(f"not JSON ({error})", f"{path}:{number}", "mend the line") from error
                if not isinstance(row, dict):
                    raise Bad("not a JSON object", f"{path}:{number}", "mend the line")
                rows.append(row)
        return rows
    raise Bad(f"unknown kind of file '{path.suffix}'", str(path), "use .parquet, .jsonl or .csv")


def to_rows(raw: Sequence[Row], name: str, source: Row) -> list[Row]:
    """Raw rows -> rows of the schema PROMPTS.

    ``source['format']`` is ``verl`` (``prompt`` is a list with one user message, the answer is
    ``reward_model.ground_truth``, and ``extra_info.question``, where there is one, the bare
    question) or ``table`` (columns named by ``source['question']`` and ``source['answer']``);
    without it the columns decide. Raises ``Bad`` naming a missing column or a malformed row.
    """
    if not raw:
        raise Bad("it has no rows", name, "give a file with prompts")
    columns = set(raw[0])
    kind = source.get("format") or ("verl" if "reward_model" in columns else "table")
    if kind not in ("verl", "table"):
        raise Bad(f"unknown format '{kind}'", "source.format", "use verl or table")
    question = source.get("question") or "question"
    answer = source.get("answer") or "answer"
    for column in ("prompt", "reward_model") if kind == "verl" else (question, answer):
        if column not in columns:
            raise Bad(
                f"column '{column}' is missing (it has {', '.join(sorted(columns))})",
                name,
                "name the columns with source.question and source.answer"
                if kind == "table"
                else "verl files have prompt and reward_model",
            )
    rows = []
    for i, row in enumerate(raw):
        where = f"{name}: row {i}"
        if kind == "verl":
            prompt, bare, truth = _verl_row(row, where)
        else:
            bare, truth = _text(row.get(question)), _text(row.get(answer))
            prompt = row["prompt"] if isinstance(row.get("prompt"), str) else bare
        rows.append(
            tables.prompt(
                id=hashlib.sha1(f"{name}\0{i}".encode()).hexdigest()[:16],
                question=bare,
                answer=truth,
                prompt=prompt,
                source=name,
                row=i,
                difficulty=_level(row.get("level"), where),
            )
        )
    return rows


def _verl_row(row: Row, where: str) -> tuple[str, str, str]:
    """(prompt, question, answer) of a row in verl's columns."""
    messages = row["prompt"]
    roles = [m.get("role") for m in messages] if isinstance(messages, list) else None
    if roles != ["user"]:
        raise Bad(f"'prompt' holds {roles}", where, "expected a list with one user message")
    if not isinstance(row["reward_model"], dict) or "ground_truth" not in row["reward_model"]:
        raise Bad("'reward_model' has no ground_truth", where, "mend the row")
    prompt = _text(messages[0].get("content"))
    extra = row.get("extra_info")
    bare = extra.get("question") if isinstance(extra, dict) else None
    return prompt, bare or prompt, _text(row["reward_model"]["ground_truth"])


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _level(value: Any, where: str) -> int | None:
    """3, "3" and "Level 3" are the level 3; the MATH release has "Level ?" for unknown."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    match = re.fullmatch(r"(?:Level )?(\d+|\?|)", str(value))
    if match is None:
        raise Bad(f"level {value!r} is no whole number", where, "mend the column")
    return int(match[1]) if match[1].isdigit() else None


def _without_empty(rows: list[Row], drop: bool, name: str) -> tuple[list[Row], int]:
    kept = [row for row in rows if row["question"].strip() and row["answer"].strip()]
    if len(kept) < len(rows) and not drop:
        bad = next(r for r in rows if not (r["question"].strip() and r["answer"].strip()))
        column = "answer" if bad["question"].strip() else "question"
        raise Bad(
            f"the {column} is empty (so in {len(rows) - len(kept)} rows)",
            f"{name}: row {bad['row']}",
            "mend the file, or set drop_empty: true to leave such rows out",
        )
    return kept, len(rows) - len(kept)


def _read_hub(source: Row) -> list[Row]:
    revision = source["revision"]
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise Bad(
            f"revision '{revision}' is not locked", "source.revision", "give all 40 hex digits"
        )
    import datasets

    split = source.get("split", "train")
    try:
        data = datasets.load_dataset(
            source["hub"], source.get("config"), split=split, revision=revision
        )
    except Exception as error:
        raise Bad(
            f"{source['hub']} at {revision} could not be loaded ({type(error).__name__}: {error})",
            "source.hub",
            "check the name, revision, config and split, and that the hub can be reached",
        ) from error
    rows: list[Row] = data.to_list()
    return rows


def _shorten(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"

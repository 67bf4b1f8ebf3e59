"""Prompt sets: loading, cleaning, selection, sampling and templates (schema ``PROMPTS``).

A source is the miniature world, a file, a dataset of the hub, or another prompt set. What the
source wraps around the bare question is taken off (``strip``), and a template may put other text
on, so that the same questions can be asked in several ways. Rows pass one by one; what is held is
the rows that stay, and for the report every distinct text with its answers.
"""

import hashlib
import heapq
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.core.security import visible
from opd.data import conversations, loaders, schemas, templates
from opd.data.schemas import CHINESE, PROMPTS, REPEATED

Row = dict[str, Any]
# As Qwen, Llama, DeepSeek, Mistral and Gemma write them; a tokenizer may have others.
CONTROL_TOKENS = re.compile(
    r"<\|[^\s<>|]{1,40}\|>|<\uff5c[^\s<>\uff5c]{1,40}\uff5c>|\[/?INST\]|</?(?:s|think)>"
    r"|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
)
# What may leave rows out, in this order.
STEPS = (
    *("identical", "row filter", "empty", "language", "difficulty"),
    *("max_chars", "apart_from", "distinct"),
)


def run(
    cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path | None = None
) -> dict[str, Any]:
    """Stage ``prompts``: write prompts.parquet, repeated.parquet (schema REPEATED), report.json.

    cfg: source (one of world, path, hub, from), world, and then in the order in which they apply:
    strip, drop_empty, language (en or zh), difficulty ({at_least, at_most}, rows of unknown
    difficulty are left out), max_chars of a question, apart_from (row or question: rows that the
    input ``apart_from`` has, or whose question it has, are left out), distinct (question or
    prompt: of equal ones the first stays), sample ({n, seed}: random rows; {first}: the first
    rows; {questions, seed}: random questions, with all their rows), template.

    The report: rows after each step, how often each template and each entry of strip fitted, and
    of the rows before any selection how many texts are distinct, repeated and have conflicting
    answers, for the prompt and for the question, as they stand and stripped of white space; of the
    rows that stay, ``control_tokens`` and ``notes``, where there are any, which are printed, too.

    Raises ``UserError`` for what cannot be read, an entry of strip that fits nowhere, an empty
    question or answer (unless ``drop_empty``), two rows with one id, a sample of more than there
    is, and an empty result.
    """
    tally: Counter[str] = Counter()
    name, records, answered = load(cfg, inputs, tally, (cache, out) if cache else None)
    survey = Survey(name, cfg.get("strip") or [])
    taken = _taken(inputs)
    selected = _selected(_cleaned(records, survey, cfg, tally, answered), cfg, taken, tally)
    rows = sampled(selected, cfg["sample"]) if cfg.get("sample") else list(selected)
    steps = _steps(tally, len(rows))
    if not rows:
        raise UserError(
            f"no prompt of {name} is left ({', '.join(f'{n} {step}' for step, n in steps)})",
            "prompts",
            "select more of them",
        )
    template = cfg.get("template")
    if template is not None:
        rows = [row | {"prompt": templates.apply(template, row["question"])} for row in rows]
    report = {
        "source": name,
        "steps": [{"step": step, "rows": n} for step, n in steps],
        "languages": dict(Counter(row["language"] for row in rows)),
        "longest_prompt_chars": max(len(conversations.text(row, "prompt")) for row in rows),
        "template": template,
        **survey.report(),
    }
    held = [_control_tokens(row) for row in rows]
    if control_tokens := Counter(token for tokens in held for token in tokens):
        report["control_tokens"] = dict(control_tokens.most_common())
    if notes := _notes(rows, [*control_tokens], sum(map(bool, held))):
        report["notes"] = notes
    if cfg.get("difficulty"):
        report["unknown_difficulty"] = tally["unknown difficulty"]
    if taken:
        report["apart_from"] = _overlap(rows, taken, cfg["apart_from"], inputs["apart_from"])
    tables.write(out / "prompts.parquet", rows, PROMPTS)
    repeated = survey.repeats("prompt") + survey.repeats("question_stripped")
    tables.write(out / "repeated.parquet", repeated, REPEATED)
    tables.write_json(out / "report.json", report)
    for note in notes:
        print(f"note: {visible(name)}: {visible(note)}", file=sys.stderr)
    return {"prompts": len(rows), **report}


def load(
    cfg: dict[str, Any],
    inputs: dict[str, Path],
    tally: Counter[str],
    cache: tuple[Path, Path] | None = None,
) -> tuple[str, Iterable[Row], bool]:
    """The source: a name for messages, its rows as ``opd.data.loaders.read`` gives them, and
    whether each of them must have an answer."""
    source = cfg["source"]
    if source.get("world"):
        from opd.data import words, world

        make_prompts = (words if cfg["world"].get("grammar") else world).make_prompts
        rows = make_prompts(cfg["world"], **source["world"])
        tally["read"] = len(rows)
        return f"world:{source['world']['split']}", rows, True
    if source.get("from"):
        rows = tables.read(inputs["prompts"] / "prompts.parquet", PROMPTS).to_pylist()
        tally["read"] = len(rows)
        return "the set in use", rows, False
    name = f"{source['hub']}@{source['revision']}" if source.get("hub") else source.get("path")
    if not name:
        raise UserError(f"no source in {source}", "source", "give one of world, path, hub, from")
    answered = loaders.layouts.choose(source).answer is not None
    return name, loaders.read(source, inputs.get("path"), tally, cache), answered


def sampled(rows: Iterable[Row], how: Mapping[str, Any]) -> list[Row]:
    """The rows that a ``sample`` (see ``run``) asks for, in their old order. All rows are read, so
    that what is wrong with a later one is found. Raises ``UserError`` where there are fewer."""
    if "first" in how:
        return first(rows, how["first"])
    seed = how.get("seed", 0)
    if "questions" in how:
        return sample_questions(rows, how["questions"], seed)
    return sample(rows, how["n"], seed)


def first(rows: Iterable[Row], n: int) -> list[Row]:
    """The first n rows. Raises ``UserError`` where there are fewer than n."""
    chosen = [row for place, row in enumerate(rows) if place < n]
    _require(n, len(chosen), "prompts", "first")
    return chosen


def sample(rows: Iterable[Row], n: int, seed: int) -> list[Row]:
    """n rows without replacement, in their old order; holds no more than n.

    Rows are drawn by a hash of seed and id: for one seed a smaller sample is a subset of a larger
    one, and whether a row is drawn before another does not depend on the rest. Raises ``UserError``
    where there are fewer than n.
    """

    def rank(row: tuple[int, Row]) -> bytes:
        return hashlib.sha256(f"{seed}/{row[1]['id']}".encode()).digest()

    chosen = heapq.nsmallest(n, enumerate(rows), key=rank)
    _require(n, len(chosen), "prompts", "n")
    return [row for _, row in sorted(chosen, key=itemgetter(0))]


def sample_questions(rows: Iterable[Row], n: int, seed: int) -> list[Row]:
    """All rows of n questions without replacement, in their old order; holds no more than these.

    Questions are drawn by a hash of seed and text_hash, as ``sample`` draws rows: for one seed a
    smaller sample is a subset of a larger one, and the order of rows decides nothing. Raises
    ``UserError`` where there are fewer than n questions.
    """
    kept: dict[int, list[tuple[int, Row]]] = {}
    worst_first: list[int] = []  # the keys of kept: negated, as heapq gives the smallest
    for place, row in enumerate(rows):
        rank = -int(hashlib.sha256(f"{seed}/{row['text_hash']}".encode()).hexdigest(), 16)
        if rank not in kept:
            if len(kept) < n:
                heapq.heappush(worst_first, rank)
            elif rank < worst_first[0]:
                continue
            else:
                del kept[heapq.heapreplace(worst_first, rank)]
            kept[rank] = []
        kept[rank].append((place, row))
    _require(n, len(kept), "questions", "questions")
    chosen = (placed for of_question in kept.values() for placed in of_question)
    return [row for _, row in sorted(chosen, key=itemgetter(0))]


def _require(wanted: int, there: int, what: str, key: str) -> None:
    if there < wanted:
        problem = f"{wanted} {what} wanted, {there} are there"
        raise UserError(problem, f"sample.{key}", "ask for fewer")


class Survey:
    """What is in a source, before anything of it is selected."""

    def __init__(self, name: str, affixes: Sequence[str]) -> None:
        self.name = name
        self.first: str | None = None
        self.fits: dict[str, Counter[str]] = {affix: Counter() for affix in affixes}
        self.templates = dict.fromkeys(templates.TEMPLATES, 0)
        # By rule (a text as it stands, or without outer white space): each distinct text, with
        # source, row number and answer of every row that has it.
        self.texts: dict[str, dict[str, list[tuple[str, int, str]]]]
        self.texts = defaultdict(lambda: defaultdict(list))

    def unwrap(self, row: Row) -> str:
        """A row's question without affixes; counts what its prompt has and what came off."""
        for template in self.templates:
            self.templates[template] += templates.unwrap(row["prompt"], template)[1] == "exact"
        question: str = row["question"]
        for affix, fits in self.fits.items():
            question, how = templates.unwrap(question, affix)
            if how:
                fits[how] += 1
        self.first = question if self.first is None else self.first
        return question

    def add(self, row: Row, question: str) -> None:
        place = (row["source"], row["row"], row["answer"])
        row = {**row, "question": question}
        for rule in ("prompt", "question"):
            text = conversations.text(row, rule)
            self.texts[rule][text].append(place)
            self.texts[f"{rule}_stripped"][text.strip()].append(place)

    def check_affixes(self) -> None:
        """Raises ``UserError`` for an entry of strip that no row has.

        Text that stays on every question drags all similarities along unnoticed: Rethinking OPD's
        released DAPO file has a double brace where its deduplication script expects a single one.
        """
        first = self.first or ""
        if len(first) > 60:
            first = f"{first[:30]} ... {first[-30:]}"
        for i, (affix, fits) in enumerate(self.fits.items()):
            if self.first is not None and not fits:
                raise UserError(
                    f"no row of {self.name} has {templates.named(affix)!r}; its first question "
                    f"reads '{first}'",
                    f"strip.{i}",
                    "copy the text from the file, or remove the entry",
                )

    def report(self) -> dict[str, Any]:
        counts = {}
        for rule, texts in self.texts.items():
            chinese = sum(1 for text in texts if CHINESE.search(text))
            answers = ({answer for *_, answer in places} for places in texts.values())
            counts[rule] = {
                "distinct": len(texts),
                "en": len(texts) - chinese,
                "zh": chinese,
                "repeated": sum(len(places) > 1 for places in texts.values()),
                "conflicting": sum(len(several) > 1 for several in answers),
            }
        strip = {affix: dict(fits) for affix, fits in self.fits.items()}
        return {"templates": self.templates, "strip": strip, "texts": counts}

    def repeats(self, rule: str) -> list[Row]:
        """Of the schema REPEATED: the texts that several rows have."""
        repeats = []
        for text, places in self.texts[rule].items():
            if len(places) > 1:
                sources, rows, answers = zip(*places, strict=True)
                repeats.append(
                    {
                        "rule": rule.removesuffix("_stripped"),
                        "text": text,
                        "sources": sources,
                        "rows": rows,
                        "answers": list(dict.fromkeys(answers)),
                        "conflicting": len(set(answers)) > 1,
                    }
                )
        return repeats


def _control_tokens(row: Row) -> list[str]:
    """The texts in a prompt that are control tokens of a chat template, each once."""
    return list(dict.fromkeys(CONTROL_TOKENS.findall(conversations.text(row, "prompt"))))


def _notes(rows: Sequence[Row], control_tokens: Sequence[str], holding: int) -> list[str]:
    """What a user may not expect of the rows that stay, a line each; so many of them (``holding``)
    hold ``control_tokens``."""
    notes, answers = [], defaultdict(set)
    for row in rows:
        answers[row["text_hash"]].add(row["answer"].strip())
    if repeats := len(rows) - len(answers):
        notes.append(
            f"{repeats} of {len(rows)} rows ask again what an earlier one asks (distinct: question "
            "leaves them out)"
        )
    if conflicts := sum(len(several) > 1 for several in answers.values()):
        has = "question has" if conflicts == 1 else "questions have"
        notes.append(f"{conflicts} {has} different answers in different rows")
    if control_tokens:
        first = ", ".join(control_tokens[:3]) + (", ..." if len(control_tokens) > 3 else "")
        notes.append(
            f"{holding} of {len(rows)} prompts hold control tokens of chat templates ({first}): a "
            "tokenizer that has them makes them its own control ids"
        )
    return notes


def _cleaned(
    records: Iterable[Row],
    survey: Survey,
    cfg: Mapping[str, Any],
    tally: Counter[str],
    answered: bool,
) -> Iterator[Row]:
    """Rows of the schema PROMPTS with bare questions, without the empty ones.

    Raises ``UserError`` when all are read, for what holds of all of them.
    """
    empty: tuple[str, Row] | None = None
    for row in records:
        question = survey.unwrap(row)
        bare = question.strip()
        tally["with difficulty"] += row["difficulty"] is not None
        tally["unknown difficulty"] += row["difficulty"] is None
        if not bare or (answered and not row["answer"].strip()):
            tally["empty"] += 1
            empty = empty or ("answer" if bare else "question", row)
            continue
        survey.add(row, question)
        yield row | schemas.about(bare, row.get("turns"))
    survey.check_affixes()
    if empty and not cfg.get("drop_empty"):
        raise UserError(
            f"the {empty[0]} is empty (so in {tally['empty']} rows)",
            f"{empty[1]['source']}: row {empty[1]['row']}",
            "mend the file, or set drop_empty: true to leave such rows out",
        )
    if cfg.get("difficulty") and not tally["with difficulty"]:
        raise UserError(
            f"{cfg['difficulty']} asked for, but no row of {survey.name} has a difficulty",
            "difficulty",
            "remove the key, or name the column",
        )


def _selected(
    rows: Iterable[Row],
    cfg: Mapping[str, Any],
    taken: Mapping[str, set[Any]],
    tally: Counter[str],
) -> Iterator[Row]:
    language, longest, distinct = cfg.get("language"), cfg.get("max_chars"), cfg.get("distinct")
    bounds = cfg.get("difficulty") or {}
    low, high = bounds.get("at_least", -float("inf")), bounds.get("at_most", float("inf"))
    seen: set[str] = set()
    for row in rows:
        if language and row["language"] != language:
            tally["language"] += 1
        elif bounds and (row["difficulty"] is None or not low <= row["difficulty"] <= high):
            tally["difficulty"] += 1
        elif longest and len(conversations.text(row, "question")) > longest:
            tally["max_chars"] += 1
        elif taken and _key(row, cfg["apart_from"]) in taken[cfg["apart_from"]]:
            tally["apart_from"] += 1
        elif distinct and conversations.text(row, distinct) in seen:
            tally["distinct"] += 1
        else:
            if distinct:
                seen.add(conversations.text(row, distinct))
            yield row


def _key(row: Row, by: str) -> Any:
    """What two rows share if they are one row, or ask one question."""
    return (row["source"], row["row"]) if by == "row" else row["text_hash"]


def _taken(inputs: Mapping[str, Path]) -> dict[str, set[Any]]:
    """The rows and the questions (``_key``) of the set that this one is to be apart from; empty
    where there is none."""
    if "apart_from" not in inputs:
        return {}
    rows = tables.read(inputs["apart_from"] / "prompts.parquet", PROMPTS)
    rows = rows.select(["source", "row", "text_hash"]).to_pylist()
    return {by: {_key(row, by) for row in rows} for by in ("row", "question")}


def _overlap(
    rows: Sequence[Row], taken: Mapping[str, set[Any]], by: str, folder: Path
) -> dict[str, Any]:
    """What the result and the other set share. Raises ``UserError`` where rows cannot tell: the
    sets come from different sources."""
    sources = {row["source"] for row in rows}
    if by == "row" and not sources & {source for source, _ in taken["row"]}:
        raise UserError(
            f"it has no row of {', '.join(sorted(sources))}, so no row can be in both sets",
            str(folder / "prompts.parquet"),
            "use apart_from by question",
        )
    shared = {kind: sum(_key(row, kind) in keys for row in rows) for kind, keys in taken.items()}
    assert not shared[by]
    return {
        "by": by,
        "their_rows": len(taken["row"]),
        "their_questions": len(taken["question"]),
        "shared_rows": shared["row"],
        "rows_with_shared_questions": shared["question"],
    }


def _steps(tally: Counter[str], final: int) -> list[tuple[str, int]]:
    """Rows that were there after each step that left any out."""
    left = tally["read"]
    steps = [("read", left)]
    for step in STEPS:
        if tally[step]:
            left -= tally[step]
            steps.append((f"after {step}", left))
    if final != left:
        steps.append(("sampled", final))
    return steps

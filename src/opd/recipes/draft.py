"""``opd init``: the first config of a pair of models, with sizes that end in minutes."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import replacing
from opd.core.markdown import render
from opd.core.schema import load_yaml
from opd.data import columns, loaders, templates
from opd.models import sizing
from opd.models.fetch import LIGHT, at_hand
from opd.models.source import hub_id, is_path
from opd.recipes.resolve import resolve

SCHEMA = Path("workflow/schemas/config.schema.json")
TEMPLATE = "boxed"  # as the benchmark asks
GRADER = "math_verify"
MOST_TEXTS = 100  # the longest questions: those that may have most tokens
# On a laptop, where each of a few steps is as long as its longest question, questions of more than
# so many times the characters of this share of them are left out.
OUTLIER, SHARE = 1.5, 0.95
# From so many parameters on, a laptop's stages run one after the other, each on all cores: the
# longest, distillation, has none to run beside.
THREADED = 5e7


class Sizes(NamedTuple):
    """``problems`` are held out; before training ``n`` questions get ``samples`` responses each."""

    steps: int
    prompts_per_step: int
    rollouts_per_prompt: int
    max_new_tokens: int
    problems: int
    n: int
    samples: int


# No run is smaller: in this one each part of it still happens.
LEAST = Sizes(3, 2, 2, 64, 4, 4, 2)


class Scale(NamedTuple):
    """``minutes`` that all of it may take on so many ``devices`` of a kind (cpu, cuda)."""

    minutes: float
    device: str
    devices: int
    lr: float
    sizes: Sizes


SCALES = {
    "laptop": Scale(10, "cpu", 2, 1e-5, Sizes(20, 8, 2, 128, 40, 16, 2)),
    "one-gpu": Scale(30, "cuda", 1, 2e-6, Sizes(50, 16, 4, 1024, 200, 48, 4)),
    "node": Scale(60, "cuda", 8, 1e-6, Sizes(100, 64, 4, 2048, 500, 48, 4)),
}


def draft(student: str, teacher: str, questions: Path, scale: str, out: Path) -> list[str]:
    """Write a config for a student, its teacher and a file of questions. Returns lines for the
    terminal: what was found, and the commands that come next.

    Models are named as ``opd.models.source`` says; of one on the hub all but the weights is
    fetched. Raises ``UserError`` where ``out`` exists, where models, questions or what they need of
    each other cannot be used, and writes nothing then.
    """
    if out.exists():
        raise UserError("it is there already", str(out), "name another file with --out")
    folders = {
        "student": at_hand(student, "--student", LIGHT),
        "teacher": at_hand(teacher, "--teacher", LIGHT),
    }
    rows, named_columns = _read(questions)
    values = _values(folders, rows, scale) | {"columns": named_columns}
    named = {"student": student, "teacher": teacher}
    text = render(
        package_file(__file__, "draft.yaml.jinja"),
        **values,
        **named,
        scale=scale,
        name=_name(out),
        file=str(questions) if is_path(str(questions)) else f"./{questions}",
        asks=TEMPLATE,
        grader=GRADER,
        schema=os.path.relpath(SCHEMA.absolute(), out.absolute().parent),
        repr=json.dumps,
    )
    resolve(load_yaml(text))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [*_lines(out, values, named, questions)]


def _lines(
    out: Path, values: Mapping[str, Any], named: Mapping[str, str], questions: Path
) -> Iterator[str]:
    yield f"{out}: about {values['minutes']} minutes"
    read = [f"{what} from the column {column}" for what, column in values["columns"].items()]
    yield f"note: it reads {', '.join(read)}"
    if values["least"]:
        yield (
            "note: with models of this size there is time for so little that a run shows how all"
            " of it works, hardly whether training helps"
        )
    if values["left_out"]:
        yield (
            f"note: {values['left_out']} of the questions are left out, those of more than"
            f" {values['max_chars']} characters: a step takes as long as its longest question"
        )
    if len({os.path.realpath(os.path.expanduser(model)) for model in named.values()}) == 1:
        yield (
            "note: student and teacher are one model, which has nothing to teach itself: what moves"
            " is rounding, which Adam scales up to steps of the learning rate"
        )
    for objection in values["objections"]:
        yield f"note: {objection}"
    if not values["answers"]:
        yield f"note: not every row has an answer, so nothing is graded; {columns.remedy('answer')}"
    preflight = [f"--{who} {model}" for who, model in named.items()]
    graded = f" --template {TEMPLATE} --grader {GRADER}" if values["answers"] else ""
    yield ""
    yield f"opd preflight {' '.join(preflight)} --questions {questions}{graded}"
    if any(map(hub_id, named.values())):
        yield f"opd lock --configfile {out}    # once, online"
    yield f"snakemake --cores all --configfile {out}"
    yield f"and open results/{_name(out)}/report.html in a browser"


def _name(out: Path) -> str:
    """The name of the config of a file, and of its results."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem).strip("._-") or "pair"


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The prompts of a file, and the columns (question, answer) that hold them. Raises
    ``UserError`` as ``opd.data.loaders`` does, and where no column is known."""
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise UserError("no such file", str(path), "give a .jsonl, .json, .csv or .parquet file")
    first = next(loaders.read_file(file, {"path": str(file), "layout": "bare"}), {})
    named = columns.known(first)
    if "question" not in named:
        has = ", ".join(first) or "no row"
        raise UserError(f"it has {has}", str(path), columns.remedy("question"))
    source = {"path": str(path), "layout": "bare", **named}
    return list(loaders.read(source, file, Counter())), named


def _values(
    folders: Mapping[str, Path], rows: Sequence[Mapping[str, Any]], scale: str
) -> dict[str, Any]:
    """What the config says that follows from models and questions."""
    from opd.models import pairing
    from opd.models.checkpoints import parameters

    answers = all(row["answer"] for row in rows)
    strip = [name for name in templates.TEMPLATES if all(_bare(row, name) for row in rows)][:1]
    if strip:
        rows = [{**row, "prompt": _bare(row, strip[0])} for row in rows]
    most_chars = _most_chars(rows) if SCALES[scale].device == "cpu" else None
    all_rows, limit = rows, most_chars or math.inf
    rows = [row for row in all_rows if len(row["prompt"]) <= limit]
    longest = sorted((row["prompt"] for row in rows), key=len)[-MOST_TEXTS:]
    prompts = [templates.apply(TEMPLATE, text) if answers else text for text in longest]
    chats = [[{"role": "user", "content": text}] for text in prompts]
    compared = pairing.compare({}, **folders, chats=chats)
    limits = [limit for limit in compared["positions"].values() if limit]
    room = min(limits, default=math.inf)
    prompt_tokens = 16 * math.ceil(compared["prompt_tokens"] / 16)
    if prompt_tokens >= room:
        what = f"a question has {compared['prompt_tokens']:,} tokens, the models read {room:,}"
        raise UserError(what, "--questions", "leave the longest questions out")
    counts = {who: parameters(folder) for who, folder in folders.items()}
    lengths = [len(row["prompt"]) for row in rows]
    usual_tokens = math.ceil(prompt_tokens * sum(lengths) / len(lengths) / max(lengths))
    halved, minutes = _fitting(SCALES[scale], max(counts.values()), usual_tokens)
    sizes = halved._replace(
        max_new_tokens=int(min(halved.max_new_tokens, room - prompt_tokens)),
        problems=max(1, min(halved.problems, len(rows) // 4)),
    )
    trained_on = len(rows) - (sizes.problems if answers else 0)
    if trained_on < 1:
        raise UserError("one question is not enough", "--questions", "give some more")
    # An even number, which deals out evenly, and so many responses that each process has as many.
    prompts_per_step = max(1, min(sizes.prompts_per_step, trained_on) // 2 * 2)
    processes = 1 if SCALES[scale].device == "cpu" else SCALES[scale].devices
    share = processes // math.gcd(prompts_per_step, processes)
    sizes = sizes._replace(
        prompts_per_step=prompts_per_step,
        rollouts_per_prompt=share * math.ceil(sizes.rollouts_per_prompt / share),
    )
    sequences = prompts_per_step * sizes.rollouts_per_prompt // processes
    return {
        **sizes._asdict(),
        "minutes": minutes,
        "least": halved == LEAST,
        "lr": f"{SCALES[scale].lr:.1e}",
        "rows": len(rows),
        "left_out": len(all_rows) - len(rows),
        "max_chars": most_chars,
        "strip": strip,
        "answers": answers,
        "max_prompt_tokens": prompt_tokens,
        "micro_batch": math.gcd(sequences, 8 if scale == "laptop" else 4) or 1,
        "k": min(16, compared["vocabulary"] - 1),
        "threads": SCALES[scale].devices if max(counts.values()) >= THREADED else 1,
        "parameters": {who: f"{count:,}" for who, count in counts.items()},
        "compared": compared,
        **_decided(compared),
    }


def _bare(row: Mapping[str, Any], template: str) -> str | None:
    """A question without the template around it; None where there is none."""
    text, fits = templates.unwrap(row["prompt"], template)
    return text if fits else None


def _most_chars(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The characters that nearly all questions have at most, where some have many more."""
    lengths = sorted(len(row["prompt"]) for row in rows)
    usual = lengths[math.ceil(SHARE * len(lengths)) - 1]
    return usual if lengths[-1] > OUTLIER * usual else None


def _decided(compared: Mapping[str, Any]) -> dict[str, Any]:
    """What training asks a config to decide of this pair, and whether that is all."""
    from opd.models import pairing

    undecided = [error.where for error in pairing.objections({}, compared)]
    end_tokens = "both" if "end_tokens" in undecided else None
    left = pairing.objections({"end_tokens": end_tokens}, compared)
    return {"end_tokens": end_tokens, "objections": [str(error) for error in left]}


def _fitting(scale: Scale, parameters: float, prompt_tokens: int) -> tuple[Sizes, int]:
    """The sizes of a scale, halved until they end in its minutes or are the least that there are;
    and the minutes that they are expected to take."""

    speed = sizing.speed(scale.device, scale.devices)

    def expected(sizes: sizing.Sizes) -> float:
        of = Sizes(**sizes)
        trained = of.steps * of.prompts_per_step * of.rollouts_per_prompt
        # Three models are evaluated; before that two are sampled, and the teacher ends four times
        # what the student began.
        rollouts = of.n * of.samples
        sampled = trained + 3 * of.problems + 6 * rollouts
        # What is trained on both models read, and the student is updated on it; of the rollouts
        # before that both read the student's.
        whole = 4 * trained + 2 * rollouts
        tokens = sizing.Tokens(
            sampled * of.max_new_tokens,
            sampled * prompt_tokens + whole * (of.max_new_tokens + prompt_tokens),
        )
        return sizing.minutes(tokens, parameters, speed)

    least = LEAST._asdict()
    sizes, minutes = sizing.fitting(scale.sizes._asdict(), least, expected, scale.minutes)
    return Sizes(**sizes), math.ceil(minutes)

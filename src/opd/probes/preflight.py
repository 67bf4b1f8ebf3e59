"""Before a run: what a few dozen rollouts show of a student and a teacher, and what that means.

The indicators are those of Rethinking OPD; the rules that make an outlook of them (``outlook``) and
their limits are ours. Nothing is trained.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from opd.core import tables
from opd.core.errors import UserError
from opd.data import schemas
from opd.data.schemas import PROMPTS
from opd.grading.graders import grader_named
from opd.models import pairing
from opd.models.checkpoints import load_tokenizer
from opd.models.sampling import Request, Sampler
from opd.probes import continuation, pair
from opd.probes.outlook import DEEPEST, DEPTHS, report
from opd.probes.rollouts import Row, right, tokens
from opd.stats import draws
from opd.stats.intervals import Array


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``indicators``: preflight.md and preflight.json, probe.json and draws.parquet.

    cfg: those of ``opd.models.sampling.settings`` (the student's rollouts, the teacher's responses
    and its continuations), metrics_k; optional n (the first prompts of the set; 48), samples (of
    each; 4), grader (without one nothing is known of right and wrong), micro_batch,
    teacher_temperature, teacher_chat_template_kwargs. Inputs: student, teacher, prompts. What is
    sampled is kept in ``cache``. Values: those of ``pair``; with a grader share_student,
    share_teacher, share_difference, advantage_depth1 to 4 of ``continuation`` (prefixes of
    ``reading.DEPTHS``) and advantage_fall, from the first to the last of these. Raises
    ``UserError`` where tokenizers or vocabularies differ and where there is no prompt.
    """
    path = inputs["prompts"] / "prompts.parquet"
    prompts = tables.read(path, PROMPTS).to_pylist()[: cfg.get("n", 48)]
    _check(prompts, cfg, path)
    grader = cfg.get("grader")
    about = _compared(cfg, inputs, prompts)
    rollouts = _answered(cfg, inputs["student"], prompts, cache)
    # One bin: where in a response it is, is not asked here.
    longest = max(len(row["token_ids"]) for row in rollouts)
    settings = {**cfg, "position_bin": longest, "thinking_may_differ": True}  # it is reported
    measured = pair.measure(settings, tokens(settings, rollouts, inputs["student"]), inputs)
    known = {row["id"]: row["answer"] for row in prompts}
    correct = right(rollouts, known, grader) if grader else None
    values, _ = pair.summarise(settings, rollouts, measured, correct)
    depths: list[Row] = []
    if grader and correct is not None:
        theirs = {**cfg, "chat_template_kwargs": pairing.teacher_kwargs(cfg)}
        taught = _answered(theirs, inputs["teacher"], prompts, cache)
        values |= _shares(rollouts, correct, right(taught, known, grader))
        found, depths = _by_depth(cfg, rollouts, inputs, cache)
        values |= found
    about |= {"prompts": len(prompts), "rollouts": len(rollouts), "depths": depths}
    whole, text = report({**about, "values": draws.summary(values)})
    draws.write(out, values, {key: whole[key] for key in ("prompts", "rollouts", "outlook")})
    tables.write_json(out / "preflight.json", whole)
    tables.write_text(out / "preflight.md", text)
    return {name: value.value for name, value in values.items()} | {"outlook": whole["outlook"]}


def preflight(
    student: Path, teacher: Path, prompts: Path, out: Path | None, cfg: Mapping[str, Any]
) -> str:
    """The report on two model folders and a file of prompts, as text; kept in ``out`` if given,
    where a run that was stopped goes on.

    prompts: a table of the schema PROMPTS, or lines of JSON with question, answer and prompt (the
    question if not given). cfg: see ``run``. Raises ``UserError`` for what is missing or does not
    fit.
    """
    transformers.utils.logging.disable_progress_bar()
    for folder in (student, teacher):
        if not folder.is_dir():
            raise UserError("no such folder", str(folder), "give the folder of a model")
    rows = read_questions(prompts)[: cfg.get("n", 48)]
    _check(rows, cfg, prompts)  # before they stand in a file that the user has never seen
    with tempfile.TemporaryDirectory(prefix="opd-preflight-") as temporary:
        work = Path(temporary)
        tables.write(work / "prompts.parquet", rows, PROMPTS)
        made = work if out is None else out
        made.mkdir(parents=True, exist_ok=True)
        inputs = {"student": student, "teacher": teacher, "prompts": work}
        run(dict(cfg), inputs, made, made / ".cache")
        return (made / "preflight.md").read_text(encoding="utf-8")


def _check(prompts: Sequence[Row], cfg: Mapping[str, Any], path: Path) -> None:
    """Raises ``UserError`` where there is no prompt, and for a grader that is unknown or has
    nothing to hold answers to: before anything is sampled."""
    if not prompts:
        raise UserError("there are no prompts", str(path), "give a prompt set that is not empty")
    grader = cfg.get("grader")
    if grader:
        grader_named(grader)
    for row in prompts if grader else ():
        if not row["answer"]:
            raise UserError(
                "it has no answer", f"{path}: prompt '{row['id']}'", "leave the grader out"
            )


def read_questions(path: Path) -> list[Row]:
    """Rows of PROMPTS from such a table, its folder, or lines of JSON with question, answer and
    prompt. Raises ``UserError`` for what is none."""
    if path.is_dir():
        path = path / "prompts.parquet"
    if path.suffix == ".parquet":
        return tables.read(path, PROMPTS).to_pylist()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"it cannot be read ({error})", str(path), "give a file of prompts"
        ) from error
    rows = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{path}: line {i + 1}"
        try:
            given = json.loads(line)
        except ValueError as error:
            raise UserError(f"not JSON ({error})", where, "write one object a line") from error
        asked = isinstance(given, dict) and (given.get("question") or given.get("prompt"))
        if not asked:
            raise UserError(
                "there is no question in it", where, 'write {"question": .., "answer": ..}'
            )
        answer = given.get("answer")
        rows.append(
            schemas.prompt_row(
                id=str(given.get("id", i + 1)),
                question=str(asked),
                answer="" if answer is None else str(answer),
                source=path.name,
                row=i,
                prompt=given.get("prompt"),
            )
        )
    return rows


def _compared(
    cfg: Mapping[str, Any], inputs: Mapping[str, Path], prompts: Sequence[Row]
) -> dict[str, Any]:
    """What can be told of the two models without running them."""
    student, teacher = (load_tokenizer(inputs[name]) for name in ("student", "teacher"))
    pairing.require_same_tokenizer(student, teacher)
    rows = [pairing.vocabulary_rows(inputs[name]) for name in ("student", "teacher")]
    pairing.shared_vocabulary(rows[0], rows[1], student)
    kwargs = [cfg.get("chat_template_kwargs") or {}, pairing.teacher_kwargs(cfg)]
    differing = 0
    first = None
    for row in prompts:
        chat = [{"role": "user", "content": row["prompt"]}]
        texts = [
            one.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **options)
            for one, options in zip((student, teacher), kwargs, strict=True)
        ]
        ids = [
            one(text, add_special_tokens=False)["input_ids"]
            for one, text in zip((student, teacher), texts, strict=True)
        ]
        if ids[0] != ids[1]:
            differing += 1
            first = first or _around_difference(*texts)
    return {
        "student": str(inputs["student"]),
        "teacher": str(inputs["teacher"]),
        "tokens": len(student),
        "embedding_rows": {"student": rows[0], "teacher": rows[1]},
        "templates": {"differing": differing, "first": first},
        "thinking": {
            "student": pairing.thinking(student, kwargs[0]),
            "teacher": pairing.thinking(teacher, kwargs[1]),
        },
    }


def _around_difference(one: str, other: str, context: int = 30) -> dict[str, str]:
    """What two texts hold from just before where they first differ."""
    at = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    part = slice(max(0, at - context), at + context)
    return {"student": one[part], "teacher": other[part]}


def _answered(
    cfg: Mapping[str, Any], model: Path, prompts: Sequence[Row], cache: Path
) -> list[Row]:
    """``samples`` responses of a model to each prompt, in its own chat template, as rows of
    GENERATIONS."""
    sampler = Sampler(model, cfg, cache)
    ids = [row["id"] for row in prompts]
    read = sampler.tokenize([row["prompt"] for row in prompts], ids)
    asked = [
        (row, Request(row["id"], tokens, sample))
        for row, tokens in zip(prompts, read, strict=True)
        for sample in range(cfg.get("samples", 4))
    ]
    responses = sampler.sample([request for _, request in asked])
    # The next engine needs the memory.
    sampler.stop()
    return [
        {
            "prompt_id": row["id"],
            "sample": request.sample,
            "prompt": row["prompt"],
            "response": response.text,
            "token_ids": response.token_ids,
            "finish": response.finish,
        }
        for (row, request), response in zip(asked, responses, strict=True)
    ]


def _shares(rollouts: Sequence[Row], student: Array, teacher: Array) -> dict[str, draws.Value]:
    """Share right of both, on the same prompts."""
    prompts = [row["prompt_id"] for row in rollouts]
    weights = draws.multiplicities(prompts)
    ours, theirs = (draws.share(which, prompts, weights) for which in (student, teacher))
    return {
        "share_student": ours,
        "share_teacher": theirs,
        "share_difference": draws.difference(theirs, ours),
    }


def _by_depth(
    cfg: Mapping[str, Any], rollouts: Sequence[Row], inputs: Mapping[str, Path], cache: Path
) -> tuple[dict[str, draws.Value], list[Row]]:
    """The continuation advantage at four depths, on the rollouts that are longer than the deepest;
    and what these depths are."""
    lengths = np.array([len(row["token_ids"]) for row in rollouts])
    # Many may be of one length: those are kept, too.
    deepest = int(np.percentile(lengths, DEEPEST)) - 1
    depths: dict[int, int] = {}  # by prefix; of equal ones the first
    for i, part in enumerate(DEPTHS):
        depths.setdefault(max(1, int(deepest * part)), i + 1)
    if deepest < 1:
        return {}, []
    kept = [row for row in rollouts if len(row["token_ids"]) > deepest]
    settings = {**cfg, "prefixes": list(depths), "samples": 1, "baseline": "rollout"}
    found, _ = continuation.advantages(settings, kept, inputs, cache)
    values = {f"advantage_depth{depths[L]}": found[f"advantage_{L}"] for L in depths}
    first, *deeper = values.values()
    if deeper:
        values["advantage_fall"] = draws.difference(first, deeper[-1])
    about = [
        {"depth": i, "name": f"advantage_depth{i}", "prefix": prefix, "rollouts": len(kept)}
        for prefix, i in depths.items()
    ]
    return values, about

"""Before a run: what a few dozen rollouts show of a student and a teacher, and what that means.

The indicators are those of Rethinking OPD; the rules that make an outlook of them (``outlook``) and
their limits are ours. Nothing is trained.
"""

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import input_files
from opd.data import columns, conversations, layouts, loaders, templates
from opd.data.schemas import PROMPTS, prompt_row
from opd.grading.graders import GRADERS, grader_named
from opd.losses.fused import fused_token_loss
from opd.losses.spec import PRESETS
from opd.models import pairing, sizing
from opd.models.checkpoints import load_tokenizer, parameters, positions, read_config
from opd.models.prompts import read_prompts
from opd.models.sampling import Request, Sampler
from opd.models.states import hidden_states, padded
from opd.probes import continuation, pair
from opd.probes.outlook import reported
from opd.probes.rollouts import Rollout, Row, right, tokens
from opd.stats import draws
from opd.stats.intervals import Array

# The deepest prefix is shorter than all but DEEPEST % of the rollouts; the others are to it as
# the paper's 1K, 4K and 8K to its 16K tokens.
DEEPEST = 25
DEPTHS = (1 / 16, 1 / 4, 1 / 2, 1)
# What a preflight has where nothing is asked for, halved until it ends in MINUTES, and the least.
USUAL = {"n": 48, "samples": 4, "max_new_tokens": 1024}
LEAST = {"n": 4, "samples": 2, "max_new_tokens": 64}
MINUTES = 3


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``indicators``: preflight.md and preflight.json, probe.json and draws.parquet.

    cfg: those of ``opd.models.sampling.settings`` (the student's rollouts, the teacher's responses
    and its continuations), metrics_k; optional n (the first prompts of the set; 48), samples (of
    each; 4), grader (without one nothing is known of right and wrong), micro_batch,
    teacher_temperature, teacher_chat_template_kwargs. Inputs: student, teacher, prompts. What is
    sampled is kept in ``cache``. Values: those of ``pair``; with a grader share_student,
    share_teacher, share_difference, answered_student, answered_teacher, advantage_depth1 to 4 of
    ``continuation`` (prefixes at ``DEPTHS``) and advantage_fall, from the first to the last of
    these. Raises ``UserError`` where tokenizers or vocabularies differ and where there is no
    prompt.
    """
    prompts = read_prompts(inputs["prompts"], cfg.get("n", 48))
    grader = cfg.get("grader")
    if grader:
        require_answers(prompts, grader, inputs["prompts"])
    folders = {who: inputs[who] for who in ("student", "teacher")}
    models = {who: str(folder) for who, folder in folders.items()} | pairing.compare(
        cfg, **folders, chats=[conversations.chat(row) for row in prompts]
    )
    pairing.require_k(cfg["metrics_k"], models["vocabulary"], "metrics_k")
    models["objections"] = [str(error) for error in pairing.objections(cfg, models)]
    print("the student answers", file=sys.stderr, flush=True)
    rollouts = _answered(cfg, inputs["student"], prompts, cache)
    # One bin: where in a response it is, is not asked here.
    longest = max(len(row["token_ids"]) for row in rollouts)
    settings = {**cfg, "position_bin": longest, "thinking_may_differ": True}  # it is reported
    read = tokens(settings, rollouts, inputs["student"])
    models["own_teacher"] = own_teacher(settings, read[0], inputs["student"])
    measured = pair.measure(settings, read, inputs)
    correct = right(rollouts, prompts, grader) if grader else None
    values, _ = pair.summarise(settings, rollouts, measured, correct)
    depths: list[Row] = []
    if grader and correct is not None:
        kwargs = pairing.teacher_kwargs(cfg)
        print("the teacher answers", file=sys.stderr, flush=True)
        of_teacher = {**cfg, "chat_template_kwargs": kwargs}
        answered = _answered(of_teacher, inputs["teacher"], prompts, cache)
        values |= _shares(rollouts, correct, right(answered, prompts, grader))
        values |= _with_answer(grader, student=rollouts, teacher=answered)
        models["reads"] = GRADERS[grader].reads
        models["boxed"] = all("\\boxed" in row["prompt"] for row in prompts)
        advantages, depths = _by_depth(cfg, rollouts, inputs, cache)
        values |= advantages
    counts = {"prompts": len(prompts), "rollouts": len(rollouts)}
    report, text = reported({**models, **counts, "depths": depths, "values": draws.summary(values)})
    tables.write_json(out / "preflight.json", report)
    tables.write_text(out / "preflight.md", text)
    outlook = {"outlook": report["outlook"]}
    return {**draws.write(out, values, counts | outlook), **outlook}


def preflight(
    student: Path, teacher: Path, prompts: Path, out: Path | None, cfg: Mapping[str, Any]
) -> str:
    """The report on two model folders and a file of prompts, as text; kept in ``out`` if given,
    where a run that was stopped goes on. What it will take is said before anything is sampled.

    prompts: what ``read_questions`` takes. cfg: see ``run``; n, samples and max_new_tokens may be
    left out (``sized``), and a template (``opd.data.templates``) may say how to ask.
    Raises ``UserError`` for what is missing or does not fit.
    """
    transformers.utils.logging.disable_progress_bar()
    require_folders(student, teacher)
    cfg = dict(cfg)
    template = cfg.pop("template", None)
    # Checked before they stand in a file that the user has never seen.
    rows = read_questions(prompts, cfg.get("n") or USUAL["n"], cfg.get("grader"), template)
    _estimated(cfg, [row["prompt"] for row in rows], student, teacher)
    with tempfile.TemporaryDirectory(prefix="opd-preflight-") as temporary:
        work = Path(temporary)
        tables.write(work / "prompts.parquet", rows, PROMPTS)
        made = work if out is None else out
        made.mkdir(parents=True, exist_ok=True)
        inputs = {"student": student, "teacher": teacher, "prompts": work}
        run(cfg, inputs, made, made / ".cache")
        return (made / "preflight.md").read_text(encoding="utf-8")


def sized(
    asked: Mapping[str, int | None],
    rows: int,
    prompt_tokens: int,
    parameters: Sequence[int],
    room: float,
    speed: sizing.Speed,
    graded: bool,
) -> tuple[dict[str, int], float]:
    """``n``, ``samples`` and ``max_new_tokens``, those that are not asked for (None) so that a
    preflight ends in ``MINUTES``; and the minutes that it takes if no response ends by itself.

    rows: questions that there are, of at most so many ``prompt_tokens``, to which all are padded.
    parameters: of student and teacher. room: tokens that a response has in the models' context.
    """
    usual = USUAL | {"max_new_tokens": int(min(USUAL["max_new_tokens"], room))}
    sizes = {name: usual[name] if value is None else value for name, value in asked.items()}
    sizes["n"] = min(sizes["n"], rows)
    student, teacher = parameters
    # Where answers are graded the teacher answers, too, and ends what the student began.
    begun = (0, *DEPTHS) if graded else ()

    def expected(sizes: sizing.Sizes) -> float:
        rollouts, most = sizes["n"] * sizes["samples"], sizes["max_new_tokens"]
        whole = prompt_tokens + most  # both read what the student answers
        of_student = sizing.Tokens(rollouts * most, rollouts * (prompt_tokens + whole))
        of_teacher = sizing.Tokens(
            rollouts * sum((1 - depth) * most for depth in begun),
            rollouts * (whole + sum(prompt_tokens + depth * most for depth in begun)),
        )
        pairs = ((of_student, student), (of_teacher, teacher))
        return sum(sizing.minutes(tokens, count, speed) for tokens, count in pairs)

    least = {name: LEAST[name] for name, value in asked.items() if value is None}
    return sizing.fitting(sizes, least, expected, MINUTES)


def _estimated(cfg: dict[str, Any], prompts: Sequence[str], student: Path, teacher: Path) -> None:
    """Write the sizes of a preflight into its settings, and say what it will take."""
    limits = [positions(read_config(model)) or math.inf for model in (student, teacher)]
    # Prompts are seldom as long as they may be: a short context is not left to them.
    room = max(min(limits) - cfg["max_prompt_tokens"], min(limits) // 2)
    counts = [parameters(model) for model in (student, teacher)]
    on_gpu = torch.cuda.is_available()
    speed = sizing.speed("cuda", 1) if on_gpu else sizing.speed("cpu", cfg.get("threads", 1))
    asked = {name: cfg.get(name) for name in USUAL}
    tokens = max(len(ids) for ids in load_tokenizer(student)(prompts)["input_ids"])
    graded = bool(cfg.get("grader"))
    sizes, minutes = sized(asked, len(prompts), tokens, counts, room, speed, graded)
    cfg |= sizes
    time = f"about {minutes:.0f} min" if minutes >= 1 else "less than a minute"
    print(
        f"{sizes['n']} questions x {sizes['samples']} responses of up to "
        f"{sizes['max_new_tokens']:,} tokens: {time} if none ends before that",
        file=sys.stderr,
        flush=True,
    )


def require_folders(*models: Path) -> None:
    """Raise ``UserError`` for a folder that is not there, and as ``input_files`` does."""
    for folder in models:
        if not folder.is_dir():
            raise UserError("no such folder", str(folder), "give the folder of a model")
        input_files(folder)


def require_answers(prompts: Sequence[Row], grader: str, path: Path) -> None:
    """Raise ``UserError`` for a grader that is unknown or has nothing to hold answers to, before
    anything is sampled."""
    grader_named(grader)
    for row in prompts:
        if not row["answer"]:
            where, remedy = f"{path}: prompt '{row['id']}'", "add it, or leave this prompt out"
            raise UserError("it has no answer", where, remedy)


def read_questions(
    path: Path, n: int | None = None, grader: str | None = None, template: str | None = None
) -> list[Row]:
    """The first n rows of PROMPTS from such a table, its folder, or the rows of a file (.jsonl,
    .json, .csv) with question, answer and prompt (the question if not given). With a ``template``
    the prompt is the question in it, once. Raises ``UserError`` for what is none, where there is
    none, as ``require_answers`` does where there is a grader, and as ``templates.apply``."""
    if path.is_dir():
        path = path / "prompts.parquet"
    rows: list[Row]
    try:
        parquet = path.suffix == ".parquet"
        rows = tables.read(path, PROMPTS).to_pylist() if parquet else _questions(path)
    except OSError as error:
        reason = f"it cannot be read ({error})"
        raise UserError(reason, str(path), "give a file of prompts") from error
    if not rows:
        raise UserError("there are no prompts", str(path), "give a file that is not empty")
    rows = rows[:n]
    if grader:
        require_answers(rows, grader, path)
    if template:
        bare = (templates.unwrap(row["question"], template)[0] for row in rows)
        prompts = [templates.apply(template, question) for question in bare]
        rows = [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]
    return rows


def _questions(path: Path) -> list[Row]:
    """Rows of a .json or .csv file, or of lines of JSON under any other name."""
    listed = path.suffix in (".json", ".csv")
    rows = []
    for i, entry in enumerate(loaders.read_file(path, {}) if listed else loaders.json_lines(path)):
        where = f"{path}: row {i}"
        named = columns.known(name for name, value in entry.items() if value not in (None, ""))
        if "question" not in named:
            reason = f"there is no question in it; it has {', '.join(entry) or 'nothing'}"
            raise UserError(reason, where, columns.remedy("question"))
        (question, turns), (prompt, own) = (
            layouts.last_asked(entry.get(key), key, where) for key in (named["question"], "prompt")
        )
        rows.append(
            prompt_row(
                id=str(entry.get("id", i + 1)),
                question=layouts.text(question or prompt, "question", where),
                answer=layouts.text(entry.get(named.get("answer", "answer")), "answer", where),
                source=path.name,
                row=i,
                prompt=layouts.text(prompt or question, "prompt", where),
                turns=own or turns or None,
            )
        )
    return rows


def own_teacher(cfg: Mapping[str, Any], rollout: Rollout, student: Path) -> dict[str, list[float]]:
    """By preset, the largest loss (nats) and the largest gradient (of the hidden state of a
    position, in lengths of the head's longest row) of a student that is its own teacher, on the
    first tokens of a rollout. All losses are to be 0, and so are the gradients but those of
    ``BIASED``.

    cfg: temperature; optional teacher_temperature, dtype, threads.
    """
    own = pairing.load_pair(cfg, student, None)
    response = rollout.response[:64]
    with torch.no_grad():
        states = hidden_states(own.student, [(rollout.prompt, response)], own.device)
        hidden = states.unsqueeze(0)
    weight, bias = own.heads[0].weight.detach(), own.heads[0].bias
    head = own.heads[0]._replace(weight=weight, bias=None if bias is None else bias.detach())
    ids, mask = padded([response], own.device)
    hidden.requires_grad_()
    numbers = {}
    for name, preset in PRESETS.items():
        temperature = cfg["temperature"]
        spec = replace(preset, teacher_temperature=cfg.get("teacher_temperature", temperature))
        loss = fused_token_loss(hidden, head, hidden, head, ids, mask, spec, temperature)
        (gradient,) = torch.autograd.grad(loss.sum(), [hidden])
        length = gradient.norm(dim=-1).max() / weight.norm(dim=-1).max()
        # Digits that no other machine would give again are none.
        numbers[name] = [round(float(x), 6) for x in (loss.detach().abs().max(), length)]
    return numbers


def _answered(
    cfg: Mapping[str, Any], model: Path, prompts: Sequence[Row], cache: Path
) -> list[Row]:
    """``samples`` responses of a model to each prompt, in its own chat template, as rows of
    GENERATIONS."""
    sampler = Sampler(model, cfg, cache)
    ids = [row["id"] for row in prompts]
    token_ids = sampler.tokenize(prompts, ids)
    requests = [
        (row, Request(row["id"], tokens, sample))
        for row, tokens in zip(prompts, token_ids, strict=True)
        for sample in range(cfg.get("samples", 4))
    ]
    responses = sampler.sample([request for _, request in requests])
    # The next engine needs the memory.
    sampler.stop()
    return [
        {
            "prompt_id": row["id"],
            "sample": request.sample,
            "prompt": row["prompt"],
            "turns": row["turns"],
            "response": response.text,
            "token_ids": response.token_ids,
            "finish": response.finish,
        }
        for (row, request), response in zip(requests, responses, strict=True)
    ]


def _shares(rollouts: Sequence[Row], student: Array, teacher: Array) -> dict[str, draws.Value]:
    """Share right of both, on the same prompts."""
    prompts = [row["prompt_id"] for row in rollouts]
    weights = draws.multiplicities(prompts)
    of_student, of_teacher = (draws.share(right, prompts, weights) for right in (student, teacher))
    return {
        "share_student": of_student,
        "share_teacher": of_teacher,
        "share_difference": draws.difference(of_teacher, of_student),
    }


def _with_answer(grader: str, **responses: Sequence[Row]) -> dict[str, draws.Value]:
    """Share of the responses of each in which the grader finds an answer, right or wrong."""
    kind, values = GRADERS[grader], {}
    for who, rows in responses.items():
        prompts = [row["prompt_id"] for row in rows]
        found = np.array([kind.answer(kind.read(row["response"])) is not None for row in rows])
        values[f"answered_{who}"] = draws.share(found, prompts, draws.multiplicities(prompts))
    return values


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
    longer = [row for row in rollouts if len(row["token_ids"]) > deepest]
    cut = ", ".join(map(str, depths))
    print(f"the teacher goes on from the student's first {cut} tokens", file=sys.stderr, flush=True)
    settings = {**cfg, "prefixes": list(depths), "samples": 1, "baseline": "rollout"}
    advantages, _ = continuation.advantages(settings, longer, inputs, cache)
    rows: list[Row] = [
        {"depth": i, "name": f"advantage_depth{i}", "prefix": prefix, "rollouts": len(longer)}
        for prefix, i in depths.items()
    ]
    values = {row["name"]: advantages[f"advantage_{row['prefix']}"] for row in rows}
    first, *deeper = values.values()
    if deeper:
        values["advantage_fall"] = draws.difference(first, deeper[-1])
    return values, rows

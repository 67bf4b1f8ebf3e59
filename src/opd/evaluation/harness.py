"""lm-eval: its tasks over our data, and our sampler as a model of its.

A benchmark is a task file of lm-eval, one of those in ``benchmarks/`` (their names begin with
``opd_``) or any other. lm-eval makes the prompts and the metrics; responses come from
``opd.models.sampling``, which keeps a journal, because lm-eval's own sampled runs cannot go on
where they were killed and look at the first sample only.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

from opd.core.errors import UserError
from opd.core.text import suggestion
from opd.data import layouts
from opd.data.conversations import Turn, joined
from opd.data.schemas import PROMPTS, TURNS
from opd.evaluation import tasks as benchmarks
from opd.grading.graders import GRADERS, THINK
from opd.models import sampling

# What lm-eval's command line gives every model beside the settings that a user names.
_OF_LM_EVAL = {"device", "max_batch_size"}
# The id of a problem, and one of lm-eval's requests for it.
Asked = tuple[str, Any]


class ScoredResponse(NamedTuple):
    """One response of a benchmark with what lm-eval makes of it. ``thinking``: its prompt has begun
    the thinking already."""

    problem: str
    sample: int
    answer: str
    response: str
    extracted: str | None
    scores: dict[str, float]
    tokens: int
    finish: str
    thinking: bool = False


@register_model("opd")
class SamplerLM(LM):
    """The sampler as a model of lm-eval (``opd``, once this module is imported). Texts that it is
    given hold the chat template already.

    ``pretrained``: a checkpoint folder; ``cfg`` and ``cache``: see ``sampling.Sampler``. Raises
    ``UserError`` for a setting that the sampler does not have.
    """

    def __init__(self, pretrained: str | Path, cache: Path | None = None, **cfg: Any) -> None:
        super().__init__()
        known = sampling.settings(cfg)
        if unknown := cfg.keys() - known.keys() - _OF_LM_EVAL:
            key = min(unknown)
            raise UserError(f"no setting '{key}'", "model_args", suggestion(key, [*known, "cache"]))
        self.folder = Path(pretrained)
        self.sampler = sampling.Sampler(self.folder, cfg, cache)

    @property
    def tokenizer_name(self) -> str:
        return str(self.folder)

    def apply_chat_template(
        self, chat_history: list[Turn], add_generation_prompt: bool = True
    ) -> str:
        return self.sampler.render(chat_history, add_generation_prompt)

    def responses(
        self, lists: Sequence[tuple[Sequence[Any], Sequence[str]]]
    ) -> list[list[sampling.Response]]:
        """A response to each request of several lists of requests and their ids; a request that
        comes again is another sample of it."""
        return self.sampler.sample_lists([self._requests(*several) for several in lists])

    def _requests(self, requests: Sequence[Any], ids: Sequence[str]) -> list[sampling.Request]:
        prompts = self.sampler.encode([request.args[0] for request in requests], ids)
        samples: dict[str, Iterator[int]] = defaultdict(count)
        return [
            sampling.Request(id, prompt, next(samples[id]))
            for id, prompt in zip(ids, prompts, strict=True)
        ]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The protocol is the sampler's; of a task's settings only its stop texts count."""
        ids = [f"{request.task_name}/{request.doc_id}" for request in requests]
        texts = [response.text for response in self.responses([(requests, ids)])[0]]
        return [_cut(text, r.args[1])[0] for text, r in zip(texts, requests, strict=True)]

    def _scorer(self) -> Any:
        import torch
        from lm_eval.models.huggingface import HFLM

        # The memory of a GPU holds one of the two.
        self.sampler.stop()
        return HFLM(
            pretrained=str(self.folder),
            dtype=self.sampler.settings["dtype"],
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=self.sampler.settings["batch_size"],
        )

    def loglikelihood(self, requests: list[Any]) -> Any:
        """lm-eval's own; nothing is sampled here."""
        return self._scorer().loglikelihood(requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> Any:
        """lm-eval's own."""
        return self._scorer().loglikelihood_rolling(requests)


def _cut(text: str, settings: Mapping[str, Any]) -> tuple[str, bool]:
    """A response up to the first of the task's stop texts, and whether there was one."""
    cut = text
    for stop in filter(None, settings.get("until") or []):
        cut = cut.partition(stop)[0]
    return cut, cut != text


def problems(dataset: Any) -> Any:
    """``process_docs`` of our tasks: rows of PROMPTS, as they are or from a hub's columns."""
    import datasets

    if {name for name in PROMPTS.names if name != TURNS.name} <= {*dataset.column_names}:
        return dataset
    name = str(dataset.info.dataset_name)
    hubs = {_plain(hub.rpartition("/")[2]): hub for hub in layouts.LAYOUTS}
    layout = layouts.choose({"hub": hubs.get(_plain(name))}, dataset.column_names)
    rows = (layouts.record(layout, row, f"{name}: row {i}") for i, row in enumerate(dataset))
    return datasets.Dataset.from_list([{**row, "id": str(i)} for i, row in enumerate(rows) if row])


def _plain(name: str) -> str:
    """What ``datasets`` leaves of a name of the hub, which it writes in its own way."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def graded(
    doc: Mapping[str, Any], results: Sequence[str], graders: Sequence[str]
) -> dict[str, float]:
    """``process_results`` of our tasks: the verdict of each of their graders, 0 or 1."""
    return {name: float(GRADERS[name](results[0], doc["answer"])[1]) for name in graders}


def task_file(task: str, include: Path | None = None) -> Path:
    """The file of a task by its name: ours, one below ``include`` if given, or lm-eval's own."""
    if task.startswith(benchmarks.OURS):
        return benchmarks.find(task, "benchmarks")
    own = {"include_path": str(include), "include_defaults": False}
    # All of lm-eval's thousands of files are read for its index, which takes seconds.
    entry = TaskManager(**(own if include else {})).task_index.get(task)
    if entry is None or entry.yaml_path is None:
        raise UserError(
            f"{include or 'lm-eval'} has no task '{task}'",
            "benchmarks",
            "`lm-eval ls tasks` lists its own; for others name their folder with include",
        )
    return Path(entry.yaml_path)


def load(benchmark: Mapping[str, Any], data: Mapping[str, Path], samples: int, work: Path) -> Any:
    """The lm-eval task of a benchmark, reading ``data`` (split -> parquet file; its own if empty).

    benchmark: name, task, optional num_fewshot, include (folder with task files), prompt (jinja
    text in place of the task's). ``work`` is a folder for what lm-eval writes on the way.
    """
    name, include = benchmark["name"], benchmark.get("include")
    path = task_file(benchmark["task"], Path(include) if include else None)
    config: dict[str, Any] = {"include": str(path), "task": name, "repeats": samples}
    if data:
        files = {split: str(file) for split, file in data.items()}
        kwargs = {"data_files": files, "cache_dir": str(work / "cache")}
        config |= {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": kwargs}
    if benchmark["task"].startswith(benchmarks.OURS) and "test" in data:
        config["test_split"] = "test"
    for key, setting in (("num_fewshot", "num_fewshot"), ("prompt", "doc_to_text")):
        if key in benchmark:
            config[setting] = benchmark[key]
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        tasks = TaskManager(include_defaults=False).load(str(file))["tasks"]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the task '{benchmark['task']}' could not be loaded ({type(error).__name__}: {error})",
            f"benchmarks.{name}",
            "name its data with prompts or hub, and see that they have the columns it reads",
        ) from error
    if list(tasks) != [name]:
        raise UserError(f"'{benchmark['task']}' is a group", f"benchmarks.{name}", "name its tasks")
    return tasks[name]


def problem_id(request: Any) -> str:
    """The id of a request's problem: its own, or its place."""
    return str(request.doc.get("id", request.doc_id))


def answer(
    tasks: Mapping[str, Any], lm: SamplerLM, repeated: Mapping[str, str | None] | None = None
) -> dict[str, list[ScoredResponse]]:
    """Every sample of every problem of benchmarks, by name, scored by the task of each.

    repeated: what problems are that ask the same as an earlier one: more ``samples`` of that, or
    left out (``once``). The scores of our own tasks are left empty: their graders take all
    responses at once (``opd.evaluation.evaluate``). Raises ``UserError`` where two problems of a
    benchmark have one id, and for repeated problems without ``repeated``, as intervals are over
    problems.
    """
    asked = {name: _asked(name, tasks[name], lm, (repeated or {}).get(name)) for name in tasks}
    each_sample = {
        name: [pair for pair in pairs for _ in range(pair[1].repeats)]
        for name, pairs in asked.items()
        if {request.request_type for _, request in pairs} == {"generate_until"}
    }
    sampled = lm.responses(
        [
            ([request for _, request in pairs], [f"{name}/{id}" for id, _ in pairs])
            for name, pairs in each_sample.items()
        ]
    )
    scored = {
        name: _scored(tasks[name], pairs, responses)
        for (name, pairs), responses in zip(each_sample.items(), sampled, strict=True)
    }
    return {
        name: scored[name] if name in scored else _likelihoods(tasks[name], lm, pairs)
        for name, pairs in asked.items()
    }


def _asked(name: str, task: Any, lm: SamplerLM, repeated: str | None) -> list[Asked]:
    """The requests of a benchmark; raises as ``answer`` does."""
    _with_turns(task)
    task.build_all_requests(
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template,
        tokenizer_name=lm.tokenizer_name,
    )
    problem_of: dict[str, int] = {}
    for request in task.instances:
        if problem_of.setdefault(problem_id(request), request.doc_id) != request.doc_id:
            raise UserError(
                f"two problems have the id '{problem_id(request)}'",
                f"benchmarks.{name}",
                "make the ids of what it reads unique",
            )
    first = _first_alike(task)
    copies = Counter(first.values())
    if len(copies) < len(first) and not repeated:
        raise UserError(
            f"{len(first) - len(copies)} of {len(first)} problems ask what an earlier one asks",
            f"benchmarks.{name}",
            "set repeated: samples (they are samples of it) or repeated: once (they are left out)",
        )
    least, most = min(copies.values()), max(copies.values())
    if repeated == "samples" and least < most:
        raise UserError(
            f"it asks some problem {least} and another {most} times",
            f"benchmarks.{name}.repeated",
            "use once: all problems need as many samples",
        )
    id_of = {doc: id for id, doc in problem_of.items()}
    return [
        (id_of[first[request.doc_id]], request)
        for request in task.instances
        if repeated != "once" or first[request.doc_id] == request.doc_id
    ]


def _first_alike(task: Any) -> dict[int, int]:
    """Problem -> the first one of the task that asks the same (numbers of docs)."""
    questions: dict[int, list[str]] = defaultdict(list)
    for request in task.instances:
        context, *rest = request.args
        # Few-shot examples differ from row to row.
        own = task.doc_to_text(request.doc) if task.config.num_fewshot else None
        if isinstance(own, str):
            context = [_turns(request.doc), own]
        choices = [part for part in rest if isinstance(part, str)]
        questions[request.doc_id].append(json.dumps([context, *choices]))
    first: dict[str, int] = {}
    return {doc: first.setdefault("\n".join(texts), doc) for doc, texts in questions.items()}


def _turns(doc: Mapping[str, Any]) -> list[Turn]:
    # Data that are no prompt set may have something else under this name.
    return (doc.get(TURNS.name) if "text_hash" in doc else None) or []


def _with_turns(task: Any) -> None:
    """Lets a task put the turns of a prompt set's row between its few-shot examples and the row's
    question: lm-eval knows of no conversation in a row."""
    fewshot_context = task.fewshot_context

    def context(doc: Mapping[str, Any], *args: Any, chat_template: Any, **kwargs: Any) -> Any:
        def render(chat: Sequence[Turn], **options: Any) -> str:
            users = (i for i, message in enumerate(chat) if message["role"] == "user")
            at = max(users, default=len(chat))
            return str(chat_template(joined(chat[:at], _turns(doc), chat[at:]), **options))

        return fewshot_context(doc, *args, chat_template=render, **kwargs)

    task.fewshot_context = context


def _scored(
    task: Any, asked: Sequence[Asked], responses: Sequence[sampling.Response]
) -> list[ScoredResponse]:
    ours = "graders" in (task.config.metadata or {})
    rows: list[ScoredResponse] = []
    samples: dict[str, Iterator[int]] = defaultdict(count)
    for (problem, request), response in zip(asked, responses, strict=True):
        text, stopped = _cut(response.text, request.args[1])
        filtered, scores = (None, {}) if ours else _process(task, [(request, text)])
        rows.append(
            ScoredResponse(
                problem,
                next(samples[problem]),
                str(task.doc_to_target(request.doc)),
                text,
                filtered if isinstance(filtered, str) else None,
                scores,
                len(response.token_ids),
                "stop" if stopped else response.finish,
                request.args[0].rstrip().endswith(THINK),
            )
        )
    return rows


def _likelihoods(task: Any, lm: SamplerLM, asked: Sequence[Asked]) -> list[ScoredResponse]:
    """Benchmarks that compare likelihoods of given answers: one sample, nothing is generated."""
    requests = [request for _, request in asked]
    values = getattr(lm, requests[0].request_type)(requests)
    by_doc: dict[tuple[str, int], list[tuple[Any, Any]]] = defaultdict(list)
    for (problem, request), value in zip(asked, values, strict=True):
        by_doc[problem, request.doc_id].append((request, value))
    rows = []
    samples: dict[str, Iterator[int]] = defaultdict(count)
    for (problem, _), pairs in by_doc.items():
        _, scores = _process(task, pairs)
        text = json.dumps([value for _, value in pairs])
        answer = str(task.doc_to_target(pairs[0][0].doc))
        sample = next(samples[problem])
        rows.append(ScoredResponse(problem, sample, answer, text, text, scores, 0, "stop"))
    return rows


def _process(task: Any, pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, dict[str, float]]:
    """lm-eval's filters and metrics of one sample of a problem: (filtered response, numbers)."""
    copies = [replace(request, resps=[value], filtered_resps={}) for request, value in pairs]
    scores: dict[str, float] = {}
    ensembles = task._filters
    for ensemble in ensembles:
        ensemble.apply(copies)
        filtered = [instance.filtered_resps[ensemble.name] for instance in copies]
        metrics = task.process_results(pairs[0][0].doc, filtered)
        suffix = f",{ensemble.name}" if len(ensembles) > 1 else ""
        scores |= {
            f"{metric}{suffix}": float(value)
            for metric, value in metrics.items()
            if isinstance(value, (bool, int, float))
        }
    return copies[0].filtered_resps[ensembles[0].name], scores

"""lm-eval: its tasks over our data, and our sampler as a model of its.

A benchmark is a task file of lm-eval, one of those in ``benchmarks/`` (their names begin with
``opd_``) or any other. lm-eval makes the prompts and the metrics; responses come from
``opd.sampling``, which keeps a journal, because lm-eval's own sampled runs cannot go on where they
were killed and look at the first sample only.
"""

import copy
import json
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

from opd import layouts, sampling, tables
from opd.errors import Bad
from opd.grading import GRADERS

SHIPPED = Path(__file__).parent / "benchmarks"
OURS = "opd_"


class Scored(NamedTuple):
    """One response of a benchmark with what lm-eval makes of it."""

    problem: str
    sample: int
    answer: str
    response: str
    extracted: str | None
    scores: dict[str, float]
    tokens: int
    finish: str


@register_model("opd")
class SamplerLM(LM):
    """The sampler as a model of lm-eval. Texts that it is given hold the chat template already.

    ``model_args`` on lm-eval's command line: ``pretrained``, a checkpoint folder, and settings of
    ``sampling.Sampler``.
    """

    def __init__(
        self,
        pretrained: str | Path,
        scratch: Path | None = None,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        device: str | None = None,
        **cfg: Any,
    ) -> None:
        super().__init__()
        self.folder, self.cfg = Path(pretrained), {"seed": 0, "max_prompt_tokens": 4096, **cfg}
        self.cfg |= {"batch_size": int(batch_size)}
        self.scratch = scratch

    @property
    def sampler(self) -> sampling.Sampler:
        """Made when first asked for: lm-eval's command line gives the length only then."""
        if not hasattr(self, "_sampler"):
            self._sampler = sampling.Sampler(self.folder, self.cfg, self.scratch)
        return self._sampler

    @property
    def tokenizer_name(self) -> str:
        return str(self.folder)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.sampler.render(chat_history, add_generation_prompt)

    def responses(self, requests: Sequence[Any], ids: Sequence[str]) -> list[sampling.Response]:
        """A response to each request; a request that comes again is another sample of it."""
        tokens = self.sampler.encode([request.args[0] for request in requests], ids)
        seen = defaultdict[str, int](int)
        asked = []
        for id, found in zip(ids, tokens, strict=True):
            asked.append(sampling.Request(id, found, seen[id]))
            seen[id] += 1
        return self.sampler.sample(asked)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        settings = requests[0].args[1]
        if "max_new_tokens" not in self.cfg:
            self.cfg["max_new_tokens"] = settings["max_gen_toks"]
            self.cfg["temperature"] = (
                settings.get("temperature", 1.0) if settings.get("do_sample") else 0.0
            )
            self.cfg["top_p"] = settings.get("top_p", 1.0)
        ids = [f"{request.task_name}/{request.doc_id}" for request in requests]
        return [
            _until(found.text, request.args[1])
            for found, request in zip(self.responses(requests, ids), requests, strict=True)
        ]

    def _scorer(self) -> Any:
        import torch
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=str(self.folder),
            dtype=self.cfg.get("dtype", "float32"),
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=self.cfg["batch_size"],
        )

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """lm-eval's own; nothing is sampled here."""
        found: list[tuple[float, bool]] = self._scorer().loglikelihood(requests)
        return found

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """lm-eval's own."""
        found: list[float] = self._scorer().loglikelihood_rolling(requests)
        return found


def _until(text: str, settings: Mapping[str, Any]) -> str:
    """A response up to the first of the task's stop texts."""
    for stop in settings.get("until") or []:
        if stop:
            text = text.partition(stop)[0]
    return text


def problems(dataset: Any) -> Any:
    """``process_docs`` of our tasks: rows of PROMPTS, as they are or from a hub's columns."""
    import datasets

    if set(tables.PROMPTS.names) <= set(dataset.column_names):
        return dataset
    name = str(dataset.info.dataset_name)
    known = (hub for hub in layouts.LAYOUTS if _plain(hub.rpartition("/")[2]) == _plain(name))
    layout = layouts.choose({"hub": next(known, None)}, dataset.column_names)
    rows = (layouts.record(layout, row, f"{name}: row {i}") for i, row in enumerate(dataset))
    return datasets.Dataset.from_list([{**row, "id": str(i)} for i, row in enumerate(rows) if row])


def _plain(name: str) -> str:
    """``datasets`` writes names of the hub in its own way: their letters and digits stay."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def graded_boxed(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``process_results`` of the tasks that ask for a box: both graders' verdicts, 0 or 1."""
    return _verdicts(doc, results, ("rule", "math_verify"))


def graded_choice(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The same where the answer is a letter or a word."""
    return _verdicts(doc, results, ("rule",))


def graded_world(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The same in the miniature world."""
    return _verdicts(doc, results, ("world",))


def _verdicts(
    doc: Mapping[str, Any], results: Sequence[str], graders: Sequence[str]
) -> dict[str, float]:
    return {name: float(GRADERS[name](results[0], doc["answer"])[1]) for name in graders}


def task_file(task: str, include: Path | None = None) -> Path:
    """The file of a task by its name: ours, one below ``include`` if given, or lm-eval's own."""
    if task.startswith(OURS):
        path = SHIPPED / f"{task.removeprefix(OURS)}.yaml"
        known = ", ".join(OURS + p.stem for p in sorted(SHIPPED.glob("[!_]*.yaml")))
        if not path.is_file():
            raise Bad(f"unknown task '{task}'", "benchmarks", f"there are {known}")
        return path
    own = {"include_path": str(include), "include_defaults": False}
    # All of lm-eval's thousands of files are read for its index, which takes seconds.
    entry = TaskManager(**(own if include else {})).task_index.get(task)
    if entry is None or entry.yaml_path is None:
        raise Bad(
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
        config |= {
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(file) for split, file in data.items()},
                "cache_dir": str(work / "cache"),
            },
        }
    if benchmark["task"].startswith(OURS) and "test" in data:
        config["test_split"] = "test"
    if "num_fewshot" in benchmark:
        config["num_fewshot"] = benchmark["num_fewshot"]
    if "prompt" in benchmark:
        config["doc_to_text"] = benchmark["prompt"]
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        tasks = TaskManager(include_defaults=False).load(str(file))["tasks"]
    except Bad:
        raise
    except Exception as error:
        raise Bad(
            f"the task '{benchmark['task']}' could not be loaded ({type(error).__name__}: {error})",
            f"benchmarks.{name}",
            "name its data with prompts or hub, and see that they have the columns it reads",
        ) from error
    if list(tasks) != [name]:
        raise Bad(f"'{benchmark['task']}' is a group", f"benchmarks.{name}", "name its tasks")
    return tasks[name]


def requests(tasks: Mapping[str, Any], lm: SamplerLM) -> dict[str, list[Any]]:
    """lm-eval's requests of each benchmark, in the order of its problems."""
    for task in tasks.values():
        task.build_all_requests(
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            chat_template=lm.apply_chat_template,
            tokenizer_name=lm.tokenizer_name,
        )
    return {name: list(task.instances) for name, task in tasks.items()}


def problem_id(request: Any) -> str:
    """The id of a request's problem: its own, or its place."""
    return str(request.doc.get("id", request.doc_id))


def answer_all(tasks: Mapping[str, Any], lm: SamplerLM) -> dict[str, list[Scored]]:
    """Every sample of every problem of the benchmarks, scored by the task, a problem at a time.

    Responses of all benchmarks are sampled together: an engine starts once. The scores of our own
    tasks are left empty: their graders take all responses at once (``opd.evaluation``).
    """
    asked = requests(tasks, lm)
    sampled: list[tuple[str, Any]] = []
    for name, found in asked.items():
        if {r.request_type for r in found} == {"generate_until"}:
            sampled += [(name, request) for request in found for _ in range(request.repeats)]
    responses = lm.responses(
        [request for _, request in sampled],
        [f"{name}/{problem_id(request)}" for name, request in sampled],
    ) if sampled else []  # fmt: skip
    of: dict[int, list[sampling.Response]] = defaultdict(list)
    for (_, request), response in zip(sampled, responses, strict=True):
        of[id(request)].append(response)
    return {
        name: _generated(tasks[name], found, of)
        if id(found[0]) in of
        else _likelihoods(tasks[name], found, lm)
        for name, found in asked.items()
    }


def _generated(
    task: Any, asked: Sequence[Any], of: Mapping[int, list[sampling.Response]]
) -> list[Scored]:
    ours = "graders" in (task.config.metadata or {})
    rows = []
    for request in asked:
        answer = str(task.doc_to_target(request.doc))
        for sample, response in enumerate(of[id(request)]):
            text = _until(response.text, request.args[1])
            filtered, scores = (None, {}) if ours else _process(task, [(request, text)])
            rows.append(
                Scored(
                    problem_id(request),
                    sample,
                    answer,
                    text,
                    filtered if isinstance(filtered, str) else None,
                    scores,
                    len(response.token_ids),
                    response.finish,
                )
            )
    return rows


def _likelihoods(task: Any, asked: Sequence[Any], lm: SamplerLM) -> list[Scored]:
    """Benchmarks that compare likelihoods of given answers: one sample, nothing is generated."""
    values = getattr(lm, asked[0].request_type)(list(asked))
    by_problem: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for request, value in zip(asked, values, strict=True):
        by_problem[problem_id(request)].append((request, value))
    rows = []
    for problem, pairs in by_problem.items():
        _, scores = _process(task, pairs)
        shown = json.dumps([value for _, value in pairs])
        answer = str(task.doc_to_target(pairs[0][0].doc))
        rows.append(Scored(problem, 0, answer, shown, shown, scores, 0, "stop"))
    return rows


def _process(task: Any, pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, dict[str, float]]:
    """lm-eval's filters and metrics of one sample of a problem: (filtered response, numbers)."""
    copies = []
    for request, value in pairs:
        one = copy.copy(request)
        one.resps, one.filtered_resps = [value], {}
        copies.append(one)
    scores: dict[str, float] = {}
    ensembles = task._filters
    for ensemble in ensembles:
        ensemble.apply(copies)
        found = task.process_results(
            pairs[0][0].doc, [one.filtered_resps[ensemble.name] for one in copies]
        )
        suffix = f",{ensemble.name}" if len(ensembles) > 1 else ""
        scores |= {
            f"{metric}{suffix}": float(value)
            for metric, value in found.items()
            if isinstance(value, (bool, int, float))
        }
    return copies[0].filtered_resps[ensembles[0].name], scores

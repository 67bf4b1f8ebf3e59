"""lm-eval's tasks over our data with our sampler: prompts, scores, repeats, other tasks, errors."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from probing import with_template
from tiny import SHAPE, WORLD

from opd.core import tables
from opd.core.errors import UserError
from opd.data import world

pytest.importorskip("lm_eval")
from opd.data import schemas
from opd.data.schemas import PROMPTS
from opd.evaluation import evaluate, harness
from opd.evaluation.schemas import RESPONSES, SCORES
from opd.evaluation.tasks import FOLDER
from opd.grading import graders
from opd.models import init

SAMPLING = {"temperature": 0.0, "max_new_tokens": 8, "max_prompt_tokens": 512, "seed": 1}
PROTOCOL = {"samples": 3, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 12, "grader": "rule"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    init.run(SHAPE, {}, folder)
    return folder


def prompts_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tables.write(folder / "prompts.parquet", rows, PROMPTS)
    return folder


def questions(folder: Path, n: int = 4) -> Path:
    rows = [
        schemas.prompt_row(f"q{i}", f"What is {i}+{{1}}?", str(i + 1), "s", i) for i in range(n)
    ]
    return prompts_of(folder, rows)


def loaded(tmp_path: Path, task: str, file: Path, **settings: Any) -> Any:
    data = {"test": file / "prompts.parquet"}
    return harness.load({"name": "b", "task": task, **settings}, data, 2, tmp_path)


def contexts(task: Any) -> list[str]:
    task.build_all_requests()
    return [instance.args[0] for instance in task.instances]


NAMES = [p.stem for p in sorted(FOLDER.glob("[!_]*.yaml"))]
LETTER = "\n\nPlease reason step by step, and put the letter of the right choice within \\boxed{}."
TRUTH = LETTER.replace("the letter of the right choice", "your final answer, True or False,")
SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."


def test_what_is_shipped() -> None:
    wanted = {"aime24", "aime25", "amc23", "amc23_83", "math500", "minerva", "olympiad"}
    assert {*NAMES} == wanted | {"gpqa_diamond", "boolq", "mmlu", "mmlu_pro", "world", "words"}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_tasks_ask_byte_for_byte(tmp_path: Path, name: str) -> None:
    task = loaded(tmp_path, f"opd_{name}", questions(tmp_path / "p"))
    asked = {"world": "", "words": "", "boolq": TRUTH}
    asked |= dict.fromkeys(("mmlu", "mmlu_pro", "gpqa_diamond"), LETTER)
    suffix = asked.get(name, SUFFIX)
    assert contexts(task) == [f"What is {i}+{{1}}?{suffix}" for i in range(4)]
    assert [task.doc_to_target(i.doc) for i in task.instances] == ["1", "2", "3", "4"]
    assert [i.repeats for i in task.instances] == [2] * 4


def test_a_protocols_template_stands_in_place_of_the_tasks(tmp_path: Path) -> None:
    template = "A {brace} {{ two }} {% x %}\n\n{question}\n\nput it in \\boxed{{}}."
    benchmark, protocol = {"name": "b", "task": "opd_amc23"}, {"template": template, "samples": 1}
    inputs = {"prompts:b": questions(tmp_path / "p", 1)}
    task = evaluate._task(benchmark, protocol, inputs, str(tmp_path))
    assert contexts(task) == [template.replace("{question}", "What is 0+{1}?")]


def test_a_prompt_may_have_begun_the_thinking() -> None:
    ends = ["<|assistant|>\n<think>\n", "<|assistant|>\n", "<think></think>\n"]
    instances = [
        SimpleNamespace(repeats=1, args=(text, {}), doc={"id": str(i)}, doc_id=i)
        for i, text in enumerate(ends)
    ]
    about = SimpleNamespace(metadata={"graders": ["rule"]})
    task: Any = SimpleNamespace(instances=instances, config=about, doc_to_target=lambda doc: "5")
    response: Any = SimpleNamespace(text="\\boxed{5}", token_ids=[1], finish="length")
    asked = [(str(i), instance) for i, instance in enumerate(instances)]
    rows = harness._scored(task, asked, [response for _ in asked])
    assert [row.thinking for row in rows] == [True, False, False]


ALL = ("rule", "math_verify", "relaxed")


def test_all_graders_are_metrics_of_a_task(tmp_path: Path) -> None:
    task = loaded(tmp_path, "opd_amc23", questions(tmp_path / "p"))
    doc = task.test_docs()[1]
    assert task.process_results(doc, ["so \\boxed{2}"]) == dict.fromkeys(ALL, 1.0)
    assert task.process_results(doc, ["so \\boxed{3}"]) == dict.fromkeys(ALL, 0.0)
    # An unreduced fraction: wrong by the paper's rule, the same number for math-verify.
    assert task.process_results(doc, ["\\boxed{\\frac{4}{2}}"]) == {
        **dict.fromkeys(ALL, 1.0),
        "rule": 0.0,
    }
    assert task.process_results(doc, ["it is 2"]) == {**dict.fromkeys(ALL, 0.0), "relaxed": 1.0}


def world_sets(tmp_path: Path, n: int) -> dict[str, Path]:
    """n problems of each of two benchmarks of the miniature world, as inputs of the stage."""
    return {
        f"prompts:{name}": prompts_of(tmp_path / name, world.make_prompts(WORLD, name, n))
        for name in ("easy", "hard")
    }


def run(
    tmp_path: Path,
    model: Path,
    benchmarks: list[dict[str, Any]],
    batch_size: int = 64,
    **inputs: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    for folder in (out, scratch):
        folder.mkdir(exist_ok=True)
    cfg = {"protocol": PROTOCOL, "max_prompt_tokens": 600, "benchmarks": benchmarks, "seed": 1}
    cfg["batch_size"] = batch_size
    evaluate.run(cfg, {"model": model, **inputs}, out, scratch)
    scores, responses = (
        tables.read(out / f"{name}.parquet", kind).to_pylist()
        for name, kind in (("scores", SCORES), ("responses", RESPONSES))
    )
    rows = [score | response for score, response in zip(scores, responses, strict=True)]
    for row, score in zip(rows, scores, strict=True):
        assert row == row | score  # the same sample of the same problem
    return json.loads((out / "summary.json").read_text()), rows


def test_stage(tmp_path: Path, model: Path) -> None:
    inputs = world_sets(tmp_path, 5)
    benchmarks = [{"name": name, "task": "opd_world"} for name in ("hard", "easy")]
    summary, rows = run(tmp_path, model, benchmarks, **inputs)
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert set(first) == {
        *("scores.parquet", "responses.parquet", "summary.json", "disagreements.csv")
    }
    assert [row["benchmark"] for row in rows] == ["hard"] * 15 + ["easy"] * 15
    assert [row["sample"] for row in rows] == [0, 1, 2] * 10
    assert len({row["response"] for row in rows[:3]}) > 1  # samples, not copies
    for row in rows:
        assert row["correct"] == float(graders.GRADERS["world"](row["response"], row["answer"])[1])
        assert dict(row["scores"]) == {"world": row["correct"]}
    assert summary["benchmarks"]["hard"]["problems"] == 5
    run(tmp_path, model, benchmarks, **inputs)
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_a_killed_evaluation_goes_on_where_it_was(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both benchmarks in shards of four of 30 responses: the second run samples what is left."""
    from opd.models.transformers_engine import Transformers

    inputs = world_sets(tmp_path, 5)
    benchmarks = [{"name": name, "task": "opd_world"} for name in ("easy", "hard")]
    sampled: list[int] = []
    batch, started = Transformers.batch, Transformers.__init__

    def counted(self: Any, jobs: Any) -> Any:
        if len(sampled) == 3:
            raise KeyboardInterrupt
        sampled.append(len(jobs))
        return batch(self, jobs)

    def counting(self: Any, *given: Any) -> None:
        engines.append(1)
        started(self, *given)

    engines: list[int] = []
    monkeypatch.setattr(Transformers, "__init__", counting)
    _, whole = run(tmp_path, model, benchmarks, batch_size=4, **inputs)
    assert engines == [1]  # one start for both benchmarks
    monkeypatch.setattr(Transformers, "batch", counted)
    (tmp_path / "again").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", model, benchmarks, batch_size=4, **inputs)
    assert not list((tmp_path / "again" / "out").iterdir())
    sampled += [0]  # past the place of the kill
    _, rows = run(tmp_path / "again", model, benchmarks, batch_size=4, **inputs)
    assert rows == whole
    assert sum(sampled) == 30


def test_another_grader_and_another_benchmark_sample_nothing_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd.models.transformers_engine import Transformers

    sampled = []
    batch = Transformers.batch

    def counted(self: Any, jobs: Any) -> Any:
        sampled.append(len(jobs))
        return batch(self, jobs)

    monkeypatch.setattr(Transformers, "batch", counted)
    inputs = world_sets(tmp_path, 4)
    both = [{"name": name, "task": "opd_world"} for name in ("easy", "hard")]
    _, before = run(tmp_path, model, both[:1], **inputs)
    assert sum(sampled) == 12
    monkeypatch.setitem(PROTOCOL, "grader", "math_verify")
    assert run(tmp_path, model, both[:1], **inputs)[1] == before
    assert sum(sampled) == 12
    assert run(tmp_path, model, both, **inputs)[1][:12] == before
    assert sum(sampled) == 24


@pytest.mark.parametrize(
    ("name", "row", "question", "answer"),
    [
        ("aime_2024", {"problem": "2+2?", "answer": "4"}, "2+2?", "4"),
        ("math-500", {"problem": "2+2?", "answer": "4", "level": 1}, "2+2?", "4"),
        ("olympiadbench", {"question": "2+2?", "final_answer": ["4"]}, "2+2?", "4"),
        ("boolq", {"passage": "P", "question": "q", "answer": True}, "P\nQuestion: q?", "True"),
        ("mmlu", {"question": "Q", "choices": ["x", "y"], "answer": 1}, "Q\nA. x\nB. y", "B"),
        ("mmlu-pro", {"question": "Q", "options": ["x"], "answer": "A"}, "Q\nA. x", "A"),
    ],
)  # fmt: skip
def test_the_hubs_columns_of_a_benchmark(
    name: str, row: dict[str, Any], question: str, answer: str
) -> None:
    """As lm-eval hands them to our tasks when it reads the hub itself."""
    import datasets

    data = datasets.Dataset.from_list([row])
    data.info.dataset_name = name
    (found,) = harness.problems(data)
    assert (found["question"], found["answer"]) == (question, answer)


def test_benchmarks_do_not_depend_on_each_other(tmp_path: Path, model: Path) -> None:
    inputs = world_sets(tmp_path, 3)
    both = [{"name": name, "task": "opd_world"} for name in ("easy", "hard")]
    _, together = run(tmp_path, model, both, **inputs)
    (tmp_path / "b").mkdir()
    _, alone = run(tmp_path / "b", model, both[:1], **inputs)
    assert [r["response"] for r in alone] == [r["response"] for r in together[:9]]


def gsm8k(folder: Path) -> Path:
    """Four problems in the columns of openai/gsm8k."""
    folder.mkdir()
    rows = [{"question": f"{i}+1=", "answer": f"{i} and one.\n#### {i + 1}"} for i in range(4)]
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def test_another_task_of_lm_eval_with_its_own_filters_and_metrics(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gsm8k(tmp_path / "data")
    from opd.models import sampling

    texts = {0: "#### 1", 1: "so it is 2 .", 2: "#### 9\nQuestion: no\n#### 3", 3: "none"}

    def answers(self: Any, lists: Any) -> list[Any]:
        return [
            [sampling.Response([1], texts[int(r.id.split("/")[1])], "stop") for r in requests]
            for requests in lists
        ]

    monkeypatch.setattr(sampling.Sampler, "sample_lists", answers)
    benchmark = {"name": "g", "task": "gsm8k", "num_fewshot": 0}
    summary, rows = run(tmp_path, model, [benchmark], **{"data:g": data})
    assert [row["problem"] for row in rows[::3]] == ["0", "1", "2", "3"]
    # strict-match wants ####; flexible-extract takes the last number; "Question:" ends a response.
    strict = "exact_match,strict-match"
    flexible = "exact_match,flexible-extract"
    assert [dict(r["scores"])[strict] for r in rows[::3]] == [1.0, 0.0, 0.0, 0.0]
    assert [dict(r["scores"])[flexible] for r in rows[::3]] == [1.0, 1.0, 0.0, 0.0]
    assert summary["benchmarks"]["g"]["avg"] == 0.25
    assert summary["benchmarks"]["g"]["metrics"][flexible] == 0.5


def test_a_task_that_compares_likelihoods(tmp_path: Path, model: Path) -> None:
    """Two choices of one character: the likelier one is the answer."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "pick.yaml").write_text(
        "task: pick\ndataset_path: parquet\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: ["1", "2"]\ndoc_to_target: "{{label}}"\n'
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"q": "3+4=", "label": 0}, {"q": "3+4=", "label": 1}]
    pq.write_table(pa.Table.from_pylist(rows), data / "test.parquet")
    benchmark = {"name": "p", "task": "pick", "repeated": "samples"}
    summary, found = run(tmp_path, model, [benchmark], **{"data:p": data, "include:p": folder})
    assert [(row["problem"], row["sample"]) for row in found] == [("0", 0), ("0", 1)]
    assert summary["benchmarks"]["p"]["avg"] == 0.5  # one of the two labels must be the likelier
    (one, other), _ = (json.loads(row["response"]) for row in found)
    assert dict(found[0]["scores"])["acc"] == float(one[0] > other[0])


def test_the_same_greedy_score_through_lm_evals_own_backend(tmp_path: Path, model: Path) -> None:
    """Half of the answers are what the model says, so the score is no constant."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "say.yaml").write_text(
        "task: say\ndataset_path: parquet\noutput_type: generate_until\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs: {do_sample: false, max_gen_toks: 8, until: []}\n"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    )
    rows = world.make_prompts(WORLD, "easy", 6)
    settings = {"name": "s", "task": "say", "include": str(folder)}

    def evaluated(lm: Any, rows: list[dict[str, Any]], name: str) -> tuple[float, list[str]]:
        work = tmp_path / name
        work.mkdir()
        data = {"test": prompts_of(work / "p", rows) / "prompts.parquet"}
        task = harness.load(settings, data, 1, work)
        found = evaluator.evaluate(
            lm, {"tasks": {"s": task}}, apply_chat_template=True, bootstrap_iters=0
        )
        samples = sorted(found["samples"]["s"], key=lambda s: s["doc_id"])
        return found["results"]["s"]["exact_match,none"], [s["resps"][0][0] for s in samples]

    ours = harness.SamplerLM(model, **SAMPLING)
    _, said = evaluated(ours, rows, "first")
    answers = [
        row | {"answer": text if i % 2 else "no"}
        for i, (row, text) in enumerate(zip(rows, said, strict=True))
    ]
    score, texts = evaluated(harness.SamplerLM(model, **SAMPLING), answers, "ours")
    theirs, their_texts = evaluated(
        HFLM(pretrained=str(model), dtype="float32", device="cpu"), answers, "hf"
    )
    assert score == theirs == 0.5
    assert texts == their_texts


def test_the_sampler_is_a_model_of_lm_eval() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("opd") is harness.SamplerLM


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ({"task": "opd_amc24"}, r"unknown task 'opd_amc24'.*opd_amc23"),
        ({"task": "no_such_task"}, "lm-eval has no task 'no_such_task'"),
        ({"task": "lost"}, r"benchmarks\.b: the task 'lost' could not be loaded"),
    ],
)
def test_bad_tasks_get_one_line(tmp_path: Path, benchmark: dict[str, Any], message: str) -> None:
    if benchmark["task"] == "lost":
        benchmark = benchmark | {"include": str(tmp_path)}
        (tmp_path / "lost.yaml").write_text(
            "task: lost\ndataset_path: parquet\ndataset_kwargs: {data_files: /nowhere/*.parquet}\n"
        )
    with pytest.raises(UserError, match=message) as caught:
        harness.load({"name": "b", **benchmark}, {}, 1, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_chat_template_gets_one_line(tmp_path: Path, model: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    benchmark = {"name": "easy", "task": "opd_world"}
    with pytest.raises(UserError, match=r"bare: the tokenizer has no chat template"):
        run(tmp_path, bare, [benchmark], **world_sets(tmp_path, 2))


def test_bad_problems_get_one_line(tmp_path: Path, model: Path) -> None:
    rows = [schemas.prompt_row("a", "1+1=", "2", "s", i) for i in range(2)]
    benchmark = {"name": "b", "task": "opd_world"}
    with pytest.raises(UserError, match="two problems have the id 'a'"):
        run(tmp_path, model, [benchmark], **{"prompts:b": prompts_of(tmp_path / "p", rows)})
    long = [schemas.prompt_row("a", "1+" * 700, "2", "s", 0)]
    with pytest.raises(UserError, match=r"prompt 'b/a' \(row 0\): the prompt has \d+ tokens"):
        run(tmp_path, model, [benchmark], **{"prompts:b": prompts_of(tmp_path / "q", long)})
    assert not list((tmp_path / "out").iterdir())


def test_a_setting_that_the_sampler_does_not_have_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match=r"no setting 'scratch'; did you mean 'cache'"):
        harness.SamplerLM(model, **SAMPLING, scratch="/tmp/x")
    # What lm-eval's command line adds by itself.
    given = ",".join(f"{key}={value}" for key, value in SAMPLING.items())
    lm = harness.SamplerLM.create_from_arg_string(
        f"pretrained={model},{given}", {"batch_size": 2, "max_batch_size": 8, "device": "cpu"}
    )
    assert lm.sampler.settings["batch_size"] == 2


ROLES = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_turns_stand_before_a_problem(tmp_path: Path, model: Path) -> None:
    """After few-shot examples, whose own turns are left out; each row has its own or none."""
    told = with_template(model, tmp_path / "told", ROLES)
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
    ]
    rows = [
        schemas.prompt_row("a", "2+2=", "4", "s", 0, turns=turns),
        schemas.prompt_row("b", "3+3=", "6", "s", 1),
    ]
    file = prompts_of(tmp_path / "p", rows)
    lm = harness.SamplerLM(told, **SAMPLING)
    harness.answer({"b": (task := loaded(tmp_path, "opd_world", file))}, lm)
    assert [request.args[0] for request in task.instances] == [
        "s:be brief<eos>u:1+1=<eos>a:2<eos>u:2+2=<eos><assistant>",
        "u:3+3=<eos><assistant>",
    ]
    harness.answer({"b": (task := loaded(tmp_path, "opd_world", file, num_fewshot=1))}, lm)
    example = "u:(2[+]2=<eos>a:4|3[+]3=<eos>a:6)<eos>"
    for request, before in zip(
        task.instances, ("u:1[+]1=<eos>a:2<eos>u:2[+]2", "u:3[+]3"), strict=True
    ):
        system = "s:be brief<eos>" if "1[+]1" in before else ""
        assert re.fullmatch(f"{system}{example}{before}=<eos><assistant>", request.args[0])


def test_a_benchmark_that_repeats_its_problems(tmp_path: Path, model: Path) -> None:
    """Three problems, four times each, are no twelve problems: the interval would be half as wide.
    They are refused, unless the copies are samples by name, or left out."""
    rows = [schemas.prompt_row(f"q{i}", f"{i % 3}+2=", str(i % 3 + 2), "s", i) for i in range(12)]
    copies = {"prompts:b": prompts_of(tmp_path / "copies", rows)}
    benchmark = {"name": "b", "task": "opd_world"}
    with pytest.raises(UserError, match=r"b: 9 of 12 problems ask what an earlier one asks"):
        run(tmp_path, model, [benchmark], **copies)
    assert not list((tmp_path / "out").iterdir())
    once, _ = run(
        tmp_path, model, [benchmark], **{"prompts:b": prompts_of(tmp_path / "o", rows[:3])}
    )
    same, _ = run(tmp_path, model, [{**benchmark, "repeated": "once"}], **copies)
    assert same == once
    summary, scores = run(tmp_path, model, [{**benchmark, "repeated": "samples"}], **copies)
    numbers = summary["benchmarks"]["b"]
    assert (numbers["problems"], numbers["samples"]) == (3, 12)
    assert {(row["problem"], row["sample"]) for row in scores} == {
        (f"q{i}", sample) for i in range(3) for sample in range(12)
    }
    assert len({row["response"] for row in scores if row["problem"] == "q0"}) > 3
    uneven = {"prompts:b": prompts_of(tmp_path / "uneven", rows[:5])}
    with pytest.raises(UserError, match="asks some problem 1 and another 2 times"):
        run(tmp_path, model, [{**benchmark, "repeated": "samples"}], **uneven)


def test_repeats_are_found_behind_few_shot_examples_and_among_choices(
    tmp_path: Path, model: Path
) -> None:
    rows = [schemas.prompt_row(f"q{i}", f"{i % 4}+2=", "2", "s", i) for i in range(8)]
    file = prompts_of(tmp_path / "p", rows)
    lm = harness.SamplerLM(model, **SAMPLING)
    with pytest.raises(UserError, match="4 of 8 problems ask"):
        harness.answer({"b": loaded(tmp_path, "opd_world", file, num_fewshot=2)}, lm)
    spoken = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        schemas.prompt_row(f"q{i}", "1+2=", "2", "s", i, turns=turns)
        for i, turns in enumerate((spoken, None))
    ]
    task = loaded(tmp_path, "opd_world", prompts_of(tmp_path / "q", rows), num_fewshot=1)
    assert len(harness.answer({"b": task}, lm)["b"]) == 4  # another conversation is another problem

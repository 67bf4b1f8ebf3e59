"""The shipped lm-eval tasks over the authors' benchmark files."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from opd.data import prompts, templates
from opd.grading import graders

pytest.importorskip("lm_eval")
from opd.evaluation import harness

SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."
FILES = {
    "aime24": ("AIME24", 30), "aime25": ("AIME25", 30), "amc23": ("AMC23", 40),
    "amc23_83": ("AMC23-83", 83), "math500": ("MATH-500", 500), "minerva": ("Minerva", 272),
    "olympiad": ("Olympiad-Bench", 674),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data_dir)
    return data_dir


def task_of(tmp_path: Path, name: str) -> Any:
    file, _ = FILES[name]
    cfg: dict[str, Any] = {"source": {"path": f"benchmarks/{file}.parquet"}}
    if name == "amc23_83":
        cfg["strip"] = ["boxed"]
    prompts.run(cfg, {}, tmp_path)
    data = {"test": tmp_path / "prompts.parquet"}
    return harness.load({"name": name, "task": f"opd_{name}"}, data, 1, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_every_problem_is_asked_with_the_suffix(tmp_path: Path, folder: Path, name: str) -> None:
    task = task_of(tmp_path, name)
    task.build_all_requests()
    raw = pq.read_table(folder / "benchmarks" / f"{FILES[name][0]}.parquet").to_pylist()
    texts = [row["prompt"][0]["content"] for row in raw]
    bare = [templates.unwrap(text, "boxed")[0].strip() for text in texts]
    asked = [instance.args[0] for instance in task.instances]
    assert asked == [text + SUFFIX for text in bare]
    if name == "amc23_83":  # whose file has the suffix: to the byte, but for white space before it
        differ = [
            (ours, theirs) for ours, theirs in zip(asked, texts, strict=True) if ours != theirs
        ]
        assert len(differ) == 5
        assert all(a.split() == b.split() for a, b in differ)
    assert len(task.instances) == FILES[name][1]
    assert len({harness.problem_id(instance) for instance in task.instances}) == FILES[name][1]


@pytest.mark.parametrize("name", ["aime24", "amc23_83"])
def test_gold_answers_are_right_and_others_wrong_through_the_task(
    tmp_path: Path, name: str
) -> None:
    task = task_of(tmp_path, name)
    docs = list(task.test_docs())
    for doc, other in itertools.pairwise(docs[:10]):
        answer = graders.last_boxed(doc["answer"]) or doc["answer"]
        right = task.process_results(doc, [f"so \\boxed{{{answer}}}"])
        assert right == {"rule": 1.0, "math_verify": 1.0, "relaxed": 1.0}
        if other["answer"] != doc["answer"]:
            wrong = task.process_results(other, [f"so \\boxed{{{answer}}}"])
            assert wrong == {"rule": 0.0, "math_verify": 0.0, "relaxed": 0.0}

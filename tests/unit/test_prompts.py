"""Prompt sets: sources, stripping, selection, sampling, templates, and what bad input gets."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opd import prompts, tables
from opd.errors import Bad

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    '{question}\n\nRemember to put your answer on its own line after "Answer:".'
)
BOXED = "{question} Please reason step by step, and put your final answer within \\boxed{}."


def verl_row(content: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "data_source": "d",
        "prompt": [{"role": "user", "content": content}],
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": "0"},
        **more,
    }


@pytest.fixture
def verl_file(tmp_path: Path) -> Path:
    path = tmp_path / "set.parquet"
    rows = [
        verl_row(DAPO.replace("{question}", f"What is {i}+{i}?"), str(2 * i), level=i % 3 + 1)
        for i in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(tmp_path: Path, cfg: dict[str, Any], **inputs: Path) -> tuple[list[dict], dict]:
    out = tmp_path / "out"
    out.mkdir()
    numbers = prompts.run({"seed": 0, **cfg}, inputs, out)
    rows = tables.read(out / "prompts.parquet", tables.PROMPTS).to_pylist()
    for file in out.iterdir():
        file.unlink()
    out.rmdir()
    return rows, numbers


def test_verl_file_keeps_its_prompt_and_gets_bare_questions(
    tmp_path: Path, verl_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    rows, numbers = run(tmp_path, {"source": {"path": "set.parquet"}, "strip": [DAPO]})
    assert [r["question"] for r in rows[:2]] == ["What is 0+0?", "What is 1+1?"]
    assert rows[1]["prompt"] == DAPO.replace("{question}", "What is 1+1?")
    assert [r["answer"] for r in rows[:3]] == ["0", "2", "4"]
    assert [r["difficulty"] for r in rows[:4]] == [1, 2, 3, 1]
    assert len({r["id"] for r in rows}) == 12
    assert numbers["stripped"] == {DAPO: 12}


def test_ids_do_not_depend_on_the_folder_or_the_selection(
    tmp_path: Path, verl_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    every, _ = run(tmp_path, {"source": {"path": "set.parquet"}})
    ids = {r["row"]: r["id"] for r in every}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    verl_file.rename(elsewhere / "set.parquet")
    source = {"path": "set.parquet"}
    some, _ = run(
        tmp_path,
        {"source": source, "levels": [2, 3], "sample": {"n": 3, "seed": 1}, "strip": [DAPO]},
        path=elsewhere / "set.parquet",
    )
    assert len(some) == 3
    assert all(ids[r["row"]] == r["id"] and r["difficulty"] in (2, 3) for r in some)


def test_template_replaces_only_the_question() -> None:
    text = prompts.apply_template(BOXED, "What is {x} in {question}?")
    assert text.startswith("What is {x} in {question}? Please") and text.endswith("\\boxed{}.")
    double = prompts.apply_template("{question} in \\boxed{{}}.", "q")
    assert double == "q in \\boxed{{}}."
    with pytest.raises(Bad, match="template"):
        prompts.apply_template("no place", "q")


@pytest.mark.parametrize(
    ("affix", "text", "bare"),
    [
        (DAPO, DAPO.replace("{question}", "q"), "q"),
        (DAPO, DAPO.replace("{question}", "q").removesuffix('"Answer:".'), None),
        (BOXED, BOXED.replace("{question}", " q "), "q"),
        (BOXED, BOXED.replace("{question}", "q").replace("{}", "{{}}"), None),
        ("Question: ", "Question: q", "q"),
        (" please.", "q please.", "q"),
        (" please.", "q please. r", None),
        ("ab{question}ba", "aba", None),
    ],
)
def test_strip(affix: str, text: str, bare: str | None) -> None:
    stripped, found = prompts.strip_question(text, [affix])
    assert found == [bare is not None]
    assert stripped == (text.strip() if bare is None else bare)


def test_an_affix_that_no_row_has_is_refused(tmp_path: Path, verl_file: Path) -> None:
    cfg = {"source": {"path": str(verl_file)}, "strip": [DAPO, BOXED]}
    with pytest.raises(Bad, match=r"strip\.1.*no row of .*set\.parquet"):
        run(tmp_path, cfg)


def test_samples_are_nested_and_in_file_order() -> None:
    rows = [{"row": i} for i in range(100)]
    small, large = prompts.sample(rows, 10, 7), prompts.sample(rows, 40, 7)
    assert [r["row"] for r in small] == sorted(r["row"] for r in small)
    assert {r["row"] for r in small} < {r["row"] for r in large}
    assert small == prompts.sample(rows, 10, 7) != prompts.sample(rows, 10, 8)
    with pytest.raises(Bad, match="101 prompts wanted, 100"):
        prompts.sample(rows, 101, 7)


def test_csv_and_jsonl_tables(tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": 2, "level": "Level 3"}, {"q": "2+2", "a": 4, "level": "Level ?"}]
    jsonl, table = tmp_path / "t.jsonl", tmp_path / "t.csv"
    jsonl.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    source = {"question": "q", "answer": "a"}
    for path in (jsonl, table):
        read, _ = run(tmp_path, {"source": {"path": str(path), **source}})
        assert [(r["question"], r["answer"], r["difficulty"]) for r in read] == [
            ("1+1", "2", 3),
            ("2+2", "4", None),
        ]


def test_from_another_set_keeps_ids(tmp_path: Path, verl_file: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    prompts.run({"source": {"path": str(verl_file)}, "strip": [DAPO]}, {}, parent)
    old = tables.read(parent / "prompts.parquet", tables.PROMPTS).to_pylist()
    rows, _ = run(tmp_path, {"source": {"from": True}, "template": BOXED}, prompts=parent)
    assert [r["id"] for r in rows] == [r["id"] for r in old]
    assert rows[3]["prompt"] == BOXED.replace("{question}", "What is 3+3?")
    kept, _ = run(tmp_path, {"source": {"from": True}}, prompts=parent)
    assert kept == old


def test_world(tmp_path: Path) -> None:
    world = {
        "seed": 0, "rl_times": 0.4, "other_times": 0.1,
        "exact_duplicates": 0.1, "near_duplicates": 0.1,
    }  # fmt: skip
    cfg = {
        "source": {"world": {"split": "rl", "n": 20}},
        "world": world,
        "template": "? {question}",
    }
    rows, numbers = run(tmp_path, cfg)
    assert numbers["prompts"] == 20
    assert all(r["prompt"] == f"? {r['question']}" for r in rows)


def test_empty_rows_are_named_or_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": " "}\n')
    with pytest.raises(Bad, match=r"t\.jsonl: row 1: the answer is empty"):
        run(tmp_path, {"source": {"path": str(path)}})
    (tmp_path / "out").rmdir()
    rows, numbers = run(tmp_path, {"source": {"path": str(path)}, "drop_empty": True})
    assert [r["question"] for r in rows] == ["a"] and numbers["dropped_empty"] == 1


def test_long_questions_are_left_out(tmp_path: Path, verl_file: Path) -> None:
    source = {"path": str(verl_file)}
    rows, numbers = run(tmp_path, {"source": source, "strip": [DAPO], "max_chars": 12})
    assert [r["row"] for r in rows] == list(range(10)) and numbers["dropped_long"] == 2


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"source": {"path": "missing.parquet"}}, "no such file: .*missing.parquet"),
        ({"source": {"path": "set.txt"}}, "unknown kind of file '.txt'"),
        ({"source": {"path": "set.parquet", "format": "table"}}, "column 'question' is missing"),
        ({"source": {"path": "plain.jsonl", "format": "verl"}}, "column 'prompt' is missing"),
        ({"source": {"path": "plain.jsonl", "answer": "truth"}}, "column 'truth' is missing"),
        ({"source": {"path": "broken.jsonl"}}, "broken.jsonl:2: not JSON"),
        ({"source": {"path": "broken.parquet"}}, "broken.parquet: not a parquet file"),
        ({"source": {"path": "system.parquet"}}, "row 0: 'prompt' holds .*system"),
        (
            {"source": {"path": "set.parquet"}, "levels": [9]},
            r"levels.*no prompt of set.parquet is left \(12 read, 0 of",
        ),
        ({"source": {"path": "plain.jsonl"}, "levels": [1]}, "plain.jsonl has none"),
        ({"source": {"path": "set.parquet"}, "sample": {"n": 13}}, "13 prompts wanted, 12"),
        ({"source": {"hub": "a/b", "revision": "main"}}, "revision 'main' is not locked"),
        ({"source": {}}, "no source"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    verl_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    cfg: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    (tmp_path / "set.txt").write_text("x")
    (tmp_path / "plain.jsonl").write_text('{"question": "a", "answer": "1"}\n')
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": "1"}\n{"question"\n')
    (tmp_path / "broken.parquet").write_text("no parquet")
    row = verl_row("q", "1")
    row["prompt"] = [{"role": "system", "content": "s"}, *row["prompt"]]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "system.parquet")
    with pytest.raises(Bad, match=message):
        run(tmp_path, cfg)
    assert not list((tmp_path / "out").iterdir())


def test_unset_data_dir_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPD_DATA_DIR", raising=False)
    with pytest.raises(Bad, match="OPD_DATA_DIR"):
        run(tmp_path, {"source": {"path": "set.parquet"}})


def test_hub_reads_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str) -> Any:
        calls.append((name, config, split, revision))
        return datasets.Dataset.from_list([verl_row("q", "1")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    revision = "0123456789" * 4
    rows, _ = run(tmp_path, {"source": {"hub": "a/b", "revision": revision, "config": "en"}})
    assert calls == [("a/b", "en", "train", revision)]
    assert rows[0]["question"] == "q" and rows[0]["source"] == f"a/b@{revision}:train"


def test_hub_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(Bad, match="ConnectionError: no route to host") as caught:
        run(tmp_path, {"source": {"hub": "a/b", "revision": "a" * 40}})
    assert "\n" not in str(caught.value)

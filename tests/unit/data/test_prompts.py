"""Prompt sets: sources, stripping, selection, sampling, templates, and what bad input gets."""

import csv
import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.data import prompts, schemas, templates
from opd.data.schemas import PROMPTS, REPEATED

DAPO, BOXED = templates.TEMPLATES["dapo"], templates.TEMPLATES["boxed"]


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
    rows = tables.read(out / "prompts.parquet", PROMPTS).to_pylist()
    for file in out.iterdir():
        file.unlink()
    out.rmdir()
    return rows, numbers


def test_verl_file_keeps_its_prompt_and_gets_bare_questions(
    tmp_path: Path, verl_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, numbers = run(tmp_path, {"source": {"path": "set.parquet"}, "strip": ["dapo"]})
    assert [r["question"] for r in rows[:2]] == ["What is 0+0?", "What is 1+1?"]
    assert rows[1]["prompt"] == DAPO.replace("{question}", "What is 1+1?")
    assert [r["answer"] for r in rows[:3]] == ["0", "2", "4"]
    assert [r["difficulty"] for r in rows[:4]] == [1, 2, 3, 1]
    assert len({r["id"] for r in rows}) == 12
    assert numbers["strip"] == {"dapo": {"exact": 12}}
    for row in rows:  # what follows from the question follows from the bare one
        assert row == schemas.prompt_row(
            **{k: row[k] for k in row if k not in ("language", "text_hash")}
        )


def test_ids_do_not_depend_on_the_folder_or_the_selection(
    tmp_path: Path, verl_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    every, _ = run(tmp_path, {"source": {"path": "set.parquet"}})
    ids = {r["row"]: r["id"] for r in every}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    verl_file.rename(elsewhere / "set.parquet")
    source = {"path": "set.parquet"}
    some, _ = run(
        tmp_path,
        {
            "source": source,
            "difficulty": {"at_least": 2},
            "sample": {"n": 3, "seed": 1},
            "strip": ["dapo"],
        },
        path=elsewhere / "set.parquet",
    )
    assert len(some) == 3
    assert all(ids[r["row"]] == r["id"] and r["difficulty"] in (2, 3) for r in some)


def test_an_affix_that_no_row_has_is_refused(tmp_path: Path, verl_file: Path) -> None:
    cfg = {"source": {"path": str(verl_file)}, "strip": [DAPO, BOXED]}
    with pytest.raises(UserError, match=r"strip\.1.*no row of .*set\.parquet"):
        run(tmp_path, cfg)


@pytest.mark.parametrize(
    ("prompt", "affixes", "bare"),
    [
        (BOXED.replace("{question}", "Question: q"), ["boxed", "Question: "], "q"),
        (BOXED.replace("{question}", "Question: q"), ["Question: ", "boxed"], "q"),
        (DAPO.replace("{question}", BOXED), ["boxed", "dapo"], BOXED),
    ],
)
def test_affixes_come_off_in_order(
    tmp_path: Path, prompt: str, affixes: list[str], bare: str
) -> None:
    lines = [{"question": text} for text in (prompt, BOXED.replace("{question}", "another"))]
    rows, _ = run(tmp_path, {"source": write(tmp_path / "t.jsonl", *lines), "strip": affixes})
    assert rows[0]["question"] == bare


def test_samples_are_nested_and_in_file_order() -> None:
    rows = [{"id": f"r{i}", "row": i} for i in range(100)]
    small, large = prompts.sample(rows, 10, 7), prompts.sample(iter(rows), 40, 7)
    assert [r["row"] for r in small] == sorted(r["row"] for r in small)
    assert {r["row"] for r in small} < {r["row"] for r in large}
    assert small == prompts.sample(rows, 10, 7) != prompts.sample(rows, 10, 8)
    with pytest.raises(UserError, match="101 prompts wanted, 100"):
        prompts.sample(rows, 101, 7)


def test_samples_are_fair() -> None:
    """Each of 20 rows is in a sample of 5 as often as the next, over 2000 seeds."""
    rows = [{"id": f"r{i}", "row": i} for i in range(20)]
    drawn = Counter(r["row"] for seed in range(2000) for r in prompts.sample(rows, 5, seed))
    expected, spread = 2000 / 4, (2000 * 0.25 * 0.75) ** 0.5
    assert all(abs(drawn[i] - expected) < 5 * spread for i in range(20))


def of_questions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text_hash": schemas.text_hash(row["question"]), **row} for row in rows]


def test_a_sample_of_questions_has_all_their_rows_wherever_they_stand() -> None:
    """30 questions of one to ten rows each, in two orders."""
    rows = of_questions([{"question": f"q{i % 30}", "row": i} for i in range(165)])
    times = Counter(row["question"] for row in rows)
    chosen = prompts.sample_questions(iter(rows), 12, 7)
    drawn = {row["question"] for row in chosen}
    assert len(drawn) == 12
    assert Counter(row["question"] for row in chosen) == {q: times[q] for q in drawn}
    assert [row["row"] for row in chosen] == sorted(row["row"] for row in chosen)
    grouped = sorted(rows, key=lambda row: row["question"])
    again = prompts.sample_questions(grouped, 12, 7)
    assert {row["question"] for row in again} == drawn
    assert again == [row for row in grouped if row["question"] in drawn]
    fewer = {row["question"] for row in prompts.sample_questions(rows, 5, 7)}
    assert fewer < drawn != {row["question"] for row in prompts.sample_questions(rows, 12, 8)}
    assert prompts.sample_questions(rows, 30, 7) == rows
    with pytest.raises(UserError, match=r"sample\.questions: 31 questions wanted, 30 are there"):
        prompts.sample_questions(rows, 31, 7)


def test_samples_of_questions_are_fair() -> None:
    """Each of 20 questions is in a sample of 5 as often as the next, however often it is asked."""
    rows = of_questions([{"question": f"q{i}"} for i in range(20) for _ in range(1 + i % 3)])
    drawn = Counter(
        question
        for seed in range(2000)
        for question in {row["question"] for row in prompts.sample_questions(rows, 5, seed)}
    )
    expected, spread = 2000 / 4, (2000 * 0.25 * 0.75) ** 0.5
    assert all(abs(drawn[f"q{i}"] - expected) < 5 * spread for i in range(20))


def test_the_first_rows_are_those_left_in_front(tmp_path: Path, verl_file: Path) -> None:
    """After what other keys leave out; and what is wrong with later rows is found."""
    source = {"path": str(verl_file)}
    rows, numbers = run(tmp_path, {"source": source, "sample": {"first": 3, "seed": 0}})
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert numbers["steps"] == [{"step": "read", "rows": 12}, {"step": "sampled", "rows": 3}]
    hard = {"source": source, "difficulty": {"at_least": 2.0}, "sample": {"first": 3}}
    assert [row["row"] for row in run(tmp_path, hard)[0]] == [1, 2, 4]
    assert len(run(tmp_path, {"source": source, "sample": {"first": 12}})[0]) == 12
    empty = write(tmp_path / "e.jsonl", {"question": "a"}, {"question": " "})
    with pytest.raises(UserError, match="row 1: the question is empty"):
        run(tmp_path, {"source": empty, "sample": {"first": 1}})


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
    old = tables.read(parent / "prompts.parquet", PROMPTS).to_pylist()
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
    with pytest.raises(UserError, match=r"t\.jsonl: row 1: the answer is empty"):
        run(tmp_path, {"source": {"path": str(path)}})
    (tmp_path / "out").rmdir()
    rows, numbers = run(tmp_path, {"source": {"path": str(path)}, "drop_empty": True})
    assert [r["question"] for r in rows] == ["a"] and numbers["steps"] == [
        {"step": "read", "rows": 2},
        {"step": "after empty", "rows": 1},
    ]


def test_long_questions_are_left_out(tmp_path: Path, verl_file: Path) -> None:
    source = {"path": str(verl_file)}
    rows, numbers = run(tmp_path, {"source": source, "strip": [DAPO], "max_chars": 12})
    assert [r["row"] for r in rows] == list(range(10)) and numbers["steps"][-1] == {
        "step": "after max_chars",
        "rows": 10,
    }


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"source": {"path": "missing.parquet"}}, "no such file: .*missing.parquet"),
        ({"source": {"path": "set.txt"}}, "unknown kind of file '.txt'"),
        ({"source": {"path": "set.parquet", "layout": "table"}}, "column 'question' is missing"),
        ({"source": {"path": "plain.jsonl", "layout": "verl"}}, "column 'prompt' is missing"),
        ({"source": {"path": "plain.jsonl", "answer": "truth"}}, "column 'truth' is missing"),
        ({"source": {"path": "broken.jsonl"}}, "broken.jsonl:2: not JSON"),
        ({"source": {"path": "broken.parquet"}}, "broken.parquet: not a whole parquet file"),
        (
            {"source": {"path": "tool.parquet"}},
            "row 0: 'prompt' holds user, tool; expected user and",
        ),
        (
            {"source": {"path": "set.parquet"}, "difficulty": {"at_least": 9.0}},
            r"no prompt of set.parquet is left \(12 read, 0 after difficulty\)",
        ),
        (
            {"source": {"path": "plain.jsonl"}, "difficulty": {"at_most": 1.0}},
            "difficulty: .*no row of plain.jsonl has a difficulty",
        ),
        (
            {"source": {"path": "set.parquet"}, "sample": {"n": 13}},
            r"^sample\.n: 13 prompts wanted, 12 are there; ask for fewer$",
        ),
        (
            {"source": {"path": "set.parquet"}, "sample": {"first": 13}},
            r"^sample\.first: 13 prompts wanted, 12 are there; ask for fewer$",
        ),
        (
            {"source": {"path": "set.parquet"}, "sample": {"questions": 13}},
            r"^sample\.questions: 13 questions wanted, 12 are there; ask for fewer$",
        ),
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
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.txt").write_text("x")
    (tmp_path / "plain.jsonl").write_text('{"question": "a", "answer": "1"}\n')
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": "1"}\n{"question"\n')
    (tmp_path / "broken.parquet").write_text("no parquet")
    row = verl_row("q", "1")
    row["prompt"] = [*row["prompt"], {"role": "tool", "content": "2"}]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "tool.parquet")
    with pytest.raises(UserError, match=message):
        run(tmp_path, cfg)
    assert not list((tmp_path / "out").iterdir())


def test_hub_reads_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        calls.append((name, config, options))
        return datasets.IterableDataset.from_generator(lambda: iter([verl_row("q", "1")]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    revision = "0123456789" * 4
    rows, _ = run(tmp_path, {"source": {"hub": "a/b", "revision": revision, "config": "en"}})
    assert calls == [("a/b", "en", {"split": "train", "revision": revision, "streaming": True})]
    assert rows[0]["question"] == "q" and rows[0]["source"] == f"a/b@{revision}/en:train"


def test_hub_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="ConnectionError: no route to host") as caught:
        run(tmp_path, {"source": {"hub": "a/b", "revision": "a" * 40}})
    assert "\n" not in str(caught.value)


def write(path: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    path.write_text("".join(json.dumps({"answer": "1", **row}) + "\n" for row in rows))
    return {"path": str(path)}


def test_repeated_questions_are_reported_and_the_first_kept(tmp_path: Path) -> None:
    boxed = BOXED.removeprefix("{question}")
    asked = [
        ("a", "1"),
        ("b", "1"),
        ("a ", "2"),
        ("b", "1"),
        ("c", "3"),
        ("\u4e00", "1"),
        ("a", "1"),
    ]
    rows = [{"question": q + boxed, "answer": a} for q, a in asked]
    cfg = {"source": write(tmp_path / "t.jsonl", *rows), "strip": ["boxed"]}
    out = tmp_path / "made"
    out.mkdir()
    numbers = prompts.run(cfg, {}, out)
    assert numbers["texts"] == {
        "prompt": {"distinct": 5, "en": 4, "zh": 1, "repeated": 2, "conflicting": 0},
        "prompt_stripped": {"distinct": 5, "en": 4, "zh": 1, "repeated": 2, "conflicting": 0},
        "question": {"distinct": 5, "en": 4, "zh": 1, "repeated": 2, "conflicting": 0},
        "question_stripped": {"distinct": 4, "en": 3, "zh": 1, "repeated": 2, "conflicting": 1},
    }
    assert numbers["templates"] == {
        **{"dapo": 0, "boxed": 7, "boxed_double_brace": 0, "boxed_paragraph": 0}
    }
    assert numbers["languages"] == {"en": 6, "zh": 1}
    assert json.loads((out / "report.json").read_text()) == {
        key: value for key, value in numbers.items() if key != "prompts"
    }
    repeated = tables.read(out / "repeated.parquet", REPEATED).to_pylist()
    shown = [(r["rule"], r["text"].removesuffix(boxed), r["rows"], r["answers"]) for r in repeated]
    assert shown == [
        ("prompt", "a", [0, 6], ["1"]),
        ("prompt", "b", [1, 3], ["1"]),
        ("question", "a", [0, 2, 6], ["1", "2"]),
        ("question", "b", [1, 3], ["1"]),
    ]
    assert [r["conflicting"] for r in repeated] == [False, False, True, False]
    for distinct, kept in (("question", [0, 1, 4, 5]), ("prompt", [0, 1, 2, 4, 5])):
        rows, numbers = run(tmp_path, {**cfg, "distinct": distinct})
        assert [r["row"] for r in rows] == kept
        assert numbers["steps"][-1] == {"step": "after distinct", "rows": len(kept)}


def test_languages_and_difficulties_are_selected(tmp_path: Path) -> None:
    levels = [1.5, 6, None, "Level 7", 6.0]
    rows = [{"question": f"q{i}" + "\u4e00" * (i % 2), "level": x} for i, x in enumerate(levels)]
    source = write(tmp_path / "t.jsonl", *rows)
    for cfg, kept in (
        ({"language": "en"}, [0, 2, 4]),
        ({"language": "zh"}, [1, 3]),
        ({"difficulty": {"at_least": 6.0}}, [1, 3, 4]),
        ({"difficulty": {"at_least": 6.0, "at_most": 6.0}}, [1, 4]),
        ({"difficulty": {"at_most": 6.0}, "language": "en"}, [0, 4]),
    ):
        found, numbers = run(tmp_path, {"source": source, **cfg})
        assert [r["row"] for r in found] == kept
        assert numbers.get("unknown_difficulty", 1) == 1


def test_steps_add_up(tmp_path: Path) -> None:
    rows = [
        {"question": f"{i % 9} " + "long " * (i % 2) + "\u4e00" * (i % 3 == 0), "level": i % 4}
        for i in range(100)
    ]
    cfg = {
        "source": write(tmp_path / "t.jsonl", *rows, {"question": " "}),
        "drop_empty": True,
        "language": "en",
        "difficulty": {"at_least": 1.0},
        "max_chars": 4,
        "distinct": "question",
        "sample": {"n": 2, "seed": 0},
    }
    found, numbers = run(tmp_path, cfg)
    assert len(found) == 2
    # Not divisible by 3, then neither by 4, then even: 2, 10, 14, ...; modulo 9 six of them.
    assert [(s["step"], s["rows"]) for s in numbers["steps"]] == [
        ("read", 101),
        ("after empty", 100),
        ("after language", 66),
        ("after difficulty", 50),
        ("after max_chars", 17),
        ("after distinct", 6),
        ("sampled", 2),
    ]


@pytest.fixture
def thoughts(tmp_path: Path) -> dict[str, Any]:
    """300 rows, 30 questions: each asked ten times. With ids of their own, as samples go by ids and
    those made up for rows hold the file's path."""
    rows = ({"question": f"q{i % 30}", "name": f"row {i}"} for i in range(300))
    return write(tmp_path / "t.jsonl", *rows) | {"row_id": "name"}


def split(tmp_path: Path, source: dict[str, Any], n: int, **cfg: Any) -> tuple[list, list, dict]:
    """An SFT sample, and an OPD set that is to be apart from it."""
    sft = tmp_path / "sft"
    sft.mkdir()
    prompts.run({"source": source, "sample": {"n": n, "seed": 0}}, {}, sft)
    taken = tables.read(sft / "prompts.parquet", PROMPTS).to_pylist()
    rest, numbers = run(tmp_path, {"source": source, **cfg}, apart_from=sft)
    return taken, rest, numbers


def test_apart_by_question(tmp_path: Path, thoughts: dict[str, Any]) -> None:
    taken, rest, numbers = split(tmp_path, thoughts, 12, apart_from="question")
    sft = {r["question"] for r in taken}
    assert 8 < len(sft) <= 12
    assert [r["row"] for r in rest] == [i for i in range(300) if f"q{i % 30}" not in sft]
    assert numbers["apart_from"] == {
        "by": "question",
        "their_rows": 12,
        "their_questions": len(sft),
        "shared_rows": 0,
        "rows_with_shared_questions": 0,
    }


def test_apart_by_row_leaves_repeated_questions_and_says_so(
    tmp_path: Path, thoughts: dict[str, Any]
) -> None:
    taken, rest, numbers = split(tmp_path, thoughts, 200, apart_from="row", distinct="question")
    rows = {r["row"] for r in taken}
    left = [i for i in range(300) if i not in rows]
    assert [r["row"] for r in rest] == [
        i for n, i in enumerate(left) if i % 30 not in {j % 30 for j in left[:n]}
    ]
    shared = {r["question"] for r in taken} & {r["question"] for r in rest}
    assert shared and numbers["apart_from"]["rows_with_shared_questions"] == len(shared)
    assert numbers["apart_from"]["shared_rows"] == 0


def test_apart_by_row_needs_a_common_source(tmp_path: Path, thoughts: dict[str, Any]) -> None:
    other = write(tmp_path / "other.jsonl", {"question": "q"})
    sft = tmp_path / "sft"
    sft.mkdir()
    prompts.run({"source": other}, {}, sft)
    with pytest.raises(UserError, match=r"no row of .*t\.jsonl.*use apart_from by question"):
        run(tmp_path, {"source": thoughts, "apart_from": "row"}, apart_from=sft)
    assert not list((tmp_path / "out").iterdir())


def test_nothing_left_apart_is_refused(tmp_path: Path, thoughts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="300 read, 0 after apart_from"):
        split(tmp_path, thoughts, 300, apart_from="question")


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    source = write(
        tmp_path / "t.jsonl",
        *({"question": q, "name": n} for q, n in (("a", "x"), ("b", "y"), ("c", "x"))),
    )
    with pytest.raises(UserError, match=r"t\.jsonl: row 2: its id 'x' is that of .*: row 0, too"):
        run(tmp_path, {"source": {**source, "row_id": "name"}})
    (tmp_path / "out").rmdir()
    rows, _ = run(tmp_path, {"source": source})
    assert len({r["id"] for r in rows}) == 3


@pytest.mark.parametrize("file", ["prompts.parquet", "repeated.parquet", "report.json"])
def test_a_full_disk_is_one_line(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    replacing = tables.replacing

    @contextmanager
    def on_a_full_disk(path: Path) -> Iterator[Path]:
        with replacing(path) as temporary:
            if path.name == file:
                temporary.symlink_to("/dev/full")
            yield temporary

    monkeypatch.setattr(tables, "replacing", on_a_full_disk)
    source = write(tmp_path / "t.jsonl", {"question": "a"}, {"question": "a"})
    with pytest.raises(UserError) as caught:
        prompts.run({"source": source}, {}, out)
    line = str(caught.value)
    assert line.startswith(f"{out / file}: it cannot be written (") and "\n" not in line
    assert os.strerror(errno.ENOSPC) in line and line.endswith("; free space there")
    assert not [path.name for path in out.iterdir() if file in path.name]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, verl_file: Path) -> None:
    made = []
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        prompts.run({"source": {"path": str(verl_file)}, "strip": ["dapo"]}, {}, out)
        made.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert made[0] == made[1] and len(made[0]) == 3


def report_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], **cfg: Any
) -> tuple[dict[str, Any], str]:
    """report.json of a set of these rows, and what is said of it on the console."""
    out = tmp_path / "made"
    out.mkdir(exist_ok=True)
    prompts.run({"source": write(tmp_path / "t.jsonl", *rows), **cfg}, {}, out)
    return json.loads((out / "report.json").read_text()), capsys.readouterr().err


def test_a_set_that_is_copies_of_itself_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(5)] * 100
    report, said = report_of(tmp_path, capsys, rows)
    line = "495 of 500 rows ask again what an earlier one asks (distinct: question leaves them out)"
    assert report["notes"] == [line]
    assert said == f"note: {tmp_path}/t.jsonl: {line}\n"
    report, said = report_of(tmp_path, capsys, rows, distinct="question")
    assert "notes" not in report and said == ""


def test_questions_with_different_answers_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the rows that stay: what is left out does no harm."""
    rows = [{"question": q, "answer": a} for q, a in (("a", "1"), ("a ", " 1"), ("b", "1"))]
    assert len(report_of(tmp_path, capsys, rows)[0]["notes"]) == 1
    rows += [{"question": "b", "answer": "2"}, {"question": "b", "answer": "3"}]
    report, said = report_of(tmp_path, capsys, rows)
    assert report["notes"][1:] == ["1 question has different answers in different rows"]
    assert said.count("note: ") == 2
    assert "notes" not in report_of(tmp_path, capsys, rows, sample={"n": 1, "seed": 0})[0]


def test_control_tokens_in_a_prompt_are_said_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "What is <|im_end|> 1+1? <|im_end|>",
        "<|im_end|>\n<|im_start|>system\nsay \x1b[31m 7",
        "<\uff5cUser\uff5c>a",
        "[INST] b </s>",
        "if a<|b|> c and |x| < 3 then <b>",
        "so </think> <bos><eos><start_of_turn>",
        "no <bot>, <thinks> or <|b c|>",
    ]
    report, said = report_of(tmp_path, capsys, [{"question": q} for q in asked])
    assert report["control_tokens"] == {
        "<|im_end|>": 2,
        "<|im_start|>": 1,
        "<\uff5cUser\uff5c>": 1,
        "[INST]": 1,
        "</s>": 1,
        "<|b|>": 1,
        "</think>": 1,
        "<bos>": 1,
        "<eos>": 1,
        "<start_of_turn>": 1,
    }
    assert report["notes"] == [
        "6 of 7 prompts hold control tokens of chat templates (<|im_end|>, <|im_start|>, "
        "<\uff5cUser\uff5c>, ...): a tokenizer that has them makes them its own control ids"
    ]
    assert said.count("note: ") == 1 and "\x1b" not in said
    _, said = report_of(tmp_path, capsys, [{"question": "<|\x1b[2J|>"}])
    assert "(<|\u27e8U+001B\u27e9[2J|>)" in said and "\x1b" not in said

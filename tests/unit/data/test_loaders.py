"""Sources of prompts: the hub's datasets in their own columns, files, and what bad input gets.

The hub is a folder of repositories in the hub's layout (parquet files; configurations and columns
in the head of README.md), which the real ``datasets`` reads.
"""

import csv
import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opd.core.errors import UserError
from opd.data import layouts, loaders, templates

REVISION = "0123456789" * 4
Rows = list[dict[str, Any]]


def load(
    source: dict[str, Any], path: Path | None = None, cache: Path | None = None
) -> tuple[Rows, Counter[str]]:
    tally: Counter[str] = Counter()
    return list(loaders.read(source, path, tally, cache and (cache, cache.parent))), tally


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a repository: configuration (or a file's name) -> rows, in one or more files each."""
    datasets = pytest.importorskip("datasets")
    real = datasets.load_dataset

    def load_dataset(name: str, config: str | None, *, revision: str, **options: Any) -> Any:
        assert revision == REVISION
        return real(str(tmp_path / "hub" / name), config, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def make(name: str, split: str = "train", files: int = 1, **configs: Rows) -> Path:
        root = tmp_path / "hub" / name
        card: dict[str, Any] = {"dataset_info": [], "configs": []}
        for config, rows in configs.items():
            folder = root / config
            folder.mkdir(parents=True)
            size = -(-len(rows) // files)
            for i in range(files):
                table = pa.Table.from_pylist(rows[i * size : (i + 1) * size])
                pq.write_table(table, folder / f"{split}-{i:05d}-of-{files:05d}.parquet")
            features = datasets.Dataset.from_list(rows[:1]).features
            if "choices" in features:
                features["answer"] = datasets.ClassLabel(names=["A", "B", "C", "D"])
            info = datasets.DatasetInfo(features=features, config_name=config)
            card["dataset_info"].append({"config_name": config, **info._to_yaml_dict()})
            where = [{"split": split, "path": f"{config}/{split}-*"}]
            card["configs"].append({"config_name": config, "data_files": where})
        (root / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
        return root

    return make


def verl(content: str, answer: str, **extra: Any) -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": content, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": "0", **extra},
    }


def test_dapo_repeats_are_read_once(hub: Callable[..., Path]) -> None:
    once = [
        verl(templates.apply("dapo", f"{i} + {i}?"), str(2 * i), index=f"u{i}") for i in range(5)
    ]
    again = [*once, verl(templates.apply("dapo", "0 + 0?"), "0", index="another row")]
    hub("BytedTsinghua-SIA/DAPO-Math-17k", default=again * 300, files=3)
    rows, tally = load({"hub": "BytedTsinghua-SIA/DAPO-Math-17k", "revision": REVISION})
    assert [r["row"] for r in rows] == [0, 1, 2, 3, 4, 5]
    assert tally == {"read": 1800, "identical": 1794}
    assert [r["answer"] for r in rows] == ["0", "2", "4", "6", "8", "0"]
    assert rows[1]["prompt"] == templates.apply("dapo", "1 + 1?") == rows[1]["question"]
    assert rows[1]["source"] == f"BytedTsinghua-SIA/DAPO-Math-17k@{REVISION}:train"


def test_processed_dapo(hub: Callable[..., Path]) -> None:
    def row(question: str) -> dict[str, Any]:
        source = verl(templates.apply("dapo", question), "3")
        return {
            "prompt": question,
            "solution": "3",
            "data_source": "math_dapo",
            "source_prompt": source["prompt"],
            **{key: source[key] for key in ("ability", "reward_model", "extra_info")},
        }

    name = "open-r1/DAPO-Math-17k-Processed"
    hub(name, all=[row("one"), row("一")], en=[row("one")], cn=[row("一")])
    for config, questions in {"all": ["one", "一"], "en": ["one"], "cn": ["一"]}.items():
        rows, _ = load({"hub": name, "revision": REVISION, "config": config})
        assert [(r["question"], r["answer"]) for r in rows] == [(q, "3") for q in questions]
        assert {r["source"] for r in rows} == {f"{name}@{REVISION}/{config}:train"}
    both, _ = load({"hub": name, "revision": REVISION, "config": ["cn", "en"]})
    assert [(r["question"], r["row"]) for r in both] == [("一", 0), ("one", 0)]
    assert len({r["id"] for r in both}) == 2


def test_deepmath_and_its_level_6_file(hub: Callable[..., Path]) -> None:
    row = {
        "question": "Evaluate.",
        "final_answer": "\\frac{1}{2}",
        "difficulty": 4.5,
        "topic": "Calculus",
        **{f"r1_solution_{i}": "long" for i in (1, 2, 3)},
    }
    hub("zwhe99/DeepMath-103K", default=[row, {**row, "question": "B?", "difficulty": 6.0}])
    rows, _ = load({"hub": "zwhe99/DeepMath-103K", "revision": REVISION})
    assert [(r["question"], r["answer"], r["difficulty"]) for r in rows] == [
        ("Evaluate.", "\\frac{1}{2}", 4.5),
        ("B?", "\\frac{1}{2}", 6.0),
    ]
    name = "Keven16/G-OPD-Training-Data"
    root = hub(name, AIME2024=[verl("not this one", "1")])
    (root / "DeepMath-103K").mkdir()
    asked = "Find it.\nPlease reason step by step, and put your final answer within \\boxed{}."
    pq.write_table(
        pa.Table.from_pylist([verl(asked, "7")]),
        root / "DeepMath-103K" / "train_filtered_level6.parquet",
    )
    rows, _ = load({"hub": name, "revision": REVISION})
    assert [(r["question"], r["answer"]) for r in rows] == [(asked, "7")]
    assert templates.unwrap(asked, "boxed")[0].strip() == "Find it."


def test_openthoughts3_keeps_mathematics_and_has_no_ground_truth(hub: Callable[..., Path]) -> None:
    def row(question: str, domain: str, answer: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"difficulty": None, "source": "s", "domain": domain, "conversations": turns}

    rows = [row("q", "math", f"<think>{i}</think>") for i in range(3)]
    hub("open-thoughts/OpenThoughts3-1.2M", default=[row("c", "code", "x"), *rows], files=2)
    found, tally = load({"hub": "open-thoughts/OpenThoughts3-1.2M", "revision": REVISION})
    assert [(r["question"], r["answer"], r["row"]) for r in found] == [
        ("q", "", 1),
        ("q", "", 2),
        ("q", "", 3),
    ]
    assert tally == {"read": 4, "row filter": 1}


def test_openthoughts_114k_takes_solutions_with_one_box(hub: Callable[..., Path]) -> None:
    """The model's own solution stands in where there is none, and nowhere else."""

    def row(
        problem: str, solution: str | None, domain: str = "math", own: str = "s"
    ) -> dict[str, Any]:
        return {
            "problem": problem,
            "deepseek_reasoning": "r",
            "deepseek_solution": own,
            "ground_truth_solution": solution,
            "domain": domain,
            "source": "numina",
            "test_cases": "",
            "starter_code": "",
        }

    metadata = [
        row("one", r"so \boxed{\frac{1}{2}}."),
        row("two", r"\boxed{1} or \boxed{2}"),
        row("none", "so 3"),
        row("code", r"\boxed{1}", "code"),
        row("absent", None, own=r"thus \boxed{5}"),
        row("empty", "", own=r"thus \boxed{6}"),
        row("two of its own", None, own=r"\boxed{7} or \boxed{8}"),
        row("without a box", "so 3", own=r"\boxed{9}"),
    ]
    name = "open-thoughts/OpenThoughts-114k"
    hub(name, default=[{"system": "s", "conversations": []}], metadata=metadata)
    rows, tally = load({"hub": name, "revision": REVISION})
    assert [(r["question"], r["answer"], r["solution"]) for r in rows] == [
        ("one", r"\frac{1}{2}", r"so \boxed{\frac{1}{2}}."),
        ("absent", "5", r"thus \boxed{5}"),
        ("empty", "6", r"thus \boxed{6}"),
    ]
    assert tally == {"read": 8, "row filter": 5}
    assert rows[0]["source"] == f"{name}@{REVISION}/metadata:train"


@pytest.mark.parametrize(
    "name", ["DigitalLearningGmbH/MATH-lighteval", "EleutherAI/hendrycks_math"]
)
def test_math(hub: Callable[..., Path], name: str) -> None:
    configs = [config or "default" for config in layouts.LAYOUTS[name].configs]
    levels = ["Level 5", "Level ?"]
    rows = {
        config: [
            {"problem": f"{config}{i}", "level": level, "type": "T", "solution": r"\boxed{x^{2}}"}
            for i, level in enumerate(levels)
        ]
        for config in configs
    }
    hub(name, **rows)
    found, _ = load({"hub": name, "revision": REVISION})
    assert len(configs) in (1, 7)
    assert [r["question"] for r in found] == [f"{c}{i}" for c in configs for i in (0, 1)]
    assert {(r["answer"], r["difficulty"]) for r in found} == {("x^{2}", 5.0), ("x^{2}", None)}
    assert len({r["id"] for r in found}) == len(found)


def test_boolq_and_mmlu(hub: Callable[..., Path]) -> None:
    hub(
        "google/boolq",
        split="validation",
        default=[
            {"question": "is it so", "answer": True, "passage": "It is {so}."},
            {"question": "is it not", "answer": False, "passage": "It is."},
        ],
    )
    rows, _ = load({"hub": "google/boolq", "revision": REVISION, "split": "validation"})
    assert [(r["question"], r["answer"]) for r in rows] == [
        ("It is {so}.\nQuestion: is it so?", "True"),
        ("It is.\nQuestion: is it not?", "False"),
    ]
    mmlu = {"question": "2+2?", "subject": "s", "choices": ["3", "4", "5", "6"], "answer": 1}
    hub("cais/mmlu", split="test", all=[mmlu], anatomy=[{**mmlu, "answer": 3}])
    for config, letter in ((None, "B"), ("anatomy", "D")):
        source = {"hub": "cais/mmlu", "revision": REVISION, "split": "test", "config": config}
        rows, _ = load(source)
        assert [(r["question"], r["answer"]) for r in rows] == [
            ("2+2?\nA. 3\nB. 4\nC. 5\nD. 6", letter)
        ]


def test_mmlu_pro_and_the_science_of_mixture_of_thoughts(hub: Callable[..., Path]) -> None:
    """Up to ten choices, and the letter as it stands; conversations that a model has answered."""
    row = {"question_id": 70, "question": "2+2?", "answer": "J", "answer_index": 9, "src": "s"}
    options = [str(n) for n in range(-5, 5)]
    hub("TIGER-Lab/MMLU-Pro", split="test", default=[{**row, "options": options}])
    (found,), _ = load({"hub": "TIGER-Lab/MMLU-Pro", "revision": REVISION, "split": "test"})
    assert found["question"].startswith("2+2?\nA. -5\nB. -4\n")
    assert found["question"].endswith("\nJ. 4") and found["answer"] == "J"
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    hub(
        "open-r1/Mixture-of-Thoughts", science=[{"messages": turns, "num_tokens": 2, "source": "s"}]
    )
    source = {"hub": "open-r1/Mixture-of-Thoughts", "revision": REVISION, "config": "science"}
    (found,), _ = load(source)
    assert (found["question"], found["answer"], found["turns"]) == ("Why?", "", None)


def test_a_dataset_that_is_not_known_needs_its_columns_named(hub: Callable[..., Path]) -> None:
    hub("a/b", default=[{"ask": "q", "info": {"truth": 2.0}, "hard": "3"}])
    source = {"hub": "a/b", "revision": REVISION}
    with pytest.raises(UserError, match=r"column 'question' is missing \(it has ask, hard, info\)"):
        load(source)
    named = {"question": "Q: {ask}", "answer": "info.truth", "difficulty": "hard"}
    rows, _ = load({**source, **named})
    assert [(r["question"], r["answer"], r["difficulty"]) for r in rows] == [("Q: q", "2", 3.0)]


def test_a_file_in_the_layout_of_a_known_dataset(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    row = {"problem": "p", "level": "Level 2", "type": "T", "solution": "\\boxed{3}"}
    pq.write_table(pa.Table.from_pylist([row]), path)
    (found,), _ = load({"path": str(path), "layout": "hendrycks/competition_math"})
    assert (found["question"], found["answer"], found["difficulty"]) == ("p", "3", 2.0)


def test_a_hub_object_that_is_not_there(hub: Callable[..., Path]) -> None:
    hub("google/boolq", default=[{"question": "q", "answer": True, "passage": "p"}])
    for source, named in (
        ({"hub": "google/boolqq"}, "google/boolqq@"),
        ({"hub": "google/boolq", "split": "test"}, "Bad split: test"),
        ({"hub": "google/boolq", "config": "other"}, "'other' not found"),
        ({"hub": "google/boolq", "file": "no.parquet"}, "no.parquet"),
    ):
        with pytest.raises(UserError, match="check name, revision") as caught:
            load({"revision": REVISION, **source})
        assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_file_cut_short_is_named_with_the_row(hub: Callable[..., Path]) -> None:
    row = {"question": "q", "answer": True, "passage": "p"}
    root = hub("google/boolq", default=[row] * 100, files=2)
    last = root / "default" / "train-00001-of-00002.parquet"
    last.write_bytes(last.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"google/boolq@.*could not be loaded"):
        load({"hub": "google/boolq", "revision": REVISION})


def test_a_stream_that_broke_goes_on_at_the_file_that_it_had_come_to(
    hub: Callable[..., Path], tmp_path: Path
) -> None:
    """What was read of a hub's dataset is not asked for again: not after a failure, and not by
    another prompt set. One that stops early, or what is damaged on the disk, leaves nothing."""
    root = hub(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        default=[
            {"extra_info": {"question": f"{i % 7}"}, "reward_model": {"ground_truth": "1"},
             "prompt": f"say {i % 7}"} for i in range(30)
        ],
        files=3,
    )  # fmt: skip
    source, cache = {"hub": "BytedTsinghua-SIA/DAPO-Math-17k", "revision": REVISION}, tmp_path / "c"
    expected = load(source)
    assert [row["row"] for row in expected[0]] == [*range(7)]
    assert expected[1] == {"read": 30, "identical": 23}
    files = sorted((root / "default").iterdir())
    whole = [file.read_bytes() for file in files]
    files[2].write_bytes(whole[2][:-20])
    with pytest.raises(UserError, match=r"DAPO-Math-17k@.*: after row 20: it could not be loaded"):
        load(source, cache=cache)
    files[1].write_bytes(b"is not read again")
    files[2].write_bytes(whole[2])
    assert load(source, cache=cache) == expected
    files[2].write_bytes(b"is not read again")
    assert load(source, cache=cache) == expected
    kept = sorted(path for path in cache.rglob("*") if path.is_file())
    assert [path.name for path in kept] == ["0.jsonl.gz", "1.jsonl.gz", "2.jsonl.gz"]
    data = bytearray(kept[1].read_bytes())
    data[len(data) // 2] ^= 1
    kept[1].write_bytes(data)
    with pytest.raises(UserError, match="after row 10"):
        load(source, cache=cache)
    for file, data in zip(files, whole, strict=True):
        file.write_bytes(data)
    rows = loaders.read(source, None, Counter(), (tmp_path / "other", tmp_path))
    assert next(rows) == expected[0][0]
    rows.close()
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]
    # Other columns are other records.
    assert load({**source, "question": "prompt"}, cache=cache)[0][0]["question"] == "say 0"


def test_hub_files_with_different_columns(hub: Callable[..., Path]) -> None:
    root = hub(
        "zwhe99/DeepMath-103K", default=[{"question": "q", "final_answer": "1", "difficulty": 5.0}]
    )
    other = pa.Table.from_pylist([{"question": ["q"], "final_answer": "1", "difficulty": 5.0}])
    pq.write_table(other, root / "default" / "train-x.parquet")
    with pytest.raises(
        UserError, match=r"DeepMath-103K@.*(could not be loaded|the question is a list)"
    ):
        load({"hub": "zwhe99/DeepMath-103K", "revision": REVISION})


def test_a_file_with_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n')
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(load({"path": str(path), "sha256": right})[0]) == 1
    with pytest.raises(UserError, match=rf"t\.jsonl: its sha256 is {right}, not 000"):
        load({"path": str(path), "sha256": "0" * 64})


def test_columns_that_do_not_count_are_not_read(tmp_path: Path) -> None:
    """Invalid UTF-8 in another column is not noticed, in the question it is, with its row."""
    good = pa.array(["a", "b", "c"])
    bad = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")],
    )
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"question": good, "answer": good, "notes": bad}), path)
    assert len(load({"path": str(path)})[0]) == 3
    pq.write_table(pa.table({"question": bad, "answer": good}), path)
    with pytest.raises(UserError, match=r"t\.parquet: row 1: not UTF-8 \(byte 0xff"):
        load({"path": str(path)})


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = {"question": "a", "answer": "1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", jsonl({"question": "a"}), r"t.jsonl: row 0: column 'answer' is missing"),
        ("t.jsonl", jsonl(GOOD, {"question": "b"}), r"row 1: column 'answer' is missing \(it"),
        ("t.jsonl", jsonl(GOOD, {**GOOD, "question": ["b"]}), "row 1: the question is a list, not"),
        ("t.jsonl", jsonl(GOOD, {**GOOD, "answer": ["1"]}), "row 1: the answer is a list, not"),
        ("t.jsonl", jsonl({**GOOD, "answer": {"a": 1}}), "row 0: the answer is a dict, not text"),
        ("t.jsonl", jsonl({**GOOD, "answer": float("nan")}), "the answer is nan, not text"),
        ("t.jsonl", jsonl({**GOOD, "answer": float("inf")}), "the answer is inf, not text"),
        ("t.jsonl", jsonl(GOOD)[:-3], r"t\.jsonl:1: not JSON"),
        ("t.jsonl", b"[" * 100_000, r"t\.jsonl:1: not JSON"),
        ("t.jsonl", jsonl(GOOD, [1]), r"t\.jsonl:2: not a JSON object"),
        ("t.jsonl", jsonl(GOOD) + b'{"question": "\xe9"}', r"t\.jsonl:2: not UTF-8 \(byte 0xe9"),
        ("t.jsonl", b'{"question": "\\ud83d", "answer": "1"}', "row 0: .* half of a surrogate"),
        ("t.jsonl", jsonl({**GOOD, "level": "hard"}), "row 0: difficulty 'hard' is no number"),
        ("t.jsonl", b"", r"t\.jsonl: it has no rows"),
        ("t.csv", b"question,answer\na,1\nb,2,3\n", r"t\.csv:3: 3 cells under 2 columns"),
        ("t.csv", b"question,answer\na\n", r"t\.csv:2: 1 cells under 2 columns"),
        ("t.csv", b'question,answer\n"a,1\nb,2\n', r"t\.csv:3: not csv \(unexpected end"),
        ("t.csv", b"question,question\na,b\n", r"two columns are called 'question'"),
        ("t.csv", b"question,answer\na,\xff\n", r"t\.csv:2: not UTF-8"),
        ("t.csv", b"question,answer\n", r"t\.csv: it has no rows"),
        ("t.csv", b"q,answer\na,1\n", r"column 'question' is missing \(it has answer, q\)"),
        ("t.parquet", b"PAR1 and no more", r"t\.parquet: not a whole parquet file"),
        ("t.txt", b"a", r"unknown kind of file '\.txt'; use \.parquet, \.jsonl, \.json or \.csv"),
        ("t.jsonl", b"\n \n", r"t\.jsonl: it has no rows"),
        ("t.jsonl", b"\n" + jsonl(GOOD) + b"\n{", r"t\.jsonl:4: not JSON"),
        ("t.json", b"[" * 100_000, r"t\.json: not JSON"),
        ("t.json", jsonl(GOOD, GOOD), r"t\.json: not JSON \(Extra .*; write one array of objects"),
        ("t.json", jsonl({"data": [GOOD]}), r"t\.json: a dict, not an array; write one array"),
        ("t.json", b'[{"question": "a", "answer": "1"}, 3]', r"t\.json: item 1: not a JSON object"),
        ("t.json", b"[]", r"t\.json: it has no rows"),
        ("t.json", b'[{"question": "\xff"}]', r"t\.json: not UTF-8 \(byte 0xff at 15\)"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load({"path": str(tmp_path / name)})
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "x"]), values)
    ),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "gpt", "system"]), "content": JSON}
    ),
    max_size=3,
)


@given(st.sampled_from(sorted(layouts.LAYOUTS)), st.data())
def test_any_row_is_read_or_refused(name: str, data: st.DataObject) -> None:
    layout = layouts.LAYOUTS[name]
    value = st.text() | st.integers(0, 3) | JSON | MESSAGES
    row: dict[str, Any] = {column: data.draw(value) for column in layout.columns}
    row |= layout.where
    for column in layout.question[0], layout.answer or "":
        outer, dot, inner = column.partition(".")
        if dot:
            row[outer] = {inner: data.draw(value)}
    try:
        found = layouts.record(layout, row, "here: row 0")
    except UserError as bad:
        assert str(bad).startswith("here: row 0: ") and "\n" not in str(bad)
        return
    if found is not None:
        assert found.pop("id") is None
        assert isinstance(found.pop("difficulty"), float | None)
        assert found.pop("solution") != ""
        turns = found.pop("turns")
        for text in [*found.values(), *(turn["content"] for turn in turns or [])]:
            assert isinstance(text, str) and text.encode() is not None


def test_a_parquet_file_damaged_anywhere_is_one_line(tmp_path: Path) -> None:
    """Cut off at the end, and with bytes changed in the middle: an error or unharmed texts."""
    path = tmp_path / "t.parquet"
    rows = [{"question": f"question {i} {i * 7919}", "answer": str(i)} for i in range(5000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    whole = path.read_bytes()
    rng, errors = random.Random(0), 0
    for cut in (1, 8, 100, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:-cut])
        with pytest.raises(UserError, match=r"t\.parquet: not a whole parquet file"):
            load({"path": str(path)})
    for _ in range(30):
        damaged = bytearray(whole)
        at = rng.randrange(len(whole))
        damaged[at : at + 64] = rng.randbytes(64)
        path.write_bytes(bytes(damaged[: len(whole)]))
        try:
            load({"path": str(path)})
        except UserError as bad:
            errors += "\n" not in str(bad)
    assert errors > 10


def test_json_arrays_and_blank_lines_are_the_rows_that_lines_are(tmp_path: Path) -> None:
    rows = [{"question": q, "answer": a} for q, a in (("a", 1), ("b\u2028\n", 2.0), ("c", "3"))]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    texts = {
        "plain.jsonl": "\n".join(lines),
        "blank.jsonl": "\n\n".join(["", *lines, "  \r", ""]),
        "array.json": "\ufeff" + json.dumps(rows, indent=2, ensure_ascii=False),
    }
    read = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        found, tally = load({"path": str(tmp_path / name)})
        assert tally == {"read": 3}
        read.append([(row["question"], row["answer"], row["row"]) for row in found])
    assert read == [[("a", "1", 0), ("b\u2028\n", "2", 1), ("c", "3", 2)]] * 3


def test_numbers_are_answers(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(jsonl(*({"question": "q", "answer": n} for n in (2, 142.0, -0.5, 1e3, 0.1))))
    rows, _ = load({"path": str(path)})
    assert [r["answer"] for r in rows] == ["2", "142", "-0.5", "1000", "0.1"]
    path.write_bytes(jsonl({"question": "q", "answer": "2.0"}))
    assert load({"path": str(path)})[0][0]["answer"] == "2.0"  # text stays as it is


def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerows([["question", "answer"], ['a, "b"\nc', "1"], ["x" * 200_000, "2"]])
    rows, _ = load({"path": str(path)})
    assert [r["question"] for r in rows] == ['a, "b"\nc', "x" * 200_000]


def test_memory_is_bounded_by_what_is_kept(tmp_path: Path) -> None:
    """150,000 rows of 2 KB, each of a thousand 150 times: far less than they take is held."""
    path = tmp_path / "t.parquet"
    batch = pa.Table.from_pylist(
        [verl(f"{i} " + "x" * 2000, "1", index=str(i)) for i in range(1000)]
    )
    with pq.ParquetWriter(path, batch.schema) as file:
        for _ in range(150):
            file.write_table(batch)
    script = f"""
from collections import Counter
from pathlib import Path
from opd.data import loaders
import pyarrow.parquet
def peak():  # VmHWM, kilobytes: what getrusage says begins with what the parent process held
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
tally = Counter()
source = {{"path": {str(path)!r}, "layout": "BytedTsinghua-SIA/DAPO-Math-17k"}}
rows = list(loaders.read(source, None, tally))
print(len(rows), tally["read"], (peak() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, read, megabytes = map(int, done.stdout.split())
    assert (kept, read) == (1000, 150_000)
    assert 0 < megabytes < 150  # the texts alone take 300


def test_the_right_choice_gets_a_letter_among_the_wrong_ones() -> None:
    layout = layouts.LAYOUTS["Idavidrein/gpqa"]
    wrong = ["Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
    letters = set()
    for n in range(40):
        row = {"Question": f"Which is {n}?", "Correct Answer": str(n)}
        row |= {column: f"no {column[-1]}" for column in wrong}
        found = layouts.record(layout, row, "here")
        assert found is not None
        asked, *choices = found["question"].split("\n")
        assert asked == f"Which is {n}?"
        assert f"{found['answer']}. {n}" in choices and len(choices) == 4
        assert found == layouts.record(layout, dict(reversed(row.items())), "here")
        letters.add(found["answer"])
    assert letters == set("ABCD")
    with pytest.raises(UserError, match=r"here: column 'Incorrect Answer 2' is missing"):
        layouts.record(layout, {k: v for k, v in row.items() if k != wrong[1]}, "here")


def test_the_one_item_of_a_list_is_the_answer() -> None:
    layout = layouts.LAYOUTS["math-ai/olympiadbench"]
    found = layouts.record(layout, {"question": "q", "final_answer": ["2"]}, "here")
    assert found is not None and found["answer"] == "2"
    with pytest.raises(UserError, match="the answer is a list"):
        layouts.record(layout, {"question": "q", "final_answer": ["2", "3"]}, "here")

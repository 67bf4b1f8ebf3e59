"""What stands in for the papers' models and data has what the originals have."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from opd.core.errors import UserError
from opd.data import loaders
from opd.data.layouts import LAYOUTS, choose
from opd.plan import hub_lock
from opd.recipes import resolve
from opd.recipes.models import Hub
from opd.rehearsal import stand_ins

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
CONFIGS = ("paper.yaml", "many-faces.yaml", "unmasking.yaml")
HUB_OBJECTS = [
    recipe
    for name in CONFIGS
    for recipe in hub_lock.hub_objects(resolve.read([ROOT / "config" / name])).values()
]


def test_every_model_of_the_papers_has_a_stand_in() -> None:
    for recipe in HUB_OBJECTS:
        if isinstance(recipe, Hub):
            assert stand_ins.family(recipe.id)["type"] in ("qwen2", "qwen3", "qwen3_moe", "mpnet")


@pytest.mark.parametrize(
    ("name", "tied", "ends"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", False, ["<｜end▁of▁sentence｜>"]),
        ("Qwen/Qwen3-8B", False, ["<|im_end|>", "<|endoftext|>"]),
        ("Qwen/Qwen3-1.7B-Base", True, ["<|endoftext|>"]),
        ("Qwen/Qwen3-1.7B", True, ["<|im_end|>", "<|endoftext|>"]),
    ],
)
def test_heads_and_ends_are_those_of_the_originals(name: str, tied: bool, ends: list[str]) -> None:
    """As their config.json and generation_config.json on the hub have them."""
    family = stand_ins.family(name)
    assert (family["tied"], family["ends"]) == (tied, ends)


def test_a_model_that_nothing_is_known_of_is_named() -> None:
    with pytest.raises(UserError, match="own/strange: nothing is known that could stand in"):
        stand_ins.family("own/strange")
    with pytest.raises(UserError, match="own/strange: its columns are not known"):
        stand_ins.dataset("own/strange", {}, Path("nowhere"))


def test_rows_are_read_as_those_of_the_real_dataset(tmp_path: Path) -> None:
    """Of every dataset of the papers, through the loader and its layout."""
    read = 0
    for number, recipe in enumerate(HUB_OBJECTS):
        if isinstance(recipe, Hub):
            continue
        source = recipe.model_dump(exclude_none=True)
        folder = tmp_path / str(number)
        stand_ins.dataset(recipe.id, source, folder)
        (file,) = folder.rglob("*.parquet")
        known = {"layout": recipe.id} if recipe.id in LAYOUTS else {}
        columns = {k: source[k] for k in ("question", "answer") if k in source}
        tally: Counter[str] = Counter()
        rows = list(loaders.read({"path": str(file), **known, **columns}, None, tally))
        assert len(rows) == stand_ins.ROWS and not tally["row filter"], recipe.id
        # Of a dataset on the hub no other columns are asked for than these.
        layout = choose({**source, "hub": recipe.id})
        assert {*layout.needed, *layout.fallback.values()} <= {*pq.read_schema(file).names}
        assert all(row["question"] for row in rows)
        if recipe.id != "open-thoughts/OpenThoughts3-1.2M":
            assert all(row["answer"] for row in rows), recipe.id
        read += 1
    assert read > 10


def test_questions_repeat_where_a_dataset_repeats_them(tmp_path: Path) -> None:
    name = "open-thoughts/OpenThoughts3-1.2M"
    stand_ins.dataset(name, {}, tmp_path)
    (file,) = tmp_path.rglob("*.parquet")
    rows = list(loaders.read({"path": str(file), "layout": name}, None, Counter()))
    assert {*Counter(row["question"] for row in rows).values()} == {stand_ins.REPEATS}


def test_splits_and_configs_of_one_dataset_lie_beside_each_other(tmp_path: Path) -> None:
    for config, split in (("a", "train"), ("b", "test")):
        source = {"config": config, "split": split, "question": "q", "answer": "a"}
        stand_ins.dataset("own/data", source, tmp_path)
    about = json.loads((tmp_path / "README.md").read_text().strip("-\n"))
    assert [c["config_name"] for c in about["configs"]] == ["a", "b"]
    assert [c["data_files"][0]["split"] for c in about["configs"]] == ["train", "test"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_of_a_file_of_ones_own_the_first_rows_stay(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": f"q{n}", "answer": str(n)} for n in range(100)]
    source = tmp_path / f"own{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif suffix == ".json":
        source.write_text(json.dumps(rows))
    elif suffix == ".csv":
        source.write_text("question,answer\n" + "".join(f"q{n},{n}\n" for n in range(100)))
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = tmp_path / "made" / f"own{suffix}"
    stand_ins.first_rows(source, made)
    kept = list(loaders.read({"path": str(made)}, None, Counter()))
    assert [row["question"] for row in kept] == [f"q{n}" for n in range(stand_ins.ROWS)]


def test_rows_of_csv_may_have_several_lines(tmp_path: Path) -> None:
    source, made = tmp_path / "own.csv", tmp_path / "made.csv"
    cells = "".join(f'"is it\n{n}, or ""more""?",{n}\n' for n in range(100))
    source.write_text(f"question,answer\n{cells}", encoding="utf-8-sig")
    stand_ins.first_rows(source, made)
    rows = [*loaders.read_file(source, {})]
    assert [*loaders.read_file(made, {})] == rows[: stand_ins.ROWS]


def test_a_file_without_rows_stays_one_and_what_is_no_table_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    empty = tmp_path / "empty.parquet"
    schema = pa.schema({"question": pa.string()})
    pq.write_table(schema.empty_table(), empty)
    stand_ins.first_rows(empty, tmp_path / "made.parquet")
    made = pq.read_table(tmp_path / "made.parquet")
    assert (made.schema, made.num_rows) == (schema, 0)
    for name, text in (("empty.jsonl", ""), ("empty.json", "[]"), ("empty.csv", "")):
        (tmp_path / name).write_text(text)
        stand_ins.first_rows(tmp_path / name, tmp_path / f"made-{name}")
        assert not [*loaders.read_file(tmp_path / f"made-{name}", {})]
    (tmp_path / "own.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match="a dict, not an array"):
        stand_ins.first_rows(tmp_path / "own.json", tmp_path / "made.json")
    (tmp_path / "own.parquet").write_text("no table")
    with pytest.raises(UserError, match="not a whole parquet file"):
        stand_ins.first_rows(tmp_path / "own.parquet", tmp_path / "other.parquet")
    assert not (tmp_path / "other.parquet").exists() and not (tmp_path / "made.json").exists()

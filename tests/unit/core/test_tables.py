"""The declared schemas: what goes in comes out, and what does not fit is named."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import PROMPTS, SFT_PAIRS
from opd.models.schemas import GENERATIONS

PROMPT = {
    "id": "a",
    "question": "3+4=",
    "answer": "7",
    "prompt": "3+4=",
    "source": "world",
    "row": 0,
    "language": "en",
    "difficulty": None,
    "text_hash": "",
    "solution": None,
}


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    rows = [PROMPT, {**PROMPT, "id": "b", "row": 1, "difficulty": 3.0, "solution": "so"}]
    tables.write(tmp_path / "prompts.parquet", rows, PROMPTS)
    back = tables.read(tmp_path / "prompts.parquet", PROMPTS)
    # A sparse column is in no file in which it would be empty, and reads as empty from there.
    assert back.to_pylist() == [{**row, "turns": None} for row in rows]
    assert "turns" not in pq.read_schema(tmp_path / "prompts.parquet").names
    spoken = [{**row, "turns": [{"role": "system", "content": row["id"]}]} for row in rows]
    for told in (spoken, [rows[0], spoken[1]]):
        tables.write(tmp_path / "prompts.parquet", told, PROMPTS)
        back = tables.read(tmp_path / "prompts.parquet", PROMPTS)
        assert back.to_pylist() == [{"turns": None, **row} for row in told]
    assert back.schema.names == [*PROMPT, "turns"]


def test_columns_are_written_in_the_order_of_the_schema(tmp_path: Path) -> None:
    backwards = dict(reversed(PROMPT.items()))
    for name, row in (("a", PROMPT), ("b", backwards)):
        tables.write(tmp_path / name, [row], PROMPTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_token_ids_survive(tmp_path: Path) -> None:
    row = {
        "prompt_id": "a",
        "sample": 0,
        "attempt": 0,
        "prompt": "p",
        "response": "r",
        "token_ids": [5, 2],
        "finish": "stop",
        "rejected": None,
    }
    tables.write(tmp_path / "g", [row], GENERATIONS)
    assert tables.read(tmp_path / "g", GENERATIONS)["token_ids"].to_pylist() == [[5, 2]]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"answer": None}, "'answer'"), ({"row": "first"}, "first"), ({"id": None}, "'id'")],
)
def test_a_row_that_does_not_fit_leaves_no_file(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError) as caught:
        tables.write(tmp_path / "p", [PROMPT, {**PROMPT, **change}], PROMPTS)
    assert named in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_cell_is_named_by_its_row(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "prompt": ["p", None], "response": ["r", "r"]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=r"pairs\.parquet: row 1: column 'prompt' is empty"):
        tables.read(tmp_path / "pairs.parquet", SFT_PAIRS)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["t"]}), tmp_path / "p")
    with pytest.raises(UserError, match=r"column 'prompt' is missing \(it has id, text\)"):
        tables.read(tmp_path / "p", SFT_PAIRS)


def test_what_is_no_parquet_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("id,prompt\n")
    with pytest.raises(UserError, match="not a readable parquet file"):
        tables.read(tmp_path / "p", SFT_PAIRS)
    with pytest.raises(UserError, match="no such file"):
        tables.read(tmp_path / "missing", SFT_PAIRS)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ('=HYPERLINK("http://x","y")', '"\'=HYPERLINK(""http://x"",""y"")"'),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", '"\'\n=1"'),
        ("a\r=1", '"a\n=1"'),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        *((number, number) for number in ("-2", "+0.5", "-1.5e-07", "a=1", "x", "")),
        (-2, "-2"),
        (None, ""),
    ],
)
def test_no_cell_is_a_formula(tmp_path: Path, cell: Any, written: str) -> None:
    """Numbers stay numbers: only text that a spreadsheet would run is marked as text."""
    tables.write_csv(tmp_path / "t.csv", [["x", cell], ["y", 1]])
    assert (tmp_path / "t.csv").read_bytes().decode() == f"x,{written}\ny,1\n"


def test_every_csv_is_written_there() -> None:
    sources = Path(tables.__file__).parents[1].rglob("*.py")
    writers = [
        path.name for path in sources if re.search(r"csv\.(writer|DictWriter)", path.read_text())
    ]
    assert sorted(writers) == ["tables.py"]

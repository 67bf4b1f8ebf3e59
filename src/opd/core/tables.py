"""Checked reading and writing of the tables that pass between stages, parquet of a declared schema,
and writing of what people read.

The same rows give the same bytes: fixed compression, no pandas metadata, caller's row order.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opd.core.errors import UserError
from opd.core.files import replacing

TEXT, INTEGER, NUMBER, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_SPARSE = {b"sparse": b"yes"}
# How a cell begins that a spreadsheet runs as a formula.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")


def sparse(name: str, kind: pa.DataType) -> pa.Field:
    """A column that a file lacks where it would be empty in every row, and that reads as empty from
    such a file: most tables are then the same bytes as without it."""
    return pa.field(name, kind, metadata=_SPARSE)


def schema(*optional: str, **columns: pa.DataType) -> pa.Schema:
    """The schema of a table with these columns in their order; only the ``optional`` ones may be
    empty."""
    return pa.schema(
        [pa.field(name, kind, nullable=name in optional) for name, kind in columns.items()]
    )


def write(path: Path, rows: pa.Table | Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows to ``path`` as parquet of exactly this schema.

    Raises ``UserError`` naming the column if a value is missing or of the wrong type, and where the
    disk does not take the file; nothing is left at ``path`` then.
    """
    try:
        table = (
            rows.select(schema.names).cast(schema)
            if isinstance(rows, pa.Table)
            else pa.Table.from_pylist([dict(r) for r in rows], schema=schema)
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError, ValueError) as error:
        raise UserError(
            f"rows do not fit the schema ({error})", str(path), "mend the stage's input"
        ) from error
    _require_filled(table, schema, path)
    empty = [name for name in _sparse(schema) if table[name].null_count == len(table)]
    table = table.drop_columns(empty)
    with writing(path) as temporary:
        pq.write_table(
            table, temporary, compression="zstd", row_group_size=65536, **_encoding(table)
        )


def _encoding(table: pa.Table) -> dict[str, Any]:
    """Numbers are written byte by byte, which takes a quarter less, all else by dictionary."""
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [name for name in table.schema.names if name not in numbers]
    return {"use_dictionary": others, "use_byte_stream_split": numbers}


def write_json(path: Path, value: Any) -> None:
    """Write a report, as ``write_text`` does: indented, keys sorted, no NaN."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a table for spreadsheets, as ``write_text`` does. Text that such a program would run as
    a formula gets an apostrophe in front, which marks it as text there; numbers stay."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([*map(_inert, row)] for row in rows)
    write_text(path, lines.getvalue())


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    # The writer leaves a bare carriage return unquoted: a new line, and maybe a formula in it.
    cell = re.sub("\r\n?", "\n", cell)
    if not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all. Raises ``UserError`` where the disk does not take
    it."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file under; it becomes ``path`` at the end. Raises
    ``UserError`` where the disk does not take it; nothing is left then."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(
            f"it cannot be written ({error.strerror or error})", str(path), "free space there"
        ) from error


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a parquet table and hold it to ``schema``.

    Raises ``UserError`` if the file is missing, is no parquet, lacks a column, or holds nulls where
    the schema forbids them (the first such row is named).
    """
    if not path.is_file():
        raise UserError("no such file", str(path), "run the stage that makes it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"not a readable parquet file ({error})", str(path), "make or fetch it again"
        ) from error
    absent = [name for name in schema.names if name not in table.column_names]
    if missing := [name for name in absent if name not in _sparse(schema)]:
        raise UserError(
            f"column '{missing[0]}' is missing (it has {', '.join(table.column_names)})",
            str(path),
            f"expected the columns {', '.join(schema.names)}",
        )
    for name in absent:
        table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
    _require_filled(table, schema, path)
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, ValueError) as error:
        raise UserError(
            f"a column has the wrong type ({error})", str(path), f"expected {schema}"
        ) from error


def _sparse(schema: pa.Schema) -> set[str]:
    return {field.name for field in schema if field.metadata == _SPARSE}


def _require_filled(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    for field in schema:
        column = table.column(field.name)
        if column.null_count and not field.nullable:
            row = column.is_null().to_pylist().index(True)
            raise UserError(f"column '{field.name}' is empty", f"{path}: row {row}", "fill it in")

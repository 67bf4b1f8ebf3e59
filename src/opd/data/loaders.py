"""Reading prompts from files and from the hub, a chunk at a time."""

import csv
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from opd.core.code import module_digest
from opd.core.errors import UserError
from opd.core.files import digest, file_digest, parse_json
from opd.data import layouts

CHUNK = 1024  # rows
Row = dict[str, Any]
# Of a row as it is read: a digest of it where whole rows may come again, and the prompt in it, None
# where there is none or the row has come before.
Record = tuple[str, Row | None]
# Rows of one file of a source, given the number of the first of them.
File = Callable[[int], Iterator[Row]]


def read(
    source: Mapping[str, Any],
    path: Path | None,
    tally: Counter[str],
    cache: tuple[Path, Path] | None = None,
) -> Iterator[Row]:
    """The prompts of a file or a hub dataset: rows with id, question, prompt, answer (texts as
    they stand there), source, row (its number there), difficulty and solution.

    source: path or hub, and then layout, question, answer, difficulty, row_id, solution
    (``opd.data.layouts``); sha256 of a file; revision, config (one or several), file, split of a
    hub dataset. ``path`` is where the file lies, if not where ``source`` says. ``tally`` counts the
    rows that were read, those that the layout left out (``row filter``) and whole rows that came
    again (``identical``). ``cache``: what is needed of each file of a hub dataset is kept in the
    first folder once its end is reached, and not asked for again; it is written in the second.
    Raises ``UserError`` for whatever cannot be read, with file and row.
    """
    ids: dict[str, str] = {}
    for name, files in _parts(source, path):
        seen: set[str] = set()
        number = -1
        for number, (key, prompt) in enumerate(_records(source, name, files, seen, cache)):
            where = f"{name}: row {number}"
            tally["read"] += 1
            if key in seen:
                tally["identical"] += 1
                continue
            if key:
                seen.add(key)
            if prompt is None:
                tally["row filter"] += 1
                continue
            if prompt["id"] is None:
                prompt["id"] = hashlib.sha1(f"{name}\0{number}".encode()).hexdigest()[:16]
            elif ids.setdefault(prompt["id"], where) != where:
                raise UserError(
                    f"its id '{prompt['id']}' is that of {ids[prompt['id']]}, too",
                    where,
                    "name a column with an id for each row, or none",
                )
            yield {**prompt, "source": name, "row": number}
        if number < 0:
            raise UserError("it has no rows", name, "give a file with prompts")


def _records(
    source: Mapping[str, Any],
    name: str,
    files: Iterable[File],
    seen: Collection[str],
    cache: tuple[Path, Path] | None,
) -> Iterator[Record]:
    """The records of a part of a source, of the hub through the ``cache``; ``seen`` are the digests
    of rows that have come before."""
    code = module_digest(__name__)
    first = 0
    for index, rows in enumerate(files):
        records = _of_file(source, name, rows(first), first, seen)
        if cache and source.get("hub"):
            kept, work = cache
            file = kept / "streams" / digest([source, name, code]) / f"{index}.jsonl.gz"
            records = _kept(file, records, work)
        for record in records:
            yield record
            first += 1


def _of_file(
    source: Mapping[str, Any], name: str, rows: Iterable[Row], first: int, seen: Collection[str]
) -> Iterator[Record]:
    layout: layouts.Layout | None = None
    for number, row in enumerate(rows, first):
        layout = layout or layouts.choose(source, row)
        key = hashlib.sha256(repr(row).encode()).hexdigest()[:32] if layout.once else ""
        new = key not in seen
        yield key, layouts.record(layout, row, f"{name}: row {number}") if new else None


def _kept(file: Path, records: Iterable[Record], work: Path) -> Iterator[Record]:
    """Records, from a file if they have been written to it, else through one in ``work``. A damaged
    file counts as none."""
    try:
        with gzip.open(file) as stored:
            while stored.read(1 << 20):  # to its checksum
                pass
    except (OSError, EOFError, zlib.error):
        with gzip.open(work / file.name, "wt", compresslevel=1, encoding="utf-8") as out:
            for record in records:
                out.write(f"{json.dumps(record)}\n")
                yield record
        file.parent.mkdir(parents=True, exist_ok=True)
        (work / file.name).replace(file)
        return
    with gzip.open(file, "rt", encoding="utf-8") as stored:
        yield from (tuple(json.loads(line)) for line in stored)


def read_file(path: Path, source: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of a .parquet, .jsonl, .json or .csv file; of a parquet file only the columns that
    count."""
    match path.suffix:
        case ".parquet":
            return _parquet(path, source)
        case ".jsonl":
            return json_lines(path)
        case ".json":
            return _json(path)
        case ".csv":
            return _csv(path)
    remedy = "use .parquet, .jsonl, .json or .csv"
    raise UserError(f"unknown kind of file '{path.suffix}'", str(path), remedy)


def _parts(source: Mapping[str, Any], path: Path | None) -> Iterator[tuple[str, Iterable[File]]]:
    """(name for messages and ids, files) of each part of a source."""
    if source.get("path"):
        path = path or Path(source["path"])
        if not path.is_file():
            raise UserError(f"no such file: {path}", "source.path", "mend the path or OPD_DATA_DIR")
        expected = source.get("sha256")
        if expected and (sha256 := file_digest(path)) != expected:
            remedy = "fetch it again, or mend sha256"
            raise UserError(f"its sha256 is {sha256}, not {expected}", str(path), remedy)
        yield source["path"], [lambda _: read_file(path, source)]
        return
    revision = source["revision"]
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"revision '{revision}' is not locked", "source.revision", "give all 40 hex digits"
        )
    layout = layouts.choose(source)
    configs = source.get("config") or layout.configs
    file = source.get("file") or layout.file
    for config in [configs] if isinstance(configs, str) else configs:
        inner = "".join(f"/{part}" for part in (config, file) if part)
        name = f"{source['hub']}@{revision}{inner}:{source.get('split', 'train')}"
        yield name, _hub(source, config, file, name)


def _hub(
    source: Mapping[str, Any], config: str | None, file: str | None, name: str
) -> Iterator[File]:
    """The files of one configuration, streamed: of a known dataset no more than the columns
    needed."""
    import datasets

    options: dict[str, Any] = {"data_files": file} if file else {}
    if source["hub"] in layouts.LAYOUTS:
        options |= {"columns": list(layouts.choose(source).columns), "batch_size": CHUNK}
    with _loading(name):
        data = datasets.load_dataset(
            source["hub"],
            config,
            split=source.get("split", "train"),
            revision=source["revision"],
            streaming=True,
            **options,
        )
    for index in range(data.num_shards):
        yield partial(_shard, data.shard(data.num_shards, index), name)


def _shard(data: Any, name: str, first: int) -> Iterator[Row]:
    """Rows of one file of a dataset, whose first is row ``first``."""
    with _loading(f"{name}: after row {first}" if first else name):
        for table in data.with_format("arrow").iter(batch_size=CHUNK):
            yield from _rows(table, name, first)
            first += table.num_rows


@contextmanager
def _loading(where: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"it could not be loaded ({type(error).__name__}: {error})",
            where,
            "check name, revision, config, file and split, and that the hub can be reached",
        ) from error


def _parquet(path: Path, source: Mapping[str, Any]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            layout = layouts.choose(source, names)
            layouts.check(layout, names, source["path"])
            columns = [name for name in names if name in layout.columns]
            for batch in file.iter_batches(CHUNK, columns=columns):
                yield from _rows(batch, source["path"], first)
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise not_parquet(path, first, error) from error


def not_parquet(path: Path, row: int, error: Exception) -> UserError:
    """What to raise where a parquet file cannot be read from a row on."""
    reason = f"not a whole parquet file, at row {row} or later ({error})"
    return UserError(reason, str(path), "fetch it again")


def _rows(batch: Any, name: str, first: int) -> Iterator[Row]:
    """Rows of an Arrow table or record batch, whose first is row ``first`` of the source."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            with _utf8(f"{name}: row {first + row}"):
                batch.slice(row, 1).to_pylist()
        raise


def _json(path: Path) -> Iterator[Row]:
    remedy = "write one array of objects; with an object a line it is a .jsonl"
    with _utf8(str(path)):
        text = path.read_bytes().decode("utf-8-sig")
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise UserError(f"not JSON ({error})", str(path), remedy) from error
    if not isinstance(rows, list):
        raise UserError(f"a {type(rows).__name__}, not an array", str(path), remedy)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError("not a JSON object", f"{path}: item {number}", "mend the file")
        yield row


def json_lines(path: Path) -> Iterator[Row]:
    """Rows of a file with a JSON object a line; blank lines are none. Raises ``UserError`` for any
    other line."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"not JSON ({error})", f"{path}:{number}", "mend the line") from error
        if not isinstance(row, dict):
            raise UserError("not a JSON object", f"{path}:{number}", "mend the line")
        yield row


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, [])
        for column in header:
            if header.count(column) > 1:
                raise UserError(f"two columns are called '{column}'", str(path), "rename one")
        for cells in reader:
            if len(cells) != len(header):
                raise UserError(
                    f"{len(cells)} cells under {len(header)} columns",
                    f"{path}:{reader.line_num}",
                    "mend the line; cells with commas, quotes or line breaks go in quotes",
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise UserError(f"not csv ({error})", where, "mend the line") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, with or without a byte order mark."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            with _utf8(f"{path}:{number}"):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            yield text


@contextmanager
def _utf8(where: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        wrong = f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
        raise UserError(wrong, where, "convert the file to UTF-8") from error

"""What files that lie on this machine say of sizes: weights, configurations, rows of data. Nothing
where a file is missing or not readable as what it seems: the stage that reads it says so."""

import math
from functools import cache
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import parse_json, read_json
from opd.data import loaders


@cache
def config(folder: str) -> dict[str, Any]:
    """config.json of a checkpoint."""
    try:
        settings = read_json(Path(folder, "config.json")) if folder else {}
    except UserError:
        return {}
    return settings if isinstance(settings, dict) else {}


@cache
def parameters(folder: str) -> float:
    """Parameters of a checkpoint by the headers of its safetensors files; NaN without any."""
    count = 0
    for file in Path(folder).rglob("*.safetensors") if folder else ():
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = opened.read(min(size, file.stat().st_size))
        try:
            tensors = parse_json(header)
            count += sum(math.prod(t["shape"]) for name, t in tensors.items() if name[:2] != "__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return math.nan
    return float(count or math.nan)


@cache
def rows(file: str) -> float:
    """Rows of a file of data; NaN where it cannot be read."""
    path = Path(file)
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return float(pyarrow.parquet.read_metadata(path).num_rows)
        if path.suffix == ".jsonl":  # without parsing what may be large
            with path.open("rb") as lines:
                return float(sum(1 for line in lines if line.strip()))
        return float(sum(1 for _ in loaders.read_file(path, {})))
    except (UserError, OSError, ValueError):
        return math.nan

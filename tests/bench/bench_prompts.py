"""Time and memory of the stage ``prompts``, each case in a process of its own.

The real files need OPD_DATA_DIR. The large cases are made here in the hub's layouts, on the disk,
and read through ``datasets`` as the hub's files would be: DAPO as the hub has it (each row of the
real file a hundred times), and OpenThoughts3's mathematics (850,000 rows, 53,125 questions asked
sixteen times, each with a response).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import describe, table

from opd.data import prompts

DAPO, THOUGHTS = "BytedTsinghua-SIA/DAPO-Math-17k", "open-thoughts/OpenThoughts3-1.2M"
REVISION = "0" * 40
CASES: dict[str, dict[str, Any]] = {
    "DAPO, the released file": {"source": {"path": "dapo-math-17k.parquet"}, "strip": ["dapo"]},
    "DeepMath, the released file": {"source": {"path": "deepmath-deduped.parquet"}},
    "DAPO as on the hub": {"source": {"hub": DAPO, "revision": REVISION}, "strip": ["dapo"]},
    "OpenThoughts3, rows drawn": {
        "source": {"hub": THOUGHTS, "revision": REVISION},
        "sample": {"n": 200_000, "seed": 0},
    },
    "OpenThoughts3, distinct questions": {
        "source": {"hub": THOUGHTS, "revision": REVISION},
        "distinct": "question",
    },
}


def make(name: str, folder: Path, scale: float, response_chars: int) -> None:
    """A dataset in the hub's layout, in files of 20,000 rows or so."""
    data = folder / name / "data"
    data.mkdir(parents=True)
    if name == DAPO:
        real = pq.read_table(Path(os.environ["OPD_DATA_DIR"], "dapo-math-17k.parquet"))
        for i in range(round(100 * scale)):
            pq.write_table(real, data / f"train-{i:05d}.parquet")
        return
    for i in range(round(43 * scale)):
        rows = []
        for j in range(i * 20_000, min((i + 1) * 20_000, round(850_000 * scale))):
            asked = f"Question {j // 16}. " + "What follows from it? " * 15
            turns = [
                {"from": "human", "value": asked},
                {"from": "gpt", "value": f"{j} " + "so " * (response_chars // 3)},
            ]
            rows.append(
                {"difficulty": None, "source": "s", "domain": "math", "conversations": turns}
            )
        schema = {"difficulty": pa.int64(), "source": pa.string(), "domain": pa.string()}
        turn = pa.struct({"from": pa.string(), "value": pa.string()})
        made = pa.Table.from_pylist(rows, pa.schema({**schema, "conversations": pa.list_(turn)}))
        pq.write_table(made, data / f"train-{i:05d}.parquet")


def run(case: str, folder: Path, scale: float) -> None:
    """One case in this process; prints its numbers as JSON."""
    import datasets

    real = datasets.load_dataset

    def load_dataset(name: str, config: str | None, *, revision: str, **options: Any) -> Any:
        return real(str(folder / name), config, **options)

    datasets.load_dataset = load_dataset
    cfg = CASES[case]
    if "sample" in cfg:
        cfg["sample"]["n"] = round(cfg["sample"]["n"] * scale)
    with tempfile.TemporaryDirectory() as out:
        base, started = _peak(), time.perf_counter()
        file = cfg["source"].get("path")
        inputs = {"path": Path(os.environ["OPD_DATA_DIR"], file)} if file else {}
        numbers = prompts.run(cfg, inputs, Path(out))
        seconds = time.perf_counter() - started
    shown = {"read": numbers["steps"][0]["rows"], "kept": numbers["prompts"]}
    print(json.dumps({**shown, "seconds": seconds, "megabytes": (_peak() - base) / 1024}))


def _peak() -> int:
    """Kilobytes that this process has held at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the large cases")
    parser.add_argument("--response-chars", type=int, default=3000)
    parser.add_argument("--case", choices=CASES, help="this one, in this process")
    parser.add_argument("--folder", type=Path, help="where the large files lie, or are to lie")
    given = parser.parse_args()
    if given.case:
        run(given.case, given.folder, given.scale)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        for name in (DAPO, THOUGHTS):
            if not (folder / name).exists():
                make(name, folder, given.scale, given.response_chars)
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--folder", str(folder)]
            command += ["--scale", str(given.scale)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            n = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                [
                    case,
                    f"{n['read']:,}",
                    f"{n['kept']:,}",
                    f"{n['seconds']:.1f}",
                    f"{n['megabytes']:.0f}",
                ]
            )
    print(table(["prompt set", "rows read", "kept", "seconds", "MB"], rows))
    print(f"\n{describe('cpu')}")


if __name__ == "__main__":
    main()

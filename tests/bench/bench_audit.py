"""How fast `opd audit` reads, against sha256sum, per processor second.

    python tests/bench/bench_audit.py [--gigabytes 1] [--artifacts 200]

A results folder is made in a temporary place: checkpoints of 64 MB, and as many small artifacts of
a few kB. Both read it from memory, in turns, three times each; the best of each counts.
"""

import argparse
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from opd.core.files import content
from opd.provenance.audit import audit
from opd.stages import identity, records, run
from opd.stages.records import Manifest

CHECKPOINT = 64_000_000


def make(root: Path, checkpoints: int, small: int) -> None:
    store = root / "results" / ".store"
    for i in range(checkpoints + small):
        folder = root / "results" / "bench" / "models" / f"m{i}"
        folder.mkdir(parents=True)
        cfg = {"inputs": [], "i": i}
        entry = store / identity.identity("init", cfg, {})
        entry.mkdir(parents=True)
        size = CHECKPOINT if i < checkpoints else 4_000
        (entry / "model.safetensors").write_bytes(os.urandom(size))
        made = Manifest(
            stage="init", identity=entry.name, cfg=cfg, inputs={}, outputs=content(entry)
        )
        records.write(store / f"{entry.name}.json", made)
        run.publish(made, entry, folder / "digest.json")


def seconds(call: Callable[[], None], who: int) -> tuple[float, float]:
    """Processor and wall-clock seconds."""
    wall, before = time.perf_counter(), resource.getrusage(who)
    call()
    after = resource.getrusage(who)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--artifacts", type=int, default=200)
    given = parser.parse_args()
    checkpoints = round(given.gigabytes * 1e9 / CHECKPOINT)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make(root, checkpoints, given.artifacts)
        files = [str(p) for p in (root / "results" / ".store").glob("*/*")]
        size = sum(Path(file).stat().st_size for file in files) / 1e9

        def ours() -> None:
            found = audit(root / "results")
            assert not any(one.findings for one in found.audited)

        def theirs() -> None:
            subprocess.run(["sha256sum", *files], stdout=subprocess.DEVNULL, check=True)

        who = {ours: resource.RUSAGE_SELF, theirs: resource.RUSAGE_CHILDREN}
        times = {call: [seconds(call, who[call]) for _ in range(3)] for call in who}
    best = {call: [min(column) for column in zip(*of, strict=True)] for call, of in times.items()}
    print(f"{checkpoints} checkpoints and {given.artifacts} small artifacts, {size:.2f} GB")
    for name, call in (("opd audit", ours), ("sha256sum", theirs)):
        spent, wall = best[call]
        print(f"{name}: {size / spent:.2f} GB per processor second, {size / wall:.2f} GB/s")
    print(f"ratio per processor second: {best[theirs][0] / best[ours][0]:.2f}")


if __name__ == "__main__":
    main()

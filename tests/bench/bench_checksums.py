"""What checksums add: of checkpoints to a training run, of journals to sampling.

    python tests/bench/bench_checksums.py

Models have the miniature's shape and random weights. The work of a checksum is clocked where it is
done, in seconds of a processor, and divided by those of the whole run.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import describe, table

from opd.core import tables
from opd.core.files import file_digest
from opd.data import world
from opd.data.schemas import PROMPTS
from opd.models import init, journal
from opd.models.sampling import Request, Sampler
from opd.training import checksums, distill

SHAPE = {"hidden": 96, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate": 192}
WORLD = {
    "seed": 7, "rl_times": 0.4, "other_times": 0.12, "exact_duplicates": 0, "near_duplicates": 0,
}  # fmt: skip
EVERY = 50  # steps from one checkpoint to the next, if the config does not say
# Bytes that one process hashes of a checkpoint: weights in float32 by the first one, and its share
# of Adam's two moments. Billions of parameters, processes.
LARGE = {"1.5B on one GPU": (1.5, 1), "7B on eight GPUs, the first": (7.0, 8)}
INTERVAL_SECONDS = 30 * 60  # the longest from one checkpoint to the next, if not given


def share(owner: Any, name: str, run: Callable[[], Any]) -> tuple[float, float, int]:
    """Processor seconds in a function while something runs, those of all of it, and how often it
    was called. The function may run in another thread."""
    function, spent = getattr(owner, name), []

    def clocked(*given: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*given)
        finally:
            spent.append(time.thread_time() - start)

    setattr(owner, name, clocked)
    start = time.process_time()
    try:
        run()
        return sum(spent), time.process_time() - start, len(spent)
    finally:
        setattr(owner, name, function)


def bytes_a_second(folder: Path) -> float:
    """How fast one core hashes a file of 1 GB that is in memory; the best of three."""
    path = folder / "large"
    path.write_bytes(bytes(10**9))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        file_digest(path)
        seconds.append(time.process_time() - start)
    path.unlink()
    return 10**9 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        inputs = {name: root / name for name in ("student", "teacher", "prompts")}
        for folder in (*inputs.values(), root / "out", root / "scratch"):
            folder.mkdir()
        init.run({**SHAPE, "seed": 0}, {}, inputs["student"])
        init.run({**SHAPE, "seed": 1}, {}, inputs["teacher"])
        rows = world.make_prompts(WORLD, "rl", 1024)
        tables.write(inputs["prompts"] / "prompts.parquet", rows, PROMPTS)
        limits = {"max_prompt_tokens": 32, "max_new_tokens": 32, "seed": 0, "threads": 1}
        training: dict[str, Any] = {
            **{"steps": EVERY * arguments.checkpoints, "lr": 3e-4, "temperature": 1.0, **limits},
            **{"prompts_per_step": 32, "rollouts_per_prompt": 4, "aggregation": "token_mean"},
            **{"loss": {"preset": "rethinking_code", "k": 4}, "metrics_k": 4, "metrics_every": 1},
            **{"position_bin": 8, "execution": {"checkpoint_every": EVERY}},
        }
        trained = share(
            checksums,
            "write",
            lambda: distill.run(training, inputs, root / "out", root / "scratch"),
        )
        sampler = Sampler(inputs["student"], {**limits, "batch_size": 256}, root / "cache")
        ids = [row["id"] for row in rows]
        asked = [
            Request(id, prompt, sample)
            for id, prompt in zip(ids, sampler.tokenize(rows, ids), strict=True)
            for sample in range(2)
        ]
        sampled = share(journal, "_line", lambda: sampler.sample(asked))
        rate = bytes_a_second(root)
    lines = [
        [name, f"{spent:.4f}", f"{whole:.1f}", f"{calls}", f"{spent / whole:.4%}"]
        for name, (spent, whole, calls) in (
            (f"distillation, a checkpoint every {EVERY} steps", trained),
            (f"sampling, {len(asked):,} responses", sampled),
        )
    ]
    header = ["the miniature", "processor s of checksums", "of all", "times", "share"]
    print(table(header, lines))
    print(f"\n{rate / 1e9:.2f} GB a processor second\n")
    lines = []
    for name, (billions, processes) in LARGE.items():
        size = billions * 1e9 * (4 + 8 / processes)
        seconds = size / rate
        lines.append(
            [name, f"{size / 1e9:.0f}", f"{seconds:.0f}", f"{seconds / INTERVAL_SECONDS:.1%}"]
        )
    print(table(["reckoned", "GB a checkpoint", "s of a core", "of half an hour"], lines))
    print(f"\n{describe('cpu')}")


if __name__ == "__main__":
    main()

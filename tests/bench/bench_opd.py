"""Where the time of a distillation step goes, in the miniature, and what measuring adds to it.

See README.md beside this file.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import describe, table

from opd.training import distill
from opd.training.record import Record

# Part of a step -> where it happens. "update" is what is left: backward, clipping, AdamW.
PARTS = {
    "generation": (distill.Trainer, "_generate_and_score_completions"),
    "teacher": (distill.Trainer, "_teacher"),
    "student": (distill.Trainer, "_hidden"),
    "loss": (distill, "fused_token_loss"),
    "measuring": (distill.Trainer, "_measure"),
    "logging": (Record, "on_log"),
}


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Seconds spent in every part since it was last emptied; what runs inside a part is its own."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[str] = []

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return function(*args, **kwargs)
            start = time.perf_counter()
            inside.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - start
                inside.pop()

        return wrapper

    before = {part: getattr(*place) for part, place in PARTS.items()}
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, timed(part, before[part]))
    try:
        yield spent
    finally:
        for part, (owner, name) in PARTS.items():
            setattr(owner, name, before[part])


def one_run(results: Path, cfg: dict[str, Any]) -> tuple[list[float], dict[str, float]]:
    """Seconds of every step but the first, and of each part over them."""
    inputs = {
        "student": results / "models" / "small" / "s0" / "payload",
        "teacher": results / "models" / "small-rl" / "s0" / "payload",
        "prompts": results / "prompts" / "rl" / "payload",
    }
    with clocks() as spent, tempfile.TemporaryDirectory() as folder:
        begin = distill.Trainer.training_step
        started: list[float] = []
        parts: dict[str, float] = {}

        def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(started) == 1:
                spent.clear()
            started.append(time.perf_counter())
            parts.update(spent)
            return begin(self, *args, **kwargs)

        distill.Trainer.training_step = training_step
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        try:
            distill.run(cfg, inputs, out, scratch)
        finally:
            distill.Trainer.training_step = begin
    return [b - a for a, b in pairwise(started[1:])], parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a results folder that `make mini` has made")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cfg = {
        "steps": args.steps,
        "prompts_per_step": 32,
        "rollouts_per_prompt": 4,
        "lr": 3e-4,
        "temperature": 1.0,
        "max_prompt_tokens": 32,
        "max_new_tokens": 32,
        "loss": {"preset": "rethinking_code", "k": 4},
        "aggregation": "token_mean",
        "metrics_k": 4,
        "metrics_every": 1,
        "position_bin": 8,
        "seed": 0,
        "threads": 1,
    }
    never = {**cfg, "metrics_every": 10**9}
    step_seconds: dict[str, list[float]] = {"with": [], "without": []}
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for name, settings in (("with", cfg), ("without", never)):
            steps, spent = one_run(args.results, settings)
            step_seconds[name].append(statistics.median(steps))
            if name == "with":
                whole = sum(steps)
                for part in PARTS:
                    shares[part].append(spent.get(part, 0.0) / whole)
                shares["update and the rest"].append(1 - sum(spent.values()) / whole)
    median = {name: statistics.median(values) for name, values in step_seconds.items()}
    rows = [[part, f"{statistics.median(values):.1%}"] for part, values in shares.items()]
    print(table(["part of a step", "share"], rows))
    cost = median["with"] / median["without"] - 1
    print(
        f"\n{median['with']:.3f} s a step, {median['without']:.3f} s without measuring: {cost:+.1%}"
    )
    print(f"\n{describe('cpu')}")


if __name__ == "__main__":
    main()

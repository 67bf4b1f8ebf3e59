"""What journaling costs, what sharding by length saves, and how often a response changes when
something else is in its batch.

See README.md beside this file.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import describe, table

from opd.core import tables
from opd.data.schemas import PROMPTS
from opd.models import journal, transformers_engine
from opd.models.sampling import Request, Response, Sampler


def clocked(sampler: Sampler, requests: list[Request]) -> tuple[float, list[Response]]:
    start = time.perf_counter()
    found = sampler.sample(requests)
    return time.perf_counter() - start, found


@contextmanager
def journal_clock() -> Iterator[list[float]]:
    """Seconds that each line took to be written and synced."""
    spent: list[float] = []
    writing = journal.writing

    @contextmanager
    def timed(path: Path) -> Iterator[Callable[[Mapping[int, list[int]]], None]]:
        with writing(path) as append:

            def clock(finished: Mapping[int, list[int]]) -> None:
                start = time.perf_counter()
                append(finished)
                spent.append(time.perf_counter() - start)

            yield clock

    journal.writing = timed
    try:
        yield spent
    finally:
        journal.writing = writing


def in_the_order_of_the_list(
    jobs: Mapping[int, transformers_engine.Job], batch_size: int
) -> Iterator[list[int]]:
    order = list(jobs)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padding(jobs: list[list[int]], shards: Callable[..., Iterator[list[int]]], size: int) -> float:
    """Share of padding among the positions of all shards' prompts."""
    as_jobs = {i: transformers_engine.Job(tokens, 0, 0) for i, tokens in enumerate(jobs)}
    cut = list(shards(as_jobs, size))
    filled = sum(map(len, jobs))
    return 1 - filled / sum(len(s) * max(len(jobs[i]) for i in s) for s in cut)


def same(one: list[Response], other: list[Response]) -> str:
    share = sum(a.text == b.text for a, b in zip(one, other, strict=True)) / len(one)
    return f"{100 * share:.1f}%"


def transformers(arguments: argparse.Namespace, cfg: dict[str, Any]) -> None:
    sampler = Sampler(arguments.model, cfg)
    requests = asked(sampler, arguments)
    sampler.sample(requests[: cfg["batch_size"]])  # loads and warms up
    ways = {
        "by length": transformers_engine.shards,
        "in the order of the list": in_the_order_of_the_list,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[Response]] = {}
    with journal_clock() as writes:
        for turn in range(arguments.rounds):
            # Other attempts each time: the journal would answer what was asked before.
            again = [Request(r.id, r.prompt, r.sample, attempt=turn) for r in requests]
            for name, transformers_engine.shards in ways.items():
                fresh = Sampler(arguments.model, cfg)
                fresh._engine = sampler._engine
                elapsed, found[name] = clocked(fresh, again)
                seconds[name].append(elapsed)
    tokens = sum(len(r.token_ids) for r in found["by length"])
    prompts = [list(r.prompt) for r in requests]
    rows = []
    for name, shards in ways.items():
        padded = padding(prompts, shards, cfg["batch_size"])
        median = statistics.median(seconds[name])
        rows.append([name, f"{median:.2f}", f"{tokens / median:.0f}", f"{100 * padded:.1f}%"])
    print(table(["shards", "s", "tokens/s", "padding of prompts"], rows))
    by_length, in_order = seconds.values()
    share = statistics.median(a / b for a, b in zip(by_length, in_order, strict=True))
    print(f"\nby length / in the order of the list, median of the rounds: {share:.3f}")
    print(
        f"journal: {100 * sum(writes) / sum([*by_length, *in_order]):.2f}% of the time, "
        f"{1000 * statistics.median(writes):.2f} ms a line (median of {len(writes)}); "
        f"{sum(map(len, prompts)) / len(prompts):.0f} prompt tokens and "
        f"{tokens / len(requests):.0f} new ones a request"
    )
    print(f"identical texts in the other shards: {same(*found.values())}")


def vllm(arguments: argparse.Namespace, cfg: dict[str, Any]) -> None:
    sampler = Sampler(arguments.model, cfg)
    requests = asked(sampler, arguments)
    sampler.sample([Request("warm-up", requests[0].prompt)])
    first, found = clocked(sampler, requests)
    rows = [["first", f"{first:.2f}", ""]]
    # Asked in another order, others run beside a request, and its prompt is in the cache by now.
    elapsed, again = clocked(sampler, requests[::-1])
    rows.append(["backwards, prompts cached", f"{elapsed:.2f}", same(found, again[::-1])])
    fresh = Sampler(arguments.model, cfg)
    elapsed, again = clocked(fresh, requests)
    rows.append(["same again, engine started anew", f"{elapsed:.2f}", same(found, again)])
    del fresh
    half = len(requests) // 2
    elapsed, again = clocked(Sampler(arguments.model, cfg), requests[half:])
    rows.append(
        ["the second half alone, as after a kill", f"{elapsed:.2f}", same(found[half:], again)]
    )
    small = Sampler(arguments.model, {**cfg, "batch_size": max(1, cfg["batch_size"] // 4)})
    elapsed, again = clocked(small, requests)
    rows.append(["a quarter in flight at a time", f"{elapsed:.2f}", same(found, again)])
    print(table(["run", "s", "texts as in the first"], rows))
    tokens = sum(len(r.token_ids) for r in found)
    print(f"\n{len(requests)} requests, {tokens} tokens, {tokens / first:.0f} tokens/s")


def asked(sampler: Sampler, arguments: argparse.Namespace) -> list[Request]:
    prompts = tables.read(arguments.prompts / "prompts.parquet", PROMPTS).to_pylist()
    prompts = prompts[: arguments.n]
    ids = [row["id"] for row in prompts]
    tokens = sampler.tokenize(prompts, ids)
    return [
        Request(i, t, k) for i, t in zip(ids, tokens, strict=True) for k in range(arguments.samples)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    parser.add_argument("prompts", type=Path, help="folder of a prompts.parquet")
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--n", type=int, default=64, help="prompts")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-invariant", action="store_true")
    arguments = parser.parse_args()
    cfg = {
        "backend": arguments.backend,
        "max_new_tokens": arguments.max_new_tokens,
        "max_prompt_tokens": 2048,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "batch_invariant": arguments.batch_invariant,
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": 1,
    }
    {"transformers": transformers, "vllm": vllm}[arguments.backend](arguments, cfg)
    import torch

    print(f"\n{describe('cuda' if torch.cuda.is_available() else 'cpu')}")


if __name__ == "__main__":
    main()

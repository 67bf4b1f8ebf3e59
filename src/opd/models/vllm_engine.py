"""Sampling with vLLM: one worker process for each visible GPU, or one on the CPU.

A worker gets its requests as a line of JSON on standard input and appends what it finishes to a
journal of its own, which the stage's process reads as it grows. So a kill loses only what is in
flight. Workers end when the stage's process does, however that ends.

With a seed per request and the engine's batch-invariant mode a response depends on its request
only. Without that mode sums are taken in an order that depends on what else is in the batch, and
now and then another token is likeliest.
"""

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from opd.core.errors import UserError
from opd.models import journal
from opd.models.transformers_engine import Job

POLL_SECONDS = 0.05


def devices() -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker; None is the CPU."""
    n = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n)))
    return [*visible.split(",")[:n]] or [None]


def split(jobs: Mapping[int, Job], n: int) -> list[list[int]]:
    """Indices of the jobs in at most ``n`` parts of about one size, none of them empty.

    The same prompt stays in one part, where its keys and values are computed once, unless it alone
    is more than a part.
    """
    most = -(-len(jobs) // n)
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, job in jobs.items():
        by_prompt.setdefault(tuple(job.tokens), []).append(i)
    pieces = [
        same[start : start + most]
        for same in by_prompt.values()
        for start in range(0, len(same), most)
    ]
    parts: list[list[int]] = [[] for _ in range(n)]
    for piece in sorted(pieces, key=len, reverse=True):
        min(parts, key=len).extend(piece)
    return [part for part in parts if part]


class Pool:
    """The workers; their engines start with the first requests and stay between calls."""

    def __init__(self, model_dir: Path, settings: Mapping[str, Any], stops: set[int]) -> None:
        self.settings = {**settings, "model": str(model_dir), "stops": sorted(stops)}
        self.devices = devices()
        if settings["batch_invariant"] and self.devices == [None]:
            raise UserError(
                "vLLM's batch-invariant mode needs a GPU",
                "batch_invariant",
                "leave it out, or use transformers",
            )
        self.length = 0
        self.workers: dict[int, subprocess.Popen[str]] = {}
        weakref.finalize(self, stop, self.workers)

    def run(
        self, jobs: Mapping[int, Job], done: Mapping[int, list[int]], base: Path
    ) -> Generator[journal.Finished, None, None]:
        """New tokens of the jobs that are not done, as the workers journal them."""
        left = {i: job for i, job in jobs.items() if i not in done}
        parts = split(left, len(self.devices))
        paths = [base.with_name(f"{base.name}-{n}.jsonl") for n in range(len(parts))]
        ends = [journal.read(path)[1] for path in paths]
        prompt = max(len(job.tokens) for job in left.values())
        length = max(prompt, self.settings["max_prompt_tokens"]) + self.settings["max_new_tokens"]
        if length > self.length:  # an engine's length is fixed when it starts
            stop(self.workers)
            self.length = length
        missing = set(left)
        try:
            for n, part in enumerate(parts):
                self._send(n, {i: left[i] for i in part}, paths[n])
            while missing:
                for n, path in enumerate(paths):
                    # Before reading: what it wrote before it ended is not missed.
                    code = self.workers[n].poll()
                    finished, ends[n] = journal.read(path, ends[n])
                    missing -= finished.keys()
                    if finished:
                        yield finished
                    if code is not None and missing & set(parts[n]):
                        raise self._ended(n, code)
                time.sleep(POLL_SECONDS)
        except BaseException:
            stop(self.workers)
            raise

    def _send(self, n: int, jobs: Mapping[int, Job], path: Path) -> None:
        if n not in self.workers:
            self.workers[n] = self._started(self.devices[n])
        worker = self.workers[n]
        assert worker.stdin
        task = {
            **self.settings,
            "length": self.length,
            "journal": str(path),
            "jobs": [[i, job.tokens, job.seed] for i, job in jobs.items()],
        }
        try:
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
        except BrokenPipeError:
            raise self._ended(n, worker.wait()) from None

    def _started(self, device: str | None) -> "subprocess.Popen[str]":
        environment = {
            "VLLM_LOGGING_LEVEL": "WARNING",
            # vLLM's own choice on a CPU binds every engine to the same cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **os.environ,
            # The engine in the worker's own process: nothing else to be stopped.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_BATCH_INVARIANT": str(int(self.settings["batch_invariant"])),
            "OMP_NUM_THREADS": str(self.settings["threads"]),
        }
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # It holds the lock on the scratch folder until it has ended.
            close_fds=False,
        )

    def _ended(self, n: int, code: int) -> UserError:
        worker = self.workers[n]
        message = worker.stdout.read() if worker.stdout else ""
        if message:
            return UserError(*json.loads(message))
        return UserError(
            f"a vLLM worker ended with exit status {code}",
            f"GPU {self.devices[n]}" if self.devices[n] is not None else "backend",
            "its own message stands above in this log; what was finished is kept",
        )


def stop(workers: dict[int, "subprocess.Popen[str]"]) -> None:
    """End the workers, whatever they are doing."""
    for worker in workers.values():
        worker.terminate()
    for worker in workers.values():
        try:
            worker.wait(10)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    workers.clear()


def main(parent: int) -> None:
    """What a worker does: requests from standard input, until that ends."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints belongs into the log
    engine = None
    try:
        for line in sys.stdin:
            task = json.loads(line)
            engine = engine or _engine(task)
            _work(engine, task, parent)
    except UserError as bad:
        print(json.dumps([bad.what, bad.where, bad.remedy]), file=answer, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _engine(task: Mapping[str, Any]) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported ({error})",
            "backend",
            "install it, set interpreters.vllm to the Python that has it, or use transformers",
        ) from error
    on_cpu: dict[str, Any] = {}  # on a GPU vLLM fits what is in flight to its memory
    if not torch.cuda.is_available():
        # Otherwise the cache takes nine tenths of the memory, and compiling longer than a small
        # model's sampling.
        cache = task["batch_size"] * task["length"] * _cache_bytes_per_token(task)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        on_cpu = {
            "max_num_seqs": task["batch_size"],
            "kv_cache_memory_bytes": max(min(cache, memory // 4), 1 << 28),
            "enforce_eager": True,
            # A prompt that is cut into chunks and has a seed of its own ends vLLM 0.31 on a CPU:
            # "CPU Generator does not use offset".
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, task["length"]),
        }
    try:
        return LLM(
            model=task["model"],
            dtype=task["dtype"],
            max_model_len=task["length"],
            enable_prefix_caching=True,
            seed=0,
            generation_config="vllm",
            **on_cpu,
        ).llm_engine
    except ValueError as error:
        raise UserError(
            f"vLLM does not take these settings ({error})",
            "backend",
            "change them, or use transformers",
        ) from error


def _work(engine: Any, task: Mapping[str, Any], parent: int) -> None:
    """Sample the task's jobs and journal each as it is finished."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for i, tokens, seed in task["jobs"]:
        parameters = SamplingParams(
            temperature=task["temperature"],
            top_p=task["top_p"],
            top_k=task["top_k"],
            max_tokens=task["max_new_tokens"],
            seed=seed,
            stop_token_ids=task["stops"],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(str(i), {"prompt_token_ids": tokens}, parameters)
    with journal.writing(Path(task["journal"])) as append:
        while engine.has_unfinished_requests():
            if os.getppid() != parent:
                sys.exit("the stage's process is gone")
            finished = {
                int(output.request_id): list(output.outputs[0].token_ids)
                for output in engine.step()
                if output.finished
            }
            if finished:
                append(finished)


def _cache_bytes_per_token(task: Mapping[str, Any]) -> int:
    """Memory of one token's keys and values in all layers."""
    config = AutoConfig.from_pretrained(task["model"]).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = 4 if task["dtype"] == "float32" else 2
    return int(2 * config.num_hidden_layers * heads * size * width)


if __name__ == "__main__":
    main(int(sys.argv[1]))

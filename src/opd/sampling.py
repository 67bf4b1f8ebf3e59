"""Sampling responses: one function, with transformers or vLLM behind it.

The randomness of a response comes from (seed, prompt id, sample index) only, never from what else
is in its batch or was sampled before it.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd import tables
from opd.errors import Bad

Row = dict[str, Any]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``generate``: generations.parquet, ``samples`` rows for every prompt, in its order.

    cfg: samples, temperature, top_p, top_k, max_new_tokens, max_prompt_tokens, backend, batch_size,
    dtype, seed, threads, chat_template_kwargs. Inputs: model, prompts.
    """
    prompts = tables.read(inputs["prompts"] / "prompts.parquet", tables.PROMPTS)
    rows = sample(
        inputs["model"],
        prompts["prompt"].to_pylist(),
        ids=prompts["id"].to_pylist(),
        **settings(cfg),
    )
    tables.write(out / "generations.parquet", rows, tables.GENERATIONS)
    return {
        "prompts": len(prompts),
        "generations": len(rows),
        "truncation_rate": sum(row["finish"] == "length" for row in rows) / len(rows),
        "mean_tokens": sum(len(row["token_ids"]) for row in rows) / len(rows),
    }


def settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``sample`` that a stage's settings hold, with defaults."""
    return {
        "samples": cfg.get("samples", 1),
        "temperature": cfg.get("temperature", 1.0),
        "top_p": cfg.get("top_p", 1.0),
        "top_k": cfg.get("top_k") or 0,
        "max_new_tokens": cfg["max_new_tokens"],
        "max_prompt_tokens": cfg["max_prompt_tokens"],
        "seed": cfg["seed"],
        "batch_size": cfg.get("batch_size", 64),
        "backend": cfg.get("backend", "transformers"),
        "dtype": cfg.get("dtype", "float32"),
        "chat_template_kwargs": cfg.get("chat_template_kwargs") or {},
        "threads": cfg.get("threads", 1),
    }


def sample(
    model_dir: Path,
    prompts: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int,
    max_prompt_tokens: int,
    seed: int,
    batch_size: int = 64,
    backend: str = "transformers",
    dtype: str = "float32",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> list[Row]:
    """Sample ``samples`` responses to each prompt: rows of the schema GENERATIONS, by prompt, then
    by sample.

    ``prompts`` are user messages; the model's chat template is put around them. ``temperature`` 0
    is greedy; ``top_k`` 0 and ``top_p`` 1 leave the distribution whole. ``token_ids`` end with the
    end-of-turn token where it was produced (finish ``stop``); ``response`` is their text without
    special tokens. Raises ``Bad`` for a prompt of more than ``max_prompt_tokens`` tokens.
    """
    from transformers import AutoTokenizer

    ids = [str(i) for i in range(len(prompts))] if ids is None else ids
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt_tokens = tokenize(tokenizer, prompts, ids, max_prompt_tokens, chat_template_kwargs or {})
    requests = [
        (tokens, request_seed(seed, id, i))
        for tokens, id in zip(prompt_tokens, ids, strict=True)
        for i in range(samples)
    ]
    warp = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    if backend == "transformers":
        outputs = _with_transformers(
            model_dir, tokenizer, requests, warp, max_new_tokens, batch_size, dtype, threads
        )
    elif backend == "vllm":
        outputs = _with_vllm(
            model_dir,
            tokenizer,
            requests,
            warp,
            max_new_tokens,
            max_prompt_tokens,
            batch_size,
            dtype,
            threads,
        )
    else:
        raise Bad(f"unknown backend '{backend}'", "backend", "use transformers or vllm")
    stops = stop_ids(model_dir, tokenizer)
    rows = []
    for n, output in enumerate(outputs):
        tokens, finish = cut(output, stops)
        text = tokens[:-1] if finish == "stop" else tokens
        rows.append(
            {
                "prompt_id": ids[n // samples],
                "sample": n % samples,
                "prompt": prompts[n // samples],
                "response": tokenizer.decode(
                    text, skip_special_tokens=True, clean_up_tokenization_spaces=False
                ),
                "token_ids": tokens,
                "finish": finish,
            }
        )
    return rows


def request_seed(seed: int, id: str, sample: int) -> int:
    """The 63-bit seed of one request."""
    digest = hashlib.sha256(f"{seed}\0{id}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def tokenize(
    tokenizer: Any,
    prompts: Sequence[str],
    ids: Sequence[str],
    max_prompt_tokens: int,
    chat_template_kwargs: Mapping[str, Any],
) -> list[list[int]]:
    """Token ids of each user message inside the chat template, ready for a response."""
    if not tokenizer.chat_template:
        raise Bad(
            "the tokenizer has no chat template", str(tokenizer.name_or_path), "add one to it"
        )
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=False,
            **chat_template_kwargs,
        )
        for prompt in prompts
    ]
    tokens: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for row, (id, found) in enumerate(zip(ids, tokens, strict=True)):
        if len(found) > max_prompt_tokens:
            raise Bad(
                f"the prompt has {len(found)} tokens, more than {max_prompt_tokens}",
                f"prompt '{id}' (row {row})",
                "raise max_prompt_tokens or leave this prompt out",
            )
    return tokens


def stop_ids(model_dir: Path, tokenizer: Any) -> set[int]:
    """Ids that end a response: those of the generation config, and the tokenizer's eos."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(model_dir).eos_token_id
    except OSError:
        ids = None
    found = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    found.discard(None)
    if not found:
        raise Bad("no end-of-turn token is known", str(model_dir), "set the tokenizer's eos_token")
    return found


def cut(tokens: Sequence[int], stops: set[int]) -> tuple[list[int], str]:
    """Response tokens up to and with the first that ends it, and the kind of finish."""
    for i, token in enumerate(tokens):
        if token in stops:
            return list(tokens[: i + 1]), "stop"
    return list(tokens), "length"


def choose(logits: Any, uniforms: Any, temperature: float, top_p: float, top_k: int) -> Any:
    """Pick one token per row by inverting the cumulative distribution: int64 [B].

    logits [B, V], uniforms [B] in [0, 1). Order of operations as in vLLM and transformers:
    temperature, top-k, top-p (the smallest set of likeliest tokens with at least that mass).
    """
    import torch

    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if not top_k and top_p >= 1:
        cumulative = logits.softmax(dim=-1).double().cumsum(dim=-1)
        return _invert(cumulative, uniforms, cumulative[:, -1:]).squeeze(-1)
    # Sorting a large vocabulary costs more than a small model's forward pass, and the likeliest few
    # hundred nearly always hold top_p of the mass.
    vocabulary = logits.shape[-1]
    logsumexp = logits.logsumexp(dim=-1, keepdim=True)
    size = min(top_k or 256, vocabulary)
    while True:
        values, tokens = logits.topk(size, dim=-1)
        cumulative = (values - logsumexp).exp().double().cumsum(dim=-1)
        if top_k:
            cumulative = cumulative / cumulative[:, -1:]
        if top_k or size == vocabulary or bool((cumulative[:, -1] >= top_p).all()):
            break
        size = min(8 * size, vocabulary)
    # The token that reaches top_p is still in.
    last = (cumulative[:, :-1] < top_p).sum(dim=-1, keepdim=True)
    place = _invert(cumulative, uniforms, cumulative.gather(-1, last))
    return tokens.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _invert(cumulative: Any, uniforms: Any, total: Any) -> Any:
    """First place where the cumulative mass [B, V] exceeds uniform [B] x total [B, 1]: [B, 1]."""
    import torch

    wanted = uniforms.double().unsqueeze(-1) * total
    place = torch.searchsorted(cumulative.contiguous(), wanted, right=True)
    return place.clamp(max=cumulative.shape[-1] - 1)


def _with_transformers(
    model_dir: Path,
    tokenizer: Any,
    requests: Sequence[tuple[list[int], int]],
    warp: dict[str, Any],
    max_new_tokens: int,
    batch_size: int,
    dtype: str,
    threads: int,
) -> list[list[int]]:
    """Responses of ``model.generate`` in left-padded batches of similar prompt length."""
    import torch
    from tqdm import tqdm
    from transformers import (
        AutoModelForCausalLM,
        GenerationConfig,
        LogitsProcessor,
        LogitsProcessorList,
    )

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=getattr(torch, dtype))
    model.to(device).eval()
    stops = sorted(stop_ids(model_dir, tokenizer))
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # In place of the checkpoint's own, which may hold penalties that nobody asked for here.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=pad
    )

    class Choose(LogitsProcessor):
        """Leaves only the chosen token, so that ``generate`` needs no random state of its own."""

        def __init__(self, uniforms: Any, start: int) -> None:
            self.uniforms, self.start = uniforms, start

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            step = input_ids.shape[1] - self.start
            chosen = choose(scores, self.uniforms[:, step], **warp)
            return torch.full_like(scores, -torch.inf).scatter_(1, chosen.unsqueeze(1), 0.0)

    outputs: list[list[int]] = [[] for _ in requests]
    with tqdm(total=len(requests), unit="response", desc="sampling") as bar:
        produced = 0
        for batch in _batches(requests, batch_size):
            width = max(len(requests[i][0]) for i in batch)
            ids = [[pad] * (width - len(requests[i][0])) + requests[i][0] for i in batch]
            mask = [[0] * (width - len(requests[i][0])) + [1] * len(requests[i][0]) for i in batch]
            uniforms = np.stack(
                [np.random.default_rng(requests[i][1]).random(max_new_tokens) for i in batch]
            )
            processor = Choose(torch.from_numpy(uniforms).to(device), width)
            with torch.inference_mode():
                whole = model.generate(
                    input_ids=torch.tensor(ids, device=device),
                    attention_mask=torch.tensor(mask, device=device),
                    logits_processor=LogitsProcessorList([processor]),
                )
            for i, tokens in zip(batch, whole[:, width:].tolist(), strict=True):
                outputs[i] = cut(tokens, set(stops))[0]
                produced += len(outputs[i])
            bar.update(len(batch))
            elapsed = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{produced / max(elapsed, 1e-9):.0f} tokens/s")
    return outputs


def _batches(requests: Sequence[tuple[list[int], int]], batch_size: int) -> Iterator[list[int]]:
    """Places of the requests in batches, shortest prompts first: little padding, fixed order."""
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i][0]), i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _with_vllm(
    model_dir: Path,
    tokenizer: Any,
    requests: Sequence[tuple[list[int], int]],
    warp: dict[str, Any],
    max_new_tokens: int,
    max_prompt_tokens: int,
    batch_size: int,
    dtype: str,
    threads: int,
) -> list[list[int]]:
    """Responses of vLLM's offline engine, at most ``batch_size`` at a time, each with its seed."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # vLLM's own choice on a CPU binds every engine to the same cores, also where jobs share them.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise Bad(
            f"vLLM cannot be imported ({error})",
            "backend",
            "install it, set interpreters.vllm to the Python that has it, or use transformers",
        ) from error
    length = max_prompt_tokens + max_new_tokens
    on_cpu: dict[str, Any] = {}
    if not torch.cuda.is_available():
        # Otherwise the cache takes nine tenths of the memory, and compiling longer than a small
        # model's sampling.
        cache = batch_size * length * _cache_bytes_per_token(model_dir, dtype)
        on_cpu = {
            "kv_cache_memory_bytes": max(cache, 1 << 28),
            "enforce_eager": True,
            # A prompt that is cut into chunks and has a seed of its own ends vLLM 0.31 on a CPU:
            # "CPU Generator does not use offset".
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, length),
        }
    engine = LLM(
        model=str(model_dir),
        dtype=dtype,
        max_model_len=length,
        max_num_seqs=batch_size,
        seed=0,
        generation_config="vllm",
        **on_cpu,
    )
    stops = sorted(stop_ids(model_dir, tokenizer))
    parameters = [
        SamplingParams(
            temperature=warp["temperature"],
            top_p=warp["top_p"],
            top_k=warp["top_k"],
            max_tokens=max_new_tokens,
            seed=seed,
            stop_token_ids=stops,
            detokenize=False,
        )
        for _, seed in requests
    ]
    prompts = [{"prompt_token_ids": tokens} for tokens, _ in requests]
    results = engine.generate(prompts, parameters)
    return [list(result.outputs[0].token_ids) for result in results]


def _cache_bytes_per_token(model_dir: Path, dtype: str) -> int:
    """Memory of one token's keys and values in all layers."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * (4 if dtype == "float32" else 2))

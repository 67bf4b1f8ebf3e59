"""A model answers a prompt set; what a rule rejects is sampled again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from opd.core import tables
from opd.losses.importance import sampled_logprobs
from opd.models.checkpoints import load_model
from opd.models.pairing import head_of
from opd.models.prompts import read_prompts
from opd.models.response_rules import first_that_rejects
from opd.models.sampling import Request, Sampler
from opd.models.schemas import GENERATIONS, LOGPROBS
from opd.models.states import by_response

READ_AT_ONCE = 8  # responses whose log-probabilities are read


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``generate``: generations.parquet (by prompt, sample, attempt), report.json, and with
    ``logprobs`` logprobs.parquet of the same rows.

    cfg: those of ``opd.models.sampling.settings``; samples; rules (of
    ``opd.models.response_rules``, but ``answered``), attempts (with fresh randomness, as long as a
    rule rejects), logprobs (whether the model reads all responses once more, with transformers, for
    the log-probabilities of their tokens). Inputs: model, prompts. What is sampled is kept in
    ``cache``. All attempts are in the table, those that were rejected with the rule that did it:
    each sample of each prompt has attempts 0, 1, ..., of which at most the last is not rejected.
    """
    prompts = read_prompts(inputs["prompts"])
    rules, attempts, samples = cfg.get("rules") or [], cfg.get("attempts", 1), cfg.get("samples", 1)
    sampler = Sampler(inputs["model"], cfg, cache)
    ids = [row["id"] for row in prompts]
    tokens = dict(zip(ids, sampler.tokenize(prompts, ids), strict=True))
    columns = {row["id"]: {"prompt": row["prompt"], "turns": row["turns"]} for row in prompts}
    pending = [(id, sample) for id in ids for sample in range(samples)]
    tried: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in pending}
    report = []
    for attempt in range(attempts):
        requests = [Request(id, tokens[id], sample, attempt=attempt) for id, sample in pending]
        rejected, again = Counter(dict.fromkeys(rules, 0)), []
        for request, response in zip(requests, sampler.sample(requests), strict=True):
            key = request.id, request.sample
            reason = first_that_rejects(rules, response.text, response.finish)
            if reason:
                rejected[reason] += 1
                again.append(key)
            row = {"prompt_id": request.id, "sample": request.sample, "attempt": attempt}
            row |= {**columns[request.id], "response": response.text, "rejected": reason}
            tried[key].append(row | {"token_ids": response.token_ids, "finish": response.finish})
        report.append(_accepted(len(pending), len(again)) | {"rejected": dict(rejected)})
        pending = again
        if not pending:
            break
    rows = [row for attempted in tried.values() for row in attempted]
    tables.write(out / "generations.parquet", rows, GENERATIONS)
    if cfg.get("logprobs"):
        sampler.stop()  # its engine holds the memory
        asked = [(tokens[row["prompt_id"]], row["token_ids"]) for row in rows]
        logprobs = _logprobs(inputs["model"], sampler.settings, asked)
        named = [
            {key: row[key] for key in ("prompt_id", "sample", "attempt")} | {"logprobs": own}
            for row, own in zip(rows, logprobs, strict=True)
        ]
        tables.write(out / "logprobs.parquet", named, LOGPROBS)
    total = _accepted(len(tried), len(pending)) | {"attempts": report}
    tables.write_json(out / "report.json", total)
    numbers: dict[str, Any] = {
        "prompts": len(prompts),
        "generations": len(rows),
        "truncation_rate": sum(row["finish"] == "length" for row in rows) / len(rows),
        "mean_tokens": sum(len(row["token_ids"]) for row in rows) / len(rows),
    }
    return numbers | (total if rules else {})


def _logprobs(
    model_dir: Path, settings: Mapping[str, Any], asked: Sequence[tuple[list[int], list[int]]]
) -> list[list[float]]:
    """The log-probability of each token of responses to prompts (token ids of each)."""
    torch.set_num_threads(settings["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(model_dir, getattr(torch, settings["dtype"])).to(device).eval()
    head, logprobs = head_of(model), [list[float]() for _ in asked]
    read = by_response(model, asked, device, READ_AT_ONCE)
    for i, hidden in tqdm(read, total=len(asked), unit="response", desc="reading"):
        ids = torch.tensor(asked[i][1], device=device)
        logprobs[i] = sampled_logprobs(hidden, head, ids, settings["temperature"]).tolist()
    return logprobs


def _accepted(responses: int, rejected: int) -> dict[str, Any]:
    accepted = responses - rejected
    return {"responses": responses, "accepted": accepted, "accept_rate": accepted / responses}

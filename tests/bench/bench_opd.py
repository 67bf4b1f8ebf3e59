"""Where the time of a distillation step goes, in the miniature, what measuring adds to it, and how
long a plain loop takes for the same.

See README.md beside this file.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import describe, table
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.models.prompts import read_prompts
from opd.training import distill, measure, objective
from opd.training.record import Record

# Part of a step -> where it happens. "update" is what is left: backward, clipping, AdamW.
PARTS = {
    "generation": (distill.Trainer, "_generate_and_score_completions"),
    "teacher": (distill.Trainer, "_of_model"),
    "student": (distill.Trainer, "_hidden"),
    "loss": (objective, "token_losses"),
    "measuring": (measure, "add"),
    "logging": (Record, "on_log"),
}


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Processor seconds spent in every part since it was last emptied; what runs inside a part is
    its own."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[str] = []

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return function(*args, **kwargs)
            start = time.process_time()
            inside.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.process_time() - start
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
    """Processor seconds of every step but the first, and of each part over them."""
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
            started.append(time.process_time())
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


def plain_loop(results: Path, cfg: dict[str, Any]) -> list[float]:
    """Processor seconds of every step but the first of a loop that does what the stage does,
    written by hand: rollouts by ``generate``, all logits of both models, the loss of
    ``rethinking_code``, AdamW, and the overlap ratio, KL and entropies."""
    torch.set_num_threads(cfg["threads"])
    torch.manual_seed(cfg["seed"])
    folder = results / "models" / "small" / "s0" / "payload"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    student = AutoModelForCausalLM.from_pretrained(folder)
    teacher = AutoModelForCausalLM.from_pretrained(
        results / "models" / "small-rl" / "s0" / "payload"
    ).eval()
    prompts = read_prompts(results / "prompts" / "rl" / "payload")
    optimiser = torch.optim.AdamW(student.parameters(), lr=cfg["lr"], weight_decay=0.01)
    pad, end, k = tokenizer.pad_token_id, tokenizer.eos_token_id, cfg["loss"]["k"]
    started: list[float] = []
    measured: list[float] = []
    for step in range(cfg["steps"]):
        started.append(time.process_time())
        first = step * cfg["prompts_per_step"] % (len(prompts) - cfg["prompts_per_step"])
        chats = [
            [{"role": "user", "content": row["prompt"]}]
            for row in prompts[first : first + cfg["prompts_per_step"]]
            for _ in range(cfg["rollouts_per_prompt"])
        ]
        asked = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        width = asked["input_ids"].shape[1]
        student.eval()
        with torch.no_grad():
            ids = student.generate(
                input_ids=asked["input_ids"],
                attention_mask=asked["attention_mask"],
                max_new_tokens=cfg["max_new_tokens"],
                do_sample=True,
                temperature=cfg["temperature"],
                top_k=0,
            )
        student.train()
        response = ids[:, width:]
        counts = (response == end).cumsum(1) - (response == end).int() == 0
        given = {
            "input_ids": ids,
            "attention_mask": torch.cat([asked["attention_mask"], counts.long()], 1),
            "use_cache": False,
            "logits_to_keep": response.shape[1] + 1,
        }
        logp = student(**given).logits[:, :-1][counts].log_softmax(-1)
        with torch.no_grad():
            logq = teacher(**given).logits[:, :-1][counts].log_softmax(-1)
        top = logp.detach().topk(k, -1).indices
        log_p, log_q = logp.gather(1, top), logq.gather(1, top)
        weight = log_p.detach().softmax(-1)
        loss = (weight * (log_p.detach() - log_q) * log_p).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            shared = (top[:, :, None] == logq.topk(k, -1).indices[:, None]).any(-1)
            p, q = logp.exp(), logq.exp()
            values = (
                *(shared.float().mean(), (p * (logp - logq)).sum(-1).mean()),
                *(-(p * logp).sum(-1).mean(), -(q * logq).sum(-1).mean()),
            )
            measured += [loss.item(), *(value.item() for value in values)]
    assert pad != end and all(map(math.isfinite, measured))
    return [b - a for a, b in pairwise(started[1:])]


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
    plain_seconds: list[float] = []
    for _ in range(args.rounds):
        plain_seconds.append(statistics.median(plain_loop(args.results, cfg)))
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
    print(f"\n{median['with']:.3f} processor s a step")
    print(f"{median['without']:.3f} without measuring: {cost:+.1%}")
    plain = statistics.median(plain_seconds)
    print(f"{plain:.3f} a step of the plain loop: {median['with'] / plain:.2f} times that")
    print(f"\n{describe('cpu')}")


if __name__ == "__main__":
    main()

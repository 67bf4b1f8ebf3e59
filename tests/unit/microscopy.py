"""Models with a choice that matters, small enough to train in a second.

A response is a letter, ``#`` and a digit. After ``a`` the digit is right in nine cases of ten,
after ``b`` in five, after ``c`` in one. Who prefers which letter is what student and teachers
differ in.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probing import SHAPE, Inputs
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd import tables, world

RIGHT = {"a": 0.9, "b": 0.5, "c": 0.1}
STUDENT = {"a": 0.4, "b": 0.3, "c": 0.3}
# One points towards success, one away from it.
GOOD = {"a": 0.8, "b": 0.15, "c": 0.05}
BAD = {"a": 0.05, "b": 0.15, "c": 0.8}
WRONG = "9"
BATCH = 64
SETTINGS: dict[str, Any] = {
    "seed": 1,
    "max_new_tokens": 6,
    "max_prompt_tokens": 64,
    "batch_size": 512,
    "grader": "world",
    "rollouts": 60,
    "correct_paths": 2,
    "incorrect_paths": 2,
    "tau": 0.02,
    "top_gradient": 4,
    "top_difference": 4,
    "min_visits": 80,
    "first_window": 50,
    "window_growth": 2.0,
    "counts": "unforced",
}


def train(out: Path, letters: Mapping[str, float], seed: int = 0, steps: int = 150) -> Path:
    """A model that answers ``N?`` with a letter, ``#`` and N or 9."""
    out.mkdir(parents=True)
    world.run_init({**SHAPE, "hidden": 32, "intermediate": 32, "seed": seed}, {}, out)
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    vocabulary = tokenizer.get_vocab()
    digits = np.array([vocabulary[str(n)] for n in range(10)])
    names, shares = list(letters), list(letters.values())
    right = np.array([RIGHT[name] for name in names])
    text = tokenizer("<user>1?<assistant>a#1<eos>", add_special_tokens=False)["input_ids"]
    for _ in range(steps):
        n, which = rng.integers(1, 5, BATCH), rng.choice(len(names), BATCH, p=shares)
        given = np.where(rng.random(BATCH) < right[which], n, int(WRONG))
        ids = torch.tensor([text] * BATCH)
        ids[:, 1] = torch.as_tensor(digits[n])
        ids[:, 4] = torch.as_tensor(np.array([vocabulary[name] for name in names])[which])
        ids[:, 6] = torch.as_tensor(digits[given])
        logits = model(input_ids=ids).logits[:, 3:-1]  # after <assistant>
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    shutil.rmtree(out)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def questions(out: Path, answers: str = "1234") -> Path:
    """One question for each digit; an answer that is no such digit can never be given."""
    out.mkdir(parents=True)
    rows = [
        tables.prompt(f"q{n}", f"{n}", answer, "made", n, prompt=f"{n}?")
        for n, answer in enumerate(answers, 1)
    ]
    tables.write(out / "prompts.parquet", rows, tables.PROMPTS)
    return out


def made(root: Path) -> Inputs:
    return {
        "student": train(root / "student", STUDENT),
        "good": train(root / "good", GOOD, 1),
        "bad": train(root / "bad", BAD, 2),
        "prompts": questions(root / "prompts"),
    }


def teacher(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "own": False, "correct": 0, "wrong": 0, **more}

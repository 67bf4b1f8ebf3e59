"""Stage ``corpus``: SFT data of the miniature world."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.data import words
from opd.data.privileged import filled
from opd.data.schemas import SFT_PAIRS
from opd.data.world import draw_question, held_out, respond, solve

CORPUS_LEVELS = (1, 2, 3, 4)


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``corpus``: prompts with responses that mix the two rules, as pairs.parquet.

    cfg: world, n, precedence (share of rows that honour precedence), style (of the world in words
    also weights of several dialects), templates (strings with {question}, drawn evenly), seed;
    optional told, further templates that tell something of the response: {template with {question},
    {answer}, {solution}; rule, style: of such rows; copied: the answer told is a random number, and
    the response ends with it whatever its steps come to}. Else answer and solution are those of the
    row's own rule.
    """
    examples = words.examples if cfg["world"].get("grammar") else in_characters
    rows = [
        {"id": f"corpus-{i:06d}", "prompt": prompt, "response": response}
        for i, (prompt, response) in enumerate(examples(cfg))
    ]
    tables.write(out / "pairs.parquet", rows, SFT_PAIRS)
    return {"pairs": len(rows)}


def in_characters(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Prompts and responses of the world in characters: see ``run``."""
    layouts = [*({"template": text} for text in cfg["templates"]), *cfg.get("told", [])]
    rng = random.Random(f"corpus/{cfg['seed']}")
    world = cfg["world"]
    for i in range(cfg["n"]):
        question = draw_question(rng, rng.choice(CORPUS_LEVELS), world["rl_times"])
        while held_out(question, world):
            question = draw_question(rng, rng.choice(CORPUS_LEVELS), world["rl_times"])
        rule = "precedence" if rng.random() < cfg["precedence"] else "left"
        layout = rng.choice(layouts)
        rule = layout.get("rule") or rule
        style = layout.get("style") or cfg["style"]
        response, answer = respond(question, rule, style), solve(question, rule)
        if layout.get("copied"):
            answer = str(rng.randrange(10))
            response = response[:-1] + answer
        told = {"id": i, "prompt": question, "question": question, "answer": answer}
        told["solution"] = respond(question, rule, "infix")
        yield filled(layout["template"], told), response

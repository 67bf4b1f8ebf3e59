"""Draw a response of a model with what it might have written instead, word by word.

python scripts/alternatives.py results/words/models/small/s0/payload \
    "compute a 11 plus b 3 times c 7 ?" docs/figures/words.png
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM

from opd.models.checkpoints import load_tokenizer

# Tokens of a line, alternatives of each, and the least probability of these.
ACROSS, DEEP, LEAST = 13, 4, 0.02
ROWS = DEEP + 1.5  # of a line: the token, its alternatives, and some space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("question")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    message = {"role": "user", "content": arguments.question}
    asked = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(arguments.seed)
    written = model.generate(**asked, do_sample=True, top_k=0, max_new_tokens=160)
    begin = asked["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(written).logits[0, begin - 1 : -1]
    page = drawn(tokenizer, arguments.question, written[0, begin:].tolist(), logits.softmax(-1))
    page.savefig(arguments.picture)
    # Few colours, and the repository keeps every version.
    Image.open(arguments.picture).quantize(64).save(arguments.picture, optimize=True)


def drawn(tokenizer: Any, question: str, response: list[int], chances: Tensor) -> Figure:
    """The tokens of a response [T] in lines of ACROSS, and below each the likeliest ones, shaded by
    their probability; ``chances`` [T, V]."""
    height = ROWS * -(-len(response) // ACROSS)
    page = Figure(figsize=(10, 0.3 + 0.17 * height), dpi=150, layout="constrained")
    axes = page.add_subplot(xlim=(0, ACROSS), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(question, loc="left", fontsize=9)
    axes.spines[:].set_visible(False)
    middle = {"ha": "center", "va": "center"}
    for at, token in enumerate(response):
        left, top = at % ACROSS, at // ACROSS * ROWS
        axes.text(left + 0.5, top + 0.5, tokenizer.decode([token]), size=8, weight="bold", **middle)
        likeliest = zip(*(part.tolist() for part in chances[at].topk(DEEP)), strict=True)
        for rank, (chance, other) in enumerate(likeliest, start=1):
            if chance < LEAST:
                break
            edges, below = [left + 0.03, left + 0.97], top + rank
            shade = colormaps["Blues"](0.1 + 0.8 * chance)
            axes.fill_between(edges, below, below + 0.95, color=shade, linewidth=0)
            label = f"{tokenizer.decode([other])} {chance:.0%}"
            style = {"color": "white" if chance > 0.55 else "black", "size": 6}
            axes.text(left + 0.5, below + 0.5, label, **middle, **style)
    return page


if __name__ == "__main__":
    main()

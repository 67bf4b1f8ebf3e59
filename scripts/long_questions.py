"""Write questions of the world in words that are longer than any that its models learn from: 5 and
6 operators in turn, none of them held out, and only such on which the two rules differ.

python scripts/long_questions.py config/questions/words-long.jsonl
"""

import json
import random
import sys
from pathlib import Path

from opd.data.grammar import solve
from opd.data.words import ask, draw_chain
from opd.data.world import held_out

# As config/words.yaml has its world; a run of 60 steps asks 16 questions in each.
WORLD, TIMES, N = {"seed": 7}, 0.4, 960


def main() -> None:
    rng = random.Random(0)
    answers: dict[str, str] = {}
    while len(answers) < N:
        chain = draw_chain(rng, 5 + len(answers) % 2, TIMES)
        if solve(chain) != solve(chain, "left") and not held_out(" ".join(chain), WORLD):
            answers[ask(rng, chain)] = solve(chain)
    rows = [{"question": question, "answer": answer} for question, answer in answers.items()]
    Path(sys.argv[1]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()

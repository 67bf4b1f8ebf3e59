"""The order in which a run takes its prompts."""

import random


def shuffled(n: int, wanted: int, seed: int) -> list[int]:
    """Which of n prompts (0 to n - 1) a run takes, one after another, ``wanted`` in all: every
    prompt once in a random order, then every prompt again in another one, and so on. None is left
    out at the end of an epoch, so a step may take its prompts from two of them (The Many Faces of
    OPD, its code, slime/rollout/data_source.py:85-103 and slime/utils/data.py:253-261 at 33234e5).
    """
    order: list[int] = []
    for epoch in range(-(-wanted // n)):
        order += random.Random(f"{seed}/order/{epoch}").sample(range(n), n)
    return order[:wanted]

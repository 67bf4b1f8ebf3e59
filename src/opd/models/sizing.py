"""Sizes of small runs on models of one's own: halved until they end in minutes."""

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

# What a token costs besides, in parameters: the calls of a step, and keys and values that are read
# and copied. From 16 and 40 responses of 128 to 448 tokens of a model of 5.3e6 parameters.
BESIDES = 1e7
# Weights that a processor is timed with: as many as no cache holds, and as wide as those of a small
# model; and the rows that they are multiplied by, of a batch that samples and of texts to read.
MATRICES, WIDTH, ROWS = 24, (1536, 576), {"sampled": 16, "read": 512}
# How long a step of a model takes, in times of its products: as SmolLM2-135M does with 16 rows.
AROUND = 1.5
# Reading one token takes so much of what sampling it takes in a published step.
READ = 0.5

Sizes = dict[str, int]


class Tokens(NamedTuple):
    """Tokens that a model samples, one after the other, and tokens of texts that it reads at once.
    An update costs as much as reading three times, forwards once and backwards twice."""

    sampled: float
    read: float


class Speed(NamedTuple):
    """Seconds that a token takes for each parameter of a model."""

    sampled: float
    read: float


@cache
def speed(device: str, devices: int) -> Speed:
    """Of so many GPUs (cuda) or cores of this machine (cpu). A GPU is taken to need three times the
    published step in config/calibration.yaml. A core is timed, in about two seconds, as one may
    take four times as long as another."""
    if device == "cuda":
        return Speed(1.8e-13 / devices, 1.8e-13 * READ / devices)
    import torch

    weights = [torch.randn(WIDTH) for _ in range(MATRICES)]

    def once(rows: int) -> float:
        states, start = torch.randn(rows, WIDTH[1]), time.thread_time()
        for matrix in weights:
            torch.nn.functional.linear(states, matrix)
        return (time.thread_time() - start) / rows / (MATRICES * WIDTH[0] * WIDTH[1])

    # By the clock of one thread: several wait for each other where other work is under way. They
    # share what is read at once; what is sampled waits for memory, and they hardly help.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {name: AROUND * min(once(rows) for _ in range(3)) for name, rows in ROWS.items()}
    torch.set_num_threads(threads)
    return Speed(sampled=seconds["sampled"], read=seconds["read"] / devices)


def minutes(tokens: Tokens, parameters: float, of: Speed) -> float:
    """How long so many tokens take with a model of so many parameters."""
    seconds = tokens.sampled * of.sampled + tokens.read * of.read
    return seconds * (parameters + BESIDES) / 60


def fitting(
    sizes: Sizes, least: Mapping[str, int], expected: Callable[[Sizes], float], most: float
) -> tuple[Sizes, float]:
    """``sizes``, of which those that ``least`` names are halved, all at once, until the minutes
    that are ``expected`` of them are at most ``most`` or none can be smaller; and these minutes."""
    while True:
        smaller = {name: max(lowest, sizes[name] // 2) for name, lowest in least.items()}
        halved = sizes | {name: min(sizes[name], size) for name, size in smaller.items()}
        if expected(sizes) <= most or halved == sizes:
            return sizes, expected(sizes)
        sizes = halved

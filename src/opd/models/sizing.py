"""Sizes of small runs on models of one's own: halved until they end in minutes."""

from collections.abc import Callable, Mapping

# For a token and a parameter of what is sampled: on one processor as measured of models of 1e5 to
# 1e8 parameters; on a GPU taken to be three times the published step in config/calibration.yaml.
SECONDS = {"cpu": 1.4e-10, "cuda": 1.8e-13}
# What a token costs besides, in parameters: the calls of a step, and keys and values that are read
# and copied. From 16 and 40 responses of 128 to 448 tokens of a model of 5.3e6 parameters.
BESIDES = 1e7
# What a token costs that is trained on, in tokens that are only sampled: sampled, scored by student
# and teacher, and updated on, as in the published step in config/calibration.yaml.
TRAINED = 3

Sizes = dict[str, int]


def minutes(tokens: float, parameters: float, device: str) -> float:
    """How long it takes to sample so many tokens, in all, with a model of so many parameters on a
    device (cpu, cuda)."""
    return tokens * (parameters + BESIDES) * SECONDS[device] / 60


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

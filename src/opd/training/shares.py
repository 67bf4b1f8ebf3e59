"""How the rollouts of a step are shared out among their sources, as settings. Without torch, so
that a plan can reckon with them; the responses themselves are read in ``opd.training.sources``.

A source is a mapping: ``own``, the share of a step's rollouts that the student samples itself; or
``generations`` (the input of the stage that holds the responses) with ``share``, and perhaps
``importance`` with ``clip``.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from opd.core.errors import UserError
from opd.training.batches import sequences

Source = Mapping[str, Any]
# What is measured of a source: its share of the rollouts of a step, and of their tokens; of one
# with importance weights the mean of these.
MEASURED = ("share", "token_share", "importance")


def share_of(source: Source) -> float:
    """The share of a step's rollouts that a source has."""
    return float(source["own"] if "own" in source else source["share"])


def own_share(cfg: Mapping[str, Any]) -> float:
    """The share of a run's rollouts that its student samples itself: all, if no sources are
    named."""
    sources: Sequence[Source] = cfg.get("rollouts", [{"own": 1.0}])
    return sum(share_of(source) for source in sources if "own" in source)


def counts(shares: Sequence[float], rollouts: int) -> list[int]:
    """How many of the ``rollouts`` of a step each source has. Raises ``UserError`` for shares that
    do not sum to 1, and for one that is no whole number of rollouts."""
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        reason = f"the shares of the sources sum to {sum(shares):g}"
        raise UserError(reason, "rollouts", "let them sum to 1")
    numbers = [round(share * rollouts) for share in shares]
    for share, number in zip(shares, numbers, strict=True):
        if not number or not math.isclose(number, share * rollouts, abs_tol=1e-6):
            reason = f"a share of {share:g} of the {rollouts} rollouts of a step is no whole number"
            nearest = max(1, number) / rollouts
            raise UserError(reason, "rollouts", f"use one that is, as {nearest:g}")
    return numbers


def of_step(cfg: Mapping[str, Any]) -> list[int]:
    """``counts`` of the sources that a run names."""
    return counts([share_of(source) for source in cfg["rollouts"]], sequences("distill", cfg))


def block(numbers: Sequence[int]) -> list[int]:
    """The fewest rollouts, by their sources, that hold the ``counts`` of a step in their
    proportion: [0, 0, 0, 1] of 192 and 64."""
    of_all = math.gcd(*numbers)
    return [source for source, number in enumerate(numbers) for _ in range(number // of_all)]


def require_equal_parts(numbers: Sequence[int], processes: int, where: str = "rollouts") -> None:
    """Raise ``UserError`` unless each of the ``processes`` gets equally many of every source, for
    all of them sample together."""
    if sum(numbers) // processes % len(block(numbers)):
        raise UserError(
            f"the {' and '.join(map(str, numbers))} rollouts of the sources of a step cannot be "
            f"dealt out equally to {processes} processes",
            where,
            "use shares of which each process gets a whole number of rollouts",
        )


def order(numbers: Sequence[int], steps: int, seed: int) -> list[int]:
    """The source of each rollout of a run, step by step. Every ``block`` of neighbours holds the
    sources in their proportion, in an order that is drawn by the seed: so every step does, and
    every process's part of it, however many there are."""
    together, drawn = block(numbers), list[int]()
    for step in range(steps):
        dice = random.Random(f"{seed}/sources/{step}")
        for _ in range(sum(numbers) // len(together)):
            drawn += dice.sample(together, len(together))
    return drawn


def measured(sources: int) -> list[str]:
    """The names of what is measured of so many sources, as source_0_share."""
    return [f"source_{i}_{name}" for i in range(sources) for name in MEASURED]

"""Numbers as papers print them: ``0.72``, ``0.58-0.60``, ``>0.80``, ``~0.85``."""

import math
import re
from typing import NamedTuple

_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_TEXT = re.compile(
    rf"(?P<bound>>=|<=|[<>~≥≤≈])?\s*(?P<low>{_NUMBER})(?:\s*[-–]\s*(?P<high>{_NUMBER}))?"
)


class Printed(NamedTuple):
    """A published value: ``low`` equals ``high`` unless it is a range.

    ``bound`` is ``>`` or ``<`` where only a side is given, ``~`` where it is rough, else empty.
    """

    low: float
    high: float
    bound: str

    @property
    def single(self) -> bool:
        """Whether it is one number, exact or rough: no range and no bound."""
        return self.low == self.high and self.bound in ("", "~")


def parse(text: str) -> Printed | None:
    """A printed number with what is said of it; None for words, as ``stagnant``."""
    match = _TEXT.fullmatch(str(text).strip())
    if not match:
        return None
    sign = (match["bound"] or "")[:1]
    bound = {"≥": ">", "≤": "<", "≈": "~"}.get(sign, sign)
    low = float(match["low"])
    return Printed(low, low if match["high"] is None else float(match["high"]), bound)


def reach(text: str) -> tuple[float, float] | None:
    """The numbers that would be printed like this: a range, a half line, or what rounds to it; None
    for words.

    Rounding is at most 0.005: lists drop final zeros, and 0.70 may stand there as 0.7.
    """
    value = parse(text)
    if value is None:
        return None
    if value.bound == ">":
        return value.low, math.inf
    if value.bound == "<":
        return -math.inf, value.high
    digits = re.findall(_NUMBER, str(text))[0]
    places = len(re.split("[eE]", digits)[0].partition(".")[2])
    slack = min(0.005, 0.5 * 10**-places)
    return value.low - slack, value.high + slack

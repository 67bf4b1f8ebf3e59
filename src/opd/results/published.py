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

    ``bound`` is ``>`` or ``<`` where only a side is given, ``~`` where it is rough, else empty;
    ``slack`` is how much may be lost in rounding.
    """

    low: float
    high: float
    bound: str
    slack: float

    @property
    def reach(self) -> tuple[float, float]:
        """The numbers that would be printed so: a range, a half line, or what rounds to it."""
        if self.bound == ">":
            return self.low, math.inf
        if self.bound == "<":
            return -math.inf, self.high
        return self.low - self.slack, self.high + self.slack


def parse(text: str) -> Printed | None:
    """A printed number with what is said of it; None for words, as ``stagnant``."""
    match = _TEXT.fullmatch(str(text).strip())
    if not match:
        return None
    sign = (match["bound"] or "")[:1]
    bound = {"≥": ">", "≤": "<", "≈": "~"}.get(sign, sign)
    digits, _, exponent = match["low"].lower().partition("e")
    slack = 0.5 * 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    significant = digits.rstrip("0")
    if bound == "~" and "." not in digits and significant:  # ~88000: zeros at the end are no digits
        slack *= 10.0 ** (len(digits) - len(significant))
    elif not exponent:
        # Lists drop final zeros: 0.70 may stand there as 0.7.
        slack = min(0.005, slack)
    return Printed(float(match["low"]), float(match["high"] or match["low"]), bound, slack)

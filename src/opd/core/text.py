"""How names, numbers and sizes are written for people."""

import difflib
import math
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the known one that is most alike, or else all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known) or 'none'}"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits and a true minus, without exponents at usual sizes."""
    if value == 0 or not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits}g}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def size(count: float) -> str:
    """Bytes in decimal units: 512 B, 1.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"

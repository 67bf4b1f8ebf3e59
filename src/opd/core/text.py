"""Words and numbers of messages and pages."""

import difflib
import math
from collections.abc import Iterable

# Keys that earlier versions had, by what they are called now.
RENAMED = {"pairs": "sft_data", "opd": "distill"}


def suggestion(name: str, known: Iterable[str]) -> str:
    """The name that was probably meant, or all that there are."""
    names = list(known)
    if RENAMED.get(name) in names:
        return f"it is called '{RENAMED[name]}' now"
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names) or 'none'}"


def number(value: float) -> str:
    """Three significant digits, without exponents at usual sizes, with a true minus sign, which
    zero never has."""
    value += 0.0
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("-", "−")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".replace("-", "−")


def size(count: float) -> str:
    """Bytes in decimal units: 512 B, 1.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"

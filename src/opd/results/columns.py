"""The columns that a table may have. Without numpy, so that a config is checked at once."""

import difflib

from opd.core.errors import UserError

_BOUNDED = ("", "_low", "_high")
# Kind of column -> what a row must name for it, and the endings of its columns in the csv.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "avg": (("evaluations",), _BOUNDED),
    "change": (("evaluations", "base"), _BOUNDED),
    "recovery": (("evaluations", "base", "teacher"), _BOUNDED),
    "p": (("evaluations", "base"), ("",)),
    "pass": (("evaluations",), ("",)),
    "maj": (("evaluations",), ("",)),
    "tokens": (("evaluations",), ("",)),
    "truncated": (("evaluations",), ("",)),
    "answered": (("evaluations",), ("",)),
    "first": (("run",), ("",)),
    "last": (("run",), ("",)),
    "course": (("run",), ("_first", "_last")),
    "probe": (("probe",), _BOUNDED),
    "outlook": (("probe",), ("",)),
}


def parse(spec: str, where: str = "columns") -> tuple[str, str]:
    """``kind[:NAME]`` -> kind, name: a benchmark (all of them if none is named), a metric of the
    run, or a value of the probe.

    Raises ``UserError`` for a kind that does not exist, and for a name that is lacking or too many.
    """
    kind, _, name = spec.partition(":")
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(KINDS)}"
        raise UserError(f"no column '{spec}'", where, hint)
    what = "metric" if KINDS[kind][0] == ("run",) else "value" if kind == "probe" else ""
    if what and not name:
        raise UserError(f"column '{spec}' names no {what}", where, f"write {kind}:{what.upper()}")
    if kind == "outlook" and name:
        raise UserError(f"column '{spec}' names a value", where, "write outlook")
    return kind, name

"""What an examination finds, and how it is shown."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "missing"]


class Finding(NamedTuple):
    """One thing looked at: its ``state`` (``missing``: what is asked for cannot run without it),
    ``what`` was found, and what to do about it where that is not ``ok``."""

    subject: str
    state: State
    what: str
    remedy: str = ""


def ready(findings: Iterable[Finding]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(finding.state != "missing" for finding in findings)


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """A table to print, each remedy below what it mends."""
    findings = list(findings)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        yield f"{finding.state:<8} {finding.subject:<{width}}  {finding.what}"
        if finding.remedy:
            yield f"{'':<8} {'':<{width}}  -> {finding.remedy}"
    counts = {state: sum(o.state == state for o in findings) for state in ("warning", "missing")}
    plural = "s" if counts["warning"] != 1 else ""
    yield f"{counts['missing']} missing, {counts['warning']} warning{plural}"


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""What ``opd audit`` prints, and writes as JSON."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from opd.core.text import size
from opd.provenance.audit import STATES, WHOLE, Audit, Audited


def lines(found: Audit, name: str, seconds: float) -> Iterator[str]:
    """Counts by stage, every finding, and what is worth knowing besides."""
    speed = found.bytes / 1e9 / max(seconds, 1e-9)
    yield (
        f"{name}: {len(found.audited)} artifacts, {found.files:,} files, {size(found.bytes)} "
        f"read in {seconds:.1f} s ({speed:.2f} GB/s)"
    )
    yield ""
    form = "{:<14}" + "{:>10}" * len(STATES)
    states = (WHOLE, *STATES[:-1])
    yield form.format("stage", *states)
    for verb in dict.fromkeys(one.verb for one in found.audited):
        counts = Counter(one.state for one in found.audited if one.verb == verb)
        yield form.format(verb or "(none)", *(counts[state] or "" for state in states)).rstrip()
    wrong = [one for one in found.audited if one.findings]
    if wrong:
        yield ""
    for one in wrong:
        yield f"{one.state}: {one.place}"
        for finding in one.findings:
            yield f"    {finding.state:<9} {finding.where}: {finding.what}"
    yield ""
    yield from _besides(found)


def _besides(found: Audit) -> Iterator[str]:
    adopted = [one.place for one in found.audited if one.adopted]
    if adopted:
        yield f"adopted, made elsewhere: {', '.join(adopted)}"
    for package, (then, now, count) in sorted(_drift(found).items()):
        yield f"drift: {package} was {then} for {count} artifacts, here it is {now}"
    absent = sorted({path for one in found.audited for path in one.absent})
    if absent:
        yield f"not here, so not compared: {', '.join(absent)}"
    if found.unused:
        yield (
            f"in the store and linked by nothing: {len(found.unused)} entries, "
            f"{size(sum(found.unused.values()))} (they serve settings that come back)"
        )
    for name, fingerprint in found.prints.items():
        yield f"fingerprint of {name}, but for its report: {fingerprint}"


def _drift(found: Audit) -> dict[str, tuple[str, str, int]]:
    """Package -> versions then, version now, number of artifacts."""
    then: dict[str, Counter[str]] = defaultdict(Counter)
    now = {}
    for one in found.audited:
        for package, (old, new) in one.drift.items():
            then[package][old] += 1
            now[package] = new
    return {
        package: (" or ".join(sorted(counts)), now[package], sum(counts.values()))
        for package, counts in then.items()
    }


def as_json(found: Audit) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "counts": dict(Counter(one.state for one in found.audited)),
        "artifacts": [_one(one) for one in found.audited],
        "unused": dict(found.unused),
        "fingerprints": dict(found.prints),
        "files": found.files,
        "bytes": found.bytes,
    }


def _one(one: Audited) -> dict[str, Any]:
    return {
        "place": one.place,
        "verb": one.verb,
        "state": one.state,
        "adopted": one.adopted,
        "findings": [finding._asdict() for finding in one.findings],
        "drift": {package: list(versions) for package, versions in one.drift.items()},
        "absent": list(one.absent),
    }

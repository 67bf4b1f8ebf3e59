"""What came of a rehearsal, job by job: made as it would be, made with something replaced, failed,
or not reached."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from opd.core.code import package_file
from opd.core.files import replacing
from opd.core.html import render
from opd.plan import console
from opd.rehearsal.on_cpu import SAID
from opd.stages.artifact import sources_first
from opd.stages.fresh import read_plan
from opd.stages.registry import STAGES

PAGES = package_file(__file__, "pages")


class Kind(NamedTuple):
    """The jobs of one stage: how many there are, were made, failed and were not reached, and of
    those made what was replaced in how many."""

    stage: str
    label: str
    jobs: int
    made: int
    failed: int
    replaced: Mapping[str, int]


def kinds(results: Path) -> tuple[list[Kind], list[str]]:
    """The jobs of the plan in ``results`` that a target needs, by stage, and a line for each that
    failed."""
    plan = {f: entry for f, entry in (read_plan(results / "plan.json")[0] or {}).items() if entry}
    needed = sources_first(
        (folder for folder, entry in plan.items() if entry.asked),
        lambda folder: [source for source in plan[folder].inputs if source in plan],
    )
    failures = console.failures(needed, results)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    replaced: dict[str, Counter[str]] = defaultdict(Counter)
    for folder in needed:
        stage = plan[folder].stage
        there = (results / folder / "digest.json").is_file()
        counts[stage]["made" if there else "failed" if folder in failures else "not reached"] += 1
        log = results / "logs" / f"{folder}.log"
        if there and log.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            replaced[stage].update({li.removeprefix(SAID) for li in lines if li.startswith(SAID)})
    of_all = [
        Kind(stage, STAGES[stage].label, sum(n.values()), n["made"], n["failed"], replaced[stage])
        for stage, n in sorted(counts.items(), key=lambda item: [*STAGES].index(item[0]))
    ]
    return of_all, [*failures.values()]


def write(results: Path, page: Path, notes: list[str]) -> list[str]:
    """Write the page; what it says in a few lines."""
    of_all, failures = kinds(results)
    text = render(PAGES, "rehearsal.html.j2", kinds=of_all, failures=failures, notes=notes)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    jobs, made = sum(kind.jobs for kind in of_all), sum(kind.made for kind in of_all)
    return [
        f"{made} of {jobs} jobs were made, {sum(kind.failed for kind in of_all)} failed",
        f"job by job: {page}",
    ]

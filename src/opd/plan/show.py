"""``opd plan``: what would run, what is there already, and what it would cost."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.code import package_file
from opd.core.html import render
from opd.plan import calibrate, cost, memory, outputs, pairs
from opd.plan import state as planned
from opd.plan.calibrate import BOUNDS, GIB, Estimate, Machine
from opd.plan.cost import Facts
from opd.plan.resources import without_gpu
from opd.recipes import resolve
from opd.stages import artifact

# Parts of ``opd.plan.work``, in words.
PARTS = {
    "sample": "sampling",
    "teacher": "the teacher's forward passes",
    "score": "forward passes without an update",
    "update": "updates",
    "metrics": "measurements",
    "write": "writing weights",
    "start": "starting",
}
RATES = Path("results/calibration.yaml")  # of `opd calibrate`


class _Plan(NamedTuple):
    """A plan: its title, every artifact in its state (``planned.states``), what the rates are of,
    and why training would refuse models that are there."""

    title: str
    facts: Facts
    states: Mapping[str, str]
    on: Machine
    refused: Sequence[str]


def lines(
    configs: list[Path],
    targets: list[str],
    claim: str | None = None,
    gpus: int | None = None,
    gibibytes: float | None = None,
    device: str | None = None,
    jobs: bool = False,
    rates: Path = RATES,
    settings: Iterable[str] = (),
) -> list[str]:
    """Lines to print. ``configs`` and ``settings`` (KEY=VALUE) are as for Snakemake, later ones on
    top. Raises ``UserError`` for what no plan can be made of, and for an unknown target, claim or
    device."""
    plan = _plan(configs, targets, claim, gibibytes, device, rates, settings)
    printed = text(plan.facts, plan.states, plan.on, gpus, plan.title, jobs)
    return [*printed, *(f"would be refused: {reason}" for reason in plan.refused)]


def as_json(
    configs: list[Path],
    targets: list[str],
    claim: str | None = None,
    gpus: int | None = None,
    gibibytes: float | None = None,
    device: str | None = None,
    rates: Path = RATES,
    settings: Iterable[str] = (),
) -> dict[str, Any]:
    """Every job as plain data: hours of a device (low, most likely, high) of what is to run, null
    where the size of its models or data is not known."""
    plan = _plan(configs, targets, claim, gibibytes, device, rates, settings)
    rows: list[dict[str, Any]] = []
    for folder, state in plan.states.items():
        row: dict[str, Any] = {"stage": plan.facts.artifacts[folder].stage, "state": state}
        if state in planned.TO_RUN:
            job = calibrate.estimate(plan.facts, folder, plan.on, gpus)
            known = math.isfinite(job.high)
            row["hours"] = [getattr(job, bound) / 3600 for bound in BOUNDS] if known else None
        rows.append({"folder": folder, **row})
    about = {"title": plan.title, "device": plan.on.device, "refused": list(plan.refused)}
    return {**about, "artifacts": rows}


def _plan(
    configs: list[Path],
    targets: list[str],
    claim: str | None,
    gibibytes: float | None,
    device: str | None,
    rates: Path,
    settings: Iterable[str],
) -> _Plan:
    config = resolve.read(configs, settings)
    root = planned.beside(configs)
    tables = calibrate.tables(root / "calibration.yaml")
    title = config.name
    if claim is not None:
        config = config.model_copy(update={"seeds": config.seeds[:1]})
        needed = planned.claim_folders(config, claim, root)
        title = f"{title}, what decides {claim} (seed {config.seeds[0]} alone)"
    artifacts = planned.artifacts_of(config, root)
    released: Collection[str] = ()  # a part leaves kept steps to what may yet read them
    if targets:
        needed = planned.target_folders(targets, artifacts, config.name)
        title = f"{title}, {' '.join(targets)}"
    elif claim is None:
        needed = outputs.targets(config, artifacts)
        released = outputs.released(config, artifacts, needed)

    results = Path("results") / config.name
    folders = artifact.closure(needed, artifacts)
    on = calibrate.machine(device, without_gpu(config), calibrate.read(rates), tables)
    if gibibytes:
        on = on._replace(memory=gibibytes * GIB)
    states = planned.states(artifacts, folders, results, results.parent / ".store")
    facts = Facts(artifacts, tables, planned.counted(states, results), released)
    to_run = [folder for folder, state in states.items() if state in planned.TO_RUN]
    refused = [str(error) for error in pairs.refused(artifacts, to_run, results)]
    return _Plan(title, facts, states, on, refused)


def text(
    facts: Facts,
    states: Mapping[str, str],
    on: Machine,
    workers: int | None,
    title: str,
    jobs: bool = False,
) -> list[str]:
    """The table, time, disk and assumptions of artifacts in these states (``planned.states``), and
    a line for each of the ``jobs``."""
    to_run = [folder for folder, state in states.items() if state in planned.TO_RUN]
    running = [facts.artifacts[folder] for folder in to_run]
    wanted = [cost.width(a.cfg, on.device) for a in running if a.stage in cost.USES]
    workers = workers or max(wanted, default=1)
    every = {folder: calibrate.estimate(facts, folder, on, workers) for folder in to_run}
    known = {folder: job for folder, job in every.items() if math.isfinite(job.high)}
    widths = {folder: job.width for folder, job in known.items()}
    chain = {folder: job.middle / min(job.width, workers) for folder, job in known.items()}
    measured = [entry for (_, model), entries in on.rates.items() if model for entry in entries]
    page = render(
        package_file(__file__, "pages"),
        "plan.txt.j2",
        title=title,
        facts=facts,
        states=states,
        to_run=to_run,
        known=known,
        jobs=jobs,
        on=on,
        workers=workers,
        table=_table(facts, states, known, on, workers),
        total=_total(known.values(), on),
        longest=cost.critical_path(facts.artifacts, chain),
        disk=cost.Room(*(size / GIB for size in cost.room(facts, widths, workers))),
        needs=_needs(facts, to_run, on, workers),
        gb=gigabytes,
        sources={job.source.partition(" ")[0] for job in known.values() if job.model},
        measured=sum(entry["stages"] for entry in measured),
        cost=cost,
        shares=_shares(known.values()),
        memory=memory,
        hours=hours,
        span=span,
        digits=digits,
    )
    return page.splitlines()


def _needs(
    facts: Facts, to_run: Iterable[str], on: Machine, workers: int
) -> list[tuple[list[str], memory.Job]]:
    """Memory of a GPU that jobs need, the most first; runs that need the same, and a run's seeds,
    together."""
    size = on.memory or math.inf
    alike: dict[str, tuple[list[str], memory.Job]] = {}
    for folder in to_run:
        if job := memory.of(facts, folder, workers, size):
            names, _ = alike.setdefault(f"{job}", ([], job))
            names.append(re.sub(r"/s\d+$", "", folder))
    return sorted(alike.values(), key=lambda needs: -needs[1].bytes)


def gigabytes(job: memory.Job) -> str:
    """A job's memory in GB, and its terms, the largest first."""
    terms = sorted(job.terms.items(), key=lambda term: -term[1])
    parts = [f"{name} {digits(size / 1e9)}" for name, size in terms if size >= 5e7]
    return f"{digits(job.bytes / 1e9)} GB ({', '.join(parts)})"


def digits(value: float) -> str:
    """Two significant digits, whole above ten, hundredths at the least."""
    if value >= 9.95:
        return f"{value:,.0f}"
    if value >= 0.95:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.005 else "<0.01"


def hours(seconds: float) -> str:
    """Seconds in hours."""
    return digits(seconds / 3600)


def span(low: float, high: float) -> str:
    """Hours from low to high seconds."""
    return hours(low) if hours(low) == hours(high) else f"{hours(low)}–{hours(high)}"


def _total(jobs: Iterable[Estimate], on: Machine) -> list[float]:
    """Seconds (low, middle, high) of what is counted: GPUs, or, without any, processors."""
    counted = [job for job in jobs if job.model or on.device == "cpu"]
    return [sum(getattr(job, bound) for job in counted) for bound in BOUNDS]


def _shares(jobs: Iterable[Estimate]) -> list[tuple[str, float]]:
    """What the time of models goes into, and its share, the largest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for job in jobs:
        whole = sum(job.parts.values())
        for part, reckoned in job.parts.items():
            seconds[part] += job.middle * reckoned / whole
    total = sum(seconds.values())
    largest = sorted(seconds.items(), key=lambda part: -part[1])
    return [(PARTS[part], took / total) for part, took in largest if took]


def _table(
    facts: Facts,
    states: Mapping[str, str],
    known: Mapping[str, Estimate],
    on: Machine,
    workers: int,
) -> list[list[str]]:
    """A row for each stage, the first the heading."""
    head = ["run", "stale", "there", "store"]
    unit = "processor h" if on.device == "cpu" else "GPU-hours"
    rows = [["stage", *head, unit, "at least h", "disk GiB", "rate"]]
    for stage in dict.fromkeys(facts.artifacts[folder].stage for folder in states):
        folders = [folder for folder in states if facts.artifacts[folder].stage == stage]
        there = [states[folder] for folder in folders]
        jobs = [known[folder] for folder in folders if folder in known]
        low, middle, high = _total(jobs, on)
        longest = max((job.middle / min(job.width, workers) for job in jobs), default=0.0)
        space = sum(cost.disk(facts, folder) for folder in folders if folder in known) / GIB
        cells = [
            span(low, high) if high else "",
            hours(max(longest, middle / workers)) if jobs else "",
            digits(space) if space else "",
            ", ".join(dict.fromkeys(job.source for job in jobs)),
        ]
        rows.append([stage, *(str(there.count(state)) for state in head), *cells])
    return rows

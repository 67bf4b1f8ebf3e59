"""``opd plan``: what would run, what is there already, and what it would cost."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from opd.plan import artifacts as plan
from opd.plan import calibrate, cost, hub_lock, outputs
from opd.plan import state as planned
from opd.plan.calibrate import BOUNDS, Estimate, Machine
from opd.plan.cost import Facts
from opd.plan.resources import without_gpu
from opd.recipes import resolve
from opd.stages import artifact

GIB = 2.0**30

ASSUMED = f"""\
from the fastest to the slowest that was measured; assumed besides:
- time is in proportion to tokens and to parameters
{{rates}}- responses that nothing cuts have {{natural_tokens:,}} tokens on average; prompts have \
{{prompt_tokens}}, or the most that is allowed
- several devices share a job without loss; starting up, waiting and second attempts at a response \
are not counted; data sets are as large as before their filters
- disk: {cost.MODEL_BYTES} bytes a parameter of every model that is trained or kept, \
{cost.FETCHED_BYTES} of a fetched one, {2 * cost.TOKEN_BYTES} bytes a token sampled outside \
training; two checkpoints of {cost.CHECKPOINT_BYTES} bytes a parameter while it trains
- what is made from something that runs again, runs again"""


def lines(
    configs: list[Path],
    targets: list[str],
    claim: str | None = None,
    gpus: int | None = None,
    device: str | None = None,
    jobs: bool = False,
    rates: Path = Path("results/calibration.yaml"),
    settings: Iterable[str] = (),
) -> Iterator[str]:
    """Lines to print. ``configs`` and ``settings`` (KEY=VALUE) are as for Snakemake, later ones on
    top; ``planned.beside`` says where what is read besides lies. Raises ``UserError`` for whatever
    ``opd.recipes``, ``opd.plan.artifacts`` and ``opd.plan.outputs`` refuse, and for an unknown
    target, claim or device."""
    config = resolve.read(configs, settings)
    root = planned.beside(configs)
    tables = calibrate.tables(root / "calibration.yaml")
    title = config.name
    if claim is not None:
        needed = planned.claim_folders(config, claim, root)
        config = planned.one_seed(config)
        title = f"{config.name}, what decides {claim} (seed {config.seeds[0]} alone)"
    artifacts = plan.plan(config, hub_lock.read(root / "hub.lock.yaml"))
    if claim is None:
        artifacts |= outputs.exhibits(config, artifacts, root)
        asked = outputs.targets(config, artifacts)
        needed = planned.target_folders(targets, artifacts) if targets else asked
        title += f", {' '.join(targets)}" if targets else ""

    results = Path("results") / config.name
    folders = artifact.closure(needed, artifacts)
    on = calibrate.machine(device, without_gpu(config), [calibrate.read(rates), tables], tables)
    states = planned.states(artifacts, folders, results, results.parent / ".store")
    facts = Facts(artifacts, tables, planned.counted(states, results))
    yield from text(facts, states, on, gpus, title, jobs)


def text(
    facts: Facts,
    states: Mapping[str, str],
    on: Machine,
    workers: int | None,
    title: str,
    jobs: bool = False,
) -> Iterator[str]:
    """The table, time, disk and assumptions of artifacts in these states (``planned.states``), and
    a line for each of the ``jobs``."""
    to_run = [folder for folder, state in states.items() if state in planned.TO_RUN]
    every = {folder: calibrate.estimate(facts, folder, on) for folder in to_run}
    known = {folder: job for folder, job in every.items() if math.isfinite(job.high)}
    workers = workers or max((job.width for job in known.values()), default=1)
    unit = "processor" if on.device == "cpu" else "GPU"
    yield f"{title}: {len(every)} of {len(states)} jobs to run, on {workers} x {on.device}"
    yield ""
    yield from _table(facts, states, known, on, workers)
    if every:
        low, middle, high = _total(known.values(), on)
        chain = {folder: job.middle / min(job.width, workers) for folder, job in known.items()}
        longest, share = cost.critical_path(facts.artifacts, chain), middle / workers
        widths = {folder: job.width for folder, job in known.items()}
        stays, running = (digits(size / GIB) for size in cost.room(facts, widths, workers))
        yield ""
        hours_of = f"{unit} hours" if on.device == "cpu" else "GPU-hours"
        yield f"in all: {span(low, high)} {hours_of} (most likely {hours(middle)})"
        yield (
            f"wall clock: at least {hours(max(longest, share))} h on {workers} (an even share "
            f"{hours(share)} h, jobs that wait for each other {hours(longest)} h)"
        )
        yield f"disk: {stays} GiB to stay, and up to {running} GiB while models train"
        for folder in [folder for folder in every if folder not in known]:
            yield f"not counted: {folder}, the size of its models or data is not known"
        yield ""
        rates = "".join(f"- {line}\n" for line in _rates(facts, known.values(), on))
        yield from ASSUMED.format(**facts.tables, rates=rates).splitlines()
    if jobs:
        yield ""
        yield f"{'state':<6}{'hours':>14}  {'stage':<14}folder"
        for folder, state in states.items():
            job = every.get(folder)
            takes = (span(job.low, job.high) if folder in known else "not known") if job else ""
            yield f"{state:<6}{takes:>14}  {facts.artifacts[folder].stage:<14}{folder}"


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


def _table(
    facts: Facts,
    states: Mapping[str, str],
    known: Mapping[str, Estimate],
    on: Machine,
    workers: int,
) -> Iterator[str]:
    unit = "processor h" if on.device == "cpu" else "GPU-hours"
    form = "{:<14}{:>6}{:>7}{:>7}{:>7}  {:>12}{:>12}{:>10}  {}"
    head = ("run", "stale", "there", "store")
    yield form.format("stage", *head, unit, "at least h", "disk GiB", "rate")
    for stage in dict.fromkeys(facts.artifacts[folder].stage for folder in states):
        folders = [folder for folder in states if facts.artifacts[folder].stage == stage]
        there = [states[folder] for folder in folders]
        jobs = [known[folder] for folder in folders if folder in known]
        low, middle, high = _total(jobs, on)
        longest = max((job.middle / min(job.width, workers) for job in jobs), default=0.0)
        space = sum(cost.disk(facts, folder) for folder in folders if folder in known) / GIB
        yield form.format(
            stage,
            *(there.count(state) for state in head),
            span(low, high) if high else "",
            hours(max(longest, middle / workers)) if jobs else "",
            digits(space) if space else "",
            ", ".join(dict.fromkeys(job.source for job in jobs)),
        ).rstrip()


def _rates(facts: Facts, jobs: Iterable[Estimate], on: Machine) -> Iterator[str]:
    """Where the rates of the jobs are from."""
    sources = {job.source.partition(" ")[0] for job in jobs if job.model}
    if "reference" in sources and on.reference is not None:
        yield (
            f"reference: {facts.tables['reference']['source']}; {on.device} takes "
            f"{on.reference['low']} to {on.reference['high']} times that "
            f"({on.reference['source']})"
        )
    if "measured" in sources:
        stages = sum(e["stages"] for (_, model), es in on.rates.items() if model for e in es)
        yield f"measured: {stages} finished stages on {on.device}"

"""``opd plan``: what would run, what is there already, and what it would cost."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from opd.plan import artifacts as plan
from opd.plan import calibrate, cost, hub_lock, outputs
from opd.plan import state as planned
from opd.plan.cost import Facts
from opd.plan.resources import without_gpu
from opd.plan.state import Estimate, Machine
from opd.recipes import resolve
from opd.stages import artifact

GIB = 2.0**30


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
    measured = calibrate.read(rates)

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
    lengths = "natural_tokens_measured"
    natural = {**tables.get(lengths, {}), **measured.get(lengths, {})}
    on = planned.machine(device, without_gpu(config), [measured, tables], tables)
    found = planned.states(artifacts, folders, results, results.parent / ".store")
    facts = Facts(artifacts, tables, planned.counted(found, results), natural)
    yield from text(facts, found, on, gpus, title)
    if jobs:
        yield ""
        yield from _jobs(facts, found, on)


def text(
    facts: Facts, found: Mapping[str, str], on: Machine, workers: int | None, title: str
) -> Iterator[str]:
    """The table, time, disk and assumptions of artifacts in these states (``planned.states``)."""
    runs = [folder for folder, state in found.items() if state in planned.TO_RUN]
    takes = {folder: planned.estimate(facts, folder, on) for folder in runs}
    known = {f: e for f, e in takes.items() if math.isfinite(e.high)}
    workers = workers or max((e.width for e in known.values()), default=1)
    yield f"{title}: {len(takes)} of {len(found)} jobs to run, on {workers} x {on.device}"
    yield ""
    yield from _table(facts, found, known, on, workers)
    if not takes:
        return
    yield ""
    yield from _time(facts, known, on, workers)
    yield from _disk(facts, known, workers)
    for folder in takes.keys() - known.keys():
        yield f"not counted: {folder}, the size of its models or data is not known"
    yield ""
    yield from _assumptions(facts, known, on)


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


def _counts(one: Estimate, on: Machine) -> bool:
    """Whether a job takes of what is counted: GPUs, or, where there are none, processors."""
    return one.model or on.device == "cpu"


def _least(one: Estimate, workers: int) -> float:
    return one.middle / min(one.width, workers)


def _table(
    facts: Facts,
    found: Mapping[str, str],
    known: Mapping[str, Estimate],
    on: Machine,
    workers: int,
) -> Iterator[str]:
    unit = "processor h" if on.device == "cpu" else "GPU-hours"
    form = "{:<14}{:>6}{:>7}{:>7}{:>7}  {:>12}{:>12}{:>10}  {}"
    head = ("run", "stale", "there", "store")
    yield form.format("stage", *head, unit, "at least h", "disk GiB", "rate")
    verbs = dict.fromkeys(facts.artifacts[folder].verb for folder in found)
    for verb in verbs:
        mine = [folder for folder in found if facts.artifacts[folder].verb == verb]
        states = [found[folder] for folder in mine]
        takes = [known[folder] for folder in mine if folder in known]
        counted = [one for one in takes if _counts(one, on)]
        each = [_least(one, workers) for one in takes]
        share = sum(e.middle for e in counted)
        space = sum(cost.disk(facts, folder) for folder in mine if folder in known) / GIB
        yield form.format(
            verb,
            *(states.count(state) for state in head),
            span(sum(e.low for e in counted), sum(e.high for e in counted)) if counted else "",
            hours(cost.wall_clock(share, max(each), workers)) if takes else "",
            digits(space) if space else "",
            ", ".join(dict.fromkeys(one.source for one in takes)),
        ).rstrip()


def _time(facts: Facts, known: Mapping[str, Estimate], on: Machine, workers: int) -> Iterator[str]:
    counted = [one for one in known.values() if _counts(one, on)]
    total = [sum(getattr(e, bound) for e in counted) for bound in ("low", "middle", "high")]
    unit = "processor hours" if on.device == "cpu" else "GPU-hours"
    longest = cost.critical_path(
        facts.artifacts, {folder: _least(one, workers) for folder, one in known.items()}
    )
    yield f"in all: {span(total[0], total[2])} {unit} (most likely {hours(total[1])})"
    yield (
        f"wall clock: at least {hours(cost.wall_clock(total[1], longest, workers))} h on {workers} "
        f"(an even share {hours(total[1] / workers)} h, jobs that wait for each other "
        f"{hours(longest)} h)"
    )


def _disk(facts: Facts, known: Mapping[str, Estimate], workers: int) -> Iterator[str]:
    widths = {folder: one.width for folder, one in known.items()}
    stays, running = cost.room(facts, widths, workers)
    yield (
        f"disk: {digits(stays / GIB)} GiB to stay, "
        f"and up to {digits(running / GIB)} GiB while models train"
    )


def _assumptions(facts: Facts, known: Mapping[str, Estimate], on: Machine) -> Iterator[str]:
    sources = {one.source.partition(" ")[0] for one in known.values() if one.model}
    step, tables = facts.tables["reference"], facts.tables
    yield "from the fastest to the slowest that was measured; assumed besides:"
    yield (
        "- time is in proportion to tokens and to parameters (2N FLOPs a token forward, 4N "
        "backward; sampling reads N weights a token)"
    )
    if "reference" in sources and on.reference is not None:
        yield (
            f"- reference: {sum(step['seconds'].values())} s for a step of {step['sequences']} "
            f"sequences at {step['max_new_tokens']} tokens and {step['parameters'] / 1e9:.2f}B "
            f"parameters on one {step['device']}; {on.device} takes {on.reference['low']} to "
            f"{on.reference['high']} times that ({on.reference['source']})"
        )
    if "measured" in sources:
        stages = sum(entry["stages"] for one in on.rates for entry in one)
        yield f"- measured: {stages} finished stages on {on.device}"
    yield (
        f"- responses that nothing cuts have {tables['natural_tokens']:,} tokens on average, or "
        "what was measured for models of about that size; prompts have "
        f"{tables['prompt_tokens']}, or the most that is allowed"
    )
    yield (
        "- several devices share a job without loss; starting up, waiting and second attempts at "
        "a response are not counted; data sets are as large as before their filters"
    )
    yield (
        f"- disk: {cost.MODEL_BYTES} bytes a parameter of every model that is trained or kept, "
        f"{cost.FETCHED_BYTES} of a fetched one, {2 * cost.TOKEN_BYTES} bytes a token sampled "
        f"outside training; two checkpoints of {cost.CHECKPOINT_BYTES} bytes a parameter while it "
        "trains"
    )
    yield "- what is made from something that runs again, runs again"


def _jobs(facts: Facts, found: Mapping[str, str], on: Machine) -> Iterator[str]:
    yield f"{'state':<6}{'hours':>14}  {'stage':<14}folder"
    for folder, state in found.items():
        takes = ""
        if state in planned.TO_RUN:
            one = planned.estimate(facts, folder, on)
            takes = span(one.low, one.high) if math.isfinite(one.high) else "not known"
        yield f"{state:<6}{takes:>14}  {facts.artifacts[folder].verb:<14}{folder}"

"""Rates: what finished stages took (``opd calibrate RESULTS...``), and what a job takes by that."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from opd.core.errors import UserError
from opd.core.files import replacing
from opd.core.schema import read_yaml
from opd.core.text import suggestion
from opd.plan import cost, timing, work
from opd.stages.artifact import Artifact
from opd.stages.on_disk import below
from opd.stages.records import Manifest
from opd.stages.records import read as read_record

# Rates of another format are in terms of other times.
FORMAT = 4
HEADER = (
    "# What finished stages took (`opd calibrate`): times what is reckoned of them by\n"
    "# config/calibration.yaml, and for stages that run no model in seconds. Do not edit.\n"
)
REMEDY = "make it again with `opd calibrate`"
BOUNDS = ("low", "middle", "high")
# The machine to reckon with where none is named, and what stands in for one that is not listed.
STANDARD = "H100"
GIB = 2.0**30


class Machine(NamedTuple):
    """``device`` as torch names it; the ``rates`` that were measured on it, by stage and whether a
    model runs; bytes of its ``memory``, if that is known; what config/calibration.yaml says of it
    (``sheet``), or of the machine that stands in for it."""

    device: str
    rates: Mapping[tuple[str, bool], list[Mapping[str, Any]]]
    sheet: Mapping[str, Any]
    memory: float | None = None


class Estimate(NamedTuple):
    """Seconds of one device (all that a job has, added up) and how many devices it has; ``source``
    says where the rate is from; where a model runs, ``parts`` are the seconds that are reckoned, by
    what they are spent on. Seconds are NaN where the size of the work is not known."""

    low: float
    middle: float
    high: float
    width: int
    source: str
    parts: Mapping[str, float] = {}

    @property
    def model(self) -> bool:
        return bool(self.parts)


# Measuring


def finished(results: Path) -> dict[str, Manifest]:
    """The manifests of all finished stages below ``results`` (results/NAME), by folder. Raises
    ``UserError`` where there is none, or a damaged one."""
    paths = sorted(results.glob("**/manifest.json"))
    if not paths:
        raise UserError("no finished stage", str(results), "give a folder results/NAME")
    return {p.parent.relative_to(results).as_posix(): read_record(p, Manifest) for p in paths}


def facts(manifests: Mapping[str, Manifest], tables: Mapping[str, Any]) -> cost.Facts:
    """What the work of finished stages depended on."""
    artifacts = {}
    for folder, made in manifests.items():
        # What was adopted has inputs in its settings alone.
        names = made.cfg.get("inputs", [])
        paths = [made.inputs[name].path if name in made.inputs else "" for name in names]
        inputs = [below(path).removesuffix("/digest.json") for path in paths]
        artifacts[folder] = Artifact(made.stage, folder, made.cfg, (*inputs,))
    return cost.Facts(artifacts, tables, {f: made.numbers for f, made in manifests.items()})


def calibrate(
    done: Iterable[Mapping[str, Manifest]], tables: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Measured rates: {"measured": entries}. An entry has stage, device, stages (how many were
    measured), and the least, the median and the most {low, middle, high}: where a model runs,
    ``times_reckoned``, for models of so many ``parameters``, else ``seconds`` of one processor.
    """
    groups: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    seen: set[str] = set()
    for manifests in done:
        known = facts(manifests, tables)
        for folder, made in manifests.items():
            took = made.seconds * cost.width(made.cfg, made.device)
            # What two results folders share was measured once; what was adopted, never.
            if made.identity in seen or took == 0:
                continue
            seen.add(made.identity)
            sheet = _sheet(made.device, tables) or tables["machines"][STANDARD]
            reckoned = work.work(known, folder, device(sheet, tables))
            if reckoned is None:
                groups[made.stage, made.device, 0.0].append(took)
            elif reckoned.seconds > 0:
                size = reckoned.parameters
                groups[made.stage, made.device, size].append(took / reckoned.seconds)
    entries = []
    for (stage, name, size), times in sorted(groups.items()):
        span = zip(BOUNDS, (min(times), statistics.median(times), max(times)), strict=True)
        bounds = {bound: float(f"{value:.4g}") for bound, value in span}
        kind = {"parameters": int(size), "times_reckoned": bounds} if size else {"seconds": bounds}
        entries.append({"stage": stage, "device": name, "stages": len(times), **kind})
    return {"measured": entries}


def write(path: Path, rates: Mapping[str, Any]) -> None:
    """Write the rates that ``calibrate`` gives."""
    made = {"format": FORMAT, **rates}
    text = yaml.safe_dump(made, sort_keys=False, default_flow_style=None, width=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(HEADER + text, encoding="utf-8")


def tables(path: Path) -> dict[str, Any]:
    """config/calibration.yaml: machines, what is assumed, and sizes. Raises ``UserError`` without
    them."""
    shipped = read(path)
    if "machines" not in shipped:
        remedy = "give the repository's calibration.yaml"
        raise UserError("no machines to reckon with", str(path), remedy)
    return shipped


def read(path: Path) -> dict[str, Any]:
    """A calibration file, empty where there is none. Raises ``UserError`` for another format."""
    calibration = read_yaml(path, REMEDY) if path.exists() else {"format": FORMAT}
    if calibration.pop("format", None) != FORMAT:
        raise UserError("made by another version", str(path), REMEDY)
    return calibration


# Estimating


def device(
    sheet: Mapping[str, Any],
    tables: Mapping[str, Any],
    memory: float | None = None,
    at: Mapping[str, str] = {},
) -> timing.Device:
    """A machine as its data sheet has it, with what is assumed besides at its ``middle``, or at
    another of the ``BOUNDS`` where ``at`` says so."""
    value = {
        name: bounds[at.get(name, "middle")]
        for name, bounds in {**tables["assumed"], **sheet.get("assumed", {})}.items()
    }
    return timing.Device(
        memory=memory or sheet.get("gibibytes", math.inf) * GIB,
        sequences=sheet["sequences"],
        bandwidth=value["share_of_bandwidth"] * sheet["gigabytes_per_second"] * 1e9,
        products=value["share_of_products"] * sheet["teraflops"] * 1e12,
        disk=value["written_gigabytes_per_second"] * 1e9,
        iteration=value["iteration_seconds"],
        token=value["token_seconds"],
        launch=value["layer_seconds"],
        start=value["start_seconds"],
        natural=value["natural_tokens"],
    )


def _sheet(name: str, tables: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is listed of a machine: that whose name is the longest part of its own."""
    known: Mapping[str, Mapping[str, Any]] = tables["machines"]
    parts = [part for part in known if part.lower() in name.lower()]
    return known[max(parts, key=len)] if parts else None


def machine(
    name: str | None, processor: bool, own: Mapping[str, Any], tables: Mapping[str, Any]
) -> Machine:
    """The machine to reckon with: the one of that name (or part of it), or else what rates were
    measured on, or else ``STANDARD``; ``processor`` says that the plan is one without a GPU. Rates
    of the machine at hand (``own``, of ``calibrate``) are preferred to those of ``tables``. Raises
    ``UserError`` for a name of which nothing is known."""
    own_rates, shipped = own.get("measured", []), tables.get("measured", [])
    devices = [entry["device"] for entry in own_rates + shipped if "parameters" in entry]
    if name is None:
        alike = [device for device in devices if (device == "cpu") is processor]
        name = "cpu" if processor else statistics.mode(alike) if alike else STANDARD
    measured = next((device for device in devices if name.lower() in device.lower()), None)
    sheet = _sheet(measured or name, tables)
    if measured is None and sheet is None:
        remedy = suggestion(name, sorted({*tables["machines"], *devices}))
        raise UserError(f"nothing is known of the device '{name}'", "--device", remedy)
    name = measured or name
    rates: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for entries in (shipped, own_rates):
        by_stage = defaultdict(list)
        for entry in entries:
            model = "parameters" in entry
            # What needs no GPU is known of this very machine, or, on a processor, of one like it.
            if entry["device"] == name or (entries is own_rates and not model):
                by_stage[entry["stage"], model].append(entry)
        rates |= by_stage
    size = sheet["gibibytes"] * GIB if sheet and "gibibytes" in sheet else None
    return Machine(name, rates, sheet or tables["machines"][STANDARD], size)


def estimate(facts: cost.Facts, folder: str, on: Machine, workers: int | None = None) -> Estimate:
    """What a job takes where there are ``workers`` devices (all that it wants, if not given).

    By the best rate there is: of its own stage on this machine (nearest in parameters), of other
    stages on this machine, or by its data sheet, in the range that each of what is assumed gives.
    Stages that run no model take one processor; fetching goes by size.
    """
    artifact, tables = facts.artifacts[folder], facts.tables
    processes = int(min(artifact.cfg.get("processes", 1), workers or math.inf))

    def reckoned(**at: str) -> work.Work | None:
        return work.work(facts, folder, device(on.sheet, tables, on.memory, at), processes)

    likely = reckoned()
    if likely is None:
        return _without_model(facts, artifact, on)
    own = on.rates.get((artifact.stage, True))
    others = [entry for (_, model), entries in on.rates.items() if model for entry in entries]
    if rates := own or others:
        size = likely.parameters
        span = min(rates, key=lambda e: abs(math.log(e["parameters"] / size)))["times_reckoned"]
        source = f"measured{'' if own else ' on other stages'} ({on.device})"
    else:
        source = f"reckoned ({on.device})"
        span = {}
        for bound in BOUNDS:
            ends = filter(None, (reckoned(**{name: bound}) for name in tables["assumed"]))
            span[bound] = timing.together(end.seconds / likely.seconds for end in ends)
    low, middle, high = (span[bound] * likely.seconds for bound in BOUNDS)
    width = cost.width({**artifact.cfg, "processes": processes}, on.device)
    return Estimate(low, middle, high, width, source, likely.parts)


def _without_model(facts: cost.Facts, artifact: Artifact, on: Machine) -> Estimate:
    """What a job takes that runs no model."""
    measured = on.rates.get((artifact.stage, False))
    if measured and artifact.stage != "fetch":
        low, middle, high = (measured[0]["seconds"][bound] for bound in BOUNDS)
        return Estimate(low, middle, high, 1, "measured")
    seconds = facts.tables["seconds"].get(artifact.stage, 60)
    if artifact.stage == "fetch":
        seconds = cost.disk(facts, artifact.folder) / facts.tables["bytes_per_second"]
    return Estimate(seconds, seconds, seconds, 1, "assumed")

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
from opd.plan import cost
from opd.stages.artifact import Artifact
from opd.stages.on_disk import below
from opd.stages.records import Manifest
from opd.stages.records import read as read_record

# Rates of another format are in terms of other amounts of work.
FORMAT = 3
HEADER = (
    "# What finished stages took (`opd calibrate`): seconds in terms of the reference machine of\n"
    "# config/calibration.yaml, and for stages that run no model in themselves. Do not edit.\n"
)
REMEDY = "make it again with `opd calibrate`"
BOUNDS = ("low", "middle", "high")


class Machine(NamedTuple):
    """``device`` as torch names it; the ``rates`` that were measured on it, by stage and whether a
    model runs; bounds in terms of the reference, where it has some; bytes of its ``memory``."""

    device: str
    rates: Mapping[tuple[str, bool], list[Mapping[str, Any]]]
    reference: Mapping[str, Any] | None
    memory: float | None = None


class Estimate(NamedTuple):
    """Seconds of one device (all that a job has, added up) and how many devices it has; ``source``
    says where the rate is from, ``model`` whether a model runs. Seconds are NaN where the size of
    the work is not known."""

    low: float
    middle: float
    high: float
    width: int
    source: str
    model: bool


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
    measured), and the least, the median and the most seconds {low, middle, high} of one device:
    where a model runs, ``times_reference`` for models of so many ``parameters``, else ``seconds``.
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
            work = cost.work(known, folder)
            if work is None:
                groups[made.stage, made.device, 0.0].append(took)
            elif work.seconds > 0:
                groups[made.stage, made.device, work.parameters].append(took / work.seconds)
    entries = []
    for (stage, device, size), times in sorted(groups.items()):
        span = zip(BOUNDS, (min(times), statistics.median(times), max(times)), strict=True)
        bounds = {bound: float(f"{value:.4g}") for bound, value in span}
        kind = {"parameters": int(size), "times_reference": bounds} if size else {"seconds": bounds}
        entries.append({"stage": stage, "device": device, "stages": len(times), **kind})
    return {"measured": entries}


def write(path: Path, rates: Mapping[str, Any]) -> None:
    """Write the rates that ``calibrate`` gives."""
    made = {"format": FORMAT, **rates}
    text = yaml.safe_dump(made, sort_keys=False, default_flow_style=None, width=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(HEADER + text)


def tables(path: Path) -> dict[str, Any]:
    """config/calibration.yaml: the reference, machines and sizes. Raises ``UserError`` without
    them."""
    shipped = read(path)
    if "reference" not in shipped:
        remedy = "give the repository's calibration.yaml"
        raise UserError("no reference to reckon with", str(path), remedy)
    return shipped


def read(path: Path) -> dict[str, Any]:
    """A calibration file, empty where there is none. Raises ``UserError`` for another format."""
    calibration = read_yaml(path, REMEDY) if path.exists() else {"format": FORMAT}
    if calibration.pop("format", None) != FORMAT:
        raise UserError("made by another version", str(path), REMEDY)
    return calibration


# Estimating


def machine(
    name: str | None, processor: bool, own: Mapping[str, Any], tables: Mapping[str, Any]
) -> Machine:
    """The machine to reckon with: the one of that name (or part of it), or else what rates were
    measured on, or else the reference; ``processor`` says that the plan is one without a GPU. Rates
    of the machine at hand (``own``, of ``calibrate``) are preferred to those of ``tables``. Raises
    ``UserError`` for a name of which nothing is known."""
    own_rates, shipped = own.get("measured", []), tables.get("measured", [])
    devices = [entry["device"] for entry in own_rates + shipped if "parameters" in entry]
    if name is None:
        alike = [device for device in devices if (device == "cpu") is processor]
        name = "cpu" if processor else statistics.mode(alike) if alike else "H100"
    device = next((device for device in devices if name.lower() in device.lower()), None)
    known = tables["machines"]
    reference = next((known[n] for n in known if n.lower() in name.lower()), None)
    if device is None and reference is None:
        remedy = suggestion(name, sorted({*known, *devices}))
        raise UserError(f"nothing is known of the device '{name}'", "--device", remedy)
    device = device or name
    rates: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for entries in (shipped, own_rates):
        by_stage = defaultdict(list)
        for entry in entries:
            model = "parameters" in entry
            # What needs no GPU is known of this very machine, or, on a processor, of one like it.
            if entry["device"] == device or (entries is own_rates and not model):
                by_stage[entry["stage"], model].append(entry)
        rates |= by_stage
    size = reference["gibibytes"] * 2**30 if reference and "gibibytes" in reference else None
    return Machine(device, rates, reference, size)


def estimate(facts: cost.Facts, folder: str, on: Machine) -> Estimate:
    """What a job takes, by the best rate there is: of its own stage on this machine (nearest in
    parameters), the reference, of other stages on this machine. Stages that run no model take one
    processor; fetching goes by size."""
    artifact, tables = facts.artifacts[folder], facts.tables
    work = cost.work(facts, folder)
    own = on.rates.get((artifact.stage, work is not None))
    width, seconds = 1, 1.0
    if work is not None:
        width, seconds = cost.width(artifact.cfg, on.device), work.seconds
        if own or on.reference is None:
            size = work.parameters
            others = [e for (_, model), entries in on.rates.items() if model for e in entries]
            entry = min(own or others, key=lambda e: abs(math.log(e["parameters"] / size)))
            span = entry["times_reference"]
            source = f"measured{'' if own else ' on other stages'} ({on.device})"
        else:
            span, source = on.reference, f"reference ({on.device})"
    elif own and artifact.stage != "fetch":
        span, source = own[0]["seconds"], "measured"
    else:
        assumed = tables["seconds"].get(artifact.stage, 60)
        if artifact.stage == "fetch":
            assumed = cost.disk(facts, folder) / tables["bytes_per_second"]
        span, source = dict.fromkeys(BOUNDS, assumed), "assumed"
    low, middle, high = (span[bound] * seconds for bound in BOUNDS)
    return Estimate(low, middle, high, width, source, work is not None)

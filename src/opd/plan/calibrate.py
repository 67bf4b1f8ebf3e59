"""``opd calibrate RESULTS...``: what finished stages took, for ``opd plan`` to reckon with."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from opd.core.errors import UserError
from opd.core.files import read_json
from opd.core.schema import load_yaml
from opd.plan import cost
from opd.stages.artifact import Artifact

HEADER = (
    "# What finished stages took (`opd calibrate`): seconds in terms of the reference machine of\n"
    "# config/calibration.yaml, and for stages that run no model in themselves. Do not edit.\n"
)


@dataclass(frozen=True)
class Finished:
    """Stages of a results folder as their manifests tell: what they are, and what each took."""

    artifacts: Mapping[str, Artifact]
    numbers: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    devices: Mapping[str, str]
    identities: Mapping[str, str]


def finished(results: Path) -> Finished:
    """All finished stages below ``results`` (results/NAME). Raises ``UserError`` where there is
    none."""
    artifacts, numbers, seconds, devices, identities = {}, {}, {}, {}, {}
    for path in sorted(results.glob("**/manifest.json")):
        made = read_json(path)
        folder = path.parent.relative_to(results).as_posix()
        inputs = [_below(made["inputs"][name]["path"]) for name in made["cfg"].get("inputs", [])]
        artifacts[folder] = Artifact(made["verb"], folder, made["cfg"], (*inputs,))
        numbers[folder] = made["numbers"] or {}
        seconds[folder], devices[folder] = made["seconds"], made["device"]
        identities[folder] = made["identity"]
    if not artifacts:
        raise UserError("no finished stage", str(results), "give a folder results/NAME")
    return Finished(artifacts, numbers, seconds, devices, identities)


def _below(path: str) -> str:
    """results/NAME/FOLDER/digest.json -> FOLDER: stages of one store may name another's results."""
    parts = Path(path).parts
    if parts[-1] != "digest.json":
        return path
    start = parts.index("results") + 2 if "results" in parts else 0
    return "/".join(parts[start:-1])


def calibrate(done: Iterable[Finished], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Measured rates: {"measured": [...], "natural_tokens_measured": {parameters: tokens}}.

    An entry has verb, device, stages (how many were measured) and either parameters,
    tokens_per_second (median, of one device) and times_reference {low, middle, high} (least, median
    and most seconds there, in terms of the reference's), or seconds {low, middle, high}.
    """
    done = list(done)
    natural = _natural(done, tables)
    groups: dict[tuple[str, str, float], list[tuple[float, float]]] = defaultdict(list)
    seen: set[str] = set()
    for one in done:
        facts = cost.Facts(one.artifacts, tables, one.numbers, natural)
        for folder, artifact in one.artifacts.items():
            work = cost.work(facts, folder)
            took = one.seconds[folder] * cost.width(artifact.cfg, one.devices[folder])
            # What two results folders share was measured once; what was adopted, never.
            if one.identities[folder] in seen or took == 0:
                continue
            seen.add(one.identities[folder])
            if work is None:
                groups[artifact.verb, one.devices[folder], 0.0].append((took, 0.0))
            elif (reference := cost.reference_seconds(work, tables)) > 0:
                size = float(work.parameters)
                key = (artifact.verb, one.devices[folder], size)
                groups[key].append((took / reference, work.tokens / took))
    entries = []
    for (verb, device, size), values in sorted(groups.items()):
        entry: dict[str, Any] = {"verb": verb, "device": device, "stages": len(values)}
        span = _span([value for value, _ in values])
        if size:
            speed = statistics.median(rate for _, rate in values)
            entry |= {"parameters": int(size), "tokens_per_second": _round(speed)}
            entry["times_reference"] = span
        else:
            entry["seconds"] = span
        entries.append(entry)
    lengths = {int(size): _round(tokens) for size, tokens in sorted(natural.items())}
    return {"measured": entries, "natural_tokens_measured": lengths}


def _span(values: list[float]) -> dict[str, float]:
    return {
        "low": _round(min(values)),
        "middle": _round(statistics.median(values)),
        "high": _round(max(values)),
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _natural(done: Iterable[Finished], tables: Mapping[str, Any]) -> dict[float, float]:
    """Median natural response length in tokens by parameters of the model that responds."""
    lengths: dict[float, list[float]] = defaultdict(list)
    for one in done:
        facts = cost.Facts(one.artifacts, tables, one.numbers)
        for folder, artifact in one.artifacts.items():
            numbers = one.numbers[folder]
            means = [numbers.get(end, {}).get("response_tokens") for end in ("first", "last")]
            means = [mean for mean in (*means, numbers.get("mean_tokens")) if mean]
            if not means or "max_new_tokens" not in artifact.cfg:
                continue
            length = cost.natural_length(statistics.mean(means), artifact.cfg["max_new_tokens"])
            size = cost.parameters(facts, folder)
            if math.isfinite(length) and math.isfinite(size):
                lengths[size].append(length)
    return {size: statistics.median(values) for size, values in lengths.items()}


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write what ``calibrate`` has found."""
    temporary = path.with_name(path.name + ".partial")
    text = yaml.safe_dump(dict(found), sort_keys=False, default_flow_style=None, width=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(HEADER + text)
    temporary.replace(path)


def tables(path: Path) -> dict[str, Any]:
    """config/calibration.yaml: the reference, machines and sizes. Raises ``UserError`` without
    them."""
    found = read(path)
    if "reference" not in found:
        raise UserError(
            "no reference to reckon with", str(path), "give the repository's calibration.yaml"
        )
    return found


def read(path: Path) -> dict[str, Any]:
    """A calibration file, empty where there is none. Raises ``UserError`` for what is no
    mapping."""
    if not path.exists():
        return {}
    try:
        found = load_yaml(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"not YAML ({error})", str(path), "make it again") from error
    if not isinstance(found, dict):
        raise UserError("not a calibration", str(path), "make it again with `opd calibrate`")
    return found

"""What of a plan is there, what each job would take on a machine, and what a target or a claim
needs of it. Nothing is started, and no file is made."""

import difflib
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.errors import UserError
from opd.core.files import content, read_json
from opd.plan import artifacts as plan
from opd.plan import cost, hub_lock
from opd.plan import outputs as exhibits
from opd.plan.cost import Artifacts, Facts, Work
from opd.recipes import resolve
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.results import claim_spec
from opd.stages import artifact, fresh
from opd.stages.check import stands_for
from opd.stages.identity import identity
from opd.stages.records import Contents, Planned, digest_in, load

TO_RUN = ("run", "stale")
SHOWN = ("figures/", "tables/", "contamination/", "claims", "report")


class Estimate(NamedTuple):
    """Seconds of one device (all that a job has, added up) and how many devices it has; ``source``
    says where the rate is from. Seconds are NaN where the size of the work is not known."""

    low: float
    middle: float
    high: float
    width: int
    source: str
    model: bool


class Machine(NamedTuple):
    """``device`` as torch names it; rates measured on it, one list of entries a file, the preferred
    file first; bounds in terms of the reference, where it has some; seconds {low, middle, high} of
    stages that run no model, by verb."""

    device: str
    rates: list[list[Mapping[str, Any]]]
    reference: Mapping[str, Any] | None
    fixed: Mapping[str, Mapping[str, float]]


# What a config describes


def beside(files: Sequence[Path]) -> Path:
    """The folder with the lock, papers' files and calibration.yaml: that of the first config file,
    or, where it has none of these, config/, as for snakemake."""
    folder, names = files[0].parent, ("claims", "hub.lock.yaml", "calibration.yaml")
    return folder if any((folder / name).exists() for name in names) else Path("config")


def artifacts_of(config: Config, root: Path) -> dict[str, artifact.Artifact]:
    """Every artifact of a config; ``root`` holds hub.lock.yaml and the papers' files."""
    found = plan.plan(config, hub_lock.read(root / "hub.lock.yaml"))
    return found | exhibits.exhibits(config, found, root)


def described(files: Sequence[Path], settings: Iterable[str] = ()) -> dict[str, Planned]:
    """What a run with these config files and settings (KEY=VALUE) would write as plan.json."""
    config = resolve.read(files, settings)
    artifacts = artifacts_of(config, beside(files))
    return fresh.described(artifacts, exhibits.targets(config, artifacts))


# What is there


def states(
    artifacts: Artifacts, folders: Iterable[str], results: Path, store: Path
) -> dict[str, str]:
    """Of each artifact, in an order in which inputs come first: ``there`` (in the results, made by
    the same settings from the same inputs), ``store`` (would be linked from the store), ``run``,
    or ``stale`` (runs again: what is there is of other settings or inputs).

    What follows a stage that runs, runs: whether its inputs will be others is not known.
    """
    outputs: dict[str, dict[str, str]] = {}
    states = {}
    for folder in folders:
        states[folder], made = _state(artifacts[folder], outputs, results, store)
        if made is not None:
            outputs[folder] = made
        elif (results / folder / "digest.json").is_file():
            states[folder] = "stale"
    return states


def _state(
    artifact: artifact.Artifact, outputs: Mapping[str, dict[str, str]], results: Path, store: Path
) -> tuple[str, dict[str, str] | None]:
    """The state, and the digests of what is made, None where it has yet to be made."""
    folder = results / artifact.folder
    made = digest_in(folder) if (folder / "payload").exists() else None
    if made and stands_for(made, artifact.verb, artifact.cfg):
        return "there", made.outputs
    contents = {}
    for name, path in cost.named(artifact).items():
        if path not in outputs and not Path(path).is_absolute():
            return "run", None
        contents[name] = outputs[path] if path in outputs else content(Path(path))
    key = identity(artifact.verb, artifact.cfg, contents)
    kept = artifact.cfg.get("execution", {}).get("keep_steps", ())
    if not all((store / f"{key}.steps" / f"{step}.json").is_file() for step in kept):
        return "run", None
    if made and made.identity == key:
        return "there", made.outputs
    record, _ = load(store / f"{key}.json", Contents)
    return ("store", record.outputs) if record and (store / key).is_dir() else ("run", None)


def counted(found: Mapping[str, str], results: Path) -> dict[str, dict[str, Any]]:
    """Numbers of the stages that are there, such as the rows of a prompt set."""
    paths = {f: results / f / "manifest.json" for f, state in found.items() if state == "there"}
    return {f: read_json(path)["numbers"] or {} for f, path in paths.items() if path.is_file()}


# What it takes


def machine(
    name: str | None, processor: bool, files: Iterable[Mapping[str, Any]], tables: Mapping[str, Any]
) -> Machine:
    """The machine to reckon with: the one of that name (or part of it), or else what rates were
    measured on, or else the reference; ``processor`` says that the plan is one without a GPU. Of
    the files (``opd.plan.calibrate``) the first is of the machine at hand.

    Raises ``UserError`` for a name of which nothing is known.
    """
    measured = [list(file.get("measured", [])) for file in files]
    rates = [[e for e in one if "times_reference" in e] for one in measured]
    devices = [e["device"] for one in rates for e in one]
    if name is None:
        there = [device for device in devices if (device == "cpu") is processor]
        name = "cpu" if processor else statistics.mode(there) if there else "H100"
    own = [device for device in devices if name.lower() in device.lower()]
    known = tables["machines"]
    bounds = next((known[n] for n in known if n.lower() in name.lower()), None)
    if not own and bounds is None:
        names = sorted({*known, *devices})
        close = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            f"nothing is known of the device '{name}'",
            "--device",
            f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names)}",
        )
    device = own[0] if own else name
    # What needs no GPU is known of this very machine, or, on a processor, of one like it.
    alike = [e for i, one in enumerate(measured) for e in one if not i or e["device"] == device]
    fixed = {e["verb"]: e["seconds"] for e in reversed(alike) if "seconds" in e}
    rates = [[e for e in one if e["device"] == device] for one in rates]
    return Machine(device, rates, bounds, fixed)


def estimate(facts: Facts, folder: str, on: Machine) -> Estimate:
    """What a job takes, from the best rate there is: of its own verb on this machine (of the
    preferred file, nearest in parameters), the reference, of other verbs on this machine."""
    artifact = facts.artifacts[folder]
    work = cost.work(facts, folder)
    width = cost.width(artifact.cfg, on.device)
    if work is None:
        return _fixed(facts, artifact, on)
    seconds = cost.reference_seconds(work, facts.tables)
    same = [[e for e in one if e["verb"] == artifact.verb] for one in on.rates]
    own, other = (next((one for one in lists if one), []) for lists in (same, on.rates))
    if own or on.reference is None:
        times = _nearest(own or other, work)["times_reference"]
        source = f"measured ({on.device})" if own else f"measured on other stages ({on.device})"
        low, middle, high = (times[bound] * seconds for bound in ("low", "middle", "high"))
        return Estimate(low, middle, high, width, source, True)
    in_turn = work.floor * facts.tables["reference"]["seconds_per_token_in_turn"] * width
    times, least = on.reference, max(seconds, in_turn)
    low, middle, high = (times[bound] * least for bound in ("low", "middle", "high"))
    return Estimate(low, middle, high, width, f"reference ({on.device})", True)


def _nearest(entries: list[Mapping[str, Any]], work: Work) -> Mapping[str, Any]:
    """The entry of the nearest size."""

    def distance(entry: Mapping[str, Any]) -> float:
        ratio = math.log(entry["parameters"] / work.parameters)
        return abs(ratio) if math.isfinite(ratio) else 0.0

    return min(entries, key=distance)


def _fixed(facts: Facts, artifact: artifact.Artifact, on: Machine) -> Estimate:
    """Stages that run no model take a processor and a time of their own; fetching goes by size."""
    times = on.fixed.get(artifact.verb)
    if times is not None and artifact.verb != "fetch":
        return Estimate(times["low"], times["middle"], times["high"], 1, "measured", False)
    if artifact.verb == "fetch":
        seconds = cost.disk(facts, artifact.folder) / facts.tables["bytes_per_second"]
    else:
        seconds = float(facts.tables["seconds"].get(artifact.verb, 60))
    return Estimate(seconds, seconds, seconds, 1, "assumed", False)


# Which part of it


def claim_folders(config: Config, claim: str, root: Path) -> list[str]:
    """Folders of what decides a claim (ID, or PAPER/ID): the evaluations, runs and probes of its
    quantities, with one seed. ``root`` holds claims/PAPER.yaml and what goes with it.

    Raises ``UserError`` for a claim that no paper of the config has or that several have, where an
    arm is not run here, and for what ``opd.plan.outputs`` refuses of papers.
    """
    named: dict[str, dict[str, claim_spec.Claim]] = defaultdict(dict)
    for paper in exhibits.read_papers(config, root):
        for one in paper.claims:
            whole = f"{paper.name}/{one.id}"
            named[one.id][whole] = named[whole][whole] = one
    if claim not in named:
        raise unknown(claim, named, "--claim", "claim")
    if len(named[claim]) > 1:
        raise UserError(
            "several papers have this claim",
            f"--claim {claim}",
            f"write {' or '.join(named[claim])}",
        )
    (decided,) = named[claim].values()
    needs = {*claim_spec.needs(decided.test)}
    there = {*exhibits.arms(config), *exhibits.probes(config)}
    for _, name in sorted(needs):
        if name not in there:
            raise UserError(
                f"claim {claim} needs {name}, which this config does not run",
                "arms, probes, experiments",
                "add it, or choose another claim",
            )
    inputs: dict[str, str] = {}
    exhibits.needed(one_seed(config), needs, inputs)
    return list(inputs.values())


def one_seed(config: Config) -> Config:
    """The config with its first seed alone."""
    return config.model_copy(update={"seeds": config.seeds[:1]})


def target_folders(wanted: Iterable[str], artifacts: Artifacts) -> list[str]:
    """Folders that ``--target`` names: a figure, table or page, one of a paper by its own name
    (fig15), or any folder. Raises ``UserError`` for a name that nothing has."""
    names: dict[str, list[str]] = defaultdict(list)
    for folder in artifacts:
        parts = folder.split("/")
        for i in range(len(parts)):
            names["/".join(parts[i:])].append(folder)
            names["/".join(parts[: i + 1])].append(folder)
    found: dict[str, None] = {}
    for name in wanted:
        if name not in names:
            known = [folder.rpartition("/")[2] for folder in artifacts if folder.startswith(SHOWN)]
            raise unknown(name, known, "--target", "figure, table, page or folder")
        shown = [folder for folder in names[name] if folder.startswith(SHOWN)]
        found |= dict.fromkeys(shown or names[name])
    return list(found)

"""What of a plan is there, and what a target or a claim needs of it. Nothing is started, and no
file is made."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import content, digest, read_json
from opd.plan import artifacts as plan
from opd.plan import cost, hub_lock
from opd.plan import outputs as exhibits
from opd.plan.cost import Artifacts
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
    if made and stands_for(made, artifact.stage, artifact.cfg):
        return "there", made.outputs
    contents = {}
    for name, path in cost.named(artifact).items():
        if path not in outputs and not Path(path).is_absolute():
            return "run", None
        contents[name] = digest(outputs[path] if path in outputs else content(Path(path)))
    key = identity(artifact.stage, artifact.cfg, contents)
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

"""What of a plan is there, and what a target or a claim needs of it. Nothing is started, and no
file is made."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import content, digest
from opd.plan import artifacts as plan
from opd.plan import hub_lock, outputs
from opd.plan.cost import Artifacts
from opd.plan.papers import read_papers
from opd.recipes import resolve
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.results import claim_spec
from opd.results.claim_spec import Claim
from opd.stages import fresh, naming
from opd.stages.artifact import Artifact
from opd.stages.check import stands_for
from opd.stages.identity import identity, settings_digest
from opd.stages.records import Contents, Manifest, Planned, digest_in, load
from opd.stages.removal import kept_step

TO_RUN = ("run", "stale")


# What a config describes


def beside(files: Sequence[Path]) -> Path:
    """The folder with the lock, papers' files and calibration.yaml: config/, as for snakemake, or,
    where that has none of these, that of the first config file."""
    here, names = Path("config"), ("hub.lock.yaml", "claims", "calibration.yaml")
    return here if any((here / name).exists() for name in names) else files[0].parent


def artifacts_of(config: Config, root: Path) -> dict[str, Artifact]:
    """Every artifact of a config; ``root`` holds hub.lock.yaml and the papers' files."""
    measured = plan.plan(config, hub_lock.read(root / "hub.lock.yaml"))
    return measured | outputs.exhibits(config, measured, root)


def described(files: Sequence[Path], settings: Iterable[str] = ()) -> dict[str, Planned]:
    """What a run with these config files and settings (KEY=VALUE) would write as plan.json."""
    config = resolve.read(files, settings)
    artifacts = artifacts_of(config, beside(files))
    return fresh.described(artifacts, outputs.targets(config, artifacts))


# What is there


def states(
    artifacts: Artifacts, folders: Iterable[str], results: Path, store: Path
) -> dict[str, str]:
    """Of each artifact, in an order in which inputs come first: ``there`` (in the results, made by
    the same settings from the same inputs), ``store`` (would be linked from the store), ``run``,
    or ``stale`` (runs again: what is there is of other settings or inputs).

    What follows a stage that runs, runs: whether its inputs will be others is not known. Not so
    what follows a run that only has to keep a step ``again``: that is found as it was.
    """
    digests: dict[str, dict[str, str]] = {}
    states = {}
    for folder in folders:
        states[folder], made = _state(artifacts[folder], digests, results, store)
        if made is not None:
            digests[folder] = made
        elif (results / folder / "digest.json").is_file():
            states[folder] = "stale"
    for reader, sources in again(artifacts, results, store).items():
        states |= dict.fromkeys(sources if reader in states else (), "run")
    return states


def again(artifacts: Artifacts, results: Path, store: Path) -> dict[str, list[str]]:
    """Stages that have yet to be computed and read a kept step whose weights are gone -> what has
    to be made again before: the step, its run, and what that reads of the kind."""
    gone = {
        folder: artifact.named["model"]
        for folder, artifact in artifacts.items()
        if artifact.stage == "keep" and not _has_weights(artifact, results)
    }

    def sources(folder: str) -> Iterator[str]:
        for step in filter(gone.__contains__, artifacts[folder].inputs):
            yield from (step, gone[step], *sources(gone[step]))

    return {
        folder: [*dict.fromkeys(sources(folder))]
        for folder, artifact in artifacts.items()
        if not gone.keys().isdisjoint(artifact.inputs) and _computes(artifact, results, store)
    }


def _has_weights(kept: Artifact, results: Path) -> bool:
    """Whether all files of a kept step are there: in its artifact, or, where that was not made yet,
    in the store. Of a run that has not been made nothing is missing."""
    place = results / kept.folder / "payload"
    made: Contents | None = digest_in(results / kept.folder)
    if made is None:
        place = kept_step(results / kept.named["model"] / "payload", kept.cfg["step"])
        made, _ = load(place.with_name(f"{place.name}.json"), Contents)
    return made is None or all((place / name).exists() for name in made.outputs)


def _computes(artifact: Artifact, results: Path, store: Path) -> bool:
    """Whether a stage would compute something, if its inputs stay as they are. Where some are still
    to be made: unless it was made with these settings, as it will then be found, as a rule."""
    digests = {p: made.outputs for p in artifact.inputs if (made := digest_in(results / p))}
    state, _ = _state(artifact, digests, results, store)
    known = all(path in digests or Path(path).is_absolute() for path in artifact.inputs)
    made = digest_in(results / artifact.folder)
    settings = settings_digest(artifact.stage, artifact.cfg)
    return state == "run" and (known or made is None or made.settings != settings)


def _state(
    artifact: Artifact, digests: Mapping[str, dict[str, str]], results: Path, store: Path
) -> tuple[str, dict[str, str] | None]:
    """The state, and the digests of what is made, None where it has yet to be made."""
    folder = results / artifact.folder
    made = digest_in(folder) if (folder / "payload").exists() else None
    if made and stands_for(made, artifact.stage, artifact.cfg):
        return "there", made.outputs
    inputs = {}
    for name, path in artifact.named.items():
        if path not in digests and not Path(path).is_absolute():
            return "run", None
        inputs[name] = digest(digests[path] if path in digests else content(Path(path)))
    key = identity(artifact.stage, artifact.cfg, inputs)
    for step in artifact.cfg.get("execution", {}).get("keep_steps", ()):
        in_store = (store / f"{key}.steps" / f"{step}.json").is_file()
        if not in_store and _run_of_kept(results, artifact.folder, step) != key:
            return "run", None
    if made and made.identity == key:
        return "there", made.outputs
    record, _ = load(store / f"{key}.json", Contents)
    return ("store", record.outputs) if record and (store / key).is_dir() else ("run", None)


def _run_of_kept(results: Path, run: str, step: int) -> str | None:
    """The identity of the run that an artifact's kept step is from, which a crate has without the
    store; None where there is none."""
    model, _, seed = run.rpartition("/")
    made, _ = load(results / f"{model}@{step}" / seed / "manifest.json", Manifest)
    source = made.inputs.get("model") if made else None
    return source.identity if source else None


def counted(states: Mapping[str, str], results: Path) -> dict[str, dict[str, Any]]:
    """Numbers of the stages that are there, such as the rows of a prompt set."""
    there = [folder for folder, state in states.items() if state == "there"]
    records = {folder: load(results / folder / "manifest.json", Manifest)[0] for folder in there}
    return {folder: record.numbers for folder, record in records.items() if record}


# Which part of it


def claim_folders(config: Config, claim: str, root: Path) -> list[str]:
    """Folders of what decides a claim (ID, or PAPER/ID): the evaluations, runs and probes of its
    quantities. ``root`` holds the papers' files. Raises ``UserError`` for a claim that no paper of
    the config has or that several have, and where an arm is not run here."""
    claims: dict[str, dict[str, Claim]] = defaultdict(dict)
    for paper in read_papers(config, root):
        for declared in paper.claims:
            name = f"{paper.name}/{declared.id}"
            claims[declared.id][name] = claims[name][name] = declared
    if claim not in claims:
        raise unknown(claim, claims, "--claim", "claim")
    if len(claims[claim]) > 1:
        remedy = f"write {' or '.join(claims[claim])}"
        raise UserError("several papers have this claim", f"--claim {claim}", remedy)
    (decided,) = claims[claim].values()
    needs, here = claim_spec.needs(decided.test), outputs.labels(config)
    for _, name in sorted(needs):
        if name not in here["arms"] | here["probes"]:
            raise UserError(
                f"claim {claim} needs {name}, which this config does not run",
                "arms, probes, experiments",
                "add it, or choose another claim",
            )
    inputs: dict[str, str] = {}
    outputs.needed(config, needs, inputs)
    return list(inputs.values())


def target_folders(
    targets: Iterable[str], folders: Iterable[str], results: str, where: str = "--target"
) -> list[str]:
    """The folders below results/``results`` that targets mean (``naming.named``); of those of one
    name what is shown, if any is. Raises ``UserError`` for a name that nothing has."""
    known = list(folders)
    chosen: dict[str, None] = {}
    for target in targets:
        named = naming.named(target, known, results, where)
        shown = [folder for folder in named if folder.startswith(outputs.SHOWN)]
        chosen |= dict.fromkeys(shown or named)
    return [*chosen]

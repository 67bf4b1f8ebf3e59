"""``opd doctor``: what a run would lack, found out before anything of it is started.

It looks at this machine and asks Slurm and the hub. Nothing is submitted or changed, and nothing
fetched but the tokenizers and settings of models, into the cache of the hub's own library.
"""

import importlib.metadata
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.doctor import envs, hub, interpreters, machine, slurm
from opd.doctor.base import Finding, ready, some
from opd.plan import artifacts as plan
from opd.plan import calibrate, cost, hub_lock, outputs, pairs, resources, state
from opd.recipes import resolve
from opd.recipes.config import Config
from opd.stages.artifact import Artifact, closure
from opd.stages.registry import STAGES


def examine(configs: list[Path], settings: list[str], profile: str | None = None) -> list[Finding]:
    """What a run of these configs (later ones on top) and settings (KEY=VALUE) would lack, started
    here, through a Snakemake profile where one is named. What is wrong is found, not raised."""
    findings = [*_tools()]
    options: dict[str, Any] = {}
    if profile:
        try:
            options = slurm.profile(profile)[1]
        except UserError as bad:
            findings.append(_refused("profile", bad))
            profile = None
    if not configs:
        named = options.get("configfile") or ["config/mini.yaml"]
        configs = [Path(name) for name in ([named] if isinstance(named, str) else named)]
    asks: dict[str, dict[str, Any]] = {}
    try:
        config = resolve.read(configs, settings)
        site = resources.read_site(os.environ.get("OPD_SITE"), Path("slurm/site.yaml"))
        classes = resources.read_classes(Path("workflow/resources.yaml"))
    except UserError as bad:
        findings.append(_refused("config", bad))
    else:
        names = " ".join(map(str, configs))
        findings.append(Finding("config", "ok", f"{names}: {config.name}"))
        elsewhere = options.get("executor", "local") != "local"
        about_run, asks = _run(config, names, site, classes, elsewhere)
        findings += about_run
    if profile:
        try:
            for finding in slurm.examine(profile, asks):
                findings.append(finding)
        except UserError as bad:
            findings.append(_refused("profile", bad))
    return findings


def _refused(subject: str, bad: UserError) -> Finding:
    return Finding(subject, "missing", f"{bad.where}: {bad.what}", bad.remedy)


def _run(
    config: Config,
    configs: str,
    site: resources.Site,
    classes: Mapping[str, resources.Ask],
    elsewhere: bool,
) -> tuple[list[Finding], dict[str, dict[str, Any]]]:
    """Findings about what a config needs of this machine, and the resources of each stage that it
    runs; ``configs``: its files, ``elsewhere``: jobs run on other machines."""
    results = Path("results", config.name)
    findings = [*_files(config)]
    states: dict[str, str] = {}
    artifacts: dict[str, Artifact] = {}
    if not findings:
        try:
            artifacts = state.artifacts_of(config, Path("config"))
            folders = closure(outputs.targets(config, artifacts), artifacts)
            tables = calibrate.tables(Path("config/calibration.yaml"))
            states = state.states(artifacts, folders, results, results.parent / ".store")
        except UserError as bad:
            findings.append(_refused("plan", bad))
    to_run = [artifacts[folder] for folder in states if states[folder] in state.TO_RUN]
    if states:
        findings.append(Finding("plan", "ok", f"{len(to_run)} of {len(states)} artifacts to make"))
    stages = {artifact.stage for artifact in to_run} if states else set(STAGES)
    chosen, modules = resources.interpreters(site, config), interpreters.wanted(config, stages)
    about_them, answers = interpreters.examine(chosen, modules, Path("envs"), site.setup)
    findings += about_them
    if states:
        locked = hub_lock.read(Path("config/hub.lock.yaml"))
        of_hub = [*hub.examine(config, locked, states, configs)]
        findings += of_hub
        refused = pairs.refused(
            artifacts, [artifact.folder for artifact in to_run], results, online=ready(of_hub)
        )
        findings += [_refused("models", error) for error in refused]
        released = outputs.released(config, artifacts, outputs.targets(config, artifacts))
        facts = cost.Facts(artifacts, tables, state.counted(states, results), released)
        device = "cpu" if resources.without_gpu(config) else "gpu"
        widths = {artifact.folder: cost.width(artifact.cfg, device) for artifact in to_run}
        known = {f: width for f, width in widths.items() if math.isfinite(cost.disk(facts, f))}
        room = cost.room(facts, known, max(known.values(), default=1))
        besides = room.running + room.passing
        findings.append(machine.disk(results, room.stays, besides, len(widths) - len(known)))
    findings += machine.file_system(results)
    findings.append(machine.processors(config.threads))
    asks = {
        name: resources.resources(name, config, classes, site)
        for name, stage in STAGES.items()
        if name in stages and stage.network != "always"  # these run on this machine
    }
    needed = max(map(slurm.gpus_asked, asks.values()), default=0)
    built_for = filter(None, (answer.get("cuda") for answer in answers.values()))
    findings += machine.cuda(machine.driver(), built_for)
    torch = answers.get("gpu", {}).get("gpus")
    findings.append(machine.gpus(machine.devices(), torch, needed, elsewhere))
    return findings, asks


def _tools() -> Iterator[Finding]:
    """The repository, its locks, and Snakemake."""
    if not Path("Snakefile").is_file():
        remedy = "change to the top of the repository"
        yield Finding("repository", "missing", f"no Snakefile in {Path.cwd()}", remedy)
        return
    old = envs.old(Path("pyproject.toml"), Path("envs"))
    if old:
        what = f"{some(old)} in envs/ are not of what pyproject.toml asks for"
        yield Finding("locks", "warning", what, "make lock")
    else:
        yield Finding("locks", "ok", "envs/ is of what pyproject.toml asks for")
    try:
        version = importlib.metadata.version("snakemake")
    except importlib.metadata.PackageNotFoundError:
        remedy = "make install"
        yield Finding("snakemake", "missing", f"not beside {sys.executable}", remedy)
        return
    command = shutil.which("snakemake")
    beside = Path(sys.executable).with_name("snakemake")
    if command is None or Path(command).resolve() != beside.resolve():
        what = f"{version} beside {sys.executable}, but `snakemake` is {command or 'not on PATH'}"
        remedy = f"activate the environment: PATH={beside.parent}:$PATH"
        yield Finding("snakemake", "warning", what, remedy)
    else:
        yield Finding("snakemake", "ok", f"{version}, {command}")


def _files(config: Config) -> Iterator[Finding]:
    """Data files that the config names and that are not there, all in one finding."""
    missing = []
    for where, path in plan.data_files(config).items():
        try:
            plan.data_path(path, where)
        except UserError as bad:
            missing.append(bad)
    if missing:
        what = some(f"{bad.where}: {bad.what}" for bad in missing)
        yield Finding("data files", "missing", what, missing[0].remedy)

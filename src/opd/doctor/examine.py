"""``opd doctor``: what a run would lack, found out before anything of it is started.

It looks at the machine that it runs on (a login node, a laptop) and asks Slurm and the hub; nothing
is submitted, fetched or changed.
"""

import importlib.metadata
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.doctor import envs, hub, interpreters, machine, slurm
from opd.doctor.finding import Finding, lines, ready, some
from opd.plan import artifacts as plan
from opd.plan import calibrate, cost, hub_lock, outputs, resources
from opd.plan import state as planned
from opd.plan.resources import without_gpu
from opd.recipes import resolve
from opd.recipes.config import Config
from opd.stages import artifact
from opd.stages.registry import STAGES

__all__ = ["Finding", "examine", "lines", "ready"]


def examine(
    configs: list[Path], settings: list[str], profile: str | None = None, root: Path = Path()
) -> list[Finding]:
    """Everything that is found of a run of these configs (as for Snakemake, later ones on top) and
    settings (KEY=VALUE), through a Snakemake profile where one is named. ``root`` is the top of
    the repository. What is wrong is found, not raised."""
    given = slurm.profile(profile)[1] if profile else {}
    if not configs:
        named = given.get("configfile") or ["config/mini.yaml"]
        configs = [Path(one) for one in ([named] if isinstance(named, str) else named)]
    findings = [*_tools(root)]
    asks: dict[str, dict[str, Any]] = {}
    try:
        config = resolve.read(configs, settings)
        site = resources.read_site(os.environ.get("OPD_SITE"), root / "slurm" / "site.yaml")
        rows = resources.read_classes(root / "workflow" / "resources.yaml")
    except UserError as bad:
        findings.append(_of(bad, "config"))
    else:
        findings.append(Finding("config", "ok", f"{' '.join(map(str, configs))}: {config.name}"))
        everything = {
            name: resources.resources(name, config, rows, site)
            for name, stage in STAGES.items()
            if stage.network != "always"  # these run on this machine
        }
        elsewhere = given.get("executor", "local") != "local"
        theirs, stages = _run(config, site, configs, everything, elsewhere, root)
        findings += theirs
        asks = {rule: one for rule, one in everything.items() if rule in stages}
    if profile:
        findings += slurm.examine(profile, asks)
    return findings


def _of(bad: UserError, subject: str) -> Finding:
    return Finding(subject, "missing", f"{bad.where}: {bad.what}", bad.remedy)


def _run(
    config: Config,
    site: resources.Site,
    configs: list[Path],
    asks: Mapping[str, Mapping[str, Any]],
    elsewhere: bool,
    root: Path,
) -> tuple[list[Finding], set[str]]:
    """Findings about what a config needs of this machine, and the stages that it runs; ``asks``:
    the resources of each, ``elsewhere``: jobs run on other machines."""
    results = root / "results" / config.name
    locked = hub_lock.read(root / "config" / "hub.lock.yaml")
    findings = [*_files(config)]
    artifacts: dict[str, artifact.Artifact] = {}
    folders: list[str] = []
    if not findings:
        try:
            artifacts = plan.plan(config, locked)
            artifacts |= outputs.exhibits(config, artifacts, root / "config")
            folders = artifact.closure(outputs.targets(config, artifacts), artifacts)
        except UserError as bad:
            findings.append(_of(bad, "plan"))
    states = planned.states(artifacts, folders, results, results.parent / ".store")
    to_run = [artifacts[folder] for folder, state in states.items() if state in planned.TO_RUN]
    if folders:
        findings.append(Finding("plan", "ok", f"{len(to_run)} of {len(folders)} artifacts to make"))

    stages = {one.stage for one in to_run} if folders else set(STAGES)
    chosen = resources.interpreters(site, config)
    wanted = interpreters.wanted(config, stages)
    theirs, told = interpreters.examine(chosen, wanted, root / "envs", site.setup)
    findings += theirs
    if folders:
        findings += hub.examine(config, locked, states, " ".join(map(str, configs)))
        tables = calibrate.tables(root / "config" / "calibration.yaml")
        facts = cost.Facts(artifacts, tables, planned.counted(states, results))
        findings.append(_disk(facts, to_run, "cpu" if without_gpu(config) else "gpu", results))
    findings += machine.file_system(results)
    findings.append(machine.processors(config.threads))
    needed = max((slurm.gpus_asked(one) for rule, one in asks.items() if rule in stages), default=0)
    torch = told.get("gpu", {}).get("gpus")
    findings.append(machine.gpus(machine.devices(), torch, needed, elsewhere))
    return findings, stages


def _tools(root: Path) -> Iterator[Finding]:
    """The repository, its locks, and Snakemake."""
    if not (root / "Snakefile").is_file():
        remedy = "change to the top of the repository"
        yield Finding("repository", "missing", f"no Snakefile in {root.absolute()}", remedy)
        return
    old = envs.old(root / "pyproject.toml", root / "envs")
    if old:
        what = f"{some(old)} in envs/ are not of what pyproject.toml asks for"
        yield Finding("locks", "warning", what, "make lock")
    else:
        yield Finding("locks", "ok", "envs/ is of what pyproject.toml asks for")
    try:
        there = importlib.metadata.version("snakemake")
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install -r envs/workflow.txt, or make install"
        yield Finding("snakemake", "missing", f"not beside {sys.executable}", remedy)
        return
    command = shutil.which("snakemake")
    beside = Path(sys.executable).with_name("snakemake")
    if command is None or Path(command).resolve() != beside.resolve():
        what = f"{there} beside {sys.executable}, but `snakemake` is {command or 'not on PATH'}"
        remedy = f"activate the environment: PATH={beside.parent}:$PATH"
        yield Finding("snakemake", "warning", what, remedy)
    else:
        yield Finding("snakemake", "ok", f"{there}, {command}")


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


def _disk(
    facts: cost.Facts, to_run: Iterable[artifact.Artifact], device: str, results: Path
) -> Finding:
    """Free room against what `opd plan` says that the run needs."""
    widths = {each.folder: cost.width(each.cfg, device) for each in to_run}
    known = {f: width for f, width in widths.items() if math.isfinite(cost.disk(facts, f))}
    stays, running = cost.room(facts, known, max(known.values(), default=1))
    return machine.disk(results, stays, running, len(widths) - len(known))

"""A Snakemake profile for Slurm against the cluster that this machine is part of."""

import importlib.metadata
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from opd.doctor.ask import ask
from opd.doctor.finding import Finding, some
from opd.doctor.interpreters import PLUGIN

COMMANDS = ("sbatch", "squeue", "sinfo", "scontrol", "scancel")
SECONDS = 20
# What Snakemake's plugin waits before it first asks for states, and how many times that an ended
# job has to stay in squeue's list.
DEFAULT_INIT_SECONDS, POLLS_KEPT = 40, 3


class Partition(NamedTuple):
    """``nodes`` that take jobs, of all its nodes; the most of one node; ``models`` of its GPUs, as
    jobs ask for them; ``minutes`` that a job may run (infinity: no limit)."""

    up: bool
    nodes: int
    of: int
    cpus: int
    mem_mb: int
    gpus: int
    minutes: float
    models: frozenset[str]


def profile(name: str) -> tuple[Path | None, dict[str, Any]]:
    """The file that ``snakemake --profile NAME`` reads here, and what it says; None and nothing
    where there is none."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for base in (Path(), home / "snakemake", Path("/etc/xdg/snakemake")):
        at = base / name
        if at.is_file():
            return at, _mapping(at)
        if at.is_dir():
            for pattern in ("profile.v*+.yaml", "profile.yaml", "config.v*+.yaml", "config.yaml"):
                for file in sorted(at.glob(pattern)):
                    return file, _mapping(file)
            return None, {}  # hides what lies in the other places
    return None, {}


def _mapping(file: Path) -> dict[str, Any]:
    found = yaml.safe_load(file.read_text())
    return found if isinstance(found, dict) else {}


def asked(
    profile: Mapping[str, Any], rules: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Resources of each rule: those of the workflow between a profile's ``default-resources`` and
    its ``set-resources``."""
    defaults = _resources(profile.get("default-resources"))
    over = {rule: _resources(one) for rule, one in (profile.get("set-resources") or {}).items()}
    return {
        rule: {**defaults, **rules.get(rule, {}), **over.get(rule, {})}
        for rule in dict.fromkeys([*rules, *over])
    } or {"default-resources": defaults}


def _resources(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    pairs = (str(one).partition("=") for one in given or ())
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def examine(name: str, rules: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Findings about the profile ``name`` and its cluster; ``rules``: the resources that the
    workflow asks for, by rule."""
    file, given = profile(name)
    if file is None:
        remedy = "run at the top of the repository, or give the name of a profile"
        yield Finding("profile", "missing", f"no profile '{name}' is found from here", remedy)
        return
    yield Finding("profile", "ok", f"{file}, executor {given.get('executor', 'local')}")
    if given.get("executor") != "slurm":
        return
    yield _plugin()
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        remedy = "run on a machine of the cluster that takes jobs (a login node)"
        yield Finding("Slurm", "missing", f"no {some(absent)} on PATH", remedy)
        return
    config = _say("scontrol", "show", "config")
    table = _say("sinfo", "--noheader", "--format=%R|%a|%D|%c|%m|%G|%l|%t")
    if config is None or table is None:
        remedy = "see that slurmctld runs (`scontrol ping`) and that this machine may ask it"
        yield Finding("Slurm", "missing", "the controller does not answer", remedy)
        return
    settings = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.MULTILINE))
    version = settings.get("SLURM_VERSION", "of an unknown version")
    yield Finding("Slurm", "ok", f"{version}, cluster {settings.get('ClusterName', 'unnamed')}")
    yield _status(given, settings, file)
    found = partitions(table)
    yield from _partitions(asked(given, rules), found)


def _plugin() -> Finding:
    try:
        there = importlib.metadata.version(PLUGIN)
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install -r envs/workflow.txt, into an environment without vLLM"
        return Finding("Slurm plugin", "missing", f"{PLUGIN} is not installed", remedy)
    return Finding("Slurm plugin", "ok", f"{PLUGIN} {there}")


def _say(*command: str) -> str | None:
    """Standard output of a command; None where it fails or does not end in time."""
    try:
        code, out, _ = ask(command, SECONDS)
    except OSError:
        return None
    return out if code == 0 else None


def _status(profile: Mapping[str, Any], settings: Mapping[str, str], file: Path) -> Finding:
    """Whether the command that asks for states of jobs ever tells that one has ended."""
    subject = "Slurm accounting"
    there = settings.get("AccountingStorageType", "(null)").rpartition("/")[2]
    accounting = there not in ("none", "(null)")
    if profile.get("slurm-status-command", "sacct") == "sacct":
        if accounting and _say("sacct", "--noheader", "--parsable2", "--starttime=now") is not None:
            return Finding(subject, "ok", f"{there}, sacct is asked for states")
        what = "none, and sacct is asked for states: Snakemake would wait for ever"
        return Finding(subject, "missing", what, f"slurm-status-command: squeue in {file}")
    kept = _number(settings.get("MinJobAge", ""))
    init = int(profile.get("slurm-init-seconds-before-status-checks", DEFAULT_INIT_SECONDS))
    if kept is not None and kept < POLLS_KEPT * init:
        # The plugin then asks sacct after all.
        what = f"ended jobs stay in squeue's list for {kept} s (MinJobAge), too short for it"
        if accounting:
            return Finding(subject, "warning", what, f"slurm-status-command: sacct in {file}")
        most = kept // POLLS_KEPT
        remedy = f"slurm-init-seconds-before-status-checks: {most} in {file}"
        return Finding(subject, "missing", f"{what}, and there is no sacct to fall back on", remedy)
    choice = "sacct could be" if accounting else "sacct would not do"
    return Finding(subject, "ok", f"{there}: squeue is asked for states, {choice}")


def _number(text: str) -> int | None:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else None


def partitions(table: str) -> dict[str, Partition]:
    """What ``sinfo --format=%R|%a|%D|%c|%m|%G|%l|%t`` says, by name of the partition."""
    found: dict[str, Partition] = {}
    for line in table.splitlines():
        name, up, count, cpus, memory, gres, limit, state = line.strip().split("|")
        # A star behind a state: the node does not answer.
        takes = state.startswith(("idle", "mix", "alloc", "comp", "resv", "plnd"))
        one = Partition(
            up == "up",
            int(count) if takes and "*" not in state else 0,
            int(count),
            _number(cpus) or 0,
            _number(memory) or 0,
            gpus_of(gres),
            minutes(limit),
            frozenset(re.findall(r"\bgpu:([A-Za-z]\w*)", gres)),
        )
        old = found.get(name)
        if old is not None:
            one = one._replace(
                nodes=old.nodes + one.nodes,
                of=old.of + one.of,
                cpus=max(old.cpus, one.cpus),
                mem_mb=max(old.mem_mb, one.mem_mb),
                gpus=max(old.gpus, one.gpus),
                minutes=max(old.minutes, one.minutes),
                models=old.models | one.models,
            )
        found[name] = one
    return found


def gpus_of(gres: str) -> int:
    """GPUs in a list of generic resources: ``gpu:a100:4(S:0-1),tmp:1`` has 4."""
    bare = re.sub(r"\([^)]*\)", "", gres)
    total = 0
    for one in bare.split(","):
        kind, *rest = one.split(":")
        if kind == "gpu":
            total += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return total


def minutes(limit: str) -> float:
    """Minutes of a time limit as Slurm writes it: ``2-00:00:00``, ``30:00``, ``infinite``."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        return math.inf
    days, hours, rest, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + rest + seconds / 60


def _partitions(
    asked: Mapping[str, Mapping[str, Any]], found: Mapping[str, Partition]
) -> Iterator[Finding]:
    """What each rule asks for, against what the partitions have that it may run in."""
    shown = [
        f"{name} ({one.nodes} of {one.of} nodes, {one.gpus} GPUs each)"
        for name, one in found.items()
    ]
    if not any(one.up and one.nodes for one in found.values()):
        what = f"no partition has a node that takes jobs: {some(shown) or 'there is none'}"
        yield Finding("partitions", "missing", what, "ask whoever runs the cluster; see `sinfo`")
        return
    wrong: dict[str, list[str]] = defaultdict(list)
    for rule, wants in asked.items():
        for one in _short(wants, found):
            wrong[one].append(rule)
    if wrong:
        said = "; ".join(f"{one} ({some(rules, 3)})" for one, rules in wrong.items())
        remedy = "mend slurm/site.yaml, or plan smaller jobs (training.processes)"
        yield Finding("partitions", "missing", f"{some(shown)}; {said}", remedy)
    else:
        yield Finding("partitions", "ok", some(shown))


def _short(wants: Mapping[str, Any], found: Mapping[str, Partition]) -> Iterator[str]:
    """What no partition that a job may run in has, in words."""
    names = [name for name in str(wants.get("slurm_partition") or "").split(",") if name]
    unknown = [name for name in names if name not in found]
    if unknown:
        yield f"no partition {unknown[0]}"
        return
    theirs = [found[name] for name in names or found if found[name].up]
    gres = str(wants.get("gres") or "")
    limits: dict[str, tuple[int, list[int] | list[float]]] = {
        "GPUs of one node": (
            gpus_asked(wants),
            [one.gpus for one in theirs],
        ),
        "MB of memory": (_plain(wants.get("mem_mb")), [one.mem_mb for one in theirs]),
        "CPUs": (_plain(wants.get("cpus_per_task")), [one.cpus for one in theirs]),
        "minutes": (_plain(wants.get("runtime")), [one.minutes for one in theirs]),
    }
    at = f" in {','.join(names)}" if names else ""
    for unit, (want, have) in limits.items():
        if want > max(have, default=0):
            yield f"{want} {unit} asked for, at most {max(have, default=0):g} there{at}"
    model = wants.get("gpu_model") or next(iter(re.findall(r"^gpu:([A-Za-z]\w*)", gres)), None)
    if model and not any(model in one.models for one in theirs):
        yield f"no GPU {model}{at}"


def gpus_asked(wants: Mapping[str, Any]) -> int:
    """GPUs of a job."""
    return max(_plain(wants.get("gpu")), gpus_of(str(wants.get("gres") or "")))


def _plain(value: Any) -> int:
    """A number of a first attempt; 0 for what is worked out at run time."""
    if callable(value):
        value = value(None, attempt=1)
    return int(value) if str(value).isdigit() else 0

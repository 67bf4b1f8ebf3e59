"""A Snakemake profile for Slurm against the cluster that this machine is part of."""

import importlib.metadata
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
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
    """``nodes`` that take jobs, of all its nodes; the most of one node; ``minutes`` a job may run
    (infinity: no limit)."""

    up: bool
    nodes: int
    of: int
    cpus: int
    mem_mb: int
    gpus: int
    minutes: float


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


def asked(profile: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Resources that a profile asks for: of single rules, and ``default-resources``."""
    found = {"default-resources": _resources(profile.get("default-resources"))}
    for rule, given in (profile.get("set-resources") or {}).items():
        found[rule] = _resources(given)
    return found


def _resources(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    pairs = (str(one).partition("=") for one in given or ())
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def examine(name: str, gpus: int) -> Iterator[Finding]:
    """Findings about the profile ``name`` and its cluster; ``gpus``: the most that a job needs of
    one node."""
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
    yield from _partitions(asked(given), found, gpus)


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
    asked: Mapping[str, Mapping[str, Any]], found: Mapping[str, Partition], gpus: int
) -> Iterator[Finding]:
    """What the profile asks for, against what the partitions it names have."""
    shown = [
        f"{name} ({one.nodes} of {one.of} nodes, {one.gpus} GPUs each)"
        for name, one in found.items()
    ]
    if not any(one.up and one.nodes for one in found.values()):
        what = f"no partition has a node that takes jobs: {some(shown) or 'there is none'}"
        yield Finding("partitions", "missing", what, "ask whoever runs the cluster; see `sinfo`")
        return
    wrong = []
    defaults = asked["default-resources"]
    for where, given in asked.items():
        wants = {**defaults, **given}
        names = [n for n in str(wants.get("slurm_partition") or "").split(",") if n]
        unknown = [name for name in names if name not in found]
        if unknown:
            wrong.append(f"{where} names {unknown[0]}, there are {some(found)}")
            continue
        theirs = [found[name] for name in names or found if found[name].up]
        wrong += [f"{where} {one}" for one in _short(wants, theirs)]
    if gpus > max((one.gpus for one in found.values()), default=0):
        wrong.append(f"a job of the config needs {gpus} GPUs of one node")
    if wrong:
        what = f"{some(shown)}; {'; '.join(wrong[:3])}"
        remedy = "mend the profile's resources, or training.processes of the config"
        yield Finding("partitions", "missing", what, remedy)
    else:
        yield Finding("partitions", "ok", some(shown))


def _short(wants: Mapping[str, Any], theirs: Iterable[Partition]) -> Iterator[str]:
    """What none of the partitions has, in words."""
    theirs = list(theirs)
    gpus = max(_plain(wants.get("gpu")), gpus_of(str(wants.get("gres") or "")))
    limits: dict[str, tuple[int, list[int] | list[float]]] = {
        "GPUs of one node": (gpus, [one.gpus for one in theirs]),
        "MB of memory": (_plain(wants.get("mem_mb")), [one.mem_mb for one in theirs]),
        "CPUs": (_plain(wants.get("cpus_per_task")), [one.cpus for one in theirs]),
        "minutes": (_plain(wants.get("runtime")), [one.minutes for one in theirs]),
    }
    for unit, (want, have) in limits.items():
        if want > max(have, default=0):
            yield f"asks for {want} {unit}, of {max(have, default=0):g}"


def _plain(value: Any) -> int:
    """A number of a profile; 0 for what is worked out at run time."""
    return int(value) if str(value).isdigit() else 0

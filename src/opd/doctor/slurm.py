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

from opd.core.errors import UserError
from opd.core.schema import read_yaml
from opd.doctor.base import Finding, output, some

PLUGIN = "snakemake-executor-plugin-slurm"
COMMANDS = ("sbatch", "squeue", "sinfo", "scontrol", "scancel")
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
    """File that ``snakemake --profile NAME`` reads here (None: no such file), and its options.
    Raises ``UserError`` where these are not readable."""
    try:
        from snakemake.cli import get_profile_dir
    except ImportError:
        return None, {}
    _, file = get_profile_dir(name) or (None, None)
    return file, read_yaml(file) if file else {}


def asked(
    options: Mapping[str, Any], rules: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Resources by rule: a profile's defaults, then the workflow's, then those the profile sets."""
    defaults = _resources(options.get("default-resources"))
    set_ones = options.get("set-resources") or {}
    return {
        rule: {**defaults, **rules.get(rule, {}), **_resources(set_ones.get(rule))}
        for rule in dict.fromkeys([*rules, *set_ones])
    } or {"default-resources": defaults}


def _resources(resources: Any) -> dict[str, Any]:
    if isinstance(resources, Mapping):
        return dict(resources)
    pairs = (str(pair).partition("=") for pair in resources or ())
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def examine(name: str, rules: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Findings about a profile and its cluster; ``rules``: what the workflow asks for, by rule.
    Raises ``UserError`` for options that are wrong."""
    file, options = profile(name)
    if file is None:
        remedy = "run at the top of the repository, or give the name of a profile"
        yield Finding("profile", "missing", f"no profile '{name}' is found from here", remedy)
        return
    yield Finding("profile", "ok", f"{file}, executor {options.get('executor', 'local')}")
    if options.get("executor") != "slurm":
        return
    yield _plugin()
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        remedy = "run on a machine of the cluster that takes jobs (a login node)"
        yield Finding("Slurm", "missing", f"no {some(absent)} on PATH", remedy)
        return
    config = output("scontrol", "show", "config")
    table = output("sinfo", "--noheader", "--format=%R|%a|%D|%c|%m|%G|%l|%t")
    if config is None or table is None:
        remedy = "see that slurmctld runs (`scontrol ping`) and that this machine may ask it"
        yield Finding("Slurm", "missing", "the controller does not answer", remedy)
        return
    settings = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.MULTILINE))
    version = settings.get("SLURM_VERSION", "of an unknown version")
    yield Finding("Slurm", "ok", f"{version}, cluster {settings.get('ClusterName', 'unnamed')}")
    yield _started()
    yield _status(options, settings, file)
    attempts = _count(options, "retries", 0, file) + 1
    yield from _partitions(asked(options, rules), partitions(table), attempts)


def _count(options: Mapping[str, Any], key: str, default: int, file: Path) -> int:
    """A whole number among a profile's options. Raises ``UserError`` for any other value."""
    value = str(options.get(key, default))
    if not value.isdecimal():
        raise UserError(f"{value!r} is no whole number", f"{file}: {key}", "write one")
    return int(value)


def _plugin() -> Finding:
    try:
        version = importlib.metadata.version(PLUGIN)
    except importlib.metadata.PackageNotFoundError:
        remedy = "run Snakemake from what `make install` makes: an environment without vLLM"
        return Finding("Slurm plugin", "missing", f"{PLUGIN} is not installed", remedy)
    return Finding("Slurm plugin", "ok", f"{PLUGIN} {version}")


def _started() -> Finding:
    """Where Snakemake would run, which stays until the last job has ended."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        what = "on this machine until the last job has ended; where that is not allowed, as a job"
        return Finding("Snakemake runs", "ok", f"{what} (docs/slurm.md)")
    left = output("squeue", "--noheader", f"--jobs={job}", "--format=%L")
    what = f"inside job {job}, which has {(left or '?').strip()} left; what it has submitted stays"
    return Finding("Snakemake runs", "ok", what)


def _status(options: Mapping[str, Any], settings: Mapping[str, str], file: Path) -> Finding:
    """Whether the command that asks for states of jobs ever tells that one has ended."""
    subject = "Slurm accounting"
    storage = settings.get("AccountingStorageType", "(null)").rpartition("/")[2]
    accounting = storage not in ("none", "(null)")
    if options.get("slurm-status-command", "sacct") == "sacct":
        states = output("sacct", "--noheader", "--parsable2", "--starttime=now")
        if accounting and states is not None:
            return Finding(subject, "ok", f"{storage}, sacct is asked for states")
        what = "none, and sacct is asked for states: Snakemake would wait for ever"
        return Finding(subject, "missing", what, f"slurm-status-command: squeue in {file}")
    seconds = _number(settings.get("MinJobAge", "")) or math.inf  # 0: for good
    key = "slurm-init-seconds-before-status-checks"
    init = _count(options, key, DEFAULT_INIT_SECONDS, file)
    if seconds < POLLS_KEPT * init:
        # The plugin then asks sacct after all.
        what = f"ended jobs stay in squeue's list for {seconds:g} s (MinJobAge), too short for it"
        if accounting:
            return Finding(subject, "warning", what, f"slurm-status-command: sacct in {file}")
        most = seconds // POLLS_KEPT
        remedy = f"{key}: {most:g} in {file}"
        return Finding(subject, "missing", f"{what}, and there is no sacct to fall back on", remedy)
    choice = "sacct could be" if accounting else "sacct would not do"
    return Finding(subject, "ok", f"{storage}: squeue is asked for states, {choice}")


def partitions(table: str) -> dict[str, Partition]:
    """What ``sinfo --format=%R|%a|%D|%c|%m|%G|%l|%t`` says, by name of the partition."""
    # A row for each kind of nodes.
    rows_by_name: dict[str, list[list[str]]] = defaultdict(list)
    for line in table.splitlines():
        name, *columns = line.strip().split("|")
        rows_by_name[name].append(columns)
    # A star behind a state: the node does not answer.
    takes_jobs = re.compile(r"(idle|mix|alloc|comp|resv|plnd)[^*]*$")
    by_name = {}
    for name, rows in rows_by_name.items():
        up, counts, cpus, memory, gres, limits, _ = zip(*rows, strict=True)
        by_name[name] = Partition(
            up=up[0] == "up",
            nodes=sum(int(row[1]) for row in rows if takes_jobs.match(row[-1])),
            of=sum(map(int, counts)),
            cpus=max(map(_number, cpus)),
            mem_mb=max(map(_number, memory)),
            gpus=max(map(gpus_of, gres)),
            minutes=max(map(minutes, limits)),
            models=frozenset(re.findall(r"\bgpu:([A-Za-z]\w*)", " ".join(gres))),
        )
    return by_name


def _number(text: str) -> int:
    """The number that a text begins with (Slurm writes 64+), or 0."""
    return int(re.sub(r"\D.*", "", text) or 0)


def gpus_of(gres: str) -> int:
    """GPUs in a list of generic resources: ``gpu:a100:4(S:0-1),tmp:1`` has 4."""
    counts = re.findall(r"(?:^|,)gpu(?::[^:,(]+)*?(?::(\d+))?(?=[,(]|$)", gres)
    return sum(int(count or 1) for count in counts)


def minutes(limit: str) -> float:
    """Minutes of a time limit as Slurm writes it: ``2-00:00:00``, ``30:00``, ``infinite``."""
    parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if parts is None:
        return math.inf
    days, hours, rest, seconds = (int(part or 0) for part in parts.groups())
    return days * 1440 + hours * 60 + rest + seconds / 60


def _partitions(
    asks: Mapping[str, Mapping[str, Any]], partitions: Mapping[str, Partition], attempts: int
) -> Iterator[Finding]:
    """What each rule asks for on its first and on its last attempt, against what the partitions
    have that it may run in."""
    summary = some(
        f"{name} ({partition.nodes} of {partition.of} nodes, {partition.gpus} GPUs each)"
        for name, partition in partitions.items()
    )
    if not any(partition.up and partition.nodes for partition in partitions.values()):
        what = f"no partition has a node that takes jobs: {summary or 'there is none'}"
        remedy = "ask whoever runs the cluster; see `sinfo`"
        yield Finding("partitions", "missing", what, remedy)
        return
    first, last = (_lacking(asks, partitions, attempt) for attempt in (1, attempts))
    if first:
        remedy = "mend slurm/site.yaml, or plan smaller jobs (training.processes)"
        yield Finding("partitions", "missing", f"{summary}; {first}", remedy)
        return
    yield Finding("partitions", "ok", summary)
    if last:
        remedy = "in slurm/site.yaml: max_mem_mb and max_runtime, beyond which no attempt asks"
        yield Finding("attempts", "warning", f"attempt {attempts} has no place: {last}", remedy)


def _lacking(
    asks: Mapping[str, Mapping[str, Any]], partitions: Mapping[str, Partition], attempt: int
) -> str:
    """What the rules ask for in an attempt and no partition has, in words; empty: nothing."""
    rules_by_lack: dict[str, list[str]] = defaultdict(list)
    for rule, wants in asks.items():
        for lack in _lacks(wants, partitions, attempt):
            rules_by_lack[lack].append(rule)
    return "; ".join(f"{lack} ({some(rules, 3)})" for lack, rules in rules_by_lack.items())


def _lacks(
    wants: Mapping[str, Any], partitions: Mapping[str, Partition], attempt: int
) -> Iterator[str]:
    """What no partition that a job may run in has, in words."""
    names = [name for name in str(wants.get("slurm_partition") or "").split(",") if name]
    unknown = [name for name in names if name not in partitions]
    if unknown:
        yield f"no partition {unknown[0]}"
        return
    usable = [partitions[name] for name in names or partitions if partitions[name].up]
    at = f" in {','.join(names)}" if names else ""
    for unit, want, field in (
        ("GPUs of one node", gpus_asked(wants), "gpus"),
        ("MB of memory", _plain(wants.get("mem_mb"), attempt), "mem_mb"),
        ("CPUs", _plain(wants.get("cpus_per_task")), "cpus"),
        ("minutes", _plain(wants.get("runtime"), attempt), "minutes"),
    ):
        most = max((getattr(partition, field) for partition in usable), default=0)
        if want > most:
            yield f"{want} {unit} asked for, at most {most:g} there{at}"
    named = re.match(r"gpu:([A-Za-z]\w*)", str(wants.get("gres") or ""))
    model = wants.get("gpu_model") or (named and named[1])
    if model and not any(model in partition.models for partition in usable):
        yield f"no GPU {model}{at}"


def gpus_asked(wants: Mapping[str, Any]) -> int:
    """GPUs of a job."""
    return max(_plain(wants.get("gpu")), gpus_of(str(wants.get("gres") or "")))


def _plain(value: Any, attempt: int = 1) -> int:
    """A number of an attempt; 0 for what is worked out at run time."""
    if callable(value):
        value = value(None, attempt=attempt)
    return int(value) if str(value).isdigit() else 0

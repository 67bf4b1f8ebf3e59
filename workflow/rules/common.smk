import os
import re
import subprocess
import sys
import time

from contextlib import ExitStack
from pathlib import Path

from snakemake.settings.types import RerunTrigger
from snakemake.utils import update_config

from opd.cli import warm
from opd.core.errors import UserError
from opd.core.files import canonical, refuse_file
from opd.core.security import visible
from opd.plan import (
    artifacts,
    cluster,
    command_line,
    console,
    hub_lock,
    outputs,
    resources,
    state,
)
from opd.provenance import diff
from opd.recipes import resolve
from opd.stages import fresh, lock, registry, removal
from opd.stages.registry import STAGES

BEGAN = time.time()

# Rules of what asks the hub -> their stages. They run where the workflow was started: nodes of a
# cluster may not reach it. Only they have retries of their own, as a job on a cluster would apply
# them once more inside.
ONLINE = {"download": "prompts", "dataset": "dataset", "fetch": "fetch"}

try:
    for file in workflow.configfiles:  # of two equal keys Snakemake takes the last
        resolve.read_file(Path(file))
    update_config(config, resolve.typed(workflow.config_settings.config))
    CONFIG = resolve.resolve(config)
    refuse_file(Path("results", CONFIG.name))
    LOCK = hub_lock.read(Path(workflow.basedir, "config", "hub.lock.yaml"))
    ARTIFACTS = artifacts.plan(CONFIG, LOCK)
    ARTIFACTS |= outputs.exhibits(CONFIG, ARTIFACTS, Path(workflow.basedir, "config"))
    TARGETS = outputs.targets(CONFIG, ARTIFACTS)
    ALIASES = {}
    if workflow.is_main_process:
        ALIASES = command_line.aliases(
            command_line.given(),
            {"all", "release", *ONLINE, *STAGES},
            ARTIFACTS,
            CONFIG.name,
        )
    ASKS = resources.read_classes(Path(workflow.basedir, "workflow", "resources.yaml"))
    SITE = resources.read_site(
        os.environ.get("OPD_SITE"), Path(workflow.basedir, "slurm", "site.yaml")
    )
except UserError as bad:
    sys.exit(f"error: {visible(str(bad))}")

# Stages that write files for people -> their section of Snakemake's own report.
SHOWN = {
    "dedup": "Prompts",
    "contamination": "Prompts",
    "figure": "Figures",
    "table": "Tables",
    "claims": "Claims",
    "report": "Report",
}
RESULTS = f"results/{CONFIG.name}"
PLAN = f"{RESULTS}/plan.json"
ADOPTED = fresh.adopted(ARTIFACTS, Path(RESULTS))
# What was adopted reads nothing.
READING = {folder: a for folder, a in ARTIFACTS.items() if folder not in ADOPTED}
RELEASED = outputs.released(CONFIG, READING, TARGETS)

# A job parses all of this again when it starts: it is told what the run that submitted it has parsed.
RULES = sorted(Path(workflow.basedir, "workflow", "rules").glob("*.smk"))
PARSED = fresh.parsed(ARTIFACTS, [Path(workflow.basedir, "Snakefile"), *RULES])
EDITED, OTHER_DATA, AGAIN, OTHERWISE = [], [], {}, {}
REMADE = {}  # kept steps that this run makes again -> their runs
PROGRESS = ExitStack()  # what tells of it on the console, while the run lasts
if workflow.is_main_process:
    console.end_at_interrupt()
    os.environ.update(OPD_PLAN=PARSED)
    UNLOCKED = hub_lock.unlocked(CONFIG, LOCK)
    if UNLOCKED:
        print(
            f"not locked, so planned but not fetched: {', '.join(UNLOCKED)}. Once, online:"
            f" opd lock --configfile {' '.join(map(os.path.relpath, workflow.configfiles))}",
            file=sys.stderr,
        )
    EDITED = fresh.other_settings(ARTIFACTS, Path(RESULTS))
    OTHER_DATA = fresh.other_data(ARTIFACTS, Path(RESULTS), Path("results/.store"))
    for reason, folders in (
        ("not as the config says", EDITED),
        ("made from data that has changed since", OTHER_DATA),
    ):
        if folders:
            edits = diff.edits(Path(RESULTS, folders[0]), ARTIFACTS[folders[0]].cfg)
            first = f"{RESULTS}/{folders[0]}" + (f" ({edits})" if edits else "")
            more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
            print(
                f"{reason}: {first}{more}; what is asked for is made again",
                file=sys.stderr,
            )
    AGAIN = state.again(ARTIFACTS, Path(RESULTS), Path("results/.store"))
else:
    OTHERWISE = fresh.edited_since(
        os.environ.get("OPD_PLAN", PARSED), PARSED, Path(PLAN), ARTIFACTS
    )


def tell(*kinds):
    """Print lines of several kinds on the console."""
    for line in (line for lines in kinds for line in console.shortened(lines)):
        print(line, file=sys.stderr)


def compare_pairs():
    """Before models are fetched, end a run in which one does not fit another, going by the small
    files of each. No rule, since a file that fetching waits for would have it done again.
    """
    made = {f"{RESULTS}/{folder}/digest.json": folder for folder in ARTIFACTS}
    jobs = workflow.dag.needrun_jobs()
    folders = [made[file] for job in jobs for file in job.output if file in made]
    if any("hub" in a.cfg for f in folders if (a := ARTIFACTS[f]).stage == "fetch"):
        try:
            shell('"$OPD_PYTHON_fetch" -m opd.plan.pairs {PLAN} {folders:q}')
        except subprocess.CalledProcessError:
            sys.exit("error: nothing was fetched or started: see above")


# A job elsewhere has this one's environment.
if workflow.remote_exec:
    os.environ.pop(warm.FOLDER, None)


onstart:
    # Whenever Snakemake has looked for what can run, it looks again a timespan of this limit later,
    # and every job that ends begins one more such chain: with its usual 100/1s this takes a fifth of
    # a core after 150 jobs, and more after more. A limit that somebody has asked for stays.
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
    if workflow.local_exec:
        if CONFIG.warm_starts:
            warm.begin()
    elif plugin := sys.modules.get("snakemake_executor_plugin_slurm"):
        cluster.remember_min_job_age(plugin)
    fresh.write_plan(Path(PLAN), ARTIFACTS, TARGETS)
    fresh.write_config(Path(RESULTS, "config.yaml"), config)
    if sys.stderr.isatty():
        look = console.teller(ARTIFACTS, Path(RESULTS), lambda line: tell([line]))
        PROGRESS.enter_context(lock.repeated(look, console.LOOK_SECONDS))
    compare_pairs()
    for step, run in REMADE.items():
        kept = removal.kept_step(
            Path(RESULTS, run, "payload"), ARTIFACTS[step].cfg["step"]
        )
        removal.ask_again(Path(RESULTS, step), kept)


onsuccess:
    PROGRESS.close()
    tell(
        console.notes_of_data(ARTIFACTS, Path(RESULTS), BEGAN),
        console.trained(Path(RESULTS), BEGAN),
        console.findings(Path(RESULTS), BEGAN),
    )


onerror:
    PROGRESS.close()
    tell(
        console.notes_of_data(ARTIFACTS, Path(RESULTS), BEGAN),
        [*console.failures(ARTIFACTS, Path(RESULTS), BEGAN).values()],
    )


# Paths of interpreters belong to execution, not identity: in the environment they appear neither
# in a rule's code nor in its settings.
PYTHONS = resources.interpreters(SITE, CONFIG)
os.environ.update(
    {f"OPD_PYTHON_{s}": PYTHONS[t.python] or sys.executable for s, t in STAGES.items()}
)
if SITE.setup:
    # What loads modules reads variables that are not set, which comes to an end with -u.
    setup = SITE.setup.replace("{", "{{").replace("}", "}}")
    shell.prefix(f"set -eo pipefail\n{setup}\nset -euo pipefail\n")
os.environ.update(OPD_STALL_MINUTES=str(CONFIG.stall_minutes))


wildcard_constraints:
    seed="|".join(map(str, CONFIG.seeds)) if workflow.is_main_process else "[0-9]+",
    prompts="[^/]+",
    against="[^/]+",
    contamination="[^/]+",
    encoder="[^/]+",
    data="[^/]+",
    model="[^/]+",
    generation="[^/]+",
    scores="[^/]+",
    evaluation="[^/]+",
    benchmark="[^/]+",
    figure="[^/]+(/[^/]+)?",
    table="[^/]+",
    probe="[^/]+",
    demos="[^/]+",


def names_of(stage, online=False):
    """Constraint of the first wildcard of a stage's rule: the names of what the stage makes,
    ``online`` or not; it matches nothing if there are none."""
    names = {
        name
        for a in ARTIFACTS.values()
        for name in a.folder.split("/")[1:2]
        if a.stage == stage and registry.online(stage, a.cfg) is online
    }
    # What a job was submitted for is told why it stops, whatever has become of it (inputs_of).
    names |= {name for folder in OTHERWISE for name in Path(folder).parts[1:2]}
    expression = "|".join(sorted(re.escape(name) for name in names)) or "(?!)"
    return {
        name: expression for name in re.findall("{(.*?)}", STAGES[stage].folder)[:1]
    }


def environment(stage):
    """File of the conda environment of a stage."""
    kind = "workflow" if STAGES[stage].python == "light" else "gpu"
    return f"../../envs/{kind}.yaml"


def threads_of(stage):
    return 1 if STAGES[stage].python == "light" else CONFIG.threads


def force(folder):
    """Have an artifact made again that was made with other settings or from other data, and weights
    that it has yet to read and that were removed. Snakemake sees edits by its own records only,
    which a copy of the results or a clean-up lacks, data by times, and of weights nothing.
    """
    # There is no public way. dag_settings.forcerun makes targets of all that it names, so that what
    # nobody asked for would run; to remove the file, or to make it older, would also do so in a dry
    # run; an input that is newer than it would be one input less in the next run.
    if folder in EDITED and RerunTrigger.PARAMS in workflow.dag_settings.rerun_triggers:
        workflow.dag.forcefiles.add(f"{RESULTS}/{folder}/digest.json")
    if (
        folder in OTHER_DATA
        and RerunTrigger.MTIME in workflow.dag_settings.rerun_triggers
    ):
        workflow.dag.forcefiles.add(f"{RESULTS}/{folder}/digest.json")
    for source in AGAIN.get(folder, ()):
        workflow.dag.forcefiles.add(f"{RESULTS}/{source}/digest.json")
        if ARTIFACTS[source].stage == "keep" and source not in REMADE:
            (run,) = ARTIFACTS[source].inputs
            if run not in REMADE.values():
                print(
                    f"{run} is trained again: the weights of {source} are gone, and {folder} has"
                    " yet to read them",
                    file=sys.stderr,
                )
            REMADE[source] = run


def plain(path):
    """A plain file as Snakemake's records name it: below the working directory without the path of
    that, so that a clone that is moved runs nothing again."""
    inside = Path(path).is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else path


def of(stage):
    """Resources of a stage's rule: those of the class that its work has under this config and at
    this site (workflow/resources.yaml)."""
    return resources.resources(stage, CONFIG, ASKS, SITE)


def stop(folder):
    """End a job that would not make what was planned. Its log says so too, as that is what is shown
    where the run was started."""
    said = (
        f"error: {RESULTS}/{folder}: {OTHERWISE[folder]} while this job waited;"
        " run the same command again"
    )
    log = Path(RESULTS, "logs", f"{folder}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"{said}\n")
    sys.exit(said)


def inputs_of(pattern):
    """Input function: what the artifact at this folder is made from. The first function that is
    asked of a job, so a job that would not make what was planned stops here."""

    def paths(wildcards):
        folder = pattern.format(**wildcards)
        if folder in OTHERWISE:
            stop(folder)
        made = ARTIFACTS[folder]
        force(folder)
        used = () if folder in ADOPTED else made.inputs
        return [
            plain(p) if os.path.isabs(p) else f"{RESULTS}/{p}/digest.json" for p in used
        ]

    return paths


def readers_of(wildcards):
    """Input function: a kept step, and what has to be made before its weights go."""
    folder = f"models/{wildcards.model}/s{wildcards.seed}"
    return [f"{RESULTS}/{f}/digest.json" for f in (folder, *RELEASED[folder])]


def cfg_of(pattern):
    """Params function: the settings of the artifact at this folder, as canonical JSON."""

    def cfg(wildcards):
        return canonical(ARTIFACTS[pattern.format(**wildcards)].cfg)

    return cfg


def said_of(pattern):
    """Params function: title and caption of the artifact at this folder."""

    def said(wildcards):
        cfg = ARTIFACTS[pattern.format(**wildcards)].cfg
        return [cfg.get("title") or "", cfg.get("caption") or ""]

    return said


def in_report(stage, suffix):
    """A file of a stage in Snakemake's own report."""
    labels = re.findall("{(.*?)}", STAGES[stage].folder)
    return report(
        f"{RESULTS}/{STAGES[stage].folder}.{suffix}",
        caption=f"../report/{stage}.rst",
        category=SHOWN[stage],
        labels={name: f"{{{name}}}" for name in labels} or None,
    )


def targets():
    """Files of the figures, tables and pages that the config asks for, and notes that kept steps
    are needed no longer."""
    return [
        f
        for folder in TARGETS
        for f in command_line.files(ARTIFACTS[folder], CONFIG.name)
    ] + [f"{RESULTS}/{folder}/released.json" for folder in RELEASED]

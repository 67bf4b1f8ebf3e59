import os
import re
import sys

from pathlib import Path

from snakemake.settings.types import RerunTrigger
from snakemake.utils import update_config

from opd import current, exhibits, lock, plan, recipes
from opd.errors import Bad
from opd.files import canonical

try:
    update_config(config, recipes.typed(workflow.config_settings.config))
    CONFIG = recipes.resolve(config)
    LOCK = lock.read(Path(workflow.basedir, "config", "hub.lock.yaml"))
    ARTIFACTS = plan.plan(CONFIG, LOCK)
    ARTIFACTS |= exhibits.exhibits(CONFIG, ARTIFACTS, Path(workflow.basedir, "config"))
    TARGETS = exhibits.targets(CONFIG, ARTIFACTS)
except Bad as bad:
    sys.exit(f"error: {bad}")

RESULTS = f"results/{CONFIG.name}"
PLAN = f"{RESULTS}/plan.json"

EDITED = []
if workflow.is_main_process:
    UNLOCKED = lock.unlocked(CONFIG, LOCK)
    if UNLOCKED:
        print(
            f"not locked, so planned but not fetched: {', '.join(UNLOCKED)}. Once, online:"
            " opd lock CONFIG",
            file=sys.stderr,
        )
    EDITED = current.other_settings(ARTIFACTS, Path(RESULTS))
    if EDITED:
        more = f" and {len(EDITED) - 1} more" if len(EDITED) > 1 else ""
        print(
            f"not as the config says: {RESULTS}/{EDITED[0]}{more}; what is asked for is made again",
            file=sys.stderr,
        )


onstart:
    current.write_plan(Path(PLAN), ARTIFACTS)


# Paths of interpreters belong to execution, not identity: in the environment they appear neither
# in a rule's code nor in its settings.
for kind in ("light", "gpu", "vllm"):
    chosen = getattr(CONFIG.interpreters, kind)
    os.environ[f"OPD_{kind.upper()}"] = chosen or sys.executable


wildcard_constraints:
    seed="|".join(map(str, CONFIG.seeds)),
    prompts="[^/]+",
    against="[^/]+",
    contamination="[^/]+",
    encoder="[^/]+",
    data="[^/]+",
    model="[^/]+",
    generation="[^/]+",
    evaluation="[^/]+",
    benchmark="[^/]+",
    figure="[^/]+(/[^/]+)?",
    table="[^/]+",
    probe="[^/]+",
    demos="[^/]+",


def one_of(verb):
    """Regular expression of the names that a verb makes; matches nothing if there are none."""
    names = {a.folder.split("/")[1] for a in ARTIFACTS.values() if a.verb == verb}
    return "|".join(sorted(re.escape(name) for name in names)) or "(?!)"


def force_if_edited(folder):
    """Have an artifact made again that was made with other settings. Snakemake sees edits by its
    own records only, which a copy of the results or a clean-up lacks."""
    if folder in EDITED and RerunTrigger.PARAMS in workflow.dag_settings.rerun_triggers:
        workflow.dag.forcefiles.add(f"{RESULTS}/{folder}/digest.json")


def plain(path):
    """A plain file as Snakemake's records name it: below the working directory without the path of
    that, so that a clone that is moved runs nothing again."""
    inside = Path(path).is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else path


def inputs_of(pattern):
    """Input function: what the artifact at this folder is made from."""

    def paths(wildcards):
        made = ARTIFACTS[pattern.format(**wildcards)]
        force_if_edited(made.folder)
        return [
            plain(p) if os.path.isabs(p) else f"{RESULTS}/{p}/digest.json"
            for p in made.inputs
        ]

    return paths


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


def targets():
    """Files of the figures, tables and pages that the config asks for."""
    files = {
        "figures": ("png", "svg"),
        "tables": ("csv", "md"),
        "contamination": ("html",),
        "claims": ("json", "md", "html"),
        "report": ("html",),
    }
    return [
        f"{RESULTS}/{folder}.{suffix}"
        for folder in TARGETS
        for suffix in files[folder.partition("/")[0]]
    ]

"""A clone of this repository in which a user of a cluster types `snakemake --profile slurm`."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cluster import Cluster, Job

from opd.core.files import read_json

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FAST = str(HERE / "fast_snakemake.py")
CONFIG = "config/small.yaml"
PATIENCE = 600

# What Snakemake runs from: this environment, or a light one.
WORKFLOW = Path(os.environ.get("OPD_WORKFLOW", sys.executable))

SITE: dict[str, Any] = {
    "interpreters": {"gpu": sys.executable, "vllm": sys.executable},
    "classes": {
        "light": {"partition": "cpu", "mem_mb": 1000, "runtime": 5},
        "cpu": {"partition": "cpu", "mem_mb": 2000, "runtime": 5},
        "gpu": {"partition": "gpu", "mem_mb": 3000, "runtime": 10, "cpus_per_task": 1},
    },
    "rules": {"distill": {"class": "gpu2"}},
}


class Stage(NamedTuple):
    """A stage that was started, as it saw itself: ``gpus`` is CUDA_VISIBLE_DEVICES."""

    job: str
    user: str
    gpus: str


class Clone:
    def __init__(self, folder: Path, cluster: Cluster, user: str = "root") -> None:
        self.folder, self.cluster, self.user = folder, cluster, user
        self.results = folder / "results" / "small"
        self.trace = folder / "stages"
        self.printed = folder / "printed"
        if folder.exists():
            return
        for part in ("src", "workflow", "config", "envs"):
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        (folder / "slurm").mkdir()
        shutil.copy(ROOT / "slurm" / "profile.yaml", folder / "slurm")
        shutil.copy(ROOT / "Snakefile", folder)
        shutil.copy(HERE / "small.yaml", folder / CONFIG)
        self.site()

    def site(self, **rules: Any) -> None:
        """Write slurm/site.yaml; ``rules`` are asks of single rules."""
        setup = f'echo "$SLURM_JOB_ID $(id -un) ${{CUDA_VISIBLE_DEVICES:-none}}" >> {self.trace}'
        site = {**SITE, "setup": setup, "rules": {**SITE["rules"], **rules}}
        (self.folder / "slurm" / "site.yaml").write_text(yaml.safe_dump(site))

    def copy(self, folder: Path, without: str = "") -> "Clone":
        """Another clone with the same results, Snakemake's records included; but of one artifact
        there is nothing, as before it was made."""
        shutil.copytree(self.folder, folder, symlinks=True)
        other = Clone(folder, self.cluster)
        for file in (other.trace, other.printed):
            file.unlink(missing_ok=True)
        other.site()
        if without:
            made = other.results / without / "payload"
            store = made.resolve()
            shutil.rmtree(store)
            store.with_name(f"{store.name}.json").unlink()
            shutil.rmtree(made.parent)
            (other.results / "logs" / f"{without}.log").unlink()
        return other

    def command(self, *arguments: str, clamp: bool = True) -> list[str]:
        start = [FAST] if clamp else ["-m", "snakemake"]
        return [
            *(str(WORKFLOW), *start, "--cores", "all", "--profile", "slurm"),
            *(*arguments, "--configfile", CONFIG),
        ]

    def start(self, *arguments: str, clamp: bool = True) -> subprocess.Popen[bytes]:
        """Start Snakemake in a session of its own; what it prints goes to ``printed``."""
        dropped = ("SNAKEMAKE", "OPD_", "OMP_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        environment |= {"PYTHONPATH": str(self.folder / "src"), "HOME": str(self.folder)}
        given: dict[str, Any] = {}
        if self.user != "root":
            who = pwd.getpwnam(self.user)
            given = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
            environment |= {"USER": self.user, "LOGNAME": self.user}
        with self.printed.open("ab") as output:
            return subprocess.Popen(
                self.command(*arguments, clamp=clamp),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # As in a terminal, also where the tests run in the background and ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **given,
            )

    def run(self, *arguments: str, ok: bool = True, clamp: bool = True) -> str:
        """What a call prints that has to end well (or badly)."""
        before = self.printed.stat().st_size if self.printed.exists() else 0
        return self.ended(self.start(*arguments, clamp=clamp), ok, before)

    def ended(self, running: subprocess.Popen[bytes], ok: bool = True, before: int = 0) -> str:
        """Wait for a call, which has to end well (or badly): what it printed."""
        code: int | str
        try:
            code = running.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            code = f"none after {PATIENCE} s"
            running.kill()
        printed = self.printed.read_bytes()[before:].decode()
        logs = f"{printed}\nexit status {code}\n{self.cluster.logs()}"
        assert isinstance(code, int) and (code == 0) is ok, logs
        return printed

    def digest(self, artifact: str) -> str:
        return (self.results / artifact / "digest.json").read_text()

    def digests(self) -> dict[str, str]:
        found = self.results.rglob("digest.json")
        return {str(p.parent.relative_to(self.results)): p.read_text() for p in found}

    def log(self, artifact: str) -> str:
        path = self.results / "logs" / f"{artifact}.log"
        return path.read_text() if path.exists() else ""

    def store(self) -> dict[str, str]:
        """Key -> stage of what is in the store."""
        entries = (self.folder / "results" / ".store").glob("*.json")
        return {p.stem: read_json(p)["stage"] for p in entries}

    def stages(self) -> list[Stage]:
        """The stages that were started, in this order."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [Stage(*line.split()) for line in lines]

    def jobs(self, rule: str = "") -> list[Job]:
        """The jobs that were submitted here, in this order."""
        here = [job for job in self.cluster.jobs() if job.folder == str(self.folder)]
        return [job for job in here if re.match(f"rule_{rule}(_|$)" if rule else "", job.made)]

    def step(self) -> int:
        """Steps that the training under way has taken."""
        journals = (self.folder / "results" / ".store").glob(".scratch/*/metrics.jsonl")
        return max((len(j.read_text().splitlines()) for j in journals), default=0)

    def owner(self) -> int:
        """Process that the training under way is done by; 0 where there is none."""
        for path in (self.folder / "results" / ".store").glob(".scratch/*/owner"):
            said = re.match(r"process (\d+) on ", path.read_text())
            if said and path.with_name("metrics.jsonl").exists():
                return int(said[1])
        return 0

"""A working directory in which a test runs Snakemake."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "workflow" / "tiny.yaml"


class Project:
    """A working directory with results, in which Snakemake runs this repository's Snakefile."""

    def __init__(self, folder: Path, code: Path | None = None) -> None:
        self.folder, self.code = folder, code or ROOT
        self.config = folder / "tiny.yaml"
        if not self.config.exists():
            data = str(TINY.with_name("labelled.jsonl"))
            self.config.write_text(TINY.read_text().replace("labelled.jsonl", data))

    def command(self, *arguments: str) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake", "--cores", "2", "--rerun-incomplete"),
            *("--snakefile", str(self.code / "Snakefile"), "--directory", str(self.folder)),
            # Last: --configfile takes all that follows it, targets too.
            *(*arguments, "--configfile", str(self.config)),
        ]

    @property
    def environment(self) -> dict[str, str]:
        # A site file of whoever runs the tests has no part in them.
        return {**os.environ, "PYTHONPATH": str(self.code / "src"), "OPD_SITE": ""}

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Standard output and error of a Snakemake call that must end well (or badly)."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) is ok, output
        return output

    def start(self) -> subprocess.Popen[bytes]:
        """A Snakemake call in a process group of its own, to be interrupted or killed."""
        return subprocess.Popen(
            self.command(),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # As in a terminal, also where the tests themselves run in the background and ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def would_make(self, *arguments: str) -> set[str]:
        """Folders of the artifacts that a dry run lists."""
        output = self.run("-n", *arguments)
        outputs = re.findall(r"^    output: (\S+)", output, re.MULTILINE)
        prefix = f"results/{self.name}/"
        return {o.rstrip(",").removeprefix(prefix).removesuffix("/digest.json") for o in outputs}

    @property
    def name(self) -> str:
        return yaml.safe_load(self.config.read_text())["name"]

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        config = yaml.safe_load(self.config.read_text())
        change(config)
        # In the order of the file: the report shows things in it.
        self.config.write_text(yaml.safe_dump(config, sort_keys=False))

    def result(self, path: str) -> Path:
        return self.folder / "results" / self.name / path

    def digests(self) -> dict[str, str]:
        """digest.json of every artifact, by folder; but of the report, which tells what time the
        runs took."""
        root = self.folder / "results" / self.name
        found = {str(p.parent.relative_to(root)): p.read_text() for p in root.rglob("digest.json")}
        found.pop("report", None)
        return found

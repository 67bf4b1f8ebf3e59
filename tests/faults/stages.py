"""The tiny config run stage by stage, without Snakemake, in a folder of a test's own."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from opd.core.files import canonical, read_json
from opd.plan import artifacts as plan
from opd.plan import base, outputs
from opd.recipes import resolve
from opd.stages import artifact, fresh, verify
from opd.stages.artifact import Artifact

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NAME = "tiny"
TINY = ROOT / "tests" / "workflow" / "tiny.yaml"
COPIES = {
    **{"figure": ("figure.png", "figure.svg"), "table": ("table.csv", "table.md")},
    **{"claims": ("claims.html", "claims.json", "claims.md"), "report": ("report.html",)},
    **{"dedup": ("dedup.html",), "contamination": ("contamination.html",)},
}
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Ended(NamedTuple):
    """How a stage ended: exit status (negative: signal), events (see zygote.py), its log."""

    status: int
    events: int
    log: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.log.splitlines() if line.startswith("error: ")]


class Zygote:
    """See zygote.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the process that stages are forked from has ended"
        return json.loads(line)

    def run(self, folder: Path, argv: list[str], **more: Any) -> Ended:
        log = Path(more.pop("log", folder / "stage.log"))
        task = {"argv": argv, "folder": str(folder), "log": str(log)}
        task |= {"kill": None, "half": False, "signal": "SIGKILL"}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(task | more) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return Ended(answer["status"], answer["events"], log.read_text(errors="replace"))

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    fixed["OPD_DATA_DIR"] = str(TINY.parent)
    # Before a hub's libraries are imported, as `opd` does it.
    return {**os.environ, **fixed, "HF_HUB_OFFLINE": "1"}


@dataclass
class Run:
    """A folder with results of the tiny config, and what makes each of its artifacts."""

    folder: Path
    artifacts: dict[str, Artifact]
    zygote: Zygote
    hub: Path

    @property
    def results(self) -> Path:
        return self.folder / "results" / NAME

    @property
    def store(self) -> Path:
        return self.folder / "results" / ".store"

    def argv(self, name: str) -> list[str]:
        """The command line of an artifact's stage, after `opd`."""
        one, root = self.artifacts[name], Path("results", NAME)
        given = [p if os.path.isabs(p) else f"{root}/{p}/digest.json" for p in one.inputs]
        argv = ["stage", one.stage, "--cfg", canonical(one.cfg), "--input", *given]
        argv += ["--output", f"{root}/{name}/digest.json"]
        if one.stage in ("figure", "table", "claims"):
            argv += ["--plan", f"{root}/plan.json"]
        if copies := self.copies(name):
            argv += ["--copy", *(f"{file}={path}" for file, path in copies.items())]
        return argv

    def copies(self, name: str) -> dict[str, Path]:
        files = COPIES.get(self.artifacts[name].stage, ())
        return {file: Path("results", NAME, f"{name}{Path(file).suffix}") for file in files}

    def check_inputs(self, name: str) -> None:
        """Have an artifact's inputs read and remembered, so that its stage need not."""
        time.sleep(2 * verify.TICK_NS / 1e9)
        for path in self.artifacts[name].inputs:
            if not os.path.isabs(path):
                verify.artifact(self.results / path / "digest.json")

    def make(self, name: str, **more: Any) -> Ended:
        """Run the stage of an artifact in a fork of the zygote."""
        return self.zygote.run(self.folder, self.argv(name), hub=str(self.hub), **more)

    def start(self, name: str, log: Path, **more: str) -> "subprocess.Popen[bytes]":
        """Run it in a process of its own, which a test can signal, as can its children."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "opd", *self.argv(name)],
                cwd=self.folder,
                env=environment() | {"OPD_WARM": ""} | more,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def change(self, name: str, cfg: dict[str, Any]) -> None:
        """Edit the settings of an artifact."""
        one = self.artifacts[name]
        self.artifacts = {
            **self.artifacts,
            name: Artifact(one.stage, one.folder, {**one.cfg, **cfg}, one.inputs),
        }

    def identity(self, name: str) -> str:
        return str(read_json(self.results / name / "digest.json")["identity"])

    def forget(self, name: str) -> None:
        """Have an artifact made again from nothing, what was sampled for it too."""
        identity = self.identity(name)
        for path in self.store.glob(f"{identity}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.results / name)
        for path in self.copies(name).values():
            (self.folder / path).unlink(missing_ok=True)
        for kept in ("responses", "embed", "streams"):
            shutil.rmtree(self.store / ".cache" / kept, ignore_errors=True)
        (self.store / ".cache" / "verified" / f"{identity}.json").unlink(missing_ok=True)

    def digests(self) -> dict[str, bytes]:
        """digest.json of every artifact, and every page, table and figure beside them."""
        no = ("manifest.json", "running.json")
        return {
            str(path.relative_to(self.results)): path.read_bytes()
            for path in self.results.rglob("*")
            if path.is_file() and path.name not in no and not path.name.startswith(".")
        }

    def files(self) -> set[str]:
        """Everything that lies there by name, but for what is kept to be used again."""
        root = self.folder / "results"
        kept = self.store / ".cache"
        return {
            str(p.relative_to(root))
            for p in root.rglob("*")
            if p.name.startswith(".") or kept not in p.parents
        }

    def copy(self, folder: Path) -> "Run":
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return Run(folder, self.artifacts, self.zygote, self.hub)


def finished(folder: Path, zygote: Zygote) -> Run:
    """A run of the tiny config to its end, with an artifact of every stage: also a kept step, and
    models and data from a hub."""
    raw = yaml.safe_load(TINY.read_text())
    raw["prompts"]["labelled"]["path"]["file"] = str(TINY.with_name("labelled.jsonl"))
    raw["models"]["forward"]["distill"]["keep_steps"] = [1]
    raw["tables"]["accuracy"]["rows"].append({"label": "step 1", "model": "forward@1"})
    # Several lines in a journal, several checkpoints in a run.
    raw["defaults"]["generations"]["batch_size"] = 4
    raw["defaults"]["evaluations"]["batch_size"] = 2
    raw["training"] = {"checkpoint_every": 1}
    for part in ("hub", "run"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    config = resolve.resolve(raw)
    (folder / "run" / "tiny.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    artifacts = plan.plan(config, {})
    artifacts |= outputs.exhibits(config, artifacts, ROOT / "config")
    shown = outputs.targets(config, artifacts)
    run = Run(folder / "run", artifacts, zygote, folder / "hub")
    fresh.write_plan(run.results / "plan.json", artifacts)
    for name in artifact.closure(shown, artifacts):
        ended = run.make(name)
        assert ended.status == 0, (name, ended.log)
    for extra in _from_hub(run):
        run.artifacts[extra.folder] = extra
        ended = run.make(extra.folder)
        assert ended.status == 0, (extra.folder, ended.log)
    for name in [name for name in artifacts if not (run.results / name).exists()]:
        del run.artifacts[name]
    return run


def _from_hub(run: Run) -> list[Artifact]:
    model, data = run.hub / "models" / "a" / "model", run.hub / "datasets" / "a" / "data"
    payload = run.results / "models" / "init" / "s0" / "payload"
    shutil.copytree(payload, model, dirs_exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}", "answer": str(i)} for i in range(5)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    at = {"revision": REVISION}
    source = {"source": {"hub": "a/data", **at, "split": "test"}, "answer": "answer"}
    return [
        base.artifact("fetch", "models/hub", {"hub": "a/model", **at}, {}),
        base.artifact("dataset", "datasets/hub", {"hub": "a/data", **at}, {}),
        base.artifact("prompts", "prompts/hub", source, {}),
    ]


def only_error(ended: Ended) -> str:
    """The one line that a stage which failed ends with; nothing else is shown of it."""
    (line,) = ended.errors
    assert "Traceback" not in ended.log, ended.log
    return line


def mended(run: Run, name: str, digests: dict[str, bytes], files: set[str]) -> Ended:
    """Run a stage again: it comes to the same end, with nothing lost and nothing left over."""
    again = run.make(name)
    assert again.status == 0, again.log
    if digests:
        assert run.digests() == digests
        assert run.files() == files
    return again

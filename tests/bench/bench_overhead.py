"""What the pipeline itself costs: the paper's DAG in Snakemake, jobs that do nothing, how long each
light command takes to start, stages that start warm, and `opd audit` against sha256sum.

    python tests/bench/bench_overhead.py commands [RESULTS]
    python tests/bench/bench_overhead.py starts RESULTS
    python tests/bench/bench_overhead.py dag [--seeds 1 3 17]
    python tests/bench/bench_overhead.py jobs
    python tests/bench/bench_overhead.py audit RESULTS

Every figure is the median over ``--rounds``; beside seconds of a clock stand those of a processor,
which say more where the machine is shared.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from common import describe, table

from opd.cli import main as cli
from opd.cli import warm
from opd.core import files
from opd.plan import artifacts as plan
from opd.plan import outputs
from opd.recipes import resolve
from opd.stages import identity

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config" / "paper.yaml"
LIGHT = ("prompts", "filter", "dedup", "contamination", "keep", "table", "figure", "claims")
LIGHT = (*LIGHT, "report")
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"))


def timed(command: Sequence[str], folder: Path, rounds: int) -> tuple[float, float, str]:
    """(seconds, processor seconds with those of children, what it said), medians over rounds."""
    wall, cpu, said = [], [], ""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for _ in range(rounds):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        wall.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(sum(after[:2]) - sum(before[:2]))
        said = done.stdout + done.stderr
        if done.returncode not in (0, 1):
            sys.exit(f"{' '.join(command)[:300]}: {said[-2000:]}")
    return statistics.median(wall), statistics.median(cpu), said


def opd(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "opd", *arguments]


# Commands


def commands(given: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Each command's help, and the light ones on something small."""
    parser = cli.parser()
    (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    rows = []
    helps = {command: timed(opd(command, "--help"), ROOT, given.rounds)[:2] for command in choices}
    slowest = max(helps, key=lambda command: helps[command][1])
    wall, cpu = helps[slowest]
    rows.append([f"`--help`, the slowest of {len(helps)} ({slowest})", f"{wall:.2f}", f"{cpu:.2f}"])
    paper = ["--configfile", "config/paper.yaml"]
    asked = {
        "schema": opd("schema"),
        "plan of the miniature": opd("plan"),
        "plan of the paper": opd("plan", *paper),
    }
    results = given.results
    if results:
        asked |= {"calibrate": opd("calibrate", str(results), "--output", str(folder / "c.yaml"))}
        asked |= {stage: again(results, stage, folder) for stage in LIGHT}
        if "why" in choices:
            some = next(results.glob("evaluations/*/*/s*"))
            asked |= {"why": opd("why", str(some)), "diff": opd("diff", str(some), str(some))}
    for name, command in asked.items():
        if command:
            wall, cpu, _ = timed(command, ROOT, given.rounds)
            rows.append([name, f"{wall:.2f}", f"{cpu:.2f}"])
    return rows


def again(results: Path, stage: str, folder: Path) -> list[str]:
    """The command that makes a finished artifact of a stage again, with nothing in the store."""
    for path in sorted(results.rglob("manifest.json")):
        made = json.loads(path.read_text())
        if made["stage"] != stage:
            continue
        top = results.absolute().parents[1]
        inputs = [str(top / made["inputs"][name]["path"]) for name in made["cfg"]["inputs"]]
        store = folder / "store"
        # A store that has it would only be asked for it.
        command = [
            *opd("stage", stage, "--cfg", str(path.absolute()), "--input", *inputs),
            *("--output", str(folder / stage / "digest.json"), "--store", str(store)),
        ]
        empty = f'rm -rf "{store}"; exec "$@"'
        return ["sh", "-c", empty, "sh", *command]
    return []


# The DAG


def dag(given: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Dry runs of the paper's DAG from nothing, with as many seeds as asked for."""
    rows = []
    for n in given.seeds:
        command = [*SNAKEMAKE, "-n", "--configfile", str(PAPER), "--config"]
        command.append(f"seeds={json.dumps([*range(n)])}")
        wall, cpu, said = timed(command, folder, given.rounds if n < 5 else 1)
        found = re.search(r"^total +(\d+)$", said, re.MULTILINE)
        assert found, said[-2000:]
        jobs = int(found[1])
        each = f"{1000 * cpu / jobs:.1f}"
        rows.append([f"{n}", f"{jobs:,}", f"{wall:.1f}", f"{cpu:.1f}", each])
    start = timed([*SNAKEMAKE, "--version"], folder, given.rounds)
    rows.append(["Snakemake's own start", "", f"{start[0]:.1f}", f"{start[1]:.1f}", ""])
    parse = timed([sys.executable, "-c", PARSE], ROOT, given.rounds)
    rows.append(["config to artifacts", "", f"{parse[0]:.1f}", f"{parse[1]:.1f}", ""])
    return rows


PARSE = f"""
from pathlib import Path
from opd.plan import artifacts, outputs
from opd.recipes import resolve
config = resolve.read([Path({str(PAPER)!r})])
planned = artifacts.plan(config, {{}})
outputs.exhibits(config, planned, Path({str(PAPER.parent)!r}))
"""

# Stands for every stage: takes a digest.json that was made before, and makes empty files of what a
# rule wants besides.
NOTHING = """#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=$2; shift ;;
    *=results/*) file=${1#*=}; mkdir -p "${file%/*}"; : > "$file" ;;
  esac
  shift
done
cp "made/${output#results/paper/}" "$output"
"""


def jobs(given: argparse.Namespace, folder: Path) -> list[list[str]]:
    """The paper's DAG run to its end by an interpreter that does nothing, then what is left to do
    when nothing is."""
    nothing = folder / "nothing"
    nothing.write_text(NOTHING)
    nothing.chmod(0o755)
    config = resolve.read([PAPER])
    artifacts = plan.plan(config, {})
    artifacts |= outputs.exhibits(config, artifacts, PAPER.parent)
    for name, one in artifacts.items():
        record = {
            "identity": files.digest(name),
            "settings": identity.settings_digest(one.stage, one.cfg),
            "outputs": {},
        }
        path = folder / "made" / name / "digest.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
    chosen = json.dumps(dict.fromkeys(("light", "gpu", "vllm"), str(nothing)))
    command = [*SNAKEMAKE, "--cores", "2", "--configfile", str(PAPER)]
    command += ["--config", f"interpreters={chosen}"]
    empty = timed([*command, "-n"], folder, given.rounds)
    whole = timed(command, folder, 1)
    found = re.search(r"(\d+) of \1 steps \(100%\) done", whole[2])
    assert found, whole[2][-2000:]
    n = int(found[1])
    rows = []
    each = [1000 * (whole[i] - empty[i]) / n for i in (0, 1)]
    rows.append([f"{n} jobs that do nothing, in all", f"{whole[0]:.1f}", f"{whole[1]:.1f}"])
    rows.append(["each of them (ms)", f"{each[0]:.0f}", f"{each[1]:.0f}"])
    for name, extra in {"dry run": ["-n"], "run": []}.items():
        wall, cpu, said = timed([*command, *extra], folder, given.rounds)
        assert "Nothing to be done" in said, said[-2000:]
        rows.append([f"{name} with nothing to do", f"{wall:.1f}", f"{cpu:.1f}"])
    return rows


# Warm starts


def starts(given: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Finished artifacts made again, with and without a process that has imported what stages need,
    in turns; its own start is left out."""
    warm.begin()
    servers = os.environ.pop(warm.FOLDER)
    rows = []
    for stage in ("init", "evaluate", "pair", "distill"):
        command = again(given.results, stage, folder)
        seconds: dict[str, list[float]] = {"as usual": [], "warm": []}
        for turn in range(given.rounds + 1):
            for way, measured in seconds.items():
                with mock.patch.dict(os.environ, {warm.FOLDER: servers} if way == "warm" else {}):
                    wall, _, _ = timed(command, ROOT, 1)
                if turn:
                    measured.append(wall)
        ratios = [w / u for u, w in zip(*seconds.values(), strict=True)]
        medians = [f"{statistics.median(measured):.2f}" for measured in seconds.values()]
        rows.append([stage, *medians, f"{statistics.median(ratios):.2f}"])
    return rows


# The audit


def audit(given: argparse.Namespace, folder: Path) -> list[list[str]]:
    """`opd audit` and sha256sum, in turn, over the same store."""
    top = given.results.absolute().parents[1]
    store = given.results.absolute().parent / ".store"
    every = [str(path) for path in store.rglob("*") if path.is_file()]
    size = sum(os.stat(path).st_size for path in every) / 1e9
    (folder / "list").write_bytes(b"\0".join(path.encode() for path in every))
    plain = ["sh", "-c", f"xargs -0 sha256sum < {folder / 'list'} > /dev/null"]
    ours = opd("audit", str(given.results.absolute()))
    rows = []
    for name, command in {"sha256sum": plain, "opd audit": ours}.items():
        wall, cpu, _ = timed(command, top, given.rounds)
        rows.append([name, f"{wall:.1f}", f"{cpu:.1f}", f"{size / wall:.2f}", f"{size / cpu:.2f}"])
    return rows


PARTS: dict[str, tuple[Callable[[argparse.Namespace, Path], list[list[str]]], list[str]]] = {
    "commands": (commands, ["command", "s", "processor s"]),
    "dag": (dag, ["seeds", "jobs", "s", "processor s", "processor ms a job"]),
    "jobs": (jobs, ["the paper's DAG", "s", "processor s"]),
    "starts": (starts, ["stage", "s as usual", "s warm", "ratio"]),
    "audit": (audit, ["", "s", "processor s", "GB/s", "GB/processor s"]),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("results", nargs="?", type=Path, help="results/NAME of a finished run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 17])
    given = parser.parse_args()
    run, header = PARTS[given.part]
    folder = Path(tempfile.mkdtemp(prefix="overhead-"))
    try:
        rows = run(given, folder)
    finally:
        shutil.rmtree(folder)
    print(table(header, rows))
    print(f"\n{describe('cpu')} Load {os.getloadavg()[0]:.0f}.")


if __name__ == "__main__":
    main()

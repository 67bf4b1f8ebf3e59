"""Interpreters of a config: whether each starts, holds what its rules need, in locked versions."""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import opd
from opd.core.files import content
from opd.doctor import envs
from opd.doctor.ask import ask
from opd.doctor.finding import Finding, some
from opd.plan.resources import Work
from opd.recipes.config import Config

LIMIT_SECONDS = 180  # a first import of torch from a network file system takes its time
PLUGIN = "snakemake-executor-plugin-slurm"

# What may be installed and still fail to start, for a library or a processor that is not there.
TRIED = {
    "light": ("datasets", "matplotlib", "math_verify", "pyarrow", "scipy"),
    "gpu": ("accelerate", "faiss", "sentence_transformers", "torch", "transformers", "trl"),
    "vllm": ("lm_eval", "torch", "transformers"),
}

PROBE = """
import importlib, importlib.metadata, json, os, platform, sys
os.environ["HF_HUB_OFFLINE"] = "1"
told = os.dup(1)
os.dup2(2, 1)
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
torch = sys.modules.get("torch")
package = sys.modules.get("opd")
found = {
    "python": platform.python_version(),
    "versions": {d.name: d.version for d in importlib.metadata.distributions() if d.name},
    "failed": failed,
    "gpus": torch.cuda.device_count() if torch and hasattr(torch, "cuda") else 0,
    "opd": os.path.dirname(package.__file__) if package else None,
}
os.write(told, json.dumps(found).encode())
os._exit(0)
"""


def wanted(config: Config, verbs: Iterable[str], rules: Mapping[str, str]) -> dict[str, set[str]]:
    """Kind of interpreter (light, gpu, vllm) -> modules that it has to import for these verbs.

    ``rules`` tells the kind that runs a verb (``kinds``).
    """
    kinds = {rules[verb] for verb in verbs if verb in rules}
    found = {kind: {"opd.cli.main", *TRIED[kind]} for kind in sorted(kinds)}
    if "vllm" in found and config.backend == "vllm":
        found["vllm"].add("vllm")
    if "gpu" in found and config.training.vllm is not None:
        found["gpu"].add("vllm")
    return found


def kinds(rules: Path) -> dict[str, str]:
    """Verb -> the kind of interpreter that the rules (a folder of .smk files) run it with."""
    found = re.findall(r"\$OPD_([A-Z]+) -m opd (\w+)", _text(rules))
    return {verb: kind.lower() for kind, verb in found}


def work(rules: Path) -> dict[str, Work]:
    """Rule -> what it works with, as the rules (a folder of .smk files) say."""
    found = re.findall(r"\*\*of\(\"(\w+)\", \"(\w+)\"", _text(rules))
    return dict(found)


def _text(rules: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(rules.glob("*.smk")))


def probe(
    python: str, modules: Iterable[str], seconds: float = LIMIT_SECONDS, setup: str = ""
) -> dict[str, Any]:
    """What an interpreter says of itself after importing ``modules``: python, versions by
    distribution, failed {module: error}, gpus, opd (folder of its package). ``setup`` are lines of
    bash that run before it.

    A dictionary with the one key ``error`` where it does not start or does not answer in time.
    """
    command = [python, "-c", PROBE, *sorted(modules)]
    if setup:
        command = ["bash", "-c", f'{setup}\nexec "$0" "$@"', *command]
    try:
        code, out, err = ask(command, seconds)
    except OSError as error:
        return {"error": f"does not start ({error.strerror})"}
    if code is None:
        return {"error": f"does not answer within {seconds:g} s"}
    try:
        found = json.loads(out)
    except ValueError:
        said = (err.strip() or out.strip()).splitlines()
        return {"error": f"ends with {code} ({said[-1][:200] if said else 'silently'})"}
    return dict(found)


def examine(
    chosen: Mapping[str, str], wanted: Mapping[str, set[str]], folder: Path, setup: str = ""
) -> tuple[list[Finding], dict[str, dict[str, Any]]]:
    """Findings about the interpreters ``chosen`` (empty: this one) for each kind in ``wanted``, and
    what each kind's probe told. ``folder`` holds the locks.

    One process for each interpreter, all at once, however many kinds it serves.
    """
    chosen = {kind: chosen.get(kind) or sys.executable for kind in wanted}
    paths = {kind: shutil.which(python) for kind, python in chosen.items()}
    together: dict[str, set[str]] = {}
    for kind, path in paths.items():
        if path:
            together.setdefault(path, set()).update(wanted[kind])
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda path: probe(path, together[path], setup=setup), together)
        told = dict(zip(together, answers, strict=True))
    findings: list[Finding] = []
    for kind, path in paths.items():
        where = f"interpreters.{kind}"
        if path is None:
            remedy = f"mend {where} in slurm/site.yaml or the config, or make the environment"
            findings.append(Finding(where, "missing", f"no such program: {chosen[kind]}", remedy))
            continue
        findings += _one(where, path, wanted[kind], told[path])
    for path, answer in told.items():
        if "error" not in answer:
            mine = [kind for kind in paths if paths[kind] == path]
            findings += drift(f"versions of {', '.join(mine)}", answer, folder)
    return findings, {kind: told[path] for kind, path in paths.items() if path}


def _one(where: str, path: str, modules: set[str], told: Mapping[str, Any]) -> Iterator[Finding]:
    if "error" in told:
        yield Finding(where, "missing", f"{path} {told['error']}", "run it by hand to see why")
        return
    failed = {name: error for name, error in told["failed"].items() if name in modules}
    if failed:
        what = f"{path} cannot import {some(f'{n} ({e})' for n, e in sorted(failed.items()))}"
        remedy = "install the extras that pyproject.toml names for it, with -c envs/constraints.txt"
        yield Finding(where, "missing", what, remedy)
        return
    yield Finding(where, "ok", f"{path}, Python {told['python']}, {len(modules)} imports")
    theirs, ours = Path(told["opd"]), Path(next(iter(opd.__path__)))
    if theirs != ours and _code(theirs) != _code(ours):
        what = f"it runs the code in {theirs}, which is not that in {ours}"
        yield Finding(
            where, "missing", what, f"install this checkout there: pip install -e {ours.parents[1]}"
        )


def _code(package: Path) -> dict[str, str]:
    return {name: one for name, one in content(package).items() if name.endswith(".py")}


def drift(subject: str, told: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    """What an interpreter has in other versions than its lock: the one with Slurm's plugin where it
    has that, else that of everything else."""
    installed = {envs.name(name): version for name, version in told["versions"].items()}
    file = folder / ("workflow.txt" if PLUGIN in installed else "constraints.txt")
    if not file.is_file():
        yield Finding(subject, "warning", f"no lock {file} to compare with", "use a whole clone")
        return
    pinned = envs.pins(file, told["python"])
    other = {
        name: (installed[name], version)
        for name, version in pinned.items()
        if name in installed and installed[name].partition("+")[0] != version
    }
    if other:
        what = some(f"{name} {there} (locked: {lock})" for name, (there, lock) in other.items())
        remedy = f"install these again with pip install -c {file}, or expect other numbers"
        yield Finding(subject, "warning", f"not as in {file}: {what}", remedy)
    else:
        count = len(pinned.keys() & installed.keys())
        yield Finding(subject, "ok", f"{count} packages as in {file}")

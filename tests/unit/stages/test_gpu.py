"""Stages share the GPUs of a machine without a scheduler, and say what they drew from them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from nvml import Machine, busy, memory

from opd.core.errors import UserError
from opd.stages import gpu, registry
from opd.stages import run as runner

TESTS = Path(__file__).parents[2]

# A process that leases, says what it got, starts a child if told so, and waits for a line.
STAGE = """
import json, os, subprocess, sys
from pathlib import Path
from nvml import Machine
from opd.stages import gpu
folder, devices, stage, cfg, child = json.loads(sys.argv[1])
gpu.LOCKS = Path(folder)
gpu.POLL_SECONDS = 0.05
Machine(devices)
with gpu.lease(stage, cfg):
    if child:
        subprocess.Popen(["sleep", "30"], close_fds=False)
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    sys.stdin.readline()
"""


class Stage:
    """A stage in a process of its own."""

    def __init__(self, folder: Path, devices: int, processes: int = 1, child: bool = False) -> None:
        task = [str(folder), devices, "distill", {"processes": processes}, child]
        paths = os.pathsep.join([str(TESTS / "fixtures"), str(TESTS.parent / "src")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", STAGE, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )

    def got(self) -> str:
        """CUDA_VISIBLE_DEVICES of the stage, once it has its lease."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def said(self) -> str:
        """The next line on standard error."""
        assert self.process.stderr
        return self.process.stderr.readline()

    def end(self) -> None:
        self.process.communicate("go\n", timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Starts stages on a machine with two GPUs; what is left of them ends with the test."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    started: list[Stage] = []

    def start(**options) -> Stage:
        started.append(Stage(tmp_path / "locks", 2, **options))
        return started[-1]

    yield start
    for one in started:
        with suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.communicate()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process outside Slurm, with locks of its own and no word on devices."""
    monkeypatch.setattr(gpu, "LOCKS", tmp_path / "locks")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # put back after the test
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "locks"


def test_two_stages_have_different_devices_and_a_third_waits_for_one_that_is_killed(stages):
    first, second = stages(), stages()
    assert {first.got(), second.got()} == {"0", "1"}
    third = stages()
    line = third.said()
    assert "waiting for 1 of 2 GPUs" in line and f"process {first.process.pid}" in line
    assert third.process.poll() is None
    first.kill()
    assert third.got() in {"0", "1"}
    fourth = stages()
    assert "waiting" in fourth.said()
    second.end()
    assert fourth.got() in {"0", "1"}


def test_what_a_killed_stage_has_started_keeps_its_device(stages):
    first = stages(processes=2, child=True)
    assert first.got() == "0,1"
    first.kill()
    second = stages()
    assert "waiting" in second.said()
    os.killpg(first.process.pid, signal.SIGKILL)
    assert second.got() == "0"


def test_stages_that_need_all_devices_do_not_wait_for_each_other(stages):
    pair = [stages(processes=2) for _ in range(3)]
    threads = [threading.Thread(target=one.end, daemon=True) for one in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [one.process.poll() for one in pair] == [0, 0, 0]


def test_a_wide_stage_is_not_overtaken_by_narrow_ones(stages):
    first = stages()
    assert first.got() == "0"
    wide = stages(processes=2)
    assert "waiting for 2 of 2 GPUs" in wide.said()
    narrow = stages()
    assert "others wait before this" in narrow.said()
    first.end()
    assert wide.got() == "0,1"
    wide.end()
    assert narrow.got() in ("0", "1")  # whichever is released first


def test_visible_devices_are_named_while_the_stage_runs_and_not_after(here):
    Machine(4)
    with gpu.lease("distill", {"processes": 2}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert "CUDA_DEVICE_ORDER" not in os.environ


@pytest.mark.parametrize(
    ("given", "chosen"),
    [("1", "1"), ("3,1", "3,1"), ("GPU-c", "GPU-c"), ("", ""), ("-1", "-1"), ("0,9,1", "0")],
)
def test_a_choice_of_devices_is_honoured(here, monkeypatch, given, chosen):
    Machine(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with gpu.lease("evaluate", {"backend": "vllm"}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given


def test_a_device_is_the_same_by_number_and_by_name(here, monkeypatch):
    Machine(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with gpu.lease("pair", {}):
        assert [p.name for p in here.glob("GPU-*")] == ["GPU-c"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c")
    with gpu.lease("pair", {}):
        assert [p.name for p in here.glob("GPU-*")] == ["GPU-c"]


def test_vllm_takes_all_that_is_free(stages, here):
    first = stages()
    assert first.got() == "0"
    Machine(2)
    with gpu.lease("generate", {"backend": "vllm"}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    first.end()
    with gpu.lease("generate", {"backend": "vllm"}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    with gpu.lease("generate", {"backend": "transformers"}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("stage", "cfg"),
    [("claims", {}), ("dedup", {}), ("fetch", {}), ("embed", {"encoder": "hashed"})],
)
def test_what_computes_on_no_gpu_takes_none(here, stage, cfg):
    Machine(2)
    with gpu.lease(stage, cfg):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not here.exists()


@pytest.mark.parametrize("devices", [-1, 0])
def test_without_a_gpu_nothing_happens(here, devices):
    for present in (True, False):
        if present:
            Machine(devices)
        else:
            sys.modules["pynvml"] = None  # type: ignore[assignment]
        with gpu.lease("distill", {"processes": 8}), gpu.telemetry("distill") as drawn:
            assert "CUDA_VISIBLE_DEVICES" not in os.environ
        assert drawn == {} and not here.exists()


def test_stages_of_one_allotment_of_slurm_share_it_out(here, monkeypatch):
    """As where snakemake itself is a job: an allotment may be larger than what a stage needs."""
    Machine(4)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with gpu.lease("distill", {"processes": 2}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    with gpu.lease("distill", {"processes": 1}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_more_devices_than_there_are_is_an_error_not_a_wait(here):
    Machine(2)
    with (
        pytest.raises(UserError, match="4 GPUs are needed and 2 visible"),
        gpu.lease("distill", {"processes": 4}),
    ):
        pass


def test_a_lock_folder_of_somebody_else_is_refused(here):
    Machine(1)
    here.with_name("elsewhere").mkdir()
    here.symlink_to(here.with_name("elsewhere"))
    with pytest.raises(UserError, match="not this user's"), gpu.lease("distill", {}):
        pass
    assert not list(here.with_name("elsewhere").iterdir())


def test_lock_folder_is_for_one_user_alone(here):
    Machine(1)
    with gpu.lease("distill", {}):
        assert here.stat().st_mode & 0o777 == 0o700


def test_sums_of_telemetry(here):
    says = {
        "MemoryInfo": [[memory(10), memory(30), memory(20)], [memory(5), memory(5), memory(40)]],
        "UtilizationRates": [[busy(0), busy(100), busy(50)], [busy(100), busy(100), busy(100)]],
        "TotalEnergyConsumption": [[1000, 2000, 4000], [500, 500, 2500]],
        "PowerUsage": [[0, 0, 0], [0, 0, 0]],
    }
    machine = Machine(2, **says)
    samples = gpu.Samples(machine, [0, 1])
    for _ in range(3):
        samples.take()
    assert samples.summary() == {
        "devices": ["Fake 0", "Fake 1"],
        "peak_memory_bytes": 40,
        "utilisation": 0.75,  # (0 + 1 + 0.5 + 3) / 6
        "energy_joules": 5.0,  # 3 + 2
        "energy_from": "counter",
    }


def test_energy_is_integrated_where_no_device_counts_it(here):
    machine = Machine(1, PowerUsage=[[100_000, 300_000, 100_000]])
    samples = gpu.Samples(machine, [0])
    for _ in range(3):
        samples.take()
    samples.times = [0.0, 2.0, 3.0]
    # 200 W on average for 2 s, then 200 W for 1 s.
    assert samples.summary() == {
        "devices": ["Fake 0"],
        "energy_joules": 600.0,
        "energy_from": "power",
    }


@pytest.fixture
def computing(tmp_path, monkeypatch):
    """Runs a stage that takes a moment under the name ``pair``; returns its folder."""

    class Module:
        @staticmethod
        def run(cfg, inputs, out):
            time.sleep(0.1)
            (out / "visible.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
            return {}

    monkeypatch.setitem(sys.modules, "opd.fake_stage", Module)
    fake = registry.STAGES["pair"]._replace(run="opd.fake_stage:run")
    monkeypatch.setitem(registry.STAGES, "pair", fake)
    monkeypatch.setattr(gpu, "SAMPLE_SECONDS", 0.01)

    def run(name: str) -> Path:
        folder = tmp_path / name / "probe"
        cfg = {"value": 1, "inputs": []}
        runner.run_stage("pair", cfg, [], folder / "digest.json", {}, tmp_path / name / "store")
        return folder

    return run


def test_a_manifest_says_what_the_stage_drew_and_digests_do_not(here, computing):
    without = computing("without")
    assert "gpu" not in json.loads((without / "manifest.json").read_text())
    Machine(
        1,
        MemoryInfo=[memory(7 << 30)],
        UtilizationRates=[busy(50)],
        TotalEnergyConsumption=[[100_000, 130_000, 160_000]],
    )
    with_it = computing("with")
    assert json.loads((with_it / "manifest.json").read_text())["gpu"] == {
        "devices": ["Fake 0"],
        "peak_memory_bytes": 7 << 30,
        "utilisation": 0.5,
        "energy_joules": 60.0,
        "energy_from": "counter",
    }
    assert (with_it / "payload" / "visible.txt").read_text() == "0"
    assert "gpu" not in (with_it / "digest.json").read_text()
    identities = {
        json.loads((f / "digest.json").read_text())["identity"] for f in (without, with_it)
    }
    assert len(identities) == 1


def test_a_device_that_tells_nothing_fails_no_stage(here, computing):
    Machine(1)
    made = json.loads((computing("mute") / "manifest.json").read_text())
    assert made["gpu"] == {"devices": ["Fake 0"]}

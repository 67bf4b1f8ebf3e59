"""The GPUs of this machine: which of them a stage has for itself, and what it draws from them.

Snakemake itself assigns no GPUs to jobs. So a stage locks each device that it computes on and makes
only these visible, of those that were visible before, as Slurm allots them. All of it goes by NVML
(the package nvidia-ml-py): without it, or without a GPU, nothing happens.
"""

import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.stages.lock import repeated
from opd.stages.registry import STAGES

VISIBLE = "CUDA_VISIBLE_DEVICES"
SAMPLE_SECONDS, POLL_SECONDS = 1.0, 0.5
# Where locks lie: one folder for each user of a machine, whatever TMPDIR says in a job.
LOCKS = Path("/tmp", f"opd-gpus-{os.getuid()}")


def nvml() -> Any:
    """The module pynvml, ready to be asked; None where there is no GPU to ask about."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def wanted(stage: str, cfg: Mapping[str, Any]) -> tuple[int, bool]:
    """GPUs that a stage needs, and whether it uses more: vLLM has a worker on each visible one."""
    by_rule = (stage == "embed" and cfg.get("encoder") != "model") or cfg.get("judge") == "keywords"
    about = STAGES[stage]
    if not about.computes or by_rule:
        return 0, False
    vllm = about.samples and cfg.get("backend") == "vllm"
    return (int(cfg.get("processes", 1)) if about.trains else 1), vllm


def visible(library: Any) -> dict[str, Any]:
    """Devices that this process may use: name, as CUDA_VISIBLE_DEVICES has it -> NVML's handle."""
    every = ",".join(str(i) for i in range(library.nvmlDeviceGetCount()))
    devices = {}
    for name in map(str.strip, os.environ.get(VISIBLE, every).split(",")):
        try:
            if name.isdigit():
                devices[name] = library.nvmlDeviceGetHandleByIndex(int(name))
            else:
                devices[name] = library.nvmlDeviceGetHandleByUUID(name)
        except library.NVMLError:
            break  # as CUDA does: what follows a name of no device (as -1) is not visible
    return devices


@contextmanager
def lease(stage: str, cfg: Mapping[str, Any]) -> Iterator[None]:
    """Hold the GPUs that a stage computes on, and name them in CUDA_VISIBLE_DEVICES.

    To be entered before torch is used. Chooses among the devices that CUDA_VISIBLE_DEVICES names
    already, and waits for others, which is printed. Locks end with the stage's process and its
    children. Raises ``UserError`` where fewer devices are visible than the stage needs.
    """
    least, more = wanted(stage, cfg)
    library = nvml() if least else None
    devices = visible(library) if library else {}
    if not devices:
        yield
        return
    if least > len(devices):
        reason = f"{least} GPUs are needed and {len(devices)} visible"
        remedy = f"lower it, or make more visible ({VISIBLE})"
        raise UserError(reason, "training.processes", remedy)
    _make_private(LOCKS)
    paths = {name: LOCKS / _key(library, name, device) for name, device in devices.items()}
    before = {key: os.environ.get(key) for key in (VISIBLE, "CUDA_DEVICE_ORDER")}
    with ExitStack() as held:
        mine = _take(paths, least, more, f"opd stage {stage}, process {os.getpid()}", held)
        os.environ[VISIBLE] = ",".join(mine)
        # NVML's order, which is not CUDA's own where GPUs differ.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        try:
            yield
        finally:
            for key, value in before.items():
                os.environ.pop(key, None)
                if value is not None:
                    os.environ[key] = value


def _make_private(folder: Path) -> None:
    """Make the folder of locks, for this user alone."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UserError("the folder of GPU locks is not this user's", str(folder), "remove it")


def _key(library: Any, name: str, device: Any) -> str:
    """A device's name that does not depend on which others are visible."""
    with suppress(library.NVMLError):
        return str(library.nvmlDeviceGetUUID(device))
    return name


def _take(paths: Mapping[str, Path], least: int, more: bool, me: str, held: ExitStack) -> list[str]:
    """Lock ``least`` of the devices (with ``more`` all that are free) and return their names.
    Stages take in turn: none holds what another needs while it waits itself, and one that needs
    several is not overtaken for ever."""
    with (LOCKS / "turn").open("a") as turn:
        waited = False
        if not _lock(turn):
            print("waiting for a GPU: others wait before this", file=sys.stderr)
            waited = True
            fcntl.flock(turn, fcntl.LOCK_EX)
        mine: list[str] = []
        while True:
            for name, path in paths.items():
                if name in mine or (len(mine) >= least and not more):
                    continue
                file = path.open("a+")
                # What a stage starts keeps the device while it runs, should the stage be killed.
                os.set_inheritable(file.fileno(), True)
                if _lock(file):
                    held.enter_context(file)
                    file.truncate(0)
                    file.write(me)
                    file.flush()
                    mine.append(name)
                else:
                    file.close()
            if len(mine) >= least:
                break
            if not waited:
                taken = [f"{n} ({path.read_text()})" for n, path in paths.items() if n not in mine]
                needs = f"waiting for {least} of {len(paths)} GPUs"
                print(f"{needs}; taken are {', '.join(taken)}", file=sys.stderr, flush=True)
                waited = True
            time.sleep(POLL_SECONDS)
    if waited:
        print(f"computing on GPU {', '.join(mine)}", file=sys.stderr)
    return [name for name in paths if name in mine]


def _lock(file: Any) -> bool:
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextmanager
def telemetry(stage: str) -> Iterator[dict[str, Any]]:
    """A dictionary that holds, once the block has ended, what the visible GPUs did meanwhile.

    ``devices`` (their names), ``peak_memory_bytes`` (of the fullest), ``utilisation`` (share of
    time with work on it, mean of all), ``energy_joules`` (of all together) and ``energy_from``:
    ``counter`` of the device or, where it has none, ``power`` integrated over samples. All counts
    what else runs on them. Empty without a GPU; what a device does not tell is left out.
    """
    library = nvml() if STAGES[stage].computes else None
    drawn: dict[str, Any] = {}
    devices = list(visible(library).values()) if library else []
    if not devices:
        yield drawn
        return
    samples = Samples(library, devices)
    samples.take()
    try:
        with repeated(samples.take, SAMPLE_SECONDS):
            yield drawn
    finally:
        samples.take()
        drawn |= samples.summary()


class Samples:
    """What NVML said of some devices, time after time; nothing for what a device does not tell."""

    def __init__(self, library: Any, devices: list[Any]) -> None:
        self.library, self.devices = library, devices
        self.times: list[float] = []
        self.rows: list[list[list[float | None]]] = []

    def take(self) -> None:
        """Ask every device once."""
        self.times.append(time.monotonic())
        self.rows.append([self._state(device) for device in self.devices])

    def _state(self, device: Any) -> list[float | None]:
        """Bytes in use, percent of time at work, millijoules drawn so far, milliwatts."""
        memory, rates = self._ask("MemoryInfo", device), self._ask("UtilizationRates", device)
        energy, power = self._ask("TotalEnergyConsumption", device), self._ask("PowerUsage", device)
        return [getattr(memory, "used", None), getattr(rates, "gpu", None), energy, power]

    def _ask(self, question: str, device: Any) -> Any:
        with suppress(self.library.NVMLError):
            return getattr(self.library, f"nvmlDeviceGet{question}")(device)
        return None

    def summary(self) -> dict[str, Any]:
        """The keys that ``telemetry`` names."""
        import numpy as np

        # (times, devices) each; what was not told is NaN, and so is what is computed from it.
        memory, busy, counted, power = np.moveaxis(np.array(self.rows, float), 2, 0)
        energy = {
            "counter": (counted[-1] - counted[0]).sum() / 1000,
            "power": np.trapezoid(power, self.times, axis=0).sum() / 1000,
        }
        values: dict[str, Any] = {
            "devices": [self._ask("Name", device) or "GPU" for device in self.devices]
        }
        if not np.isnan(memory).any():
            values["peak_memory_bytes"] = int(memory.max())
        if not np.isnan(busy).any():
            values["utilisation"] = round(float(busy.mean()) / 100, 4)
        for source, joules in energy.items():
            if "energy_from" not in values and not np.isnan(joules):
                values |= {"energy_joules": round(float(joules), 1), "energy_from": source}
        return values

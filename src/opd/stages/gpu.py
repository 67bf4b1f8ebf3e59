"""The GPUs of this machine: which of them a stage has for itself, and what it draws from them.

Where Snakemake runs jobs itself it counts GPUs at most, and assigns none. So a stage takes a lock
for each device that it computes on and makes it the only one that is visible; what Slurm has
allotted is taken as it is. All of it goes by NVML (the package nvidia-ml-py): without it, or
without a GPU, nothing happens.
"""

import fcntl
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.stages.registry import STAGES

VISIBLE = "CUDA_VISIBLE_DEVICES"
SAMPLE_SECONDS, POLL_SECONDS = 1.0, 0.5


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
    """GPUs that a stage computes on, and whether it makes use of more: vLLM has a worker on each
    that is visible."""
    by_rule = (stage == "embed" and cfg.get("encoder") != "model") or cfg.get("judge") == "keywords"
    about = STAGES[stage]
    if not about.computes or by_rule:
        return 0, False
    vllm = about.samples and cfg.get("backend") == "vllm"
    return (int(cfg.get("processes", 1)) if about.trains else 1), vllm


def visible(library: Any) -> dict[str, Any]:
    """Devices that this process may use: name, as CUDA_VISIBLE_DEVICES has it -> NVML's handle."""
    given = os.environ.get(VISIBLE)
    if given is None:
        names = [str(i) for i in range(library.nvmlDeviceGetCount())]
    else:
        names = [name.strip() for name in given.split(",")]
    found = {}
    for name in names:
        try:
            if name.isdigit():
                found[name] = library.nvmlDeviceGetHandleByIndex(int(name))
            else:
                found[name] = library.nvmlDeviceGetHandleByUUID(name)
        except library.NVMLError:
            break  # as CUDA does: what follows a name of no device (as -1) is not visible
    return found


# Which devices a stage has


def lock_folder() -> Path:
    """Where locks lie: one folder for each user of a machine, whatever TMPDIR says in a job."""
    return Path("/tmp", f"opd-gpus-{os.getuid()}")


@contextmanager
def lease(stage: str, cfg: Mapping[str, Any]) -> Iterator[None]:
    """Have the GPUs that a stage computes on to itself, and name them in CUDA_VISIBLE_DEVICES.

    To be entered before torch is used. Waits where others hold them, and says so. Among the devices
    that CUDA_VISIBLE_DEVICES names already, where it is set. Locks end with the stage's process and
    its children, however these end. Raises ``UserError`` where fewer devices are visible than the
    stage needs.
    """
    least, more = wanted(stage, cfg)
    library = nvml() if least and "SLURM_JOB_ID" not in os.environ else None
    devices = visible(library) if library else {}
    if not devices:
        yield
        return
    if least > len(devices):
        raise UserError(
            f"{least} GPUs are needed and {len(devices)} visible",
            "training.processes",
            f"lower it, or make more visible ({VISIBLE})",
        )
    folder = lock_folder()
    _own(folder)
    paths = {name: folder / _key(library, name, device) for name, device in devices.items()}
    before = {key: os.environ.get(key) for key in (VISIBLE, "CUDA_DEVICE_ORDER")}
    with ExitStack() as held:
        mine = _take(paths, least, more, f"opd stage {stage}, process {os.getpid()}", folder, held)
        os.environ[VISIBLE] = ",".join(mine)
        # NVML's order, which is not CUDA's own where GPUs differ.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def _own(folder: Path) -> None:
    """Make the folder of locks, for this user alone. Raises ``UserError`` where another has made
    it."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError("the folder of GPU locks is not this user's", str(folder), "remove it")


def _key(library: Any, name: str, device: Any) -> str:
    """A device's name that does not depend on which others are visible."""
    try:
        found = library.nvmlDeviceGetUUID(device)
    except library.NVMLError:
        return name
    return found.decode() if isinstance(found, bytes) else str(found)


def _take(
    paths: Mapping[str, Path], least: int, more: bool, me: str, folder: Path, held: ExitStack
) -> list[str]:
    """Lock ``least`` of the devices (with ``more`` all that are free) and return their names.

    Stages take in turn, and who takes is waited for: none can hold what another needs while it
    waits itself, and one that needs several is not overtaken for ever.
    """
    with (folder / "turn").open("a") as turn:
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
                print(_waiting(paths, mine, least), file=sys.stderr, flush=True)
                waited = True
            time.sleep(POLL_SECONDS)
    if waited:
        print(f"computing on GPU {', '.join(mine)}", file=sys.stderr)
    return [name for name in paths if name in mine]


def _lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _waiting(paths: Mapping[str, Path], mine: list[str], least: int) -> str:
    held = [f"{name} ({paths[name].read_text()})" for name in paths if name not in mine]
    return f"waiting for {least} of {len(paths)} GPUs; taken are {', '.join(held)}"


# What a stage draws


@contextmanager
def telemetry(stage: str) -> Iterator[dict[str, Any]]:
    """A dictionary that holds, once the block has ended, what the visible GPUs did meanwhile.

    ``devices`` (their names), ``peak_memory_bytes`` (of the fullest), ``utilisation`` (share of
    time with work on it, mean of all), ``energy_joules`` (of all together) and ``energy_from``:
    ``counter`` of the device or, where it has none, ``power`` integrated over samples. All counts
    what else runs on them. Empty without a GPU; what a device does not tell is left out.
    """
    library = nvml() if STAGES[stage].computes else None
    found: dict[str, Any] = {}
    devices = list(visible(library).values()) if library else []
    if not devices:
        yield found
        return
    samples = Samples(library, devices)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            samples.take()

    samples.take()
    thread = threading.Thread(target=watch, name="gpu-telemetry", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        samples.take()
        found |= samples.summary()


class Samples:
    """What NVML said of some devices, time after time."""

    def __init__(self, library: Any, devices: list[Any]) -> None:
        self.library, self.devices = library, devices
        self.names = [self._ask("nvmlDeviceGetName", device) for device in devices]
        self.times: list[float] = []
        self.rows: list[list[dict[str, Any]]] = []

    def take(self) -> None:
        """Ask every device once."""
        self.times.append(time.monotonic())
        self.rows.append([self._state(device) for device in self.devices])

    def _state(self, device: Any) -> dict[str, Any]:
        memory = self._ask("nvmlDeviceGetMemoryInfo", device)
        rates = self._ask("nvmlDeviceGetUtilizationRates", device)
        return {
            "memory": None if memory is None else memory.used,
            "busy": None if rates is None else rates.gpu,
            "millijoules": self._ask("nvmlDeviceGetTotalEnergyConsumption", device),
            "milliwatts": self._ask("nvmlDeviceGetPowerUsage", device),
        }

    def _ask(self, function: str, device: Any) -> Any:
        """None for what a device does not tell: no stage fails of it."""
        with suppress(self.library.NVMLError):
            said = getattr(self.library, function)(device)
            return said.decode() if isinstance(said, bytes) else said
        return None

    def summary(self) -> dict[str, Any]:
        """The keys that ``telemetry`` names."""
        found: dict[str, Any] = {"devices": [name or "GPU" for name in self.names]}
        columns = list(zip(*self.rows, strict=True))
        memory = [state["memory"] for row in self.rows for state in row]
        busy = [state["busy"] for row in self.rows for state in row]
        if None not in memory:
            found["peak_memory_bytes"] = max(memory)
        if None not in busy:
            found["utilisation"] = round(sum(busy) / len(busy) / 100, 4)
        counted = [[state["millijoules"] for state in column] for column in columns]
        drawn = [[state["milliwatts"] for state in column] for column in columns]
        if not any(None in column for column in counted):
            found["energy_joules"] = sum(column[-1] - column[0] for column in counted) / 1000
            found["energy_from"] = "counter"
        elif not any(None in column for column in drawn):
            found["energy_joules"] = sum(map(self._integral, drawn)) / 1000
            found["energy_from"] = "power"
        if "energy_joules" in found:
            found["energy_joules"] = round(found["energy_joules"], 1)
        return found

    def _integral(self, values: list[float]) -> float:
        """Of samples over time, by the trapezoidal rule."""
        steps = zip(self.times, self.times[1:], values, values[1:], strict=False)
        return sum((end - start) * (a + b) / 2 for start, end, a, b in steps)

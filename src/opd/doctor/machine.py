"""This machine: the file system of the results, room on it, processors and GPUs."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from opd.core.errors import UserError
from opd.doctor.base import Finding, State, output, some
from opd.plan.show import GIB, digits
from opd.stages import lock

SKEW_SECONDS = 2
# The oldest branch of drivers that runs any minor version of a CUDA (NVIDIA, "CUDA Compatibility").
DRIVERS = {"11": 450, "12": 525, "13": 580}


def above(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def file_system(results: Path) -> Iterator[Finding]:
    """Whether files can be written, linked and locked where results go, and the clock there."""
    folder = above(results)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
            file = Path(name) / "file"
            before = time.time()
            file.write_text("x")
            skew = file.stat().st_mtime - before
            file.with_name("link").symlink_to("file")
            file.replace(file.with_name("moved"))
            scratch, locks = file.with_name("scratch"), False
            with suppress(UserError), lock.alone(scratch):
                locks = lock.held(scratch)
    except OSError as error:
        remedy = "let the workflow run where you may write, or mend the folder's owner and mode"
        what = f"{folder}: {error.strerror or error}"
        yield Finding("results folder", "missing", what, remedy)
        return
    yield Finding("results folder", "ok", f"{folder} can be written to")
    kind, options = mount(folder)
    remedy = "mount it with locks for the cluster (Lustre: -o flock), or put results elsewhere"
    if not locks:
        what = f"{kind} does not lock files: two jobs could write the same artifact"
        yield Finding("file locks", "missing", what, remedy)
    elif {"localflock", "local_lock=flock", "local_lock=all"} & set(options):
        what = f"{kind} locks within one machine alone: no two machines may work on one folder"
        yield Finding("file locks", "warning", what, remedy)
    else:
        yield Finding("file locks", "ok", f"{kind} locks files")
    # A file is not older than the call that made it, but for how coarsely times are kept.
    if abs(skew) > SKEW_SECONDS:
        what = f"files there are dated {skew:+.0f} s from this machine's clock"
        remedy = "set both clocks (NTP): what runs again goes by times of files"
        yield Finding("clock", "warning", what, remedy)
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M %Z, as the files'"))


def mount(folder: Path) -> tuple[str, list[str]]:
    """Type and options of the file system that a folder lies on."""
    lines = output("findmnt", "--noheadings", "--output=FSTYPE,OPTIONS", "--target", str(folder))
    # Of several that are mounted on one another the last is on top.
    kind, options = lines.splitlines()[-1].split() if lines else ("this file system", "")
    return kind, options.split(",")


def disk(results: Path, stays: float, running: float, unknown: int) -> Finding:
    """Free bytes against what a plan leaves, and takes besides while models train."""
    free, needed = shutil.disk_usage(above(results)).free, stays + running
    what = (
        f"{digits(free / GIB)} GiB free, the plan needs {digits(stays / GIB)} GiB to stay and "
        f"{digits(running / GIB)} besides"
    )
    if unknown:
        what += f" ({unknown} artifacts are not counted)"
    if free < needed:
        return Finding("disk", "missing", what, "free space, or make results a link to where it is")
    if free < 1.2 * needed:
        return Finding("disk", "warning", what, "free space: the estimate is a rough one")
    return Finding("disk", "ok", what)


def processors(threads: int) -> Finding:
    """Processors that this process may use, against what one job wants."""
    usable = len(os.sched_getaffinity(0))
    if threads > usable:
        what = f"{usable} here, a job computes with {threads} threads"
        return Finding("processors", "warning", what, "set threads to what the machines have")
    return Finding("processors", "ok", f"{usable} here, {threads} a job")


def devices() -> list[str]:
    """Names of the GPUs that the driver sees."""
    names = output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return (names or "").strip().splitlines()


def driver() -> str | None:
    """The version of the GPUs' driver; None without one."""
    versions = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.split()[0] if versions and versions.strip() else None


def cuda(driver: str | None, built_for: Iterable[str]) -> Iterator[Finding]:
    """The driver here against the versions of CUDA that the interpreters' builds of torch need."""
    for version in sorted({*built_for}):
        least = DRIVERS.get(version.partition(".")[0])
        needs = f"torch for CUDA {version} needs {least or 'an unknown version'} or newer"
        if driver is None:
            yield Finding("CUDA driver", "ok", f"none here; where GPUs are, {needs}")
        elif least and int(driver.partition(".")[0]) < least:
            remedy = "have the driver updated, or install torch for an older CUDA"
            yield Finding("CUDA driver", "missing", f"{driver}, but {needs}", remedy)
        else:
            yield Finding("CUDA driver", "ok", f"{driver}; {needs}")


def gpus(seen: list[str], torch: int | None, needed: int, elsewhere: bool) -> Finding:
    """GPUs of this machine (by the driver, and by torch of the config's interpreter, None where it
    did not say), against how many a job needs; ``elsewhere``: jobs run on other machines."""
    counts = f"{len(seen)} here ({some(seen, 2)})" if seen else "none here"
    if seen and torch == 0:
        state: State = "warning" if elsewhere or not needed else "missing"
        remedy = "install a build of torch for this driver"
        return Finding("GPUs", state, f"{counts}, torch sees none", remedy)
    if needed > len(seen) and not elsewhere:
        remedy = "add --profile slurm where a cluster has them, or plan less (training.processes)"
        return Finding("GPUs", "missing", f"{counts}, a job needs {needed}", remedy)
    at = ", jobs get theirs from the cluster" if elsewhere and needed else ""
    return Finding("GPUs", "ok", f"{counts}, a job needs {needed or 'none'}{at}")

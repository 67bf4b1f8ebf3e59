"""Checksums of what a run goes on from: checkpoints, and the weights of steps that it has kept.

Beside a folder lie lists NAME.RANK.json of the digests of its files. Each process hashes what it
has written itself, in a thread beside training, so a list comes some time after its files.
"""

import json
import re
import stat
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from opd.core.files import file_digest, files_below, remove, replacing
from opd.core.hashing import hashed

# The process that wrote a file, as torch, accelerate, DeepSpeed and ``grpo`` put it into the name;
# all other files are the first one's.
_RANK = re.compile(r"(?:__|rank_|rng_state_|rollouts-)(\d+)")


def lists(folder: Path) -> list[Path]:
    """The lists of a folder, one by each process that has written to it and hashed that."""
    return sorted(folder.parent.glob(f"{folder.name}.*.json"))


def write(folder: Path, rank: int = 0, processes: int = 1) -> None:
    """Write the list of what the process ``rank`` has written to a folder."""
    own = {}
    for name, path in files_below(folder).items():
        writer = _RANK.search(path.name)
        if rank == (int(writer[1]) % processes if writer else 0):
            own[name] = file_digest(path)
    with replacing(folder.with_name(f"{folder.name}.{rank}.json")) as partial:
        partial.write_text(json.dumps(own))
        for name in own:  # safetensors leaves weights to their owner alone, whatever umask says
            (folder / name).chmod(stat.S_IMODE(partial.stat().st_mode))


def damaged(folder: Path) -> str | None:
    """The first file of a folder that is not as it was written, was added, or is in no list; empty
    where there is no list at all, as of a folder that was not finished. None: all is well."""
    written: dict[str, str] = {}
    for path in lists(folder):
        with suppress(OSError, ValueError, TypeError):
            written |= json.loads(path.read_bytes())
    if not lists(folder):
        return ""
    files = files_below(folder)
    sha256 = hashed(files.values()).of
    now = {name: sha256.get(path, "") for name, path in files.items()}
    return min((n for n in {*written, *now} if written.get(n) != now.get(n)), default=None)


def drop(folder: Path) -> None:
    """Remove a folder and its lists."""
    for path in (*lists(folder), folder):
        remove(path)


class Sealing(TrainerCallback):
    """Has each process write its lists: of every checkpoint, and of the folders of kept steps."""

    def __init__(self, kept: Mapping[int, Path], rank: int, processes: int) -> None:
        self.kept, self.rank, self.processes = kept, rank, processes
        self.thread = ThreadPoolExecutor(1)
        self.pending: list[Future[None]] = []
        self.saved = 0  # the step of the last checkpoint

    def wait(self) -> None:
        """Until all lists are written. Raises what their writing has raised."""
        while self.pending:
            self.pending.pop(0).result()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = self.kept.get(int(state.global_step))
        if folder is not None and state.is_world_process_zero:
            self.pending.append(self.thread.submit(write, folder))
        # The next checkpoint removes the one before the last, so the last has to be good by then.
        if control.should_save:
            self.wait()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = int(state.global_step)
        checkpoint = Path(args.output_dir, f"checkpoint-{self.saved}")
        self.pending.append(self.thread.submit(write, checkpoint, self.rank, self.processes))

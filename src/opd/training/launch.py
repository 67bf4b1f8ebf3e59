"""One training stage on several processes.

The stage's own process starts ``accelerate launch`` with the config file that execution.accelerate
names (see config/accelerate), or without one torchrun, on this module, and waits. Every process
runs the stage's ``run``, the first one writes what it makes.
"""

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from opd.core.errors import UserError

LAUNCHED = "OPD_LAUNCHED"
WORKER = __name__  # the module that each of the processes runs


def needed(cfg: Mapping[str, Any]) -> bool:
    """Whether a stage wants several processes and this is not yet one of them."""
    several = cfg.get("processes", 1) > 1 or "accelerate" in cfg.get("execution", {})
    return several and LAUNCHED not in os.environ


def launch(
    module: str, cfg: dict[str, Any], inputs: Mapping[str, Path], out: Path, scratch: Path
) -> dict[str, Any]:
    """Run ``module.run`` in cfg.processes processes and return its numbers.

    SIGTERM is passed on, once; then, when all processes have left, this one exits with 143.
    """
    task, answer = scratch / "task.json", scratch / "answer.json"
    answer.unlink(missing_ok=True)
    paths = {name: str(path) for name, path in inputs.items()}
    task.write_text(json.dumps([module, cfg, paths, str(out), str(scratch)]))
    config, n = cfg.get("execution", {}).get("accelerate"), str(cfg.get("processes", 1))
    if config:
        launcher = ["accelerate.commands.launch", "--config_file", config, "--num_processes", n]
        launcher += ["--main_process_port", "0"]  # any that is free
    else:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", n]
    command = [sys.executable, "-m", *launcher, "-m", WORKER, str(task)]
    # Processes end at a step's beginning, and a step may take long: torchrun has to wait.
    environment = {**os.environ, LAUNCHED: "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "86400"}
    signals: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: Any) -> None:
        if not signals and child is not None:
            child.send_signal(number)
        signals.append(number)
        # A handler may run in the middle of a print.
        os.write(2, b"told to stop: as soon as the step under way has ended\n")

    handler = signal.signal(signal.SIGTERM, forward)
    try:
        # With this process's open files: they hold the lock on the scratch folder if it is killed.
        child = subprocess.Popen(command, env=environment, close_fds=False)
        if signals:  # one that came before there was a child
            child.send_signal(signals[0])
        code = child.wait()
        if signals:
            # Slurm signals torchrun, too, which does not wait for its processes the third time.
            with task.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        signal.signal(signal.SIGTERM, handler)
        if child is not None and child.poll() is None:
            child.terminate()
    if signals:
        raise SystemExit(143)
    answered = json.loads(answer.read_text()) if answer.is_file() else {}
    if "error" in answered:
        raise UserError(*answered["error"])
    if code or "numbers" not in answered:
        raise UserError(
            f"a training process ended with exit status {code}",
            "processes",
            "its own message stands above in this log",
        )
    return dict(answered["numbers"])


def main(task: Path) -> None:
    """What each of the processes does: run the stage, and write its numbers or its error. Until it
    has left it holds a lock on its task."""
    file = task.open()
    fcntl.flock(file, fcntl.LOCK_SH)
    module, cfg, inputs, out, scratch = json.load(file)
    answer = Path(scratch, "answer.json")
    run = importlib.import_module(module).run
    # Trainer asks for an optimiser's state on "cpu:0", which torch.load does not know.
    torch.serialization.register_package(
        15, lambda _: None, lambda storage, place: storage if place == "cpu:0" else None
    )
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world != cfg.get("processes", 1):
            raise UserError(
                f"there are {world} processes instead of {cfg.get('processes', 1)}",
                "training.accelerate",
                "use a config file that starts several, as config/accelerate/ddp.yaml",
            )
        numbers = run(cfg, {k: Path(v) for k, v in inputs.items()}, Path(out), Path(scratch))
    except UserError as bad:
        answer.write_text(json.dumps({"error": [bad.what, bad.where, bad.remedy]}))
        print(f"error: {bad}", file=sys.stderr)
        sys.exit(2)
    if os.environ.get("RANK", "0") == "0":
        answer.write_text(json.dumps({"numbers": numbers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

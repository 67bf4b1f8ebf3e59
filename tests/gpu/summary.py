"""Put what the parts of run.sh have printed into OUT/gpu.json and OUT/gpu.md; end with 1 if one of
them failed.

    python tests/gpu/summary.py OUT
"""

import importlib.metadata
import json
import platform
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets")
TIMED_OUT = 124  # what timeout(1) ends with


def machine() -> dict[str, Any]:
    """The device, and the versions of what computed on it."""
    on_gpu = torch.cuda.is_available()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = torch.cuda.get_device_name() if on_gpu else "no GPU: tried on a CPU at small shapes"
    return {"device": device, "date": date.today().isoformat(), "versions": versions}


def state(status: int) -> str:
    """How a part ended."""
    return {0: "passed", TIMED_OUT: "out of time"}.get(status, f"failed ({status})")


def main() -> int:
    out = Path(sys.argv[1])
    lines = [line.split("\t") for line in (out / "parts.tsv").read_text().splitlines()]
    parts = [
        {
            "name": name,
            "state": state(int(status)),
            "seconds": int(seconds),
            "command": command,
            "output": (out / f"{name}.txt").read_text(),
        }
        for name, status, seconds, command in lines
    ]
    report = {**machine(), "parts": parts}
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    page = [f"{report['device']}, {report['date']}; {versions}.", ""]
    page += ["| part | | seconds |", "| --- | --- | ---: |"]
    page += [f"| {part['name']} | {part['state']} | {part['seconds']} |" for part in parts]
    for part in parts:
        page += ["", f"## {part['name']}", "", f"`{part['command']}`", "", part["output"].strip()]
    (out / "gpu.md").write_text("\n".join(page) + "\n")
    return int(any(part["state"] != "passed" for part in parts))


if __name__ == "__main__":
    sys.exit(main())

"""The locks in ``envs/``: what they pin, and whether they are those of ``pyproject.toml``.

``python -m opd.doctor.envs`` prints what ``make lock`` writes on top of each.
"""

import tomllib
from pathlib import Path

from opd.core.files import digest

FILES = ("constraints.txt", "vllm.txt", "gpu.yaml", "workflow.yaml")


def pins(lock: Path, python: str) -> dict[str, str]:
    """Distribution -> version that a lock (.txt) names for a version of Python on Linux."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    major_minor = ".".join(python.split(".")[:2])
    environment = {"python_full_version": python, "python_version": major_minor}
    lines = [line.partition("#")[0].strip() for line in lock.read_text().splitlines()]
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in map(Requirement, filter(None, lines))
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def header(pyproject: Path) -> str:
    """A text that changes with whatever locks are resolved from."""
    whole = tomllib.loads(pyproject.read_text())
    project = whole["project"]
    asked = [project[key] for key in ("requires-python", "dependencies", "optional-dependencies")]
    return f"Of what pyproject.toml asks for: {digest([*asked, whole['tool']['uv']])[:16]}"


def old(pyproject: Path, envs: Path) -> list[str]:
    """The locks that were resolved from something else than pyproject.toml asks for now."""
    line = f"# {header(pyproject)}"
    return [file for file in FILES if line not in (envs / file).read_text().splitlines()]


if __name__ == "__main__":
    print(header(Path("pyproject.toml")))

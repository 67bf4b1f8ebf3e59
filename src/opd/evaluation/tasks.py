"""The project's own task files of lm-eval: ``opd_NAME`` is ``NAME.yaml`` in the folder
benchmarks."""

from pathlib import Path

from opd.core.errors import UserError

OURS = "opd_"
FOLDER = Path(__file__).parent / "benchmarks"


def find(task: str, where: str) -> Path:
    """The file of one of our tasks. Raises ``UserError`` where there is none."""
    path = FOLDER / f"{task.removeprefix(OURS)}.yaml"
    if not path.is_file():
        known = ", ".join(OURS + p.stem for p in sorted(FOLDER.glob("[!_]*.yaml")))
        raise UserError(f"unknown task '{task}'", where, f"there are {known}")
    return path

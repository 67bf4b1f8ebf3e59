"""The project's own task files of lm-eval: ``opd_NAME`` is ``NAME.yaml`` in the folder
benchmarks."""

from pathlib import Path

from opd.core.code import package_file
from opd.core.errors import UserError

OURS = "opd_"
# The texts of the tasks are settings of an evaluation; what they call is code.
FUNCTIONS = package_file(__file__, "benchmarks/functions.py")
FOLDER = FUNCTIONS.parent


def find(task: str, where: str) -> Path:
    """The file of one of our tasks. Raises ``UserError`` where there is none."""
    path = FOLDER / f"{task.removeprefix(OURS)}.yaml"
    if not path.is_file():
        known = ", ".join(OURS + p.stem for p in sorted(FOLDER.glob("[!_]*.yaml")))
        raise UserError(f"unknown task '{task}'", where, f"there are {known}")
    return path

"""Which losses the scores of a teacher (``opd.losses.scores``) suffice for. Without torch, so that
a config can be checked where there is none.
"""

from opd.core.errors import UserError
from opd.losses.spec import LossSpec

# The supports whose every candidate that a teacher's log-probability counts of is sampled, or among
# the teacher's own top k.
SUPPORTS = ("sampled", "teacher", "intersection", "student_filled")


def objection(spec: LossSpec, held: int, student: bool = False) -> UserError | None:
    """Why a loss needs more of its teacher than scores of ``held`` tokens a position, taken at
    temperature 1; None where they suffice. With those of as many tokens of a named ``student`` its
    top k can be the support."""
    if spec.support not in SUPPORTS and not (student and spec.support == "student"):
        return UserError(
            f"the support '{spec.support}' asks the teacher about tokens beyond its own top k, "
            "which scores do not hold",
            "loss.support",
            f"use {', '.join(SUPPORTS[:-1])} or {SUPPORTS[-1]}, name a student in the scores for "
            "its top k, or let the teacher be read in training",
        )
    if spec.k is not None and spec.k > held:
        return UserError(
            f"k is {spec.k}, and the scores hold {held} tokens a position",
            "loss.k",
            f"use at most {held}, or make scores with a larger k",
        )
    if spec.teacher_temperature != 1:
        return UserError(
            f"the teacher is read at temperature {spec.teacher_temperature:g}, and scores are of "
            "temperature 1",
            "loss.teacher_temperature",
            "say teacher_temperature: 1, or let the teacher be read in training",
        )
    return None

"""What the task files in this folder call, under a name that stays when modules move: the texts of
the files are settings of an evaluation."""

from functools import partial

from opd.evaluation.harness import graded, problems

__all__ = ["graded_boxed", "graded_choice", "graded_rule", "graded_world", "problems"]

graded_boxed = partial(graded, graders=("rule", "math_verify", "relaxed"))
graded_choice = partial(graded, graders=("choice",))
graded_rule = partial(graded, graders=("rule",))
graded_world = partial(graded, graders=("world",))

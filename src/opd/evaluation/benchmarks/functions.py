"""What the task files in this folder call, under a name that stays when modules move: the texts of
the files are settings of an evaluation."""

from opd.evaluation.harness import graded_boxed, graded_choice, graded_world, problems

__all__ = ["graded_boxed", "graded_choice", "graded_world", "problems"]

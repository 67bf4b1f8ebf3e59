from types import SimpleNamespace

import pytest

from opd.plan.cluster import remember_min_job_age


def test_a_controller_that_does_not_answer_is_taken_by_its_last_answer():
    answers = iter([300, None, None, 900, None])
    plugin = SimpleNamespace(get_min_job_age=lambda: next(answers))
    remember_min_job_age(plugin)
    assert [plugin.get_min_job_age() for _ in range(4)] == [300, 300, 900, 900]


def test_what_is_remembered_is_what_the_plugin_asks():
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    looks = plugin.Executor.check_active_jobs.__code__
    assert "get_min_job_age" in looks.co_names and hasattr(plugin, "get_min_job_age")

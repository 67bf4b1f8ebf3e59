"""What Snakemake's Slurm plugin is helped with."""

from typing import Any


def remember_min_job_age(plugin: Any) -> None:
    """Let the plugin go on with the last known ``MinJobAge`` while the controller does not answer.

    It asks for it before every look at its jobs. Without an answer it turns from ``squeue`` to
    ``sacct``, for all attempts of that look: where there is no accounting database all of them
    fail, after which it has forgotten the jobs that it asked for, and Snakemake waits for ever.
    """
    ask = plugin.get_min_job_age
    seconds: int | None = ask()

    def last_known() -> int | None:
        nonlocal seconds
        answer: int | None = ask()
        seconds = seconds if answer is None else answer
        return seconds

    plugin.get_min_job_age = last_known

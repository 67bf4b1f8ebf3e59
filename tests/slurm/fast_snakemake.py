"""Snakemake whose Slurm plugin asks for the state of its jobs every second: for tests alone.

The plugin waits 40 seconds, and ten more each time that no job has ended.
"""

import sys

import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main

plugin.Executor.next_seconds_between_status_checks = property(lambda _: 1.0, lambda *_: None)
sys.exit(main())

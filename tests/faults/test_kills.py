"""SIGKILL at points of a stage's progress: what is left, and what the next run makes of it."""

import random
from pathlib import Path

import pytest
from stages import Ended, Run

from opd.models import journal
from opd.stages.registry import STAGES
from opd.training import checksums
from opd.training.resume import step_of

pytestmark = pytest.mark.faults

# Kills of one artifact of each stage; those that import torch take longest.
TORCH = (
    *("init", "sft", "grpo", "distill", "generate", "score", "evaluate"),
    *("pair", "continuation", "prefix", "signal", "judge", "indicators"),
    *("demonstrate", "summarise", "screening", "tree", "alignment"),
)
KILLS = {stage: 2 if stage in TORCH else 3 for stage in STAGES}
SEED = 20


def stage_of(run: Run, stage: str) -> str:
    """The artifact of a stage that is killed: of training one with a step to keep, of prompts one
    that has inputs."""
    names = [name for name, one in run.artifacts.items() if one.stage == stage]
    chosen = {"distill": "models/forward/s0", "prompts": "prompts/other", "sft": "models/cold/s0"}
    return chosen.get(stage, names[0])


def points(stage: str, events: int) -> list[tuple[int, bool]]:
    """Events to be killed before, one in each part of the stage; every second one within a write,
    if it is one."""
    found, rng = [], random.Random(f"{SEED}/{stage}")
    for i in range(KILLS[stage]):
        edges = (events * i // KILLS[stage], events * (i + 1) // KILLS[stage])
        found.append((rng.randrange(*edges), rng.random() < 0.5))
    return found


def sampled(run: Run) -> dict[Path, journal.Finished]:
    paths = run.store.glob(".cache/responses/*/*.jsonl")
    return {path: journal.read(path)[0] for path in paths}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_is_made_again_to_the_same_digests(run: Run, stage: str, tried) -> None:
    name = stage_of(run, stage)
    # What an undisturbed run of it makes, and in how many events.
    run.check_inputs(name)
    run.forget(name)
    undisturbed = run.make(name)
    assert undisturbed.status == 0, undisturbed.log
    digests, files = run.digests(), run.files()
    for event, half in points(stage, undisturbed.events):
        run.forget(name)
        killed = run.make(name, kill=event, half=half)
        assert killed.status == -9, (event, killed.log)
        # Nothing that is there is other than it should be.
        assert {f: data for f, data in run.digests().items() if digests.get(f) != data} == {}
        kept, trained = sampled(run), resumable(run, name)
        again = run.make(name)
        assert again.status == 0, (event, again.log)
        assert run.digests() == digests, event
        assert run.files() == files, event
        went_on(run, again, kept, trained)
        tried("SIGKILL", stage)


def resumable(run: Run, name: str) -> bool:
    """Whether there is a whole checkpoint, of a step after which nothing that is to be kept is
    missing."""
    asked = run.artifacts[name].cfg.get("execution", {}).get("keep_steps", [])
    kept = {int(path.name) for path in sound(run, "kept/[0-9]*")}
    first = min({*asked} - kept, default=10**9)
    return any(step_of(path) < first for path in sound(run, "checkpoint-*"))


def sound(run: Run, pattern: str) -> list[Path]:
    """The folders below the scratch folders that have their checksums."""
    folders = [path for path in run.store.glob(f".scratch/*/{pattern}") if path.is_dir()]
    return [path for path in folders if checksums.damaged(path) is None]


def went_on(run: Run, again: Ended, kept: dict[Path, journal.Finished], trained: bool) -> None:
    """What was finished when it was killed was not made again."""
    assert ("going on from step" in again.log) == (trained and "made: " in again.log)
    after = sampled(run)
    for path, finished in kept.items():
        assert after[path].items() >= finished.items()

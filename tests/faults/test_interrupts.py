"""Ctrl-C and SIGTERM at points of a stage's progress."""

import random

import pytest
from stages import Run, mended

pytestmark = pytest.mark.faults

STAGES = ("prompts/other", "claims", "models/forward/s0", "generations/rollouts/s0")
STATUS = {"SIGINT": 130, "SIGTERM": 143}
SAID = {"SIGINT": "interrupted: ", "SIGTERM": "told to stop: "}


@pytest.mark.parametrize("name", STAGES)
def test_an_interrupted_stage(run: Run, name: str, tried) -> None:
    digests, files = run.digests(), run.files()
    run.check_inputs(name)
    run.forget(name)
    events = run.make(name).events
    for signal, status in STATUS.items():
        run.forget(name)
        # Before it is published: what comes after that is done.
        event = random.Random(f"{name}/{signal}").randrange(events // 8, events // 2)
        ended = run.make(name, kill=event, signal=signal)
        assert ended.status == status, (event, ended.log)
        assert SAID[signal] in ended.log and "Traceback" not in ended.log, ended.log
        if run.artifacts[name].stage != "distill":  # which keeps its checkpoints
            assert {p.name for p in run.store.glob(".scratch/*/*")} <= {"owner"}
        assert {f: data for f, data in run.digests().items() if digests.get(f) != data} == {}
        mended(run, name, digests, files)
        tried("Ctrl-C" if signal == "SIGINT" else signal, run.artifacts[name].stage)

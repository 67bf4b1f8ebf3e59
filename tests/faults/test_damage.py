"""Files damaged between two stages: the second takes nothing of them, and says what mends it."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from stages import Run, mended, only_error

from opd.training import checksums
from opd.training.resume import step_of

pytestmark = pytest.mark.faults


def flip(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_unseen(path: Path) -> None:
    """One bit, at the same size and time of change."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def add(path: Path) -> None:
    path.with_name("added").write_bytes(b"")


DAMAGE: list[Callable[[Path], None]] = [flip, flip_unseen, truncate, empty, Path.unlink, add]


def consumer(run: Run, name: str) -> str | None:
    """An artifact made from this one; one that shows things reads no more than it needs."""
    made = [n for n, one in run.artifacts.items() if name in one.inputs and one.stage != "report"]
    return made[0] if made else None


def test_no_stage_takes_a_damaged_input(run: Run, tried) -> None:
    """Of each kind of artifact that another is made from, one, in every file."""
    pairs: dict[str, tuple[str, str]] = {}
    for name, one in run.artifacts.items():
        if (second := consumer(run, name)) is not None:
            pairs.setdefault(one.stage, (name, second))
    assert len(pairs) >= 25
    for number, (stage, (name, second)) in enumerate(pairs.items()):
        payload = run.results / name / "payload"
        for i, path in enumerate(sorted(p for p in payload.rglob("*") if p.is_file())):
            damage = DAMAGE[(number + i) % len(DAMAGE)]
            before, times = path.read_bytes(), path.stat()
            damage(path)
            ended = run.make(second)
            assert ended.status == 2, (stage, path.name, damage, ended.log)
            said = only_error(ended)
            assert "modified after it was made" in said, said
            assert f"remove results/tiny/{name}/digest.json and run snakemake again" in said
            assert (path.name if damage is not add else "added") in said
            path.write_bytes(before)
            path.with_name("added").unlink(missing_ok=True)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            tried("an input with a damaged file (one bit, cut off, empty, gone, added)", stage)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("prompts/rl", truncate), ("embeddings/hashed/rl", flip), ("generations/rollouts/s0", flip)],
)
def test_what_is_advised_mends_it(run: Run, name: str, damage: Callable[[Path], None]) -> None:
    digests, files = run.digests(), run.files()
    second = consumer(run, name)
    assert second
    path = max((run.results / name / "payload").iterdir(), key=lambda p: p.stat().st_size)
    damage(path)
    said = only_error(run.make(second))
    (advised,) = re.findall(r"remove (\S+) and run snakemake again", said)
    (run.folder / advised).unlink()
    again = run.make(name)
    assert again.status == 0 and "made: " in again.log
    mended(run, second, digests, files)


@pytest.mark.parametrize("damage", [truncate, empty, flip])
@pytest.mark.parametrize("file", ["digest.json", "record", "manifest.json"])
def test_damaged_records(run: Run, file: str, damage: Callable[[Path], None], tried) -> None:
    """A damaged digest.json is refused; a damaged record in the store, or manifest, is written anew
    where it is needed."""
    digests, files = run.digests(), run.files()
    name, second = "prompts/rl", "embeddings/hashed/rl"
    path = run.results / name / file
    if file == "record":
        path = run.store / f"{run.identity(name)}.json"
    damage(path)
    ended = run.make(second)
    if file == "digest.json":
        assert ended.status == 2
        assert f"remove results/tiny/{name}/digest.json" in only_error(ended)
    else:
        assert ended.status == 0, ended.log
    (run.results / name / "digest.json").unlink()
    mended(run, name, digests, files)
    mended(run, second, digests, files)
    tried("a damaged record or manifest", file)


def test_what_a_killed_run_goes_on_from(run: Run, tried) -> None:
    """One bit in a checkpoint is found and the run starts before it; one in a journal costs what
    follows it."""
    name, words = "models/forward/s0", "does not have the checksum that was written"
    digests, files = run.digests(), run.files()
    run.forget(name)
    events = run.make(name).events
    record = run.store / f"{run.identity(name)}.json"
    checkpoints: list[Path] = []
    for event in range(events * 3 // 4, events // 4, -max(1, events // 40)):
        run.forget(name)
        run.make(name, kill=event)
        folders = (path for path in run.store.glob(".scratch/*/checkpoint-*") if path.is_dir())
        checkpoints = [path for path in folders if checksums.damaged(path) is None]
        if checkpoints and not record.exists():
            break
        run.make(name)
    last = max(checkpoints, key=step_of)
    flip(last / "model.safetensors")
    again = mended(run, name, digests, files)
    assert again.log.count(words) == 1 and f"{last.name} is left out" in again.log
    tried("a checkpoint or a journal with one changed bit", "distill")

    name = "generations/rollouts/s0"
    run.forget(name)
    assert run.make(name).status == 0
    digests, files = run.digests(), run.files()
    (path,) = run.store.glob(".cache/responses/*/*.jsonl")
    sampled = path.read_bytes()
    flip(path)
    (run.store / f"{run.identity(name)}.json").unlink()
    (run.results / name / "digest.json").unlink()
    again = mended(run, name, digests, files)
    assert again.log.count("what follows is sampled again") == 1
    assert path.read_bytes() == sampled
    tried("a checkpoint or a journal with one changed bit", "generate")

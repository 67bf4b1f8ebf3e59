"""What a rehearsal lays down before it runs."""

from pathlib import Path
from typing import Any

import pytest

from opd.rehearsal import command, stand_ins

pytestmark = pytest.mark.unit


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The stand-ins of checkpoints that were made: of what, and their seeds."""
    calls: list[tuple[str, int]] = []

    def own_model(source: Path, folder: Path, seed: int = 0) -> None:
        calls.append((source.parent.name, seed))
        folder.mkdir()
        (folder / "config.json").write_text(source.parent.name)
        if source.parent.name == "killed" and len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(stand_ins, "own_model", own_model)
    return calls


def own(tmp_path: Path, *runs: str) -> dict[str, Any]:
    """A config with a checkpoint and a file of questions of each of these runs."""
    for run in runs:
        (tmp_path / run / "final").mkdir(parents=True)
        (tmp_path / run / "final" / "config.json").write_text("{}")
        (tmp_path / run / "train.jsonl").write_text(f'{{"question": "{run}", "answer": "1"}}\n')
    return {
        "name": "own",
        "models": {run: {"path": str(tmp_path / run / "final")} for run in runs},
        "prompts": {run: {"path": {"file": str(tmp_path / run / "train.jsonl")}} for run in runs},
    }


def test_what_has_the_same_name_stays_apart(made: list[tuple[str, int]], tmp_path: Path) -> None:
    raw = own(tmp_path, "a", "b")
    raw["prompts"]["a"]["path"]["sha256"] = "0" * 64
    command.prepare(raw, tmp_path, tmp_path / "rehearsal")
    assert [*raw["prompts"]["a"]["path"]] == ["file"]  # the digest was that of the whole file
    for run in ("a", "b"):
        assert Path(raw["models"][run]["path"], "config.json").read_text() == run
        assert f'"{run}"' in Path(raw["prompts"][run]["path"]["file"]).read_text()
    assert [run for run, _ in made] == ["a", "b"]
    assert len({seed for _, seed in made}) == 2


def test_a_stand_in_that_was_not_completed_is_made_again(
    made: list[tuple[str, int]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        command.prepare(own(tmp_path, "killed"), tmp_path, tmp_path / "rehearsal")
    raw = {
        "name": "own",
        "models": {"killed": {"path": str(tmp_path / "killed" / "final")}},
    }
    command.prepare(raw, tmp_path, tmp_path / "rehearsal")
    assert [run for run, _ in made] == ["killed", "killed"]

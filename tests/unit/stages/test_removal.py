"""Weights of kept steps that go, what is then refused, found and made again."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opd.core.errors import UserError
from opd.core.files import made_content
from opd.plan import state
from opd.stages import check, records, registry, removal
from opd.stages import run as runner
from opd.stages.artifact import Artifact
from opd.stages.records import Contents, Digest

pytestmark = pytest.mark.unit

WEIGHTS = "model.safetensors"


class Runs:
    """Results in which a run is trained, its steps are kept, and read."""

    def __init__(self, folder: Path, name: str = "mini") -> None:
        self.results, self.store = folder / "results" / name, folder / "results" / ".store"

    def make(self, stage: str, folder: str, cfg: dict[str, Any], *inputs: str) -> bool:
        paths = [self.results / path / "digest.json" for path in inputs]
        output = self.results / folder / "digest.json"
        return runner.run_stage(stage, cfg, paths, output, {}, self.store)

    def train(self, *steps: int) -> bool:
        cfg = {"inputs": [], "execution": {"keep_steps": [*steps]}}
        return self.make("train", "models/m/s0", cfg)

    def keep(self, step: int) -> Path:
        cfg = {"inputs": ["model"], "step": step}
        self.make("keep", f"models/m@{step}/s0", cfg, "models/m/s0")
        return self.results / f"models/m@{step}/s0"

    def evaluate(self, step: int, benchmark: str = "easy") -> bool:
        cfg = {"inputs": ["model"], "benchmark": benchmark}
        return self.make("read", f"evaluations/{benchmark}/m@{step}/s0", cfg, f"models/m@{step}/s0")

    def release(self, step: int) -> bool:
        return removal.release(self.results / f"models/m@{step}/s0", self.store)

    def places(self, step: int) -> list[Path]:
        """The folders with a kept step: its artifact's, and its run's."""
        run = self.results / "models/m/s0/payload"
        return [self.results / f"models/m@{step}/s0/payload", removal.kept_step(run, step)]

    def there(self, step: int) -> list[bool]:
        return [(place / WEIGHTS).exists() for place in self.places(step)]

    def wrong(self, step: int) -> list[str]:
        """What is wrong with the files of a kept step, in either place."""
        artifact, run = self.places(step)
        made = records.read(artifact.parent / "digest.json", Contents)
        kept = records.read(run.with_name(f"{step}.json"), Contents)
        sides = ((made, artifact), (kept, run))
        return [x.text for r, f in sides for x in check.files(r.outputs, made_content(f))]


@pytest.fixture
def luck(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Stages of the test's own: a training run of nine steps, and one that reads weights. Its text
    is part of all weights."""
    chosen = {"text": ""}

    class Module:
        @staticmethod
        def train(cfg, inputs, out, scratch):
            for step in cfg["execution"]["keep_steps"]:
                folder = scratch / "kept" / str(step)
                folder.mkdir(parents=True)
                (folder / WEIGHTS).write_text(f"{step}{chosen['text']}")
                (folder / "config.json").write_text("{}")
            (out / WEIGHTS).write_text(f"9{chosen['text']}")
            return {}

        @staticmethod
        def read(cfg, inputs, out):
            (out / "score").write_text(cfg["benchmark"] + (inputs["model"] / WEIGHTS).read_text())

    monkeypatch.setitem(sys.modules, "opd.fake_runs", Module)
    model = registry.Stage("opd.fake_runs:train", "train", "models/{model}", resumes=True)
    monkeypatch.setitem(registry.STAGES, "train", model)
    reads = registry.Stage("opd.fake_runs:read", "read", "evaluations/{evaluation}")
    monkeypatch.setitem(registry.STAGES, "read", reads)
    return chosen


@pytest.fixture
def runs(luck, tmp_path: Path) -> Runs:
    """A run of which steps 2 and 4 are kept and evaluated."""
    made = Runs(tmp_path)
    made.train(2, 4)
    for step in (2, 4):
        made.keep(step)
        made.evaluate(step)
    return made


def ask_again(runs: Runs, step: int) -> None:
    artifact, run = runs.places(step)
    removal.ask_again(artifact.parent, run)


def test_weights_go_and_all_that_is_known_of_them_stays(runs: Runs):
    folder = runs.results / "models/m@2/s0"
    before = [(folder / name).read_bytes() for name in ("digest.json", "manifest.json")]
    inode = (runs.places(2)[0] / WEIGHTS).stat()
    assert inode.st_nlink == 2 and runs.release(2) is True
    assert runs.there(2) == [False, False] and runs.there(4) == [True, True]
    left = {"config.json", f"{WEIGHTS}.removed"}
    assert [{path.name for path in place.iterdir()} for place in runs.places(2)] == [left, left]
    # No other name of the file keeps its bytes on the disk.
    files = [path for path in runs.store.rglob("*") if path.is_file()]
    assert inode.st_ino not in {path.stat().st_ino for path in files}
    assert [(folder / name).read_bytes() for name in ("digest.json", "manifest.json")] == before
    assert runs.wrong(2) == []
    assert not list((runs.store / ".scratch").glob("*"))
    # Once more does nothing, and nothing is computed for want of weights.
    assert runs.release(2) is True
    assert runs.train(2, 4) is False and runs.evaluate(2) is False
    runs.keep(2)
    assert runs.there(2) == [False, False] and runs.wrong(2) == []


def test_a_new_reader_is_refused_until_the_run_is_trained_again(runs: Runs):
    for step in (2, 4):
        runs.release(step)
    digests = {path: path.read_bytes() for path in runs.results.rglob("digest.json")}
    with pytest.raises(UserError, match=r"weights were removed .*; run the same snakemake command"):
        runs.evaluate(2, "hard")
    ask_again(runs, 2)
    assert runs.train(2, 4) is True
    runs.keep(2)
    assert runs.there(2) == [True, True] and runs.there(4) == [False, False]
    assert runs.evaluate(2, "hard") is True and runs.evaluate(2) is False
    assert {path: path.read_bytes() for path in digests} == digests
    artifact, run = runs.places(2)
    assert (artifact / WEIGHTS).samefile(run / WEIGHTS)
    assert runs.release(2) is True and runs.there(2) == [False, False] and runs.wrong(2) == []


def test_a_reader_that_is_given_up_leaves_nothing_wrong(runs: Runs):
    runs.release(2)
    ask_again(runs, 2)
    assert runs.wrong(2) == [f"missing: {WEIGHTS} is gone"]  # of the run, which is to be trained
    assert runs.release(2) is True and runs.wrong(2) == [] and runs.train(2, 4) is False


def test_a_run_that_ends_differently_keeps_all_of_its_steps_again(runs: Runs, luck):
    for step in (2, 4):
        runs.release(step)
    luck["text"] = "'"  # sums in another order
    ask_again(runs, 2)
    assert runs.train(2, 4) is True
    for step in (2, 4):
        folder = runs.keep(step)
        assert (folder / "payload" / WEIGHTS).read_text() == f"{step}'"
        assert runs.evaluate(step) is True
    # What was noted of the ones before does not count for these.
    assert runs.there(4) == [True, True]


def _fail_after(monkeypatch: pytest.MonkeyPatch, changes: int) -> None:
    """Have every change of the file system after so many fail, as if it were killed there."""
    left = iter(range(changes))

    def counted(change):
        def run(*arguments, **options):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return run

    for name in ("unlink", "replace", "write_text"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


def test_a_kill_at_any_point_is_mended_by_the_next_run(runs: Runs, monkeypatch):
    killed = 0
    while True:
        try:
            with monkeypatch.context() as patch:
                _fail_after(patch, killed)
                runs.release(2)
            break
        except KeyboardInterrupt:
            killed += 1
        # A name of a file that is being written is all that may be wrong.
        assert all(".partial was added" in reason for reason in runs.wrong(2))
        assert runs.release(2) is True
        assert runs.there(2) == [False, False] and runs.wrong(2) == []
        ask_again(runs, 2)
        assert runs.train(2, 4) is True
        runs.keep(2)
        assert runs.there(2) == [True, True]
    assert killed >= 8


def test_weights_stay_while_other_results_that_link_them_need_them(runs: Runs, tmp_path: Path):
    other = Runs(tmp_path, "other")
    assert other.train(2) is False
    other.keep(2)
    assert runs.release(2) is False and runs.there(2) == [True, True]
    assert other.evaluate(2, "hard") is True
    assert other.release(2) is True
    assert runs.there(2) == other.there(2) == [False, False]
    # Whoever comes later finds what was made of them, and is told what was not.
    late = Runs(tmp_path, "late")
    assert late.train(2) is False
    late.keep(2)
    assert late.wrong(2) == [] and late.evaluate(2) is False
    with pytest.raises(UserError, match="run the same snakemake command again"):
        late.evaluate(2, "harder")


def test_what_a_crate_left_out_is_said_to_be_by_what_reads_it(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
):
    """It comes back by no command but one that makes it again."""
    weights = runs.results / "models/m@2/s0/payload" / WEIGHTS
    sha = records.read(runs.results / "models/m@2/s0/digest.json", Digest).outputs[WEIGHTS]
    weights.unlink()
    weights.with_name(f"{WEIGHTS}.left-out").write_text(check.mark(sha))
    # What computes nothing reads only what is in every crate, and may find that it is enough.
    with pytest.raises(FileNotFoundError):
        runs.evaluate(2, "harder")
    monkeypatch.setitem(registry.STAGES, "read", registry.STAGES["read"]._replace(work="device"))
    with pytest.raises(UserError, match=r"model.safetensors was left out of the crate.* --full"):
        runs.evaluate(2, "harder")


def test_what_is_left_of_a_step_is_its_artifact_after_an_edit_of_the_stage(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
):
    """With other code the artifact has another identity, and the run still ends as it did."""
    runs.release(2)
    record = runs.results / "models/m@2/s0/digest.json"
    before = records.read(record, Digest)
    monkeypatch.setattr(runner, "code_digest", lambda _: "edited")
    cfg = {"inputs": ["model"], "step": 2, "code": "edited"}
    assert runs.make("keep", "models/m@2/s0", cfg, "models/m/s0") is True
    after = records.read(record, Digest)
    assert after.identity != before.identity and after.outputs == before.outputs
    assert runs.wrong(2) == [] and runs.evaluate(2) is False and runs.release(2) is True


def test_weights_that_somebody_else_removed_are_missing(runs: Runs):
    for place in runs.places(2):
        (place / WEIGHTS).unlink()
    assert runs.wrong(2) == [f"missing: {WEIGHTS} is gone"] * 2
    # They were not there to be removed.
    runs.release(2)
    assert runs.wrong(2) == [f"missing: {WEIGHTS} is gone"] * 2


@pytest.mark.parametrize("text", ["", "removed\n", "0" * 64])
def test_a_mark_that_does_not_hold_the_digest_is_none(runs: Runs, text: str):
    runs.release(2)
    (runs.places(2)[0] / f"{WEIGHTS}.removed").write_text(text)
    assert runs.wrong(2) == [
        f"missing: {WEIGHTS} is gone",
        f"modified: {WEIGHTS}.removed was added",
    ]


def test_only_weights_can_be_removed():
    outputs = {"samples.parquet": "a" * 64, WEIGHTS: "b" * 64}
    marks = {f"{name}.removed": _sha256(f"{sha}\n") for name, sha in outputs.items()}
    assert check.removed(outputs, marks) == {WEIGHTS: f"{WEIGHTS}.removed"}
    assert [x.where for x in check.files(outputs, marks)] == [
        "samples.parquet",
        "samples.parquet.removed",
    ]


def _sha256(text: str) -> str:
    done = subprocess.run(["sha256sum"], input=text, capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def test_what_was_adopted_stays(runs: Runs):
    folder = runs.results / "models/m@2/s0"
    for name, kind in (("digest.json", Digest), ("manifest.json", records.Manifest)):
        record = records.read(folder / name, kind)
        adopted: Any = True if kind is Digest else "/elsewhere"
        records.write(folder / name, record.model_copy(update={"adopted": adopted}))
    assert runs.release(2) is False and runs.there(2) == [True, True]


def test_the_command_says_what_became_of_them(runs: Runs):
    def run(folder: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "opd.stages.removal", folder, "results/.store"]
        place = runs.results.parents[1]
        return subprocess.run(command, cwd=place, capture_output=True, text=True)

    assert run("results/mini/models/m@2/s0").stdout == "removed\n"
    done = run("results/mini/models/m@3/s0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.fullmatch(r"error: \S+/digest.json: damaged: is gone; .*\n", done.stderr)


def test_what_is_trained_again_for_whom(runs: Runs):
    def planned(**evaluations: int) -> dict[str, Artifact]:
        """The plan of the run and its kept steps, with step 4 the student of another run."""
        run = Artifact(
            "train", "models/m/s0", {"inputs": [], "execution": {"keep_steps": [2, 4]}}, ()
        )
        kept = [
            Artifact(
                "keep", f"models/m@{step}/s0", {"inputs": ["model"], "step": step}, (run.folder,)
            )
            for step in (2, 4)
        ]
        readers = [
            Artifact(
                "read",
                f"evaluations/{name}/m@{step}/s0",
                {"inputs": ["model"], "benchmark": name},
                (f"models/m@{step}/s0",),
            )
            for name, step in evaluations.items()
        ]
        return {artifact.folder: artifact for artifact in (run, *kept, *readers)}

    def again(**evaluations: int) -> dict[str, list[str]]:
        return state.again(planned(**evaluations), runs.results, runs.store)

    run, step, hard = "models/m/s0", "models/m@2/s0", "evaluations/hard/m@2/s0"
    assert again(easy=2, hard=2) == {}  # the weights are there
    runs.release(2)
    assert again(easy=2) == {} and again(easy=2, hard=4) == {}
    assert again(easy=2, hard=2) == {hard: [step, run]}
    # Also while that is under way, and where the artifact is yet to be made.
    ask_again(runs, 2)
    assert again(hard=2) == {hard: [step, run]}
    removal.release(runs.results / step, runs.store)
    states = state.states(planned(easy=2, hard=2), planned(hard=2), runs.results, runs.store)
    assert states == {run: "run", step: "run", "models/m@4/s0": "there", hard: "run"}
    (runs.results / step / "digest.json").unlink()
    assert again(hard=2) == {hard: [step, run]}
    # A run from the step of another one: both, if it is trained again itself.
    folder = "models/m@4/s0"
    chain = planned()
    chain["models/n/s0"] = Artifact(
        "train", "models/n/s0", {"inputs": ["student"], "execution": {"keep_steps": [1]}}, (folder,)
    )
    chain["models/n@1/s0"] = Artifact(
        "keep", "models/n@1/s0", {"inputs": ["model"], "step": 1}, ("models/n/s0",)
    )
    cfg = {"inputs": ["model"], "benchmark": "hard"}
    reader = Artifact("read", "evaluations/hard/n@1/s0", cfg, ("models/n@1/s0",))
    chain[reader.folder] = reader
    assert runs.make("train", "models/n/s0", chain["models/n/s0"].cfg, folder) is True
    runs.make("keep", "models/n@1/s0", {"inputs": ["model"], "step": 1}, "models/n/s0")
    assert state.again(chain, runs.results, runs.store) == {}
    for name in ("models/n@1/s0", folder):
        removal.release(runs.results / name, runs.store)
    both = ["models/n@1/s0", "models/n/s0", folder, run]
    assert state.again(chain, runs.results, runs.store) == {reader.folder: both}

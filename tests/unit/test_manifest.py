"""Identity, code digests, the store: what makes a stage run, and what does not."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from opd import manifest
from opd.errors import Bad

pytestmark = pytest.mark.unit


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stage of the test's own, and the list of the times it was really computed."""
    calls: list[dict] = []

    class Module:
        @staticmethod
        def run(cfg, inputs, out):
            calls.append({"cfg": cfg, "inputs": inputs})
            text = "".join(p.read_text() for d in inputs.values() for p in sorted(d.iterdir()))
            if cfg.get("fail"):
                (out / "half").write_text("x")
                raise Bad("no good", "here", "stop")
            (out / "result.txt").write_text(text + str(cfg["value"]))
            return {"length": len(text)}

    monkeypatch.setitem(sys.modules, "opd.fake_stage", Module)
    monkeypatch.setitem(manifest.VERBS, "fake", "opd.fake_stage:run")

    def call(name: str, value: int, inputs: dict[str, Path] | None = None, **more) -> bool:
        inputs = inputs or {}
        cfg = {"value": value, "inputs": list(inputs), **more}
        return manifest.run_stage(
            "fake",
            cfg,
            list(inputs.values()),
            tmp_path / name / "digest.json",
            {"result.txt": tmp_path / f"{name}.txt"},
            tmp_path / "store",
        )

    return call, calls


def test_stage_is_computed_once_and_then_linked(stage, tmp_path):
    call, calls = stage
    assert call("a", 1) is True
    assert call("a", 2) is True
    assert call("a", 1) is False  # settings edited and edited back: no third computation
    assert len(calls) == 2
    assert (tmp_path / "a" / "payload" / "result.txt").read_text() == "1"
    assert (tmp_path / "a.txt").read_text() == "1"


def test_digest_json_holds_no_time_and_is_the_same_for_the_same_result(stage, tmp_path):
    call, _ = stage
    call("a", 1)
    first = (tmp_path / "a" / "digest.json").read_bytes()
    call("b", 1)
    assert (tmp_path / "b" / "digest.json").read_bytes() == first
    assert set(json.loads(first)) == {"identity", "settings", "outputs"}


def test_identity_follows_content_of_inputs_not_their_place(stage, tmp_path):
    call, calls = stage
    call("a", 1)
    call("b", 1)
    call("c", 5, {"x": tmp_path / "a" / "digest.json"})
    assert call("d", 5, {"x": tmp_path / "b" / "digest.json"}) is False
    call("a", 2)
    assert call("c", 5, {"x": tmp_path / "a" / "digest.json"}) is True
    assert (tmp_path / "c" / "payload" / "result.txt").read_text() == "25"
    assert len(calls) == 4


def test_failed_stage_leaves_nothing(stage, tmp_path):
    call, _ = stage
    with pytest.raises(Bad):
        call("a", 1, fail=True)
    assert not (tmp_path / "a" / "digest.json").exists()
    assert not (tmp_path / "a" / "payload").exists()
    assert [p for p in (tmp_path / "store").rglob("*") if not p.is_dir()] == []
    assert list((tmp_path / "store" / ".scratch").iterdir()) == []


def test_how_a_stage_is_run_is_no_part_of_what_it_makes(stage, tmp_path):
    call, calls = stage
    call("a", 1, execution={"checkpoint_every": 5})
    before = (tmp_path / "a" / "digest.json").read_bytes()
    assert call("a", 1, execution={"checkpoint_every": 50}) is False
    assert (tmp_path / "a" / "digest.json").read_bytes() == before
    assert len(calls) == 1


def test_two_at_once_make_it_once(stage, tmp_path, monkeypatch, capsys):
    """The second waits, says for whom, and finds what the first has made."""
    call, calls = stage
    fake, started, go = sys.modules["opd.fake_stage"], threading.Event(), threading.Event()
    run = fake.run

    def slow(cfg, inputs, out):
        started.set()
        assert go.wait(30)
        return run(cfg, inputs, out)

    monkeypatch.setattr(fake, "run", staticmethod(slow))
    made = {}
    threads = [
        threading.Thread(target=lambda n=name: made.update({n: call(n, 1)})) for name in "ab"
    ]
    threads[0].start()
    assert started.wait(30)
    threads[1].start()
    while "waiting for process" not in capsys.readouterr().err:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join()
    assert made == {"a": True, "b": False} and len(calls) == 1
    assert (tmp_path / "b" / "payload" / "result.txt").read_text() == "1"


def test_damaged_store_entry_is_made_again(stage, tmp_path):
    call, calls = stage
    call("a", 1)
    (tmp_path / "a" / "payload" / "result.txt").write_text("9")
    assert call("a", 1) is True
    assert (tmp_path / "a" / "payload" / "result.txt").read_text() == "1"
    assert len(calls) == 2


def test_lost_payload_of_an_input_is_named(stage, tmp_path):
    call, _ = stage
    call("a", 1)
    (tmp_path / "a" / "payload").unlink()
    with pytest.raises(Bad, match="payload is gone"):
        call("c", 5, {"x": tmp_path / "a" / "digest.json"})


def _package(root: Path, body: str) -> Path:
    folder = root / "opd"
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text("")
    (folder / "leaf.py").write_text(body)
    (folder / "top.py").write_text("def run():\n    from opd import leaf\n    return leaf.f()\n")
    return folder


def _code_digest(root: Path) -> str:
    import subprocess

    program = (
        "from opd import manifest as m\nm.VERBS['top'] = 'opd.top:run'\nprint(m.code_digest('top'))"
    )
    for name in ("manifest.py", "files.py", "keep.py", "errors.py"):
        source = Path(manifest.__file__).with_name(name)
        (root / "opd" / name).write_text(source.read_text())
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_code_digest_ignores_comments_and_docstrings_and_sees_imported_modules(tmp_path):
    _package(tmp_path, "def f():\n    return 1\n")
    plain = _code_digest(tmp_path)
    _package(tmp_path, '"""Doc."""\n# why\ndef f():\n    """More."""\n    return 1  # one\n')
    assert _code_digest(tmp_path) != ""
    commented = _code_digest(tmp_path)
    _package(tmp_path, "def f():\n    return 2\n")
    changed = _code_digest(tmp_path)
    assert plain == commented
    assert plain != changed


def test_derived_seeds_differ_by_stage_and_by_seed_and_fit_31_bits():
    seeds = {manifest.derive_seed(s, v) for s in range(50) for v in ("sft", "grpo", "opd")}
    assert len(seeds) == 150
    assert all(0 <= s < 2**31 for s in seeds)

"""Fetching checkpoints: a fake of a hub, local folders, bad input."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from opd.core.errors import UserError
from opd.core.security import refuse_code
from opd.models import fetch

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"t",
    "1_Pooling/config.json": b"{}",
}
OTHERS = {"pytorch_model.bin": b"pickle", "README.md": b"text", "run.py": b"code"}


def checkpoint(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def run(tmp_path: Path, cfg: dict[str, Any], **inputs: Path) -> tuple[set[str], dict[str, Any]]:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    numbers = fetch.run(cfg, inputs, out, tmp_path / "scratch")
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}, numbers


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "models" / "m", FILES | OTHERS)
    monkeypatch.setenv("OPD_MODEL_DIR", str(tmp_path / "models"))
    for cfg, inputs in [
        ({"path": "m"}, {}),
        ({"path": str(folder)}, {}),
        ({"path": "elsewhere"}, {"files": folder}),
    ]:
        files, numbers = run(tmp_path, cfg, **inputs)
        assert files == set(FILES)
        assert numbers == {"dequantised": False, "bytes": sum(map(len, FILES.values()))}


def test_a_snapshot_in_the_hubs_cache_is_a_folder_and_a_link_that_leads_out_is_refused(
    tmp_path: Path,
) -> None:
    folder, blobs = tmp_path / "models--o--n" / "snapshots" / "c0", tmp_path / "models--o--n/blobs"
    blobs.mkdir(parents=True)
    for number, (name, data) in enumerate(FILES.items()):
        (blobs / str(number)).write_bytes(data)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(blobs / str(number))
    assert run(tmp_path, {"path": str(folder)})[0] == set(FILES)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "secret.json").write_text("{}")
    (folder / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(
        UserError, match=r"c0/more\.json: it is a link that leads out of its folder"
    ):
        run(tmp_path, {"path": str(folder)})
    assert not list((tmp_path / "out").iterdir())


NAMES = {
    "model.safetensors.index.json": {"weight_map": {"a": "../../x.safetensors"}},
    "1_Pooling/other.index.json": {"weight_map": {"a": "../../x.safetensors"}},
    "modules.json": [{"idx": 0, "path": ""}, {"idx": 1, "path": "../1_Pooling"}],
    "tokenizer_config.json": {"fast_tokenizer_files": ["/tmp/tokenizer.4.0.json"]},
}


@pytest.mark.parametrize("name", NAMES)
def test_no_file_outside_of_a_folder_is_named_in_it(
    tmp_path: Path, hub: dict[str, Any], name: str
) -> None:
    """From a folder, from the hub, and in what a stage or a preflight is given."""
    text = json.dumps(NAMES[name]).encode()
    folder = checkpoint(tmp_path / "m", FILES | {name: text})
    words = rf"{name}: it names \S+, a file outside of its folder; put that file beside it"
    with pytest.raises(UserError, match=words):
        run(tmp_path, {"path": str(folder)})
    hub["files"] = FILES | {name: text}
    with pytest.raises(UserError, match=words):
        run(tmp_path, {"hub": "a/b", "revision": REVISION})
    with pytest.raises(UserError, match=words):  # what a plan compares
        fetch.without_weights("a/b", REVISION)
    with pytest.raises(UserError, match=words):
        refuse_code(folder)
    inside = text.replace(b"../../", b"").replace(b"../", b"").replace(b"/tmp/", b"")
    # A damaged file names nothing: a report, which shows damage, goes on.
    for harmless in (inside, text[:-1], b"[1]", b'{"weight_map": []}'):
        (folder / name).write_bytes(harmless)
        refuse_code(folder)
    # From a folder below, what lies beside that is inside.
    (folder / "1_Pooling" / "x.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    refuse_code(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A hub with one model: what it has (files), what it says of them (listed), what it was asked
    for (calls), and what arrives of each file (arrives)."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    cache = tmp_path / "hub"
    found: dict[str, Any] = {"files": FILES | OTHERS, "listed": {}, "calls": [], "arrives": {}}

    def snapshot_download(
        repo: str, *, revision: str, local_dir: Path = cache, allow_patterns: list[str]
    ) -> str:
        found["calls"].append((repo, revision, sorted(p.name for p in local_dir.glob("*"))))
        whole = found["files"]
        wanted = filter_repo_objects(list(whole), allow_patterns=allow_patterns)
        files = {name: found["arrives"].get(name, whole[name]) for name in wanted}
        checkpoint(Path(local_dir), files | {".cache/huggingface/x.metadata": b""})
        if "fails" in found:
            raise found["fails"]
        return str(local_dir)

    class Api(huggingface_hub.HfApi):
        def list_repo_tree(self, repo_id: str, *, revision: str, **_: Any) -> Any:
            assert (repo_id, revision) == ("a/b", REVISION)
            return [listed(name, data) for name, data in found["files"].items()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return found


def listed(name: str, data: bytes) -> Any:
    """As the hub lists large files and small ones: with the content's sha256, and as git does."""
    from huggingface_hub.hf_api import RepoFile

    lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 1}
    # What `git hash-object` says of these two.
    git = {
        b"{}": "9e26dfeeb6e641a33dae4961196235bdb965b21b",
        b"t": "32f64f4d836716819dc5fa9a1e09a29b428881df",
    }
    large = name.endswith(".safetensors")
    oid = git.get(data) or hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return RepoFile(path=name, size=len(data), oid=oid, lfs=lfs if large else None)


def test_hub(tmp_path: Path, hub: dict[str, Any]) -> None:
    files, _ = run(tmp_path, {"hub": "a/b", "revision": REVISION})
    assert hub["calls"] == [("a/b", REVISION, [])] and files == set(FILES)


@pytest.mark.parametrize(
    ("file", "data"),
    [("model.safetensors", b"weighty"), ("model.safetensors", b"w"), ("config.json", b"[]")],
)
def test_a_file_that_arrives_as_another(
    tmp_path: Path, hub: dict[str, Any], file: str, data: bytes
) -> None:
    hub["arrives"] = {file: data}
    with pytest.raises(
        UserError, match=f"a/b: {file} is not the file that the hub lists at {REVISION}"
    ):
        run(tmp_path, {"hub": "a/b", "revision": REVISION})
    assert not list((tmp_path / "out").iterdir())
    hub["arrives"] = {}
    assert run(tmp_path, {"hub": "a/b", "revision": REVISION})[0] == set(FILES)
    assert hub["calls"][1][2] == []  # nothing of the damaged download was left


def test_a_fetch_that_fails_goes_on_from_what_it_has(tmp_path: Path, hub: dict[str, Any]) -> None:
    hub["fails"] = OSError("connection lost")
    with pytest.raises(UserError, match=r"could not be fetched .*connection lost"):
        run(tmp_path, {"hub": "a/b", "revision": REVISION})
    del hub["fails"]
    assert run(tmp_path, {"hub": "a/b", "revision": REVISION})[0] == set(FILES)
    assert {"model.safetensors", ".cache"} <= set(hub["calls"][1][2])


@pytest.mark.parametrize("revision", [None, "", "main", REVISION[:12], REVISION.upper()])
def test_hub_needs_a_locked_revision(tmp_path: Path, revision: str | None) -> None:
    with pytest.raises(UserError, match=r"a/b: revision '.*' is not locked; lock it"):
        run(tmp_path, {"hub": "a/b", "revision": revision})


def test_a_model_of_a_command_line_is_a_folder_an_artifact_or_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    made = checkpoint(tmp_path / "results" / "n" / "models" / "m" / "payload")
    (made.parent / "digest.json").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in (str(made), "./results/n/models/m/payload", "~/results/n/models/m/payload"):
        assert fetch.at_hand(text, "--student") == made
    for text in ("results/n/models/m", "results/n/models/m/digest.json"):
        assert fetch.at_hand(text, "--student") == made
    assert asked == []
    assert fetch.at_hand("o/n@v1", "--student", ["*.json"]) == tmp_path / "cache"
    assert fetch.at_hand("o/n", "--student") == tmp_path / "cache"
    assert asked == [("o/n", "v1", ["*.json"]), ("o/n", None, [*fetch.PATTERNS])]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    for text, line in {
        "o/n": "--student: o/n: could not be fetched from the hub (ZeroDivisionError: division by "
        "zero); check name and revision, log in if it is gated, and see that the hub can be "
        "reached; a folder is written ./o/n",
        "o/n@v1": "--student: o/n: could not be fetched from the hub at v1 (ZeroDivisionError",
        "./gone": f"{tmp_path}/gone: no such folder",
        "n": "--student: 'n' names no model; give a model: ORG/NAME",
    }.items():
        with pytest.raises(UserError) as caught:
            fetch.at_hand(text, "--student")
        assert line in str(caught.value)


def test_hub_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*_: Any, **__: Any) -> None:
        raise OSError("404\nnot found")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        UserError, match=r"a/b: could not be fetched from the hub at .*404 not found"
    ):
        run(tmp_path, {"hub": "a/b", "revision": REVISION})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({}, "exactly one of hub, path"),
        ({"hub": "a/b", "path": "c"}, "exactly one of hub, path"),
        ({"path": "missing"}, "no such folder: .*missing"),
        ({"path": "pickled"}, "no config.json with .safetensors weights"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfg: dict[str, Any], message: str
) -> None:
    checkpoint(tmp_path / "pickled", {"config.json": b"{}"} | OTHERS)
    monkeypatch.setenv("OPD_MODEL_DIR", str(tmp_path))
    with pytest.raises(UserError, match=message):
        run(tmp_path, cfg)


def test_weights_that_were_unpacked_tell_their_origin(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    record = {"packages": ["a==1"], "dequantised": True}
    weights = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    (folder / fetch.UNPACKED).write_text(json.dumps(record | {"weights": weights}))
    files, numbers = run(tmp_path, {"path": str(folder)})
    assert files == set(FILES) and record.items() <= numbers.items()
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="its weights are not the ones that were unpacked"):
        run(tmp_path, {"path": str(folder)})


def test_dataset_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(*given: Any, **more: Any) -> Any:
        calls.append((given, more))
        split = datasets.Dataset.from_list([{"question": "1+1", "answer": "2"}])
        return datasets.DatasetDict({"train": split, "test": split})

    monkeypatch.setattr(datasets, "load_dataset", load)
    cfg = {"hub": "a/b", "config": "main", "revision": REVISION}
    assert fetch.run_dataset(cfg, {}, tmp_path) == {"train": 1, "test": 1}
    assert calls == [(("a/b", "main"), {"revision": REVISION})]
    assert {p.name for p in tmp_path.iterdir()} == {"train.parquet", "test.parquet"}
    read = datasets.Dataset.from_parquet(str(tmp_path / "test.parquet"), cache_dir=str(tmp_path))
    assert read[0] == {"question": "1+1", "answer": "2"}


def test_bad_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"a/b: revision 'main' is not locked"):
        fetch.run_dataset({"hub": "a/b", "revision": "main"}, {}, tmp_path)

    def gone(*_: Any, **__: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    with pytest.raises(UserError, match=r"a/b: could not be fetched .*DatasetNotFoundError"):
        fetch.run_dataset({"hub": "a/b", "revision": REVISION}, {}, tmp_path)
    assert not list(tmp_path.iterdir())

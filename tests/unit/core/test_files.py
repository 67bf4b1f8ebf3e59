"""What lies below a folder, and which links may be followed where."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opd.core.errors import UserError
from opd.core.files import content, files_below, input_files, made_content

pytestmark = pytest.mark.unit

# sha256 of "a" and of "b".
A = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
B = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file and one in a folder of its own, and something to lead to beside it."""
    (tmp_path / "top" / "in").mkdir(parents=True)
    (tmp_path / "top" / "a").write_text("a")
    (tmp_path / "top" / "in" / "b").write_text("b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("a")
    return tmp_path / "top"


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


INTRUDERS = {
    "to a folder": link("../elsewhere"),
    "to a file": link("../elsewhere/secret"),
    "absolute": link("/etc/passwd"),
    "nowhere": link("gone"),
    "to itself": link("x"),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", INTRUDERS)
def test_what_is_no_plain_file_counts_and_is_not_read(folder: Path, kind: str) -> None:
    assert made_content(folder) == content(folder) == {"a": A, "in/b": B}
    INTRUDERS[kind](folder / "x")
    assert set(files_below(folder)) == {"a", "in/b", "x"}
    assert made_content(folder) == {"a": A, "in/b": B, "x": ""}
    with pytest.raises(UserError, match=r"top/x: it is (a link that leads out|no file).*; put a c"):
        content(folder)


def test_links_within_a_folder_and_above_it(folder: Path, tmp_path: Path) -> None:
    """Of what was made here none is followed; what is given may have some of its own."""
    (folder / "x").symlink_to("in/b")
    assert content(folder) == {"a": A, "in/b": B, "x": B}
    assert made_content(folder)["x"] == ""
    (tmp_path / "link").symlink_to(folder)
    assert content(tmp_path / "link") == content(folder)
    assert made_content(tmp_path / "link") == made_content(folder)
    assert content(tmp_path / "link" / "a") == {"a": A}
    (folder / "y").symlink_to("in")
    with pytest.raises(UserError, match="top/y: it is"):
        content(folder)


def snapshot(cache: Path, files: dict[str, str]) -> Path:
    """A snapshot as the hub's library lays it out: links to blobs of the same repository."""
    folder = cache / "models--org--name" / "snapshots" / ("0" * 40)
    for number, (name, text) in enumerate(files.items()):
        blob = cache / "models--org--name" / "blobs" / f"{number:064x}"
        for path in (blob, folder / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(text)
        (folder / name).symlink_to(os.path.relpath(blob, (folder / name).parent))
    return folder


def test_what_python_compiles_beside_a_file_is_no_part_of_a_folder(tmp_path: Path) -> None:
    """To read a task's functions writes it: the folder would have changed by its being read."""
    folder = tmp_path / "__pycache__" / "tasks"  # wherever the folder itself lies
    folder.mkdir(parents=True)
    (folder / "functions.py").write_text("1")
    before = content(folder)
    (folder / "inner" / "__pycache__").mkdir(parents=True)
    (folder / "inner" / "__pycache__" / "functions.cpython-311.pyc").write_bytes(b"1")
    assert content(folder) == before and [*before] == ["functions.py"]


def test_a_snapshot_in_the_hubs_cache_is_read_as_files(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, {"config.json": "a", "1_Pooling/config.json": "b"})
    assert content(folder) == {"config.json": A, "1_Pooling/config.json": B}
    assert all(path.parent.name == "blobs" for path in input_files(folder).values())
    # As something that was made here it would not do.
    assert set(made_content(folder).values()) == {""}
    other = tmp_path / "models--org--other" / "blobs" / "0"
    beside = tmp_path / "models--org--name" / "refs" / "main"
    for path in (other, beside):
        path.parent.mkdir(parents=True)
        path.write_text("a")
    for target in (other, beside, "/etc/passwd"):
        (folder / "x").symlink_to(target)
        with pytest.raises(UserError, match=r"0000/x: it is a link that leads out of its folder"):
            content(folder)
        (folder / "x").unlink()

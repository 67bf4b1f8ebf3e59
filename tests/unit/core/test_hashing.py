"""sha256 of many files at once."""

import hashlib
import os
from pathlib import Path

from opd.core.hashing import hashed


def test_files_are_hashed_once_and_by_sha256(tmp_path: Path):
    texts = {"a": b"", "b": b"x" * 1_000_001, "c": b"y" * 1_000_000}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    os.link(tmp_path / "b", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("c")
    (tmp_path / "nowhere").symlink_to("gone")
    found = hashed(tmp_path / n for n in (*texts, "hard", "soft", "nowhere"))
    expected = {n: hashlib.sha256(text).hexdigest() for n, text in texts.items()}
    expected |= {"hard": expected["b"], "soft": "", "nowhere": ""}
    assert {path.name: one for path, one in found.of.items()} == expected
    assert (found.files, found.bytes) == (3, 2_000_001)


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path, monkeypatch):
    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert hashed([tmp_path / "a"]).of == {tmp_path / "a": ""}

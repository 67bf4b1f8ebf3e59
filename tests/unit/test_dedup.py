"""Deduplication against brute force, its boundaries, and the built-in encoder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd import dedup, tables
from opd.errors import Bad

pytest.importorskip("faiss")


def payload(folder: Path, questions: list[str]) -> Path:
    folder.mkdir(parents=True)
    rows = [
        tables.prompt(f"{folder.name}-{i}", question, "1", folder.name, i)
        for i, question in enumerate(questions)
    ]
    tables.write(folder / "prompts.parquet", rows, tables.PROMPTS)
    return folder


def vectors_of(folder: Path, vectors: np.ndarray, prompts: Path) -> Path:
    folder.mkdir(parents=True)
    np.save(folder / "embeddings.npy", np.asarray(vectors, dtype=np.float32))
    ids = tables.read(prompts / "prompts.parquet", tables.PROMPTS)["id"].to_pylist()
    (folder / "ids.json").write_text(json.dumps(ids))
    return folder


def run(tmp_path: Path, cfg: dict[str, Any], inputs: dict[str, Path]) -> tuple[list, list, dict]:
    out = tmp_path / "out"
    out.mkdir()
    report = dedup.run(cfg, inputs, out)
    kept = tables.read(out / "prompts.parquet", tables.PROMPTS).to_pylist()
    removed = tables.read(out / "removed.parquet", dedup.REMOVED).to_pylist()
    assert json.loads((out / "report.json").read_text()) == report
    return kept, removed, report


def test_stage_finds_exact_and_near_duplicates(tmp_path: Path) -> None:
    ours = [
        "How many primes are there below 100?",
        "  What is the area of a circle of radius 3? ",
        "Which day of the week follows Tuesday?",
        "How many primes are there below 101?",
        "Name the capital of France.",
    ]
    theirs = [
        "Is 7 odd?",
        "  Name the capital of France.",
        "What is the area of a circle of radius 3?",
        "How many primes are there below 101 ?",
    ]
    inputs = {"prompts": payload(tmp_path / "a", ours), "against": payload(tmp_path / "b", theirs)}
    for side in list(inputs):
        folder = tmp_path / side
        folder.mkdir()
        dedup.run_embed({"encoder": "hashed"}, {"prompts": inputs[side]}, folder)
        inputs[f"{side}_embedded"] = folder
    cfg = {"threshold": 0.85}
    kept, removed, report = run(tmp_path, cfg, inputs)
    assert [(r["id"], r["neighbour"], r["stage"]) for r in removed] == [
        ("a-0", "b-3", "semantic"),
        ("a-1", "b-2", "exact"),
        ("a-3", "b-3", "semantic"),
        ("a-4", "b-1", "exact"),
    ]
    assert all(r["score"] >= 0.85 for r in removed)
    assert removed[3]["neighbour_question"] == theirs[1]
    assert [r["id"] for r in kept] == ["a-2"] and kept[0]["question"] == ours[2]
    assert (report["exact"], report["semantic"], report["kept"]) == (2, 2, 1)
    assert report["nearest_kept_cosine"] < 0.85


def test_the_threshold_itself_is_removed(tmp_path: Path) -> None:
    # Products that are exact in float32: the boundary is not blurred by rounding.
    ours, theirs = payload(tmp_path / "a", ["p", "q", "r"]), payload(tmp_path / "b", ["x", "y"])
    below = np.nextafter(np.float32(0.5), np.float32(0))
    inputs = {
        "prompts": ours,
        "against": theirs,
        "prompts_embedded": vectors_of(tmp_path / "u", [[0.5, 0], [below, 0], [0, 0.75]], ours),
        "against_embedded": vectors_of(tmp_path / "v", [[1, 0], [0, 1]], theirs),
    }
    kept, removed, report = run(tmp_path, {"threshold": 0.5}, inputs)
    assert [r["id"] for r in kept] == ["a-1"]
    assert [(r["neighbour"], r["score"]) for r in removed] == [("b-0", 0.5), ("b-1", 0.75)]
    assert report["nearest_kept_cosine"] == float(below)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(2, 24))
def test_nearest_neighbours_equal_brute_force(seed: int, n: int, m: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    ours = rng.normal(size=(n, dims)).astype(np.float32)
    theirs = rng.normal(size=(m, dims)).astype(np.float32)
    theirs[rng.integers(0, m, m // 3)] = theirs[0]
    products = ours.astype(np.float64) @ theirs.T.astype(np.float64)
    scores, places = dedup.nearest_neighbours(ours, theirs)
    np.testing.assert_allclose(scores, products.max(axis=1), rtol=1e-4, atol=1e-5)
    chosen = products[np.arange(n), places]
    np.testing.assert_allclose(chosen, products.max(axis=1), rtol=1e-4, atol=1e-5)


def test_of_equal_neighbours_the_first_is_named() -> None:
    theirs = np.array([[0, 1], [1, 0], [1, 0], [1, 0]], dtype=np.float32)
    _, places = dedup.nearest_neighbours(np.array([[1, 0]], dtype=np.float32), theirs)
    assert places.tolist() == [1]


@given(st.lists(st.text("ab ", max_size=3)), st.lists(st.text("ab ", max_size=3)))
def test_exact_matches_equal_brute_force(ours: list[str], theirs: list[str]) -> None:
    stripped = [t.strip() for t in theirs]
    wanted = [stripped.index(o.strip()) if o.strip() in stripped else -1 for o in ours]
    assert dedup.exact_matches(ours, theirs).tolist() == wanted


def test_hashed_encoder_is_normalised_and_ignores_case_and_spacing() -> None:
    texts = ["What is 2+2?", "what  is\n2+2?", "Name a prime.", "é", "", "aaaa" * 200]
    vectors = dedup.encode(texts, "hashed", dims=256)
    assert vectors.shape == (6, 256) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.5
    # A text's vector does not depend on its neighbours.
    np.testing.assert_array_equal(vectors[2], dedup.encode_hashed(["Name a prime."], 256)[0])


def test_hashed_encoder_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from opd.dedup import encode_hashed;"
        "print(hashlib.sha256(encode_hashed(['What is 2+2?', 'xyz']).tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_bad_input(tmp_path: Path) -> None:
    a, b = payload(tmp_path / "a", ["p", "q"]), payload(tmp_path / "b", ["x"])
    u, v = np.eye(2), np.eye(2)[:1]
    good = {
        "prompts": a,
        "against": b,
        "prompts_embedded": vectors_of(tmp_path / "u", u, a),
        "against_embedded": vectors_of(tmp_path / "v", v, b),
    }
    with pytest.raises(Bad, match="belong to other prompts"):
        dedup.run({"threshold": 0.6}, good | {"prompts": payload(tmp_path / "c", ["p"])}, tmp_path)
    wide = vectors_of(tmp_path / "w", np.eye(3)[:1], b)
    with pytest.raises(Bad, match="2 and of 3 dimensions"):
        dedup.run({"threshold": 0.6}, good | {"against_embedded": wide}, tmp_path)
    with pytest.raises(Bad, match="all 2 prompts are duplicates"):
        dedup.run({"threshold": -1.0}, good, tmp_path)
    with pytest.raises(Bad, match="no sentence-transformers model"):
        dedup.encode(["a"], str(tmp_path / "missing"))
    assert not list(tmp_path.glob("*.parquet"))

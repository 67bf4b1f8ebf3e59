"""Neighbours against brute force, what is removed at and around a threshold, the page."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duplicates import neighbours_of, payload, remove
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import without_script

from opd.core import tables
from opd.core.errors import UserError
from opd.data import dedup, embeddings, neighbours
from opd.data.schemas import NEIGHBOURS

pytest.importorskip("faiss")


def embedded(folder: Path, prompts: Path, vectors: Any = None) -> Path:
    """Output of the stage ``embed``: hashed, or with vectors of the test's own."""
    folder.mkdir(parents=True)
    embeddings.run({"encoder": "hashed"}, {"prompts": prompts}, folder, folder.parent / "cache")
    if vectors is not None:
        np.save(folder / "embeddings.npy", np.asarray(vectors, dtype=np.float32))
    return folder


def find(folder: Path, inputs: dict[str, Path]) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    neighbours.run({}, inputs, folder)
    table = tables.read(folder / "neighbours.parquet", NEIGHBOURS)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(ours: np.ndarray, theirs: np.ndarray) -> tuple[list[float], list[int]]:
    """Largest cosine and the first row that has it, in plain Python on exact products."""
    best = []
    for a in ours.astype(np.float64):
        products = [float(np.sum(a * b)) for b in theirs.astype(np.float64)]
        best.append(max((p, -j) for j, p in enumerate(products)) if products else (-np.inf, 1))
    return [p for p, _ in best], [-j for _, j in best]


def test_the_three_stages_find_exact_and_near_duplicates(tmp_path: Path) -> None:
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
    a, b = payload(tmp_path / "a", ours), payload(tmp_path / "b", theirs)
    sides = {"prompts": embedded(tmp_path / "u", a), "against": embedded(tmp_path / "v", b)}
    found = find(tmp_path / "n", sides)
    assert [row["exact"] for row in found] == [None, 2, None, None, 1]
    assert [row["neighbour"] for row in found] == [3, 2, found[2]["neighbour"], 3, 1]
    inputs = {"prompts": a, "against": b, "neighbours": tmp_path / "n"}
    kept, removed, report = remove(tmp_path / "out", 0.85, inputs)
    assert [(r["id"], r["neighbour"], r["stage"]) for r in removed] == [
        ("a-0", "b-3", "semantic"),
        ("a-1", "b-2", "exact"),
        ("a-3", "b-3", "semantic"),
        ("a-4", "b-1", "exact"),
    ]
    assert all(r["score"] >= 0.85 for r in removed)
    assert removed[3]["neighbour_question"] == theirs[1]
    assert kept == ["a-2"]
    assert (report["exact"], report["semantic"], report["kept"]) == (2, 2, 1)
    assert report["compared"] == 3 and sum(report["histogram"]["count"]) == 3


def test_the_threshold_itself_is_removed(tmp_path: Path) -> None:
    # Products that are exact in float32: the boundary is not blurred by rounding.
    ours, theirs = payload(tmp_path / "a", ["p", "q", "r"]), payload(tmp_path / "b", ["x", "y"])
    below = np.nextafter(np.float32(0.5), np.float32(0))
    sides = {
        "prompts": embedded(tmp_path / "u", ours, [[0.5, 0], [below, 0], [0, 0.75]]),
        "against": embedded(tmp_path / "v", theirs, [[1, 0], [0, 1]]),
    }
    find(tmp_path / "n", sides)
    inputs = {"prompts": ours, "against": theirs, "neighbours": tmp_path / "n"}
    kept, removed, report = remove(tmp_path / "out", 0.5, inputs)
    assert kept == ["a-1"]
    assert [(r["neighbour"], r["score"]) for r in removed] == [("b-0", 0.5), ("b-1", 0.75)]
    assert report["at"] == {
        **dict.fromkeys(("0.40", "0.45"), 3),
        "0.50": 2,
        **dict.fromkeys(("0.55", "0.60", "0.65", "0.70", "0.75"), 1),
        **dict.fromkeys(("0.80", "0.85", "0.90"), 0),
    }


def test_cosines_are_compared_in_float64_as_they_are(tmp_path: Path) -> None:
    ours, theirs = payload(tmp_path / "a", ["p", "q", "r"]), payload(tmp_path / "b", ["x"])
    rows = [(None, 0, 0.6), (None, 0, float(np.float32(0.6))), (None, 0, np.nextafter(0.6, 0))]
    found = neighbours_of(tmp_path / "n", ours, theirs, rows)
    inputs = {"prompts": ours, "against": theirs, "neighbours": found}
    assert float(np.float32(0.6)) > 0.6
    assert remove(tmp_path / "out", 0.6, inputs)[0] == ["a-2"]


@pytest.mark.parametrize(("ours_at_a_time", "theirs_at_a_time"), [(1024, 16384), (3, 5)])
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.sampled_from([2, 3, 24])
)
def test_nearest_equals_brute_force_with_ties(
    ours_at_a_time: int, theirs_at_a_time: int, seed: int, n: int, m: int, dims: int
) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = unit(rng.normal(size=(n, dims))), unit(rng.normal(size=(m, dims)))
    theirs[rng.integers(0, m, m // 2)] = theirs[0]
    ours[rng.integers(0, n, n // 3)] = ours[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "OURS", ours_at_a_time)
        patch.setattr(neighbours, "THEIRS", theirs_at_a_time)
        cosines, places = neighbours.nearest(ours, theirs)
        earlier, before = neighbours.nearest(ours)
    assert (cosines.tolist(), places.tolist()) == brute_force(ours, theirs)
    for i in range(n):
        wanted = brute_force(ours[i : i + 1], ours[:i])
        assert ([earlier[i]], [before[i]]) == wanted


def test_more_ties_than_faiss_is_asked_for_at_first() -> None:
    rng = np.random.default_rng(0)
    theirs = unit(rng.normal(size=(700, 16)))
    theirs[100:600] = theirs[650]
    theirs[99] = np.roll(theirs[650], 1)
    assert neighbours.nearest(theirs[[650, 3]], theirs)[1].tolist() == [100, 3]
    rows, columns = neighbours.sift(theirs[[650, 3]], theirs)
    assert (rows == 0).sum() == 501 and sorted(columns[rows == 0])[0] == 100


def test_near_ties_are_settled_in_float64() -> None:
    """Two neighbours that float32 products cannot tell apart; the second is nearer."""
    ours = unit(np.ones((1, 768)))
    further = ours[0].copy()
    further[0] = np.nextafter(further[0], np.float32(0))
    theirs = np.stack([further, ours[0]])
    assert np.float32(ours[0] @ further) == np.float32(ours[0] @ ours[0])
    assert neighbours.nearest(ours, theirs)[1].tolist() == [1]


@given(st.lists(st.text("ab", max_size=2)), st.lists(st.text("ab", max_size=2)))
def test_exact_matches_equal_brute_force(ours: list[str], theirs: list[str]) -> None:
    wanted = [theirs.index(o) if o in theirs else -1 for o in ours]
    assert neighbours.exact_matches(ours, theirs).tolist() == wanted


SELF = st.lists(st.sampled_from(["one", "two", " one", "ONE", "one two", "three"]), min_size=1)


@settings(deadline=None)
@given(SELF)
def test_within_a_set_neighbours_are_earlier_rows(questions: list[str]) -> None:
    """Repeated texts, and texts that differ in case alone and so have equal vectors."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        prompts = payload(Path(folder) / "p", questions)
        found = find(Path(folder) / "n", {"prompts": embedded(Path(folder) / "e", prompts)})
    vectors = embeddings.encoders.encode_hashed([q.strip() for q in questions])
    for i, row in enumerate(found):
        same = [j for j in range(i) if questions[j].strip() == questions[i].strip()]
        assert row["exact"] == (same[0] if same else None)
        (cosine,), (place,) = brute_force(vectors[i : i + 1], vectors[:i])
        assert (row["cosine"], row["neighbour"]) == ((cosine, place) if i else (None, None))


def test_within_a_set_the_first_of_a_pair_stays_and_no_near_pair_is_left(tmp_path: Path) -> None:
    """A chain: b is near a, c near b and not near a. An earlier row removes though it is removed
    itself, so b and c both go."""
    angles = np.deg2rad([0, 40, 80, 180, 0])
    prompts = payload(tmp_path / "p", ["a", "b", "c", "d", " a"])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:4]
    found = find(tmp_path / "n", {"prompts": embedded(tmp_path / "e", prompts, vectors)})
    assert [row["neighbour"] for row in found] == [None, 0, 1, 2, 0]
    inputs = {"prompts": prompts, "neighbours": tmp_path / "n"}
    kept, removed, report = remove(tmp_path / "out", 0.7, inputs)
    assert kept == ["p-0", "p-3"]
    assert [(r["id"], r["neighbour"], r["stage"]) for r in removed] == [
        ("p-1", "p-0", "semantic"),
        ("p-2", "p-1", "semantic"),
        ("p-4", "p-0", "exact"),
    ]
    assert (report["exact"], report["semantic"], report["compared"]) == (1, 2, 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-0.5, 0.99))
def test_what_is_kept_of_a_set_is_apart(seed: int, threshold: float) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(30, 3)))
    cosines, _ = neighbours.nearest(vectors)
    kept = vectors[cosines < threshold].astype(np.float64)
    products = kept @ kept.T - 2 * np.eye(len(kept))
    assert len(kept) and products.max() < threshold + 1e-12


def test_memory_does_not_grow_with_the_sets(tmp_path: Path) -> None:
    """Peak of anonymous memory while 20 times more rows are compared."""
    import subprocess
    import sys

    code = """
import sys, numpy as np
from opd.data import neighbours
n = int(sys.argv[1]); path = sys.argv[2]
array = np.lib.format.open_memmap(path, "w+", np.float32, (n, 256))
rng = np.random.default_rng(0)
for start in range(0, n, 1000):
    part = rng.normal(size=(1000, 256)).astype(np.float32)
    array[start:start + 1000] = part / np.linalg.norm(part, axis=1, keepdims=True)
array.flush(); del array
import faiss, tracemalloc
array = np.load(path, mmap_mode="r")
neighbours.OURS, neighbours.THEIRS = 256, 512
tracemalloc.start()
neighbours.nearest(array[:1000], array)
print(tracemalloc.get_traced_memory()[1])
"""

    def peak(rows: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", code, str(rows), str(tmp_path / f"{rows}.npy")],
            env={"PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    small, large = peak(1000), peak(20_000)
    assert large < 1.2 * small < 20 * 2**20


class Words(HTMLParser):
    """Text of a page, its tags, and every address that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.said += data


def test_page_shows_the_pairs_around_the_threshold_escaped_and_alone(tmp_path: Path) -> None:
    count, evil = 60, "<script>alert('x')</script> & $a<b$"
    ours = payload(tmp_path / "a", [f"ours {i} {evil}" for i in range(count)])
    theirs = payload(tmp_path / "b", [f"theirs {i}" for i in range(count)])
    rows = [(None, i, 0.5 + i / 300) for i in range(count)]
    found = neighbours_of(tmp_path / "n", ours, theirs, rows)
    inputs = {"prompts": ours, "against": theirs, "neighbours": found}
    _, removed, report = remove(tmp_path / "out", 0.6, inputs)
    text = without_script((tmp_path / "out" / "dedup.html").read_text())
    page = Words(text)
    assert "script" not in page.tags and evil in page.said
    assert not page.addresses and "url(" not in text and "@import" not in text
    assert 'name="viewport"' in text
    shown = [int(n) for n in re.findall(r"ours (\d+) <", page.said)]
    # 0.5 + 30 / 300 is 0.6: rows 30 to 49 are the nearest above, 29 to 10 the nearest below.
    assert len(removed) == 30
    assert shown == [*range(30, 50), *range(29, 9, -1)]
    assert page.said.count("theirs ") == 40
    for threshold, number in report["at"].items():
        assert f'<th scope="row">{threshold}</th><td>{number}</td>' in text
    assert text.count("<rect") == len(report["histogram"]["count"])


def test_histogram_counts_every_cosine_once(tmp_path: Path) -> None:
    cosines = [-0.01, 0.0, 0.019, 0.02, 0.58, 0.6, 1.0, 1.0 + 1e-7]
    made = dedup.similarities(np.array(cosines))["histogram"]
    assert made == {"from": [-0.02, 0.0, 0.02, 0.58, 0.6, 1.0], "count": [1, 2, 1, 1, 1, 2]}
    assert dedup.similarities(np.array([]))["histogram"] == {"from": [], "count": []}
    ours = payload(tmp_path / "a", [f"q{i}" for i in range(8)])
    theirs = payload(tmp_path / "b", ["x"])
    found = neighbours_of(tmp_path / "n", ours, theirs, [(None, 0, cosine) for cosine in cosines])
    remove(tmp_path / "o", 0.6, {"prompts": ours, "against": theirs, "neighbours": found})
    page = (tmp_path / "o" / "dedup.html").read_text()
    drawn = re.findall(r'<rect x="([\d.]+)" .*\n.* height="([\d.]+)"\n.*: (\d)</title>', page)
    assert [int(count) for _, _, count in drawn] == made["count"]
    assert [float(height) for _, height, _ in drawn] == [90, 180, 90, 90, 90, 180]
    # The threshold lies 0.62 / 1.04 along 620 pixels that begin at 10, where the bar of 0.6 begins.
    assert drawn[4][0] == "379.6" and '<line x1="379.6" x2="379.6"' in page


def test_a_page_without_a_comparison_says_so(tmp_path: Path) -> None:
    prompts = payload(tmp_path / "p", ["a"])
    found = neighbours_of(tmp_path / "n", prompts, prompts, [(None, None, None)])
    remove(tmp_path / "o", 0.6, {"prompts": prompts, "neighbours": found})
    assert "<p>Nothing was compared.</p>" in (tmp_path / "o" / "dedup.html").read_text()


def test_bad_input(tmp_path: Path) -> None:
    a, b = payload(tmp_path / "a", ["p", "q"]), payload(tmp_path / "b", ["x"])
    found = neighbours_of(tmp_path / "n", a, b, [(None, 0, 0.5), (None, 0, -0.5)])
    good = {"prompts": a, "against": b, "neighbours": found}
    for key, questions in (("prompts", ["p"]), ("prompts", ["p", "r"]), ("against", ["y"])):
        other = payload(tmp_path / key / "".join(questions), questions)
        with pytest.raises(UserError, match="belongs to other prompts"):
            dedup.run({"threshold": 0.6}, good | {key: other}, tmp_path)
    with pytest.raises(UserError, match="all 2 prompts are duplicates"):
        dedup.run({"threshold": -1.0}, good, tmp_path)
    sides = {
        "prompts": embedded(tmp_path / "u", a, np.eye(2)),
        "against": embedded(tmp_path / "v", b, np.eye(3)[:1]),
    }
    with pytest.raises(UserError, match="2 and of 3 dimensions"):
        neighbours.run({}, sides, tmp_path)
    assert not list(tmp_path.glob("*.parquet"))

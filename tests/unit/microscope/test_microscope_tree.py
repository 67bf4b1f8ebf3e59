"""The stages of the microscope on a student whose choices matter: what is sampled, what is found,
what becomes of a killed run, and of questions and teachers that cannot be measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import microscopy
from microscopy import SETTINGS, teacher
from probing import Inputs, logits, padded, with_swapped_tokens
from transformers import AutoTokenizer

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import PROMPTS
from opd.microscope import measure, pool, schemas, tree
from opd.microscope.path_index import PathIndex
from opd.microscope.scoring import compare
from opd.models.pairing import load_pair
from opd.models.sampling import Sampler

TEACHERS = [teacher("good"), teacher("bad")]


@pytest.fixture(scope="module")
def inputs(pointed: Inputs) -> Inputs:
    return pointed


def grown(inputs: Inputs, root: Path, cache: Path | None = None, **more: Any) -> Path:
    """A tree, by default of both teachers; its payload."""
    cfg = {**SETTINGS, "teachers": TEACHERS, **more}
    out = root / "tree"
    out.mkdir(parents=True)
    given = {name: inputs[name] for name in ("student", "prompts")}
    for one in cfg["teachers"]:
        if not one["own"]:
            given[f"teacher:{one['name']}"] = inputs[one["name"]]
    tree.run(cfg, given, out, cache or root / "cache")
    return out


def aligned(inputs: Inputs, payload: Path, out: Path, name: str = "good", **more: Any) -> Path:
    cfg = {
        **SETTINGS,
        "teacher": teacher(name),
        "min_children_visits": 20,
        "mode": "renormalise",
        "method": "reverse_kl",
        **more,
    }
    out.mkdir(parents=True)
    given = {"tree": payload, "student": inputs["student"], "prompts": inputs["prompts"]}
    if not cfg["teacher"]["own"]:
        given[f"teacher:{cfg['teacher']['name']}"] = inputs[name]
    measure.run(cfg, given, out)
    return out


def values(out: Path) -> dict[str, Any]:
    found = json.loads((out / "probe.json").read_text())["values"]
    return {name: one["value"] for name, one in found.items()}


@pytest.fixture(scope="module")
def grown_once(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grown(inputs, tmp_path_factory.mktemp("grown"))


def rows(path: Path, schema: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables.read(path, schema).to_pylist()
    return found


# Sampling


def test_targeted_rollouts_begin_with_their_prefix_and_top_up(
    inputs: Inputs, grown_once: Path
) -> None:
    paths = rows(grown_once / "paths.parquet", schemas.PATHS)
    children = rows(grown_once / "children.parquet", schemas.CHILDREN)
    questions = rows(grown_once / "questions.parquet", schemas.QUESTIONS)
    assert [one["reason"] for one in questions] == [None] * 4
    assert [one["correct"] for one in paths] == [True, True, False, False] * 4
    tokens = AutoTokenizer.from_pretrained(inputs["student"]).get_vocab()
    for number, one in enumerate(questions):
        index = PathIndex(grown_once / "rollouts" / f"{number:05d}")
        records = index.records
        assert len(records) == one["rollouts"] and one["targeted"] == (records["prefix"] > 0).sum()
        assert (records["prefix"][:60] == 0).all() and (records["prefix"][60:] > 0).all()
        mine = [p for p in paths if p["prompt_id"] == one["prompt_id"]]
        own, selected = [p["token_ids"] for p in mine], {p["rollout"] for p in mine}
        made = [index.rollout(i).tolist() for i in range(len(records))]
        for rollout, prefix in zip(made, records["prefix"].tolist(), strict=True):
            if prefix:  # a path up to a node, and a token
                assert any(rollout[: prefix - 1] == path[: prefix - 1] for path in own)
        # Every letter after nothing has what it lacked, and none more by targeted sampling alone.
        for letter in "abc":
            at_root = [made[i][0] == tokens[letter] for i in range(len(made))]
            initial, forced = (
                sum(hit and i not in selected for i, hit in enumerate(at_root[:60])),
                sum(hit and records["prefix"][i] == 1 for i, hit in enumerate(at_root) if i >= 60),
            )
            assert initial + forced == max(initial, 80)
            (counted,) = {
                (row["visits"], row["successes"])
                for row in children
                if row["prompt_id"] == one["prompt_id"]
                and row["depth"] == 0
                and row["token"] == tokens[letter]
            }
            assert counted[0] == initial + forced
            # The student's own chance after this letter.
            assert abs(counted[1] / counted[0] - microscopy.RIGHT[letter]) < 0.2


def test_whole_counts_pass_above(inputs: Inputs, tmp_path: Path, grown_once: Path) -> None:
    """Counted as the paper counts, what is forced below a node counts above it, too, and less is
    sampled."""
    whole = grown(inputs, tmp_path, counts="whole")
    counts = {
        name: rows(path / "questions.parquet", schemas.QUESTIONS)
        for name, path in (("whole", whole), ("unforced", grown_once))
    }
    total = {name: sum(one["targeted"] for one in found) for name, found in counts.items()}
    assert 0 < total["whole"] < total["unforced"]


def test_both_counts_share_one_tree(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grown as the paper grows it, to the byte, and then on; nothing is sampled twice."""
    whole = grown(inputs, tmp_path / "whole", counts="whole")
    asked: list[tuple[Any, ...]] = []
    sample = Sampler.sample

    def recorded(self: Sampler, requests: Any) -> Any:
        asked.extend((one.id, tuple(one.prefix), one.sample) for one in requests)
        return sample(self, requests)

    monkeypatch.setattr(Sampler, "sample", recorded)
    both = grown(inputs, tmp_path / "both", counts="both")
    assert len({*asked}) == len(asked)
    for name in ("children.parquet", "paths.parquet"):
        assert (both / name).read_bytes() == (whole / name).read_bytes()
    questions = rows(both / "questions.parquet", schemas.QUESTIONS)
    paths = rows(both / "paths.parquet", schemas.PATHS)
    counted = rows(both / "children-unforced.parquet", schemas.CHILDREN)
    tokens = AutoTokenizer.from_pretrained(inputs["student"]).get_vocab()
    for number, question in enumerate(questions):
        first, all_of_it = (
            PathIndex(payload / "rollouts" / f"{number:05d}") for payload in (whole, both)
        )
        before = len(first.records)
        assert (all_of_it.records[:before] == first.records).all()
        assert len(all_of_it.records) == question["rollouts"] > before
        made = [all_of_it.rollout(i).tolist() for i in range(len(all_of_it.records))]
        selected = {p["rollout"] for p in paths if p["prompt_id"] == question["prompt_id"]}
        for path in (p for p in paths if p["prompt_id"] == question["prompt_id"]):
            at = question["prompt_id"], path["path"]
            mine = [row for row in counted if (row["prompt_id"], row["path"]) == at]
            for row in mine:
                node, child = path["token_ids"][: row["depth"]], row["token"]
                free = [
                    r[: row["depth"] + 1] == [*node, child]
                    and forced <= row["depth"] + 1
                    and i not in selected
                    for i, (r, forced) in enumerate(
                        zip(made, all_of_it.records["prefix"].tolist(), strict=True)
                    )
                ]
                assert sum(free) == row["visits"]
                assert all_of_it.records["correct"][free].sum() == row["successes"]
            # Every letter was picked, so each has what N_min asks for by these counts, too.
            letters = {row["token"]: row["visits"] for row in mine if row["depth"] == 0}
            assert all(letters[tokens[letter]] >= SETTINGS["min_visits"] for letter in "abc")


def test_an_alignment_reads_either_counts(inputs: Inputs, tmp_path: Path) -> None:
    whole = grown(inputs, tmp_path / "whole", counts="whole")
    both = grown(inputs, tmp_path / "both", counts="both")
    published = aligned(inputs, whole, tmp_path / "published")
    main = aligned(inputs, both, tmp_path / "main")
    ours = aligned(inputs, both, tmp_path / "ours", reading="unforced")
    assert values(main) == values(published)
    assert values(ours)["teacher_advantage"] != values(main)["teacher_advantage"]
    counted = rows(both / "children-unforced.parquet", schemas.CHILDREN)
    visits = {(r["prompt_id"], r["path"], r["depth"], r["token"]): r["visits"] for r in counted}
    for row in rows(ours / "tokens.parquet", schemas.TOKENS):
        for child in row["children"]:
            at = row["prompt_id"], row["path"], row["depth"], child["token"]
            assert child["visits"] == visits.get(at, 0)


def test_a_second_teacher_needs_nothing_where_the_first_has_been(
    inputs: Inputs, tmp_path: Path
) -> None:
    same = [teacher("good"), teacher("good2")]
    with_both = {**inputs, "good2": inputs["good"]}
    report = json.loads((grown(with_both, tmp_path, teachers=same) / "report.json").read_text())
    assert report["targeted"]["good"] > 0 and report["targeted"]["good2"] == 0


def test_a_killed_run_goes_on(
    inputs: Inputs, grown_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the targeted rollouts, its journal cut within a line: the same payload, and only
    what is missing is sampled."""
    sampled: list[int] = []
    whole = Sampler.sample

    def counting(self: Sampler, requests: Any) -> Any:
        sampled.append(len(requests))
        if len(sampled) == 2 and not (tmp_path / "again").exists():
            whole(self, requests[: len(requests) // 2])
            raise KeyboardInterrupt
        return whole(self, requests)

    monkeypatch.setattr(Sampler, "sample", counting)
    with pytest.raises(KeyboardInterrupt):
        grown(inputs, tmp_path / "first", tmp_path / "cache")
    journal = sorted((tmp_path / "cache").rglob("*.jsonl"), key=lambda p: p.stat().st_size)[-1]
    journal.write_bytes(journal.read_bytes()[:-5])
    (tmp_path / "again").mkdir()
    made = grown(inputs, tmp_path / "again" / "run", tmp_path / "cache")
    expected = {p.relative_to(grown_once): p for p in grown_once.rglob("*") if p.is_file()}
    assert {p.relative_to(made) for p in made.rglob("*") if p.is_file()} == set(expected)
    for name, path in expected.items():
        assert (made / name).read_bytes() == path.read_bytes(), name


# What is found


def test_a_teacher_that_prefers_what_succeeds_scores_above_zero(
    inputs: Inputs, grown_once: Path, tmp_path: Path
) -> None:
    for name, sign in (("good", 1), ("bad", -1)):
        out = aligned(inputs, grown_once, tmp_path / name, name)
        at_letter = [
            row for row in rows(out / "tokens.parquet", schemas.TOKENS) if row["depth"] == 0
        ]
        assert len(at_letter) == 16  # four paths of four questions
        for row in at_letter:
            assert sign * row["alignment"] > 0.7
            assert abs(row["range"] - 0.8) < 0.25
            assert sign * row["advantage"] > 0.1
        found = values(out)
        assert found["questions"] == 4 and found["paths"] == 16
        assert sign * found["weighted_cosine"] > 0.2
        assert sign * found["teacher_advantage"] > 0.05
        assert rows(out / "left_out.parquet", schemas.LEFT_OUT) == []


def test_token_rows_are_what_the_models_say(
    inputs: Inputs, grown_once: Path, tmp_path: Path
) -> None:
    """Divergences and probabilities against each model run alone, without batches."""
    out = aligned(inputs, grown_once, tmp_path / "good")
    found = rows(out / "tokens.parquet", schemas.TOKENS)
    path = next(p for p in rows(grown_once / "paths.parquet", schemas.PATHS))
    tokenizer = AutoTokenizer.from_pretrained(inputs["student"])
    prompt = tokenizer("<user>1?<assistant>", add_special_tokens=False)["input_ids"]
    both = []
    for name in ("student", "good"):
        z = logits(inputs[name], [*prompt, *path["token_ids"]])[len(prompt) - 1 : -1]
        both.append(np.exp(z - z.max(-1, keepdims=True)))
    p, q = (one / one.sum(-1, keepdims=True) for one in both)
    mine = [r for r in found if (r["prompt_id"], r["path"]) == (path["prompt_id"], path["path"])]
    assert [r["token"] for r in mine] == path["token_ids"]
    assert "".join(r["text"] for r in mine[:3]) == tokenizer.decode(path["token_ids"][:3])
    m = (p + q) / 2
    expected = {
        "kl_nats": (p * np.log(p / q)).sum(-1),
        "js_nats": ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2,
        "l2": np.linalg.norm(p - q, axis=-1),
        "similarity": (p * q).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(q, axis=-1),
    }
    for name, numbers in expected.items():
        np.testing.assert_allclose([r[name] for r in mine], numbers, atol=1e-5)
    for depth, row in enumerate(mine):
        for child in row["children"]:
            assert child["student"] == pytest.approx(p[depth, child["token"]], abs=1e-5)
            assert child["teacher"] == pytest.approx(q[depth, child["token"]], abs=1e-5)
        likeliest = np.argsort(-q[depth])[: measure.TOP]
        assert {int(t) for t in likeliest} <= {child["token"] for child in row["children"]}


def test_the_same_model_and_prompt_have_no_ratio(inputs: Inputs, tmp_path: Path) -> None:
    pair = load_pair({}, inputs["student"], None)
    prompt, path = [5, 6], [1, 2, 3]
    at = np.array([2, 0, 1]), np.array([4, 5, 6])
    found = compare(pair, prompt, prompt, path, at, top=3)
    assert (found.log_p == found.log_q).all()
    assert (found.kl_nats == 0).all() and (found.l2 == 0).all()
    np.testing.assert_allclose(found.similarity, 1)
    # Another prompt, another distribution; and what was asked for is in the order asked.
    other = compare(pair, prompt, [7, 8], path, at)
    assert (other.kl_nats > 1e-6).all() and (other.log_p == found.log_p).all()
    z = logits(inputs["student"], [*prompt, *path])[1:4]
    expected = z - np.log(np.exp(z).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.log_p, expected[at], atol=1e-5)
    # A copy is another model with the same weights: read apart, and the same all the same.
    copy = load_pair({}, inputs["student"], shutil.copytree(inputs["student"], tmp_path / "copy"))
    assert (compare(copy, prompt, prompt, path, at).kl_nats == 0).all()


def test_rows_of_the_vocabulary_a_few_at_a_time(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = load_pair({}, inputs["student"], inputs["good"])
    args = (pair, [5, 6], [5, 6], [1, 2, 3, 4, 5], (np.array([4, 0, 3]), np.array([1, 2, 3])))
    whole = compare(*args, tau=0.01, top=2)
    monkeypatch.setattr("opd.microscope.scoring.CHUNK_ELEMENTS", 2 * pair.vocabulary)
    parts = compare(*args, tau=0.01, top=2)
    for name, one, other in zip(whole._fields, whole, parts, strict=True):
        for a, b in zip(*((x if name == "candidates" else [x]) for x in (one, other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=name)
    assert len(whole.candidates.depth) >= 5


def test_a_teacher_with_more_padding_is_read_alike(
    inputs: Inputs, grown_once: Path, tmp_path: Path
) -> None:
    rows_now = 64
    wide = {**inputs, "good": padded(inputs["good"], tmp_path / "wide", rows_now)}
    same = aligned(inputs, grown_once, tmp_path / "one")
    other = aligned(wide, grown_once, tmp_path / "other")
    a, b = values(same), values(other)
    assert a["cosine"] == pytest.approx(b["cosine"]) and a["nodes"] == b["nodes"]


def test_several_teachers_pooled(inputs: Inputs, grown_once: Path, tmp_path: Path) -> None:
    made = {
        f"of:{i}": aligned(inputs, grown_once, tmp_path / name, name)
        for i, name in enumerate(("good", "bad"))
    }
    out = tmp_path / "pooled"
    out.mkdir()
    pool.run({"names": ["good", "bad"]}, made, out)
    found = values(out)
    singles = [values(path) for path in made.values()]
    assert found["nodes"] == sum(one["nodes"] for one in singles)
    assert found["cosine"] == pytest.approx(np.mean([one["cosine"] for one in singles]))
    assert 0 <= found["p_welch_cosine"] <= 1 and 0 <= found["p_cluster_cosine"] <= 1
    tests = json.loads((out / "tests.json").read_text())
    assert tests["cosine"]["difference"] == pytest.approx(found["cosine_difference"])


# What cannot be measured


def test_questions_without_right_or_wrong_rollouts_are_reported(
    inputs: Inputs, tmp_path: Path
) -> None:
    """One whose answer is never given, among others; nothing else is lost."""
    mixed = {**inputs, "prompts": microscopy.questions(tmp_path / "prompts", "1x34")}
    payload = grown(mixed, tmp_path)
    questions = rows(payload / "questions.parquet", schemas.QUESTIONS)
    assert [one["reason"] for one in questions] == [
        None, "none of 60 rollouts is correct", None, None,
    ]  # fmt: skip
    assert questions[1]["rollouts"] == 60 and questions[1]["targeted"] == 0
    out = aligned(mixed, payload, tmp_path / "good")
    left = rows(out / "left_out.parquet", schemas.LEFT_OUT)
    assert left == [{"prompt_id": "q2", "path": None, "reason": "none of 60 rollouts is correct"}]
    assert values(out)["questions"] == 3


def test_too_few_visits_are_reported_path_by_path(
    inputs: Inputs, grown_once: Path, tmp_path: Path
) -> None:
    out = aligned(inputs, grown_once, tmp_path / "good", min_children_visits=5000)
    left = rows(out / "left_out.parquet", schemas.LEFT_OUT)
    assert len(left) == 16 and "two children of 5000 visits" in left[0]["reason"]
    assert values(out) == {} and rows(out / "tokens.parquet", schemas.TOKENS) == []


def test_a_teacher_with_another_tokenizer_is_reported_and_the_other_goes_on(
    inputs: Inputs, tmp_path: Path
) -> None:
    foreign = with_swapped_tokens(inputs["good"], tmp_path / "foreign", "a", "b")
    mixed = {**inputs, "foreign": foreign}
    payload = grown(mixed, tmp_path, teachers=[teacher("foreign"), teacher("bad")])
    report = json.loads((payload / "report.json").read_text())
    (left,) = report["left_out"]
    assert left["teacher"] == "foreign" and "different tokenizers" in left["reason"]
    assert report["targeted"]["foreign"] == 0 and report["targeted"]["bad"] > 0
    out = aligned(mixed, payload, tmp_path / "align", "foreign")
    reasons = rows(out / "left_out.parquet", schemas.LEFT_OUT)
    assert [one["prompt_id"] for one in reasons] == ["q1", "q2", "q3", "q4"]
    assert all("different tokenizers" in one["reason"] for one in reasons)
    assert values(out) == {}
    assert values(aligned(mixed, payload, tmp_path / "bad", "bad"))["questions"] == 4


@pytest.mark.parametrize("broken", ["template", "weights", "half of the weights"])
def test_a_teacher_that_cannot_be_loaded_is_reported_and_the_other_goes_on(
    inputs: Inputs, tmp_path: Path, broken: str
) -> None:
    copy = shutil.copytree(inputs["good"], tmp_path / "copy")
    (weights,) = copy.glob("*.safetensors")
    if broken == "weights":
        weights.unlink()
    elif broken == "half of the weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        tokenizer = AutoTokenizer.from_pretrained(copy)
        tokenizer.chat_template = None
        (copy / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(copy)
    mixed = {**inputs, "broken": copy}
    payload = grown(mixed, tmp_path, teachers=[teacher("broken"), teacher("bad")])
    report = json.loads((payload / "report.json").read_text())
    reason = "the teacher's weights or tokenizer cannot be used"
    assert report["left_out"] == [{"teacher": "broken", "reason": reason}]
    assert report["targeted"]["bad"] > 0
    out = aligned(mixed, payload, tmp_path / "align", "broken")
    reasons = rows(out / "left_out.parquet", schemas.LEFT_OUT)
    assert [one["reason"] for one in reasons] == [reason] * 4 and values(out) == {}


def test_no_question_at_all_is_an_error(inputs: Inputs, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    tables.write(empty / "prompts.parquet", [], PROMPTS)
    with pytest.raises(UserError, match="there are no prompts"):
        grown({**inputs, "prompts": empty}, tmp_path)

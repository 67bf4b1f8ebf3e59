"""``opd align`` on two teachers, of which one points towards what succeeds; and what it refuses."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from probing import Inputs, with_swapped_tokens

from opd.cli import main
from opd.core import tables
from opd.data.schemas import PROMPTS
from opd.microscope.command import called

USUAL = ["--grader", "world", "--max-new-tokens", "6", "--rollouts", "60", "--min-visits", "40"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """One question for each digit; the last has an answer that is never given."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"{n}", "prompt": f"{n}?", "answer": a} for n, a in enumerate("123x", 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(pointed: Inputs, questions: Path, *more: str) -> None:
    teachers = [str(pointed["bad"]), str(pointed["good"])]
    asked = ["align", "--student", str(pointed["student"]), "--teacher", *teachers]
    main.main([*asked, "--questions", str(questions), *USUAL, *more])


def test_the_better_teacher_comes_first(
    pointed: Inputs, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(
        pointed, questions, "--out", str(out), "--demonstrate", "--max-teacher-prompt-tokens", "400"
    )
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("|")][2:]
    names = [row.split("|")[1].strip() for row in rows]
    assert {*names} == {"good", "bad", "itself, with a right response"}
    assert names.index("good") < names.index("bad")
    good, bad = (rows[names.index(name)].split("|")[2].split()[0] for name in ("good", "bad"))
    assert float(good) > 0.05 and float(bad) < -0.05
    assert "4 questions, of which 3 have right and wrong rollouts" in said
    assert "4: none of 60 rollouts is correct" in said
    pages = sorted(out.glob("teacher-*/page.html"))
    assert len(pages) == 3 and all(str(page) in said for page in pages)
    assert (out / "align.md").read_text() == said
    # Again: what was sampled is found, and the same comes out.
    journals = {p: p.stat().st_mtime_ns for p in out.rglob("*.jsonl")}
    run(
        pointed, questions, "--out", str(out), "--demonstrate", "--max-teacher-prompt-tokens", "400"
    )
    assert capsys.readouterr().out == said
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.jsonl")} == journals


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("results/mini/models/small/s0/payload", "small/s0"),
        ("/far/results/mini/models/small-rl@20/s1/payload", "small-rl@20/s1"),
        ("results/mini/models/fetched", "fetched"),
        ("/cache/models--Qwen--Qwen3-0.6B/snapshots/0123abcd", "Qwen/Qwen3-0.6B"),
        ("../models/mine", "mine"),
    ],
)
def test_models_are_called_as_people_call_them(path: str, name: str) -> None:
    assert called(Path(path)) == name


def test_a_link_to_the_store_gives_no_digest_for_a_name(tmp_path: Path) -> None:
    made = tmp_path / "results" / "mini" / "models" / "small" / "s0"
    entry = tmp_path / "results" / ".store" / ("0" * 64)
    for folder in (made, entry):
        folder.mkdir(parents=True)
    (made / "payload").symlink_to(entry, target_is_directory=True)
    assert called(made / "payload") == "small/s0"


def test_a_teacher_with_another_tokenizer_is_told_and_the_other_goes_on(
    pointed: Inputs, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = with_swapped_tokens(pointed["bad"], tmp_path / "foreign", "a", "b")
    run({**pointed, "bad": foreign}, questions, "--n", "2")
    said = capsys.readouterr().out
    assert "foreign, all: student and teacher have different tokenizers" in said
    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("|")}
    assert "| - | - |" in rows["foreign"] and "[" in rows["good"]


@pytest.mark.parametrize("command", ["align", "preflight"])
def test_questions_are_asked_in_the_template(
    command: str, pointed: Inputs, questions: Path, tmp_path: Path
) -> None:
    """Also where a preflight goes on with the alignment."""
    out = tmp_path / "out"
    options = ["--student", str(pointed["student"]), "--teacher", str(pointed["good"])]
    options += ["--questions", str(questions), "--out", str(out), "--template", "{question}?!"]
    few = ["--grader", "world", "--max-new-tokens", "6", "--n", "2"]
    if command == "align":
        main.main([command, *options, *few, "--rollouts", "20", "--min-visits", "10"])
    else:
        main.main([command, *options, *few, "--samples", "2", "--align"])
    made = out if command == "align" else out / "align"
    rows = tables.read(made / "questions" / "prompts.parquet", PROMPTS).to_pylist()
    assert [row["prompt"] for row in rows] == ["1?!", "2?!"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--out": __file__}, "it is a file, where a folder is to be"),
        ({"--grader": "digit"}, "unknown grader 'digit'"),
        ({"--questions": "missing.jsonl"}, "cannot be read"),
        ({"--student": "missing"}, "'missing' names no model"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sampled(
    change: dict[str, str],
    message: str,
    pointed: Inputs,
    questions: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "--student": str(pointed["student"]),
        "--teacher": str(pointed["good"]),
        "--questions": str(questions),
        "--grader": "world",
    }
    with pytest.raises(SystemExit) as stopped:
        main.main(["align", *(part for one in (given | change).items() for part in one)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_question_without_an_answer_is_refused(
    pointed: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "1?"}) + "\n")
    with pytest.raises(SystemExit):
        run(pointed, path)
    assert "it has no answer" in capsys.readouterr().err

"""``opd preflight``: the outlook's rules on hand-made indicators, and the command on two models."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from probing import (
    Inputs,
    make,
    padded,
    rendered,
    rows_of,
    with_swapped_tokens,
    with_template,
    write_rollouts,
)

from opd.cli import main
from opd.losses.spec import BIASED
from opd.models import init, sizing
from opd.probes import pair, preflight
from opd.probes.outlook import advice, outlook
from opd.stages import run
from opd.stats.draws import read_draws

USUAL = ["--n", "6", "--samples", "3", "--max-new-tokens", "24", "--k", "4"]


def found(value: float | None, low: float | None = None, high: float | None = None) -> Any:
    return {
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
        "n": 9,
    }


# The paper's successful pair, as far as it is known.
SUCCESS = {
    "overlap_ratio": found(0.72),
    "overlap_mass_student": found(0.98),
    "overlap_mass_teacher": found(0.97),
    "kl_nats": found(0.28),
    "entropy_student_nats": found(0.5),
    "entropy_teacher_nats": found(0.4),
    "truncation_ratio": found(0.1),
    "share_difference": found(0.2, 0.1, 0.3),
    "advantage_depth1": found(0.37, 0.3, 0.44),
    "advantage_depth4": found(0.02, -0.03, 0.07),
    "advantage_fall": found(0.35, 0.27, 0.42),
    "auroc": found(0.73, 0.68, 0.78),
}


@pytest.mark.parametrize(
    ("change", "expected", "because"),
    [
        ({}, "likely to help", "does better than the student"),
        # One that was reinforced, taught by what it was before: it does worse, and is imitated.
        ({"share_difference": found(-0.2, -0.3, -0.1)}, "likely to harm", "solves fewer"),
        ({"advantage_depth1": found(-0.1, -0.2, -0.01)}, "likely to harm", "own first tokens"),
        # Another language: whatever it knows.
        ({"overlap_mass_student": found(0.63)}, "unlikely to help", "mass 0.63"),
        ({"overlap_mass_teacher": found(0.5)}, "unlikely to help", "mass 0.50"),
        # Random weights: equal chances of 260 tokens have 5.56 nats.
        (
            {"entropy_teacher_nats": found(5.5), "kl_nats": found(0.1)},
            "unlikely to help",
            "learnt nothing",
        ),
        ({"entropy_teacher_nats": found(4.9)}, "likely to help", "does better"),
        # The same model, or one of the same pipeline that is no better.
        ({"kl_nats": found(0.004)}, "unlikely to help", "0.0040 nats"),
        ({"advantage_depth1": found(0.0, -0.03, 0.03)}, "unlikely to help", "nothing new"),
        ({"kl_nats": found(0.0), "overlap_mass_student": found(0.6)}, "unlikely to help", "0.0000"),
        # What is not known.
        ({"advantage_depth1": found(0.1, -0.05, 0.25)}, "unclear", "cannot be told"),
        ({"overlap_mass_student": found(0.85)}, "unclear", "only part"),
        ({"auroc": found(0.6, 0.48, 0.7)}, "unclear", "does not tell right"),
        ({"auroc": found(None)}, "likely to help", "does better"),
        ({"advantage_depth1": None, "advantage_depth4": None}, "unclear", "not measured"),
        # Deeper ones do not count, but where the first is missing.
        ({"advantage_depth4": found(-0.2, -0.3, -0.1)}, "likely to help", "does better"),
        ({"advantage_depth1": None}, "unclear", "cannot be told"),
        # Harm comes first.
        (
            {"share_difference": found(-0.2, -0.3, -0.1), "overlap_mass_student": found(0.5)},
            "likely to harm",
            "solves fewer",
        ),
    ],
)
def test_rules_of_the_outlook(change: dict[str, Any], expected: str, because: str) -> None:
    values = {name: one for name, one in (SUCCESS | change).items() if one is not None}
    assert outlook(values, tokens=260)[0] == expected
    assert because in outlook(values, tokens=260)[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["Keep responses short"]),
        ({"advantage_fall": found(0.05, -0.02, 0.1)}, []),
        ({"overlap_mass_student": found(0.7)}, ["Cold start", "Keep responses short"]),
        ({"advantage_depth1": found(0.01, 0, 0.03)}, ["new knowledge", "Keep responses short"]),
        # Nothing else would change it where the teacher has nothing to teach.
        ({"kl_nats": found(0.001), "truncation_ratio": found(0.5)}, ["new knowledge"]),
        (
            {"entropy_teacher_nats": found(5.5), "overlap_mass_student": found(0.7)},
            ["that has been trained"],
        ),
        ({"truncation_ratio": found(0.5)}, ["Keep responses short", "Allow longer responses"]),
        (
            {"advantage_depth1": found(0.1, -0.1, 0.3), "advantage_fall": found(0, -1, 1)},
            ["Measure more prompts"],
        ),
    ],
)
def test_what_to_try_next(change: dict[str, Any], words: list[str]) -> None:
    whole = {
        "values": SUCCESS | change,
        "tokens": 260,
        "templates": {"differing": 0},
        "thinking": {"student": "off", "teacher": "off"},
    }
    given = advice(whole)
    assert len(given) == len(words)
    assert all(word in one for word, one in zip(words, given, strict=True))
    other = whole | {
        "values": SUCCESS,
        "templates": {"differing": 2},
        "thinking": {"student": "on", "teacher": "off"},
    }
    first, second = advice(other)[:2]
    assert "thinking mode (it is on for the student, off for the teacher)" in first
    assert "the teacher's own format" in second


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Two models and a file with lines of JSON."""
    root = tmp_path_factory.mktemp("preflight")
    made = make(root, 10)
    rows = rows_of(made["prompts"])
    made["lines"] = root / "questions.jsonl"
    made["lines"].write_text(
        "\n".join(json.dumps({"question": r["question"], "answer": r["answer"]}) for r in rows)
    )
    return made


def command(inputs: Inputs, *more: str) -> None:
    given = ["--student", str(inputs["student"]), "--teacher", str(inputs["teacher"])]
    main.main(["preflight", *given, "--questions", str(inputs["lines"]), *USUAL, *more])


def test_the_command_reports_a_pair(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are those of the probe ``pair`` on the same rollouts, on the first prompts of the
    file; once more, it samples nothing."""
    out = tmp_path / "out"
    command(inputs, "--grader", "world", "--out", str(out))
    text = capsys.readouterr().out
    assert text == (out / "preflight.md").read_text()
    report = json.loads((out / "preflight.json").read_text())
    assert (report["prompts"], report["rollouts"]) == (6, 18)
    assert f"## Outlook: {report['outlook']}" in text
    assert max(map(len, text.splitlines())) < 110
    journals = {p: p.read_bytes() for p in out.glob(".cache/responses/*/*.jsonl")}
    # One of the student's rollouts, one of the teacher's, one for each depth.
    assert len(journals) == 2 + len(report["depths"]) > 3
    probe = json.loads((out / "probe.json").read_text())
    assert probe["values"] == report["values"]
    drawn = read_draws(out / "draws.parquet")
    assert drawn["share_difference"] == pytest.approx(
        drawn["share_teacher"] - drawn["share_student"]
    )
    prefixes = [depth["prefix"] for depth in report["depths"]]
    assert prefixes == sorted(set(prefixes)) and prefixes[0] >= 1
    assert all(drawn[depth["name"]].shape == (1000,) for depth in report["depths"])

    from opd.models.sampling import Request, Sampler

    cfg = {"max_new_tokens": 24, "max_prompt_tokens": 64, "seed": 0}
    prompts = rows_of(inputs["prompts"])[:6]
    requests = [
        Request(str(i + 1), rendered(inputs["student"], row["question"]), sample)
        for i, row in enumerate(prompts)
        for sample in range(3)
    ]
    rollouts = [
        {
            "prompt_id": request.id,
            "sample": request.sample,
            "prompt": prompts[int(request.id) - 1]["question"],
            "response": response.text,
            "token_ids": response.token_ids,
        }
        for request, response in zip(
            requests, Sampler(inputs["student"], cfg).sample(requests), strict=True
        )
    ]
    deepest = int(np.percentile([len(row["token_ids"]) for row in rollouts], 25)) - 1
    assert prefixes[-1] == max(1, deepest)
    assert all(d["rollouts"] == sum(len(r["token_ids"]) > deepest for r in rollouts)
               for d in report["depths"])  # fmt: skip
    own = {**inputs, "generations": write_rollouts(tmp_path / "g", rollouts)}
    (tmp_path / "pair").mkdir()
    pair.run({"metrics_k": 4, "position_bin": 8, "temperature": 1.0}, own, tmp_path / "pair")
    reference = json.loads((tmp_path / "pair" / "probe.json").read_text())["values"]
    for name in ("overlap_ratio", "overlap_mass_teacher", "kl_nats", "entropy_gap_nats"):
        for bound in ("value", "low", "high"):
            assert report["values"][name][bound] == pytest.approx(reference[name][bound], rel=1e-5)

    command(inputs, "--grader", "world", "--out", str(out))
    assert capsys.readouterr().out == text
    assert {p: p.read_bytes() for p in out.glob(".cache/responses/*/*.jsonl")} == journals


def test_without_a_grader_only_the_distributions_are_compared(
    inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {**inputs, "teacher": inputs["student"]}
    command(own)
    text = capsys.readouterr().out
    assert "## Outlook: unlikely to help" in text and "KL 0.0000 nats" in text
    assert "share right" not in text and "AUROC of" not in text
    assert "chat templates: both render these prompts alike" in text
    assert "tokenizer: the same, 54 tokens" in text
    command(own, "--temperature", "0.7")
    assert "KL 0.0000 nats" in capsys.readouterr().out


def test_what_a_student_learns_from_itself_is_checked(inputs: Inputs, tmp_path: Path) -> None:
    """Nothing at one temperature; with another for the teacher every loss but the one on tokens
    that only one of two equal sets holds, and the report says so."""
    names = ["student", "teacher", "prompts"]
    cfg = {
        "n": 2, "samples": 1, "metrics_k": 4, "temperature": 0.7, "max_new_tokens": 8,
        "max_prompt_tokens": 32, "seed": 0,
    }  # fmt: skip
    for folder, more in (("same", {}), ("other", {"teacher_temperature": 1.0})):
        (tmp_path / folder).mkdir()
        paths = {name: inputs[name] for name in names}
        preflight.run(cfg | more, paths, tmp_path / folder, tmp_path / "cache")
    same, other = (
        json.loads((tmp_path / f / "preflight.json").read_text())["own_teacher"]
        for f in ("same", "other")
    )
    assert max(loss for loss, _ in same.values()) < 1e-5
    assert {name for name, (_, gradient) in same.items() if gradient > 1e-5} == {*BIASED}
    assert {n for n, (loss, _) in other.items() if loss < 1e-3} == {"symmetric_difference"}
    text = " ".join((tmp_path / "same" / "preflight.md").read_text().split())
    assert (
        "the loss of every preset would be 0, and its gradient, but for the presets biased" in text
    )
    assert "NOT 0" in (tmp_path / "other" / "preflight.md").read_text()


def test_what_training_would_refuse_is_shown(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """End tokens that differ; and special tokens of the teacher alone, which it accepts."""
    from transformers import AutoTokenizer, GenerationConfig

    teacher = padded(inputs["teacher"], tmp_path / "teacher", 60)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["<\x1b[2J>"], special_tokens=True)
    tokenizer.save_pretrained(teacher)
    GenerationConfig(eos_token_id=[1, 54]).save_pretrained(teacher)
    command({**inputs, "teacher": teacher})
    text = " ".join(capsys.readouterr().out.split())
    assert "- special tokens of the teacher alone, never compared: ids 54" in text
    # The name of a token cannot steer the terminal.
    ends = "with <eos> or <⟨U+001B⟩[2J> for the teacher"
    assert f"responses end with <eos> for the student, {ends}" in text
    assert "- training would refuse this pair: end_tokens: responses end with <eos> for" in text
    assert "- context: 512 tokens of the student, 512 of the teacher" in text


def test_templates_and_heads_that_differ_are_shown(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher's own format, its thinking mode, and the padding of its head."""
    template = init.CHAT_TEMPLATE.replace("<assistant>{%", "<assistant><think>{%")
    wide = padded(inputs["teacher"], tmp_path / "wide", 80)
    teacher = with_template(wide, tmp_path / "teacher", template)
    command({**inputs, "teacher": teacher}, "--out", str(tmp_path / "out"))
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "preflight.json").read_text())
    question = rows_of(inputs["prompts"])[0]["question"]
    assert report["templates"]["differing"] == 6
    assert report["templates"]["first"] == {
        "student": f"<user>{question}<assistant>",
        "teacher": f"<user>{question}<assistant><think>",
    }
    assert report["thinking"] == {"student": "left to the model", "teacher": "on"}
    assert report["embedding_rows"] == {"student": 54, "teacher": 80}
    assert "54 rows of the student, 80 of the teacher (padding, which training cuts)" in text
    assert "6 of 6 prompts differ" in text and "they differ" in text
    assert "- Give both the same thinking mode" in text and "- Ask in the teacher's own" in text


@pytest.mark.parametrize(
    ("change", "lines", "more", "line"),
    [
        ({"teacher": "gone"}, None, [], "gone: no such folder; give the folder of a model"),
        ({"teacher": "links"}, None, [], "links/x: it is a link that leads out of its folder; put"),
        ({"lines": "gone.jsonl"}, None, [], "gone.jsonl: it cannot be read"),
        ({"lines": "gone.parquet"}, None, [], "gone.parquet: no such file"),
        ({}, "", [], "lines.jsonl: there are no prompts"),
        (
            {},
            '{"question": "1+1="}\n{"answer": 2}',
            [],
            "lines.jsonl: row 1: there is no question in it; it has answer; call the column with",
        ),
        ({}, "1+1=", [], "lines.jsonl:1: not JSON"),
        ({}, '{"prompt": [{"role": "tool"}]}', [], "row 0: 'prompt' holds tool; expected user"),
        ({}, '{"question": "1+1="}', ["--grader", "world"], "lines.jsonl: prompt '1': it has no"),
        ({}, None, ["--grader", "guess"], "unknown grader 'guess'"),
        ({}, None, ["--k", "55"], "k is 55, but student and teacher have only 54 tokens; use at"),
        ({}, None, ["--chat-template", '["x"]'], "--chat-template: not a JSON object"),
    ],
)
def test_bad_input_is_one_line(
    inputs: Inputs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    lines: str | None,
    more: list[str],
    line: str,
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x").symlink_to("/etc")
    given = {**inputs, **{name: tmp_path / path for name, path in change.items()}}
    if lines is not None:
        given["lines"] = tmp_path / "lines.jsonl"
        given["lines"].write_text(lines)
    with pytest.raises(SystemExit) as ended:
        command(given, *more)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and line in printed.err and printed.out == ""
    assert "sampling" not in printed.err


def test_models_that_do_not_belong_together(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named before anything is sampled."""
    other = with_swapped_tokens(inputs["teacher"], tmp_path / "other", "4", "7")
    narrow = padded(inputs["teacher"], tmp_path / "narrow", 20)
    for teacher, line in (
        (other, "different tokenizers: token 9 is '4' for the student and '7' for the teacher"),
        (narrow, "54 embeddings of the student and 20 of the teacher do not hold"),
    ):
        with pytest.raises(SystemExit):
            command({**inputs, "teacher": teacher}, "--out", str(tmp_path / "out"))
        assert line in capsys.readouterr().err
        assert not list(tmp_path.glob("out/**/*.jsonl"))
        assert not list(tmp_path.glob("out/preflight*"))


def test_sizes_end_in_minutes_unless_they_are_asked_for() -> None:
    """Tokens times the cost of one, by hand: 30 of a question, and a token that is read costs a
    quarter of one that is sampled."""
    speed = sizing.Speed(1.2e-10, 0.3e-10)

    def cost(parameters: float) -> float:
        return (parameters + sizing.BESIDES) * 1.2e-10 / 60

    def tokens(most: int, graded: bool = True) -> float:
        """Of a response of the student, in such as are sampled."""
        both = 2 * most / 4 + 2 * 30 / 4  # read what the student answers
        if not graded:
            return most + 30 / 4 + both
        # The student, the teacher, and 15/16 + 3/4 + 1/2 + 0 of it from the four depths.
        begun = (1 / 16 + 1 / 4 + 1 / 2 + 1) * most / 4
        return (1 + 1 + 2.1875) * most + 6 * 30 / 4 + begun + both

    def sized(
        asked: Mapping[str, int | None], rows: int, size: float, room: float, graded: bool
    ) -> tuple[dict[str, int], float]:
        return preflight.sized(asked, rows, 30, [int(size)] * 2, room, speed, graded)

    open_ = {"n": None, "samples": None, "max_new_tokens": None}
    sizes, minutes = sized(open_, 100, 5e6, math.inf, graded=True)
    assert sizes == {"n": 12, "samples": 2, "max_new_tokens": 256}
    assert minutes == pytest.approx(12 * 2 * tokens(256) * cost(5e6))
    assert minutes < 3 < 8 * minutes
    sizes, minutes = sized(open_, 100, 135e6, math.inf, graded=True)
    assert sizes == {"n": 6, "samples": 2, "max_new_tokens": 128} and minutes < 3
    # What is asked for stays; nothing exceeds context or file; without a grader no teacher samples.
    asked = {**open_, "max_new_tokens": 7168}
    sizes, minutes = sized(asked, 100, 1e9, math.inf, graded=True)
    assert sizes == {"n": 4, "samples": 2, "max_new_tokens": 7168} and minutes > 3
    sizes, minutes = sized(open_, 6, 1e4, 100, graded=False)
    assert sizes == {"n": 6, "samples": 4, "max_new_tokens": 100}
    assert minutes == pytest.approx(6 * 4 * tokens(100, graded=False) * cost(1e4))


def test_a_short_context_is_not_left_to_the_prompts(
    inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of models that read 512 tokens, where prompts may have 1,024."""
    cfg = {"max_prompt_tokens": 1024, "n": 2, "samples": 1}
    preflight._estimated(cfg, ["1+1="] * 6, inputs["student"], inputs["teacher"])
    assert (cfg["n"], cfg["max_new_tokens"]) == (2, 256)
    assert "2 questions x 1 responses of up to 256 tokens" in capsys.readouterr().err


def test_a_template_asks_and_the_share_of_answers_is_told(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command(inputs, "--grader", "world", "--template", "{question}#", "--out", str(out))
    printed = capsys.readouterr()
    assert printed.err.startswith("6 questions x 3 responses of up to 24 tokens: less than a min")
    first = rows_of(inputs["prompts"])[0]["question"]
    assert preflight.read_questions(inputs["lines"], 1, None, "so: {question}")[0]["prompt"] == (
        f"so: {first}"
    )
    # A question that is asked in the template already is asked in it once.
    once = tmp_path / "asked.jsonl"
    once.write_text(json.dumps({"question": f"so: {first}", "answer": "1"}) + "\n")
    assert preflight.read_questions(once, 1, None, "so: {question}")[0]["prompt"] == f"so: {first}"
    report = json.loads((out / "preflight.json").read_text())
    text = " ".join(printed.out.split())
    told = [round(100 * report["values"][f"answered_{who}"]["value"]) for who in inputs if who in
            ("student", "teacher")]  # fmt: skip
    assert (
        f"answers: {told[0]} % of the student's responses and {told[1]} % of the teacher's" in text
    )
    assert ("ask for it (template: boxed)" in text) is (min(told) < 50)
    rows = [
        {"prompt_id": str(i // 2), "response": r} for i, r in enumerate(("#1", "x", "#", "2#3"))
    ]
    values = preflight._with_answer("world", student=rows, teacher=rows[1:3])
    assert [values[f"answered_{who}"].value for who in ("student", "teacher")] == [0.5, 0.0]
    with pytest.raises(SystemExit):
        command(inputs, "--template", "no place")
    assert "the template has no {question}" in capsys.readouterr().err


def test_as_a_stage(inputs: Inputs, tmp_path: Path) -> None:
    names = ["student", "teacher", "prompts"]
    cfg = {
        "inputs": names, "seed": 0, "n": 4, "samples": 2, "metrics_k": 4, "temperature": 1.0,
        "max_new_tokens": 12, "max_prompt_tokens": 32, "grader": "world",
    }  # fmt: skip
    where = (tmp_path / "made" / "digest.json", {}, tmp_path / "store")
    assert run.run_stage("indicators", cfg, [inputs[name] for name in names], *where)
    made = {path.name for path in (tmp_path / "made" / "payload").iterdir()}
    assert made == {"preflight.json", "preflight.md", "probe.json", "draws.parquet"}
    assert list(tmp_path.glob("store/.cache/responses/*/*.jsonl"))


def test_questions_are_read_as_people_have_them(tmp_path: Path) -> None:
    """An array, a table, lines; with a system prompt and a number as the answer."""
    from opd.probes.preflight import read_questions

    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1="}]
    (tmp_path / "q.json").write_text(json.dumps([{"prompt": chat, "answer": 2}, {"question": "b"}]))
    (tmp_path / "q.csv").write_text("question,answer,prompt\n1+1=,2,say 1+1=\n")
    (tmp_path / "q.txt").write_text('\n{"question": "1+1=", "answer": 2.0}\n\n')
    (tmp_path / "q.jsonl").write_text('{"problem": "1+1=", "ground_truth": 0, "answer": ""}')
    read = {
        path.suffix: [
            (row["question"], row["prompt"], row["answer"], row["turns"])
            for row in read_questions(path)
        ]
        for path in tmp_path.iterdir()
    }
    assert read == {
        ".json": [("1+1=", "1+1=", "2", chat[:1]), ("b", "b", "", None)],
        ".csv": [("1+1=", "say 1+1=", "2", None)],
        ".txt": [("1+1=", "1+1=", "2", None)],
        ".jsonl": [("1+1=", "1+1=", "0", None)],
    }

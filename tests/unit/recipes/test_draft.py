"""The first config of a pair: the planner takes it, and its sizes follow from the models."""

import json
import math
from pathlib import Path

import pytest
from pairs import pair, questions

from opd.cli import main
from opd.data import templates
from opd.models import sizing
from opd.plan.artifacts import plan
from opd.plan.outputs import exhibits
from opd.recipes import draft, resolve
from opd.recipes.config import Config

pytestmark = pytest.mark.unit
ASKS = " Please reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a stated speed: sizes follow from it."""
    timed = sizing.speed

    def speed(device: str, devices: int) -> sizing.Speed:
        return timed(device, devices) if device == "cuda" else sizing.Speed(7e-11, 3e-11)

    monkeypatch.setattr(sizing, "speed", speed)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair(tmp_path_factory.mktemp("pair"))


def drafted(
    models: tuple[Path, Path], asked: Path, out: Path, *more: str
) -> tuple[Config, dict[str, object]]:
    given = ["--student", str(models[0]), "--teacher", str(models[1]), "--questions", str(asked)]
    main.main(["init", *given, "--out", str(out), *more])
    config = resolve.read([out])
    measured = plan(config, {})
    return config, {**measured, **exhibits(config, measured)}


@pytest.mark.parametrize("scale", [*draft.SCALES])
def test_the_planner_takes_what_is_written(
    models: tuple[Path, Path],
    scale: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = questions(tmp_path / "q.jsonl").relative_to(tmp_path)
    config, planned = drafted(models, asked, tmp_path / "sub" / "mine.yaml", "--scale", scale)
    assert config.name == "mine"
    shown = {"figures/training-distill", "tables/pair", "tables/outlook-outlook", "report"}
    assert shown | {"tables/responses-pair", "models/distilled/s0"} <= planned.keys()
    text = (tmp_path / "sub" / "mine.yaml").read_text()
    schema = "# yaml-language-server: $schema=../workflow/schemas/config.schema.json\n"
    assert text.startswith(schema)
    count = 260 * 256 + 5 * (2 * 256 * 64 * (4 + 2) + 2 * 64 + 3 * 256 * 1024 + 2 * 256) + 256
    assert f"# {count:,} parameters of the student, {count:,} of the teacher" in text
    run = config.models["distilled"].distill
    assert run is not None
    # <|user|>, the longest question in its template, <|end|>, <|assistant|>: a token for each byte.
    longest = (
        3 + len("23 + 529 = Please reason step by step, and put your final answer within ") + 8
    )
    assert run.max_prompt_tokens == 16 * math.ceil(longest / 16)
    assert run.max_prompt_tokens + run.max_new_tokens <= 1024
    sizes = draft.SCALES[scale].sizes
    assert run.steps <= sizes.steps and run.prompts_per_step <= 24 - 6
    sample = config.prompts["held-out"].sample
    assert sample is not None and sample.n == 6
    printed = capsys.readouterr().out.splitlines()
    assert (
        "note: it reads question from the column problem, answer from the column answer" in printed
    )
    preflight, run_it, read_it = printed[printed.index("") + 1 :]
    assert preflight.startswith("opd preflight ") and run_it.startswith("snakemake ")
    assert "--template boxed --grader math_verify" in preflight
    assert "results/mine/report.html" in read_it


@pytest.mark.parametrize(("scale", "left"), [("laptop", 40), ("one-gpu", 41)])
def test_a_few_questions_that_are_much_longer_are_left_out_on_a_laptop(
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scale: str,
    left: int,
) -> None:
    asked = questions(tmp_path / "q.jsonl", rows=40)
    usual = max(len(json.loads(line)["problem"]) for line in asked.read_text().splitlines())
    with asked.open("a") as file:
        file.write(json.dumps({"problem": "1 + " * 50 + "1 =", "answer": 51}) + "\n")
    config, _ = drafted(models, asked, tmp_path / "mine.yaml", "--scale", scale)
    for name in ("questions", "held-out"):
        assert config.prompts[name].max_chars == (usual if left == 40 else None)
    note = f"note: 1 of the questions are left out, those of more than {usual} characters"
    assert (note in capsys.readouterr().out) is (left == 40)
    run = config.models["distilled"].distill
    assert run is not None and (run.max_prompt_tokens < 200) is (left == 40)


@pytest.mark.parametrize("template", ["boxed", "dapo"])
def test_what_asks_for_the_answer_in_every_question_is_taken_off(
    models: tuple[Path, Path], tmp_path: Path, template: str
) -> None:
    """A question is asked for its answer once: 40 more bytes would be as many tokens."""
    asked = questions(tmp_path / "q.jsonl")
    bare, _ = drafted(models, asked, tmp_path / "bare.yaml")
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    for row in rows:
        row["problem"] = templates.apply(template, row["problem"])
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, _ = drafted(models, asked, tmp_path / "mine.yaml")
    for name in ("questions", "held-out"):
        assert config.prompts[name].strip == [template]
    limits = [
        run.max_prompt_tokens for c in (bare, config) if (run := c.models["distilled"].distill)
    ]
    assert limits[0] == limits[1]
    # In one question alone it is part of it.
    rows[0]["problem"] = "1 + 1 ="
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, _ = drafted(models, asked, tmp_path / "other.yaml")
    assert not config.prompts["questions"].strip


@pytest.mark.parametrize(("most", "threads"), [(1e8, 1), (1e6, 2)])
def test_large_models_get_all_cores_of_a_laptop(
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: float,
    threads: int,
) -> None:
    monkeypatch.setattr(draft, "THREADED", most)
    asked = questions(tmp_path / "q.jsonl")
    for scale, expected in (("laptop", threads), ("one-gpu", 1)):
        config, _ = drafted(models, asked, tmp_path / f"{scale}.yaml", "--scale", scale)
        assert config.threads == expected


@pytest.mark.parametrize("rows", [4, 9, 24])
def test_few_questions_are_dealt_out_to_all_gpus(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    least = draft.SCALES["node"]._replace(sizes=draft.LEAST)
    monkeypatch.setitem(draft.SCALES, "node", least)
    asked = questions(tmp_path / "q.jsonl", rows=rows)
    config, planned = drafted(models, asked, tmp_path / "mine.yaml", "--scale", "node")
    run = config.models["distilled"].distill
    assert run is not None and run.micro_batch and "models/distilled/s0" in planned
    assert run.prompts_per_step * run.rollouts_per_prompt % (8 * run.micro_batch) == 0


def test_a_student_that_is_its_own_teacher_is_noted(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = questions(tmp_path / "q.jsonl")
    drafted((models[0], models[0]), asked, tmp_path / "mine.yaml")
    assert "note: student and teacher are one model" in capsys.readouterr().out
    drafted(models, asked, tmp_path / "other.yaml")
    assert "one model" not in capsys.readouterr().out


def test_sizes_halve_until_they_end_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens times the cost of one, by hand; no size falls below the least."""
    speed = sizing.Speed(4e-10, 1e-10)

    def of_devices(device: str, devices: int) -> sizing.Speed:
        return speed if device == "cpu" else sizing.Speed(*(s / devices for s in speed))

    monkeypatch.setattr(sizing, "speed", of_devices)
    scale = draft.Scale(10, "cpu", 2, 1e-5, draft.Sizes(20, 8, 2, 128, 40, 16, 2))

    def of(minutes: float, tokens: float) -> float:
        """Parameters of models that need so many minutes for so many tokens that are sampled."""
        return minutes * 60 / tokens / speed.sampled - sizing.BESIDES

    # 20 x 8 x 2 + 3 x 40 + 6 x 16 x 2 responses to 72 tokens; the first are read by the teacher and
    # three times over in an update, 16 x 2 by both.
    tokens = 632 * (128 + 72 / 4) + (4 * 320 + 2 * 32) * 200 / 4
    assert draft._fitting(scale, of(3.5, tokens), 72) == (scale.sizes, 4)
    assert draft._fitting(scale, of(9.9, tokens), 72) == (scale.sizes, 10)
    # Of half the sizes, and responses of 64 tokens.
    fewer = (80 + 3 * 20 + 6 * 16) * (64 + 72 / 4) + (4 * 80 + 2 * 16) * 136 / 4
    halved = draft.Sizes(10, 4, 2, 64, 20, 8, 2)
    assert draft._fitting(scale, of(10.1, tokens), 72) == (
        halved,
        math.ceil(10.1 * fewer / tokens),
    )
    gpus = scale._replace(device="cuda", devices=8)
    assert draft._fitting(gpus, of(79, tokens), 72)[0] == scale.sizes
    sizes, minutes = draft._fitting(scale, 1e10, 72)
    assert sizes == draft.LEAST and minutes > 10


def test_questions_without_answers_are_trained_on_and_not_graded(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = questions(tmp_path / "q.jsonl", answers=False)
    config, planned = drafted(models, asked, tmp_path / "mine.yaml")
    assert {"figures/training-distill", "tables/outlook-outlook", "report"} <= planned.keys()
    assert config.benchmarks == {} and config.tables == {}
    assert "grader" not in planned["probes/outlook/s0"].cfg  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "--grader" not in printed
    assert "nothing is graded; call the column with the answers" in printed


@pytest.mark.parametrize("name", ["2024", "on"])
def test_a_name_that_yaml_takes_for_something_else_stays_a_name(
    models: tuple[Path, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft, "_fitting", lambda *_: (draft.LEAST, 1))
    config, _ = drafted(models, questions(tmp_path / "q.jsonl"), tmp_path / f"{name}.yaml")
    assert config.name == name


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("there.yaml", '{"question": "1+1="}', "there.yaml: it is there already; name another"),
        (
            "new.yaml",
            '{"text": "1+1="}',
            "q.jsonl: it has text; call the column with the questions",
        ),
        ("new.yaml", "", "q.jsonl: it has no row; call the column"),
        (
            "new.yaml",
            '{"question": "' + "x" * 1100 + '", "answer": 1}',
            f"--questions: a question has {1103 + len(ASKS):,} tokens, the models read 1,024",
        ),
        ("new.yaml", '{"question": "1+1=", "answer": 1}', "one question is not enough"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    line: str,
) -> None:
    (tmp_path / "there.yaml").write_text("name: mine\n")
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(SystemExit) as ended:
        drafted(models, tmp_path / "q.jsonl", tmp_path / name)
    assert ended.value.code == 2 and line in capsys.readouterr().err
    assert (tmp_path / "there.yaml").read_text() == "name: mine\n"
    assert not (tmp_path / "new.yaml").exists()

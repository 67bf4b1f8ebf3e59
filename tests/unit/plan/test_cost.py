"""What a plan costs: closed forms, paths, what is there, measured rates, and the command."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opd.cli.main import main
from opd.core.errors import UserError
from opd.models import init
from opd.plan import calibrate, cost, outputs, show
from opd.plan.artifacts import plan
from opd.plan.cost import Facts
from opd.plan.work import work
from opd.recipes.resolve import resolve
from opd.stages.artifact import Artifact, closure
from opd.stages.registry import STAGES

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
SHIPPED = calibrate.read(ROOT / "config" / "calibration.yaml")
# Nothing ends by itself, so that responses have max_new_tokens; time is that of products, and on R
# twice that of H100.
SHEET = {"gigabytes_per_second": 1e9, "teraflops": 1.0, "sequences": 8, "source": "made up"}
NO_TIME = ("iteration_seconds", "token_seconds", "layer_seconds", "start_seconds")
TABLES: dict[str, Any] = {
    "machines": {"H100": SHEET, "R": {**SHEET, "teraflops": 0.5}},
    "assumed": {
        **{name: dict.fromkeys(calibrate.BOUNDS, 0) for name in NO_TIME},
        "share_of_bandwidth": dict.fromkeys(calibrate.BOUNDS, 1),
        "share_of_products": {"low": 0.2, "middle": 0.1, "high": 0.05},
        "written_gigabytes_per_second": dict.fromkeys(calibrate.BOUNDS, 1e9),
        "natural_tokens": dict.fromkeys(calibrate.BOUNDS, math.inf),
    },
    "anchor": {"source": "made up"},
    "prompt_tokens": 20,
    "parameters": {"own/big": 2000, "own/small": 1000},
    "rows": {"a.csv": 40, "some/set:en": 30, "some/set": 70},
    "problems": {"known": 5},
    "seconds": {"figure": 7},
    "bytes_per_second": 10,
}
RUN = {"steps": 3, "prompts_per_step": 5, "max_prompt_tokens": 64, "max_new_tokens": 100}


def graph(*artifacts: tuple[str, str, dict[str, Any], dict[str, str]]) -> dict[str, Artifact]:
    return {
        folder: Artifact(stage, folder, {**cfg, "inputs": list(inputs)}, tuple(inputs.values()))
        for stage, folder, cfg, inputs in artifacts
    }


def models() -> dict[str, Artifact]:
    """A student of 1000 parameters, a teacher of 2000, 40 prompts, and what is done with them."""
    return graph(
        ("fetch", "student", {"hub": "own/small"}, {}),
        ("fetch", "teacher", {"hub": "own/big"}, {}),
        ("prompts", "prompts", {"source": {"path": "a.csv"}, "sample": None}, {}),
        (
            "distill",
            "distilled",
            {**RUN, "rollouts_per_prompt": 2, "execution": {"keep_steps": [1, 2]}},
            {"student": "student", "teacher": "teacher", "prompts": "prompts"},
        ),
        (
            "grpo",
            "reinforced",
            {**RUN, "steps": None, "epochs": 1, "group_size": 2},
            {"student": "teacher", "prompts": "prompts"},
        ),
        (
            "generate",
            "rollouts",
            {"samples": 2, "max_new_tokens": 50, "max_prompt_tokens": 9},
            {"model": "distilled", "prompts": "prompts"},
        ),
        (
            "filter",
            "traces",
            {"per_prompt": 1, "n": 25},
            {"generations": "rollouts", "prompts": "prompts"},
        ),
        (
            "sft",
            "tuned",
            {"epochs": 2, "batch_size": 5, "max_tokens": 60},
            {"student": "student", "data": "traces"},
        ),
        (
            "evaluate",
            "scores",
            {
                "protocol": {"samples": 4, "max_new_tokens": 50},
                "benchmarks": [{"name": "x", "task": "known"}, {"name": "y", "task": "opd_y"}],
                "max_prompt_tokens": 9,
            },
            {"model": "tuned", "prompts:y": "prompts"},
        ),
        (
            "pair",
            "probed",
            {},
            {"generations": "rollouts", "student": "distilled", "teacher": "teacher"},
        ),
        (
            "continuation",
            "continued",
            {"samples": 1, "prefixes": [10, 30], "max_new_tokens": 50},
            {"generations": "rollouts", "student": "distilled", "teacher": "teacher"},
        ),
        ("figure", "shown", {}, {"run": "distilled"}),
    )


@pytest.fixture
def facts() -> Facts:
    return Facts(models(), TABLES)


# Operations of ten sequences of 100 tokens after prompts of 20, by 1000 parameters of which nothing
# else is known: of sampling them (prompts are read first), and of reading them once.
SAMPLED = READ = 2 * 10 * 120 * 1000
STEP = SAMPLED + 2 * READ + 3 * READ  # the teacher is twice as large


@pytest.mark.parametrize(
    ("folder", "parameters", "operations"),
    [
        ("distilled", 1000, 3 * STEP),
        # 40 prompts, 5 a step: 8 steps of 10 sequences, by the model of 2000 parameters.
        ("reinforced", 2000, 8 * 2 * (SAMPLED + 3 * READ)),
        # 80 responses of 50 tokens.
        ("rollouts", 1000, 2 * 80 * (20 - 11 + 50) * 1000),
        # At most one of two responses a prompt, 25 of them, twice; prompt and response have at
        # most 60 tokens.
        ("tuned", 1000, 3 * 2 * 2 * 25 * 60 * 1000),
        ("scores", 1000, 2 * 45 * 4 * (9 + 50) * 1000),
        # 80 rollouts of 50 tokens after prompts of 20, by both.
        ("probed", 1000, 2 * 80 * 70 * 3000),
        # After 10 tokens at most 40 more, after 30 at most 20: on average 30.
        ("continued", 2000, 2 * 80 * 2 * (20 + 30) * 2000),
    ],
)
def test_work_in_closed_form(facts, folder, parameters, operations):
    on = calibrate.device(SHEET, TABLES)
    done = work(facts, folder, on)
    assert done.parameters == parameters
    assert done.seconds == pytest.approx(operations / 1e11)


def test_every_reading_of_a_sum_is_work_of_a_teacher():
    """2000 parameters, the same told something, and the student's 1000 as a reference: 5/2 of what
    one teacher takes; a reward has no teacher."""
    told = {"information": [{"message": "{prompt}!"}]}
    parts = [{"teacher": "teacher:0"}, {"teacher": "teacher:0", **told}, {"reward": {}}]
    summed = models()
    run = summed["distilled"]
    inputs = {"student": "student", "teacher:0": "teacher", "prompts": "prompts"}
    cfg = {**run.cfg, "inputs": [*inputs], "terms": [*parts, {"reference": "student"}]}
    summed["distilled"] = Artifact("distill", "distilled", cfg, (*inputs.values(),))
    on = calibrate.device(SHEET, TABLES)
    plain, several = (work(Facts(made, TABLES), "distilled", on) for made in (models(), summed))
    assert several.parts["teacher"] == pytest.approx(2.5 * plain.parts["teacher"])
    assert several.parts["update"] == plain.parts["update"]
    assert several.parts["sample"] == plain.parts["sample"]


@pytest.mark.parametrize("stage", [name for name, stage in STAGES.items() if stage.computes])
def test_every_stage_that_makes_use_of_a_gpu_is_reckoned(stage):
    assert cost.USES[stage]


def microscope() -> dict[str, Artifact]:
    """Demonstrations by the model of 2000 parameters for the first 10 prompts, in few words by that
    of 1000, whose tree of 5 prompts these two look at."""
    lengths = {"max_new_tokens": 50, "max_prompt_tokens": 9}
    of_tree = {"tree": "tree", "student": "student", "prompts": "prompts"}
    return models() | graph(
        (
            "demonstrate",
            "demonstrations",
            {**lengths, "n": 10, "correct": 3, "wrong": 1, "trials": 60},
            {"model": "teacher", "prompts": "prompts"},
        ),
        (
            "summarise",
            "short",
            lengths,
            {"model": "student", "demonstrations": "demonstrations", "prompts": "prompts"},
        ),
        (
            "tree",
            "tree",
            {**lengths, "questions": 5, "correct_paths": 2, "incorrect_paths": 1},
            {"student": "student", "prompts": "prompts"},
        ),
        (
            "alignment",
            "aligned",
            {**lengths, "teacher": {"name": "big"}},
            {**of_tree, "teacher:big": "teacher"},
        ),
        ("alignment", "aligned-with-itself", {**lengths, "teacher": {"name": "own"}}, of_tree),
    )


@pytest.mark.parametrize(
    ("folder", "operations"),
    [
        ("short", 2 * 10 * 4 * (9 + 50) * 1000),
        ("aligned", 2 * 5 * 3 * (9 + 50) * 3000),
        ("aligned-with-itself", 2 * 5 * 3 * (9 + 50) * 2000),
    ],
)
def test_summaries_and_alignments_count_what_they_read(folder, operations):
    done = work(Facts(microscope(), TABLES), folder, calibrate.device(SHEET, TABLES))
    assert done.seconds == pytest.approx(operations / 1e11)


@pytest.mark.parametrize(
    ("folder", "lost"), [("short", "demonstrations"), ("aligned", "tree"), ("short", "prompts")]
)
def test_what_is_not_known_of_summaries_and_alignments_is_not_a_number(folder, lost):
    known = {name: made for name, made in microscope().items() if name != lost}
    done = work(Facts(known, TABLES), folder, calibrate.device(SHEET, TABLES))
    assert math.isnan(done.seconds)


def test_what_runs_no_model_has_no_work(facts):
    assert work(facts, "shown", calibrate.device(SHEET, TABLES)) is None


def test_rows_are_those_counted_where_they_were(facts):
    known = Facts(facts.artifacts, TABLES, {"prompts": {"prompts": 7}, "traces": {"kept": 3}})
    assert cost.rows(known, "prompts") == 7
    assert cost.rows(known, "rollouts") == 14
    assert cost.rows(known, "traces") == 3
    source = {"hub": "some/set"}
    sets = graph(
        ("prompts", "all", {"source": source}, {}),
        ("prompts", "english", {"source": {**source, "config": "en"}}, {}),
        ("prompts", "sample", {"source": {"from": True}, "sample": {"n": 9}}, {"prompts": "all"}),
        ("prompts", "strange", {"source": {"hub": "not/listed"}}, {}),
    )
    counts = [cost.rows(Facts(sets, TABLES), name) for name in sets]
    assert counts[:3] == [70, 30, 9] and math.isnan(counts[3])


def test_rows_of_samples_of_questions_and_of_the_first():
    """Where each question is asked five times, and where each is asked once."""
    again, once = {"source": {"from": True}}, {"distinct": "question"}
    sets = graph(
        ("prompts", "all", {"source": {"hub": "some/set"}}, {}),
        ("prompts", "first", {**again, "sample": {"first": 9, "seed": 0}}, {"prompts": "all"}),
        ("prompts", "questions", {**again, "sample": {"questions": 4}}, {"prompts": "all"}),
        ("prompts", "once", {**again, **once, "sample": {"questions": 4}}, {"prompts": "all"}),
        ("prompts", "other", {"source": {"hub": "x"}, "sample": {"questions": 4}}, {}),
    )
    facts = Facts(sets, {**TABLES, "rows_of_a_question": {"some/set": 5}})
    assert [cost.rows(facts, name) for name in sets] == [70, 9, 20, 4, 4]


def test_parameters_of_our_own_models_are_those_that_are_made(tmp_path):
    for heads, shape in ((4, (96, 3, 192)), (2, (32, 1, 48))):
        hidden, layers, inner = shape
        cfg = {
            "hidden": hidden,
            "layers": layers,
            "heads": heads,
            "kv_heads": heads // 2,
            "intermediate": inner,
            "seed": 0,
        }
        made = init.run(cfg, {}, tmp_path)["parameters"]
        facts = Facts(graph(("init", "m", cfg, {})), TABLES)
        assert cost.parameters(facts, "m") == made


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("own/big", 2000),
        ("some/Model-7B-Instruct", 7e9),
        ("some/model_1.5b", 1.5e9),
        ("some/tiny-135M", 135e6),
        ("some/Llama-3-8Bit", math.nan),
        ("some/model", math.nan),
    ],
)
def test_parameters_of_others_are_listed_or_said_by_the_name(name, size):
    made = graph(
        ("fetch", "m", {"hub": name}, {}),
        ("sft", "t", {}, {"student": "m"}),
        ("keep", "t@2", {}, {"model": "t"}),
    )
    found = [cost.parameters(Facts(made, TABLES), folder) for folder in made]
    assert found == pytest.approx([size] * 3, nan_ok=True)


def test_disk_is_what_is_made(facts):
    sizes = {folder: cost.disk(facts, folder) for folder in facts.artifacts}
    assert sizes["distilled"] == 4 * 1000 * 3  # the end and two kept steps
    assert sizes["teacher"] == 2 * 2000
    assert sizes["rollouts"] == 8 * 40 * 2 * 50
    assert sizes["shown"] == 0
    # While runs of 1000 and 2000 parameters are under way, each on its own two devices of five.
    widths = {"distilled": 2, "reinforced": 2, "shown": 1}
    assert cost.room(facts, widths, 5) == (4 * 1000 * 3 + 4 * 2000, 2 * 2 * 12 * 2000, 0, 0)
    # Ids and log-probabilities of 4 tokens, and 8 bytes more, of each token of the responses.
    inputs = {"generations": "rollouts", "student": "distilled", "teacher": "teacher"}
    kept = graph(("score", "kept", {"k": 4}, inputs))
    scored = Facts({**facts.artifacts, **kept}, TABLES)
    assert cost.disk(scored, "kept") == (4 * 6 + 8) * 40 * 2 * 50
    # They are read once, by the teacher alone, with 2 operations a parameter and token.
    on = calibrate.device(SHEET, TABLES)
    parts = work(scored, "kept", on).parts
    assert parts["score"] == pytest.approx(2 * 40 * 2 * (20 + 50) * 2000 / on.products)
    assert parts.keys() == {"score", "start"}
    # A named student of 1000 parameters reads them, too; of 4 tokens each id and float32 are kept.
    named = graph(("score", "named", {"k": 4}, inputs | {"named_student": "distilled"}))
    scored = Facts({**facts.artifacts, **named}, TABLES)
    assert cost.disk(scored, "named") == (4 * (6 + 8) + 8) * 40 * 2 * 50
    assert work(scored, "named", on).parts["student"] == pytest.approx(parts["score"] / 2)
    # A sharded run writes its weights twice.
    for more, size in (({}, 12), ({"processes": 2, "execution": {"accelerate": "fsdp2.yaml"}}, 16)):
        cfg = {**facts.artifacts["tuned"].cfg, **more}
        tuned = dataclasses.replace(facts.artifacts["tuned"], cfg=cfg)
        changed = Facts({**facts.artifacts, "tuned": tuned}, TABLES)
        assert cost.room(changed, {"tuned": 2}, 2)[1] == 2 * size * 1000
    # Of steps that go, those of two runs for each that trains are there at a time.
    runs = {f"models/{run}/s0": facts.artifacts["distilled"] for run in "abc"}
    runs["models/tuned/s0"] = facts.artifacts["tuned"]
    steps = [f"models/{run}@{step}/s0" for run in "abc" for step in (1, 2)]
    passing = Facts({**facts.artifacts, **runs}, TABLES, {}, steps[:-1])
    size, room = 4 * 1000, cost.room(passing, dict.fromkeys(runs, 2), 2)
    assert (room.stays, room.passing, room.kept) == ((4 + 1) * size, 2 * 2 * size, 5 * size)
    assert cost.room(passing, dict.fromkeys(runs, 2), 4).passing == 5 * size
    # Every kind of training run leaves checkpoints.
    assert cost.room(facts, {"distilled": 2}, 5)[1] == 2 * 2 * 12 * 1000
    assert cost.room(facts, {"tuned": 2}, 5)[1] == 2 * 2 * 12 * 1000


# Paths


def longest(artifacts: dict[str, Artifact], seconds: dict[str, float], folder: str) -> float:
    upstream = [longest(artifacts, seconds, i) for i in artifacts[folder].inputs]
    return seconds.get(folder, 0.0) + max(upstream, default=0.0)


@given(st.data())
def test_critical_path_is_the_longest_of_all(data):
    n = data.draw(st.integers(1, 7))
    made = {}
    for i in range(n):
        chosen = data.draw(st.sets(st.integers(0, i - 1))) if i else set()
        made[f"{i}"] = Artifact("figure", f"{i}", {}, tuple(f"{j}" for j in sorted(chosen)))
    # Jobs that are done take no time.
    seconds = {folder: float(n) for folder in made if (n := data.draw(st.integers(0, 9)))}
    naive = max(longest(made, seconds, folder) for folder in made)
    assert cost.critical_path(made, seconds) == naive


# Measured rates


def used(path: str) -> dict[str, str]:
    return {"path": path, "identity": "", "outputs": ""}


def manifests(results: Path, slow: dict[str, float]) -> None:
    """Manifests of every stage above, which took so many times what the reference takes."""
    facts = Facts(models(), TABLES)
    for folder, artifact in facts.artifacts.items():
        done = work(facts, folder, calibrate.device(SHEET, TABLES))
        inputs = artifact.named.items()
        made = {
            "stage": artifact.stage,
            "cfg": artifact.cfg,
            "identity": f"{results}{folder}",
            "inputs": {n: used(f"results/{results.name}/{i}/digest.json") for n, i in inputs},
            "outputs": {},
            "numbers": {},
            "seconds": (done.seconds if done else 3.0) * slow.get(artifact.stage, 1.0),
            "device": "Some GPU",
        }
        (results / folder).mkdir(parents=True)
        (results / folder / "manifest.json").write_text(json.dumps(made))


def test_calibration_gives_back_what_stages_took(tmp_path):
    for name, slow in (("x", 4.0), ("y", 6.0), ("z", 12.0)):
        manifests(tmp_path / name, {"distill": slow, "figure": 2.0})
    path, tables = tmp_path / "results" / "calibration.yaml", tmp_path / "tables.yaml"
    tables.write_text(yaml.safe_dump({"format": calibrate.FORMAT, **TABLES}))
    # What is given twice counts once.
    results = [f"{tmp_path / name}" for name in "xyzx"]
    main(["calibrate", "--out", f"{path}", "--reference", f"{tables}", *results])
    found = calibrate.read(path)
    entries = {(e["stage"], e.get("parameters")): e for e in found["measured"]}
    assert entries["distill", 1000]["times_reckoned"] == {"low": 4, "middle": 6, "high": 12}
    assert entries["distill", 1000]["stages"] == 3
    assert entries["grpo", 2000]["times_reckoned"]["middle"] == 1
    assert entries["figure", None]["seconds"] == {"low": 6, "middle": 6, "high": 6}

    # The next plan reckons with it: what the same stage took first, then other stages.
    facts, step = Facts(models(), TABLES), STEP / 1e11
    job = calibrate.estimate(facts, "distilled", calibrate.machine(None, False, found, TABLES))
    assert job[:3] == pytest.approx((4 * 3 * step, 6 * 3 * step, 12 * 3 * step))
    assert job.source == "measured (Some GPU)"
    found["measured"] = [e for e in found["measured"] if e["stage"] == "grpo"]
    on = calibrate.machine("some gpu", False, found, TABLES)
    job = calibrate.estimate(facts, "distilled", on)
    assert (job.source, job.middle) == (
        "measured on other stages (Some GPU)",
        pytest.approx(3 * step),
    )
    # Nothing of it counts on another machine.
    on = calibrate.machine("R", False, found, TABLES)
    takes = [calibrate.estimate(facts, f, on).middle for f in ("distilled", "shown", "teacher")]
    assert takes == pytest.approx([2 * 3 * step, 7, 2 * 2000 / 10])


def test_records_of_before_stages_were_called_so_are_read(tmp_path):
    manifests(tmp_path / "x", {})
    path = tmp_path / "x" / "shown" / "manifest.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({"verb": made.pop("stage"), **made}))
    assert calibrate.finished(tmp_path / "x")["shown"].stage == "figure"


def test_what_was_adopted_is_not_measured(tmp_path):
    manifests(tmp_path / "x", {})
    path = tmp_path / "x" / "tuned" / "manifest.json"
    made = {**json.loads(path.read_text()), "inputs": {}, "seconds": 0.0, "adopted": "/elsewhere"}
    path.write_text(json.dumps(made))
    measured = calibrate.calibrate([calibrate.finished(tmp_path / "x")], TABLES)["measured"]
    stages = {entry["stage"] for entry in measured}
    assert "sft" not in stages and {"distill", "generate"} <= stages


def test_ones_own_rates_come_first_and_the_nearest_size_counts():
    def entry(size: int, times: float) -> dict[str, Any]:
        bounds = dict.fromkeys(calibrate.BOUNDS, times)
        return {"stage": "distill", "device": "R", "parameters": size, "times_reckoned": bounds}

    own, shipped = [entry(10, 9), entry(1500, 5)], [entry(1000, 1)]
    tables = {**TABLES, "measured": shipped}
    on = calibrate.machine("R", False, {"measured": own}, tables)
    assert calibrate.estimate(Facts(models(), TABLES), "distilled", on).middle == pytest.approx(
        5 * 2 * 3 * STEP / 1e11
    )


def test_calibration_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished stage"):
        calibrate.finished(tmp_path)
    (tmp_path / "c.yaml").write_text("measured: []\n")
    with pytest.raises(UserError, match="made by another version; make it again with `opd calib"):
        calibrate.read(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="not a mapping"):
        calibrate.read(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="no such file"):
        calibrate.read(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="no machines"):
        calibrate.tables(tmp_path / "none.yaml")


# The command


def test_the_command_says_what_the_miniature_would_cost(tmp_path):
    heavy = ("torch", "transformers", "matplotlib", "snakemake", "datasets", "pyarrow")
    script = (
        "import sys\nfrom opd.cli.main import main\nmain(sys.argv[1:])\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "plan", "--configfile", str(ROOT / "config" / "mini.yaml")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert list(tmp_path.iterdir()) == []
    config = resolve(yaml.safe_load((ROOT / "config" / "mini.yaml").read_text()))
    made = plan(config, {})
    made |= outputs.exhibits(config, made, ROOT / "config")
    behind = closure(outputs.targets(config, made), made)
    assert lines[0] == f"mini: {len(behind)} of {len(behind)} jobs to run, on 1 x cpu"
    table = {line.split()[0]: line.split()[1:5] for line in lines[3 : lines.index("", 3)]}
    stages = Counter(made[folder].stage for folder in behind)
    assert table == {stage: [str(n), "0", "0", "0"] for stage, n in stages.items()}
    # It is meant for a laptop and minutes, less than an hour.
    total = next(line for line in lines if line.startswith("in all"))
    assert 0.2 < float(total.split("likely")[1].strip(" )")) < 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"targets": ["loss_from"]}, "did you mean 'loss_form'"),
        ({"device": "B200"}, "nothing is known of the device 'B200'"),
        ({"claim": "x"}, "unknown claim"),
    ],
)
def test_what_is_unknown_is_refused(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        list(show.lines([ROOT / "config" / "mini.yaml"], **{"targets": [], **more}))


def test_plain_data_are_of_the_same_devices(tmp_path, monkeypatch):
    """What samples a step on two of eight GPUs, in little memory, takes other hours."""
    monkeypatch.chdir(tmp_path)
    part = [ROOT / "config" / "paper.yaml"], ["models/r1-1.5b-from-justrl/s0"]
    devices: dict[str, Any] = {"gpus": 2, "gibibytes": 24}
    of_all, of_two = (show.as_json(*part, **given)["artifacts"][-1] for given in ({}, devices))
    assert of_all["folder"] == of_two["folder"] == part[1][0]
    assert of_all["hours"] != of_two["hours"]
    low, _, high = (3600 * hour for hour in of_two["hours"])
    assert show.span(low, high) in show.lines(*part, **devices, jobs=True)[-1]


def test_where_all_is_there_nothing_is_reckoned():
    made = graph(("figure", "a", {}, {}))
    on = calibrate.machine("R", False, {}, TABLES)
    *_, last = show.text(Facts(made, TABLES), {"a": "there"}, on, None, "x")
    assert last.split() == ["figure", "0", "0", "1", "0"]


def test_what_models_spend_their_time_on_is_shown_with_what_is_assumed(facts):
    """Of 16 reads' worth of products (sampling 1, a teacher of twice the size 2, updates 3)."""
    on = calibrate.machine("R", False, {}, TABLES)
    lines = show.text(facts, {"distilled": "run"}, on, None, "x")
    shares = "updates 50 %, the teacher's forward passes 33 %, sampling 17 %"
    assert f"of models' time: {shares}" in lines
    (line,) = (line for line in lines if line.startswith("- reckoned: "))
    assert "100 % of the bandwidth and 10 % of the products" in line
    # Products in half and in twice the time, as is assumed.
    (line,) = (line for line in lines if line.startswith("distill"))
    seconds = 2 * 3 * STEP / 1e11
    assert show.span(seconds / 2, 2 * seconds) in line


def test_what_has_no_known_size_is_named_and_not_counted(tmp_path):
    made = graph(
        ("fetch", "m", {"hub": "some/model"}, {}),
        ("sft", "t", {"steps": 1, "batch_size": 1, "max_tokens": 9}, {"student": "m"}),
        ("prompts", "p", {"source": {"hub": "not/listed"}}, {}),
        ("fetch", "n", {"hub": "own/small"}, {}),
        (
            "grpo",
            "u",
            {**RUN, "steps": None, "epochs": 1, "group_size": 2},
            {"student": "n", "prompts": "p"},
        ),
    )
    on = calibrate.machine("R", False, {}, TABLES)
    states = dict.fromkeys(("m", "t", "u"), "run")
    lines = list(show.text(Facts(made, TABLES), states, on, None, "x"))
    missing = [line.split()[2] for line in lines if line.startswith("not counted: ")]
    assert missing == ["m,", "t,", "u,"]
    assert any(line.startswith("in all: <0.01 GPU-hours") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "<0.01"), (3600 * 0.3349, "0.33"), (3600 * 1.26, "1.3"), (3600 * 1234.5, "1,234")],
)
def test_hours_have_sensible_digits(seconds, text):
    assert show.hours(seconds) == text


def test_a_span_is_one_number_where_both_ends_read_the_same():
    assert show.span(3600 * 12.1, 3600 * 12.3) == "12"
    assert show.span(3600 * 12.1, 3600 * 15) == "12–15"
